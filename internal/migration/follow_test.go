package migration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	leading = "server-0"
	attempt = "try"
)

// site is a cluster of several servers in memory: two datastores, what was written to each, and the servers. Every deed that changes
// something can be the last of its server's daemon, and the register may not answer.
type site struct {
	t        *testing.T
	servers  map[string]*machine
	register Register // in the datastore that all reach
	fence    bool     // in the old one
	etcd     bool     // the new one is an etcd of the servers
	deaf     bool     // the register does not answer

	deeds  int
	killAt int // the number of the deed before which that daemon ends; 0 for none
	log    []string
	failAt string // the deed that fails
}

// machine is one server. Its disk is what survives.
type machine struct {
	s    *site
	name string

	config string     // on the disk: "a" or "b"
	state  State      // of the one that leads
	record *Following // of those that follow
	dead   bool       // its daemon, until it starts again
	away   bool       // nobody reaches it
	serves string     // "" while its API server does not
	told   bool       // the leader, that it does not serve
	member string     // what is on the disk of an etcd of the servers: "", stale or new
	placed bool       // kept on the disk: it is to be a new member
	waits  bool       // a start waits for its place
}

// newEtcdSite is one where the servers move to an etcd of theirs, and each still has the data of the one they left.
func newEtcdSite(t *testing.T, names ...string) *site {
	s := newSite(t, names...)
	s.etcd = true
	for _, m := range s.servers {
		m.member = "stale"
	}
	return s
}

func newSite(t *testing.T, names ...string) *site {
	s := &site{t: t, servers: map[string]*machine{}}
	for _, n := range names {
		s.servers[n] = &machine{s: s, name: n, config: "a", serves: "a"}
	}
	return s
}

// do is one deed of a server.
func (m *machine) do(deed string) error {
	if m.dead {
		return errKilled
	}
	m.s.deeds++
	if m.s.killAt == m.s.deeds {
		m.dead = true
		return errKilled
	}
	m.s.log = append(m.s.log, m.name+" "+deed)
	if m.s.failAt == m.name+" "+deed {
		return errors.New("broken")
	}
	return nil
}

// serve lets an API server serve, and finds out whether it may.
func (m *machine) serve(from string) {
	m.s.t.Helper()
	if m.s.etcd && from == "b" && m.member != "new" {
		m.s.t.Fatalf("%s serves from an etcd that is %q on its disk: %q", m.name, m.member, m.s.log)
	}
	m.serves = from
	m.s.look()
}

// look is what must be true at any time: nobody serves from the old datastore when the new one is in use, or was agreed about, and
// nobody from the new one before.
func (s *site) look() {
	s.t.Helper()
	agreed := s.register.Of(attempt) == Forward
	for name, m := range s.servers {
		switch {
		case m.serves == "a" && agreed && m.name != "":
			s.t.Fatalf("%s serves from the old datastore, and they agreed about the new one: %q", name, s.log)
		case m.serves == "b" && !agreed:
			s.t.Fatalf("%s serves from the new datastore, and nobody has agreed about it: %q", name, s.log)
		}
	}
}

// settle is the register as a server reaches it.
func (s *site) settle(want Decision) (Decision, error) {
	if s.deaf {
		return "", errors.New("it does not answer")
	}
	next, write := s.register.Decide(attempt, want)
	if write {
		s.register = next
		s.look()
	}
	return s.register.Of(attempt), nil
}

// leader is the World of the one that leads.
type leader struct{ *machine }

func (l leader) Keep(s State) error {
	err := l.do("keep " + string(s.Phase))
	if err == nil {
		l.state = s
	}
	return err
}
func (l leader) Copy(context.Context) (bool, error) {
	err := l.do("copy")
	if err == nil {
		l.member = ""
	}
	return true, err
}
func (l leader) Fence(ctx context.Context) error {
	if err := l.do("open"); err != nil {
		return err
	}
	if _, err := l.s.settle(Open); err != nil {
		return err
	}
	for _, name := range l.state.Servers {
		f := l.s.servers[name]
		f.follow(ctx)
		if !f.told {
			return fmt.Errorf("%s does not say that it has stopped", name)
		}
	}
	return nil
}
func (l leader) Pause(context.Context) error {
	err := l.do("pause")
	if err == nil {
		l.serves = ""
	}
	return err
}
func (l leader) Finish(context.Context) (Result, error) {
	err := l.do("finish")
	if err != nil {
		return Result{}, err
	}
	for name, m := range l.s.servers {
		if m.serves != "" {
			l.s.t.Fatalf("%s serves from %q while the rest is copied: %q", name, m.serves, l.s.log)
		}
	}
	l.s.fence, l.member = true, "new"
	return Result{Keys: 7}, nil
}
func (l leader) Switch(context.Context) error {
	if err := l.do("agree"); err != nil {
		return InDoubt{err}
	}
	decided, err := l.s.settle(Forward)
	switch {
	case err != nil:
		return InDoubt{err}
	case decided != Forward:
		return errors.New("they went back")
	}
	if err := l.do("switch"); err != nil {
		return InDoubt{err}
	}
	l.config = "b"
	return nil
}
func (l leader) Unswitch() error {
	l.s.t.Fatal("what several have agreed about is taken back")
	return nil
}
func (l leader) Start(context.Context) error {
	err := l.do("start")
	if err == nil {
		l.serve("b")
	}
	return err
}
func (l leader) Resume(context.Context) error {
	err := l.do("resume")
	if err == nil {
		l.serve("a")
	}
	return err
}
func (l leader) Now() time.Time { return noon }

// follower is the Follower of the others.
type follower struct{ *machine }

func (f follower) Keep(r Following) error {
	err := f.do("keep " + strings.TrimSpace("following "+string(r.Decided)))
	if err == nil {
		f.record = &r
	}
	return err
}
func (f follower) Stop(context.Context) error {
	err := f.do("stop")
	if err == nil {
		f.serves = ""
	}
	return err
}

// Learn asks the leader, and the register where that is away.
func (f follower) Learn(context.Context) (Decision, error) {
	if err := f.do("learn"); err != nil {
		return "", err
	}
	f.told = true
	l := f.s.servers[leading]
	if !l.dead && l.serves != "" {
		if d := l.state.Told(attempt); d != "" {
			return d, nil
		}
	}
	want := Decision("")
	if l.away {
		want = Back
	}
	d, err := f.s.settle(want)
	if err == nil && d != Forward && d != Back {
		err = errors.New("nothing is decided yet")
	}
	return d, err
}
func (f follower) Prepare() error {
	err := f.do("prepare")
	if err == nil && f.s.etcd && !f.placed {
		f.member = ""
		err = f.do("keep that it is to be a member")
		f.placed = err == nil
	}
	return err
}
func (f follower) Switch() error {
	err := f.do("switch")
	if err == nil {
		f.config = "b"
	}
	return err
}

// Join needs the leader, which has founded it.
func (f follower) Join(context.Context) error {
	err := f.do("join")
	if err == nil && !f.takesPlace() {
		err = errors.New("nobody is in it")
	}
	return err
}

func (m *machine) takesPlace() bool {
	l := m.s.servers[leading]
	if m.s.etcd && m.member != "new" {
		if l.dead || l.away || l.serves != "b" {
			return false
		}
		if m.member != "" || !m.placed {
			m.s.t.Fatalf("%s joins with an etcd that is %q, placed: %v: %q", m.name, m.member, m.placed, m.s.log)
		}
		m.member = "new"
	}
	return true
}
func (f follower) Serve(context.Context) error {
	err := f.do("serve")
	if err == nil {
		f.serve(f.config)
	}
	return err
}
func (f follower) Forget() error {
	err := f.do("forget")
	if err == nil {
		f.record = nil
	}
	return err
}

// follow is one try of a server that follows, or that is told to.
func (m *machine) follow(ctx context.Context) {
	if m.dead || m.away {
		return
	}
	r := Following{Attempt: attempt, Leader: leading}
	if m.record != nil {
		r = *m.record
	}
	_, _ = Follow(ctx, follower{m}, r)
}

// starts is a daemon that starts: what it finds on its disk decides whether its API server may serve before anything is learned. The
// processes of before are gone.
func (m *machine) starts() {
	m.dead = false
	m.serves = ""
	if m.name == leading {
		m.state = m.state.Recover(m.config, noon)
		if m.state.Phase != Switching {
			m.serve(m.config)
		}
		return
	}
	if m.record == nil || m.record.Decided == Forward && m.config == "b" {
		if m.waits = m.config == "b" && !m.takesPlace(); m.waits {
			return
		}
		m.serve(m.config)
	}
}

// settled lets every server go on until nothing changes.
func (s *site) settled(ctx context.Context) {
	for range 3 {
		for _, name := range slices.Sorted(maps.Keys(s.servers)) {
			m := s.servers[name]
			switch {
			case m.away || m.dead:
			case m.waits:
				if m.waits = !m.takesPlace(); !m.waits {
					m.serve(m.config)
				}
			case name == leading && m.state.Active():
				m.run(ctx)
			case name != leading && m.record != nil:
				m.follow(ctx)
			}
		}
	}
}

func (s *site) begun() State {
	st, err := State{}.Begin(Migrate, here, there, noon, func() string { return "one" })
	if err != nil {
		s.t.Fatal(err)
	}
	var others []string
	for _, name := range slices.Sorted(maps.Keys(s.servers)) {
		if name != leading {
			others = append(others, name)
		}
	}
	return st.Together(others, attempt)
}

// runs is a move of several until somebody is killed or it is at its end.
func (s *site) runs(ctx context.Context) {
	l := s.servers[leading]
	l.state = s.begun()
	l.run(ctx)
}

// run is the leader's: what it has in memory dies with it.
func (m *machine) run(ctx context.Context) {
	if s, _ := Run(ctx, leader{m}, m.state); !m.dead {
		m.state = s
	}
}

// one checks that all that are there serve from one datastore, which is the one they agreed about.
func (s *site) one(want string) {
	s.t.Helper()
	for name, m := range s.servers {
		if !m.away && (m.serves != want || m.config != want || m.record != nil) {
			s.t.Errorf("%s serves from %q, is configured for %q, and keeps %+v; it should be %q: %q", name, m.serves, m.config, m.record, want, s.log)
		}
	}
}

// nobodyWithoutTheState checks that nobody serves who is not in the etcd whose founder is gone, and that those who have gone or want to say so.
func (s *site) nobodyWithoutTheState() {
	s.t.Helper()
	for name, m := range s.servers {
		if !m.away && m.serves != "" && m.member != "new" || !m.away && m.serves == "" && m.record == nil {
			s.t.Errorf("%s serves from %q, its etcd is %q, and it keeps %+v: %q", name, m.serves, m.member, m.record, s.log)
		}
	}
}

var three = []string{leading, "server-1", "server-2"}

func TestSeveralServersMoveTogether(t *testing.T) {
	s := newSite(t, three...)
	s.runs(t.Context())
	s.settled(t.Context())
	s.one("b")
	l := s.servers[leading]
	if l.state.Phase != Done || l.state.Fence || l.state.Previous == nil {
		t.Errorf("%+v", l.state)
	}
	var phases []string
	for _, d := range s.log {
		if p, ok := strings.CutPrefix(d, leading+" keep "); ok {
			phases = append(phases, p)
		}
	}
	if want := strings.Fields("copying fencing pausing finishing switching starting done"); !reflect.DeepEqual(phases, want) {
		t.Errorf("its phases are %q", phases)
	}
}

// Every daemon is killed before every deed; it starts again, or its machine never comes back. With the register deaf for a while they
// wait, and do nothing else.
func TestAKillAtAnyPointLeavesSeveralServersOnOneDatastore(t *testing.T) {
	killAnywhere(t, newSite)
}

func TestAKillAtAnyPointLeavesSeveralServersInOneEtcdOrOnTheDatabase(t *testing.T) {
	killAnywhere(t, newEtcdSite)
}

func killAnywhere(t *testing.T, newSite func(*testing.T, ...string) *site) {
	whole := newSite(t, three...)
	whole.runs(t.Context())
	whole.settled(t.Context())
	for at := 1; at <= whole.deeds; at++ {
		for _, how := range []string{"starts again", "starts again late", "starts again while the register is deaf", "never comes back"} {
			t.Run(fmt.Sprintf("before deed %d, %s, and %s", at, whole.log[at-1], how), func(t *testing.T) {
				s := newSite(t, three...)
				s.killAt = at
				s.runs(t.Context())
				var killed *machine
				for _, m := range s.servers {
					if m.dead {
						killed = m
					}
				}
				if killed == nil { // one that follows goes on after the leader's end
					s.settled(t.Context())
					for _, m := range s.servers {
						if m.dead {
							killed = m
						}
					}
				}
				if killed == nil {
					t.Fatal("nobody is killed")
				}
				switch how {
				case "starts again":
					killed.starts()
				case "starts again late":
					killed.away = true
					s.settled(t.Context())
					killed.away = false
					killed.starts()
				case "starts again while the register is deaf":
					s.deaf = true
					killed.starts()
					s.settled(t.Context())
					s.deaf = false
				case "never comes back":
					killed.away, killed.serves = true, ""
				}
				s.settled(t.Context())
				want := "a"
				if s.register.Of(attempt) == Forward {
					want = "b"
				}
				if s.etcd && want == "b" && killed.name == leading && killed.away {
					s.nobodyWithoutTheState()
					return
				}
				s.one(want)
			})
		}
	}
}

func TestWhatFailsLeavesSeveralServersWhereTheyWere(t *testing.T) {
	for _, deed := range []string{"server-0 copy", "server-0 open", "server-0 pause", "server-0 finish", "server-0 keep pausing", "server-0 keep finishing", "server-1 keep following", "server-2 stop"} {
		t.Run(deed, func(t *testing.T) {
			s := newSite(t, three...)
			s.failAt = deed
			s.runs(t.Context())
			s.failAt = ""
			s.settled(t.Context())
			s.one("a")
			if st := s.servers[leading].state; st.Phase != Failed || st.Error == "" {
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestWhatFailsAfterItIsAgreedIsTriedAgain(t *testing.T) {
	for _, deed := range []string{"server-0 switch", "server-0 keep starting", "server-0 start", "server-0 keep done", "server-0 agree", "server-1 switch", "server-2 serve", "server-2 forget", "server-1 keep following forward",
		"server-1 prepare", "server-1 keep that it is to be a member", "server-2 join"} {
		t.Run(deed, func(t *testing.T) {
			s := newEtcdSite(t, three...)
			s.failAt = deed
			s.runs(t.Context())
			s.settled(t.Context())
			s.failAt = ""
			s.settled(t.Context())
			s.one("b")
		})
	}
}

// The leader has been away for too long, and the others have gone back: when it wants to go on it is told so.
func TestALeaderThatComesTooLateGoesBack(t *testing.T) {
	s := newSite(t, three...)
	l := s.servers[leading]
	for i, d := range allDeeds(t) {
		if d == leading+" agree" {
			s.killAt = i + 1
		}
	}
	s.runs(t.Context())
	if l.state.Phase != Switching || !l.dead {
		t.Fatalf("%+v", l.state)
	}
	l.away = true
	s.settled(t.Context())
	s.one("a")
	l.away = false
	l.starts()
	if l.serves != "" {
		t.Error("it serves before it knows")
	}
	s.settled(t.Context())
	s.one("a")
	if l.state.Phase != Failed {
		t.Errorf("%+v", l.state)
	}
}

func allDeeds(t *testing.T) []string {
	s := newSite(t, three...)
	s.runs(t.Context())
	return s.log
}

func TestWhatIsDecidedIsDecidedOnce(t *testing.T) {
	open := Register{attempt, Open}
	for name, c := range map[string]struct {
		from  Register
		want  Decision
		is    Register
		write bool
	}{
		"a look":                       {open, "", open, false},
		"the beginning":                {Register{}, Open, open, true},
		"the beginning again":          {open, Open, open, false},
		"the beginning after another":  {Register{"before", Forward}, Open, open, true},
		"forward":                      {open, Forward, Register{attempt, Forward}, true},
		"back":                         {open, Back, Register{attempt, Back}, true},
		"forward after back":           {Register{attempt, Back}, Forward, Register{attempt, Back}, false},
		"back after forward":           {Register{attempt, Forward}, Back, Register{attempt, Forward}, false},
		"open after forward":           {Register{attempt, Forward}, Open, Register{attempt, Forward}, false},
		"forward where nothing began":  {Register{}, Forward, Register{}, false},
		"back where another one began": {Register{"later", Open}, Back, Register{"later", Open}, false},
	} {
		if next, write := c.from.Decide(attempt, c.want); next != c.is || write != c.write {
			t.Errorf("%s: %+v, %v", name, next, write)
		}
	}
	if d := (Register{"later", Forward}).Of(attempt); d != "" {
		t.Errorf("another attempt says %q", d)
	}
}

func TestWhatALeaderTells(t *testing.T) {
	for phase, want := range map[Phase]Decision{Copying: "", Fencing: "", Finishing: "", Switching: "", Starting: Forward, Done: Forward, Failed: Back} {
		if got := (State{Attempt: attempt, Phase: phase}).Told(attempt); got != want {
			t.Errorf("%s: %q, want %q", phase, got, want)
		}
		if got := (State{Attempt: "other", Phase: phase}).Told(attempt); got != "" {
			t.Errorf("%s of another attempt: %q", phase, got)
		}
	}
	if got := (State{Phase: Done}).Told(""); got != "" {
		t.Errorf("a move of one server: %q", got)
	}
}

func TestTheFileOfAServerThatFollows(t *testing.T) {
	f := Following{Attempt: attempt, ID: "one", Kind: Migrate, Leader: leading, At: "10.0.0.1:6443", From: here, To: there, Root: "/registry", Since: noon, Decided: Forward}
	if got, err := UnmarshalFollowing(f.Marshal()); err != nil || got != f {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"{", "{}"} {
		if _, err := UnmarshalFollowing([]byte(bad)); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}
