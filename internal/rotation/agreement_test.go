package rotation

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
)

var errWaits = errors.New("waits")

// server is one of several: what is on its disk, and what its control plane has read.
type server struct {
	name      string
	away      bool  // neither its daemon nor its control plane runs
	gone      bool  // it was removed
	dead      bool  // its daemon was killed, and starts next time
	disk      State // rotation.json
	held      string
	files     Stage // of which its certificates are
	loaded    Stage // … and what was loaded when its control plane was started
	runs      string
	moving    bool
	restarted int
}

// site is all servers, an agent, and what they agree about. Something happens at one point of all that is done.
type site struct {
	t       *testing.T
	servers []*server
	record  []byte
	known   Record // what is read in it
	parsed  string
	version int
	clock   time.Time
	agent   Node
	asks    int // which server the agent asks next

	at, point int
	event     func(s *site, acting *server) error
	broken    []string
}

func trusted(s Stage) []string {
	switch s {
	case Trusting, Overlapping:
		return []string{"old", "new"}
	case Draining, Removing:
		return []string{"new"}
	}
	return []string{"old"}
}

func signs(s Stage) string {
	if s == Overlapping || s == Draining || s == Removing {
		return "new"
	}
	return "old"
}

// verifies are the keys of service accounts whose tokens are good.
func verifies(s Stage) []string {
	if s == Draining {
		return []string{"old", "new"}
	}
	return trusted(s)
}

// after is the stage in which files are after the one that is kept.
func after(s State) Stage {
	if s.Active() || s.Number == 0 {
		return s.Stage
	}
	if s.Aborted {
		return Aborting
	}
	return Removing
}

func newSite(t *testing.T, names ...string) *site {
	s := &site{t: t, clock: now, agent: Node{Name: "agent", Present: true, Trusts: []string{"old"}, Issuer: "old"}}
	for _, n := range names {
		s.servers = append(s.servers, &server{name: n})
	}
	return s
}

func (s *site) server(name string) *server {
	return s.servers[slices.IndexFunc(s.servers, func(n *server) bool { return n.name == name })]
}

// users look whether everybody accepts everybody: servers each other, and the agent and the servers.
func (s *site) users() {
	complain := func(format string, a ...any) {
		s.broken = append(s.broken, fmt.Sprintf("at %d: ", s.at)+fmt.Sprintf(format, a...))
	}
	for _, x := range s.servers {
		if x.away || x.gone {
			continue
		}
		for _, y := range s.servers {
			if y.away || y.gone {
				continue
			}
			for _, shown := range []Stage{x.files, x.loaded} {
				if !slices.Contains(trusted(y.loaded), signs(shown)) {
					complain("%s shows a certificate of %q, and %s, which was started in %q, trusts %v", x.name, shown, y.name, y.loaded, trusted(y.loaded))
				}
			}
			if !slices.Contains(verifies(y.loaded), signs(x.loaded)) {
				complain("%s signs tokens in %q that %s refuses in %q", x.name, x.loaded, y.name, y.loaded)
			}
		}
		if by := signs(x.files); !slices.Contains(s.agent.Trusts, by) && (x.files != Overlapping || !slices.Contains(s.agent.Trusts, "old")) {
			complain("the agent trusts %v, and not %s, which is in %q", s.agent.Trusts, x.name, x.files)
		}
		if !slices.Contains(trusted(x.loaded), s.agent.Issuer) {
			complain("%s, in %q, refuses the agent, which has a certificate of the %s one", x.name, x.loaded, s.agent.Issuer)
		}
	}
}

func (s *site) tick(acting *server) error {
	s.at++
	s.users()
	if s.at == s.point {
		if err := s.event(s, acting); err != nil {
			acting.dead, acting.moving = true, false
			return err
		}
	}
	if acting.away || acting.dead {
		acting.moving = false
		return errKilled
	}
	return nil
}

func (s *site) read(acting *server) (*Record, error) {
	if err := s.tick(acting); err != nil {
		return nil, err
	}
	if s.record == nil {
		return nil, nil
	}
	r := s.parse()
	r.Version = strconv.Itoa(s.version)
	return &r, nil
}

func (s *site) parse() Record {
	if s.parsed != string(s.record) {
		var err error
		if s.known, err = UnmarshalRecord(s.record); err != nil {
			s.t.Fatal(err)
		}
		s.parsed = string(s.record)
	}
	return s.known
}

// write is compare-and-swap, and somebody may die before it and after it.
func (s *site) write(acting *server, r Record) error {
	if err := s.tick(acting); err != nil {
		return err
	}
	if s.record != nil && r.Version != strconv.Itoa(s.version) || s.record == nil && r.Version != "" {
		return errs.New(errs.Exists, "another one was faster")
	}
	s.version++
	s.record = r.Marshal()
	return s.tick(acting)
}

// reports are what is answered, one after the other, or an error when servers come or go meanwhile.
func (s *site) reports(acting *server) ([]Report, error) {
	names := s.names()
	var out []Report
	for _, n := range names {
		if err := s.tick(acting); err != nil {
			return nil, err
		}
		x := s.server(n)
		if x.away || x.dead {
			out = append(out, Report{Server: n, Err: errors.New("no route")})
			continue
		}
		out = append(out, Report{Server: n, State: x.disk, Runs: x.runs, Ready: true, Moving: x.moving, Holds: x.held, Trusts: trusted(x.files), Keys: map[string]string{CA: "old", "sa": "k1"}})
	}
	if !slices.Equal(names, s.names()) {
		return nil, errWaits
	}
	return out, nil
}

func (s *site) names() []string {
	var out []string
	for _, x := range s.servers {
		if !x.gone {
			out = append(out, x.name)
		}
	}
	slices.Sort(out)
	return out
}

// starts is what a daemon does that was killed: its files follow from what is kept, and so does what its control plane reads.
func (s *site) starts(x *server) {
	x.dead, x.moving = false, false
	if !x.disk.Active() {
		return
	}
	x.files = x.disk.Stage
	if x.runs != x.disk.Epoch() {
		s.restarts(x)
	}
}

// restarts reads what only a start does. No other one may be doing that.
func (s *site) restarts(x *server) {
	for _, y := range s.servers {
		if y != x && y.moving && !y.away && !y.gone {
			s.broken = append(s.broken, fmt.Sprintf("at %d: %s restarts while %s does", s.at, x.name, y.name))
		}
	}
	x.runs, x.loaded = x.disk.Epoch(), after(x.disk)
	x.restarted++
}

// acts lets a server do once what a daemon does again and again; forced lets it decide though another one leads.
func (s *site) acts(x *server, forced bool) error {
	if x.away || x.gone {
		return nil
	}
	if x.dead {
		s.starts(x)
	}
	r, err := s.read(x)
	if err != nil {
		return err
	}
	duty, err := Follow(Own{Name: x.name, State: x.disk, Runs: x.runs, Holds: x.held}, r)
	if err != nil {
		s.t.Fatalf("%s at %d: %v", x.name, s.at, err)
	}
	switch duty {
	case Publish:
		all, err := s.reports(x)
		if err != nil {
			return err
		}
		next, err := Republish(x.name, r, all)
		if err != nil {
			return errWaits
		}
		return s.write(x, next)
	case Fetch:
		for _, y := range s.servers {
			if y != x && !y.away && !y.dead && y.held == r.State.NewCA() {
				if err := s.tick(x); err != nil {
					return err
				}
				x.held = y.held
				return s.tick(x)
			}
		}
	case Step:
		x.moving = true
		again, err := s.read(x)
		if err != nil {
			return err
		}
		if again == nil || again.Turn != x.name || again.State.Stage != r.State.Stage {
			x.moving = false
			return nil
		}
		x.disk = again.State
		x.disk.Serial = again.Serial
		if err := s.tick(x); err != nil {
			return err
		}
		x.files = x.disk.Stage
		if err := s.tick(x); err != nil {
			return err
		}
		s.restarts(x)
		if err := s.tick(x); err != nil {
			return err
		}
		x.moving = false
		return nil
	case End:
		if x.disk.Active() {
			x.disk = r.State
			x.disk.Serial = r.Serial
		}
		if err := s.tick(x); err != nil {
			return err
		}
		x.held = ""
		return nil
	case Hold:
		x.disk = r.State
		x.disk.Serial = r.Serial
	}
	if r == nil || !r.State.Active() || !forced && !Leads(x.name, *r, s.names()) {
		return nil
	}
	all, err := s.reports(x)
	if err != nil {
		return err
	}
	next, waits := Guide(*r, all, s.clock)
	if next.Serial == r.Serial && len(waits) == 0 {
		f := Facts{Now: s.clock, Nodes: []Node{s.agent}}
		if seen := r.Seen(f); seen.Serial != r.Serial {
			next = seen
		} else {
			next, _ = r.Advance(f)
		}
	}
	if next.Serial == r.Serial {
		return nil
	}
	next.Leader = x.name
	return s.write(x, next)
}

// begins is a user at a server.
func (s *site) begins(name string) error {
	x := s.server(name)
	r, err := s.read(x)
	if err != nil {
		return err
	}
	all, err := s.reports(x)
	if err != nil {
		return err
	}
	next, err := Propose(x.name, r, all, replaced(true), time.Hour, s.clock)
	if err != nil {
		return err
	}
	x.held = "new"
	return s.write(x, next)
}

// round lets everybody do once what it does again and again.
func (s *site) round() {
	s.clock = s.clock.Add(6 * time.Hour)
	for _, x := range s.servers {
		if err := s.acts(x, false); err != nil && !errors.Is(err, errKilled) && !errors.Is(err, errWaits) && !errs.Is(err, errs.Exists) {
			s.t.Fatalf("%s at %d: %v", x.name, s.at, err)
		}
	}
	// The agent asks one of them after the other: they may be in different stages.
	for range s.servers {
		s.asks++
		if x := s.servers[s.asks%len(s.servers)]; !x.away && !x.gone {
			s.agent.Trusts, s.agent.Issuer = trusted(x.files), signs(x.files)
			s.users()
		}
	}
}

func (s *site) agreed() State {
	if s.record == nil {
		return State{}
	}
	return s.parse().State
}

// ended tells that nothing is replaced, and nobody holds what was only there for it.
func (s *site) ended() bool {
	return s.record != nil && !s.agreed().Active() && !slices.ContainsFunc(s.servers, func(x *server) bool {
		return !x.gone && (x.away || x.dead || x.disk.Active() || x.held != "" || x.moving)
	})
}

func (s *site) settle(what string) {
	s.t.Helper()
	for range 120 {
		if s.ended() {
			break
		}
		s.round()
	}
	if len(s.broken) > 0 {
		s.t.Fatalf("%s: %s", what, s.broken[0])
	}
	if !s.ended() {
		var all []string
		for _, x := range s.servers {
			all = append(all, fmt.Sprintf("%+v", *x))
		}
		s.t.Fatalf("%s: it does not end: %s\n%s", what, s.record, strings.Join(all, "\n"))
	}
}

// Something happens at every point of a replacement on three servers. All accept each other and the agent all the time, one restarts at a
// time, and at the end nobody trusts the old CA.
func TestWhateverHappensAtWhateverPointTheServersAcceptEachOther(t *testing.T) {
	for _, tt := range []struct {
		name  string
		event func(s *site, acting *server) error
		after func(s *site)
		may   bool // come to nothing
	}{
		{"nothing", func(*site, *server) error { return nil }, nil, false},
		{"the daemon that acts is killed", func(*site, *server) error { return errKilled }, nil, false},
		{"the machine that acts is off for a while", func(_ *site, x *server) error { x.away = true; return nil }, nil, false},
		{"the leader is off for a while", func(s *site, _ *server) error { s.server("b").away = true; return nil }, nil, false},
		{"another one is off for a while", func(s *site, _ *server) error { s.server("c").away = true; return nil }, nil, false},
		{"all are off for a while", func(s *site, _ *server) error {
			for _, x := range s.servers {
				x.away = true
			}
			return nil
		}, nil, false},
		{"the leader is lost for good, and removed", func(s *site, _ *server) error { s.server("b").away = true; return nil }, func(s *site) { s.server("b").gone = true }, true},
		{"another one is lost for good, and removed", func(s *site, _ *server) error { s.server("c").away = true; return nil }, func(s *site) { s.server("c").gone = true }, false},
		{"another one decides in the same moment", func(s *site, x *server) error {
			s.point = 0
			for _, y := range s.servers {
				if y != x && !y.moving {
					_ = s.acts(y, true) // it may be told that it was too late
				}
			}
			return nil
		}, nil, false},
		{"another one begins in the same moment", func(s *site, x *server) error {
			s.point = 0
			if x.name == "b" && (s.record == nil || s.agreed().Active()) {
				_ = s.begins("c")
			}
			return nil
		}, nil, false},
		{"somebody deletes what they agree about", func(s *site, _ *server) error { s.record, s.version = nil, s.version+1; return nil }, nil, true},
		{"it is called off", func(s *site, x *server) error {
			if s.agreed().Stage == Trusting {
				next, err := s.parse().Told(true, false, s.clock)
				if err != nil {
					return err
				}
				s.version++
				s.record = next.Marshal()
			}
			return nil
		}, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			points := 0
			for point := 1; ; point++ {
				s := newSite(t, "a", "b", "c")
				s.point, s.event = point, tt.event
				what := fmt.Sprintf("at %d", point)
				_ = s.begins("b") // it may be killed before it has begun
				for range 3 {
					s.round()
				}
				reached := func() bool { return s.at >= point }
				for i := 0; i < 120 && !reached() && !s.ended(); i++ {
					s.round()
				}
				if !reached() {
					break
				}
				points++
				stage := s.agreed().Stage
				for range 4 { // what can be done without who is off is done
					s.round()
				}
				if off := slices.ContainsFunc(s.servers, func(x *server) bool { return x.away }); off && s.ended() {
					t.Fatalf("%s: it has ended in %q without one that is off", what, stage)
				}
				if tt.after != nil {
					tt.after(s)
				}
				for _, x := range s.servers {
					if x.away && !x.gone {
						x.away, x.dead = false, true // it starts
					}
				}
				for i := 0; s.record == nil && i < 10; i++ {
					s.round()
				}
				if s.record == nil { // it has never begun; the user tries again
					for _, x := range s.servers {
						if x.held != "" && !x.gone {
							t.Errorf("%s: %s has keys that nobody knows of", what, x.name)
						}
					}
					if err := s.begins(s.names()[0]); err != nil {
						t.Fatalf("%s: again: %v", what, err)
					}
				}
				s.settle(what)
				if end := s.agreed(); end.Aborted && !tt.may {
					t.Errorf("%s: it was called off", what)
				} else if !end.Aborted && (!slices.Equal(s.agent.Trusts, []string{"new"}) || slices.ContainsFunc(s.servers, func(x *server) bool { return !x.gone && x.loaded != Removing })) {
					t.Errorf("%s: somebody trusts the old CA: %v %+v", what, s.agent.Trusts, s.servers[0])
				}
				for _, x := range s.servers {
					if tt.name == "nothing" && x.restarted != 4 && x.restarted != 3 {
						t.Errorf("%s has restarted %d times", x.name, x.restarted)
					}
				}
			}
			if points < 60 {
				t.Errorf("there are only %d points", points)
			}
		})
	}
}

// trio is three servers that run a stage.
func trio(s State, runs string) []Report {
	var out []Report
	for _, n := range []string{"a", "b", "c"} {
		out = append(out, Report{Server: n, State: s, Runs: runs, Ready: true, Holds: "new", Keys: map[string]string{CA: "old", "sa": "k1"}})
	}
	return out
}

func TestNoServerHasATurnWhileAnotherIsAway(t *testing.T) {
	s := begun(t, true)
	r := Record{Serial: 3, Leader: "b", State: s}
	idle := trio(State{}, "") // with keys
	change := func(all []Report, i int, f func(*Report)) []Report {
		all = slices.Clone(all)
		f(&all[i])
		return all
	}
	there := trio(s, s.Epoch())
	for name, c := range map[string]struct {
		turn  string
		joint bool
		all   []Report
		want  string // the turn, or "joint"
		waits string
	}{
		"the first begins":                       {all: idle, want: "a"},
		"it goes over":                           {turn: "a", all: change(idle, 0, func(r *Report) { r.Moving = true }), want: "a", waits: "a goes over to the stage"},
		"it restarts":                            {turn: "a", all: change(idle, 0, func(r *Report) { r.Err = errWaits }), want: "a", waits: "a restarts its control plane, and does not answer yet (waits); if it does not come back: k1s node remove a"},
		"it starts":                              {turn: "a", all: change(idle, 0, func(r *Report) { *r = there[0]; r.Ready = false }), want: "a", waits: "the control plane of a is not ready"},
		"it is there, and still moves":           {turn: "a", all: change(idle, 0, func(r *Report) { *r = there[0]; r.Moving = true }), want: "a", waits: "a server goes over to another stage in this moment"},
		"then the next one":                      {turn: "a", all: change(idle, 0, func(r *Report) { *r = there[0] }), want: "b"},
		"not while one is away":                  {turn: "a", all: change(change(idle, 0, func(r *Report) { *r = there[0] }), 2, func(r *Report) { r.Err = errWaits }), want: "a", waits: "c does not answer (waits); if it does not come back: k1s node remove c"},
		"nor while one moves that has no turn":   {all: change(idle, 2, func(r *Report) { r.Moving = true }), want: "", waits: "a server goes over to another stage in this moment"},
		"nor while a stranger serves":            {all: append(slices.Clone(idle), Report{Server: "10.0.0.9:6443", Unknown: true}), want: "", waits: "the API server at 10.0.0.9:6443 is of no server that the cluster knows; one that was removed and runs on has to be stopped there"},
		"one that keeps it and does not run it":  {all: change(there, 1, func(r *Report) { r.Runs = "" }), want: "b"},
		"one that has never heard of it":         {joint: true, all: change(there, 1, func(r *Report) { r.State, r.Runs = State{}, "" }), want: "b"},
		"who had the turn was removed":           {turn: "z", all: idle, want: "a"},
		"all run it":                             {turn: "c", all: there, want: "joint"},
		"and nothing is done twice":              {joint: true, all: there, want: ""},
		"and one that is away later is told too": {joint: true, all: change(there, 1, func(r *Report) { r.Err = errWaits }), want: "", waits: "b does not answer (waits); if it does not come back: k1s node remove b"},
	} {
		t.Run(name, func(t *testing.T) {
			r := r
			r.Turn, r.Joint = c.turn, c.joint
			next, waits := Guide(r, c.all, now.Add(time.Minute))
			got := next.Turn
			if next.Joint && !r.Joint {
				got = "joint"
			}
			if got != c.want || strings.Join(waits, "; ") != c.waits {
				t.Errorf("%q, waits for %q", got, waits)
			}
			if changed := got != c.turn; (next.Serial != r.Serial) != changed {
				t.Errorf("serial %d after %d", next.Serial, r.Serial)
			}
		})
	}
}

// Until the last server signs with the new ones, tokens and certificates of the old ones are still made.
func TestTimesCountSinceTheLastServerIsAtTheStage(t *testing.T) {
	s := in(begun(t, true), Overlapping)
	late := now.Add(3 * time.Hour)
	next, waits := Guide(Record{Serial: 3, State: s, Turn: "c"}, trio(s, s.Epoch()), late)
	if len(waits) > 0 || !next.Joint || !next.State.Since.Equal(late) || !next.State.Switched.Equal(late) || !next.State.Until.Equal(late.Add(time.Hour)) {
		t.Errorf("%+v, waits for %q", next, waits)
	}
	if !next.State.TokensUntil().Equal(late.Add(TokensLast)) || next.State.Epoch() != s.Epoch() {
		t.Errorf("tokens are good until %s", next.State.TokensUntil())
	}
}

func TestWhoWasBehindIsKnownToWhoeverDecidesNext(t *testing.T) {
	s := in(begun(t, true), Overlapping)
	s.Hurry = true
	r := Record{Serial: 3, Leader: "b", State: s, Joint: true}
	behind := Node{Name: "agent", Present: true, Trusts: []string{"old", "new"}, Issuer: "old"}
	f := Facts{Now: now.Add(9 * time.Minute), Nodes: []Node{behind}}
	seen := r.Seen(f)
	if seen.Serial == r.Serial || seen.BehindAt.Before(f.Now) {
		t.Fatalf("%+v", seen)
	}
	if again := seen.Seen(Facts{Now: f.Now.Add(time.Second), Nodes: f.Nodes}); again.Serial != seen.Serial {
		t.Error("it is written with every look")
	}
	read, err := UnmarshalRecord(seen.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	behind.Issuer = "new"
	f = Facts{Now: f.Now.Add(9 * time.Minute), Nodes: []Node{behind}}
	if next, waits := read.Advance(f); next.Serial != read.Serial || len(waits) != 1 || !strings.HasPrefix(waits[0], "running programs read the new CA by") {
		t.Errorf("another server has forgotten it: %+v, waits for %q", next, waits)
	}
	f.Now = f.Now.Add(2 * time.Minute)
	next, waits := read.Advance(f)
	if len(waits) > 0 || next.State.Stage != Draining || next.Joint || next.Turn != "" || !next.BehindAt.IsZero() {
		t.Errorf("%+v, waits for %q", next, waits)
	}
}

func TestAReplacementBeginsOnlyWhenAllServersAreInOrder(t *testing.T) {
	all := trio(State{}, "")
	all[2].State.Number = 4 // it was the only one once
	r, err := Propose("b", nil, all, replaced(true), time.Hour, now)
	if err != nil || r.Leader != "b" || r.State.Number != 5 || r.State.Stage != Trusting || r.Serial != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := Propose("a", &r, all, replaced(true), time.Hour, now); !errs.Is(err, errs.Exists) {
		t.Errorf("begun twice: %v", err)
	}
	for want, change := range map[string]func(*Report){
		"b does not answer (waits)":                               func(r *Report) { r.Err = errWaits },
		"the API is also served at b":                             func(r *Report) { r.Unknown = true },
		"the control plane of b is not ready":                     func(r *Report) { r.Ready = false },
		"b is not at the end of the replacement before":           func(r *Report) { r.State = begun(t, true) },
		"b does not have the key of sa that is in use here":       func(r *Report) { r.Keys = map[string]string{CA: "old"} },
		"b does not have the key of ca that is in use here":       func(r *Report) { r.Keys = map[string]string{CA: "other", "sa": "k1"} },
		"b is not at the end of the replacement before; c is not": func(r *Report) { r.Moving = true },
	} {
		servers := trio(State{}, "")
		change(&servers[1])
		if strings.Contains(want, "; c") {
			change(&servers[2])
		}
		if _, err := Propose("a", nil, servers, replaced(true), time.Hour, now); !errs.Is(err, errs.NotRunning) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

func TestAServerOfAnotherTimeDoesNotFollow(t *testing.T) {
	s := in(begun(t, true), Removing)
	r := &Record{Serial: 9, State: s, Turn: "a"}
	early, other := in(begun(t, true), Trusting), in(begun(t, true), Overlapping)
	other.Number = 7
	for name, local := range map[string]State{"it was never told": {}, "it has missed a stage": early, "it is in another replacement": other} {
		duty, err := Follow(Own{Name: "a", State: local, Holds: "new"}, r)
		if hint, _ := errs.HintOf(err); err == nil || duty == Step || !strings.Contains(hint, "k1s node remove") {
			t.Errorf("%s: %s, %v", name, duty, err)
		}
	}
	ended := &Record{Serial: 10, State: State{Number: 1, Authorities: s.Authorities}}
	if _, err := Follow(Own{Name: "a", State: early}, ended); err == nil {
		t.Error("it ends a replacement in the middle")
	}
}

func TestADatabaseOfAnotherTimeTakesNobodyBack(t *testing.T) {
	s := in(begun(t, true), Overlapping)
	s.Serial = 9
	all := trio(s, s.Epoch())
	all[0].State = in(s, Trusting)
	all[0].State.Serial = 6
	old := &Record{Serial: 2, State: in(s, Trusting), Version: "77"}
	for _, r := range []*Record{nil, old} {
		if duty, err := Follow(Own{Name: "b", State: s, Runs: s.Epoch(), Holds: "new"}, r); duty != Publish || err != nil {
			t.Errorf("%s, %v", duty, err)
		}
		next, err := Republish("a", r, all)
		if err != nil || next.State.Stage != Overlapping || next.Serial != 10 || next.Leader != "a" || r != nil && next.Version != "77" {
			t.Errorf("%+v, %v", next, err)
		}
	}
	all[1].Err = errWaits
	if _, err := Republish("a", nil, all); !errs.Is(err, errs.NotRunning) || !strings.Contains(err.Error(), "b does not answer") {
		t.Errorf("one may know more: %v", err)
	}
	// A database with a replacement in it whose keys are nowhere: a backup of the moment in which it began.
	lost := Record{Serial: 12, State: begun(t, true), Turn: "a"}
	nobody := trio(State{}, "")
	for i := range nobody {
		nobody[i].Holds = ""
	}
	lost.Turn = ""
	if next, waits := Guide(lost, nobody, now); next.State.Active() || !next.State.Aborted || len(waits) > 0 {
		t.Errorf("%+v, waits for %q", next, waits)
	}
}

func TestARecordHasNoKeyAndIsReadAsItWasWritten(t *testing.T) {
	r := Record{Serial: 4, Leader: "a", Turn: "b", Joint: true, BehindAt: now, State: begun(t, true)}
	got, err := UnmarshalRecord(r.Marshal())
	if err != nil || fmt.Sprint(got) != fmt.Sprint(r) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, damaged := range []string{"", "{}", `{"serial":1,"state":{"stage":"dancing"}}`, `{"serial":1,"state":{"number":1,"stage":"trusting"}}`} {
		if got, err := UnmarshalRecord([]byte(damaged)); err == nil {
			t.Errorf("%q is read as %+v", damaged, got)
		}
	}
}

func TestWhatTheUserSaysCountsForAll(t *testing.T) {
	r := Record{Serial: 4, Turn: "b", Joint: true, State: begun(t, true)}
	off, err := r.Told(true, false, now)
	if err != nil || off.State.Stage != Aborting || off.Turn != "" || off.Joint || off.Serial != 5 {
		t.Errorf("%+v, %v", off, err)
	}
	if again, err := off.Told(true, false, now); err != nil || again.Serial != off.Serial {
		t.Errorf("asked twice: %+v, %v", again, err)
	}
	r.State = in(r.State, Overlapping)
	hurry, err := r.Told(false, true, now)
	if err != nil || !hurry.State.Hurry || !hurry.State.DropTokens || hurry.Turn != "b" || !hurry.Joint {
		t.Errorf("%+v, %v", hurry, err)
	}
	if _, err := r.Told(true, false, now); !errs.Is(err, errs.Failure) {
		t.Errorf("called off after the new ones sign: %v", err)
	}
	if _, err := (Record{}).Told(false, false, now); !errs.Is(err, errs.NotFound) {
		t.Errorf("none: %v", err)
	}
}
