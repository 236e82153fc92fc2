package group

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"k1s.io/k1s/internal/probe"
)

// Pauses between two tries. A start is a chain of these waits, so they are short; what answers over
// TLS costs more to ask.
const (
	pauseLocal = 10 * time.Millisecond
	pauseHTTP  = 20 * time.Millisecond
	// sayAfter is how long a wait lasts before it shows up in the log, and then again and again.
	sayAfter = 10 * time.Second
)

// probes asks each distinct probe in one place, however many members wait for it.
type probes struct {
	ctx   context.Context // ends all asking
	check func(context.Context, probe.Probe) error
	log   *slog.Logger
	owner *sync.WaitGroup

	mu   sync.Mutex
	seen map[probe.Probe]chan struct{} // guarded by mu
}

// passed returns a channel that is closed once p has passed; asking begins with the first call.
func (w *probes) passed(p probe.Probe) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c, ok := w.seen[p]; ok {
		return c
	}
	c := make(chan struct{})
	w.seen[p] = c
	w.owner.Go(func() { w.ask(p, c) })
	return c
}

func (w *probes) ask(p probe.Probe, passed chan<- struct{}) {
	pause := pauseLocal
	if p.Kind == probe.HTTP || p.Kind == probe.HTTPS {
		pause = pauseHTTP
	}
	began := time.Now()
	said := began
	t := time.NewTicker(pause)
	defer t.Stop()
	for {
		err := w.check(w.ctx, p)
		if w.ctx.Err() != nil {
			return
		}
		if err == nil {
			close(passed)
			return
		}
		if time.Since(said) >= sayAfter {
			said = time.Now()
			w.log.Info("still waiting", "for", p.String(), "since", time.Since(began).Round(time.Second), "err", err)
		}
		select {
		case <-w.ctx.Done():
			return
		case <-t.C:
		}
	}
}
