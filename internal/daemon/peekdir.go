package daemon

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"

	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/paths"
)

// What a restore looks at is in a directory of this name, which it holds by a lock in it while it runs.
const (
	peekPrefix = "k1s-backup-restore-"
	peekLock   = "lock"
)

// peekDir makes a directory for what is in an archive. Not in /tmp: credentials of a database may be in it, and this does not outlive the
// machine's memory. What is not there is not made: nothing may come of this. What restores that were killed have left goes.
func peekDir(ctx context.Context, p paths.Paths) (dir string, remove func() error, err error) {
	if err := cleanPeeked(p); err != nil {
		return "", nil, err
	}
	for {
		if dir, err = os.MkdirTemp(existing(p.Run), peekPrefix); err != nil {
			return "", nil, err
		}
		unlock, err := durable.Lock(ctx, path.Join(dir, peekLock))
		if err == nil && exists(path.Join(dir, peekLock)) {
			return dir, func() error {
				defer unlock()
				return os.RemoveAll(dir)
			}, nil
		}
		if err == nil {
			unlock()
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", nil, errors.Join(err, os.RemoveAll(dir))
		}
		// Somebody who cleaned up was faster than the lock.
	}
}

// cleanPeeked removes the directories of peekDir that nobody holds.
func cleanPeeked(p paths.Paths) error {
	var failed []error
	for _, base := range []string{p.Run, existing(path.Dir(p.Run))} {
		entries, err := os.ReadDir(base)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
		for _, e := range entries {
			if e.IsDir() && strings.HasPrefix(e.Name(), peekPrefix) {
				failed = append(failed, cleanOnePeeked(path.Join(base, e.Name())))
			}
		}
	}
	return errors.Join(failed...)
}

func cleanOnePeeked(dir string) error {
	now, cancel := context.WithCancel(context.Background())
	cancel() // who holds it is not waited for
	unlock, err := durable.Lock(now, path.Join(dir, peekLock))
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission): // another user's, or gone
		return nil
	case err != nil:
		return err
	}
	defer unlock()
	// It loses its name first: whoever has just made it, and waits for the lock, sees that it is not the one any more.
	gone, err := os.MkdirTemp(path.Dir(dir), peekPrefix)
	if err == nil {
		err = os.Rename(dir, path.Join(gone, "gone"))
		err = errors.Join(err, os.RemoveAll(gone))
	}
	return err
}
