//go:build unix

package cli

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
)

// become replaces this process by a program, so that signals, terminal and exit code are the program's
// own. Where the streams are not those of the process, as in tests, it runs as a child.
func become(ctx context.Context, deps Deps, program, argv0 string, args, env []string) error {
	if deps.Streams.In != os.Stdin || deps.Streams.Out != os.Stdout || deps.Streams.ErrOut != os.Stderr {
		return runProgram(ctx, deps, program, argv0, args, env)
	}
	err := syscall.Exec(program, append([]string{argv0}, args...), lastWins(env))
	return fmt.Errorf("running %s: %w", argv0, err)
}

// lastWins drops all but the last mention of each variable, as os/exec does: a program that finds two of
// them takes the first.
func lastWins(env []string) []string {
	seen := map[string]bool{}
	var out []string
	for _, kv := range slices.Backward(env) {
		name, _, _ := strings.Cut(kv, "=")
		if !seen[name] {
			seen[name] = true
			out = append(out, kv)
		}
	}
	slices.Reverse(out)
	return out
}
