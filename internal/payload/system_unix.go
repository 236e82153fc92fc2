//go:build unix

package payload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/wait"
)

// lock takes an exclusive lock that the kernel releases when the process dies. It waits for others,
// as unpacking takes a second or two, until ctx ends.
func lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	try := func(context.Context) error { return flock(int(f.Fd()), unix.LOCK_EX) }
	if err = try(ctx); errors.Is(err, unix.EWOULDBLOCK) {
		err = wait.Until(ctx, 20*time.Millisecond, "another process to finish unpacking", try)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", name, err)
	}
	return func() { f.Close() }, nil
}

// hold keeps a payload from being pruned, by a lock on its directory that any number of processes may have together. The
// kernel knows it wherever the process is, and releases it when the process dies.
func hold(dir string) (release func(), err error) {
	// No os.File: one that is forgotten is closed at some time.
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		if err = flock(fd, unix.LOCK_SH); err == nil {
			return sync.OnceFunc(func() { unix.Close(fd) }), nil
		}
		unix.Close(fd)
	}
	return nil, fmt.Errorf("holding %s: %w", dir, err)
}

// isHeld tells whether some process holds a payload.
func isHeld(dir string) (bool, error) {
	d, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer d.Close() // and gives back the lock
	err = flock(int(d.Fd()), unix.LOCK_EX)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// flock does not wait for others.
func flock(fd, how int) error {
	for {
		if err := unix.Flock(fd, how|unix.LOCK_NB); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	// Some file systems (9p, some FUSE) cannot sync a directory; they have nothing more to offer.
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}
