package errs

import (
	"fmt"
	"io"
	"strings"
)

// Report tells a person of err: what went wrong, and on lines of their own what to do about it and which log tells more,
// where that is known. It returns the exit code of the program, see Kind.ExitCode; for nil that is 0, and nothing is told.
func Report(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	hint, log := HintOf(err)
	fmt.Fprintf(w, "error: %s\n", strings.ReplaceAll(err.Error(), "\n", "\n       "))
	if hint != "" {
		fmt.Fprintf(w, "hint:  %s\n", hint)
	}
	if log != "" {
		fmt.Fprintf(w, "log:   %s\n", log)
	}
	return KindOf(err).ExitCode()
}
