package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// file is what reading one file gave; err is fs.ErrNotExist for a file that is not there.
type file struct {
	data []byte
	err  error
}

func (f file) absent() bool { return errors.Is(f.err, fs.ErrNotExist) }

// pair is the certificate and key file of one name as they are on disk.
type pair struct{ cert, key file }

// state is everything on disk that a plan depends on, by name.
type state map[string]pair

// Change is one certificate that was made, and why.
type Change struct {
	Name   string
	Reason string // "missing", "names differ: …", "expires 2027-03-01"
}

// plan is what has to be done. Authorities come first: leaves are signed by them.
type plan struct {
	newCAs    []string           // to be made, with a new key
	reCert    map[string]keyPair // key is there, certificate is not: made again from the same key
	issuers   map[string]issuer  // usable as they are
	newSA     bool
	saPublic  []byte // content for sa.pub when it has to be written
	leaves    []job
	kept      map[string]*x509.Certificate
	postponed []Change
}

type job struct {
	leaf   Leaf
	reason string
}

type keyPair struct{ key crypto.Signer }

// issuer is an authority; key is nil where it is kept off this machine.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// makePlan decides what to make. It is pure. Errors are *ClockError and *CAError: what leaves cannot
// be issued without, and must not be replaced by itself.
func makePlan(r Request, have state, now time.Time) (plan, error) {
	p := plan{reCert: map[string]keyPair{}, issuers: map[string]issuer{}, kept: map[string]*x509.Certificate{}}
	leaves := r.leaves()
	if err := checkNames(r, leaves); err != nil {
		return p, err
	}

	var failed []error
	for _, name := range r.authorities() {
		if err := p.planCA(r, name, have, leaves, now); err != nil {
			failed = append(failed, err)
		}
	}
	if err := p.planServiceAccount(r, have); err != nil {
		failed = append(failed, err)
	}
	if len(failed) > 0 {
		return p, errors.Join(failed...)
	}
	if len(p.newCAs)+len(p.reCert) > 0 && now.Before(made) {
		return p, &ClockError{Now: now, Bound: made, What: "this program was made"}
	}

	for _, l := range leaves {
		ca, usable := p.issuers[l.CA]
		reason, cert, due := "", (*x509.Certificate)(nil), false
		switch {
		case !usable && have[l.Name].cert.absent():
			reason = "missing"
		case !usable:
			reason = "its authority is new"
			if _, again := p.reCert[l.CA]; again {
				reason = "its authority's certificate was made again"
			}
		default:
			reason, cert, due = assess(l, have[l.Name], ca.cert, now)
			if reason == "" && r.All {
				reason, due = AskedFor, true
			}
		}
		switch {
		case reason == "":
			p.kept[l.Name] = cert
		case usable && ca.key == nil && due:
			p.kept[l.Name] = cert
			p.postponed = append(p.postponed, Change{l.Name, reason})
		case usable && ca.key == nil:
			failed = append(failed, &CAError{
				File:   KeyFile(r.Paths, l.CA),
				Reason: fmt.Sprintf("is not there, and certificate %s has to be issued (%s)", l.Name, reason),
			})
		default:
			p.leaves = append(p.leaves, job{l, reason})
		}
	}
	return p, errors.Join(failed...)
}

func checkNames(r Request, leaves []Leaf) error {
	if r.NodeName == "" {
		return errors.New("making certificates: the node has no name")
	}
	seen := map[string]bool{ServiceAccount: true}
	for _, ca := range r.authorities() {
		seen[ca] = true
	}
	for _, l := range leaves {
		if seen[l.Name] {
			return fmt.Errorf("making certificates: %q is asked for twice", l.Name)
		}
		seen[l.Name] = true
		if !slices.Contains(r.authorities(), l.CA) {
			return fmt.Errorf("making certificate %s: there is no authority %q", l.Name, l.CA)
		}
	}
	return nil
}

func (p *plan) planCA(r Request, name string, have state, leaves []Leaf, now time.Time) error {
	on := have[name]
	certFile, keyFile := CertFile(r.Paths, name), KeyFile(r.Paths, name)
	switch {
	case on.cert.err != nil && !on.cert.absent():
		return &CAError{File: certFile, Reason: "cannot be read", Err: on.cert.err}
	case on.key.err != nil && !on.key.absent():
		return &CAError{File: keyFile, Reason: "cannot be read", Err: on.key.err}
	case on.cert.absent() && on.key.absent():
		for _, l := range leaves {
			if l.CA == name && !have[l.Name].cert.absent() {
				// Authorities are always on disk before the first leaf, so somebody removed it.
				return &CAError{File: certFile, Reason: fmt.Sprintf("is gone, but %s, which it signed, is still there", CertFile(r.Paths, l.Name))}
			}
		}
		p.newCAs = append(p.newCAs, name)
		return nil
	}

	var key crypto.Signer
	if !on.key.absent() {
		var err error
		if key, err = parseKey(on.key.data); err != nil {
			return &CAError{File: keyFile, Reason: "is not a private key", Err: err}
		}
	}
	if on.cert.absent() {
		p.reCert[name] = keyPair{key}
		return nil
	}
	cert, err := parseCert(on.cert.data)
	switch {
	case err != nil:
		return &CAError{File: certFile, Reason: "is not a certificate", Err: err}
	case !cert.IsCA:
		return &CAError{File: certFile, Reason: "is not the certificate of an authority"}
	case key != nil && !samePublic(cert.PublicKey, key.Public()):
		return &CAError{File: keyFile, Reason: "does not belong to " + certFile}
	case now.Before(cert.NotBefore):
		return &ClockError{Now: now, Bound: cert.NotBefore, What: "the certificate authority " + certFile + " was made"}
	case now.After(cert.NotAfter):
		return &ClockError{Now: now, Bound: cert.NotAfter, After: true, What: "the certificate authority " + certFile + " ended"}
	}
	p.issuers[name] = issuer{cert: cert, key: key}
	return nil
}

func (p *plan) planServiceAccount(r Request, have state) error {
	on := have[ServiceAccount]
	keyFile := KeyFile(r.Paths, ServiceAccount)
	switch {
	case on.key.absent() && !have[APIServer].cert.absent():
		return &CAError{File: keyFile, Reason: "is gone; tokens of all service accounts were signed with it"}
	case on.key.absent():
		p.newSA = true
		return nil
	case on.key.err != nil:
		return &CAError{File: keyFile, Reason: "cannot be read", Err: on.key.err}
	}
	key, err := parseKey(on.key.data)
	if err != nil {
		return &CAError{File: keyFile, Reason: "is not a private key", Err: err}
	}
	// sa.pub may hold more keys, so that tokens signed by an earlier one stay valid: those are kept.
	ours, err := encodePublic(key.Public())
	if err != nil {
		return &CAError{File: keyFile, Reason: "cannot be used", Err: err}
	}
	block, _ := pem.Decode(ours)
	var others []byte
	for rest := on.cert.data; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if bytes.Equal(b.Bytes, block.Bytes) {
			return nil
		}
		others = append(others, pem.EncodeToMemory(b)...)
	}
	p.saPublic = append(ours, others...)
	return nil
}

// namesDiffer begins the reason of a certificate that is for other names than wanted.
const namesDiffer = "names differ: "

// assess tells why a leaf has to be issued, "" if it is good. due is true when it is still good but
// comes to its end.
func assess(l Leaf, on pair, ca *x509.Certificate, now time.Time) (reason string, cert *x509.Certificate, due bool) {
	switch {
	case on.cert.absent() || on.key.absent():
		return "missing", nil, false
	case on.cert.err != nil || on.key.err != nil:
		return "unreadable", nil, false
	}
	cert, err := parseCert(on.cert.data)
	if err != nil {
		return "damaged", nil, false
	}
	key, err := parseKey(on.key.data)
	if err != nil {
		return "key damaged", nil, false
	}
	switch {
	case !samePublic(cert.PublicKey, key.Public()):
		return "key and certificate do not belong together", cert, false
	case !bytes.Equal(cert.RawIssuer, ca.RawSubject) || cert.CheckSignatureFrom(ca) != nil:
		return anotherSigned, cert, false
	}
	have := leafOf(cert)
	switch {
	case have.CommonName != l.CommonName || !slices.Equal(have.Organizations, l.Organizations):
		return fmt.Sprintf("subject differs: %s%v, want %s%v", have.CommonName, have.Organizations, l.CommonName, l.Organizations), cert, false
	case !slices.Equal(have.DNSNames, l.DNSNames) || !slices.Equal(have.IPs, l.IPs):
		return namesDiffer + difference(have, l), cert, false
	case have.Server != l.Server || have.Client != l.Client:
		return "usage differs", cert, false
	case now.Before(cert.NotBefore):
		return "not valid before " + day(cert.NotBefore), cert, false
	case now.After(cert.NotAfter):
		return "expired " + day(cert.NotAfter), cert, false
	case now.After(renewAt(cert)) && cert.NotAfter.Before(ca.NotAfter):
		return "expires " + day(cert.NotAfter), cert, true
	}
	return "", cert, false
}

// anotherSigned is why a certificate is due that is of another authority than the first one.
const anotherSigned = "signed by another authority"

// renewAt is when a third of the lifetime is left.
func renewAt(c *x509.Certificate) time.Time {
	return c.NotAfter.Add(-c.NotAfter.Sub(c.NotBefore) / 3)
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// leafOf reads back what a certificate was issued for.
func leafOf(c *x509.Certificate) Leaf {
	l := Leaf{
		CommonName: c.Subject.CommonName, Organizations: c.Subject.Organization, DNSNames: c.DNSNames,
		Server: slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth),
		Client: slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth),
	}
	for _, ip := range c.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			l.IPs = append(l.IPs, a)
		}
	}
	return l.normal()
}

// difference names what is to come and to go: "+10.0.0.5 -10.0.0.4".
func difference(have, want Leaf) string {
	var out []string
	h, w := sans(have), sans(want)
	for _, n := range w {
		if !slices.Contains(h, n) {
			out = append(out, "+"+n)
		}
	}
	for _, n := range h {
		if !slices.Contains(w, n) {
			out = append(out, "-"+n)
		}
	}
	return strings.Join(out, " ")
}

func sans(l Leaf) []string {
	out := slices.Clone(l.DNSNames)
	for _, ip := range l.IPs {
		out = append(out, ip.String())
	}
	return out
}

// names lists those whose files a plan looks at.
func (r Request) names() []string {
	names := append(r.authorities(), ServiceAccount)
	for _, l := range r.leaves() {
		names = append(names, l.Name)
	}
	return names
}
