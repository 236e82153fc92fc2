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

func TestAClusterThatIsFoundedAgainHasATokenOfItsOwn(t *testing.T) {
	cfg := config.Default()
	cfg.Spec.Datastore.Endpoint = "etcd"
	in := input(cfg)
	for _, token := range []string{"", "restore-1-a", "restore-1-b"} {
		in.Etcd.Token = token
		_, files, err := Private(in, "target")
		if err != nil || len(files) != 1 {
			t.Fatalf("%+v, %v", files, err)
		}
		if has := strings.Contains(files[0].Content, "initial-cluster-token: "+token+"\n"); has != (token != "") {
			t.Errorf("with the token %q:\n%s", token, files[0].Content)
		}
	}
}
