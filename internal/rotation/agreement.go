package rotation

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/record"
)

// Record is what the servers of a cluster of several agree about: the stage to which all of them are brought, one after the other. It is
// kept in the datastore, where one change of it is made by one server and seen by all, and has no key in it.
// docs/adr/0034-authorities-of-several-servers.md says why it is so.
type Record struct {
	// Serial grows with every Record that takes another one's place.
	Serial int64 `json:"serial"`
	// Leader is the server that decides how it goes on.
	Leader string `json:"leader"`
	// Turn is the server that may go over to the stage now, which restarts its control plane; "" for none.
	Turn string `json:"turn,omitempty"`
	// Joint tells that every server has been seen to run the stage. Its times count since then.
	Joint bool `json:"joint,omitempty"`
	// BehindAt is when a node that is there was last seen not to be where the stage wants it, to within behindEvery; zero for not seen.
	BehindAt time.Time `json:"behindAt,omitzero"`
	State    State     `json:"state"`
	// Version is the store's, of what was read; "" for none.
	Version string `json:"-"`
}

// Marshal is a Record as it is kept.
func (r Record) Marshal() []byte {
	return record.Compact(r)
}

// UnmarshalRecord reads what Marshal wrote, and refuses what could not be gone on with.
func UnmarshalRecord(b []byte) (Record, error) {
	var r Record
	err := json.Unmarshal(b, &r)
	if err == nil {
		err = r.State.usable()
	}
	if err == nil && r.Serial < 1 {
		err = fmt.Errorf("its serial is %d", r.Serial)
	}
	if err != nil {
		return Record{}, fmt.Errorf("reading what the servers agree about: %w", err)
	}
	return r, nil
}

// then is the Record that takes its place.
func (r Record) then() Record {
	r.Serial++
	return r
}

// Same tells that two states are of one replacement, in whatever stage.
func (s State) Same(o State) bool {
	return s.Number == o.Number && slices.EqualFunc(s.Authorities, o.Authorities, func(a, b Authority) bool {
		return a.Name == b.Name && a.Old == b.Old && a.New == b.New
	})
}

// Report is what a server tells of itself when it is asked. Nobody believes what somebody wrote down: what is read in a database may be of
// another time.
type Report struct {
	Server string
	// Err is why nothing is known of it.
	Err error
	// Unknown: Server is the address of an API server that is of no server the cluster knows.
	Unknown bool
	// State is the stage it keeps.
	State State
	// Runs is the Epoch its control plane was started with, and Ready tells that it works.
	Runs  string
	Ready bool
	// Moving tells that it is going over to another stage in this moment.
	Moving bool
	// Holds is the pin of the new CA whose key it has; "" for none.
	Holds string
	// Trusts are the pins of the CAs it trusts, the one that signs first.
	Trusts []string
	// Keys are the pins of the keys it signs with, by the name of the authority.
	Keys map[string]string
}

// Duty is what a server has to do itself.
type Duty string

// The duties.
const (
	Rest    Duty = "rest"    // nothing is replaced
	Hold    Duty = "hold"    // it is at the stage
	Await   Duty = "await"   // it is not its turn
	Fetch   Duty = "fetch"   // it is, and the keys of the new authorities are not here
	Step    Duty = "step"    // it is: to go over to the stage
	End     Duty = "end"     // the replacement is at its end, and what was only there for it is to go
	Publish Duty = "publish" // what the servers agree about is gone, or of another time
)

// Own is what a server knows of itself.
type Own struct {
	Name  string
	State State // as it is kept
	// Runs is the Epoch its control plane was started with last.
	Runs string
	// Holds is the pin of the new CA whose key is here; "" for none.
	Holds string
}

// Follow tells what a server has to do for what all agree about; nil is nothing yet. The error says that it cannot follow.
func Follow(own Own, r *Record) (Duty, error) {
	local := own.State
	switch {
	case r == nil && local.Serial == 0 && !local.Active() && own.Holds != "": // they were made, and it was never agreed about
		return End, nil
	case r == nil && local.Serial == 0 && !local.Active():
		return Rest, nil
	case r == nil, r.Serial < local.Serial:
		return Publish, nil
	case !r.State.Active() && !local.Active() && own.Holds == "":
		return Rest, nil
	case !r.State.Active() && (!local.Active() || local.Same(r.State) && (local.Stage == Removing || local.Stage == Aborting)):
		return End, nil
	case !r.State.Active():
		return Rest, local.missed(r.State)
	}
	at := local.Active() && local.Same(r.State)
	if at && local.Stage == r.State.Stage && own.Runs == r.State.Epoch() {
		return Hold, nil
	}
	if !at && local.Active() || at && local.Stage != r.State.Stage && !slices.Contains(before[r.State.Stage], local.Stage) ||
		!local.Active() && !slices.Contains(before[r.State.Stage], None) {
		return Await, local.missed(r.State)
	}
	switch {
	case r.Turn != own.Name:
		return Await, nil
	case own.Holds != r.State.ca().New:
		return Fetch, nil
	}
	return Step, nil
}

// before are the stages from which a server goes over to another one: what the servers of one trust and sign, those of the other accept.
var before = map[Stage][]Stage{
	Trusting: {None}, Overlapping: {Trusting}, Draining: {Overlapping}, Removing: {Overlapping, Draining}, Aborting: {None, Trusting},
}

// missed is the error of a server that is too far from where the others are.
func (s State) missed(agreed State) error {
	return errs.Hint(errs.New(errs.Failure, "this server is not where the others are with the cluster's CA: here %s, there %s", s, agreed),
		"its files are of another time; if it cannot be given those it had: k1s node remove this server on another one, then k1s reset here, and join again with a token")
}

// Leads tells whether a server decides how it goes on: the one in the Record, and when that is no server any more, the first by name of
// those that are.
func Leads(self string, r Record, servers []string) bool {
	if r.Leader == self {
		return true
	}
	return !slices.Contains(servers, r.Leader) && len(servers) > 0 && slices.Min(servers) == self
}

// Guide brings all servers to the stage, one after the other. The answer is the Record that is to take r's place, or r itself while there is
// something to wait for, which is told. With neither, every server runs the stage, and Next decides.
//
// No server has a turn while another one is away or goes over itself: with one of three away the others are the majority of etcd.
func Guide(r Record, servers []Report, now time.Time) (Record, []string) {
	if !r.State.Active() {
		return r, nil
	}
	var waits, behind []string
	moving, turn := false, false
	for _, s := range servers {
		switch {
		case s.Err != nil && s.Server == r.Turn:
			waits = append(waits, fmt.Sprintf("%s restarts its control plane, and does not answer yet (%v); if it does not come back: k1s node remove %s", s.Server, s.Err, s.Server))
		case s.Err != nil && s.Unknown:
			waits = append(waits, fmt.Sprintf("the API server at %s is of no server that the cluster knows, and does not answer (%v); if it was removed and runs on, it has to be stopped there", s.Server, s.Err))
		case s.Err != nil:
			waits = append(waits, fmt.Sprintf("%s does not answer (%v); if it does not come back: k1s node remove %s", s.Server, s.Err, s.Server))
		case s.Unknown:
			waits = append(waits, fmt.Sprintf("the API server at %s is of no server that the cluster knows; one that was removed and runs on has to be stopped there", s.Server))
		case !s.Ready:
			waits = append(waits, fmt.Sprintf("the control plane of %s is not ready", s.Server))
		case !s.At(r.State):
			behind = append(behind, s.Server)
			turn = turn || s.Server == r.Turn
		}
		moving = moving || s.Moving
	}
	next := r.then()
	switch {
	case len(waits) > 0:
		return r, waits
	case !moving && (r.State.Stage == Trusting || r.State.Stage == Aborting) && !r.Joint && nobodyHas(r.State, servers):
		// Its keys are lost with the server that has made them, or the database was put back. Nothing was signed with them.
		next.State.Stage, next.State.Aborted, next.Turn = None, true, ""
		return next, nil
	case turn:
		return r, []string{r.Turn + " goes over to the stage"}
	case moving:
		return r, []string{"a server goes over to another stage in this moment"}
	case len(behind) > 0:
		next.Turn = behind[0]
		return next, nil
	case !r.Joint:
		now = now.UTC().Truncate(time.Second)
		next.Joint, next.Turn, next.State.Since = true, "", now
		if r.State.Stage == Overlapping { // the last of them has signed with the old ones until now
			next.State.Switched, next.State.Until = now, now.Add(r.State.Keep)
		}
		return next, nil
	case r.Turn != "":
		next.Turn = ""
		return next, nil
	}
	return r, nil
}

// At tells that the server keeps and runs a stage.
func (s Report) At(want State) bool {
	return s.State.Active() && s.State.Same(want) && s.State.Stage == want.Stage && s.Runs == want.Epoch()
}

// nobodyHas tells that no server has the keys of a replacement.
func nobodyHas(s State, servers []Report) bool {
	return !slices.ContainsFunc(servers, func(r Report) bool { return r.Holds == s.ca().New })
}

// behindEvery is how often it is written down that nodes are behind.
const behindEvery = 30 * time.Second

// Seen is the Record in which it stands since when nobody is behind, for whoever decides next; r itself where that is so already.
func (r Record) Seen(f Facts) Record {
	present, _ := Behind(r.State, f)
	if len(present) == 0 || f.Now.Sub(r.BehindAt) < behindEvery {
		return r
	}
	next := r.then()
	next.BehindAt = f.Now.UTC().Truncate(time.Second).Add(behindEvery) // until it is written again
	return next
}

// Advance is Next for several servers, all of which run the stage.
func (r Record) Advance(f Facts) (Record, []string) {
	f.BehindAt = r.BehindAt
	if present, _ := Behind(r.State, f); len(present) > 0 {
		f.BehindAt = f.Now
	}
	state, waits := Next(r.State, f)
	if state.Stage == r.State.Stage {
		return r, waits
	}
	next := r.then()
	next.State, next.Turn, next.Joint, next.BehindAt = state, "", false, time.Time{}
	return next, nil
}

// Told is the Record in which stands what the user has said: that the replacement is called off, or that it is not to be waited for; see
// State.Abort and State.Finish. Asking twice changes nothing.
func (r Record) Told(abort, tokens bool, now time.Time) (Record, error) {
	state, err := r.State.Finish(tokens)
	if abort {
		state, err = r.State.Abort(now)
	}
	if err != nil {
		return r, err
	}
	if state.Stage == r.State.Stage && state.Hurry == r.State.Hurry && state.DropTokens == r.State.DropTokens {
		return r, nil
	}
	next := r.then()
	next.State = state
	if state.Stage != r.State.Stage {
		next.Turn, next.Joint, next.BehindAt = "", false, time.Time{}
	}
	return next, nil
}

// Propose is the Record with which a replacement begins, in the place of r, nil for none. Every server has to be there and in order; what is
// not is told in the error, which is of kind errs.NotRunning, or errs.Exists while there is a replacement on its way.
func Propose(self string, r *Record, servers []Report, all []Authority, keep time.Duration, now time.Time) (Record, error) {
	var base State
	next := Record{}
	if r != nil {
		base, next.Serial, next.Version = r.State, r.Serial, r.Version
	}
	for _, s := range servers { // each may have been the only one when there was another replacement
		if s.Err == nil && s.State.Number > base.Number {
			base.Number = s.State.Number
		}
		next.Serial = max(next.Serial, s.State.Serial)
	}
	if err := base.MayBegin(); err != nil {
		return next, err
	}
	if err := inOrder(servers, all); err != nil {
		return next, err
	}
	state, err := base.Begin(all, keep, now)
	if err != nil {
		return next, err
	}
	next.Serial, next.Leader, next.State = next.Serial+1, self, state
	return next, nil
}

// inOrder tells what is in the way of a replacement, and where.
func inOrder(servers []Report, all []Authority) error {
	var found []string
	for _, s := range servers {
		switch {
		case s.Unknown:
			found = append(found, fmt.Sprintf("the API is also served at %s, by no server that the cluster knows: stop k1s there if it was removed", s.Server))
		case s.Err != nil:
			found = append(found, fmt.Sprintf("%s does not answer (%v): start it, or remove it: k1s node remove %s", s.Server, s.Err, s.Server))
		case !s.Ready:
			found = append(found, fmt.Sprintf("the control plane of %s is not ready", s.Server))
		case s.State.Active() || s.Moving:
			found = append(found, fmt.Sprintf("%s is not at the end of the replacement before", s.Server))
		default:
			for _, a := range all {
				if s.Keys[a.Name] != a.Old {
					found = append(found, fmt.Sprintf("%s does not have the key of %s that is in use here", s.Server, a.Name))
				}
			}
		}
	}
	if len(found) == 0 {
		return nil
	}
	return errs.Hint(errs.New(errs.NotRunning, "the cluster's CA is replaced on all servers together, and not all are in order: %s", strings.Join(found, "; ")), "see: k1s certs rotate-ca --status")
}

// Republish is the Record in the place of one that is gone or of another time, r or nil: the furthest state that any server has followed.
// All have to answer, because one that does not may be further.
func Republish(self string, r *Record, servers []Report) (Record, error) {
	next := Record{Leader: self}
	if r != nil {
		next.Version, next.Serial = r.Version, r.Serial
	}
	var furthest *State
	for _, s := range servers {
		if s.Unknown {
			continue
		}
		if s.Err != nil {
			return next, errs.Hint(errs.New(errs.NotRunning, "what the servers agree about the cluster's CA is gone, or of another time, and %s does not answer (%v), which may know more", s.Server, s.Err),
				"start it; if it does not come back: k1s node remove %s", s.Server)
		}
		if furthest == nil || s.State.Serial > furthest.Serial {
			furthest = &s.State
		}
		next.Serial = max(next.Serial, s.State.Serial)
	}
	if furthest == nil {
		return next, errs.New(errs.NotRunning, "what the servers agree about the cluster's CA is gone, and no server is known")
	}
	next.Serial++
	next.State = *furthest
	return next, nil
}
