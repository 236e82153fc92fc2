// Package migration is how the state of a cluster moves from one datastore to another: a state machine, the file
// that keeps it, what the daemon and the program that copies tell each other, and how contents are compared. It
// touches nothing: what a phase needs done is asked of a World, which the daemon is. The copying itself is in
// internal/applets/migrate, because it speaks etcd's protocol.
package migration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"k1s.io/k1s/internal/errs"
)

// Kind of a move.
type Kind string

// The kinds.
const (
	Migrate  Kind = "migrate"
	Rollback Kind = "rollback" // back to the datastore of before, as it was left
)

// Phase of a move, in the order it goes through them.
type Phase string

// The phases. Until Switching is over everything is as before, and a move that breaks off is begun again from the
// start; from then on it only goes forward.
const (
	Copying   Phase = "copying"   // while the API server serves from the old datastore
	Pausing   Phase = "pausing"   // the control plane is stopped
	Finishing Phase = "finishing" // what was written meanwhile is copied, and everything compared
	Switching Phase = "switching" // the configuration is changed
	Starting  Phase = "starting"  // the control plane starts on the new datastore
	Done      Phase = "done"
	Failed    Phase = "failed" // the cluster is on the old one
)

// Place is a datastore as it may be shown.
type Place struct {
	Engine   string `json:"engine"`
	Endpoint string `json:"endpoint"` // without user, password and parameters
	// Identity tells apart what is configured, passwords included, without telling it.
	Identity string `json:"identity"`
}

func (p Place) String() string {
	if p.Endpoint == "" || p.Endpoint == p.Engine {
		return p.Engine
	}
	return p.Endpoint
}

// State is one move, the last there was. The zero State: there never was one.
type State struct {
	// ID marks the target, so that only the same move goes on with what it has left there.
	ID      string    `json:"id,omitempty"`
	Marked  bool      `json:"marked,omitempty"` // the target may bear it
	Kind    Kind      `json:"kind,omitempty"`
	From    Place     `json:"from,omitzero"`
	To      Place     `json:"to,omitzero"`
	Phase   Phase     `json:"phase,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`
	Error   string    `json:"error,omitempty"`
	Hint    string    `json:"hint,omitempty"`
	Result  *Result   `json:"result,omitempty"`
	PausedS float64   `json:"pausedSeconds,omitempty"` // how long the API did not serve
	// Previous is where a rollback would go; its configuration is kept in a file of its own, by the ID of the move that
	// left it.
	Previous   *Place `json:"previous,omitempty"`
	PreviousID string `json:"previousID,omitempty"`
}

// Active tells that it is on its way.
func (s State) Active() bool { return s.Phase != "" && s.Phase != Done && s.Phase != Failed }

// Begin is the state in which a move has begun. A migration to where the last one broke off is the same one.
func (s State) Begin(kind Kind, from, to Place, now time.Time, newID func() string) (State, error) {
	if s.Active() {
		return s, errs.Hint(errs.New(errs.Exists, "a %s from %s to %s is on its way, its phase is %q", s.Kind, s.From, s.To, s.Phase), "watch it with: k1s datastore")
	}
	if from.Identity == to.Identity {
		return s, errs.New(errs.Invalid, "the state is in %s already", to)
	}
	next := State{Kind: kind, From: from, To: to, Since: now, Phase: Copying, Previous: s.Previous, PreviousID: s.PreviousID}
	switch {
	case kind == Rollback:
		if s.Previous == nil {
			return s, errs.Hint(errs.New(errs.NotFound, "there is nothing to roll back to"), "the state is where it always was, or was rolled back already; see: k1s datastore")
		}
		next.Phase, next.ID = Pausing, newID()
	case s.Phase == Failed && s.Kind == Migrate && s.Marked && s.To.Identity == to.Identity && s.From.Identity == from.Identity:
		next.ID, next.Marked = s.ID, true
	default:
		next.ID = newID()
	}
	return next, nil
}

// Recover is the state after the end of the process at any point, told by what the configuration names now.
func (s State) Recover(now string, at time.Time) State {
	if !s.Active() {
		return s
	}
	s.Marked = true // nobody knows
	committed := s.Phase == Switching || s.Phase == Starting
	switch {
	case committed && now == s.To.Identity:
		s.Phase = Starting
	case now == s.From.Identity:
		s = s.failed(errors.New("k1s ended while it was "+string(s.Phase)), at)
		s.Hint = "nothing is lost, the state is where it was; run the command again: it goes on with what is copied already"
	default:
		s = s.failed(fmt.Errorf("k1s ended while it was %s, and the configuration was changed since", s.Phase), at)
	}
	return s
}

func (s State) failed(err error, at time.Time) State {
	s.Phase, s.Error, s.Ended = Failed, err.Error(), at
	s.Hint, _ = errs.HintOf(err)
	return s
}

// NotServed is an error of World.Start that came before the API could have taken a write.
type NotServed struct{ Err error }

func (e NotServed) Error() string { return e.Err.Error() }
func (e NotServed) Unwrap() error { return e.Err }

// World is where a move happens.
type World interface {
	// Keep puts the state on the disk, so that it survives a power cut.
	Keep(State) error
	// Copy copies while the API serves, until little is left. marked tells, also with an error, that the target bears the
	// move's ID.
	Copy(context.Context) (marked bool, err error)
	// Pause stops the control plane; when it returns nobody writes to the old datastore.
	Pause(context.Context) error
	// Finish copies the rest, compares everything, and closes the target: what it holds survives a power cut.
	Finish(context.Context) (Result, error)
	// Switch changes the configuration of the next start, at once and for good; after an error it is unchanged.
	Switch() error
	// Unswitch takes that back.
	Unswitch() error
	// Start starts the control plane as configured now and checks that it serves what it served before. A
	// NotServed means that nobody can have written yet.
	Start(context.Context) error
	// Resume starts the control plane on the old datastore again.
	Resume(context.Context) error
	Now() time.Time
}

// Run goes on with a move to its end, and returns its last state, which has been kept. After an error the cluster is
// on the old datastore, unless the phase is Starting: then the new one has the state, and the API does not serve yet.
func Run(ctx context.Context, w World, s State) (State, error) {
	var paused time.Time
	for {
		if err := w.Keep(s); err != nil {
			return giveUp(ctx, w, s, fmt.Errorf("keeping how far the move is: %w", err))
		}
		var err error
		switch s.Phase {
		case Copying:
			var marked bool
			marked, err = w.Copy(ctx)
			s.Marked = s.Marked || marked
		case Pausing:
			paused = w.Now()
			err = w.Pause(ctx)
		case Finishing:
			var r Result
			if r, err = w.Finish(ctx); err == nil {
				s.Result = &r
			}
		case Switching:
			err = w.Switch()
		case Starting:
			err = w.Start(ctx)
			var unserved NotServed
			if err != nil && !errors.As(err, &unserved) {
				s.Error = err.Error()
				s.Hint, _ = errs.HintOf(err)
				return s, errors.Join(err, w.Keep(s))
			}
			if !paused.IsZero() {
				s.PausedS = w.Now().Sub(paused).Round(time.Millisecond).Seconds()
			}
		default:
			return s, nil
		}
		if err != nil {
			return giveUp(ctx, w, s, err)
		}
		s = s.Advance(w.Now())
	}
}

// Advance is the state after the deed of its phase is done.
func (s State) Advance(now time.Time) State {
	switch s.Phase {
	case Copying:
		s.Phase = Pausing
	case Pausing:
		s.Phase = Finishing
	case Finishing:
		s.Phase = Switching
	case Switching:
		s.Phase = Starting
	case Starting:
		s.Phase, s.Ended, s.Error, s.Hint = Done, now, "", ""
		if s.Previous, s.PreviousID = nil, ""; s.Kind == Migrate {
			from := s.From
			s.Previous, s.PreviousID = &from, s.ID
		}
	}
	return s
}

// giveUp leads back to the old datastore.
func giveUp(ctx context.Context, w World, s State, err error) (State, error) {
	if s.Phase == Starting {
		if back := w.Unswitch(); back != nil {
			// The configuration names the new one, and it has everything: that is where the next start goes.
			return s, errors.Join(err, back)
		}
	}
	failed := s.failed(err, w.Now())
	if s.Phase != Copying {
		// Also when ctx has ended: whoever ends the node stops what this starts.
		if again := w.Resume(context.WithoutCancel(ctx)); again != nil {
			err = errors.Join(err, fmt.Errorf("starting the control plane again: %w", again))
		}
	}
	return failed, errors.Join(err, w.Keep(failed))
}

// Marshal is the state as its file keeps it.
func (s State) Marshal() []byte {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		panic(err) // plain data
	}
	return append(b, '\n')
}

// Unmarshal reads what Marshal wrote.
func Unmarshal(b []byte) (State, error) {
	var s State
	if err := json.Unmarshal(b, &s); err != nil {
		return State{}, fmt.Errorf("it is not what k1s wrote: %w", err)
	}
	return s, nil
}
