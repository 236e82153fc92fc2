package pki

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
)

// AskedFor is the reason of a Change that is made because somebody wants it, and would have had time.
const AskedFor = "asked for"

// Report is what Ensure did and when it is wanted again.
type Report struct {
	// Issued are the certificates that are new, by name; their users have to be restarted unless they
	// re-read files.
	Issued []Change
	// Postponed are certificates that are due but whose authority's key is not on this machine.
	Postponed []Change
	// Expires is when the first certificate ends, ExpiresFirst which one that is.
	Expires      time.Time
	ExpiresFirst string
	// RenewAt is when Ensure should be called again; zero if that would change nothing.
	RenewAt time.Time
	// CAExpires is when the first authority ends.
	CAExpires time.Time
}

// Ensure makes what is missing, damaged, due or for other names than wanted, and leaves everything else
// alone. It may be called at any time, also by several processes: a lock in the directory lets one work
// at a time. Keys are written before their certificates and everything is synchronised and renamed, so a
// crash leaves at worst a leaf whose key is newer than its certificate, which the next call issues again.
//
// Errors are *CAError or *ClockError, joined, when an authority cannot be used; nothing was written
// then. Otherwise they come from the file system.
func Ensure(ctx context.Context, r Request) (Report, error) {
	now := time.Now
	if r.Now != nil {
		now = r.Now
	}
	for _, dir := range r.dirs() {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return Report{}, fmt.Errorf("making certificates: %w", err)
		}
	}
	unlock, err := durable.Lock(ctx, r.Paths.PKI(".lock"))
	if err != nil {
		return Report{}, fmt.Errorf("making certificates: %w", err)
	}
	defer unlock()
	for _, dir := range r.dirs() {
		if err := durable.CleanTemp(dir); err != nil {
			return Report{}, fmt.Errorf("making certificates: %w", err)
		}
	}

	t := now()
	p, err := makePlan(r, read(r), t)
	if err != nil {
		return Report{}, explain(r, fmt.Errorf("checking certificates: %w", err))
	}
	if err := p.makeAuthorities(r, t); err != nil {
		return Report{}, fmt.Errorf("making certificate authorities: %w", err)
	}
	if err := p.writeSigning(r.Paths); err != nil {
		return Report{}, fmt.Errorf("making certificate authorities: %w", err)
	}
	issued, err := p.issueLeaves(ctx, r, t)
	if err != nil {
		return Report{}, fmt.Errorf("issuing certificates: %w", err)
	}
	return p.report(r, issued), nil
}

// ForgetEtcd removes the certificates and keys of a member of etcd and its client; Ensure issues them anew. Etcd's authority stays: servers that
// join are given it.
func ForgetEtcd(p paths.Paths) error {
	var failed error
	for _, name := range []string{EtcdServer, EtcdPeer, APIServerEtcdClient} {
		for _, file := range []string{CertFile(p, name), KeyFile(p, name)} {
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				failed = errors.Join(failed, err)
			}
		}
	}
	return failed
}

// explain adds the remedy.
func explain(r Request, err error) error {
	var clock *ClockError
	if errors.As(err, &clock) {
		return errs.Hint(err, "%s", clock.hint())
	}
	var ca *CAError
	if errors.As(err, &ca) {
		return errs.Hint(err, "restore %s from a backup; to begin with new keys (other nodes have to join again) move the whole directory %s away",
			ca.File, r.Paths.PKI())
	}
	return err
}

func (r Request) dirs() []string {
	dirs := []string{r.Paths.PKI()}
	for _, name := range r.names() {
		if d := path.Dir(r.Paths.PKI(name)); !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// read collects what is on disk. Keys that others may read are closed to them on the way.
func read(r Request) state {
	have := state{}
	for _, name := range r.names() {
		keyFile, others := KeyFile(r.Paths, name), fs.FileMode(0o077)
		if name == ServiceAccount {
			others = 0o037 // two components read it, and may have a group for that
		}
		if st, err := os.Lstat(keyFile); err == nil && st.Mode().IsRegular() && st.Mode().Perm()&others != 0 && runtime.GOOS != "windows" {
			// A failure shows when the key is used; reading it does not depend on it.
			_ = os.Chmod(keyFile, 0o600)
		}
		have[name] = pair{cert: readFile(CertFile(r.Paths, name)), key: readFile(keyFile)}
	}
	return have
}

func readFile(name string) file {
	b, err := os.ReadFile(name)
	return file{b, err}
}

// makeAuthorities brings every authority and the service account key on disk, and into p.issuers.
func (p *plan) makeAuthorities(r Request, now time.Time) error {
	for _, name := range p.newCAs {
		key, err := newKey()
		if err != nil {
			return err
		}
		// The key has to be safe before anything shows its public half.
		if err := writeKey(r, name, key); err != nil {
			return err
		}
		p.reCert[name] = keyPair{key}
	}
	for _, name := range sorted(p.reCert) {
		key := p.reCert[name].key
		cert, err := newCA(strings.ReplaceAll(name, "/", "-"), key, now)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := durable.WriteFile(CertFile(r.Paths, name), encodeCert(cert), 0o644); err != nil {
			return err
		}
		p.issuers[name] = issuer{cert: cert, key: key}
	}
	if p.newSA {
		key, err := newKey()
		if err != nil {
			return err
		}
		if err := writeKey(r, ServiceAccount, key); err != nil {
			return err
		}
		if p.saPublic, err = encodePublic(key.Public()); err != nil {
			return err
		}
	}
	if p.saPublic != nil {
		return durable.WriteFile(CertFile(r.Paths, ServiceAccount), p.saPublic, 0o644)
	}
	return nil
}

// writeSigning keeps the certificate of the authority that signs in a file of its own: upstream's signer takes no bundle.
func (p *plan) writeSigning(at paths.Paths) error {
	want := encodeCert(p.issuers[CA].cert)
	if have := readFile(SigningFile(at)); have.err == nil && bytes.Equal(have.data, want) {
		return nil
	}
	return durable.WriteFile(SigningFile(at), want, 0o644)
}

func writeKey(r Request, name string, key crypto.Signer) error {
	b, err := encodeKey(key)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return durable.WriteFile(KeyFile(r.Paths, name), b, 0o600)
}

// issueLeaves works on several leaves at a time: most of it is waiting for the disk, and file systems
// synchronise several files for the price of one.
func (p *plan) issueLeaves(ctx context.Context, r Request, now time.Time) (map[string]*x509.Certificate, error) {
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex // guards done and failed
		done   = map[string]*x509.Certificate{}
		failed []error
	)
	for _, j := range p.leaves {
		wg.Go(func() {
			if ctx.Err() != nil {
				return
			}
			cert, err := issue(r, j.leaf, p.issuers[j.leaf.CA], now)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, fmt.Errorf("%s: %w", j.leaf.Name, err))
				return
			}
			done[j.leaf.Name] = cert
		})
	}
	wg.Wait()
	if len(done) > 0 {
		for _, dir := range r.dirs() {
			if err := durable.SyncDir(filepath.FromSlash(dir)); err != nil {
				failed = append(failed, err)
			}
		}
	}
	if len(failed) == 0 && len(done) < len(p.leaves) {
		failed = append(failed, context.Cause(ctx))
	}
	return done, errors.Join(failed...)
}

func issue(r Request, l Leaf, by issuer, now time.Time) (*x509.Certificate, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	cert, err := sign(l, key.Public(), by, now)
	if err != nil {
		return nil, err
	}
	return cert, writePair(r.Paths, l.Name, key, cert, chain(r.Paths, l.CA, by.cert))
}

// writePair puts a key and its certificate, with what others may need to verify it, in the place of what is there.
func writePair(p paths.Paths, name string, key crypto.Signer, cert *x509.Certificate, chain []byte) error {
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	// Both are complete on disk before either takes its place: the moment in which they differ is two
	// renames long.
	k, err := durable.Stage(KeyFile(p, name), keyPEM, 0o600)
	if err != nil {
		return err
	}
	c, err := durable.Stage(CertFile(p, name), append(encodeCert(cert), chain...), 0o644)
	if err != nil {
		return errors.Join(err, k.Discard())
	}
	if err := k.Commit(); err != nil {
		return errors.Join(err, c.Discard())
	}
	return c.Commit()
}

func (p *plan) report(r Request, issued map[string]*x509.Certificate) Report {
	rep := Report{Postponed: p.postponed}
	for _, j := range p.leaves {
		rep.Issued = append(rep.Issued, Change{j.leaf.Name, j.reason})
	}
	// Asking again changes nothing for what waits for its authority's key, or ends together with it.
	final := map[string]bool{}
	for _, c := range p.postponed {
		final[c.Name] = true
	}
	for _, l := range r.leaves() {
		for _, set := range []map[string]*x509.Certificate{p.kept, issued} {
			if c := set[l.Name]; c != nil && !c.NotAfter.Before(p.issuers[l.CA].cert.NotAfter) {
				final[l.Name] = true
			}
		}
	}
	for _, set := range []map[string]*x509.Certificate{p.kept, issued} {
		for _, name := range sorted(set) {
			c := set[name]
			if rep.Expires.IsZero() || c.NotAfter.Before(rep.Expires) {
				rep.Expires, rep.ExpiresFirst = c.NotAfter, name
			}
			if at := renewAt(c); !final[name] && (rep.RenewAt.IsZero() || at.Before(rep.RenewAt)) {
				rep.RenewAt = at
			}
		}
	}
	for _, ca := range p.issuers {
		if rep.CAExpires.IsZero() || ca.cert.NotAfter.Before(rep.CAExpires) {
			rep.CAExpires = ca.cert.NotAfter
		}
	}
	return rep
}

func sorted[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
