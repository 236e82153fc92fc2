// Package restore is how a node goes over to a state that was made beside the present one: a state machine, and the file that
// keeps it. It touches nothing: what a phase needs done is asked of a World, which the daemon is. Two things are restored
// so, a snapshot of etcd and a backup of everything; what they are restored from is the type parameter.
package restore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/record"
)

// Phase of a restore, in the order it goes through them.
type Phase string

// The phases. Until Switching begins everything is as before, and a restore that breaks off is not done; from then on it
// only goes forward, also at the next start.
const (
	Staging   Phase = "staging"   // the snapshot is fetched, checked and made a data directory, beside the present one
	Pausing   Phase = "pausing"   // the control plane is stopped
	Finishing Phase = "finishing" // the new data directory is brought past the revision of the present one
	Switching Phase = "switching" // the directories change places
	Starting  Phase = "starting"  // the control plane starts on the new one
	// Reverting is after one that did not start: the directories change places again.
	Reverting Phase = "reverting"
	Done      Phase = "done"
	Failed    Phase = "failed" // the cluster has the state it had
)

// Source is what a restore is made from.
type Source interface {
	// Title names it for a person.
	Title() string
}

// State is one restore, the last there was. The zero State: there never was one.
type State[S Source] struct {
	ID    string `json:"id,omitempty"`
	From  S      `json:"from,omitzero"`
	Phase Phase  `json:"phase,omitempty"`
	// Archive is the directory the present data goes to, "" where there is none.
	Archive string `json:"archive,omitempty"`
	// Old names what is to be put there, where that is not one directory: what there was when the restore began.
	Old []string `json:"old,omitempty"`
	// Staged is where the new data is made.
	Staged string    `json:"staged,omitempty"`
	Since  time.Time `json:"since,omitzero"`
	Ended  time.Time `json:"ended,omitzero"`
	Error  string    `json:"error,omitempty"`
	Hint   string    `json:"hint,omitempty"`
	// Revision is the first that the restored datastore gives out.
	Revision int64 `json:"revision,omitempty"`
	// PausedS is how long the API did not serve, in seconds.
	PausedS float64 `json:"pausedSeconds,omitempty"`
}

// Active tells that it is on its way.
func (r State[S]) Active() bool { return r.Phase != "" && r.Phase != Done && r.Phase != Failed }

// Committed tells that breaking it off does not undo it.
func (r State[S]) Committed() bool {
	return r.Phase == Switching || r.Phase == Starting || r.Phase == Reverting
}

// Begin is the state in which a restore has begun.
func (r State[S]) Begin(next State[S]) (State[S], error) {
	if r.Active() {
		return r, errs.New(errs.Exists, "a restore of %s is on its way, its phase is %q", r.From.Title(), r.Phase)
	}
	next.Phase = Staging
	return next, nil
}

// Recover is what is done before anything is started, after the end of the process at any point.
func Recover[S Source](w World[S], r State[S]) (State[S], error) {
	var err error
	switch {
	case !r.Active() || r.Phase == Starting:
		return r, nil
	case r.Phase == Switching:
		if err = w.Switch(); err != nil {
			return r, fmt.Errorf("going on with the restore of %s: %w", r.From.Title(), err)
		}
		r = r.advance(w.Now())
	case r.Phase == Reverting:
		if err = w.Unswitch(); err != nil {
			return r, fmt.Errorf("taking back the restore of %s: %w", r.From.Title(), err)
		}
		r = r.failed(errors.New(r.Error), w.Now())
		err = w.Discard()
	default:
		r = r.failed(fmt.Errorf("k1s ended while it was %s", r.Phase), w.Now())
		r.Hint = "nothing has changed; run the command again"
		err = w.Discard()
	}
	return r, errors.Join(err, w.Keep(r))
}

func (r State[S]) failed(err error, at time.Time) State[S] {
	r.Phase, r.Error, r.Ended, r.Revision = Failed, err.Error(), at, 0
	r.Hint, _ = errs.HintOf(err)
	return r
}

// NotServed is an error of World.Start that came before the API could have taken a write.
type NotServed struct{ Err error }

func (e NotServed) Error() string { return e.Err.Error() }
func (e NotServed) Unwrap() error { return e.Err }

// World is where a restore happens.
type World[S Source] interface {
	// Keep puts the state on the disk, so that it survives a power cut.
	Keep(State[S]) error
	// Stage makes the data directory, and tells what it was made from.
	Stage(context.Context) (S, error)
	// Pause stops the control plane; when it returns nobody writes.
	Pause(context.Context) error
	// Finish brings the staged data directory past every revision that somebody may know, and on the disk.
	Finish(context.Context) (revision int64, err error)
	// Switch lets the directories change places. It may be called again after it broke off anywhere.
	Switch() error
	// Unswitch takes that back.
	Unswitch() error
	// Start starts the control plane. A NotServed means that nobody can have seen anything of it.
	Start(context.Context) error
	// Resume starts the control plane on the old data again.
	Resume(context.Context) error
	// Discard removes the staged data directory.
	Discard() error
	Now() time.Time
}

// Run goes on with a restore to its end and returns its last state, which has been kept. After an error the cluster has the
// state it had, unless the phase is still Switching or Starting: then the restore is done when it starts.
func Run[S Source](ctx context.Context, w World[S], r State[S]) (State[S], error) {
	var paused time.Time
	for {
		if err := w.Keep(r); err != nil {
			if r.Committed() { // what is on the disk may be either
				return r, fmt.Errorf("keeping how far the restore is: %w", err)
			}
			return giveUp(ctx, w, r, fmt.Errorf("keeping how far the restore is: %w", err))
		}
		var err error
		switch r.Phase {
		case Staging:
			r.From, err = w.Stage(ctx)
		case Pausing:
			paused = w.Now()
			err = w.Pause(ctx)
		case Finishing:
			r.Revision, err = w.Finish(ctx)
		case Switching:
			if err = w.Switch(); err != nil {
				return r, errors.Join(err, w.Keep(r.noted(err)))
			}
		case Starting:
			err = w.Start(ctx)
			var unserved NotServed
			if err != nil && (!errors.As(err, &unserved) || r.Archive == "") {
				return r, errors.Join(err, w.Keep(r.noted(err)))
			}
			if !paused.IsZero() {
				r.PausedS = w.Now().Sub(paused).Round(time.Millisecond).Seconds()
			}
		default:
			return r, nil
		}
		if err != nil {
			return giveUp(ctx, w, r, err)
		}
		r = r.advance(w.Now())
	}
}

func (r State[S]) noted(err error) State[S] {
	r.Error = err.Error()
	r.Hint, _ = errs.HintOf(err)
	return r
}

func (r State[S]) advance(now time.Time) State[S] {
	switch r.Phase {
	case Staging:
		r.Phase = Pausing
	case Pausing:
		r.Phase = Finishing
	case Finishing:
		r.Phase = Switching
	case Switching:
		r.Phase = Starting
	case Starting:
		r.Phase, r.Ended, r.Error, r.Hint = Done, now, "", ""
	}
	return r
}

// giveUp leads back to the old data.
func giveUp[S Source](ctx context.Context, w World[S], r State[S], err error) (State[S], error) {
	if r.Phase == Starting {
		r.Phase, r.Error = Reverting, err.Error()
		if kept := w.Keep(r); kept != nil {
			r.Phase = Starting
			return r, errors.Join(err, kept)
		}
		if back := w.Unswitch(); back != nil {
			return r, errors.Join(err, back)
		}
	}
	failed := r.failed(err, w.Now())
	err = errors.Join(err, w.Discard())
	if r.Phase != Staging {
		// Also when ctx has ended: whoever ends the node stops what this starts.
		if again := w.Resume(context.WithoutCancel(ctx)); again != nil {
			err = errors.Join(err, fmt.Errorf("starting the control plane again: %w", again))
		}
	}
	return failed, errors.Join(err, w.Keep(failed))
}

// Marshal is the state as its file keeps it.
func (r State[S]) Marshal() []byte {
	return record.Indented(r)
}

// Unmarshal reads what Marshal wrote.
func Unmarshal[S Source](b []byte) (State[S], error) {
	return record.Read[State[S]](b)
}
