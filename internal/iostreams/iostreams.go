// Package iostreams bundles the three standard streams, so that commands can be run by tests. Results
// go to Out, progress and errors to ErrOut. A leaf.
package iostreams

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

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

// Width is how many columns the terminal w has, 80 where that is not known.
func Width(w any) int {
	if f, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			return width
		}
	}
	return 80
}

// Ask puts a question and returns the answer, without the spaces around it; "" when there is none. When ctx ends
// first the error is its cause. A read from a terminal cannot be taken back, so then the goroutine that waits for
// it ends with the process, which is about to.
func Ask(ctx context.Context, s Streams, question string) (string, error) {
	if _, err := fmt.Fprint(s.ErrOut, question); err != nil {
		return "", err
	}
	type line struct {
		text string
		err  error
	}
	answer := make(chan line, 1)
	go func() {
		text, err := bufio.NewReader(s.In).ReadString('\n')
		answer <- line{text, err}
	}()
	select {
	case a := <-answer:
		if a.err != nil && !errors.Is(a.err, io.EOF) {
			return "", fmt.Errorf("reading the answer: %w", a.err)
		}
		return strings.TrimSpace(a.text), nil
	case <-ctx.Done():
		fmt.Fprintln(s.ErrOut)
		return "", context.Cause(ctx)
	}
}
