// Package durable writes files so that a crash or a power cut leaves either the old content or the new
// one, never half of it, and lets processes take turns on a file. It is no database: whole files only.
// Used by pki, kubeconfig and ledger. A leaf.
package durable

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// WriteFile replaces path by data: a temporary file in the same directory is written, synchronised and
// renamed over path, then the directory is synchronised. The directory must exist. mode is applied as
// it is, whatever the umask. On an error path has its old content.
//
// What is replaced by root in a directory where nobody else may write stays of the user and group it was of, and a group that could read
// it, and is not root's, still can: a component that is not root has to be able to read what it is to read again.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	tmp, err := Stage(path, data, mode)
	if err != nil {
		return err
	}
	if err := tmp.Commit(); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// Replace replaces path by data in one step, for files that need not outlive the machine's next start: nobody sees half of one,
// whichever process is killed, but nothing is synchronised, so that a power cut may leave an empty one, and a busy disk is not
// waited for. Otherwise it is as WriteFile.
func Replace(path string, data []byte, mode fs.FileMode) error {
	tmp, err := stage(path, data, mode, func(*os.File) error { return nil })
	if err != nil {
		return err
	}
	return tmp.Commit()
}

// Staged is a complete, synchronised file that waits to take its place.
type Staged struct {
	tmp, path string
}

// Stage writes and synchronises data beside path without touching path, so that several files can be
// prepared slowly and then be put in place quickly. The caller ends it with Commit or Discard.
func Stage(path string, data []byte, mode fs.FileMode) (*Staged, error) {
	return stage(path, data, mode, (*os.File).Sync)
}

func stage(path string, data []byte, mode fs.FileMode, finish func(*os.File) error) (*Staged, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp-*")
	if err != nil {
		return nil, fmt.Errorf("writing %q: %w", path, err)
	}
	s := &Staged{tmp: f.Name(), path: path}
	owner, mode := likeBefore(path, mode)
	_, err = f.Write(data)
	// Not all file systems know modes (9p, vfat): only a key readable by others would matter, and there
	// CreateTemp's 0600 could not be had either.
	if chmodErr := f.Chmod(mode); err == nil && chmodErr != nil && !errors.Is(chmodErr, errors.ErrUnsupported) {
		err = chmodErr
	}
	if err == nil {
		err = owner(f)
	}
	if err == nil {
		err = finish(f)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("writing %q: %w", path, err), s.Discard())
	}
	return s, nil
}

// Temp is the name of the waiting file, for a caller that adjusts its owner.
func (s *Staged) Temp() string { return s.tmp }

// Commit puts the file in place. The rename is not yet synchronised, see SyncDir.
func (s *Staged) Commit() error {
	if err := os.Rename(s.tmp, s.path); err != nil {
		return errors.Join(fmt.Errorf("writing %q: %w", s.path, err), s.Discard())
	}
	return nil
}

// Discard removes the waiting file; after Commit it does nothing.
func (s *Staged) Discard() error {
	if err := os.Remove(s.tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing temporary file: %w", err)
	}
	return nil
}

// lockPause is how often a lock held by somebody else is tried again.
const lockPause = 20 * time.Millisecond

// Lock takes the lock file path, which is created and stays, and waits for it until ctx ends. The
// kernel releases the lock when the process dies, so there are no stale ones.
func Lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening lock file: %w", err)
	}
	for {
		got, err := tryLock(f)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("locking %q: %w", path, err)
		}
		if got {
			return func() { f.Close() }, nil // closing releases it
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("another process holds the lock %q: %w", path, context.Cause(ctx))
		case <-time.After(lockPause):
		}
	}
}

// CleanTemp removes what interrupted writers left in dir. Call it only while nobody writes there.
func CleanTemp(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, ".*.tmp-*"))
	if err != nil {
		return fmt.Errorf("looking for temporary files in %q: %w", dir, err)
	}
	var failed []error
	for _, name := range left {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// SyncTree puts everything below dir on the disk, and dir itself; its name is its parent's.
func SyncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return SyncDir(path)
		case !d.Type().IsRegular():
			return nil
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}
