// Package addon reads and renders add-ons. An add-on is one YAML file: a first document of kind Addon,
// which says what it is and what it can be told, then plain manifests with placeholders (see
// placeholder.go) for its parameters. Reading and rendering are pure, so what a node applies can be printed and
// golden-tested anywhere; applying is the add-on manager's work (internal/applets/addonmanager). Used by
// package addons, which holds the add-ons k1s brings, and by the add-on manager, which reads headers.
package addon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"

	"k1s.io/k1s/internal/errs"
)

// APIVersion and Kind open every add-on.
const (
	APIVersion = "k1s.io/v1alpha1"
	Kind       = "Addon"
)

// Addon is one add-on: its header, and its manifests as they are before rendering.
type Addon struct {
	Header
	manifests string
	file      string // for messages
	line      int    // of the file where manifests begin, from 1
}

// Header is the first document.
type Header struct {
	APIVersion string `yaml:"apiVersion" json:"apiVersion"`
	Kind       string `yaml:"kind" json:"kind"`
	Name       string `yaml:"name" json:"name"`
	// Summary is one line for people.
	Summary string `yaml:"summary" json:"summary"`
	// Optional add-ons may be left out by the user; the others are part of what makes a node work.
	Optional bool `yaml:"optional,omitempty" json:"optional,omitempty"`
	// DependsOn names add-ons that have to be there as well.
	DependsOn  []string    `yaml:"dependsOn,omitempty" json:"dependsOn,omitempty"`
	Parameters []Parameter `yaml:"parameters,omitempty" json:"parameters,omitempty"`
	// Images are what its pods run from, placeholders allowed.
	Images []string `yaml:"images,omitempty" json:"images,omitempty"`
	// Ready are the objects that must be rolled out or available before the add-on counts as ready.
	Ready []Object `yaml:"ready,omitempty" json:"ready,omitempty"`
}

// Parameter is one thing an add-on can be told.
type Parameter struct {
	Name string `yaml:"name" json:"name"`
	Doc  string `yaml:"doc" json:"doc"`
	// Type is "string" (also if empty) or "bool".
	Type string `yaml:"type,omitempty" json:"type,omitempty"`
	// Default is its value unless one is given; without a default one must be given.
	Default *string `yaml:"default,omitempty" json:"default,omitempty"`
}

// Object names an object in the cluster.
type Object struct {
	APIVersion string `yaml:"apiVersion" json:"apiVersion"`
	Kind       string `yaml:"kind" json:"kind"`
	Namespace  string `yaml:"namespace,omitempty" json:"namespace,omitempty"`
	Name       string `yaml:"name" json:"name"`
}

// String is the object as people name it: "Deployment kube-system/coredns".
func (o Object) String() string {
	if o.Namespace == "" {
		return o.Kind + " " + o.Name
	}
	return o.Kind + " " + o.Namespace + "/" + o.Name
}

// Parse reads an add-on; file is what messages call it. Errors are of kind errs.Invalid.
func Parse(file string, data []byte) (Addon, error) {
	head, rest, line := cut(string(data))
	a := Addon{manifests: rest, file: file, line: line}
	if err := a.parseHeader(file, head); err != nil {
		return Addon{}, err
	}
	if strings.TrimSpace(rest) == "" {
		return Addon{}, errs.New(errs.Invalid, "%s: there are no manifests after the header", file)
	}
	return a, nil
}

// ParseHeader reads an add-on's first document alone, as it stands in a rendered add-on.
func ParseHeader(file string, document []byte) (Header, error) {
	var a Addon
	err := a.parseHeader(file, string(document))
	return a.Header, err
}

var (
	nameForm      = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	parameterForm = regexp.MustCompile(`^[A-Z][A-Za-z0-9]*$`)
)

func (a *Addon) parseHeader(file, text string) error {
	dec := yaml.NewDecoder(strings.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&a.Header); err != nil {
		return errs.New(errs.Invalid, "%s: reading the add-on's header: %w", file, err)
	}
	bad := func(format string, args ...any) error {
		return errs.New(errs.Invalid, "%s: %s", file, fmt.Sprintf(format, args...))
	}
	switch {
	case a.APIVersion != APIVersion || a.Kind != Kind:
		return bad("the first document is %s %s, not %s %s", a.APIVersion, a.Kind, APIVersion, Kind)
	case !nameForm.MatchString(a.Name):
		return bad("name %q is no add-on name: lower-case letters, digits and dashes", a.Name)
	case a.Summary == "":
		return bad("the add-on has no summary")
	}
	seen := map[string]bool{}
	for _, p := range a.Parameters {
		switch {
		case !parameterForm.MatchString(p.Name):
			return bad("parameter %q: a name begins with a capital letter and has only letters and digits", p.Name)
		case seen[p.Name]:
			return bad("parameter %s is there twice", p.Name)
		case p.Type != "" && p.Type != "string" && p.Type != "bool":
			return bad("parameter %s: type %q is neither string nor bool", p.Name, p.Type)
		}
		seen[p.Name] = true
		if p.Default != nil {
			if _, err := p.value(*p.Default); err != nil {
				return bad("the default of parameter %s: %v", p.Name, err)
			}
		}
	}
	for i, o := range a.Ready {
		if o.APIVersion == "" || o.Kind == "" || o.Name == "" {
			return bad("entry %d of ready needs apiVersion, kind and name", i+1)
		}
	}
	return nil
}

// cut separates the first document from the rest, which begins at the given line.
func cut(text string) (head, rest string, line int) {
	content := false
	at, n := 0, 1
	for l := range strings.Lines(text) {
		bare := strings.TrimSpace(l)
		if IsSeparator(l) && content {
			return text[:at], text[at+len(l):], n + 1
		}
		content = content || bare != "" && !strings.HasPrefix(bare, "#") && !IsSeparator(l)
		at += len(l)
		n++
	}
	return text, "", n
}

// IsSeparator tells that a line of a YAML stream ends one document and begins the next.
func IsSeparator(line string) bool {
	rest, ok := strings.CutPrefix(line, "---")
	rest = strings.TrimSpace(rest)
	return ok && (rest == "" || strings.HasPrefix(rest, "#"))
}

// value checks a given value and turns it into what placeholders see.
func (p Parameter) value(s string) (any, error) {
	if p.Type == "bool" {
		b, err := strconv.ParseBool(s)
		if err != nil {
			return nil, fmt.Errorf("%q is neither true nor false", s)
		}
		return b, nil
	}
	// A line break would end the YAML scalar it is put into and begin something else.
	if i := strings.IndexFunc(s, unicode.IsControl); i >= 0 {
		return nil, fmt.Errorf("%q contains a line break or another control character", s)
	}
	return s, nil
}

// Render fills in the manifests. Every parameter must be given or have a default, and every one given must
// exist. The result is the header with defaults replaced by the values in force, then the manifests;
// equal input gives equal text. It is checked that each document is an object with a kind and a name.
func Render(a Addon, params map[string]string) (string, error) {
	values, err := a.values(params)
	if err != nil {
		return "", err
	}
	known := map[string]bool{}
	for _, p := range a.Parameters {
		known[p.Name] = true
	}
	execute := func(file, text string, line int) (string, error) {
		fragments, err := parsePlaceholders(file, text, line, known)
		if err != nil {
			return "", errs.New(errs.Invalid, "reading add-on %s: %w", a.Name, err)
		}
		var b strings.Builder
		fill(&b, fragments, values)
		return b.String(), nil
	}
	h := a.Header
	h.Images = nil
	for _, image := range a.Images {
		s, err := execute(a.file+": images", image, 1)
		if err != nil {
			return "", err
		}
		h.Images = append(h.Images, s)
	}
	h.Parameters = slices.Clone(a.Parameters)
	for i, p := range h.Parameters {
		s := fmt.Sprint(values[p.Name])
		h.Parameters[i].Default = &s
	}
	body, err := execute(a.file, a.manifests, a.line)
	if err != nil {
		return "", err
	}
	body = strings.TrimLeft(body, "\n")
	if err := check(a.Name, body); err != nil {
		return "", err
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "# Written by k1s at every start; changes here are lost.\n")
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(h); err != nil {
		return "", fmt.Errorf("writing the header of add-on %s: %w", a.Name, err)
	}
	out.WriteString("---\n" + body)
	return out.String(), nil
}

func (a Addon) values(params map[string]string) (map[string]any, error) {
	values := map[string]any{}
	var missing []string
	var problems []error
	left := maps.Clone(params)
	for _, p := range a.Parameters {
		s, ok := params[p.Name]
		delete(left, p.Name)
		if !ok {
			if p.Default == nil {
				missing = append(missing, p.Name)
				continue
			}
			s = *p.Default
		}
		v, err := p.value(s)
		if err != nil {
			problems = append(problems, errs.New(errs.Invalid, "add-on %s: parameter %s: %w", a.Name, p.Name, err))
		}
		values[p.Name] = v
	}
	if len(missing) > 0 {
		problems = append(problems, errs.New(errs.Invalid, "add-on %s: missing parameters: %s", a.Name, strings.Join(missing, ", ")))
	}
	if len(left) > 0 {
		problems = append(problems, errs.New(errs.Invalid, "add-on %s has no parameters %s", a.Name, strings.Join(slices.Sorted(maps.Keys(left)), ", ")))
	}
	return values, errors.Join(problems...)
}

// check finds what a placeholder in the wrong place breaks, before it reaches a cluster.
func check(name, manifests string) error {
	dec := yaml.NewDecoder(strings.NewReader(manifests))
	for i := 1; ; i++ {
		var o struct {
			APIVersion string `yaml:"apiVersion"`
			Kind       string `yaml:"kind"`
			Metadata   struct {
				Name string `yaml:"name"`
			} `yaml:"metadata"`
		}
		err := dec.Decode(&o)
		switch {
		case errors.Is(err, io.EOF) && i > 1:
			return nil
		case errors.Is(err, io.EOF):
			return errs.New(errs.Invalid, "add-on %s renders to nothing", name)
		case err != nil:
			return errs.New(errs.Invalid, "add-on %s renders to what is no YAML: %w", name, err)
		case o.APIVersion == "" || o.Kind == "" || o.Metadata.Name == "":
			return errs.New(errs.Invalid, "add-on %s: document %d after the header has no apiVersion, kind or metadata.name", name, i)
		}
	}
}
