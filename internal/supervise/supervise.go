// Package supervise is the engine that keeps the units of a node alive: it starts them as soon as what they
// need is there, watches whether their components answer, restarts what ends, replaces what has changed, and
// stops everything in order. It knows units as data and runs them through a Runner; what a unit is made of
// and how a process is started is not known here.
//
// The daemon is its only user: it gives it units (Apply), and shows what it knows (Snapshot, Problems,
// Events) through the control API.
//
// One goroutine per unit decides what the unit does next, one per component of a running unit asks whether
// it answers. They share the state below one mutex, and a channel that is closed at every change wakes
// whoever waits for one. Run owns them all.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/probe"
	"k1s.io/k1s/internal/unitlog"
)

// Runner runs one unit. Run starts the thing and blocks until it is gone; cancelling ctx asks it to stop,
// and Run must then return in the time the unit's StopTimeout gives and a little more. With the cause
// ErrDetach it lets go of the thing instead. Run is called again for every restart, never twice at a time.
type Runner interface {
	Run(ctx context.Context) error
}

// Adopter is a Runner whose thing may outlive the daemon. Before the first Run the supervisor asks what an
// earlier daemon has left.
type Adopter interface {
	// Adopt tells whether the thing is running, and whether it is the same as this unit: then Run takes it over
	// instead of starting another one, and waits for nothing that it needs.
	Adopt(ctx context.Context) (running, same bool, err error)
	// StopOld ends a running one that is not the same.
	StopOld(ctx context.Context) error
}

// Notifier is a Runner that tells when its thing runs, during Run and before anything is asked of it. When
// Run ends before that, the unit could not be started, which needs a person; after it, the unit has ended,
// which needs a restart. Without it a unit runs as soon as Run is called.
type Notifier interface {
	OnStart(func(pid int, adopted bool))
}

// ErrDetach is the cause with which the context of Supervisor.Run is cancelled to leave everything running
// for the next daemon.
var ErrDetach = platform.ErrDetach

// Options of a Supervisor.
type Options struct {
	// NewRunner makes the Runner of a unit. It is called once for each version of a unit.
	NewRunner func(component.Unit) Runner
	// Probe asks a component; nil is probe.Check.
	Probe func(context.Context, probe.Probe) error
	// LogPath names the log of a unit, whose last lines tell why it ended; nil when there is none.
	LogPath func(unit string) string
	// Events is how many events are kept; 0 is 512.
	Events int
}

// How often components are asked, and what follows from the answers.
const (
	quickest      = 20 * time.Millisecond  // first pause while a component is not ready
	slowestYoung  = 50 * time.Millisecond  // longest pause while it is not ready, and young or cheap to ask
	slowest       = 250 * time.Millisecond // longest pause while it is not ready
	young         = 10 * time.Second       // after this it is not just starting
	slowestBroken = 2 * time.Second        // the same once it has been ready and is not any more
	steady        = 10 * time.Second       // pause while it is ready
	doubt         = time.Second            // pause after a miss while it is ready
	missesAllowed = 3                      // so many in a row and it is not ready any more
)

// When a unit is started again.
const (
	firstDelay = 10 * time.Millisecond // after one failure: kill -9 is healed in a blink
	baseDelay  = 250 * time.Millisecond
	maxDelay   = 30 * time.Second
	// A unit has recovered when it was ready for ten times the delay of its last restart, within these bounds.
	minStable, maxStable = 5 * time.Second, time.Minute
	// loopAfter is after how many failures in a row it is a problem that a person should know of.
	loopAfter = 3
)

// stopGrace is how much longer than its StopTimeout a Runner may take to return before it is given up:
// enough to kill, and to see that the kill has worked.
const stopGrace = 15 * time.Second

// tailLines is how much of the log a crash report carries.
const tailLines = 20

var (
	errRestart = errors.New("restart requested")
	errStop    = errors.New("stop requested")
	errChanged = errors.New("its configuration has changed")
	errRemoved = errors.New("it is no longer part of this node")
)

// Supervisor keeps units alive. Make it with New, run it with Run.
type Supervisor struct {
	log *slog.Logger
	o   Options

	wake chan struct{} // tells Run that there is something to apply; holds one

	mu        sync.Mutex // guards everything below, and all units and comps
	wanted    []component.Unit
	asked     uint64    // counts calls of Apply
	since     time.Time // of the last one
	applied   uint64    // the one that has been carried out
	applyErr  error     // what went wrong then
	stuck     bool      // a unit that did not end has been given up; its goroutine must not be waited for
	running   bool
	ended     bool
	changed   chan struct{} // closed and replaced at every change
	units     map[string]*unit
	order     []string // names of units as they were wanted
	coming    []*unit  // what is being applied: not started before what has to go is gone; in order
	comps     map[string]*comp
	ring      ring
	listeners map[*Subscription]struct{}
}

// unit is one version of one unit.
type unit struct {
	spec   component.Unit
	hash   string
	runner Runner
	cancel context.CancelCauseFunc
	kick   chan struct{} // cuts a delay short; holds one
	done   chan struct{} // closed when its goroutine has ended
	comps  []*comp

	attach   bool // it runs already
	running  bool // between OnStart and the end of Run
	stopping bool
	replaces bool                    // what an earlier daemon has left of it is being ended
	stop     context.CancelCauseFunc // ends the present Run
	pid      int
	adopted  bool
	restarts int
	failures int // in a row
	delay    time.Duration
	started  time.Time
	readyAt  time.Time // since when all its components are ready; zero: they are not
	retryAt  time.Time
	lastExit *Exit
	tail     []string
	failure  error // why it could not be started
}

type comp struct {
	component.Component
	unit *unit

	state  State
	since  time.Time
	reason string
	open   bool
	ready  bool
	openAt time.Time // first time in this run
	rdyAt  time.Time
}

// New makes a supervisor of nothing.
func New(log *slog.Logger, o Options) *Supervisor {
	if o.Probe == nil {
		o.Probe = probe.Check
	}
	if o.Events <= 0 {
		o.Events = 512
	}
	return &Supervisor{
		log: log, o: o,
		wake:      make(chan struct{}, 1),
		changed:   make(chan struct{}),
		units:     map[string]*unit{},
		comps:     map[string]*comp{},
		ring:      ring{max: o.Events},
		listeners: map[*Subscription]struct{}{},
	}
}

// Run keeps the wanted units alive until ctx ends, then stops them, those that need others before these, and
// returns when all are gone. With the cause ErrDetach it lets go of them instead. It may be called once.
func (s *Supervisor) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.running || s.ended {
		s.mu.Unlock()
		return errors.New("a supervisor runs once")
	}
	s.running = true
	s.mu.Unlock()

	var all sync.WaitGroup // the units' goroutines
	for ctx.Err() == nil {
		s.mu.Lock()
		pending := s.applied != s.asked
		s.mu.Unlock()
		if pending {
			s.apply(ctx, &all)
			continue
		}
		select {
		case <-ctx.Done():
		case <-s.wake:
		}
	}

	var err error
	if errors.Is(context.Cause(ctx), ErrDetach) {
		s.mu.Lock()
		for _, u := range s.units {
			s.event(u.spec.Name, "", "detached", "it is left running for the next daemon")
			s.requestStop(u, ErrDetach)
		}
		stuck := s.stuck
		s.mu.Unlock()
		if !stuck {
			all.Wait()
		}
	} else {
		s.mu.Lock()
		var items []stopItem
		for _, name := range s.order {
			items = append(items, s.stopItem(s.units[name], errStop))
		}
		stuck := s.stuck
		s.mu.Unlock()
		if err = stopInOrder(items, nil); err == nil && !stuck {
			all.Wait()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running, s.ended = false, true
	s.broadcast()
	return err
}

// Apply sets the wanted units. New ones are started, vanished ones stopped, those whose hash differs are
// replaced, all others are left alone; so are those that an earlier daemon left running and that have not
// changed. It returns when what has to go is gone and the rest is under way, not when it is ready; while
// Run has not been called it returns at once. When ctx ends it returns, and the work goes on.
func (s *Supervisor) Apply(ctx context.Context, units []component.Unit) error {
	if err := validate(units); err != nil {
		return err
	}
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return errs.New(errs.NotRunning, "the supervisor has ended")
	}
	s.wanted = slices.Clone(units)
	s.asked++
	s.since = time.Now()
	mine := s.asked
	for s.running && s.applied < mine {
		select {
		case s.wake <- struct{}{}:
		default:
		}
		ch := s.changed
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return fmt.Errorf("applying units: %w", context.Cause(ctx))
		case <-ch:
		}
		s.mu.Lock()
	}
	defer s.mu.Unlock()
	if s.applied < mine && s.ended {
		return errs.New(errs.NotRunning, "the supervisor has ended")
	}
	if s.applied == mine {
		return s.applyErr
	}
	return nil
}

func validate(units []component.Unit) error {
	names, comps := map[string]bool{}, map[string]component.Component{}
	for _, u := range units {
		if u.Name == "" || names[u.Name] {
			return errs.New(errs.Invalid, "unit %q: each unit needs a name of its own", u.Name)
		}
		names[u.Name] = true
		for _, c := range u.Components {
			if _, ok := comps[c.Name]; ok || c.Name == "" {
				return errs.New(errs.Invalid, "component %q of unit %s: each component needs a name of its own", c.Name, u.Name)
			}
			comps[c.Name] = c
		}
	}
	// Depth first; a component met again on the way down needs itself.
	const onTheWay, fine = 1, 2
	mark := map[string]int{}
	var way []string
	var visit func(name string) error
	visit = func(name string) error {
		way = append(way, name)
		defer func() { way = way[:len(way)-1] }()
		switch mark[name] {
		case fine:
			return nil
		case onTheWay:
			return errs.New(errs.Invalid, "components need each other in a circle: %s", strings.Join(way[slices.Index(way, name):], " → "))
		}
		mark[name] = onTheWay
		for _, n := range comps[name].Needs {
			if _, ok := comps[n.Component]; ok {
				if err := visit(n.Component); err != nil {
					return err
				}
			}
		}
		mark[name] = fine
		return nil
	}
	for _, u := range units {
		for _, c := range u.Components {
			if err := visit(c.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// apply carries out the newest Apply.
func (s *Supervisor) apply(ctx context.Context, all *sync.WaitGroup) {
	s.mu.Lock()
	wanted, number := s.wanted, s.asked
	names, replaced := map[string]bool{}, map[string]bool{}
	var fresh []*unit
	var stops []stopItem
	for _, spec := range wanted {
		names[spec.Name] = true
		old := s.units[spec.Name]
		if old != nil && old.hash == spec.Hash() {
			continue
		}
		u := &unit{
			spec: spec, hash: spec.Hash(), runner: s.o.NewRunner(spec),
			kick: make(chan struct{}, 1), done: make(chan struct{}),
		}
		for _, c := range spec.Components {
			u.comps = append(u.comps, &comp{Component: c, unit: u, state: Waiting, since: time.Now()})
		}
		fresh = append(fresh, u)
		if old != nil {
			replaced[spec.Name] = true
			u.restarts = old.restarts + 1
			stops = append(stops, s.stopItem(old, errChanged))
		}
	}
	for name, u := range s.units {
		if !names[name] {
			stops = append(stops, s.stopItem(u, errRemoved))
		}
	}
	before := s.specs()
	s.coming = fresh
	s.broadcast()
	s.mu.Unlock()

	// What an earlier daemon has left is looked at by all at once; each look costs a few reads of /proc.
	var looks sync.WaitGroup
	left := make([]stopItem, len(fresh))
	for i, u := range fresh {
		a, ok := u.runner.(Adopter)
		if !ok || replaced[u.spec.Name] {
			continue
		}
		looks.Go(func() {
			running, same, err := a.Adopt(ctx)
			switch {
			case err != nil: // Run meets the same error, and it is shown then
				s.log.Warn("cannot tell whether the unit is running already", "unit", u.spec.Name, "err", err)
			case running && same:
				s.mu.Lock()
				u.attach = true
				s.mu.Unlock()
			case running:
				left[i] = stopItem{unit: u.spec, stop: func() error { return a.StopOld(context.WithoutCancel(ctx)) }}
			}
		})
	}
	looks.Wait()
	for i, item := range left {
		if item.stop == nil {
			continue
		}
		s.mu.Lock()
		fresh[i].replaces = true
		s.event(item.unit.Name, "", "stopping", "an earlier daemon left another version of it running")
		s.broadcast()
		s.mu.Unlock()
		stop := item.stop
		item.stop = func() error {
			defer func() {
				s.mu.Lock()
				fresh[i].replaces = false
				s.mu.Unlock()
			}()
			return stop()
		}
		stops = append(stops, item)
	}
	err := stopInOrder(stops, append(before, wanted...))
	if err != nil {
		s.log.Error("not everything could be stopped", "err", err)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	for name, u := range s.units {
		if !names[name] {
			delete(s.units, name)
			s.disown(u)
		}
	}
	for _, u := range fresh {
		if old := s.units[u.spec.Name]; old != nil {
			s.disown(old)
		}
		s.units[u.spec.Name] = u
	}
	for _, u := range fresh {
		for _, c := range u.comps {
			s.comps[c.Name] = c
		}
	}
	s.order = s.order[:0]
	for _, spec := range wanted {
		s.order = append(s.order, spec.Name)
	}
	s.coming = nil
	s.applied, s.applyErr = number, err
	s.stuck = s.stuck || err != nil
	for _, u := range fresh {
		var uctx context.Context
		uctx, u.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
		all.Go(func() { s.keep(uctx, u) })
	}
	s.broadcast()
}

// disown forgets the components of a unit, unless another unit has taken them over.
func (s *Supervisor) disown(u *unit) {
	for _, c := range u.comps {
		if s.comps[c.Name] == c {
			delete(s.comps, c.Name)
		}
	}
}

// specs are the units there are now. The caller holds mu.
func (s *Supervisor) specs() []component.Unit {
	var specs []component.Unit
	for _, name := range s.order {
		specs = append(specs, s.units[name].spec)
	}
	return specs
}

// broadcast wakes whoever waits for a change. The caller holds mu.
func (s *Supervisor) broadcast() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// set moves a component to a state. The caller holds mu.
func (s *Supervisor) set(c *comp, state State, reason string) {
	c.reason = reason
	if c.state == state {
		return
	}
	c.state, c.since = state, time.Now()
	if state != Ready {
		c.unit.readyAt = time.Time{}
	}
	s.event(c.unit.spec.Name, c.Name, string(state), reason)
	s.broadcast()
}

func (s *Supervisor) setAll(u *unit, state State, reason string) {
	for _, c := range u.comps {
		s.set(c, state, reason)
	}
}

// unmet are the needs of c that are not met. The caller holds mu.
func (s *Supervisor) unmet(c *comp) []WaitsFor {
	var unmet []WaitsFor
	for _, n := range c.Needs {
		d := s.comps[n.Component]
		if d == nil || n.Level == component.Open && d.open || d.ready {
			continue
		}
		w := WaitsFor{Component: n.Component, Level: n.Level, Reason: d.reason}
		switch d.state {
		case Starting, Degraded, Ready:
		case Waiting:
			w.Reason = "it is waiting itself"
		default:
			w.Reason = strings.TrimSuffix(string(d.state)+": "+d.reason, ": ")
		}
		unmet = append(unmet, w)
	}
	return unmet
}

// keep keeps one unit alive until ctx ends.
func (s *Supervisor) keep(ctx context.Context, u *unit) {
	defer close(u.done)
	for s.gate(ctx, u) {
		err := s.runOnce(ctx, u)
		words := s.lastWords(u)
		s.mu.Lock()
		delay := s.afterRun(ctx, u, err, words)
		s.mu.Unlock()
		if delay == 0 {
			continue
		}
		t := time.NewTimer(delay)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-u.kick:
		}
		t.Stop()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	u.running, u.pid = false, 0
	reason := ""
	if errors.Is(context.Cause(ctx), ErrDetach) {
		reason = ErrDetach.Error()
	}
	for _, c := range u.comps {
		c.open, c.ready = false, false
		s.set(c, Stopped, reason)
	}
}

// gate blocks until the unit may start; false when ctx has ended. A unit of several components starts at
// once: its process starts each member when it may.
func (s *Supervisor) gate(ctx context.Context, u *unit) bool {
	for {
		s.mu.Lock()
		if u.attach { // also when it is to be stopped: somebody has to do it
			s.mu.Unlock()
			return true
		}
		if ctx.Err() != nil {
			s.mu.Unlock()
			return false
		}
		if len(u.comps) != 1 {
			s.mu.Unlock()
			return true
		}
		unmet, ch := s.unmet(u.comps[0]), s.changed
		if len(unmet) == 0 {
			s.mu.Unlock()
			return true
		}
		s.set(u.comps[0], Waiting, "")
		s.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-ch:
		}
	}
}

// runOnce is one life of the unit.
func (s *Supervisor) runOnce(ctx context.Context, u *unit) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer stop(nil) // before waiting

	s.mu.Lock()
	select { // a restart that was asked for before is this one
	case <-u.kick:
	default:
	}
	u.stop, u.started, u.attach = stop, time.Now(), false
	for _, c := range u.comps {
		c.open, c.ready, c.openAt, c.rdyAt = false, false, time.Time{}, time.Time{}
		if !u.stopping {
			s.set(c, Starting, "")
		}
	}
	s.mu.Unlock()

	begin := func(pid int, adopted bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if u.running {
			return
		}
		u.running, u.pid, u.adopted, u.failure = true, pid, adopted, nil
		what, reason := "started", ""
		if adopted {
			what = "adopted"
		}
		if pid != 0 {
			reason = fmt.Sprintf("process %d", pid)
		}
		s.event(u.spec.Name, "", what, reason)
		s.log.Info("unit "+what, "unit", u.spec.Name, "pid", pid)
		for _, c := range u.comps {
			watchers.Go(func() { s.watch(ctx, c) })
		}
		s.broadcast()
	}
	if n, ok := u.runner.(Notifier); ok {
		n.OnStart(begin)
	} else {
		begin(0, false)
	}
	return u.runner.Run(ctx)
}

// lastWords is the end of what a unit's last run has written to its log. Others may hold the log up, so no lock of ours is held.
func (s *Supervisor) lastWords(u *unit) []string {
	if s.o.LogPath == nil {
		return nil
	}
	lines, err := unitlog.Tail(s.o.LogPath(u.spec.Name), tailLines)
	if err != nil {
		return nil // why it ended is known without them
	}
	return unitlog.LastRun(lines)
}

// afterRun draws the conclusions from the end of a run, and tells after which delay the next one may begin. words are its
// last. The caller holds mu.
func (s *Supervisor) afterRun(ctx context.Context, u *unit, err error, words []string) time.Duration {
	began, readyAt := u.running, u.readyAt
	requested := u.stopping
	u.running, u.stopping, u.pid, u.adopted, u.stop = false, false, 0, false, nil
	u.readyAt = time.Time{}
	for _, c := range u.comps {
		c.open, c.ready = false, false
	}
	defer s.broadcast()
	if requested || ctx.Err() != nil {
		if err != nil && !errors.Is(err, ErrDetach) && !errors.Is(err, context.Canceled) {
			// Not gone in time, or not gone at all: whoever reads the log should know.
			s.event(u.spec.Name, "", "stopped", err.Error())
			s.log.Warn("unit did not end as asked", "unit", u.spec.Name, "err", err)
		}
		u.failures = 0
		if ctx.Err() == nil {
			u.restarts++
		}
		return 0
	}

	if err == nil {
		err = errors.New("ended although nobody asked it to")
	}
	if !readyAt.IsZero() && time.Since(readyAt) >= stableAfter(u.delay) {
		u.failures = 0
	}
	u.failures++
	u.restarts++
	u.delay = restartDelay(u.failures)
	u.retryAt = time.Now().Add(u.delay)
	u.tail = words
	if last := lastError(words); last != "" {
		err = fmt.Errorf("%w: %s", err, last)
	}
	if !began {
		if _, ok := u.runner.(Notifier); ok {
			u.failure = err
			s.setAll(u, Failed, err.Error())
			s.log.Error("unit cannot be started", "unit", u.spec.Name, "again", u.delay, "err", err)
			return u.delay
		}
	}
	u.lastExit = newExit(err)
	s.event(u.spec.Name, "", "exited", err.Error())
	s.setAll(u, Backoff, err.Error())
	s.log.Warn("unit restarting", "unit", u.spec.Name, "after", u.delay, "failures", u.failures, "err", err)
	return u.delay
}

// lastError is what a program of ours said last before it ended: a line that begins with "error: ".
func lastError(tail []string) string {
	for _, line := range slices.Backward(tail) {
		if text, ok := strings.CutPrefix(line, "error: "); ok {
			return text
		}
	}
	return ""
}

// watch asks one component of a running unit until ctx ends.
func (s *Supervisor) watch(ctx context.Context, c *comp) {
	from := time.Now() // since when it could have been ready
	misses := 0
	for {
		s.mu.Lock()
		if ctx.Err() != nil {
			s.mu.Unlock()
			return
		}
		changed := (<-chan struct{})(nil)
		if !c.open && !c.ready && len(c.unit.comps) > 1 { // the group starts it when it may
			if unmet := s.unmet(c); len(unmet) > 0 {
				s.set(c, Waiting, "")
				changed = s.changed
			} else if c.state == Waiting {
				s.set(c, Starting, "")
				from = time.Now()
			}
		}
		open, ready, p := c.open, c.ready, c.Ready
		if !open && !ready && c.Open.Kind != probe.None {
			p = c.Open
		}
		s.mu.Unlock()

		err := s.o.Probe(ctx, p)

		s.mu.Lock()
		if ctx.Err() != nil {
			s.mu.Unlock()
			return
		}
		var pause time.Duration
		switch {
		case err == nil && p == c.Ready:
			misses = 0
			pause = steady
			s.reached(c)
		case err == nil: // it is open; whether it is ready is asked at once
			c.open = true
			c.openAt = time.Now()
			s.event(c.unit.spec.Name, c.Name, "open", "")
			s.set(c, Starting, "")
			s.broadcast()
		case ready:
			pause = doubt
			if misses++; misses >= missesAllowed {
				c.ready = false
				from = time.Now()
				s.set(c, Degraded, err.Error())
				s.log.Warn("component degraded", "component", c.Name, "err", err)
			}
		default:
			c.reason = err.Error()
			pause = untilReady(p.Kind, c.state == Degraded, time.Since(from))
		}
		s.mu.Unlock()
		if pause == 0 {
			continue
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-changed:
		}
		t.Stop()
	}
}

// untilReady is the pause before a component that is not ready is asked again: a tenth of the time it has taken so
// far, within bounds, so that nobody waits much longer than necessary, and what takes long is not kept from its
// work by being asked. A question over TLS costs both sides together 1.2 ms of CPU, any other a tenth of that
// (2026-11): asked every 50 ms, 2.5 % of a core. The whole start waits for the API server's answer, so that is
// spent as long as a start usually takes.
func untilReady(kind probe.Kind, degraded bool, age time.Duration) time.Duration {
	longest := slowestYoung
	switch {
	case degraded:
		longest = slowestBroken
	case kind == probe.HTTPS && age >= young:
		longest = slowest
	}
	return min(max(age/10, quickest), longest)
}

// reached notes that c is ready. The caller holds mu.
func (s *Supervisor) reached(c *comp) {
	if c.ready {
		return
	}
	now := time.Now()
	if c.openAt.IsZero() {
		c.openAt = now
	}
	if c.rdyAt.IsZero() {
		c.rdyAt = now
	}
	c.open, c.ready = true, true
	s.set(c, Ready, "")
	s.log.Info("component ready", "component", c.Name, "after", now.Sub(c.unit.started))
	if !slices.ContainsFunc(c.unit.comps, func(c *comp) bool { return !c.ready }) {
		c.unit.readyAt = now
	}
}

// requestStop makes a unit's goroutine end for the given cause. The caller holds mu.
func (s *Supervisor) requestStop(u *unit, cause error) {
	if !u.stopping && !errors.Is(cause, ErrDetach) {
		u.stopping = true
		s.setAll(u, Stopping, cause.Error())
	}
	u.cancel(cause)
}

// stopItem is a unit to be stopped. The caller holds mu.
func (s *Supervisor) stopItem(u *unit, cause error) stopItem {
	return stopItem{unit: u.spec, stop: func() error {
		s.mu.Lock()
		s.requestStop(u, cause)
		s.mu.Unlock()
		limit := u.spec.StopTimeout
		if limit <= 0 {
			limit = component.DefaultStopTimeout
		}
		t := time.NewTimer(limit + stopGrace)
		defer t.Stop()
		select {
		case <-u.done:
			return nil
		case <-t.C:
			return fmt.Errorf("unit %s has not ended %s after it was asked to", u.spec.Name, limit+stopGrace)
		}
	}}
}

// Restart stops a unit and starts it again, or starts it at once if it was about to be; name is that of a
// unit or of one of its components. It does not wait.
func (s *Supervisor) Restart(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.units[name]
	if u == nil {
		if c := s.comps[name]; c != nil {
			u = c.unit
		}
	}
	if u == nil {
		return errs.Hint(errs.New(errs.NotFound, "there is no component %q on this node", name), "the components are listed by: k1s status")
	}
	s.event(u.spec.Name, "", "restart", errRestart.Error())
	if u.stop != nil && !u.stopping {
		u.stopping = true
		s.setAll(u, Stopping, errRestart.Error())
		u.stop(errRestart)
	} else if u.stop == nil {
		u.failures = 0
		select {
		case u.kick <- struct{}{}:
		default:
		}
	}
	return nil
}

// Wait blocks until the component has reached the level. When ctx ends first the error says what it was
// doing instead. A component that is not among the units is an error at once: see Await.
func (s *Supervisor) Wait(ctx context.Context, name string, level component.Level) error {
	return s.wait(ctx, name, level, false)
}

// Await is Wait also for a component that is not among the units: they may be without it for a while, as without the control plane
// while its datastore is moved. So it is what something that lives as long as the supervisor begins with.
func (s *Supervisor) Await(ctx context.Context, name string, level component.Level) error {
	return s.wait(ctx, name, level, true)
}

func (s *Supervisor) wait(ctx context.Context, name string, level component.Level, absent bool) error {
	for {
		s.mu.Lock()
		c, ch := s.comps[name], s.changed
		if c != nil && (c.ready || level == component.Open && c.open) {
			s.mu.Unlock()
			return nil
		}
		known := c != nil || slices.ContainsFunc(s.wanted, func(u component.Unit) bool {
			return slices.ContainsFunc(u.Components, func(c component.Component) bool { return c.Name == name })
		})
		ended := s.ended
		s.mu.Unlock()
		if !known && !absent {
			return errs.New(errs.NotFound, "there is no component %q on this node", name)
		}
		if ended {
			return errs.New(errs.NotRunning, "gave up waiting for %s to be %s: everything has been stopped", name, level)
		}
		select {
		case <-ctx.Done():
			return s.gaveUp(ctx, name, level)
		case <-ch:
		}
	}
}

func (s *Supervisor) gaveUp(ctx context.Context, name string, level component.Level) error {
	cause := context.Cause(ctx)
	kind := errs.Interrupted
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		kind = errs.Timeout
	}
	for _, st := range s.Snapshot() {
		if st.Component != name {
			continue
		}
		err := errs.New(kind, "gave up waiting for %s to be %s, it is %s: %w", name, level,
			strings.TrimSpace(string(st.State)+" "+st.Note()), cause)
		if st.Hint != "" {
			err = errs.Hint(err, "%s", st.Hint)
		}
		if s.o.LogPath != nil {
			err = errs.WithLog(err, s.o.LogPath(st.Unit))
		}
		return err
	}
	return errs.New(kind, "gave up waiting for %s to be %s: %w", name, level, cause)
}
