package clustercmd

import (
	"fmt"
	"io"
	"time"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/iostreams"
)

// newProgress shows progress: on a terminal one line that changes, elsewhere a line for everything new.
func newProgress(w io.Writer) cluster.Progress {
	return &progress{w: w, terminal: iostreams.IsTerminal(w), now: time.Now}
}

type progress struct {
	w        io.Writer
	terminal bool
	now      func() time.Time
	step     string
	reason   string
	began    time.Time
}

func (p *progress) Step(what string) {
	p.Done()
	p.step, p.reason, p.began = what, "", p.now()
	if p.terminal {
		fmt.Fprintf(p.w, "%s …", what)
		return
	}
	fmt.Fprintln(p.w, what)
}

func (p *progress) Waiting(reason string) {
	if p.terminal { // with the time, so that it is seen to be alive
		p.reason = reason
		fmt.Fprintf(p.w, "\r\033[K%s … %s: %s", p.step, p.took(), cut(reason))
		return
	}
	if reason != p.reason {
		p.reason = reason
		fmt.Fprintf(p.w, "  %s: %s\n", p.took(), reason)
	}
}

func (p *progress) Done() {
	if p.step != "" && p.terminal {
		fmt.Fprintf(p.w, "\r\033[K%s (%s)\n", p.step, p.took())
	}
	p.step = ""
}

func (p *progress) took() string {
	return p.now().Sub(p.began).Round(100 * time.Millisecond).String()
}

// cut keeps a line that is rewritten on one line.
func cut(s string) string {
	const room = 90
	r := []rune(s)
	for i, c := range r {
		if c == '\n' {
			r = r[:i]
			break
		}
	}
	if len(r) > room {
		r = append(r[:room-1], '…')
	}
	return string(r)
}
