//go:build unix

package payload

import (
	"context"
	"errors"
	"fmt"
	"os"
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
	try := func(context.Context) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
	for err = try(ctx); errors.Is(err, unix.EINTR); {
		err = try(ctx)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = wait.Until(ctx, 20*time.Millisecond, "another process to finish unpacking", try)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", name, err)
	}
	return func() { f.Close() }, nil
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
