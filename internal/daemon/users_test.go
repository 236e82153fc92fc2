package daemon

import (
	"os"
	"slices"
	"testing"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/paths"
)

func TestItIsKeptWhoseFilesAreBeforeTheyAreGivenAway(t *testing.T) {
	p := paths.Paths{Data: t.TempDir()}
	start := func(change func(*config.Config)) component.Input {
		t.Helper()
		in := component.Input{Config: config.Default(), Paths: p}
		change(&in.Config)
		if err := prepareUsers(&in); err != nil {
			t.Fatal(err)
		}
		return in
	}
	start(func(*config.Config) {})
	if _, err := os.Stat(p.Users()); err == nil {
		t.Error("it is kept although nothing is given away")
	}
	start(func(c *config.Config) { c.Spec.Users.Separate = true })
	start(func(c *config.Config) { c.Spec.Users.Separate = true })
	start(func(c *config.Config) { c.Spec.Users = config.Users{Separate: true, First: 70000} })
	if in := start(func(*config.Config) {}); !slices.Equal(in.Former, []int{61100, 70000}) {
		t.Errorf("after it was switched off: %v", in.Former)
	}
	if err := os.WriteFile(p.Users(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := prepareUsers(&component.Input{Config: config.Default(), Paths: p}); err == nil {
		t.Error("a damaged file is no error")
	}
}
