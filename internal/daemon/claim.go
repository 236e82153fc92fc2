package daemon

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"time"

	"k1s.io/k1s/internal/claim"
	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
)

// How often it is looked for what the API server found out about a database of others: until it is ours, and afterwards.
const (
	lookForClaim = 500 * time.Millisecond
	lookAtClaim  = 5 * time.Second
)

// prepareClaim remembers that a cluster is being founded in a database of others, before it has any key: whoever is second
// there has to be able to give up what it has made. A key that is there already is not of this start: with one the user brought
// nothing is given up. What an earlier API server was told is not about this start.
func (d *Daemon) prepareClaim(in component.Input, joins bool) error {
	s, err := readPeers(in.Paths)
	if err != nil {
		return err
	}
	fresh, err := pki.Fresh(in.Paths)
	if err != nil {
		return err
	}
	founding := components.Engine(in).External() && !joins && s.Joined == nil && (s.Founding || fresh)
	if founding != s.Founding {
		s.Founding = founding
		if err := s.keep(in.Paths); err != nil {
			return err
		}
	}
	r, err := readClaim(in.Paths)
	if err != nil || r == nil || !r.Ours {
		return removeIfThere(in.Paths.Claim())
	}
	return nil
}

// readClaim is what the API server found out; nil for nothing yet.
func readClaim(p paths.Paths) (*claim.Report, error) {
	if _, err := os.Stat(p.Claim()); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var r claim.Report
	return &r, readStatusFile(p.Claim(), &r)
}

// watchClaim ends the node when its database is another cluster's: nothing can be done here until somebody decides.
func (d *Daemon) watchClaim(ctx context.Context) {
	pause := lookForClaim
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		d.mu.Lock()
		in, moving := d.in, d.moving.active()
		d.mu.Unlock()
		if !components.Engine(in).External() || moving { // a move that leads there finds out and goes back
			d.board.Report("claim", nil)
			continue
		}
		r, err := readClaim(in.Paths)
		if r != nil && r.Of != in.Datastore {
			r = nil // an API server of before, that has not ended yet
		}
		d.board.Report("claim", halfProblems(r))
		switch {
		case err != nil:
			d.log.Warn("not known whose the database is", "err", err)
		case r == nil, r.Half != "", r.Left != "": // the API server goes on by itself when that has changed
			pause = lookForClaim
		case r.Ours:
			pause = lookAtClaim
			if err := d.founded(in.Paths); err != nil {
				d.log.Warn("not kept that the cluster is founded", "err", err)
			}
		default:
			by := claim.Claim{}
			if r.Foreign != nil {
				by = *r.Foreign
			}
			d.refuse(in, &claim.Foreign{By: by})
			return
		}
	}
}

// halfProblems tell why the API server waits with a database in which only half of a backup is, or which was left for another one.
func halfProblems(r *claim.Report) []health.Problem {
	if r != nil && r.Left != "" {
		return []health.Problem{health.New(health.DatabaseLeft, "the cluster's state has moved from this database to %s", r.Left).Of("kube-apiserver")}
	}
	if r == nil || r.Half == "" {
		return nil
	}
	return []health.Problem{health.New(health.DatabaseHalf, "half of a backup is in the database (its key %s), so nothing is served from it", r.Half).Of("kube-apiserver")}
}

// founded keeps that nothing may be given up any more.
func (d *Daemon) founded(p paths.Paths) error {
	s, err := readPeers(p)
	if err != nil || !s.Founding {
		return err
	}
	s.Founding = false
	if err := s.keep(p); err != nil {
		return err
	}
	d.log.Info("the cluster is founded: the database is its own from now on")
	return nil
}

// refuse ends the node with an error that tells why.
func (d *Daemon) refuse(in component.Input, foreign *claim.Foreign) {
	err := errs.New(errs.Exists, "cannot start: %w (%s)", foreign, place(in.Config.Spec.Datastore))
	join := "k1s token create --role server on a server of it, and here: k1s server --server https://HOST:6443 --token-file FILE"
	own := "for a cluster of its own name another database: spec.datastore.endpoint"
	s, readErr := readPeers(in.Paths)
	switch {
	case readErr == nil && s.Founding:
		err = errs.Hint(err, "nothing of this start is left here. To join that cluster: %s; %s", join, own)
	default:
		err = errs.Hint(err, "this server has a cluster of its own (%s): correct spec.datastore.endpoint; to give that up, with all keys that are there, and join the other one: k1s reset, then %s", in.Paths.Data, join)
	}
	d.mu.Lock()
	d.refused = errors.Join(err, readErr)
	d.mu.Unlock()
	d.log.Error("the database is another cluster's", "err", err)
	d.stop(errStop)
}

// refusal is why the node ended by itself; nil for no reason. It gives up what was made for a cluster that was never founded.
func (d *Daemon) refusal(p paths.Paths) error {
	d.mu.Lock()
	refused := d.refused
	d.mu.Unlock()
	if refused == nil {
		return nil
	}
	return errors.Join(refused, giveUpFounding(p))
}

// giveUpFounding removes the keys of a cluster that was never founded, and what follows from them. What is removed last tells that it
// has to be done.
func giveUpFounding(p paths.Paths) error {
	s, err := readPeers(p)
	if err != nil || !s.Founding {
		return err
	}
	for _, what := range []string{p.PKI(), path.Dir(p.Kubeconfig("x")), path.Dir(p.EncryptionKeys()), p.AdminKubeconfig(), p.Claim()} {
		err = errors.Join(err, os.RemoveAll(what))
	}
	if err != nil {
		return errs.Hint(err, "run: k1s reset")
	}
	return removeIfThere(p.Server())
}
