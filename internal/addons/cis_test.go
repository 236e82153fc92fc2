package addons_test

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"k1s.io/k1s/internal/addons"
)

// object is what matters of a manifest to the CIS Kubernetes Benchmark, section 5.
type object struct {
	Kind     string `yaml:"kind"`
	Metadata struct {
		Name string `yaml:"name"`
	} `yaml:"metadata"`
	RoleRef struct {
		Name string `yaml:"name"`
	} `yaml:"roleRef"`
	Rules []struct {
		Resources []string `yaml:"resources"`
		Verbs     []string `yaml:"verbs"`
		URLs      []string `yaml:"nonResourceURLs"`
	} `yaml:"rules"`
	Spec struct {
		Template struct {
			Spec podSpec `yaml:"spec"`
		} `yaml:"template"`
	} `yaml:"spec"`
}

type podSpec struct {
	ServiceAccountName string `yaml:"serviceAccountName"`
	HostNetwork        bool   `yaml:"hostNetwork"`
	HostPID            bool   `yaml:"hostPID"`
	HostIPC            bool   `yaml:"hostIPC"`
	SecurityContext    struct {
		RunAsNonRoot   bool `yaml:"runAsNonRoot"`
		SeccompProfile struct {
			Type string `yaml:"type"`
		} `yaml:"seccompProfile"`
	} `yaml:"securityContext"`
	Containers []struct {
		Name            string `yaml:"name"`
		SecurityContext struct {
			Privileged               bool  `yaml:"privileged"`
			AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
			ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
			Capabilities             struct {
				Drop []string `yaml:"drop"`
				Add  []string `yaml:"add"`
			} `yaml:"capabilities"`
		} `yaml:"securityContext"`
	} `yaml:"containers"`
}

// objects are those of all packaged add-ons.
func objects(t *testing.T) []object {
	t.Helper()
	rendered, err := addons.Render(node(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var all []object
	for name, text := range rendered {
		dec := yaml.NewDecoder(strings.NewReader(text))
		for {
			var o object
			if err := dec.Decode(&o); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			all = append(all, o)
		}
	}
	return all
}

// Items 5.1.1 to 5.1.4 and 5.1.8 to 5.1.13.
func TestAddOnsHaveNoRightsThatTheBenchmarkWarnsOf(t *testing.T) {
	roles := 0
	for _, o := range objects(t) {
		if strings.HasSuffix(o.Kind, "Binding") && o.RoleRef.Name == "cluster-admin" {
			t.Errorf("%s %s makes an administrator", o.Kind, o.Metadata.Name)
		}
		if o.Kind != "Role" && o.Kind != "ClusterRole" {
			continue
		}
		roles++
		for _, r := range o.Rules {
			words := slices.Concat(r.Resources, r.Verbs, r.URLs)
			for _, bad := range []string{"*", "secrets", "bind", "escalate", "impersonate", "nodes/proxy", "certificatesigningrequests/approval", "validatingwebhookconfigurations", "mutatingwebhookconfigurations", "serviceaccounts/token"} {
				if slices.Contains(words, bad) {
					t.Errorf("%s %s is about %s: %v %v", o.Kind, o.Metadata.Name, bad, r.Verbs, r.Resources)
				}
			}
			makes := slices.Contains(r.Verbs, "create")
			if makes && slices.Contains(r.Resources, "pods") && (o.Kind == "ClusterRole" || !strings.Contains(o.Metadata.Name, "local-path")) {
				t.Errorf("%s %s makes pods", o.Kind, o.Metadata.Name)
			}
			if makes && slices.Contains(r.Resources, "persistentvolumes") && !strings.Contains(o.Metadata.Name, "local-path") {
				t.Errorf("%s %s makes volumes", o.Kind, o.Metadata.Name)
			}
		}
	}
	if roles < 4 {
		t.Errorf("only %d roles were found", roles)
	}
}

// Items 5.1.5 and 5.2.2 to 5.2.10.
func TestPodsOfAddOnsAreRestricted(t *testing.T) {
	pods := 0
	for _, o := range objects(t) {
		spec := o.Spec.Template.Spec
		if len(spec.Containers) == 0 {
			continue
		}
		pods++
		if spec.ServiceAccountName == "" || spec.ServiceAccountName == "default" {
			t.Errorf("%s %s has no service account of its own", o.Kind, o.Metadata.Name)
		}
		if spec.HostNetwork || spec.HostPID || spec.HostIPC {
			t.Errorf("%s %s shares namespaces of its node", o.Kind, o.Metadata.Name)
		}
		if !spec.SecurityContext.RunAsNonRoot || spec.SecurityContext.SeccompProfile.Type != "RuntimeDefault" {
			t.Errorf("%s %s: %+v", o.Kind, o.Metadata.Name, spec.SecurityContext)
		}
		for _, c := range spec.Containers {
			s := c.SecurityContext
			if s.Privileged || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) || len(s.Capabilities.Add) > 0 {
				t.Errorf("%s %s, container %s: %+v", o.Kind, o.Metadata.Name, c.Name, s)
			}
		}
	}
	if pods != 3 {
		t.Errorf("%d pods were found", pods)
	}
}
