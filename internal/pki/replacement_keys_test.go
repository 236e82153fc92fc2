package pki

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
)

// other is another server of the node's cluster.
func (n *node) other() paths.Paths {
	n.t.Helper()
	b, err := ReadBundle(n.req.Paths)
	if err != nil {
		n.t.Fatal(err)
	}
	p := paths.Paths{Data: n.t.TempDir()}
	if err := b.Install(n.t.Context(), p); err != nil {
		n.t.Fatal(err)
	}
	return p
}

func TestAnotherServerReplacesTheSameAuthorities(t *testing.T) {
	n := newNode(t)
	n.ensure()
	there := n.other()
	if _, err := ReadReplacement(n.req.Paths, []Replacement{{Name: CA}}); !errs.Is(err, errs.NotFound) {
		t.Errorf("there is none: %v", err)
	}
	all := n.prepare("")
	b, err := ReadReplacement(n.req.Paths, all)
	if err != nil {
		t.Fatal(err)
	}
	if err := KeepReplacement(t.Context(), there, all, b); err != nil {
		t.Fatal(err)
	}
	for _, phase := range []Phase{TrustBoth, SignNew, KeepTokens, TrustNew} {
		n.install(all, phase)
		if err := InstallReplacement(t.Context(), there, all, phase); err != nil {
			t.Fatal(err)
		}
		for _, name := range bundled {
			ours, err := os.ReadFile(CertFile(n.req.Paths, name))
			theirs, theirErr := os.ReadFile(CertFile(there, name))
			if err != nil || theirErr != nil || string(ours) != string(theirs) {
				t.Errorf("phase %d: %s differs, %v, %v", phase, name, err, theirErr)
			}
		}
		here, err := KeyPins(n.req.Paths)
		pins, theirErr := KeyPins(there)
		if err != nil || theirErr != nil || !maps.Equal(here, pins) || len(pins) != len(bundled) {
			t.Errorf("phase %d: they sign with %v and %v, %v, %v", phase, here, pins, err, theirErr)
		}
	}
	for _, f := range []string{"ca.key", "sa.key", "etcd/ca.key"} {
		if st, err := os.Stat(there.PKI(rotationDir, "new", f)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st, err)
		}
	}
}

// Whoever gives keys may be wrong about them: what was agreed about names them.
func TestOnlyWhatWasAgreedAboutIsKept(t *testing.T) {
	n, stranger := newNode(t), newNode(t)
	n.ensure()
	stranger.ensure()
	there := n.other()
	all, theirs := n.prepare(""), stranger.prepare("")
	good, err := ReadReplacement(n.req.Paths, all)
	if err != nil {
		t.Fatal(err)
	}
	bad, err := ReadReplacement(stranger.req.Paths, theirs)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, all []Replacement, b Bundle) {
		t.Helper()
		if err := KeepReplacement(t.Context(), there, all, b); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := os.Stat(there.PKI(rotationDir)); !os.IsNotExist(err) {
			t.Errorf("%s is kept: %v", what, err)
		}
	}
	for _, f := range slices.Sorted(maps.Keys(good)) {
		b := maps.Clone(good)
		b[f] = bad[f]
		refused("another "+f, all, b)
		delete(b, f)
		refused("nothing in the place of "+f, all, b)
	}
	refused("what replaces the authorities of another cluster", theirs, bad)
	claimed := slices.Clone(all)
	claimed[0].New = claimed[1].New
	refused("a key under another name", claimed, good)
	if len(good) != 15 || !strings.Contains(string(good["new/ca.key"]), "PRIVATE KEY") {
		t.Errorf("there are %d files", len(good))
	}
}
