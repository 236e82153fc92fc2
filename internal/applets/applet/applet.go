// Package applet says what a program inside the payload is: a function that can be a process of its
// own or a goroutine beside others. It holds the table in which they are found by name and the
// garbage collector's schedule that all of them follow. It knows no applet itself and imports nothing
// heavy. Used by the payload programs and by the group runner.
package applet

import (
	"context"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"k1s.io/k1s/internal/errs"
)

// Func runs an applet until it has ended. args do not contain the program's name.
//
// Cancelling ctx asks it to stop; having stopped because of that is no error. An applet installs no
// signal handlers, changes no global state that another applet in the process relies on, and may be
// run only once per process: upstream registers metrics, flags and feature gates once.
type Func func(ctx context.Context, args []string) error

// Applet is one program of a payload.
type Applet struct {
	Run Func
	// Tool tells that it is a command a person runs (kubectl) rather than a server. A tool keeps the
	// system's reaction to signals, as its upstream program does: Ctrl-C ends it at once.
	Tool bool
}

// Table holds applets by name.
type Table map[string]Applet

// Names of all applets, sorted.
func (t Table) Names() []string { return slices.Sorted(maps.Keys(t)) }

// Find picks the applet for a command line: the program's own base name when it is one (a link named
// kubectl), otherwise the first argument. The error is of kind errs.Usage and lists the names.
func (t Table) Find(argv []string) (name string, args []string, err error) {
	if len(argv) > 0 {
		base := strings.TrimSuffix(filepath.Base(argv[0]), ".exe")
		if _, ok := t[base]; ok {
			return base, argv[1:], nil
		}
	}
	list := strings.Join(t.Names(), ", ")
	if len(argv) < 2 {
		return "", nil, errs.Hint(errs.New(errs.Usage, "no applet given"), "name one of: %s", list)
	}
	if _, ok := t[argv[1]]; !ok {
		return "", nil, errs.Hint(errs.New(errs.Usage, "there is no applet %q", argv[1]), "name one of: %s", list)
	}
	return argv[1], argv[2:], nil
}
