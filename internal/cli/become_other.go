//go:build !unix

package cli

import "context"

// become runs the program as a child: there is no replacing a process here.
func become(ctx context.Context, deps Deps, program, argv0 string, args, env []string) error {
	return runProgram(ctx, deps, program, argv0, args, env)
}
