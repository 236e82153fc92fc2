package pki

import (
	"maps"
	"os"
	"testing"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
)

func TestKeptKeysBelongTogetherWithAndWithoutEtcd(t *testing.T) {
	for _, etcd := range []bool{false, true} {
		p := paths.Paths{Data: t.TempDir()}
		if _, err := Ensure(t.Context(), Request{Paths: p, NodeName: "n", ServiceCIDR: newNode(t).req.ServiceCIDR, Etcd: etcd, NoWorker: true}); err != nil {
			t.Fatal(err)
		}
		b, err := ReadKept(p)
		if err != nil || (b["etcd/ca.key"] != nil) != etcd || b["sa.key"] == nil || b["front-proxy-ca.crt"] == nil {
			t.Fatalf("etcd %t: %d files, %v", etcd, len(b), err)
		}
		if ca, err := b.CA(); err != nil || !ca.IsCA {
			t.Errorf("%v, %v", ca, err)
		}
		for name, change := range map[string]func(Bundle){
			"another key":  func(b Bundle) { b["ca.key"] = b["front-proxy-ca.key"] },
			"no authority": func(b Bundle) { delete(b, "front-proxy-ca.crt") },
			"no key":       func(b Bundle) { delete(b, "sa.key") },
			"half of etcd": func(b Bundle) { b["etcd/ca.crt"] = b["ca.crt"]; delete(b, "etcd/ca.key") },
		} {
			other := maps.Clone(b)
			change(other)
			if other.Check() == nil {
				t.Errorf("etcd %t, %s: it passes", etcd, name)
			}
		}
		if err := os.Remove(p.PKI("ca.key")); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadKept(p); !errs.Is(err, errs.Unsupported) {
			t.Errorf("a key that is kept elsewhere: %v", err)
		}
	}
}
