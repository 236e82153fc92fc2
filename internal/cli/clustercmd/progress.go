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
	return &progress{w: w, terminal: iostreams.IsTerminal(w), width: func() int { return iostreams.Width(w) }, now: time.Now}
}

type progress struct {
	w        io.Writer
	terminal bool
	width    func() int // of the terminal, which may change
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
		fmt.Fprint(p.w, "\r\033[K", cut(fmt.Sprintf("%s … %s: %s", p.step, p.took(), reason), p.width()-1))
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

// cut keeps a line that is rewritten on one line: one that is wrapped could not be.
func cut(s string, room int) string {
	r := []rune(s)
	for i, c := range r {
		if c == '\n' {
			r = r[:i]
			break
		}
	}
	if room = max(room, 1); len(r) > room {
		r = append(r[:room-1], '…')
	}
	return string(r)
}
