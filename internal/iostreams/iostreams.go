// Package iostreams bundles the three standard streams, so that commands can be run by tests. Results
// go to Out, progress and errors to ErrOut. A leaf.
package iostreams

import (
	"io"
	"os"

	"golang.org/x/term"
)

// Streams are where a command reads and writes.
type Streams struct {
	In     io.Reader
	Out    io.Writer
	ErrOut io.Writer
}

// System returns the streams of this process.
func System() Streams { return Streams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr} }

// IsTerminal reports whether w is a terminal: only there do colours and moving progress belong.
func IsTerminal(w any) bool {
	f, ok := w.(*os.File)
	// Not every character device is one: /dev/null is what services and scripts have.
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}
