// Package migration is how the state of a cluster moves from one datastore to another: a state machine, the file
// that keeps it, what the daemon and the program that copies tell each other, and how contents are compared. It
// touches nothing: what a phase needs done is asked of a World, which the daemon is. The copying itself is in
// internal/applets/migrate, because it speaks etcd's protocol.
package migration

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/record"
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
// start; from then on it only goes forward. With several servers that point is in the middle of Switching: see follow.go.
const (
	Copying   Phase = "copying"   // while the API server serves from the old datastore
	Fencing   Phase = "fencing"   // the other servers stop serving from the old datastore; left out where there are none
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
	// Servers are the others of a cluster of several, all of which go with the state; this one leads.
	Servers []string `json:"servers,omitempty"`
	// Attempt tells what the servers agree about from what they agreed about before, also where ID is the same.
	Attempt string `json:"attempt,omitempty"`
	// Fence: there may be a fence in the old datastore.
	Fence bool `json:"fence,omitempty"`
	// Leader is the server that led it, where that was another one.
	Leader string `json:"leader,omitempty"`
}

// Together is the state in which several servers have begun: this one, which leads, and the others.
func (s State) Together(others []string, attempt string) State {
	if len(others) == 0 {
		return s
	}
	s.Servers, s.Attempt = others, attempt
	if s.Phase == Pausing { // a rollback copies nothing
		s.Phase = Fencing
	}
	return s
}

// doubtful tells that others may know already that the new datastore has the state: only they, or what they agree by, can tell.
func (s State) doubtful() bool {
	return len(s.Servers) > 0 && (s.Phase == Switching || s.Phase == Starting)
}

// Active tells that it is on its way.
func (s State) Active() bool { return s.Phase != "" && s.Phase != Done && s.Phase != Failed }

// Begin is the state in which a move has begun. A migration to where the last one broke off is the same one.
func (s State) Begin(kind Kind, from, to Place, now time.Time, newID func() string) (State, error) {
	if s.Active() {
		return s, errs.Hint(errs.New(errs.Exists, "a %s from %s to %s is on its way, its phase is %q", s.Kind, s.From, s.To, s.Phase), "watch it with: k1s datastore")
	}
	if kind == Rollback && s.Previous == nil {
		err := errs.New(errs.NotFound, "there is nothing to roll back to")
		if s.Leader != "" {
			return s, errs.Hint(err, "the state was moved by %s: run the command there", s.Leader)
		}
		return s, errs.Hint(err, "the state is where it always was, or was rolled back already; see: k1s datastore")
	}
	if from.Identity == to.Identity {
		return s, errs.New(errs.Invalid, "the state is in %s already", to)
	}
	next := State{Kind: kind, From: from, To: to, Since: now, Phase: Copying, Previous: s.Previous, PreviousID: s.PreviousID}
	switch {
	case kind == Rollback:
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
	case s.doubtful() && now != s.To.Identity:
		s.Phase = Switching // whatever the configuration says: what was decided is found out
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

// InDoubt is an error of World.Switch after which it is not known whether the state has moved: it is tried again.
type InDoubt struct{ Err error }

func (e InDoubt) Error() string { return e.Err.Error() }
func (e InDoubt) Unwrap() error { return e.Err }

// World is where a move happens.
type World interface {
	// Keep puts the state on the disk, so that it survives a power cut.
	Keep(State) error
	// Copy copies while the API serves, until little is left. marked tells, also with an error, that the target bears the
	// move's ID.
	Copy(context.Context) (marked bool, err error)
	// Fence stops the API servers of all other servers, so that none of them serves again before it has learned what was
	// decided. Who became a server meanwhile is an error.
	Fence(context.Context) error
	// Pause stops the control plane; when it returns nobody writes to the old datastore.
	Pause(context.Context) error
	// Finish copies the rest, compares everything, and closes the target: what it holds survives a power cut.
	Finish(context.Context) (Result, error)
	// Switch changes the configuration of the next start, at once and for good; after an error it is unchanged. With several
	// servers it lets them agree first: an InDoubt says that it is not known whether they have, any other error that they have
	// agreed to go back.
	Switch(context.Context) error
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
	var before State
	for {
		if err := w.Keep(s); err != nil {
			err = fmt.Errorf("keeping how far the move is: %w", err)
			switch {
			case s.Phase == Done: // it serves from the new one, and only that is not kept
				return before, err
			case s.doubtful():
				return s, err
			}
			return giveUp(ctx, w, s, err)
		}
		var err error
		switch s.Phase {
		case Copying:
			var marked bool
			marked, err = w.Copy(ctx)
			s.Marked = s.Marked || marked
		case Fencing:
			err = w.Fence(ctx)
		case Pausing:
			paused = w.Now()
			err = w.Pause(ctx)
		case Finishing:
			var r Result
			if r, err = w.Finish(ctx); err == nil {
				s.Result = &r
			}
		case Switching:
			err = w.Switch(ctx)
			var doubt InDoubt
			if errors.As(err, &doubt) {
				return again(w, s, err)
			}
		case Starting:
			err = w.Start(ctx)
			var unserved NotServed
			if err != nil && (len(s.Servers) > 0 || !errors.As(err, &unserved)) {
				return again(w, s, err)
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
		before, s = s, s.Advance(w.Now())
	}
}

// again ends a try after which the phase stays what it is.
func again(w World, s State, err error) (State, error) {
	s.Error = err.Error()
	s.Hint, _ = errs.HintOf(err)
	return s, errors.Join(err, w.Keep(s))
}

// Advance is the state after the deed of its phase is done.
func (s State) Advance(now time.Time) State {
	switch s.Phase {
	case Copying:
		if s.Phase = Pausing; len(s.Servers) > 0 {
			s.Phase = Fencing
		}
	case Fencing:
		s.Phase, s.Fence = Pausing, true
	case Pausing:
		s.Phase = Finishing
	case Finishing:
		s.Phase = Switching
	case Switching:
		s.Phase = Starting
	case Starting:
		s.Phase, s.Ended, s.Error, s.Hint, s.Fence = Done, now, "", "", false
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
	return record.Indented(s)
}

// Unmarshal reads what Marshal wrote.
func Unmarshal(b []byte) (State, error) {
	return record.Read[State](b)
}
