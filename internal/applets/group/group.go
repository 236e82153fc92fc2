// Package group runs several applets in one process: it starts each when what it needs answers, tunes
// memory when all are ready, and stops them in an order in which no member loses something it still
// needs. What the members are it gets from a file (component.Group) and a table of applets, so it knows
// neither Kubernetes nor k1s's configuration. It restarts nothing: a member that ends takes the process
// with it, and the daemon's supervisor starts the whole process again.
package group

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"k1s.io/k1s/internal/applets/applet"
	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/probe"
	"k1s.io/k1s/internal/timers"
)

// Runner runs groups.
type Runner struct {
	// Table has the applets members may name.
	Table applet.Table
	// Check asks a probe once; probe.Check outside of tests.
	Check func(context.Context, probe.Probe) error
	// Memory is put into force when Run begins and after all members have become ready.
	Memory applet.Memory
	// Timers is put into force when all members are ready.
	Timers timers.Timers
	Log    *slog.Logger
}

// Main is an applet.Func: its one argument is the file that holds the group as JSON.
func (r Runner) Main(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errs.New(errs.Usage, "group takes exactly one argument: the file that describes it")
	}
	text, err := os.ReadFile(args[0])
	if err != nil {
		return fmt.Errorf("reading the group: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	var g component.Group
	if err := dec.Decode(&g); err != nil {
		return errs.New(errs.Invalid, "reading group file %q: %w", args[0], err)
	}
	return r.Run(ctx, g)
}

// Run runs the members until ctx ends or one of them does, then stops the rest and returns when all have
// ended or used up their StopTimeout. It returns nil only if ctx ended and every member stopped in time;
// goroutines of a member that did not are left behind, so the process must end then. After an error of kind errs.Denied
// it does not wait for any.
func (r Runner) Run(ctx context.Context, g component.Group) error {
	if err := validate(g, r.Table); err != nil {
		return err
	}
	r.Memory.Begin()
	begin := time.Now()

	// Members do not end with ctx but in their order; what only waits ends at once.
	starting, stopStarting := context.WithCancel(ctx)
	defer stopStarting()
	var owned sync.WaitGroup // all goroutines of ours that end with starting
	defer owned.Wait()
	defer stopStarting()

	probes := &probes{ctx: starting, check: r.Check, log: r.Log, owner: &owned, seen: map[probe.Probe]chan struct{}{}}
	ended := make(chan *member, len(g.Members))
	members := make(map[string]*member, len(g.Members))
	for _, m := range g.Members {
		run, cancel := context.WithCancel(context.WithoutCancel(ctx))
		members[m.Name] = &member{Member: m, ctx: run, cancel: cancel, started: make(chan struct{}), done: make(chan struct{})}
	}
	for _, m := range members {
		go r.runMember(starting, m, probes, ended) // ends before Run does, or is given up, see stop
	}
	owned.Go(func() {
		for _, m := range members {
			if !arrives(starting, m.started) || !arrives(starting, probes.passed(m.Ready)) {
				return
			}
		}
		r.Log.Info("group is ready", "group", g.Name, "after", time.Since(begin).Round(time.Millisecond), "memory", r.Memory.String())
		owned.Go(func() {
			switch err := r.Timers.Follow(starting); {
			case errors.Is(err, fs.ErrPermission):
				r.Log.Info("timers are left to who has started this process, which may not change them", "err", err)
			case err != nil:
				r.Log.Info("timers stay as they are", "err", err)
			}
		})
		owned.Go(func() { r.Memory.Follow(starting) })
		if err := r.Memory.Release(starting); err != nil {
			r.Log.Warn("keeping memory of the start", "err", err)
		}
	})

	var cause error
	select {
	case <-ctx.Done():
		r.Log.Info("group is stopping", "group", g.Name)
	case m := <-ended:
		cause = fmt.Errorf("%s ended by itself", m.Name)
		if m.err != nil {
			cause = fmt.Errorf("%s failed: %w", m.Name, m.err)
		}
		r.Log.Error("group is stopping because a member ended", "group", g.Name, "err", cause)
		if errs.Is(m.err, errs.Denied) {
			// It has lost its place for good, as an etcd that others have removed. What needs it would wait for it in
			// vain, and keep its clients waiting: the end of the process tells them to go elsewhere.
			return cause
		}
	}
	stopStarting()
	return errors.Join(cause, r.stop(members))
}

// member is one applet while it runs.
type member struct {
	component.Member
	ctx     context.Context // ends when it is asked to stop
	cancel  context.CancelFunc
	started chan struct{} // closed when what it waited for was there
	err     error         // set before done is closed
	done    chan struct{}
}

// runMember waits for what m needs, runs it and reports its end unless it was never started.
func (r Runner) runMember(starting context.Context, m *member, probes *probes, ended chan<- *member) {
	defer close(m.done)
	for _, p := range m.After {
		if !arrives(starting, probes.passed(p)) {
			return
		}
	}
	if starting.Err() != nil {
		return
	}
	close(m.started)
	r.Log.Info("starting", "member", m.Name)
	m.err = r.Table[m.Applet].Run(m.ctx, m.Args)
	if m.ctx.Err() != nil { // asked to stop: how it ended matters to readers of the log at most
		if m.err != nil && !errors.Is(m.err, context.Canceled) {
			r.Log.Warn("stopped with an error", "member", m.Name, "err", m.err)
		}
		m.err = nil
	}
	ended <- m
}

// stop asks every member to end as soon as the members named in its StopAfter have ended or are given
// up, and gives up on it after its StopTimeout. The error names those given up.
func (r Runner) stop(members map[string]*member) error {
	var mu sync.Mutex
	var problems []error
	gone := make(map[string]chan struct{}, len(members)) // closed when ended or given up
	for name := range members {
		gone[name] = make(chan struct{})
	}
	var all sync.WaitGroup
	for name, m := range members {
		all.Go(func() {
			defer close(gone[name])
			for _, client := range m.StopAfter {
				<-gone[client]
			}
			timeout := m.StopTimeout
			if timeout == 0 {
				timeout = component.DefaultStopTimeout
			}
			asked := time.Now()
			m.cancel()
			t := time.NewTimer(timeout)
			defer t.Stop()
			select {
			case <-m.done:
				if began(m) { // whether it failed has been said where it ended
					r.Log.Info("stopped", "member", name, "after", time.Since(asked).Round(time.Millisecond))
				}
			case <-t.C:
				mu.Lock()
				defer mu.Unlock()
				problems = append(problems, fmt.Errorf("%s did not stop within %s", name, timeout))
			}
		})
	}
	all.Wait()
	return errors.Join(problems...)
}

func began(m *member) bool {
	select {
	case <-m.started:
		return true
	default:
		return false
	}
}

// arrives waits for c to be closed; false when ctx ended first.
func arrives(ctx context.Context, c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	case <-ctx.Done():
		return false
	}
}
