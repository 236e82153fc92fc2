package errs

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// Exit is the exit code, not 0, of a program that ran in our place and has told its error itself.
type Exit int

// Error is for those who do not pass it on.
func (e Exit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Ended is what is to be returned when a program that ran in our place, called what, ended with err: an Exit when it ended by itself.
// Of one that was killed nobody has told anything yet, and other errors say more than that it ended.
func Ended(what string, err error) error {
	var ended interface{ ExitCode() int } // *exec.ExitError
	switch {
	case !errors.As(err, &ended):
		return err
	case ended.ExitCode() > 0:
		return Exit(ended.ExitCode())
	}
	return fmt.Errorf("%s ended before its time: %w", what, err)
}

// Report tells a person of err: what went wrong, and on lines of their own what to do about it and which log tells more,
// where that is known. It returns the exit code of the program, see Kind.ExitCode; for nil that is 0, and nothing is told, as
// nothing is of an Exit.
func Report(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	// Not errors.As: who says more about it wants that to be told.
	if x, ok := err.(Exit); ok {
		return int(x)
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
