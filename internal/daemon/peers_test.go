package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdapi"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/paths"
)

func TestAServerTakesTheDatastoreOfItsCluster(t *testing.T) {
	p := paths.Paths{Data: t.TempDir()}
	file := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(file, []byte("postgres://u:secret@db:5432/k1s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	embedded := join.Datastore{Engine: config.EmbeddedEtcd}
	postgres := join.Datastore{Engine: config.Postgres, Endpoint: "postgres://u:secret@db:5432/k1s", CA: []byte("ca")}
	for name, tc := range map[string]struct {
		ours   config.Datastore
		theirs join.Datastore
		want   config.Datastore
		says   string
	}{
		"nothing said, etcd":     {config.Datastore{Endpoint: "sqlite"}, embedded, config.Datastore{Endpoint: "etcd"}, ""},
		"etcd said":              {config.Datastore{Endpoint: "etcd"}, embedded, config.Datastore{Endpoint: "etcd"}, ""},
		"nothing said, a URL":    {config.Datastore{Endpoint: "sqlite"}, postgres, config.Datastore{EndpointFile: p.DatastorePKI("endpoint"), CAFile: p.DatastorePKI("ca.crt")}, ""},
		"the same URL in a file": {config.Datastore{Endpoint: "sqlite", EndpointFile: file}, postgres, config.Datastore{Endpoint: "postgres://u:secret@db:5432/k1s", EndpointFile: file}, ""},
		"the same URL":           {config.Datastore{Endpoint: "postgres://u:secret@db:5432/k1s"}, postgres, config.Datastore{Endpoint: "postgres://u:secret@db:5432/k1s"}, ""},
		"another URL":            {config.Datastore{Endpoint: "postgres://u:secret@other:5432/k1s"}, postgres, config.Datastore{}, "spec.datastore.endpoint"},
		"a database, and etcd":   {config.Datastore{Endpoint: "nats://n"}, embedded, config.Datastore{}, "is NATS here and etcd in the cluster"},
		"etcd, and a database":   {config.Datastore{Endpoint: "etcd"}, postgres, config.Datastore{}, "is etcd here and PostgreSQL in the cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			c := config.Default()
			c.Spec.Datastore = tc.ours
			got, err := withDatastore(c, p, tc.theirs)
			if tc.says != "" {
				if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "secret") {
					t.Errorf("got %v, want %q", err, tc.says)
				}
				return
			}
			if err != nil || got.Spec.Datastore != tc.want {
				t.Errorf("got %+v, %v", got.Spec.Datastore, err)
			}
		})
	}
}

func TestWhatAServerIsToldOfTheMembers(t *testing.T) {
	all := []etcdapi.Member{
		{ID: 1, Name: "server-0", PeerURLs: []string{"https://10.0.0.1:2380"}},
		{ID: 2, PeerURLs: []string{"https://10.0.0.2:2380"}, IsLearner: true}, // it has not started
	}
	got := initialCluster(all, join.Member{Name: "server-1-0a1b2c3d", PeerURL: "https://10.0.0.2:2380"})
	if got != "server-0=https://10.0.0.1:2380,server-1-0a1b2c3d=https://10.0.0.2:2380" {
		t.Error(got)
	}
	for member, want := range map[string]string{"server-1-0a1b2c3d": "server-1", "server-0": "server-0", "a-b": "a-b", "": ""} {
		if got := nodeOfMember(member); got != want {
			t.Errorf("%q is on %q, want %q", member, got, want)
		}
	}
}

func TestAServerRemembersTheOthers(t *testing.T) {
	p := paths.Paths{Data: t.TempDir()}
	none, err := readPeers(p)
	if err != nil || none.Several || none.Joined != nil {
		t.Fatalf("%+v, %v", none, err)
	}
	want := peers{
		Several: true, Joined: &joinedCluster{Servers: []string{"10.0.0.1:6443"}, Settings: config.Shared(config.Default())},
		Etcd: &etcdPart{Member: join.Member{Name: "server-1-0a1b2c3d", PeerURL: "https://10.0.0.2:2380"}, InitialCluster: "a=b"},
	}
	if err := want.keep(p); err != nil {
		t.Fatal(err)
	}
	got, err := readPeers(p)
	if err != nil {
		t.Fatal(err)
	}
	in := component.Input{Config: config.Default(), Paths: p}
	if err := got.into(&in); err != nil || !in.Several || in.Etcd.Name != "server-1-0a1b2c3d" || in.Etcd.InitialCluster != "a=b" {
		t.Errorf("%+v, %v", in.Etcd, err)
	}
	// A server whose own configuration says otherwise than its cluster does not start.
	in.Config.Spec.Network.PodCIDR = "10.50.0.0/16"
	if err := got.into(&in); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "spec.network.podCIDR") {
		t.Errorf("another network: %v", err)
	}
	if err := os.WriteFile(p.Server(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readPeers(p); err == nil || !strings.Contains(err.Error(), "the others") {
		t.Errorf("a damaged file: %v", err)
	}
}

func TestDataOfARemovedServerIsPutAside(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	if err := archive(dir, time.Now()); err != nil {
		t.Errorf("nothing there: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "member"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := archive(dir, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == "etcd-removed-20260102T030405Z" }) || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}
