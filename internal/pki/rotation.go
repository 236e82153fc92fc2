package pki

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
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
)

// Replacing authorities. What replaces what is made complete in a directory of its own before anything uses it, and stays
// there until the old ones are forgotten, so that every phase can be installed again from it at any time:
//
//	rotation/new/NAME.{crt,key}   what comes, sa.pub and sa.key too
//	rotation/old/NAME.crt         what goes, public halves only
//	rotation/cross/NAME.crt       the new authority's key, signed by the old one
//
// Installed is what follows from it: which is first in NAME.crt, NAME.key, and NAME-chain.pem.
const rotationDir = "rotation"

// Phase is how far a replacement is.
type Phase int

// The phases, in their order.
const (
	TrustBoth  Phase = iota // the old ones sign, all are trusted
	SignNew                 // the new ones sign, all are trusted
	KeepTokens              // as TrustNew, but the old key of service accounts still verifies tokens
	TrustNew                // the old ones are not trusted any more
	TrustOld                // in the place of SignNew: the new ones are not trusted any more, and have signed nothing
)

// Replacement is one authority, or the service account key, that is replaced by another.
type Replacement struct {
	Name string `json:"name"`
	// Old and New are the SHA-256 of the public keys, base64url, as the pin in a token. New is "" where it is yet to be made.
	Old string `json:"old"`
	New string `json:"new,omitempty"`
	// OldEnds and NewEnds are when their certificates end; zero for keys.
	OldEnds time.Time `json:"oldEnds,omitzero"`
	NewEnds time.Time `json:"newEnds,omitzero"`
	// Own tells that it was brought by the user.
	Own bool `json:"own,omitempty"`
	// Below tells that the new one is below another authority, which is not trusted.
	Below bool `json:"below,omitempty"`
	// Chained tells that programs that trust only the old one accept what the new one signs. It takes an old one that allows
	// others below it.
	Chained bool `json:"chained"`
}

// change is a Replacement with what is to be written.
type change struct {
	Replacement
	old    []byte // CertFile as it is
	public []byte // CertFile to come, nil where it is yet to be made
	key    crypto.Signer
	by     issuer // the old authority
}

// Replaceable tells what replacing the authorities of this server would do, and what is in the way. Those of which dir
// has a NAME.crt and NAME.key, or sa.key, are taken from there; "" is none. It changes nothing.
func Replaceable(p paths.Paths, dir string, now time.Time) ([]Replacement, error) {
	changes, err := replacements(p, dir, now)
	out := make([]Replacement, 0, len(changes))
	for _, c := range changes {
		out = append(out, c.Replacement)
	}
	return out, err
}

func replacements(p paths.Paths, dir string, now time.Time) ([]change, error) {
	var all []change
	var failed []error
	own := 0
	for _, name := range bundled {
		if name == EtcdCA && readFile(CertFile(p, name)).absent() {
			continue // it is made when there is an etcd
		}
		c, err := replacement(p, name, dir, now)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if c.Own {
			own++
		}
		all = append(all, c)
	}
	for i, c := range all {
		for _, o := range all[:i] {
			if c.Own && o.Own && c.New == o.New || c.Own && c.New == o.Old || o.Own && o.New == c.Old {
				failed = append(failed, errs.New(errs.Invalid, "%s and %s have one key: what is signed for the one would be good for the other", o.Name, c.Name))
			}
		}
	}
	if dir != "" && own == 0 && len(failed) == 0 {
		failed = append(failed, errs.Hint(errs.New(errs.NotFound, "there is no authority in %s", dir), "put ca.crt and ca.key there; front-proxy-ca, etcd/ca and sa.key are made where they are not there"))
	}
	return all, errors.Join(failed...)
}

func replacement(p paths.Paths, name, dir string, now time.Time) (change, error) {
	c := change{Replacement: Replacement{Name: name}}
	keyFile := KeyFile(p, name)
	oldKey, err := os.ReadFile(keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return c, errs.Hint(errs.New(errs.Unsupported, "the key %s is not on this server, so nothing can say that its successor is the right one", keyFile), "put it there until the authorities are replaced")
	}
	if err != nil {
		return c, fmt.Errorf("reading %s: %w", keyFile, err)
	}
	if c.old, err = os.ReadFile(CertFile(p, name)); err != nil {
		return c, fmt.Errorf("reading %s: %w", CertFile(p, name), err)
	}
	if c.by.key, err = parseKey(oldKey); err != nil {
		return c, fmt.Errorf("reading %s: %w", keyFile, err)
	}
	c.Old = fingerprint(c.by.key.Public())
	if name != ServiceAccount {
		if c.by.cert, err = parseCert(c.old); err != nil {
			return c, fmt.Errorf("reading %s: %w", CertFile(p, name), err)
		}
		c.OldEnds = c.by.cert.NotAfter
		c.Chained = c.by.cert.MaxPathLen != 0 // -1 is no limit
	}
	if dir == "" {
		return c, nil
	}
	return c, c.bring(dir, now)
}

// bring reads what the user has made.
func (c *change) bring(dir string, now time.Time) error {
	bad := func(file, why string, err error) error {
		if err != nil {
			why += ": " + err.Error()
		}
		return errs.New(errs.Invalid, "%s %s", file, why)
	}
	keyFile, certFile := filepath.Join(dir, filepath.FromSlash(c.Name)+".key"), filepath.Join(dir, filepath.FromSlash(c.Name)+".crt")
	rawKey, keyErr := os.ReadFile(keyFile)
	rawCert, certErr := os.ReadFile(certFile)
	if c.Name == ServiceAccount {
		certErr = keyErr
	}
	switch {
	case errors.Is(keyErr, fs.ErrNotExist) && errors.Is(certErr, fs.ErrNotExist):
		return nil
	case keyErr != nil:
		return bad(keyFile, "cannot be read", keyErr)
	case certErr != nil:
		return bad(certFile, "cannot be read", certErr)
	}
	key, err := parseKey(rawKey)
	if err != nil {
		return bad(keyFile, "is not a private key", err)
	}
	c.Own, c.key, c.New = true, key, fingerprint(key.Public())
	if c.New == c.Old {
		return bad(keyFile, "is the key that is in use; a new one is wanted", nil)
	}
	if c.Name == ServiceAccount {
		if err := signsTokens(key); err != nil {
			return bad(keyFile, "cannot sign tokens of service accounts", err)
		}
		c.public, err = encodePublic(key.Public())
		return err
	}
	all, err := parseCerts(rawCert)
	if err != nil {
		return bad(certFile, "is not a certificate", err)
	}
	for _, cert := range all {
		if !cert.IsCA {
			return bad(certFile, fmt.Sprintf("has a certificate in it, %s, that is no authority's", cert.Subject), nil)
		}
	}
	cert := all[0]
	switch {
	case !samePublic(cert.PublicKey, key.Public()):
		return bad(keyFile, "does not belong to the first certificate of "+certFile, nil)
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return bad(certFile, "may not sign certificates (key usage)", nil)
	case now.Before(cert.NotBefore) || now.Add(leastLife).After(cert.NotAfter):
		return bad(certFile, fmt.Sprintf("is valid from %s to %s only; %d days from now is the least that makes sense", day(cert.NotBefore), day(cert.NotAfter), leastLife/(24*time.Hour)), nil)
	// Programs look at both in an authority they trust too (crypto/x509 does). While the old one vouches for the new one nothing
	// would be seen of it, and when that ends nothing would be accepted any more.
	case !mayBe(cert, c.usages()):
		return bad(certFile, "may not sign certificates of servers and clients (extended key usage)", nil)
	case constrained(cert):
		return bad(certFile, "may sign for some names only (name constraints), and nodes have any", nil)
	case bytes.Equal(cert.RawSubject, c.by.cert.RawSubject):
		return bad(certFile, fmt.Sprintf("has the same subject as the one in use, %s: programs tell authorities apart by it", cert.Subject), nil)
	}
	// Its issuers are left out: whatever is in the file is an authority for clients too, and theirs may sign certificates of
	// others in any name, an administrator's as well.
	c.public, c.NewEnds = encodeCert(cert), cert.NotAfter
	c.Below = !bytes.Equal(cert.RawIssuer, cert.RawSubject)
	return nil
}

// leastLife is how long an authority of the user's has to be valid at least: a replacement by itself takes a month.
const leastLife = 60 * 24 * time.Hour

// usages are what the leaves below the authority are used for.
func (c *change) usages() []x509.ExtKeyUsage {
	if c.Name == FrontProxyCA {
		return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
}

// mayBe tells whether an authority may sign certificates for these uses; one that says nothing may for all.
func mayBe(ca *x509.Certificate, uses []x509.ExtKeyUsage) bool {
	if len(ca.ExtKeyUsage) == 0 && len(ca.UnknownExtKeyUsage) == 0 || slices.Contains(ca.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return true
	}
	return !slices.ContainsFunc(uses, func(u x509.ExtKeyUsage) bool { return !slices.Contains(ca.ExtKeyUsage, u) })
}

// constrained tells whether it says for which names it may sign (RFC 5280, 4.2.1.10).
func constrained(ca *x509.Certificate) bool {
	return len(ca.PermittedDNSDomains)+len(ca.ExcludedDNSDomains)+len(ca.PermittedIPRanges)+len(ca.ExcludedIPRanges)+
		len(ca.PermittedEmailAddresses)+len(ca.ExcludedEmailAddresses)+len(ca.PermittedURIDomains)+len(ca.ExcludedURIDomains) > 0
}

// signsTokens tells why a key is none for tokens: the API server ends at its start with one it does not know
// (k8s.io/kubernetes/pkg/serviceaccount, JWTTokenGenerator).
func signsTokens(key crypto.Signer) error {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if k.N.BitLen() < 2048 {
			return fmt.Errorf("RSA of %d bits, at least 2048 are wanted", k.N.BitLen())
		}
		return nil
	case *ecdsa.PrivateKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() || k.Curve == elliptic.P521() {
			return nil
		}
	}
	return errors.New("RSA, or ECDSA on P-256, P-384 or P-521 is wanted")
}

// PrepareReplacement makes what Replaceable tells of, and nothing uses it yet. What an earlier call has left is removed.
func PrepareReplacement(ctx context.Context, p paths.Paths, dir string, now time.Time) ([]Replacement, error) {
	changes, err := replacements(p, dir, now)
	if err != nil {
		return nil, err
	}
	unlock, err := durable.Lock(ctx, p.PKI(".lock"))
	if err != nil {
		return nil, fmt.Errorf("making new authorities: %w", err)
	}
	defer unlock()
	if err := forget(p); err != nil {
		return nil, err
	}
	out := make([]Replacement, 0, len(changes))
	for _, c := range changes {
		if err := c.make(p, now); err != nil {
			return nil, fmt.Errorf("making the successor of %s: %w", c.Name, err)
		}
		out = append(out, c.Replacement)
	}
	return out, durable.SyncDir(p.PKI())
}

// make writes one of them.
func (c *change) make(p paths.Paths, now time.Time) error {
	if c.key == nil {
		key, err := newKey()
		if err != nil {
			return err
		}
		c.key, c.New = key, fingerprint(key.Public())
		if c.Name == ServiceAccount {
			if c.public, err = encodePublic(key.Public()); err != nil {
				return err
			}
		} else {
			cert, err := newCA(strings.ReplaceAll(c.Name, "/", "-"), key, now)
			if err != nil {
				return err
			}
			c.public, c.NewEnds = encodeCert(cert), cert.NotAfter
		}
	}
	key, err := encodeKey(c.key)
	if err != nil {
		return err
	}
	type out struct {
		name string
		data []byte
		mode fs.FileMode
	}
	files := []out{{"new/" + c.Name + ".key", key, 0o600}, {"new/" + publicName(c.Name), c.public, 0o644}, {"old/" + publicName(c.Name), c.old, 0o644}}
	if c.Name != ServiceAccount {
		first, err := parseCert(c.public)
		if err != nil {
			return err
		}
		cross, err := crossSign(first, c.by)
		if err != nil {
			return fmt.Errorf("cross-signing: %w", err)
		}
		files = append(files, out{"cross/" + c.Name + ".crt", encodeCert(cross), 0o644})
	}
	for _, f := range files {
		if err := writeBelow(p, p.PKI(rotationDir, f.name), f.data, f.mode); err != nil {
			return err
		}
	}
	return nil
}

func publicName(name string) string {
	_, public := bundleFiles(name)
	return public
}

// InstallReplacement brings the files that programs read into a phase. It may be called again, after any error or crash.
func InstallReplacement(ctx context.Context, p paths.Paths, all []Replacement, phase Phase) error {
	unlock, err := durable.Lock(ctx, p.PKI(".lock"))
	if err != nil {
		return fmt.Errorf("replacing authorities: %w", err)
	}
	defer unlock()
	for _, r := range all {
		if err := install(p, r, phase); err != nil {
			return fmt.Errorf("replacing the authority %s: %w", r.Name, err)
		}
	}
	return durable.SyncDir(p.PKI())
}

func install(p paths.Paths, r Replacement, phase Phase) error {
	read := map[string][]byte{}
	names := []string{"new/" + publicName(r.Name), "old/" + publicName(r.Name), "new/" + r.Name + ".key"}
	if r.Name != ServiceAccount {
		names = append(names, "cross/"+r.Name+".crt")
	}
	for _, n := range names {
		b, err := os.ReadFile(p.PKI(rotationDir, n))
		if err != nil {
			return errs.Hint(&CAError{File: p.PKI(rotationDir, n), Reason: "cannot be read, and the authorities are being replaced", Err: err},
				"restore the directory %s from a backup", p.PKI())
		}
		read[n] = b
	}
	fresh, old, key := read[names[0]], read[names[1]], read[names[2]]
	public := concat(fresh, old)
	switch phase {
	case TrustBoth:
		public = concat(old, fresh)
	case KeepTokens:
		if r.Name != ServiceAccount {
			public = fresh
		}
	case TrustNew:
		public = fresh
	case TrustOld:
		public = old
	}
	var chain []byte
	if r.Name != ServiceAccount {
		cross := read[names[3]]
		if r.Name == CA {
			// For good: machines and tokens that know an older one find the way to the present one with it.
			// The old one stands last: what is published differs in each phase, which is how nodes see that there is news.
			known := concat(readFile(CrossFile(p)).data, cross, old)
			if phase == TrustOld {
				known, _ = without(known, blocks(cross)) // it is the successor of nobody
			}
			if err := write(CrossFile(p), known, 0o644); err != nil {
				return err
			}
		}
		if phase == SignNew && r.Chained {
			chain = cross
		}
	}
	if chain == nil {
		if err := os.Remove(chainFile(p, r.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	} else if err := write(chainFile(p, r.Name), chain, 0o644); err != nil {
		return err
	}
	if phase != TrustBoth && phase != TrustOld {
		if err := write(KeyFile(p, r.Name), key, 0o600); err != nil {
			return err
		}
	}
	return write(CertFile(p, r.Name), public, 0o644)
}

// write leaves a file alone that is as wanted: others watch it.
func write(file string, data []byte, mode fs.FileMode) error {
	if have := readFile(file); have.err == nil && bytes.Equal(have.data, data) {
		return nil
	}
	return durable.WriteFile(file, data, mode)
}

// ForgetReplacement removes what is needed no more, the old ones among it.
func ForgetReplacement(ctx context.Context, p paths.Paths) error {
	unlock, err := durable.Lock(ctx, p.PKI(".lock"))
	if err != nil {
		return fmt.Errorf("forgetting the authorities that were replaced: %w", err)
	}
	defer unlock()
	return forget(p)
}

func forget(p paths.Paths) error {
	if err := os.RemoveAll(p.PKI(rotationDir)); err != nil {
		return fmt.Errorf("forgetting the authorities that were replaced: %w", err)
	}
	return nil
}

// CrossFile names the file of the CAs this cluster had, and of the certificates by which each has vouched for the next. They
// are public, served to whoever asks, and trusted by nobody for being there.
func CrossFile(p paths.Paths) string { return p.PKI("ca-cross.pem") }

// chainFile is what goes behind the certificates an authority signs.
func chainFile(p paths.Paths, name string) string { return p.PKI(name + "-chain.pem") }

// chain is nil where there is none, or one of another authority.
func chain(p paths.Paths, name string, by *x509.Certificate) []byte {
	f := readFile(chainFile(p, name))
	if f.err != nil {
		return nil
	}
	if cert, err := parseCert(f.data); err != nil || !samePublic(cert.PublicKey, by.PublicKey) {
		return nil
	}
	return f.data
}

// Published is what anybody may have to verify this cluster's servers: what is trusted, and how one CA vouched for the next. It
// differs between any two phases.
func Published(p paths.Paths) ([]byte, error) {
	ca, err := os.ReadFile(CertFile(p, CA))
	if err != nil {
		return nil, fmt.Errorf("reading the cluster's CA: %w", err)
	}
	// A CA that is trusted and was vouched for is there twice: an agent sees by the bytes that the old one is not trusted any more.
	return append(concat(ca), concat(readFile(CrossFile(p)).data)...), nil
}

// Stale takes out of a bundle that others keep what the replacement that is on its way has taken out of the authority's own
// file. Both are PEM; gone tells that there was something to take out.
func Stale(p paths.Paths, name string, bundle []byte) (left []byte, gone bool, err error) {
	old, fresh := readFile(p.PKI(rotationDir, "old", publicName(name))), readFile(p.PKI(rotationDir, "new", publicName(name)))
	if old.absent() {
		return bundle, false, nil // it is not replaced
	}
	own := readFile(CertFile(p, name))
	if err := errors.Join(old.err, fresh.err, own.err); err != nil {
		return nil, false, fmt.Errorf("finding out which authorities are not trusted any more: %w", err)
	}
	stale := blocks(concat(old.data, fresh.data))
	for der := range blocks(own.data) {
		delete(stale, der)
	}
	left, gone = without(bundle, stale)
	return left, gone, nil
}

// without leaves blocks out of a PEM file, and tells whether there were any.
func without(b []byte, out map[string]bool) (left []byte, gone bool) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return left, gone
		}
		if out[string(block.Bytes)] {
			gone = true
			continue
		}
		left = append(left, pem.EncodeToMemory(block)...)
	}
}

// blocks are what is in a PEM file.
func blocks(b []byte) map[string]bool {
	out := map[string]bool{}
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return out
		}
		out[string(block.Bytes)] = true
	}
}

// Successors are those of the certificates that can be trusted because one is that known says yes to: it signed them, or
// one of those did. Certificates that known says yes to are among them. The names and times in them are for TLS to check.
func Successors(all []*x509.Certificate, known func(*x509.Certificate) bool) []*x509.Certificate {
	var out []*x509.Certificate
	taken := make([]bool, len(all))
	for i, c := range all {
		if known(c) {
			out, taken[i] = append(out, c), true
		}
	}
	for grown := true; grown; {
		grown = false
		for i, c := range all {
			if taken[i] || !c.IsCA {
				continue
			}
			for _, by := range out {
				if bytes.Equal(c.RawIssuer, by.RawSubject) && c.CheckSignatureFrom(by) == nil {
					out, taken[i], grown = append(out, c), true, true
					break
				}
			}
		}
	}
	return out
}

// Trust replaces what a node that joined trusts by what a server has told it.
func Trust(ctx context.Context, p paths.Paths, ca []byte) error {
	if _, err := parseCerts(ca); err != nil {
		return fmt.Errorf("the server's answer has no CA in it: %w", err)
	}
	unlock, err := durable.Lock(ctx, p.PKI(".lock"))
	if err != nil {
		return fmt.Errorf("writing the cluster's CA: %w", err)
	}
	defer unlock()
	return write(CertFile(p, CA), ca, 0o644)
}

// Pool reads a file of authorities.
func Pool(file string) (*x509.CertPool, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the cluster's CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("reading the cluster's CA %s: no certificate in it", file)
	}
	return pool, nil
}

// concat are the PEM blocks of all, each once.
func concat(all ...[]byte) []byte {
	var out []byte
	seen := map[string]bool{}
	for _, b := range all {
		for {
			var block *pem.Block
			if block, b = pem.Decode(b); block == nil {
				break
			}
			if !seen[string(block.Bytes)] {
				seen[string(block.Bytes)] = true
				out = append(out, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
			}
		}
	}
	return out
}

func fingerprint(pub crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "" // it was parsed before
	}
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
