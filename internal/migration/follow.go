package migration

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k1s.io/k1s/internal/record"
)

// How several servers move together. The one that was asked leads: it is the World of Run. Each of the others follows: it stops
// its API server, tells so, and serves again when it has learned what was decided. What is decided stands in a register in a datastore
// which all of them reach: it is written once in each attempt, by whoever comes first. Only the leader writes that they go
// forward; that they go back may be written by any server for which the leader was away for too long. So at most one of the two
// datastores is ever written to, whoever is killed, and nobody waits for a machine that is gone.
//
// The register is in the new datastore, except where that is an etcd which the servers run themselves: of that there is the leader's
// member only until they have agreed, so the register is in the database of others that is left.

// Decision is what stands in the register.
type Decision string

// The decisions.
const (
	Open    Decision = "open"    // an attempt has begun, nothing is decided
	Forward Decision = "forward" // the new datastore has the state
	Back    Decision = "back"    // the old one has it
)

// Register is what the servers agree by. The zero Register: there is none.
type Register struct {
	Attempt  string   `json:"attempt,omitempty"`
	Decision Decision `json:"decision,omitempty"`
}

// RegisterKey is where it stands, for objects below a root such as /registry: outside of what is copied.
func RegisterKey(root string) string { return "/k1s.io/moving" + root }

// Decide is what becomes of a register when a server wants something decided in an attempt; write tells that it changes. Nothing
// that is decided is decided in another way; only who begins an attempt takes the place of another one.
func (r Register) Decide(attempt string, want Decision) (next Register, write bool) {
	switch {
	case want == "", r.Attempt == attempt && r.Decision != Open, r == Register{Attempt: attempt, Decision: want}:
		return r, false
	case want == Open || r.Attempt == attempt:
		return Register{Attempt: attempt, Decision: want}, true
	}
	return r, false // it is about something else
}

// Of is what it says about an attempt; "" for nothing, as where it is about another one.
func (r Register) Of(attempt string) Decision {
	if r.Attempt != attempt {
		return ""
	}
	return r.Decision
}

// Fence says in a database of others that was left, or is being left, that nobody is to serve from it.
type Fence struct {
	Attempt string    `json:"attempt"`
	Since   time.Time `json:"since"`
	To      string    `json:"to"` // as it may be shown
}

// FenceKey is where it stands, for objects below a root: outside of what is copied.
func FenceKey(root string) string { return "/k1s.io/moved" + root }

// Marshal is a fence as it is kept.
func (f Fence) Marshal() []byte {
	return record.Compact(f)
}

// Following is what a server keeps while it goes with another one. There is none before its API server is to stop.
type Following struct {
	Attempt string    `json:"attempt"`
	ID      string    `json:"id"` // of the move, as the leader has it
	Kind    Kind      `json:"kind"`
	Leader  string    `json:"leader"`
	At      string    `json:"at"`   // where its API is, host:port
	From    Place     `json:"from"` // as this server has them
	To      Place     `json:"to"`
	Root    string    `json:"root"`
	Since   time.Time `json:"since"`
	// Decided is Forward once that was learned; that they go back ends it.
	Decided Decision `json:"decided,omitempty"`
}

// Marshal is it as its file keeps it.
func (f Following) Marshal() []byte {
	return record.Indented(f)
}

// UnmarshalFollowing reads what Marshal wrote.
func UnmarshalFollowing(b []byte) (Following, error) {
	f, err := record.Read[Following](b)
	if err == nil && f.Attempt == "" {
		err = errors.New("it is not what k1s wrote: it names no attempt")
	}
	if err != nil {
		return Following{}, err
	}
	return f, nil
}

// Follower is a server that goes with another one. Each method may be called again for what is done already.
type Follower interface {
	// Keep puts it on the disk, so that it survives a power cut: from then on no start of this server serves from the old datastore
	// before it has learned what was decided.
	Keep(Following) error
	// Stop stops the API server; when it returns nothing of this server writes to the old datastore.
	Stop(context.Context) error
	// Learn waits for what was decided: Forward or Back.
	Learn(context.Context) (Decision, error)
	// Prepare makes ready what the new datastore needs on this server before any start looks for it there: what this server had of one
	// like it is gone, so that no start takes that for the new one.
	Prepare() error
	// Switch changes the configuration of the next start to the new datastore.
	Switch() error
	// Join takes this server's place in the new datastore, where it needs one: it waits for those who are in it already.
	Join(context.Context) error
	// Serve starts the control plane on what the configuration names now.
	Serve(context.Context) error
	// Forget is for the end.
	Forget() error
}

// Follow goes on to the end. After an error it is to be called again with what it returns: the API server of this server serves
// from the old datastore only if nothing was kept.
func Follow(ctx context.Context, w Follower, f Following) (Following, error) {
	if f.Decided != Forward {
		if err := w.Keep(f); err != nil {
			return f, fmt.Errorf("keeping that this server follows %s: %w", f.Leader, err)
		}
		if err := w.Stop(ctx); err != nil {
			return f, fmt.Errorf("stopping the API server: %w", err)
		}
		decided, err := w.Learn(ctx)
		if err != nil {
			return f, err
		}
		if decided != Forward {
			// Forgotten first: a start in between serves as before, which is what was decided.
			if err := w.Forget(); err != nil {
				return f, err
			}
			return f, w.Serve(ctx)
		}
		f.Decided = Forward
		if err := w.Keep(f); err != nil {
			f.Decided = "" // it is asked again
			return f, fmt.Errorf("keeping what was decided: %w", err)
		}
	}
	if err := w.Prepare(); err != nil {
		return f, fmt.Errorf("preparing for the new datastore: %w", err)
	}
	if err := w.Switch(); err != nil {
		return f, err
	}
	if err := w.Join(ctx); err != nil {
		return f, fmt.Errorf("taking a place in the new datastore: %w", err)
	}
	if err := w.Serve(ctx); err != nil {
		return f, err
	}
	return f, w.Forget()
}

// Told is what a leader answers to a server that follows in an attempt; "" for nothing yet, or for not knowing.
func (s State) Told(attempt string) Decision {
	switch {
	case s.Attempt != attempt || attempt == "":
		return ""
	case s.Phase == Failed:
		return Back
	case s.Phase == Starting || s.Phase == Done:
		return Forward
	}
	return ""
}
