package pki

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/token"
)

// NodeIdentity is the key by which the servers know a node that joined. It has no certificate, is never renewed and
// never leaves the node.
const NodeIdentity = "node"

// Identity reads the node's identity key, or makes one.
func Identity(p paths.Paths) (crypto.Signer, error) {
	file := KeyFile(p, NodeIdentity)
	b, err := os.ReadFile(file)
	if err == nil {
		key, err := parseKey(b)
		if err != nil {
			// A new one would be another machine to the servers.
			return nil, errs.Hint(fmt.Errorf("the key %s, by which the servers know this node, is damaged: %w", file, err),
				"restore it from a backup, or remove it and, on a server, the node: kubectl delete node NAME; then start again with a token")
		}
		return key, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the node's identity: %w", err)
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	if b, err = encodeKey(key); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(p.PKI(), 0o755); err != nil {
		return nil, fmt.Errorf("making the node's identity: %w", err)
	}
	return key, durable.WriteFile(file, b, 0o600)
}

// Authority signs certificates of nodes that join.
type Authority struct {
	by     issuer
	bundle []byte
	chain  []byte // goes behind what it signs
}

// OpenAuthority reads the cluster's CA with its key. An error of kind errs.Unsupported says that the key is kept
// elsewhere.
func OpenAuthority(p paths.Paths) (*Authority, error) {
	bundle, err := os.ReadFile(CertFile(p, CA))
	if err != nil {
		return nil, fmt.Errorf("reading the cluster's CA: %w", err)
	}
	cert, err := parseCert(bundle)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate %s: %w", CertFile(p, CA), err)
	}
	b, err := os.ReadFile(KeyFile(p, CA))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.Unsupported, "this server cannot sign certificates: the CA's key %s is not on it", KeyFile(p, CA))
	}
	if err != nil {
		return nil, fmt.Errorf("reading the CA's key: %w", err)
	}
	key, err := parseKey(b)
	if err != nil {
		return nil, fmt.Errorf("reading the CA's key %s: %w", KeyFile(p, CA), err)
	}
	if !samePublic(cert.PublicKey, key.Public()) {
		return nil, fmt.Errorf("the CA's key %s does not belong to %s", KeyFile(p, CA), CertFile(p, CA))
	}
	return &Authority{issuer{cert, key}, bundle, chain(p, CA, cert)}, nil
}

// Certificate is the authority's own.
func (a *Authority) Certificate() *x509.Certificate { return a.by.cert }

// PEM is what nodes have to trust: the authority's own certificate, and while it is being replaced the other one's too.
func (a *Authority) PEM() []byte { return a.bundle }

// Pin identifies the authority by its key.
func (a *Authority) Pin() string { return token.Pin(a.by.cert) }

// Sign issues l for the key of a request (DER, PKCS #10). Whatever else the request asks for is not looked at: who it
// is for has been found out in another way. The certificate is PEM, and others may stand behind it that lead to an
// authority before this one.
func (a *Authority) Sign(l Leaf, csr []byte, now time.Time) ([]byte, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, errs.New(errs.Invalid, "the request for certificate %s cannot be read: %w", l.Name, err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, errs.New(errs.Invalid, "the request for certificate %s is not signed by its own key: %w", l.Name, err)
	}
	cert, err := sign(l, req.PublicKey, a.by, now)
	if err != nil {
		return nil, err
	}
	return append(encodeCert(cert), a.chain...), nil
}

// Names are those a certificate of ours is valid for, DNS names and addresses as text.
func Names(p paths.Paths, name string) ([]string, error) {
	cert, err := readCert(CertFile(p, name))
	if err != nil {
		return nil, err
	}
	return sans(leafOf(cert)), nil
}

func readCert(file string) (*x509.Certificate, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading a certificate: %w", err)
	}
	cert, err := parseCert(b)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate %s: %w", file, err)
	}
	return cert, nil
}

// ReadCA is the cluster's CA as it is on this machine, the one that signs; fs.ErrNotExist where there is none.
func ReadCA(p paths.Paths) (*x509.Certificate, error) { return readCert(CertFile(p, CA)) }

// ReadTrusted are all that this machine trusts as the cluster's CA, the one that signs first; fs.ErrNotExist where there is
// none.
func ReadTrusted(p paths.Paths) ([]*x509.Certificate, error) {
	b, err := os.ReadFile(CertFile(p, CA))
	if err != nil {
		return nil, fmt.Errorf("reading the cluster's CA: %w", err)
	}
	all, err := parseCerts(b)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate %s: %w", CertFile(p, CA), err)
	}
	return all, nil
}

// Fresh tells that this machine has no certificate or key yet, neither of its own making nor brought by the user.
func Fresh(p paths.Paths) (bool, error) {
	fresh := true
	err := filepath.WalkDir(p.PKI(), func(_ string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err == nil && !e.IsDir():
			fresh = false
			return fs.SkipAll
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("looking for keys that are there already: %w", err)
	}
	return fresh, nil
}

// Pins identify certificates by their keys.
func Pins(all []*x509.Certificate) []string {
	out := make([]string, 0, len(all))
	for _, c := range all {
		if pin := token.Pin(c); !slices.Contains(out, pin) {
			out = append(out, pin)
		}
	}
	return out
}

// PinsOf are the Pins of a file of certificates; of what cannot be read there are none.
func PinsOf(file []byte) []string {
	all, err := parseCerts(file)
	if err != nil {
		return nil
	}
	return Pins(all)
}

// Due is what a node that joined has to ask for.
type Due struct {
	Changes []Change
	// Usable tells that all certificates are still good, and only come to their end.
	// A serving certificate for an address the node had before counts as good: pods run, and only logs and exec wait for
	// the new one.
	Usable bool
	// RenewAt is when the first of them is due, if none is now.
	RenewAt time.Time
}

// DueOf tells which of the certificates of a node that joined have to be issued, and why. It reads and writes nothing else.
func DueOf(p paths.Paths, leaves []Leaf, now time.Time) Due {
	d := Due{Usable: true}
	cas, err := ReadTrusted(p)
	for _, l := range leaves {
		if err != nil {
			d.Changes, d.Usable = append(d.Changes, Change{l.Name, "there is no CA yet"}), false
			continue
		}
		on := pair{cert: readFile(CertFile(p, l.Name)), key: readFile(KeyFile(p, l.Name))}
		reason, cert, due := assess(l, on, cas[0], now)
		switch {
		case reason == anotherSigned:
			// One that is trusted beside it is as good while the CA is replaced, for a start without servers too.
			d.Changes = append(d.Changes, Change{l.Name, reason})
			d.Usable = d.Usable && slices.ContainsFunc(cas[1:], func(ca *x509.Certificate) bool {
				why, _, due := assess(l, on, ca, now)
				return why == "" || due
			})
		case reason != "":
			moved := cert != nil && l.Server && strings.HasPrefix(reason, namesDiffer) && now.Before(cert.NotAfter)
			d.Changes, d.Usable = append(d.Changes, Change{l.Name, reason}), d.Usable && (due || moved)
		case d.RenewAt.IsZero() || renewAt(cert).Before(d.RenewAt):
			d.RenewAt = renewAt(cert)
		}
	}
	return d
}

// IssuerOf is the pin of the CA that has signed all of a node's certificates, among those it trusts; "" where there is none.
func IssuerOf(p paths.Paths, leaves []Leaf) string {
	cas, err := ReadTrusted(p)
	if err != nil {
		return ""
	}
	for _, ca := range cas {
		if !slices.ContainsFunc(leaves, func(l Leaf) bool {
			cert, err := readCert(CertFile(p, l.Name))
			return err != nil || cert.CheckSignatureFrom(ca) != nil
		}) {
			return token.Pin(ca)
		}
	}
	return ""
}

// Requests are new keys and what is sent to a server to have them signed.
type Requests struct {
	keys map[string]crypto.Signer
	// CSRs by name of the certificate, DER.
	CSRs map[string][]byte
}

// NewRequests makes a key and a request for each of the leaves.
func NewRequests(leaves []Leaf) (Requests, error) {
	r := Requests{keys: map[string]crypto.Signer{}, CSRs: map[string][]byte{}}
	for _, l := range leaves {
		key, err := newKey()
		if err != nil {
			return r, err
		}
		t := &x509.CertificateRequest{Subject: pkix.Name{CommonName: l.CommonName, Organization: l.Organizations}}
		if r.CSRs[l.Name], err = x509.CreateCertificateRequest(rand.Reader, t, key); err != nil {
			return r, fmt.Errorf("requesting certificate %s: %w", l.Name, err)
		}
		r.keys[l.Name] = key
	}
	return r, nil
}

// Install writes what a server has signed (PEM, by name), and the CA. Nothing is written unless all of it is there, was
// signed by that CA and belongs to the keys.
func (r Requests) Install(ctx context.Context, p paths.Paths, ca []byte, signed map[string][]byte) error {
	roots, err := parseCerts(ca)
	if err != nil {
		return fmt.Errorf("the server's answer has no CA in it: %w", err)
	}
	pool := x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	certs, chains := map[string]*x509.Certificate{}, map[string][]byte{}
	for _, name := range sorted(r.keys) {
		all, err := parseCerts(signed[name])
		if err != nil {
			return fmt.Errorf("the server's answer has no certificate %s in it: %w", name, err)
		}
		cert := all[0]
		for _, c := range all[1:] {
			chains[name] = append(chains[name], encodeCert(c)...)
		}
		if !samePublic(cert.PublicKey, r.keys[name].Public()) {
			return fmt.Errorf("the server's answer has a certificate %s for another key", name)
		}
		// By its own clock: whether ours is right is found out when it is used.
		_, err = cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: cert.NotBefore.Add(time.Second)})
		if err != nil {
			return fmt.Errorf("the server's answer has a certificate %s that its CA has not signed: %w", name, err)
		}
		certs[name] = cert
	}
	if err := os.MkdirAll(p.PKI(), 0o755); err != nil {
		return fmt.Errorf("writing certificates: %w", err)
	}
	unlock, err := durable.Lock(ctx, p.PKI(".lock"))
	if err != nil {
		return fmt.Errorf("writing certificates: %w", err)
	}
	defer unlock()
	if err := durable.CleanTemp(p.PKI()); err != nil {
		return fmt.Errorf("writing certificates: %w", err)
	}
	// The CA first: certificates of another than the one that is there are damaged to whoever looks at them.
	if old := readFile(CertFile(p, CA)); old.err != nil || !bytes.Equal(old.data, ca) {
		if err := durable.WriteFile(CertFile(p, CA), ca, 0o644); err != nil {
			return err
		}
	}
	for _, name := range sorted(certs) {
		if err := writePair(p, name, r.keys[name], certs[name], chains[name]); err != nil {
			return err
		}
	}
	return durable.SyncDir(p.PKI())
}
