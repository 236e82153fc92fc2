package config

import (
	"strings"
	"testing"

	"k1s.io/k1s/internal/errs"
)

func TestANodeTakesWhatIsSharedFromItsCluster(t *testing.T) {
	server := Default()
	server.Spec.Cluster.Name, server.Spec.Network.PodCIDR, server.Spec.Network.Backend = "prod", "10.60.0.0/16", "vxlan"
	server.Spec.API.Port = 7443 // its own

	node := Default()
	node.Spec.Network.PodCIDR = "10.60.0.0/16" // the same may be said
	shared := Shared(server)
	shared["spec.later"] = []byte(`"something a newer server knows"`)
	if err := Adopt(&node, shared); err != nil {
		t.Fatal(err)
	}
	s := node.Spec
	if s.Cluster.Name != "prod" || s.Network.PodCIDR != "10.60.0.0/16" || s.Network.Backend != "vxlan" || s.API.Port != 6443 {
		t.Errorf("not adopted: %+v", s)
	}
}

func TestADifferenceFromTheClusterIsNamed(t *testing.T) {
	server, node := Default(), Default()
	node.Spec.Network.ServiceCIDR, node.Spec.Cluster.Domain = "10.99.0.0/16", "example.org"
	err := Adopt(&node, Shared(server))
	if !errs.Is(err, errs.Invalid) {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{"spec.network.serviceCIDR", `"10.99.0.0/16"`, `"10.43.0.0/16"`, "spec.cluster.domain"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if node.Spec.Network.ServiceCIDR != "10.99.0.0/16" {
		t.Error("a field that differs was changed")
	}
}
