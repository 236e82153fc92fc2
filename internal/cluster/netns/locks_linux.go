package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
)

// Two kinds of locks. That of a cluster is held for all of a mutation of it, however long that takes; what happens to other
// clusters need not wait for it. That of all clusters is held for moments, while what they share is chosen, made or removed: ports, limits
// of the machine, directories, the root of their cgroups. Who holds that one takes no other one.
//
// Lock files go with what they are for, so a lock on a file that is no longer the one of that name is worth nothing; and they are
// removed while they are held, so that nobody can have come in between.

func (p *Provider) lockFile() string { return filepath.Join(p.opts.State, ".lock") }

func (p *Provider) clusterLockFile(name string) string { return p.lockFile() + "-" + name }

// lock lets mutations of one cluster take turns.
func (p *Provider) lock(ctx context.Context, name string) (func(), error) {
	if _, err := p.Features(ctx); err != nil {
		return nil, err
	}
	if err := cluster.ValidateName(name); err != nil { // it becomes a part of a file's name
		return nil, err
	}
	l := p.layout(name)
	return p.take(ctx, p.clusterLockFile(name), fmt.Sprintf("another k1s command for cluster %s", name), func() {
		if !fileExists(l.stateDir()) && !fileExists(l.runDir()) {
			_ = os.Remove(p.clusterLockFile(name))
			p.removeDirs()
		}
	})
}

// lockShared guards what clusters share.
func (p *Provider) lockShared(ctx context.Context) (func(), error) {
	return p.take(ctx, p.lockFile(), "another k1s cluster command", func() {
		// Its traces go where there is no cluster, e.g. after deleting one that never was.
		if names, err := p.clusters(); err == nil && len(names) == 0 {
			_ = os.Remove(p.lockFile())
			p.removeDirs()
		}
	})
}

// removeDirs removes the directories of the state if they are empty, and so ours.
func (p *Provider) removeDirs() {
	_ = unix.Rmdir(p.opts.State)
	_ = unix.Rmdir(filepath.Dir(p.opts.State))
}

// take locks a file, and waits for whoever has it. last is done by who unlocks it, right before.
func (p *Provider) take(ctx context.Context, file, who string, last func()) (func(), error) {
	for {
		if err := os.MkdirAll(p.opts.State, 0o755); err != nil {
			return nil, fmt.Errorf("making the clusters' directory: %w", err)
		}
		f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the last cluster just went
		}
		if err != nil {
			return nil, fmt.Errorf("opening the clusters' lock: %w", err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			mine, err1 := f.Stat()
			there, err2 := os.Stat(file)
			if err1 == nil && err2 == nil && os.SameFile(mine, there) {
				return func() {
					last()
					f.Close()
				}, nil
			}
		}
		f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("taking the clusters' lock: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %s to finish: %w", who, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
