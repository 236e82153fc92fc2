//go:build system

package system

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/payload"
)

// The released file itself names what it carries, with versions and licences: to people, and to programs.
func TestTheFileNamesWhatItCarries(t *testing.T) {
	t.Parallel()
	root(t)
	type component struct {
		Name    string `json:"name"`
		Version string `json:"version"`
		Licence string `json:"license"`
	}
	r := k1s(within(t, limit), "version", "--components", "-o", "json")
	r.wants(t, 0)
	var said struct {
		Payload    string      `json:"payload"`
		Components []component `json:"components"`
	}
	if err := json.Unmarshal([]byte(r.out), &said); err != nil {
		t.Fatalf("%v:\n%s", err, r.out)
	}
	for _, name := range []string{
		"go", "k8s.io/kubernetes", "github.com/containerd/containerd/v2", "github.com/opencontainers/runc", "github.com/k3s-io/kine",
		"go.etcd.io/etcd/server/v3", "github.com/flannel-io/flannel", "github.com/coredns/coredns", "sigs.k8s.io/metrics-server",
		"github.com/rancher/local-path-provisioner", "github.com/containernetworking/plugins", "nftables", "libseccomp-dev",
	} {
		if !slices.ContainsFunc(said.Components, func(c component) bool { return c.Name == name }) {
			t.Errorf("k1s version --components does not name %s", name)
		}
	}

	p, err := payload.Open(the.program)
	if err != nil {
		t.Fatal(err)
	}
	if p.ID != said.Payload {
		t.Errorf("it says that it carries payload %q, it is %q", said.Payload, p.ID)
	}
	notice, err := payload.ReadFile(p, "NOTICE")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := payload.ReadFile(p, "sbom.spdx.json")
	if err != nil {
		t.Fatal(err)
	}
	var sbom struct {
		Version  string `json:"spdxVersion"`
		Packages []struct {
			Name    string `json:"name"`
			ID      string `json:"SPDXID"`
			Version string `json:"versionInfo"`
			Licence string `json:"licenseDeclared"`
		} `json:"packages"`
	}
	if err := json.Unmarshal(raw, &sbom); err != nil || sbom.Version != "SPDX-2.3" {
		t.Fatalf("the bill of materials is %q, %v", sbom.Version, err)
	}
	packages, ids := map[component]bool{}, map[string]string{}
	for _, pkg := range sbom.Packages {
		packages[component{pkg.Name, pkg.Version, pkg.Licence}] = true
		if other, taken := ids[pkg.ID]; taken {
			t.Errorf("the bill of materials has %s for %s and for %s", pkg.ID, other, pkg.Name)
		}
		ids[pkg.ID] = pkg.Name
	}
	if got, want := len(sbom.Packages), len(said.Components)+1; got != want {
		t.Errorf("the bill of materials has %d packages, want %d: k1s and what it carries", got, want)
	}
	for _, c := range said.Components {
		if c.Version == "" || c.Licence == "" {
			t.Errorf("%+v has no version or no licence", c)
		}
		if !packages[c] {
			t.Errorf("the bill of materials does not have %+v", c)
		}
		if !strings.Contains(string(notice), "\n"+c.Name+" "+c.Version+" ("+c.Licence+")\n") {
			t.Errorf("NOTICE does not list %+v", c)
		}
	}
}
