package components

import (
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
)

func TestAnotherDatabaseIsAnotherProcessOfThoseThatUseItAndInNoPlan(t *testing.T) {
	// The API server of kine, too: it has found out whose the one of before is.
	for dsn, uses := range map[config.DSN][]string{"postgres://k1s:hunter2@h/db": {"kine", "kube-apiserver"}, "https://h:2379": {"kube-apiserver"}} {
		cfg := config.Default()
		cfg.Spec.Isolation, cfg.Spec.Datastore.Endpoint = PerProcess, dsn
		hashes := func(id string) map[string]string {
			in := input(cfg)
			in.Datastore = id
			units, err := Plan(in)
			if err != nil {
				t.Fatal(err)
			}
			out := map[string]string{}
			for _, u := range units {
				out[u.Name] = u.Hash()
				if strings.Contains(text([]component.Unit{u}), "hunter2") {
					t.Errorf("the password is in the plan of %s", u.Name)
				}
			}
			return out
		}
		before, after := hashes("a"), hashes("b")
		for name := range before {
			if changed := before[name] != after[name]; changed != slices.Contains(uses, name) {
				t.Errorf("%s: %s changed: %v", dsn.Engine(), name, changed)
			}
		}
	}
}

func TestOnlyOneStoreIsPartOfANode(t *testing.T) {
	for dsn, want := range map[config.DSN]string{
		"sqlite": "kine", "etcd": "etcd", "postgres://h/db": "kine", "mysql://tcp(h:1)/db": "kine", "nats://h:4222": "kine", "https://h:2379": "",
	} {
		cfg := config.Default()
		cfg.Spec.Datastore.Endpoint = dsn
		comps, err := Render(input(cfg))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range comps {
			if c.Name == "kine" || c.Name == "etcd" {
				got = append(got, c.Name)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", dsn, got, want)
		}
	}
}
