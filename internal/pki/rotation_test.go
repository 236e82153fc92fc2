package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/token"
)

func (n *node) prepare(dir string) []Replacement {
	n.t.Helper()
	all, err := PrepareReplacement(n.t.Context(), n.req.Paths, dir, n.now)
	if err != nil {
		n.t.Fatal(err)
	}
	return all
}

func (n *node) install(all []Replacement, phase Phase) {
	n.t.Helper()
	if err := InstallReplacement(n.t.Context(), n.req.Paths, all, phase); err != nil {
		n.t.Fatal(err)
	}
}

// accepts tells whether a program that trusts some certificates and knows nothing else takes the API server's
// certificate as it is served.
func (n *node) accepts(roots ...*x509.Certificate) error {
	n.t.Helper()
	pair, err := tls.LoadX509KeyPair(CertFile(n.req.Paths, APIServer), KeyFile(n.req.Paths, APIServer))
	if err != nil {
		n.t.Fatal(err)
	}
	o := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: n.now, DNSName: "kubernetes"}
	for _, c := range roots {
		o.Roots.AddCert(c)
	}
	for _, der := range pair.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			n.t.Fatal(err)
		}
		o.Intermediates.AddCert(c)
	}
	_, err = pair.Leaf.Verify(o)
	return err
}

func (n *node) trusted() []*x509.Certificate {
	n.t.Helper()
	all, err := ReadTrusted(n.req.Paths)
	if err != nil {
		n.t.Fatal(err)
	}
	return all
}

func TestAuthoritiesAreReplacedInThreePhases(t *testing.T) {
	n := newNode(t)
	n.ensure()
	before := n.cert(CA)
	all := n.prepare("")
	var names []string
	for _, r := range all {
		names = append(names, r.Name)
		if r.Old == "" || r.New == "" || r.Old == r.New || r.Own || r.Name != ServiceAccount && !r.Chained {
			t.Errorf("%+v", r)
		}
	}
	if want := []string{CA, FrontProxyCA, EtcdCA, ServiceAccount}; !slices.Equal(names, want) {
		t.Fatalf("replaced %v", names)
	}
	n.wantIssued(map[string]string{}) // nothing uses it yet

	n.install(all, TrustBoth)
	n.wantIssued(map[string]string{})
	trusted := n.trusted()
	if len(trusted) != 2 || !trusted[0].Equal(before) {
		t.Fatalf("trusted are %d", len(trusted))
	}
	after := trusted[1]
	if pub := n.read(CertFile(n.req.Paths, ServiceAccount)); strings.Count(pub, "BEGIN PUBLIC KEY") != 2 {
		t.Errorf("sa.pub: %s", pub)
	}
	if err := n.accepts(after); err == nil {
		t.Error("the new CA has signed something already")
	}

	n.install(all, SignNew)
	if got := issued(n.ensure()); len(got) != len(n.req.leaves()) || got[APIServer] != "signed by another authority" {
		t.Fatalf("issued %v", got)
	}
	n.wantIssued(map[string]string{})
	for who, root := range map[string]*x509.Certificate{"the old CA": before, "the new CA": after} {
		if err := n.accepts(root); err != nil {
			t.Errorf("who trusts %s only: %v", who, err)
		}
	}
	if one, err := parseCerts([]byte(n.read(SigningFile(n.req.Paths)))); err != nil || len(one) != 1 || !one[0].Equal(after) {
		t.Errorf("the controller manager signs with %d certificates, %v", len(one), err)
	}
	a, err := OpenAuthority(n.req.Paths)
	if err != nil || a.Pin() != all[0].New || len(Pins(n.trusted())) != 2 {
		t.Errorf("%v", err)
	}

	n.install(all, KeepTokens)
	if pub := n.read(CertFile(n.req.Paths, ServiceAccount)); strings.Count(pub, "BEGIN PUBLIC KEY") != 2 {
		t.Errorf("tokens of the old key are refused together with the old CA: %s", pub)
	}
	if got := n.trusted(); len(got) != 1 || !got[0].Equal(after) {
		t.Errorf("trusted are %d", len(got))
	}
	n.install(all, TrustNew)
	n.req.All = true
	n.ensure()
	n.req.All = false
	n.wantIssued(map[string]string{})
	if err := n.accepts(before); err == nil {
		t.Error("the old CA is still good for something")
	}
	if got := n.trusted(); len(got) != 1 || !got[0].Equal(after) {
		t.Errorf("trusted are %d", len(got))
	}
	if pub := n.read(CertFile(n.req.Paths, ServiceAccount)); strings.Count(pub, "BEGIN PUBLIC KEY") != 1 {
		t.Errorf("sa.pub: %s", pub)
	}
	if err := ForgetReplacement(t.Context(), n.req.Paths); err != nil {
		t.Fatal(err)
	}
	n.wantIssued(map[string]string{})

	// Who knows the first CA finds the way to the present one, also after another replacement.
	again := n.prepare("")
	for _, phase := range []Phase{TrustBoth, SignNew, TrustNew} {
		n.install(again, phase)
	}
	n.ensure()
	b, err := Published(n.req.Paths)
	if err != nil {
		t.Fatal(err)
	}
	published, err := parseCerts(b)
	if err != nil {
		t.Fatal(err)
	}
	pin := token.Pin(before)
	found := Successors(published, func(c *x509.Certificate) bool { return token.Pin(c) == pin })
	if err := n.accepts(found...); err != nil {
		t.Errorf("of %d published %d follow from the first CA: %v", len(published), len(found), err)
	}
	bundle, err := ReadBundle(n.req.Paths)
	if err != nil {
		t.Fatal(err)
	}
	other := paths.Paths{Data: t.TempDir()}
	if err := bundle.Install(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if there, err := Published(other); err != nil || string(there) != string(b) {
		t.Errorf("a server that joins publishes something else, %v", err)
	}
	stranger := newNode(t)
	stranger.ensure()
	if found := Successors(append(published, stranger.cert(CA)), stranger.cert(CA).Equal); len(found) != 1 {
		t.Errorf("%d follow from the CA of another cluster", len(found))
	}
}

func TestAReplacementThatIsCalledOffLeavesTheAuthoritiesAsTheyWere(t *testing.T) {
	n := newNode(t)
	n.ensure()
	before := n.snapshot()
	all := n.prepare("")
	n.install(all, TrustBoth)
	bundle := n.read(CertFile(n.req.Paths, CA))
	if left, gone, err := Stale(n.req.Paths, CA, []byte(bundle)); err != nil || gone || string(left) != bundle {
		t.Errorf("what is trusted counts as stale: %v", err)
	}
	n.install(all, TrustOld)
	if left, gone, err := Stale(n.req.Paths, CA, []byte(bundle)); err != nil || !gone || string(left) != n.read(CertFile(n.req.Paths, CA)) {
		t.Errorf("the new one is not taken out: %s, %v", left, err)
	}
	if err := ForgetReplacement(t.Context(), n.req.Paths); err != nil {
		t.Fatal(err)
	}
	after := n.snapshot()
	for name := range after {
		if before[name] == "" && strings.HasSuffix(name, "ca-cross.pem") {
			if got := PinsOf([]byte(n.read(CrossFile(n.req.Paths)))); !slices.Equal(got, []string{all[0].Old}) {
				t.Errorf("vouched for are %v", got)
			}
			delete(after, name)
		}
	}
	if !maps.Equal(before, after) {
		t.Errorf("the files are not as they were: %v, before %v", slices.Sorted(maps.Keys(after)), slices.Sorted(maps.Keys(before)))
	}
	n.wantIssued(map[string]string{})
}

// A kill leaves any mixture of the files of two phases behind.
func TestAPhaseIsInstalledAgainAfterAKillAtAnyPoint(t *testing.T) {
	files := []string{CertFile(paths.Paths{}, CA), KeyFile(paths.Paths{}, CA), chainFile(paths.Paths{}, CA), CertFile(paths.Paths{}, ServiceAccount), KeyFile(paths.Paths{}, ServiceAccount)}
	for phase := TrustBoth; phase <= TrustNew; phase++ {
		n := newNode(t)
		n.req.Etcd = false
		n.ensure()
		all := n.prepare("")
		for before := TrustBoth; before < phase; before++ {
			n.install(all, before)
		}
		earlier := map[string][]byte{}
		for _, f := range files {
			earlier[f], _ = os.ReadFile(filepath.Join(n.req.Paths.Data, f)) // not there is one of the cases
		}
		n.install(all, phase)
		want := n.snapshot()
		for mixture := range 1 << len(files) {
			for i, f := range files {
				if mixture&(1<<i) == 0 {
					continue
				}
				file := filepath.Join(n.req.Paths.Data, f)
				if earlier[f] == nil {
					_ = os.Remove(file) // it may not be there in this phase either
				} else if err := os.WriteFile(file, earlier[f], 0o600); err != nil {
					t.Fatal(err)
				}
			}
			n.install(all, phase)
			if got := n.snapshot(); !maps.Equal(got, want) {
				t.Fatalf("phase %d, mixture %b: the files are not as they should be", phase, mixture)
			}
		}
		n.ensure()
		n.verifyAll()
	}
}

func TestAnAuthorityThatAllowsNoOtherBelowItIsNotChainedTo(t *testing.T) {
	n := newNode(t)
	n.ensure()
	old := n.cert(CA)
	key, err := parseKey([]byte(n.read(KeyFile(n.req.Paths, CA))))
	if err != nil {
		t.Fatal(err)
	}
	old.MaxPathLen, old.MaxPathLenZero = 0, true
	der, err := x509.CreateCertificate(rand.Reader, old, old, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	limited, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	n.write(CertFile(n.req.Paths, CA), string(encodeCert(limited)))
	all := n.prepare("")
	if all[0].Chained {
		t.Error("it counts as chained")
	}
	n.install(all, TrustBoth)
	n.install(all, SignNew)
	n.ensure()
	if err := n.accepts(limited); err == nil {
		t.Error("who trusts the old one only accepts the new one's certificates: then this test is wrong")
	}
	b, _ := Published(n.req.Paths)
	published, err := parseCerts(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.accepts(Successors(published, limited.Equal)...); err != nil {
		t.Errorf("a machine that joined before does not find the way: %v", err)
	}
}

// A company's root signs for many; none of them is to be somebody in this cluster.
func TestTheIssuerOfAnOwnAuthorityIsNotTrusted(t *testing.T) {
	n, company := newNode(t), newNode(t)
	n.ensure()
	company.ensure()
	root := company.cert(CA)
	rootKey, err := parseKey([]byte(company.read(KeyFile(company.req.Paths, CA))))
	if err != nil {
		t.Fatal(err)
	}
	issue := func(cn string, isCA bool) (*x509.Certificate, crypto.Signer) {
		t.Helper()
		key, err := newKey()
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: cn, Organization: []string{"system:masters"}}, NotBefore: root.NotBefore, NotAfter: root.NotAfter,
			IsCA: isCA, BasicConstraintsValid: true, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		}, root, key.Public(), rootKey)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	below, key := issue("clusters", true)
	stranger, _ := issue("stranger", false)
	own := t.TempDir()
	raw, err := encodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"ca.key": raw, "ca.crt": concat(encodeCert(below), encodeCert(root))} {
		if err := os.WriteFile(filepath.Join(own, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all := n.prepare(own)
	if !all[0].Below {
		t.Errorf("nobody is told that it is below another: %+v", all[0])
	}
	for _, phase := range []Phase{TrustBoth, SignNew, KeepTokens, TrustNew} {
		n.install(all, phase)
		pool := x509.NewCertPool()
		for _, c := range n.trusted() {
			pool.AddCert(c)
		}
		o := x509.VerifyOptions{Roots: pool, Intermediates: x509.NewCertPool(), CurrentTime: n.now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		o.Intermediates.AddCert(root)
		if _, err := stranger.Verify(o); err == nil {
			t.Errorf("phase %d: whom the company's root signs is somebody here", phase)
		}
	}
	n.ensure()
	if err := n.accepts(n.trusted()...); err != nil {
		t.Errorf("the authority by itself is nobody's anchor: %v", err)
	}
}

func TestOwnAuthoritiesAreTakenAndChecked(t *testing.T) {
	n, theirs := newNode(t), newNode(t)
	n.ensure()
	theirs.ensure()
	own := t.TempDir()
	put := func(name, content string) {
		if err := os.WriteFile(filepath.Join(own, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string, kind errs.Kind) {
		t.Helper()
		_, err := Replaceable(n.req.Paths, own, n.now)
		if err == nil || errs.KindOf(err) != kind || !strings.Contains(err.Error(), what) {
			t.Errorf("want %q: %v", what, err)
		}
	}
	refused("there is no authority in", errs.NotFound)
	put("ca.crt", theirs.read(CertFile(theirs.req.Paths, CA)))
	refused("ca.key cannot be read", errs.Invalid)
	put("ca.key", theirs.read(KeyFile(theirs.req.Paths, FrontProxyCA)))
	refused("does not belong to the first certificate", errs.Invalid)
	put("ca.key", n.read(KeyFile(n.req.Paths, CA)))
	refused("is the key that is in use", errs.Invalid)
	put("ca.key", theirs.read(KeyFile(theirs.req.Paths, CA)))
	put("ca.crt", theirs.read(CertFile(theirs.req.Paths, APIServer)))
	refused("is no authority's", errs.Invalid)
	put("ca.crt", theirs.read(CertFile(theirs.req.Paths, CA)))
	n.now = today.Add(20 * 365 * 24 * time.Hour)
	refused("is valid from", errs.Invalid)
	n.now = today
	before := n.snapshot()
	if _, err := Replaceable(n.req.Paths, own, n.now); err != nil {
		t.Fatal(err)
	}
	if after := n.snapshot(); len(after) != len(before) {
		t.Error("looking has changed something")
	}
	all := n.prepare(own)
	if !all[0].Own || all[1].Own {
		t.Errorf("%+v", all)
	}
	n.install(all, TrustBoth)
	n.install(all, SignNew)
	n.ensure()
	if err := n.accepts(theirs.cert(CA)); err != nil {
		t.Error(err)
	}
	if all[0].Below {
		t.Error("one that has signed itself counts as below another")
	}
	if err := os.Remove(KeyFile(n.req.Paths, CA)); err != nil {
		t.Fatal(err)
	}
	refused("is not on this server", errs.Unsupported)
}

// What cannot do its work shows when the old one goes, which is too late, and is refused before.
func TestOwnAuthoritiesThatCannotDoTheirWorkAreRefused(t *testing.T) {
	n := newNode(t)
	n.ensure()
	own := t.TempDir()
	put := func(name string, key crypto.Signer, change func(*x509.Certificate)) {
		t.Helper()
		raw, err := encodeKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(own, name+".key"), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "of a company, " + name}, NotBefore: n.now.Add(-time.Hour), NotAfter: n.now.AddDate(5, 0, 0),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
		if change != nil {
			change(template)
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(own, name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	says := func(want string) {
		t.Helper()
		_, err := Replaceable(n.req.Paths, own, n.now)
		if want == "" && err != nil || want != "" && (errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), want)) {
			t.Errorf("want %q: %v", want, err)
		}
	}
	key := func(c elliptic.Curve) crypto.Signer {
		t.Helper()
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	ca := key(elliptic.P256())
	put(CA, ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	says("extended key usage")
	put(CA, ca, func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}} })
	says("extended key usage")
	put(CA, ca, func(c *x509.Certificate) { c.PermittedDNSDomains = []string{".corp"} })
	says("name constraints")
	put(CA, ca, func(c *x509.Certificate) { c.NotAfter = n.now.AddDate(0, 0, 10) })
	says("60 days from now")
	put(CA, ca, func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	})
	says("")
	put(FrontProxyCA, key(elliptic.P256()), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	says("")
	put(FrontProxyCA, ca, nil)
	says("have one key")
	put(FrontProxyCA, key(elliptic.P256()), nil)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, unfit := range []crypto.Signer{ed, key(elliptic.P224())} {
		put(ServiceAccount, unfit, nil)
		says("cannot sign tokens")
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	put(ServiceAccount, weak, nil)
	says("1024 bits")
	put(ServiceAccount, key(elliptic.P384()), nil)
	says("")
}
