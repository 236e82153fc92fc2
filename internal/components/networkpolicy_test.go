package components

import (
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/config"
)

func TestNetworkPoliciesAreLeftOutTogetherWithTheirPlugin(t *testing.T) {
	for name, change := range map[string]func(*config.Config){
		"by default":                   func(*config.Config) {},
		"when disabled":                func(cfg *config.Config) { cfg.Spec.Disable = []string{"coredns", "network-policy"} },
		"with a network of the user's": func(cfg *config.Config) { cfg.Spec.Network.Backend = "none" },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config.Default()
			change(&cfg)
			in := input(cfg)
			want := name == "by default"
			comps, err := Render(in)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range comps {
				if c.Name == "network-policy" && !want {
					t.Error("it runs")
				}
				if c.Name == "flannel" {
					told := slices.ContainsFunc(c.Spec.Args, func(a string) bool { return strings.HasPrefix(a, "--policy-socket=") })
					if told != want {
						t.Errorf("flannel is told of the socket: %t", told)
					}
				}
			}
			if got := DisabledAddons(in); slices.Contains(got, "network-policy") || slices.Contains(got, "coredns") != (name == "when disabled") {
				t.Errorf("add-ons left out: %q", got)
			}
		})
	}
}
