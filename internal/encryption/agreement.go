package encryption

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/record"
)

// Record is what the servers of a cluster agree about. It is kept in the datastore, where one change of it is made by
// one server and seen by all, and it names keys and holds none: servers get those from each other. A state on its way is
// always written with what is in the Record, or one stage before it.
type Record struct {
	// Serial grows with every Record that takes another one's place.
	Serial int64
	// Leader is the server that goes on with the change.
	Leader string
	// State has keys without their secrets.
	State State
	// Version is the store's, of what was read; "" for none.
	Version string
}

type wireRecord struct {
	Serial int64     `json:"serial"`
	Leader string    `json:"leader"`
	State  wireState `json:"state"`
}

// Marshal is a Record as it is kept.
func (r Record) Marshal() []byte {
	return record.Compact(wireRecord{r.Serial, r.Leader, r.State.public().wire()})
}

// UnmarshalRecord reads what Marshal wrote.
func UnmarshalRecord(b []byte) (Record, error) {
	var w wireRecord
	if err := json.Unmarshal(b, &w); err != nil {
		return Record{}, fmt.Errorf("reading what the servers agree about: %w", err)
	}
	s, err := w.State.state(func(k wireKey) (Key, error) {
		switch {
		case k.Provider == Identity && k.Name == "":
			return Key{}, nil
		case (k.Provider == Secretbox || k.Provider == AESCBC) && k.Name != "":
			return Key{Provider: k.Provider, Name: k.Name}, nil
		}
		return Key{}, fmt.Errorf("the key %q (%s) in it cannot be used", k.Name, k.Provider)
	})
	if err == nil && w.Serial < 1 {
		err = fmt.Errorf("its serial is %d", w.Serial)
	}
	if err != nil {
		return Record{}, fmt.Errorf("reading what the servers agree about: %w", err)
	}
	s.Serial = w.Serial
	return Record{Serial: w.Serial, Leader: w.Leader, State: s}, nil
}

// public is a state without secrets.
func (s State) public() State {
	s.Key.Secret = ""
	if s.Change != nil {
		c := *s.Change
		c.To.Secret = ""
		s.Change = &c
	}
	return s
}

// Keys are all a state holds.
func (s State) Keys() []Key {
	all := []Key{s.Key}
	if s.Change != nil {
		all = append(all, s.Change.To)
	}
	return slices.DeleteFunc(all, Key.None)
}

// same tells that the same keys are in the same stage.
func (s State) same(o State) bool {
	if s.Key.Name != o.Key.Name || s.Key.Kind() != o.Key.Kind() || (s.Change == nil) != (o.Change == nil) {
		return false
	}
	return s.Change == nil || s.Change.Action == o.Change.Action && s.Change.Stage == o.Change.Stage &&
		s.Change.To.Name == o.Change.To.Name && s.Change.To.Kind() == o.Change.To.Kind()
}

// with is a Record's state with the secrets of its keys; missing are the names of those that are not among keys.
func (r Record) with(keys []Key) (s State, missing []string) {
	fill := func(k Key) Key {
		for _, o := range keys {
			if o.Name == k.Name && o.Kind() == k.Kind() {
				return o
			}
		}
		if !k.None() {
			missing = append(missing, k.Name)
		}
		return k
	}
	s = r.State
	s.Serial = r.Serial
	s.Key = fill(s.Key)
	if s.Change != nil {
		c := *s.Change
		c.To = fill(c.To)
		s.Change = &c
	}
	return s, missing
}

// Loses tells that a key is not in next that Secrets may still be written with, as far as s knows: it is neither that of a
// change that is finished, nor a new one that nothing was written with yet. It happens when the database is one of another time.
func (s State) Loses(next State) bool {
	for _, k := range s.Keys() {
		kept := slices.ContainsFunc(next.Keys(), func(o Key) bool { return o.Name == k.Name })
		c := s.Change
		finished := c != nil && c.Stage != Adding && k.Name == s.Key.Name && next.Key.Name == c.To.Name
		unused := c != nil && c.Stage == Adding && k.Name == c.To.Name
		if !kept && !finished && !unused {
			return true
		}
	}
	return false
}

// Duty is what a server that agrees with the Record has to do.
type Duty string

// The duties.
const (
	Rest   Duty = "rest"   // nothing is changed
	Follow Duty = "follow" // another server goes on with the change
	Lead   Duty = "lead"   // this one does
)

// duty tells who leads: the one in the Record, and when that is no server any more, the first by name of those that are.
func duty(self string, r Record, servers []string) Duty {
	switch {
	case r.State.Change == nil:
		return Rest
	case r.Leader == self:
		return Lead
	case slices.Contains(servers, r.Leader) || len(servers) == 0 || slices.Min(servers) != self:
		return Follow
	}
	return Lead
}

// World is where a change happens, as one server sees it. Each method may be called again for what is done already.
type World interface {
	// Record is what the servers agree about, nothing older than the question; nil for nothing yet.
	Record(ctx context.Context) (*Record, error)
	// Agree writes a Record in the place of the one with its Version; kind errs.Exists says that another server was faster.
	Agree(ctx context.Context, r Record) error
	// Servers are all that have the cluster's keys, with this one.
	Servers(ctx context.Context) ([]string, error)
	// Fetch asks the other servers for keys.
	Fetch(ctx context.Context, names []string) ([]Key, error)
	// Keep puts the state on this server's disk, and then its EncryptionConfiguration where its API server reads it; both
	// survive a power cut when it returns. No server may join through this one with keys that were read before, and
	// become known to Servers after it. aside says to keep what was there before, too.
	Keep(s State, aside bool) error
	// Loaded returns when the API server of every server uses an EncryptionConfiguration, also of those that joined
	// meanwhile, or when ctx ends.
	Loaded(ctx context.Context, file []byte) error
	// Rewrite writes every object as it is, and returns when a whole pass has found nothing that was not written
	// with the first provider.
	Rewrite(ctx context.Context) (Check, error)
}

// Sync brings this server's state into agreement with the others, and tells what is to be done then. Who is a server is
// asked only where it matters.
func Sync(ctx context.Context, w World, self string, local State) (State, Duty, error) {
	r, err := w.Record(ctx)
	if err != nil {
		return local, Rest, err
	}
	switch {
	case r == nil && local.Key.None() && local.Change == nil && local.Serial == 0:
		return local, Rest, nil // nobody ever asked for it
	case r == nil:
		r = &Record{}
		fallthrough
	case r.Serial < local.Serial:
		// A state that was kept here and not told yet, one of before there were Records, or a database that was put back:
		// what its Secrets are written with only who did that can know, so keys stay as they are.
		next := local
		if c := local.Change; c != nil && c.Stage == Removing {
			// A database of before may need the old key: it is read again by all, and everything is written again.
			again := *c
			again.Stage = Switching
			next.Change = &again
		}
		next.Serial = max(r.Serial, local.Serial) + 1
		published := Record{Serial: next.Serial, Leader: self, State: next, Version: r.Version}
		if err := w.Agree(ctx, published); err != nil {
			return local, Rest, err
		}
		if err := w.Keep(next, false); err != nil {
			return local, Rest, err
		}
		return next, duty(self, published, nil), nil
	}
	if !local.same(r.State) || local.Serial != r.Serial {
		next, missing := r.with(local.Keys())
		if len(missing) > 0 {
			got, err := w.Fetch(ctx, missing)
			if next, missing = r.with(append(got, local.Keys()...)); err == nil && len(missing) > 0 {
				err = errs.Hint(errs.New(errs.NotFound, "the key %s is not here, and no other server that answers has it", strings.Join(missing, ", ")),
					"put the directory encryption of a server's data directory back from a backup of the time of this database")
			}
			if err != nil {
				return local, Rest, errors.Join(err, abandon(ctx, w, self, *r, local))
			}
		}
		if err := w.Keep(next, local.Loses(next)); err != nil {
			return local, Rest, err
		}
		local = next
	}
	var servers []string
	if r.State.Change != nil && r.Leader != self {
		if servers, err = w.Servers(ctx); err != nil {
			return local, Rest, err
		}
	}
	return local, duty(self, *r, servers), nil
}

// abandon takes a change back whose new key nobody could be given before its leader was lost. In its first stage nothing is
// written with that key, whoever has it.
func abandon(ctx context.Context, w World, self string, r Record, local State) error {
	if c := r.State.Change; c == nil || c.Stage != Adding {
		return nil
	}
	servers, err := w.Servers(ctx)
	if err != nil || duty(self, r, servers) != Lead {
		return err
	}
	r.State.Change = nil
	if _, missing := r.with(local.Keys()); len(missing) > 0 {
		return nil // the old one is not here either
	}
	r.Serial, r.Leader = r.Serial+1, self
	return w.Agree(ctx, r)
}

// Start begins what a user asks for, on a server that agrees with the others. What is on its way already goes on.
func Start(ctx context.Context, w World, self string, local State, a Action, now time.Time, newKey func() (Key, error)) (State, error) {
	local, _, err := Sync(ctx, w, self, local)
	if err != nil {
		return local, err
	}
	next, err := local.Begin(a, now, newKey)
	if err != nil || next.Change == local.Change {
		return local, err
	}
	r, err := w.Record(ctx)
	if err != nil {
		return local, err
	}
	if r == nil {
		r = &Record{}
	}
	if r.Serial != local.Serial {
		return local, errs.Hint(errs.New(errs.Exists, "another server has begun to change the encryption of Secrets in this moment"), "see: k1s encryption")
	}
	next.Serial = local.Serial + 1
	// Kept before anybody knows of it: a key that a Record names is always somewhere.
	if err := w.Keep(next, false); err != nil {
		return local, err
	}
	if err := w.Agree(ctx, Record{Serial: next.Serial, Leader: self, State: next, Version: r.Version}); err != nil {
		return next, err // Sync finds out what has become of it
	}
	return next, nil
}

// Do does what the stage of a change needs; it begins anew if it was cut off. Only who leads calls it.
func Do(ctx context.Context, w World, s State) (Check, error) {
	switch {
	case s.Change == nil:
		return Check{}, nil
	case s.Change.Stage == Rewriting:
		return w.Rewrite(ctx)
	}
	return Check{}, w.Loaded(ctx, s.File())
}

// Conclude lets the servers agree that a stage is done. Nothing else may be done with this server's state meanwhile.
func Conclude(ctx context.Context, w World, self string, local State, found Check) (State, error) {
	if local.Change == nil {
		return local, nil
	}
	r, err := w.Record(ctx)
	if err != nil {
		return local, err
	}
	if r == nil || r.Serial != local.Serial {
		return local, errs.New(errs.Exists, "the servers agree about something else by now")
	}
	next := local.Advance(found)
	next.Serial = local.Serial + 1
	// Agreed before it is used: what nobody has agreed about writes nothing.
	if err := w.Agree(ctx, Record{Serial: next.Serial, Leader: self, State: next, Version: r.Version}); err != nil {
		return local, err
	}
	if err := w.Keep(next, false); err != nil {
		return local, err
	}
	return next, nil
}

// Standing is how far one server is.
type Standing struct {
	Server string
	// Err is why nothing is known of it; else Loaded tells that its API server uses the keys that are agreed about.
	Err    error
	Loaded bool
	// Unknown: Server is the address of an API server that is of no server the cluster knows.
	Unknown bool
}

// Waiting is an error that names the servers that a stage waits for, nil for none.
func Waiting(all []Standing) error {
	var late []string
	away, strange := "", false
	for _, s := range all {
		who := s.Server
		if s.Unknown {
			who = "the API server at " + who + ", of no server that the cluster knows,"
		}
		switch {
		case s.Err != nil:
			late = append(late, fmt.Sprintf("%s does not answer (%v)", who, s.Err))
			if !s.Unknown {
				away = cmp.Or(away, s.Server)
			}
		case !s.Loaded:
			late = append(late, who+" has not loaded the keys yet")
		default:
			continue
		}
		strange = strange || s.Unknown
	}
	if len(late) == 0 {
		return nil
	}
	err := errs.New(errs.NotRunning, "%s", strings.Join(late, "; "))
	switch {
	case away != "":
		return errs.Hint(err, "start it; if it does not come back: k1s node remove %s", away)
	case strange:
		return errs.Hint(err, "a server that has just started becomes known within seconds, and the address of one that has stopped goes; one that was removed and runs on has to be stopped there")
	}
	return err
}
