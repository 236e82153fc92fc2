// Package errs gives errors a kind, from which the exit code follows, and a hint, which tells the
// user what to do next. It is a leaf: everything may import it, it imports nothing of ours.
package errs

import (
	"context"
	"errors"
	"fmt"
)

// Kind says what sort of failure an error is. The zero value is an ordinary failure.
type Kind int

// The kinds. Exit codes are part of the command line's contract, see Kind.ExitCode.
const (
	Failure     Kind = iota // anything else
	Usage                   // the command line is wrong
	Invalid                 // what the user wrote (configuration, file) is wrong
	NotFound                // a named thing is not there
	Exists                  // a named thing is there already
	NotRunning              // k1s is not installed or not running
	Unsupported             // this machine or platform cannot do it
	Timeout                 // it did not happen in time
	Interrupted             // the user stopped it
	Denied                  // who asks may not
)

// ExitCode is the process exit status for an error of this kind: 0 ok, 1 failure, 2 usage, 3 not
// installed or not running, 4 unsupported here, 5 timed out, 130 interrupted.
func (k Kind) ExitCode() int {
	switch k {
	case Usage, Invalid:
		return 2
	case NotRunning:
		return 3
	case Unsupported:
		return 4
	case Timeout:
		return 5
	case Interrupted:
		return 130
	default:
		return 1
	}
}

type kindError struct {
	kind Kind
	err  error
}

func (e *kindError) Error() string { return e.err.Error() }
func (e *kindError) Unwrap() error { return e.err }

// New is fmt.Errorf with a kind; %w works as usual.
func New(kind Kind, format string, args ...any) error {
	return &kindError{kind: kind, err: fmt.Errorf(format, args...)}
}

// As gives err a kind; nil stays nil.
func As(kind Kind, err error) error {
	if err == nil {
		return nil
	}
	return &kindError{kind: kind, err: err}
}

// KindOf is the outermost kind in err's chain. Context errors count as Timeout and Interrupted.
func KindOf(err error) Kind {
	var k *kindError
	switch {
	case errors.As(err, &k):
		return k.kind
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	case errors.Is(err, context.Canceled):
		return Interrupted
	case errors.Is(err, errors.ErrUnsupported):
		return Unsupported
	default:
		return Failure
	}
}

// Is reports whether err is of the given kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }

type hintError struct {
	err  error
	hint string
	log  string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

// Hint adds what the user should do next, e.g. "run: k1s start"; nil stays nil.
func Hint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hintError{err: err, hint: fmt.Sprintf(format, args...)}
}

// WithLog names the log file that tells more; nil stays nil.
func WithLog(err error, path string) error {
	if err == nil {
		return nil
	}
	return &hintError{err: err, log: path}
}

// HintOf returns the outermost hint and log path in err's chain, "" where there is none.
func HintOf(err error) (hint, log string) {
	for err != nil {
		var h *hintError
		if !errors.As(err, &h) {
			break
		}
		if hint == "" {
			hint = h.hint
		}
		if log == "" {
			log = h.log
		}
		err = h.err
	}
	return hint, log
}
