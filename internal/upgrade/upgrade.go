// Package upgrade is how a node goes over to another k1s: what is allowed, when the new one counts as good, and a state machine with the
// file that keeps it. It touches nothing: what a phase needs done is asked of a World, which the daemon is. The file that the
// init system starts is the old program until the new one has proved itself, and the new one from then on.
package upgrade

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/record"
)

// Phase of an upgrade, in the order it goes through them.
type Phase string

// The phases. Until Placing the machine starts the old program, whatever is killed.
const (
	Staging Phase = "staging" // the new file is copied beside the old one, and asked what it is
	Trying  Phase = "trying"  // the new program runs the node, from beside
	Placing Phase = "placing" // it takes the old one's place; that is kept
	Done    Phase = "done"
	Failed  Phase = "failed" // the node runs the old program
)

// Process is one process for ever, as platform.ProcessID has it.
type Process struct {
	PID       int    `json:"pid"`
	Start     uint64 `json:"start"`
	Boot      string `json:"boot"`
	Namespace string `json:"namespace,omitempty"`
	Exe       string `json:"exe,omitempty"`
}

// State is one upgrade, the last there was. The zero State: there never was one.
type State struct {
	Phase Phase   `json:"phase,omitempty"`
	From  Program `json:"from,omitzero"`
	To    Program `json:"to,omitzero"`
	// File is what the machine starts. While it is tried the new program is in Staged(), and later the old one is in Kept().
	File string `json:"file,omitempty"`
	// Timeout is how long the new program may take until the node is well, in nanoseconds.
	Timeout time.Duration `json:"timeout,omitempty"`
	Since   time.Time     `json:"since,omitzero"`
	Ended   time.Time     `json:"ended,omitzero"`
	Error   string        `json:"error,omitempty"`
	Hint    string        `json:"hint,omitempty"`
	// Order is the key of the order of an upgrade of the cluster that it follows, see package rollout; "" for none.
	Order string `json:"order,omitempty"`
	// Guard is the process that tries it.
	Guard Process `json:"guard,omitzero"`
}

// Staged is the file of the new program until it has proved itself, and Kept that of the old one afterwards.
func (s State) Staged() string { return s.File + ".new" }

// Kept is the file of the old program after the upgrade.
func (s State) Kept() string { return s.File + ".old" }

// Active tells that it is on its way.
func (s State) Active() bool { return s.Phase != "" && s.Phase != Done && s.Phase != Failed }

// Begin is the state in which an upgrade has begun.
func (s State) Begin(next State) (State, error) {
	if s.Active() {
		return s, errs.Hint(errs.New(errs.Exists, "an upgrade to %s is on its way, its phase is %q", s.To, s.Phase), "wait for its end: k1s upgrade --status")
	}
	next.Phase = Staging
	return next, nil
}

// Fail ends it with the old program.
func (s State) Fail(err error, at time.Time) State {
	s.Phase, s.Error, s.Ended, s.Guard = Failed, err.Error(), at, Process{}
	s.Hint, _ = errs.HintOf(err)
	return s
}

func (s State) done(at time.Time) State {
	s.Phase, s.Error, s.Hint, s.Ended, s.Guard = Done, "", "", at, Process{}
	return s
}

// World is where an upgrade happens.
type World interface {
	// Keep puts the state on the disk, so that it survives a power cut.
	Keep(State) error
	// Try lets the staged program run the node in place of this one. It returns nil when it has been well for Steady, and leaves it running;
	// after an error it has ended it, and what that had started runs on.
	Try(context.Context, State) error
	// Place puts the staged program in the old one's place, and keeps that. At no moment is there nothing in the place.
	Place(State) error
	// Placed tells that the new program is in the place.
	Placed(State) (bool, error)
	// Discard removes what is staged; nothing may be.
	Discard(State) error
	Now() time.Time
}

// Run goes on with an upgrade whose phase is Trying to its end, and returns its last state. Afterwards the program in the place is to run the node:
// the new one after Done, else the old one.
func Run(ctx context.Context, w World, s State) (State, error) {
	if err := w.Keep(s); err != nil {
		return giveUp(w, s, fmt.Errorf("keeping how far the upgrade is: %w", err))
	}
	if err := w.Try(ctx, s); err != nil {
		return giveUp(w, s, err)
	}
	s.Phase = Placing
	if err := w.Keep(s); err != nil {
		return giveUp(w, s, fmt.Errorf("keeping how far the upgrade is: %w", err))
	}
	if err := w.Place(s); err != nil {
		// It may be there all the same.
		if placed, look := w.Placed(s); look != nil || !placed {
			return giveUp(w, s, errors.Join(fmt.Errorf("putting %s in its place: %w", s.To, err), look))
		}
	}
	s = s.done(w.Now())
	return s, w.Keep(s)
}

func giveUp(w World, s State, err error) (State, error) {
	s = s.Fail(err, w.Now())
	return s, errors.Join(w.Discard(s), w.Keep(s))
}

// Recover is what is done at the start of a program that is not the one that is tried, after the end of everything at any point.
func Recover(w World, s State) (State, error) {
	if !s.Active() {
		return s, nil
	}
	if s.Phase == Placing {
		placed, err := w.Placed(s)
		if err != nil {
			return s, fmt.Errorf("looking how far the upgrade to %s has come: %w", s.To, err)
		}
		if placed {
			s = s.done(w.Now())
			return s, w.Keep(s)
		}
	}
	return giveUp(w, s, errs.Hint(fmt.Errorf("k1s was stopped or killed while it was %s", s.Phase), "nothing has changed; run the command again"))
}

// Marshal is the state as its file keeps it.
func (s State) Marshal() []byte {
	return record.Indented(s)
}

// Unmarshal reads what Marshal wrote.
func Unmarshal(b []byte) (State, error) {
	return record.Read[State](b)
}
