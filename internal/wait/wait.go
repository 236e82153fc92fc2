// Package wait waits for conditions of the outside world: it says what it waits for, pauses between
// tries, obeys the context, and a timeout carries the last reason. A leaf.
package wait

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k1s.io/k1s/internal/errs"
)

// Until calls probe at once and then after every pause until it returns nil. When ctx ends first the
// error says what was waited for, and why the last try failed; it is of kind errs.Timeout when ctx had
// a deadline that passed. A probe must obey the ctx it is given.
func Until(ctx context.Context, pause time.Duration, what string, probe func(context.Context) error) error {
	t := time.NewTimer(0)
	defer t.Stop()
	var last error
	for {
		select {
		case <-ctx.Done():
			return timeout(ctx, what, last)
		case <-t.C:
		}
		err := probe(ctx)
		if err == nil {
			return nil
		}
		// A probe cut off by ctx knows less than the try before it.
		if ctx.Err() == nil || last == nil {
			last = err
		}
		var p *permanent
		if errors.As(err, &p) {
			return fmt.Errorf("waiting for %s: %w", what, p.err)
		}
		t.Reset(pause)
	}
}

// Permanent marks an error that no further try can mend: Until returns it at once.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanent{err}
}

type permanent struct{ err error }

func (p *permanent) Error() string { return p.err.Error() }
func (p *permanent) Unwrap() error { return p.err }

func timeout(ctx context.Context, what string, last error) error {
	cause := context.Cause(ctx)
	if last == nil {
		last = cause
	}
	err := fmt.Errorf("gave up waiting for %s: %w", what, last)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return errs.As(errs.Timeout, err)
	default:
		return errs.As(errs.Interrupted, err)
	}
}
