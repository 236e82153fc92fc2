//go:build system

package system

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

// limit bounds every command that has no longer one of its own; none should come near.
// It is longer than what the program itself waits for, so that its own word on what is in the way is what one reads.
const limit = 5 * time.Minute

// patience is what commands that wait are told to wait at most.
const patience = "--wait=4m"

// result is how a command ended.
type result struct {
	argv     []string
	out, err string // standard output and standard error
	code     int    // exit code, -1 when it did not start or was killed
	failure  error
}

// error is nil for a command that succeeded.
func (r result) error() error {
	if r.failure == nil {
		return nil
	}
	return fmt.Errorf("%s: %w\n%s%s", strings.Join(r.argv, " "), r.failure, r.out, r.err)
}

// command runs a program to its end.
func command(ctx context.Context, env []string, stdin string, argv ...string) result {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = env
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	return end(ctx, cmd)
}

// end runs a command made with ctx and tells how it ended.
func end(ctx context.Context, cmd *exec.Cmd) result {
	// A process that is to die with its parent dies with the thread that started it, and other tests end threads.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.WaitDelay = 30 * time.Second // for what it started and left with our pipes
	r := result{argv: cmd.Args, failure: cmd.Run(), code: -1}
	r.out, r.err = out.String(), errOut.String()
	var exit *exec.ExitError
	switch {
	case r.failure == nil:
		r.code = 0
	case ctx.Err() != nil:
		r.failure = fmt.Errorf("%w (%w)", r.failure, context.Cause(ctx))
	case errors.As(r.failure, &exit):
		r.code = exit.ExitCode()
	}
	return r
}

// k1s runs the program under test.
func k1s(ctx context.Context, args ...string) result {
	return command(ctx, the.environ(), "", append([]string{the.program}, args...)...)
}

// within is a context of the test with a limit.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("it took more than %s", d))
	t.Cleanup(cancel)
	return ctx
}

// wants checks exit code and what standard error says.
func (r result) wants(t *testing.T, code int, stderr ...string) {
	t.Helper()
	ok := r.code == code
	for _, s := range stderr {
		ok = ok && strings.Contains(r.err, s)
	}
	if !ok {
		t.Errorf("%s\nended with %d (%v), want %d, and on standard error %q; it says:\n%s%s",
			strings.Join(r.argv, " "), r.code, r.failure, code, stderr, r.out, r.err)
	}
}
