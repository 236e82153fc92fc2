package encryption

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/errs"
)

var (
	errCrash = errors.New("killed")
	errWaits = errors.New("waits")
)

// node is a server: what is on its disk, and its API server.
type node struct {
	name   string
	bound  bool // it has the cluster's keys, and the others know
	away   bool // neither its daemon nor its API server runs
	disk   []byte
	file   []byte // the EncryptionConfiguration
	loaded []byte // what its API server uses
	asides int
	cut    bool // it was killed while it kept something

	read  string // what was on the disk when it was read
	found State
}

// state is what a daemon that starts finds.
func (n *node) state(t *testing.T) State {
	t.Helper()
	if n.read != string(n.disk) {
		var err error
		if n.found, err = Unmarshal(n.disk); err != nil {
			t.Fatal(err)
		}
		n.read = string(n.disk)
	}
	return n.found
}

// starts writes what an API server reads, as a daemon that starts does.
func (n *node) starts(t *testing.T) {
	if n.read != string(n.disk) || n.cut {
		n.file, n.cut = n.state(t).File(), false
	}
	if n.loaded == nil {
		n.loaded = n.file
	}
}

// site is all servers, what they agree about, and the objects in the datastore with the key each is written with. Something
// happens at one point of all that is done.
type site struct {
	t      *testing.T
	nodes  []*node
	record []byte
	rev    int
	config map[string]State // what a file means
	store  map[string]string
	writes int

	at, point int
	event     func(s *site, acting *node) error
	via       *node // a server that has handed out keys and not told so
	late      *node // … to this one
	broken    []string
}

// newSite has servers whose Secrets are written with a key.
func newSite(t *testing.T, key Key, names ...string) *site {
	s := &site{t: t, config: map[string]State{}, store: map[string]string{"a": key.Name, "b": key.Name, "c": key.Name}}
	st := State{Key: key}
	s.config[string(st.File())] = st
	for _, n := range names {
		s.nodes = append(s.nodes, &node{name: n, bound: true, disk: st.Marshal(), file: st.File(), loaded: st.File()})
	}
	return s
}

func (s *site) node(name string) *node {
	return s.nodes[slices.IndexFunc(s.nodes, func(n *node) bool { return n.name == name })]
}

// users read everything and write one object through every API server that runs.
func (s *site) users() {
	for _, n := range s.nodes {
		if n.away || n.loaded == nil {
			continue
		}
		s.writes++
		s.store[fmt.Sprintf("new-%d", s.writes%7)] = s.config[string(n.loaded)].Providers()[0].Name
		for _, o := range s.nodes {
			if o.away || o.loaded == nil {
				continue
			}
			known := s.config[string(o.loaded)].Providers()
			for name, key := range s.store {
				if !slices.ContainsFunc(known, func(k Key) bool { return k.Name == key }) {
					s.broken = append(s.broken, fmt.Sprintf("%s cannot read %s, written with %q (at %d)", o.name, name, key, s.at))
				}
			}
		}
	}
}

// joins hands the keys of one server to another, which becomes known later, but before the first keeps other keys.
func (s *site) joins(via *node, name string) {
	s.via, s.late = via, &node{name: name, disk: via.disk, file: via.state(s.t).File()}
	s.nodes = append(s.nodes, s.late)
}

func (s *site) becomesKnown() {
	if s.late != nil {
		s.late.bound, s.late.loaded = true, s.late.file
		s.via, s.late = nil, nil
	}
}

// world is the site as one server sees it.
type world struct {
	*site
	self *node
}

var _ World = world{}

func (w world) tick() error {
	w.at++
	w.users()
	if w.at == w.point {
		if err := w.event(w.site, w.self); err != nil {
			return err
		}
		w.users()
	}
	if w.self.away {
		return errCrash
	}
	return nil
}

func (w world) Record(context.Context) (*Record, error) {
	if err := w.tick(); err != nil {
		return nil, err
	}
	if w.record == nil {
		return nil, nil
	}
	r, err := UnmarshalRecord(w.record)
	r.Version = fmt.Sprint(w.rev)
	return &r, err
}

func (w world) Agree(_ context.Context, r Record) error {
	if err := w.tick(); err != nil {
		return err
	}
	if now := fmt.Sprint(w.rev); r.Version != now && (w.record != nil || r.Version != "") {
		return errs.New(errs.Exists, "it has changed")
	}
	w.record = r.Marshal()
	w.rev++
	return w.tick() // the answer may be lost
}

func (w world) Servers(context.Context) ([]string, error) {
	var all []string
	for _, n := range w.nodes {
		if n.bound {
			all = append(all, n.name)
		}
	}
	return all, w.tick()
}

func (w world) Fetch(_ context.Context, _ []string) ([]Key, error) {
	var got []Key
	for _, n := range w.nodes {
		if n != w.self && !n.away && n.bound {
			got = append(got, n.state(w.t).Keys()...)
		}
	}
	return got, w.tick()
}

func (w world) Keep(s State, aside bool) error {
	if err := w.tick(); err != nil {
		return err
	}
	if w.via == w.self {
		w.becomesKnown()
	}
	if aside {
		w.self.asides++
	}
	w.self.disk = s.Marshal()
	file := s.File()
	w.config[string(file)] = s
	w.self.cut = true
	if err := w.tick(); err != nil {
		return err
	}
	w.self.file, w.self.cut = file, false
	return w.tick()
}

func (w world) Loaded(_ context.Context, file []byte) error {
	for {
		before := len(w.nodes)
		for _, n := range slices.Clone(w.nodes) { // one after the other
			if err := w.tick(); err != nil {
				return err
			}
			if !n.bound {
				continue
			}
			if !n.away {
				n.loaded = n.file
			}
			if n.away || string(n.loaded) != string(file) {
				return fmt.Errorf("%w for %s", errWaits, n.name)
			}
		}
		if before == len(w.nodes) {
			return w.tick()
		}
	}
}

func (w world) Rewrite(context.Context) (Check, error) {
	n := 0
	for name := range w.store {
		if n++; n == 3 {
			if err := w.tick(); err != nil {
				return Check{}, err
			}
		}
		w.store[name] = w.config[string(w.self.loaded)].Providers()[0].Name
	}
	return Check{Objects: len(w.store)}, w.tick()
}

// round lets every server that runs do once what a daemon does again and again.
func (s *site) round() {
	for _, n := range slices.Clone(s.nodes) {
		if n.away || !n.bound {
			continue
		}
		w := world{s, n}
		n.starts(s.t)
		local, duty, err := Sync(s.t.Context(), w, n.name, n.state(s.t))
		if err == nil && duty == Lead {
			var found Check
			if found, err = Do(s.t.Context(), w, local); err == nil {
				_, err = Conclude(s.t.Context(), w, n.name, local, found)
			}
		}
		if err != nil && !errors.Is(err, errCrash) && !errors.Is(err, errWaits) && !errs.Is(err, errs.Exists) && !errs.Is(err, errs.NotFound) {
			s.t.Fatalf("%s at %d: %v", n.name, s.at, err)
		}
	}
}

// settled tells that all agree and nothing is changed.
func (s *site) settled() bool {
	if s.record == nil {
		return false
	}
	r, err := UnmarshalRecord(s.record)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, n := range s.nodes {
		if st := n.state(s.t); n.bound && (n.away || st.Serial != r.Serial || !st.same(r.State)) {
			return false
		}
	}
	return r.State.Change == nil
}

const rounds = 40

func (s *site) settle(what string) State {
	s.t.Helper()
	for range rounds {
		if s.settled() {
			// What an API server would find the next time it looks.
			for _, n := range s.nodes {
				if n.bound {
					n.loaded = n.file
				}
			}
			s.users()
			if len(s.broken) > 0 {
				s.t.Fatalf("%s: %s", what, s.broken[0])
			}
			return s.node("a").state(s.t)
		}
		s.round()
	}
	var all []string
	for _, n := range s.nodes {
		all = append(all, fmt.Sprintf("%s bound %t away %t %v serial %d", n.name, n.bound, n.away, n.state(s.t), n.state(s.t).Serial))
	}
	s.t.Fatalf("%s: they do not agree: record %s\n%s", what, s.record, strings.Join(all, "\n"))
	return State{}
}

func fresh() (Key, error) { return NewKey(Secretbox, now, rand.Reader) }

// asks is a user at a server.
func (s *site) asks(name string, a Action) error {
	n := s.node(name)
	if n.away {
		return errCrash
	}
	_, err := Start(s.t.Context(), world{s, n}, name, n.state(s.t), a, now, fresh)
	return err
}

// Something happens at every point of every change, on clusters of one server and of three, and the change is asked for
// again afterwards, as a user would. Every API server reads everything all the time, and at the end everything is written with one key.
func TestWhateverHappensAtWhateverPointEverythingIsReadableAndTheChangeEnds(t *testing.T) {
	old := newKey(t, Secretbox)
	away := func(n *node) { n.away = true }
	for _, tt := range []struct {
		name  string
		nodes []string
		event func(s *site, acting *node) error
		after func(s *site)
	}{
		{"the daemon is killed", []string{"a"}, func(*site, *node) error { return errCrash }, nil},
		{"the server is killed", []string{"a"}, func(_ *site, n *node) error { n.loaded = n.file; return errCrash }, nil},
		{"the daemon that acts is killed", []string{"a", "b", "c"}, func(*site, *node) error { return errCrash }, nil},
		{"the server that acts is killed", []string{"a", "b", "c"}, func(_ *site, n *node) error { n.loaded = n.file; return errCrash }, nil},
		{"the leader is away for a while", []string{"a", "b", "c"}, func(s *site, _ *node) error { away(s.node("b")); return nil }, nil},
		{"another one is away for a while", []string{"a", "b", "c"}, func(s *site, _ *node) error { away(s.node("a")); return nil }, nil},
		{"all are off for a while", []string{"a", "b", "c"}, func(s *site, _ *node) error {
			for _, n := range s.nodes {
				away(n)
			}
			return nil
		}, nil},
		{"a server joins by the leader", []string{"a", "b", "c"}, func(s *site, _ *node) error { s.joins(s.node("b"), "d"); return nil }, nil},
		{"a server joins by another one", []string{"a", "b", "c"}, func(s *site, _ *node) error { s.joins(s.node("c"), "d"); return nil }, nil},
		{"a server joins the only one", []string{"b"}, func(s *site, _ *node) error { s.joins(s.node("b"), "a"); return nil }, nil},
		{"somebody deletes what they agree about", []string{"a", "b", "c"}, func(s *site, _ *node) error { s.record = nil; return nil }, nil},
		{"the leader is lost for good, and removed", []string{"a", "b", "c"}, func(s *site, _ *node) error { away(s.node("b")); return nil },
			func(s *site) { s.node("b").bound = false }},
		{"two begin at the same moment", []string{"a", "b", "c"}, func(s *site, n *node) error {
			if n.name == "b" {
				_ = s.asks("c", Rotate) // either of them may be told that it was too late
			}
			return nil
		}, nil},
	} {
		actions := []Action{Enable, Rotate, Disable}
		if strings.HasPrefix(tt.name, "the server") || tt.name == "another one is away for a while" || strings.HasPrefix(tt.name, "a server joins by another") {
			actions = []Action{Rotate} // these have most to read
		}
		for _, action := range actions {
			t.Run(tt.name+"/"+string(action), func(t *testing.T) {
				point := 0
				for reached := true; reached; {
					point++
					key := old
					if action == Enable {
						key = Key{}
					}
					s := newSite(t, key, tt.nodes...)
					s.point, s.event = point, tt.event
					what := fmt.Sprintf("at %d", point)
					leader := "b"
					if len(tt.nodes) == 1 {
						leader = tt.nodes[0]
					}
					_ = s.asks(leader, action)
					gone := func() bool { return slices.ContainsFunc(s.nodes, func(n *node) bool { return n.away }) }
					for i := 0; i < 6 && (i < 2 || !s.settled()); i++ {
						s.round()
						// It waits for who is away, and does not end.
						if r, err := UnmarshalRecord(s.record); gone() && err == nil && r.State.Change == nil && s.settled() {
							t.Fatalf("%s: it has ended without one that is away", what)
						}
					}
					s.becomesKnown()
					if tt.after != nil && s.at >= point {
						tt.after(s)
					} else {
						for _, n := range s.nodes {
							if n.away {
								n.away, n.loaded = false, n.file
							}
						}
					}
					reached = s.at >= point
					s.point = 0
					if tt.after != nil && s.node("b").away {
						leader = "a"
					}
					for i := 0; i < 8 && !s.settled(); i++ {
						s.round()
					}
					// The same command again: it finds the change on its way, done, or taken back.
					if err := s.asks(leader, action); err != nil && !errs.Is(err, errs.Exists) && !errors.Is(err, errWaits) {
						t.Fatalf("%s: asked again: %v", what, err)
					}
					if len(tt.nodes) == 1 && tt.nodes[0] == "b" && !slices.ContainsFunc(s.nodes, func(n *node) bool { return n.name == "a" }) {
						s.joins(s.node("b"), "a")
						s.becomesKnown()
					}
					if tt.after != nil && !reached {
						s.node("b").away = false
					}
					end := s.settle(what)
					if end.Key.None() != (action == Disable) {
						t.Errorf("%s: ends as %s", what, end)
					}
					for name, k := range s.store {
						if k != end.Key.Name && !strings.HasPrefix(name, "new-") {
							t.Errorf("%s: %s is written with %q, not with %q", what, name, k, end.Key.Name)
						}
					}
					for _, n := range s.nodes {
						if n.bound && n.asides > 0 {
							t.Errorf("%s: %s takes its keys for those of another time", what, n.name)
						}
					}
				}
				if point < 20 {
					t.Errorf("there are only %d points", point)
				}
			})
		}
	}
}

func TestAServerThatIsAwayIsWaitedForByName(t *testing.T) {
	s := newSite(t, Key{}, "a", "b", "c")
	if err := s.asks("b", Enable); err != nil {
		t.Fatal(err)
	}
	s.node("c").away = true
	for range rounds {
		s.round()
	}
	r, err := UnmarshalRecord(s.record)
	if err != nil || r.State.Change == nil || r.State.Change.Stage != Adding {
		t.Fatalf("without c: %+v, %v", r, err)
	}
	local := s.node("b").state(t)
	if _, err := Do(t.Context(), world{s, s.node("b")}, local); !errors.Is(err, errWaits) || !strings.Contains(err.Error(), "for c") {
		t.Errorf("it waits: %v", err)
	}
	err = Waiting([]Standing{{Server: "a", Loaded: true}, {Server: "b"}, {Server: "c", Err: errors.New("no route")}})
	if hint, _ := errs.HintOf(err); err == nil || !strings.Contains(err.Error(), "c does not answer (no route)") || !strings.Contains(err.Error(), "b has not loaded") || !strings.Contains(hint, "node remove c") {
		t.Errorf("%v, hint %q", err, hint)
	}
	if err := Waiting([]Standing{{Server: "a", Loaded: true}}); err != nil {
		t.Error(err)
	}
}

func TestADatabaseOfAnotherTimeTakesNoKeyAway(t *testing.T) {
	s := newSite(t, Key{}, "a", "b")
	rotate := func(a Action) State {
		t.Helper()
		if err := s.asks("a", a); err != nil {
			t.Fatal(err)
		}
		return s.settle(string(a))
	}
	first := rotate(Enable)
	backup, objects := slices.Clone(s.record), map[string]string{}
	for k, v := range s.store {
		objects[k] = v
	}
	second := rotate(Rotate)
	// An older database under newer keys: the keys stay, and Secrets that need the old one are somebody's to bring back.
	s.record, s.rev = backup, s.rev+1
	if end := s.settle("a restored record"); !end.same(second) {
		t.Errorf("the keys became %s, were %s", end, second)
	}
	// And its keys put back on one server, with the others off: that one starts with them and stays with them.
	s.record, s.rev, s.store = backup, s.rev+1, objects
	a, b := s.node("a"), s.node("b")
	r, err := UnmarshalRecord(backup)
	if err != nil {
		t.Fatal(err)
	}
	first.Serial = r.Serial
	b.away = true
	a.disk, a.file, a.loaded = first.Marshal(), first.File(), first.File()
	s.round()
	if got := a.state(t); !got.same(first) || a.asides > 0 {
		t.Errorf("it has %s", got)
	}
	// The other one comes with newer keys. Which is right nobody can know; nothing is thrown away.
	b.away = false
	for range rounds {
		s.round()
	}
	if a.asides == 0 && b.asides == 0 {
		t.Error("keys were thrown away that Secrets may be written with")
	}
}

// A snapshot of before a change is restored at every point of the change, on all servers at once.
func TestADatabaseOfBeforeAChangeIsReadableWhereverTheChangeWas(t *testing.T) {
	for _, nodes := range [][]string{{"a"}, {"a", "b", "c"}} {
		point := 0
		for reached := true; reached; {
			point++
			s := newSite(t, Key{}, nodes...)
			if err := s.asks("a", Enable); err != nil {
				t.Fatal(err)
			}
			first := s.settle("enabled")
			record, objects := slices.Clone(s.record), maps.Clone(s.store)
			finished := false
			s.at, s.point = 0, point
			s.event = func(s *site, _ *node) error {
				// What was changed since nobody has any more, and what was changed back is another snapshot's business.
				r, err := UnmarshalRecord(s.record)
				finished = err == nil && r.State.Change == nil && !r.State.same(first)
				s.record, s.rev, s.store = slices.Clone(record), s.rev+1, maps.Clone(objects)
				for _, n := range s.nodes {
					n.loaded = nil // its API server is not there while that is done, and starts with the file as it is
				}
				return errCrash
			}
			_ = s.asks("a", Rotate)
			for i := 0; i < 8 && s.at < point; i++ {
				s.round()
			}
			reached = s.at >= point
			s.point, s.broken = 0, nil
			for range rounds {
				s.round()
			}
			if finished {
				continue // the key file of that time has to be put back, too
			}
			s.broken = nil
			end := s.settle(fmt.Sprintf("at %d", point))
			for name, key := range s.store {
				if key != end.Key.Name {
					t.Errorf("at %d: %s is written with %s, not with %s", point, name, key, end.Key.Name)
				}
			}
		}
		if point < 20 {
			t.Errorf("there are only %d points", point)
		}
	}
}

func TestARecordNamesKeysAndHoldsNone(t *testing.T) {
	a, b := newKey(t, Secretbox), newKey(t, AESCBC)
	r := Record{Serial: 4, Leader: "server-0", State: State{Key: a, Change: &Change{Action: Rotate, Stage: Switching, To: b, Since: now}, Checked: &Check{At: now, Objects: 3}}}
	raw := r.Marshal()
	if strings.Contains(string(raw), a.Secret.Reveal()) || strings.Contains(string(raw), b.Secret.Reveal()) {
		t.Fatalf("it holds a key: %s", raw)
	}
	got, err := UnmarshalRecord(raw)
	if err != nil || got.Serial != 4 || got.Leader != "server-0" || !got.State.same(r.State) || got.State.Checked.Objects != 3 {
		t.Errorf("read %+v, %v", got, err)
	}
	if r.State.Change.To.Secret != b.Secret {
		t.Error("writing it took the key out of the state")
	}
	for _, damaged := range []string{"", "{}", `{"serial":1,"state":{"version":2}}`, `{"serial":1,"state":{"version":1,"key":{"provider":"rot13","name":"x"}}}`,
		`{"serial":1,"state":{"version":1,"key":{"provider":"identity"},"change":{"stage":"melting","to":{"provider":"identity"}}}}`} {
		if got, err := UnmarshalRecord([]byte(damaged)); err == nil {
			t.Errorf("%q is read as %+v", damaged, got)
		}
	}
}

func TestWhoIsWaitedForIsTold(t *testing.T) {
	loaded, late := Standing{Server: "server-0", Loaded: true}, Standing{Server: "server-1"}
	away := Standing{Server: "server-2", Err: errors.New("no route")}
	strange := Standing{Server: "10.0.0.9:6443", Unknown: true}
	if err := Waiting([]Standing{loaded}); err != nil {
		t.Error(err)
	}
	for want, tc := range map[string]struct {
		all  []Standing
		hint string
	}{
		"server-1 has not loaded the keys yet":                                                              {[]Standing{loaded, late}, ""},
		"server-1 has not loaded the keys yet; server-2 does not answer (no route)":                         {[]Standing{late, away}, "k1s node remove server-2"},
		"the API server at 10.0.0.9:6443, of no server that the cluster knows, has not loaded the keys yet": {[]Standing{loaded, strange}, "has to be stopped there"},
		"the API server at 10.0.0.9:6443, of no server that the cluster knows, does not answer (no route)":  {[]Standing{{Server: strange.Server, Unknown: true, Err: away.Err}}, "has to be stopped there"},
	} {
		err := Waiting(tc.all)
		if hint, _ := errs.HintOf(err); err == nil || err.Error() != want || !strings.Contains(hint, tc.hint) {
			t.Errorf("got %v (%s), want %q (%s)", err, hint, want, tc.hint)
		}
	}
}
