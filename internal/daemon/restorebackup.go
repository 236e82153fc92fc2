package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"k1s.io/k1s/internal/backup"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/restore"
)

// whoElse finds out which other servers of the cluster run, of those whose addresses are known here or in the archive. One that does not
// answer may still do so, for others.
func whoElse(ctx context.Context, p paths.Paths, k peeked) ([]string, error) {
	here, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("finding this machine's addresses: %w", err)
	}
	cas := x509.NewCertPool()
	cas.AppendCertsFromPEM(k.published)
	if present, err := pki.Published(p); err == nil { // there may be none, or one that is damaged
		cas.AppendCertsFromPEM(present)
	}
	return answering(ctx, cas, elsewhere(slices.Concat(k.manifest.Addresses, knownServers(p)), here)), nil
}

// elsewhere are the addresses (host:port) that are not this machine's own: what answers there is not another server.
func elsewhere(addrs []string, here []net.Addr) []string {
	own := map[string]bool{}
	for _, a := range here {
		if n, ok := a.(*net.IPNet); ok {
			own[n.IP.String()] = true
		}
	}
	var out []string
	for _, a := range addrs {
		if host, _, err := net.SplitHostPort(a); err == nil && !own[host] && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// answering are those of the addresses at which an API server has a certificate of one of the authorities.
func answering(ctx context.Context, cas *x509.CertPool, addrs []string) []string {
	ctx, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	answers := make([]bool, len(addrs))
	var all sync.WaitGroup
	for i, addr := range addrs {
		all.Go(func() {
			// A name that every API server has, and nothing else.
			d := tls.Dialer{Config: &tls.Config{RootCAs: cas, ServerName: "kubernetes.default.svc", MinVersion: tls.VersionTLS12}}
			c, err := d.DialContext(ctx, "tcp", addr)
			if err == nil {
				answers[i] = true
				_ = c.Close() // nothing was sent
			}
		})
	}
	all.Wait()
	var out []string
	for i, addr := range addrs {
		if answers[i] {
			out = append(out, addr)
		}
	}
	return out
}

// RestoreBackup restores an archive while nothing runs. With DryRun the state is nil.
func RestoreBackup(ctx context.Context, o Options, r RestoreRequest, confirm func(RestorePlan) error) (_ RestorePlan, _ *restore.State[backup.Origin], err error) {
	p := o.Paths
	if exists(p.Agent()) {
		return RestorePlan{}, nil, errs.Hint(errs.New(errs.Invalid, "this machine is an agent of a cluster (%s)", p.Data), "give up what is on it first: k1s reset")
	}
	dir, remove, err := peekDir(ctx, p)
	if err != nil {
		return RestorePlan{}, nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	k, err := peek(r.File, r.Key, dir)
	if err != nil {
		return RestorePlan{}, nil, err
	}
	if r.DryRun {
		if err := snapshotInPlace(p); err != nil {
			return RestorePlan{}, nil, err
		}
		u, err := decide(ctx, o, r, k)
		if err != nil {
			return RestorePlan{}, nil, err
		}
		if u.Running, err = whoElse(ctx, p, k); err != nil {
			return RestorePlan{}, nil, err
		}
		return u.RestorePlan, nil, nil
	}
	unlock, err := lock(ctx, p)
	if err != nil {
		return RestorePlan{}, nil, errs.Hint(err, "stop it first: k1s stop. Its pods run on, and those that are in the backup are found again")
	}
	defer unlock()
	pids, err := runningPIDs(p)
	if err != nil {
		return RestorePlan{}, nil, err
	}
	if len(pids) > 0 {
		return RestorePlan{}, nil, errs.Hint(errs.New(errs.Exists, "k1s does not run, but %d of its processes do", len(pids)), "end them with: k1s stop")
	}
	if _, err := endRestore(ctx, p); err != nil {
		return RestorePlan{}, nil, err
	}
	if err := snapshotInPlace(p); err != nil {
		return RestorePlan{}, nil, err
	}
	u, err := decide(ctx, o, r, k)
	if err != nil {
		return RestorePlan{}, nil, err
	}
	if u.Running, err = whoElse(ctx, p, k); err != nil {
		return RestorePlan{}, nil, err
	}
	if err := allowedToUnpack(u, r); err != nil {
		return u.RestorePlan, nil, err
	}
	if err := confirm(u.RestorePlan); err != nil {
		return u.RestorePlan, nil, err
	}
	last, err := readUnpacking(p)
	if err != nil {
		return u.RestorePlan, nil, err
	}
	o.Config = u.in.Config
	in, err := offline(ctx, o)
	if err != nil {
		return u.RestorePlan, nil, err
	}
	u.in = in
	id := u.Manifest.ID()
	state, err := last.Begin(restore.State[backup.Origin]{
		ID: id, From: u.Manifest.Origin(r.File), Archive: u.Archive, Old: u.aside, Staged: p.RestoreStaged(id), Since: time.Now().UTC().Truncate(time.Second),
	})
	if err != nil {
		return u.RestorePlan, nil, err
	}
	state, err = restore.Run(ctx, &unpacking{p: p, state: state, plan: u, warn: r.Warn}, state)
	return u.RestorePlan, &state, err
}
