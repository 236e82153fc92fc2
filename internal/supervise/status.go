package supervise

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/platform"
)

// State is what a component is doing.
type State string

// The states.
const (
	Waiting  State = "waiting"  // for components it needs
	Starting State = "starting" // it runs, or is about to, and is not ready yet
	Ready    State = "ready"    // it answers
	Degraded State = "degraded" // it was ready, it runs, and does not answer any more
	Stopping State = "stopping" // it was asked to end
	Stopped  State = "stopped"  // it has ended as it should
	Backoff  State = "backoff"  // it has ended by itself and is started again at RetryAt
	Failed   State = "failed"   // it cannot be started, which is tried again at RetryAt
)

// Status is what is known about one component. It is a wire type.
type Status struct {
	Component string    `json:"component"`
	Unit      string    `json:"unit"` // the process it is part of
	State     State     `json:"state"`
	Since     time.Time `json:"since"` // when it entered State
	PID       int       `json:"pid,omitempty"`
	UID       int       `json:"uid,omitempty"`     // as whom it runs, or would; 0 is root
	Adopted   bool      `json:"adopted,omitempty"` // an earlier daemon has started it
	Restarts  int       `json:"restarts"`          // of the unit, by this daemon
	// WaitsFor are the needs that are not met, while waiting.
	WaitsFor []WaitsFor `json:"waitsFor,omitempty"`
	// Reason is the last answer of the probe, or why it ended; Hint what to do about it, where that is known.
	Reason   string     `json:"reason,omitempty"`
	Hint     string     `json:"hint,omitempty"`
	RetryAt  *time.Time `json:"retryAt,omitempty"`
	LastExit *Exit      `json:"lastExit,omitempty"` // of the unit
	// StartedAt, OpenAt and ReadyAt are when the present run got that far.
	StartedAt *time.Time `json:"startedAt,omitempty"`
	OpenAt    *time.Time `json:"openAt,omitempty"`
	ReadyAt   *time.Time `json:"readyAt,omitempty"`
}

// WaitsFor is a need that is not met, and what is known about why.
type WaitsFor struct {
	Component string          `json:"component"`
	Level     component.Level `json:"level"`
	Reason    string          `json:"reason,omitempty"`
}

// Exit is the last end of a unit that nobody asked for.
type Exit struct {
	Time   time.Time `json:"time"`
	Code   int       `json:"code"`             // exit status; -1 where there is none
	Signal string    `json:"signal,omitempty"` // what ended it, if it was a signal
	Reason string    `json:"reason"`           // in words
}

func newExit(err error) *Exit {
	var e *platform.ExitError
	if errors.As(err, &e) {
		return &Exit{Time: e.Time, Code: e.Code, Signal: e.Signal, Reason: err.Error()}
	}
	return &Exit{Time: time.Now(), Code: -1, Reason: err.Error()}
}

// Note is the rest of the sentence that State begins, for a table; "" when there is nothing to say.
func (st Status) Note() string {
	switch st.State {
	case Waiting:
		var parts []string
		for _, w := range st.WaitsFor {
			what := "for " + w.Component + " to be " + string(cmp.Or(w.Level, component.Ready))
			if w.Reason != "" {
				what += ": " + w.Reason
			}
			parts = append(parts, what)
		}
		return cmp.Or(strings.Join(parts, "; "), st.Reason)
	case Backoff, Failed:
		if st.RetryAt == nil {
			return st.Reason
		}
		in := max(time.Until(*st.RetryAt), 0).Round(100 * time.Millisecond)
		return fmt.Sprintf("%s; next try in %s", st.Reason, in)
	default:
		return st.Reason
	}
}

// Snapshot tells about every component, in the order of the plan. Those that are wanted and wait for others to
// be out of the way are there too.
func (s *Supervisor) Snapshot() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Status
	known := map[string]bool{}
	for _, spec := range s.wanted {
		known[spec.Name] = true
		all = append(all, s.statusOf(spec)...)
	}
	for _, name := range s.order { // those that are not wanted any more
		if !known[name] {
			all = append(all, s.statusOf(s.units[name].spec)...)
		}
	}
	return all
}

// statusOf tells about the components of a unit that runs, or is wanted. The caller holds mu.
func (s *Supervisor) statusOf(spec component.Unit) []Status {
	var next *unit
	if i := slices.IndexFunc(s.coming, func(u *unit) bool { return u.spec.Name == spec.Name }); i >= 0 {
		next = s.coming[i]
	}
	if u := s.units[spec.Name]; u != nil && (next == nil || !u.ended()) {
		return s.statusOfUnit(u)
	}
	return s.statusOfComing(spec, next)
}

// ended tells that its goroutine has.
func (u *unit) ended() bool {
	select {
	case <-u.done:
		return true
	default:
		return false
	}
}

// statusOfComing tells about a unit that is not started yet; u is nil while nothing has been done for it. The
// caller holds mu.
func (s *Supervisor) statusOfComing(spec component.Unit, u *unit) []Status {
	var all []Status
	for _, c := range spec.Components {
		st := Status{Component: c.Name, Unit: spec.Name, State: Waiting, Since: s.since, UID: uid(spec)}
		switch {
		case u == nil:
		case u.attach:
			st.Reason = "to be taken over: it runs already"
		case u.replaces:
			st.State, st.Reason = Stopping, "its old process, started with other settings, is being stopped"
		default:
			st.Reason = "for old processes to be stopped"
		}
		all = append(all, st)
	}
	return all
}

// uid is as whom a unit runs, 0 for root.
func uid(u component.Unit) int {
	if u.User == nil {
		return 0
	}
	return u.User.UID
}

// statusOfUnit tells about one that the supervisor keeps. The caller holds mu.
func (s *Supervisor) statusOfUnit(u *unit) []Status {
	var all []Status
	for _, c := range u.comps {
		st := Status{
			Component: c.Name, Unit: u.spec.Name, State: c.state, Since: c.since, PID: u.pid, UID: uid(u.spec), Adopted: u.adopted,
			Restarts: u.restarts, Reason: c.reason, OpenAt: moment(c.openAt), ReadyAt: moment(c.rdyAt),
		}
		if u.lastExit != nil {
			e := *u.lastExit
			st.LastExit = &e
		}
		if u.running {
			st.StartedAt = moment(u.started)
		}
		switch c.state {
		case Waiting:
			st.WaitsFor = s.unmet(c)
		case Backoff:
			st.RetryAt = moment(u.retryAt)
		case Failed:
			st.RetryAt = moment(u.retryAt)
			st.Hint, _ = errs.HintOf(u.failure)
		}
		all = append(all, st)
	}
	return all
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// The codes of problems.
const (
	CodeCrashLoop  = "crash-loop"
	CodeUnitFailed = "unit-failed"
	CodeDegraded   = "component-degraded"
)

// Problem is something a person should look at. It is a wire type; the daemon adds it to the node's health.
type Problem struct {
	Code      string `json:"code"`
	Unit      string `json:"unit"`
	Component string `json:"component,omitempty"`
	Text      string `json:"text"`
	Remedy    string `json:"remedy,omitempty"`
	Log       string `json:"log,omitempty"` // file that tells more
	// Tail are the last lines the unit wrote before it ended.
	Tail []string `json:"tail,omitempty"`
}

// Problems tells what is wrong now, in the order of the plan.
func (s *Supervisor) Problems() []Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ps []Problem
	for _, name := range s.order {
		u := s.units[name]
		log := ""
		if s.o.LogPath != nil {
			log = s.o.LogPath(name)
		}
		recovered := !u.readyAt.IsZero() && time.Since(u.readyAt) >= stableAfter(u.delay)
		switch {
		case u.failure != nil:
			hint, _ := errs.HintOf(u.failure)
			ps = append(ps, Problem{Code: CodeUnitFailed, Unit: name, Text: u.failure.Error(), Remedy: hint, Log: log})
		case u.failures >= loopAfter && !recovered && u.lastExit != nil:
			ps = append(ps, Problem{
				Code: CodeCrashLoop, Unit: name,
				Text:   fmt.Sprintf("%s has ended %d times in a row; the last time it %s", name, u.failures, u.lastExit.Reason),
				Remedy: "read the last lines of its log: k1s logs " + name,
				Log:    log, Tail: slices.Clone(u.tail),
			})
		}
		for _, c := range u.comps {
			if c.state == Degraded {
				ps = append(ps, Problem{
					Code: CodeDegraded, Unit: name, Component: c.Name,
					Text:   fmt.Sprintf("%s runs but has stopped answering: %s", c.Name, c.reason),
					Remedy: "read the last lines of its log: k1s logs " + name, Log: log,
				})
			}
		}
	}
	return ps
}

// Event is something that happened. It is a wire type.
type Event struct {
	Seq       uint64    `json:"seq"` // counts from 1; a gap means that events were missed
	Time      time.Time `json:"time"`
	Unit      string    `json:"unit"`
	Component string    `json:"component,omitempty"` // "" when it is about the whole unit
	// What is a State the component has entered, or one of: started, adopted, open, exited, restart, detached.
	What   string `json:"what"`
	Reason string `json:"reason,omitempty"`
}

// ring keeps the newest events.
type ring struct {
	max    int
	events []Event // as long as max once it is full
	next   int     // the oldest, once it is full
	seq    uint64
}

func (r *ring) add(e Event) Event {
	r.seq++
	e.Seq = r.seq
	if len(r.events) < r.max {
		r.events = append(r.events, e)
		return e
	}
	r.events[r.next] = e
	r.next = (r.next + 1) % r.max
	return e
}

func (r *ring) all() []Event { return append(slices.Clone(r.events[r.next:]), r.events[:r.next]...) }

// event notes and publishes. The caller holds mu.
func (s *Supervisor) event(unit, component, what, reason string) {
	e := s.ring.add(Event{Time: time.Now(), Unit: unit, Component: component, What: what, Reason: reason})
	for l := range s.listeners {
		select {
		case l.c <- e:
		default:
			l.dropped.Add(1)
		}
	}
}

// Events returns the newest events, oldest first.
func (s *Supervisor) Events() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ring.all()
}

// Subscription delivers events as they happen.
type Subscription struct {
	// C is closed by Close only.
	C       <-chan Event
	c       chan Event
	dropped atomic.Uint64
	s       *Supervisor
}

// Subscribe delivers events from now on. The supervisor never waits for a reader: what does not fit into
// the buffer is dropped and counted.
func (s *Supervisor) Subscribe(buffer int) *Subscription {
	c := make(chan Event, max(buffer, 1))
	l := &Subscription{C: c, c: c, s: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners[l] = struct{}{}
	return l
}

// Dropped is how many events did not fit.
func (l *Subscription) Dropped() uint64 { return l.dropped.Load() }

// Close ends the subscription. It may be called more than once.
func (l *Subscription) Close() {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if _, ok := l.s.listeners[l]; ok {
		delete(l.s.listeners, l)
		close(l.c)
	}
}
