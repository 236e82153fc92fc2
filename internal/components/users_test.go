package components

import (
	"io/fs"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
)

func separated(change func(*config.Config)) component.Input {
	cfg := config.Default()
	cfg.Spec.Users.Separate = true
	cfg.Spec.Isolation = PerProcess
	if change != nil {
		change(&cfg)
	}
	return input(cfg)
}

// mayRead tells whether a user may read a file that is given as these grants say.
func mayRead(u component.User, g component.Grant) bool {
	return g.UID == u.UID && g.Mode&0o400 != 0 || (g.GID == u.GID || slices.Contains(u.Groups, g.GID)) && g.Mode&0o040 != 0 || g.Mode&0o004 != 0
}

func TestKeysAreReadByThoseWhoUseThem(t *testing.T) {
	for _, datastore := range []config.DSN{"sqlite", "etcd", "postgres://k1s@db.example:5432/k1s"} {
		units, err := Plan(separated(func(c *config.Config) { c.Spec.Datastore.Endpoint = datastore }))
		if err != nil {
			t.Fatal(err)
		}
		grants, readers := map[string]component.Grant{}, map[string][]string{}
		for _, u := range units {
			for _, g := range u.Grants {
				if had, ok := grants[g.Path]; ok && !reflect.DeepEqual(had, g) {
					t.Errorf("%s is given as %s, and by %s as %s", g.Path, had, u.Name, g)
				}
				grants[g.Path] = g
				if !g.Tree && g.Mode&0o004 != 0 && path.Ext(g.Path) != "" {
					t.Errorf("everybody may read %s", g)
				}
			}
		}
		for _, g := range slices.SortedFunc(maps.Values(grants), func(a, b component.Grant) int { return strings.Compare(a.Path, b.Path) }) {
			for _, u := range units {
				if strings.HasSuffix(g.Path, ".key") && u.User != nil && mayRead(*u.User, g) {
					readers[path.Base(g.Path)] = append(readers[path.Base(g.Path)], u.Name)
				}
			}
		}
		for key, want := range map[string][]string{
			"ca.key":               {"kube-controller-manager"},
			"sa.key":               {"kube-apiserver", "kube-controller-manager"},
			"apiserver.key":        {"kube-apiserver"},
			"scheduler-client.key": {"kube-scheduler"},
		} {
			slices.Sort(readers[key])
			if !slices.Equal(readers[key], want) {
				t.Errorf("with %s %s is read by %q, want %q", datastore.Engine(), key, readers[key], want)
			}
		}
		for key, by := range readers {
			if len(by) > 1 && key != "sa.key" {
				t.Errorf("with %s several read %s: %q", datastore.Engine(), key, by)
			}
		}
	}
}

func TestEachComponentOfTheControlPlaneHasAUser(t *testing.T) {
	for _, isolation := range []string{Grouped, PerProcess} {
		in := separated(func(c *config.Config) { c.Spec.Isolation = isolation })
		units, err := Plan(in)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[int]string{}
		for _, u := range units {
			wants := slices.ContainsFunc(u.Components, func(c component.Component) bool {
				return defs[c.Name].Roles&component.ControlPlane != 0 && c.Group == controlPlane
			})
			if wants != (u.User != nil) {
				t.Errorf("%s: %s runs as %v", isolation, u.Name, u.User)
			}
			if u.User == nil {
				continue
			}
			first := in.Config.Spec.Users.First
			if u.User.UID <= first || u.User.UID >= first+UserCount || seen[u.User.UID] != "" {
				t.Errorf("%s: %s and %q run as %s", isolation, u.Name, seen[u.User.UID], u.User)
			}
			seen[u.User.UID] = u.Name
		}
	}
}

func TestNobodyIsAskedToGiveFilesAwayWithoutUsers(t *testing.T) {
	for _, change := range []func(*config.Config){
		func(c *config.Config) { c.Spec.Users.Separate = false },
		func(c *config.Config) { c.Spec.Role = config.Agent },
	} {
		units, err := Plan(separated(change))
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range units {
			if u.User != nil || len(u.Grants) > 0 {
				t.Errorf("%s runs as %v, %v", u.Name, u.User, u.Grants)
			}
		}
	}
}

func TestTheKubeletIsNotToldToBeNobody(t *testing.T) {
	_, err := Plan(separated(func(c *config.Config) { c.Spec.Isolation = Fused }))
	if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "spec.isolation none") {
		t.Errorf("error is %v", err)
	}
}

// Taking back what was given does not restart anything by itself: a start that has forgotten it has the same processes.
func TestGrantsAreNoReasonToRestart(t *testing.T) {
	in := separated(func(c *config.Config) { c.Spec.Users.Separate = false })
	before, err := Plan(in)
	if err != nil {
		t.Fatal(err)
	}
	in.Former = []int{61100}
	after, err := Plan(in)
	if err != nil {
		t.Fatal(err)
	}
	given := 0
	for i := range before {
		given += len(after[i].Grants)
		if before[i].Hash() != after[i].Hash() {
			t.Errorf("%s has another hash", before[i].Name)
		}
		for _, g := range after[i].Grants {
			if g.UID > 0 || g.GID != 0 || g.Mode&fs.ModeSetgid != 0 {
				t.Errorf("%s is not taken back: %s", before[i].Name, g)
			}
		}
	}
	if given == 0 {
		t.Error("nothing is taken back")
	}
}

// A URL may hold a password, and plans are printed.
func TestOfADatabasesURLNothingButFilesIsInThePlan(t *testing.T) {
	in := separated(func(c *config.Config) {
		c.Spec.Datastore.Endpoint = "postgres://k1s:/tops3cret@db.example:5432/k1s?sslkey=/etc/k1s/pg.key&password=/tops3cret&application_name=/tops3cret"
	})
	units, err := Plan(in)
	if err != nil {
		t.Fatal(err)
	}
	var given []string
	for _, u := range units {
		given = append(given, Given([]component.Unit{u})["kine"]...)
	}
	if !slices.Equal(given, []string{"/etc/k1s/pg.key"}) {
		t.Errorf("given: %q", given)
	}
}
