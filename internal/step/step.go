// Package step runs plans: lists of named steps that are done in order, undone in reverse when one
// fails, and printed without being done. Install, reset and the like are lists of steps.
package step

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Step is one thing to do.
type Step struct {
	// Name as the user reads it: "write systemd unit k1s.service".
	Name string
	Do   func(ctx context.Context) error
	// Required keeps RunAll from everything after it when it fails.
	Required bool
	// Undo is safe without Do; nil where there is nothing to undo.
	Undo func(ctx context.Context) error
}

// undoTimeout bounds undoing all steps: it has to end even when the caller's context has.
const undoTimeout = 30 * time.Second

// Print lists what would be done.
func Print(w io.Writer, steps []Step) {
	for _, s := range steps {
		fmt.Fprintf(w, "would %s\n", s.Name)
	}
}

// Run does all steps. When one fails, those before it and itself are undone in reverse and the error
// says which step failed and what could not be undone.
func Run(ctx context.Context, steps []Step, report func(name string)) error {
	for i, s := range steps {
		report(s.Name)
		if err := s.Do(ctx); err != nil {
			err = fmt.Errorf("%s: %w", s.Name, err)
			return errors.Join(err, undo(ctx, steps[:i+1]))
		}
	}
	return nil
}

// RunAll does every step even after one failed, for plans that only remove: the more is gone the better. After a Required one that failed
// it does nothing more.
func RunAll(ctx context.Context, steps []Step, report func(name string)) error {
	var failed []error
	for _, s := range steps {
		report(s.Name)
		if err := s.Do(ctx); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", s.Name, err))
			if s.Required {
				break
			}
		}
		if ctx.Err() != nil {
			failed = append(failed, context.Cause(ctx))
			break
		}
	}
	return errors.Join(failed...)
}

func undo(ctx context.Context, done []Step) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var failed []error
	for i := len(done) - 1; i >= 0; i-- {
		if done[i].Undo == nil {
			continue
		}
		if err := done[i].Undo(ctx); err != nil {
			failed = append(failed, fmt.Errorf("undoing %q: %w", done[i].Name, err))
		}
	}
	return errors.Join(failed...)
}
