package components

import (
	"strings"
	"testing"

	"k1s.io/k1s/internal/config"
)

func TestNodePortsMayBeServedOnOtherAddresses(t *testing.T) {
	cfg := config.Default()
	file := func() string {
		t.Helper()
		spec, err := proxySpec(input(cfg))
		if err != nil {
			t.Fatal(err)
		}
		return spec.Files[0].Content
	}
	if got := file(); strings.Contains(got, "nodePortAddresses") {
		t.Errorf("by default:\n%s", got)
	}
	cfg.Spec.KubeProxy = map[string]any{"nodePortAddresses": []any{"10.88.0.0/24", "192.0.2.0/24"}, "nftables": map[string]any{"syncPeriod": "1m"}}
	if got := file(); !strings.Contains(got, "minSyncPeriod: 100ms") || !strings.Contains(got, "syncPeriod: 1m") {
		t.Errorf("a section is not merged:\n%s", got)
	}
	if got := file(); !strings.Contains(strings.ReplaceAll(got, " ", ""), "nodePortAddresses:\n-10.88.0.0/24\n-192.0.2.0/24\n") {
		t.Errorf("with addresses:\n%s", got)
	}
}
