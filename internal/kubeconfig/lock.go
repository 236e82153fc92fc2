package kubeconfig

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"k1s.io/k1s/internal/errs"
)

// lockPause is how often kubectl's lock is tried again.
const lockPause = 50 * time.Millisecond

// lock takes the lock that kubectl takes: the file <path>.lock, made exclusively. kubectl leaves it behind when it is killed, and
// nobody can tell then; of one that a k1s has left that can be told.
func lock(ctx context.Context, path string) (unlock func() error, err error) {
	name := path + ".lock"
	for {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err == nil {
			return own(f), nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, cannotWrite(path, err)
		}
		if unlock := inherit(name); unlock != nil {
			return unlock, nil
		}
		select {
		case <-ctx.Done():
			return nil, errs.Hint(errs.As(errs.Timeout, fmt.Errorf("writing kubeconfig %q: %q is held by another program: %w", path, name, context.Cause(ctx))),
				"try again; if no kubectl is running, remove %s", name)
		case <-time.After(lockPause):
		}
	}
}
