package errs

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// ended is an *exec.ExitError; -1 is that of a process that was killed.
type ended int

func (e ended) ExitCode() int { return int(e) }
func (e ended) Error() string { return fmt.Sprintf("ended with %d", int(e)) }

// Only a program that ran in our place has told what is wrong. One that did a part of our work has told it to us.
func TestWhatIsToldOfAProgramThatFailed(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		code int
		says string
	}{
		{"in our place", Ended("kubectl", ended(7)), 7, ""},
		{"in our place, in a node", Ended("sh", fmt.Errorf("somewhere: %w", ended(7))), 7, ""},
		{"in our place, and killed", Ended("kubectl", ended(-1)), 1, "error: kubectl ended before its time: ended with -1\n"},
		{"that did not start", Ended("kubectl", New(NotRunning, "no node")), NotRunning.ExitCode(), "error: no node\n"},
		{"a part of our work", fmt.Errorf("ending pods: %w", ended(7)), 1, "error: ending pods: ended with 7\n"},
		{"that went well", Ended("kubectl", nil), 0, ""},
		{"in our place, of which more is known", errors.Join(Exit(7), errors.New("and more")), 1, "error: exit status 7\n       and more\n"},
	} {
		var out strings.Builder
		if code := Report(&out, c.err); code != c.code || out.String() != c.says {
			t.Errorf("%s: %d, %q; want %d, %q", c.name, code, out.String(), c.code, c.says)
		}
	}
}
