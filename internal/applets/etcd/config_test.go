package etcd

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/features"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/paths"
)

// It is off by default, and a key that is misspelt is no error.
func TestMembersOfSeveralServersAreCompared(t *testing.T) {
	for _, several := range []bool{false, true} {
		in := component.Input{
			Config: config.Default(), Paths: paths.Paths{Data: t.TempDir(), Run: t.TempDir(), Config: t.TempDir()}, Several: several,
			Facts: component.Facts{NodeName: "server-0", NodeIP: netip.MustParseAddr("10.0.0.1")},
		}
		in.Config.Spec.Datastore.Endpoint = "etcd"
		plan, err := components.Plan(in)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, u := range plan {
			for _, c := range u.Components {
				for _, f := range c.Spec.Files {
					if c.Name != "etcd" || !strings.HasSuffix(f.Path, ".yaml") {
						continue
					}
					found = true
					file := filepath.Join(t.TempDir(), "etcd.yaml")
					if err := os.WriteFile(file, []byte(f.Content), 0o600); err != nil {
						t.Fatal(err)
					}
					cfg, err := embed.ConfigFromFile(file)
					if err != nil {
						t.Fatal(err)
					}
					if on := cfg.ServerFeatureGate.Enabled(features.CompactHashCheck); on != several || several && cfg.CompactHashCheckTime != 5*time.Minute {
						t.Errorf("one of several: %t, compared: %t, every %s", several, on, cfg.CompactHashCheckTime)
					}
				}
			}
		}
		if !found {
			t.Error("etcd has no configuration")
		}
	}
}
