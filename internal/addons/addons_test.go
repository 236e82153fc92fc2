package addons_test

import (
	"errors"
	"flag"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"k1s.io/k1s/internal/addon"
	"k1s.io/k1s/internal/addons"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/image"
)

var update = flag.Bool("update", false, "write the golden files")

func node() addons.Node {
	return addons.Node{
		ClusterDNS: "10.43.0.10", ClusterDomain: "cluster.local", HasUpstreamDNS: true,
		PodsProgram: "/var/lib/k1s/payload/current/k1s-pods", PayloadID: "0123456789abcdef",
		BaseImage: image.BaseName, StorageDir: "/var/lib/k1s/storage",
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; see what: go test ./internal/addons -update && git diff\ngot:\n%s", name, got)
	}
}

func TestRenderedAddOns(t *testing.T) {
	got, err := addons.Render(node(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range got {
		golden(t, name, text)
	}
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(got)+1 { // and the one below
		t.Errorf("there are golden files %q for %d add-ons", files, len(got))
	}
}

func TestDNSWithoutUpstreamDeniesOtherNamesAtOnce(t *testing.T) {
	n := node()
	n.HasUpstreamDNS = false
	got, err := addons.Render(n, nil)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "coredns-offline.yaml", got["coredns.yaml"])
	if strings.Contains(got["coredns.yaml"], "forward .") {
		t.Error("it forwards to nobody")
	}
}

func TestDisabledAddOnsAreLeftOut(t *testing.T) {
	got, err := addons.Render(node(), []string{"coredns", "local-path"})
	if err != nil {
		t.Fatal(err)
	}
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, []string{"metrics-server.yaml"}) {
		t.Errorf("rendered %q", names)
	}
}

func TestWhatCannotBeDisabled(t *testing.T) {
	for _, name := range []string{"kubelet", "corends"} {
		if _, err := addons.Render(node(), []string{name}); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("disabling %s: got %v, want an error of kind Invalid that names it", name, err)
		}
	}
}

func TestIncompleteNodeIsRefused(t *testing.T) {
	n := node()
	n.PodsProgram = ""
	if _, err := addons.Render(n, nil); err == nil || !strings.Contains(err.Error(), "PodsProgram") {
		t.Errorf("got %v, want an error that names PodsProgram", err)
	}
}

func TestEveryAddOnIsInAFileOfItsName(t *testing.T) {
	for _, a := range addons.Packaged() {
		if _, err := os.Stat(a.Name + ".yaml"); err != nil {
			t.Error(err)
		}
		for _, d := range a.DependsOn {
			if !slices.ContainsFunc(addons.Packaged(), func(b addon.Addon) bool { return b.Name == d }) {
				t.Errorf("%s depends on %s, which is not there", a.Name, d)
			}
		}
	}
}

// A second, which is the default, is too short for a machine that is busy: it would end what is well, or take the only DNS away.
func TestProbesOfAddOnsHaveTimeToBeAnswered(t *testing.T) {
	got, err := addons.Render(node(), nil)
	if err != nil {
		t.Fatal(err)
	}
	probes := 0
	var look func(name string, v any)
	look = func(name string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, v := range v {
				if p, ok := v.(map[string]any); ok && strings.HasSuffix(k, "Probe") {
					probes++
					if limit, _ := p["timeoutSeconds"].(int); limit < 5 {
						t.Errorf("%s: %s has timeoutSeconds %v, want 5 or more", name, k, p["timeoutSeconds"])
					}
				}
				look(name, v)
			}
		case []any:
			for _, v := range v {
				look(name, v)
			}
		}
	}
	for name, text := range got {
		for dec := yaml.NewDecoder(strings.NewReader(text)); ; {
			var doc any
			if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			look(name, doc)
		}
	}
	if probes < 5 {
		t.Errorf("there are only %d probes", probes)
	}
}
