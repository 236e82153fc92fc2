// Package audit knows what a policy of the API's audit log looks like. It says what is wrong with one before
// an API server is started with it, which would only end. Text in, error out; what a policy does is up to the
// API server. Used by the daemon.
package audit

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/strictyaml"
)

const (
	apiVersion = "audit.k8s.io/v1"
	kind       = "Policy"
)

var (
	levels = []string{"None", "Metadata", "Request", "RequestResponse"}
	stages = []string{"RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"}
)

// policy has the fields of audit.k8s.io/v1, as of Kubernetes 1.36.
type policy struct {
	APIVersion        string         `yaml:"apiVersion"`
	Kind              string         `yaml:"kind"`
	Metadata          map[string]any `yaml:"metadata"`
	Rules             []*rule        `yaml:"rules"` // pointers, or empty ones would be left out
	OmitStages        []string       `yaml:"omitStages"`
	OmitManagedFields bool           `yaml:"omitManagedFields"`
}

type rule struct {
	Level             string      `yaml:"level"`
	Users             []string    `yaml:"users"`
	UserGroups        []string    `yaml:"userGroups"`
	Verbs             []string    `yaml:"verbs"`
	Resources         []resources `yaml:"resources"`
	Namespaces        []string    `yaml:"namespaces"`
	NonResourceURLs   []string    `yaml:"nonResourceURLs"`
	OmitStages        []string    `yaml:"omitStages"`
	OmitManagedFields *bool       `yaml:"omitManagedFields"`
}

type resources struct {
	Group         string   `yaml:"group"`
	Resources     []string `yaml:"resources"`
	ResourceNames []string `yaml:"resourceNames"`
}

// Check tells everything that is wrong with a policy, each with its line; name is how errors call the file.
// Errors are of kind errs.Invalid. Unknown keys, of which an API server only warns, are errors here: a rule
// whose key is misspelt applies to more than was meant.
func Check(name string, content []byte) error {
	var p policy
	err := strictyaml.Decode(name, content, &p)
	if err == nil {
		err = p.problems(name, content)
	}
	return errs.Hint(errs.As(errs.Invalid, err),
		"policies are described at https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/; without spec.audit.policyFile k1s writes one")
}

func (p policy) problems(name string, content []byte) error {
	var all []error
	bad := func(line int, format string, args ...any) {
		at := name
		if line > 0 {
			at = fmt.Sprintf("%s:%d", name, line)
		}
		all = append(all, fmt.Errorf("%s: %s", at, fmt.Sprintf(format, args...)))
	}
	if p.APIVersion != apiVersion || p.Kind != kind {
		bad(0, "apiVersion is %q and kind %q, and must be %q and %q", p.APIVersion, p.Kind, apiVersion, kind)
	}
	if len(p.Rules) == 0 {
		bad(0, "it has no rules, so nothing would be written")
	}
	for _, s := range p.OmitStages {
		if !slices.Contains(stages, s) {
			bad(0, "omitStages: %q is none of %s", s, strings.Join(stages, ", "))
		}
	}
	// It was decoded once already, so this cannot fail.
	var places struct{ Rules []yaml.Node }
	if err := yaml.Unmarshal(content, &places); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for i, r := range p.Rules {
		if r == nil {
			r = &rule{}
		}
		for _, problem := range r.problems() {
			bad(places.Rules[i].Line, "rule %d: %s", i+1, problem)
		}
	}
	return errors.Join(all...)
}

// problems are those for which an API server refuses a rule.
func (r rule) problems() []string {
	var out []string
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if !slices.Contains(levels, r.Level) {
		bad("level is %q, and must be one of %s", r.Level, strings.Join(levels, ", "))
	}
	for _, s := range r.OmitStages {
		if !slices.Contains(stages, s) {
			bad("omitStages: %q is none of %s", s, strings.Join(stages, ", "))
		}
	}
	if len(r.NonResourceURLs) > 0 && len(r.Resources)+len(r.Namespaces) > 0 {
		bad("it cannot be about resources or namespaces and nonResourceURLs at once")
	}
	for _, u := range r.NonResourceURLs {
		if u != "*" && !strings.HasPrefix(u, "/") || strings.Contains(strings.TrimSuffix(u, "*"), "*") {
			bad("nonResourceURLs: %q must begin with / and may have a * at its end only", u)
		}
	}
	for _, res := range r.Resources {
		if strings.Contains(res.Group, "/") {
			bad("resources: group %q must be without a version", res.Group)
		}
		if len(res.ResourceNames) > 0 && len(res.Resources) == 0 {
			bad("resources: resourceNames need resources")
		}
	}
	return out
}
