package rollout

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/upgrade"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

const tick = 2 * time.Second

// errKilled is the end of the leader: nothing it does happens any more.
var errKilled = errors.New("killed")

// machine is a node of the cluster, which does what it is told.
type machine struct {
	server, podless   bool
	program           string // its digest
	order             string
	phase             upgrade.Phase
	since             time.Time // since when it is at its phase
	fails             int       // of how many attempts that are to come
	away              bool      // for good
	mine              bool      // cordoned by a person
	called, cordoned  bool
	pods              int           // that have to leave it
	stuck             bool          // they do not
	began             int           // how often it began to go over
	drained           bool          // it was emptied when it went over last
	leaving           time.Duration // how long they take
	emptyingSince     time.Time
	emptying, unhappy bool
}

// world is a cluster in memory.
type world struct {
	t        *testing.T
	now      time.Time
	machines map[string]*machine
	plan     Plan
	kept     Record
	// heard is what the leader has heard; it is lost with it. drains, too.
	heard  map[string]Report
	drains map[string]Drain
	leader string
	points int
	killAt int
}

func newWorld(t *testing.T, servers, agents int) *world {
	t.Helper()
	w := &world{t: t, now: noon, machines: map[string]*machine{}, heard: map[string]Report{}, drains: map[string]Drain{}, leader: "server-0",
		plan: Plan{ID: "id", By: "server-0", To: upgrade.Program{Version: "v0.3.0", Kubernetes: "v1.37.0", Digest: "new"}, Timeout: 5 * time.Minute, Drain: time.Minute, Parallel: 1, Began: noon}}
	for i := range servers {
		w.machines[fmt.Sprintf("server-%d", i)] = &machine{server: true, program: "old", pods: 1, leaving: 4 * time.Second}
	}
	for i := range agents {
		w.machines[fmt.Sprintf("agent-%d", i)] = &machine{program: "old", pods: 2, leaving: 4 * time.Second}
	}
	return w
}

func (w *world) names() map[string]bool {
	out := map[string]bool{}
	for name, m := range w.machines {
		out[name] = m.server
	}
	return out
}

func (w *world) begins() {
	w.t.Helper()
	r, err := Begin("server-0", nil, Signed{}, w.plan, w.names())
	if err != nil {
		w.t.Fatal(err)
	}
	w.kept = r
}

// there tells that a node answers.
func (m *machine) there() bool { return !m.away && m.phase != upgrade.Trying }

func (w *world) facts() Facts {
	f := Facts{Now: w.now, Machines: w.names(), Nodes: map[string]Seen{}, Reports: maps.Clone(w.heard), Drains: maps.Clone(w.drains)}
	for name, m := range w.machines {
		if m.podless {
			continue
		}
		kubelet := map[string]string{"old": "v1.36.3", "new": "v1.37.0"}[m.program]
		f.Nodes[name] = Seen{Ready: m.there(), Why: "away", Kubelet: kubelet, Unschedulable: m.mine || m.cordoned, Cordoned: m.cordoned, Called: m.called}
	}
	return f
}

// point is a moment at which the leader may end.
func (w *world) point() error {
	if w.points++; w.points == w.killAt {
		w.heard, w.drains = map[string]Report{}, map[string]Drain{}
		for _, m := range w.machines {
			m.emptying = false
		}
		return errKilled
	}
	return nil
}

// leads is one look of the leader.
func (w *world) leads() error {
	l := w.machines[w.leader]
	if !l.there() {
		return nil
	}
	w.hears(w.leader)
	r := w.kept
	next, actions, _ := r.Advance(w.facts())
	wanted := map[string]bool{}
	for _, a := range actions {
		if err := w.point(); err != nil {
			return err
		}
		m := w.machines[a.Node]
		switch a.Deed {
		case Call:
			m.called = true
		case Cordon:
			if !m.mine {
				m.cordoned = true
			}
		case Empty:
			wanted[a.Node] = true
			if !m.emptying {
				m.emptying, m.emptyingSince = true, w.now
			}
			w.drains[a.Node] = Drain{Done: m.pods == 0, Last: "evicting"}
		case Release:
			m.called, m.cordoned = false, false
		}
	}
	for name, m := range w.machines {
		if !wanted[name] {
			m.emptying = false
			delete(w.drains, name)
		}
	}
	if next.Serial == r.Serial {
		return nil
	}
	if err := w.point(); err != nil {
		return err
	}
	if next.Serial != w.kept.Serial+1 {
		w.t.Fatalf("%d takes the place of %d", next.Serial, w.kept.Serial)
	}
	w.kept = next
	return w.point()
}

func (w *world) hears(name string) {
	m := w.machines[name]
	if !m.there() {
		return
	}
	if !m.server && !m.called {
		return // it does not know that anybody wants to hear from it
	}
	r := Report{Node: name, Digest: m.program, Version: "v0.2.0", Kubernetes: "v1.36.3", Well: !m.unhappy, Why: "unwell", Order: m.order, Phase: m.phase, At: w.now}
	if m.phase == upgrade.Failed {
		r.Error, r.Hint = "it did not work", "mend it"
	}
	w.heard[name] = r
}

// passes lets time pass for all nodes.
func (w *world) passes() {
	w.now = w.now.Add(tick)
	for _, name := range slices.Sorted(maps.Keys(w.machines)) {
		m := w.machines[name]
		if m.emptying && !m.stuck && w.now.Sub(m.emptyingSince) >= m.leaving {
			m.pods = 0
		}
		if m.phase == upgrade.Trying && w.now.Sub(m.since) >= 6*time.Second {
			if m.fails > 0 {
				m.fails--
				m.phase = upgrade.Failed
			} else {
				m.phase, m.program = upgrade.Done, "new"
			}
		}
		if !m.there() {
			continue
		}
		w.hears(name)
		// What it knows of an order it knows from the leader.
		if o := w.kept.Order(name); o != nil && w.machines[w.leader].there() && (m.server || m.called) && m.order != o.Key && m.program != "new" {
			m.order, m.phase, m.since, m.began = o.Key, upgrade.Trying, w.now, m.began+1
			m.drained = m.pods == 0
		}
	}
	w.looks()
}

// looks checks what always holds.
func (w *world) looks() {
	servers, agents := 0, 0
	for _, name := range slices.Sorted(maps.Keys(w.machines)) {
		switch m := w.machines[name]; {
		case m.phase != upgrade.Trying:
		case m.server:
			servers++
		default:
			agents++
			for other, o := range w.machines {
				if o.server && o.program != "new" && !o.away {
					w.t.Errorf("%s goes over before server %s", name, other)
				}
			}
		}
	}
	if servers > 1 || servers > 0 && agents > 0 || agents > w.plan.Parallel {
		w.t.Errorf("%d servers and %d agents go over at once", servers, agents)
	}
}

// runs goes on until the record is not moved by itself any more, and nothing is to be released.
func (w *world) runs() {
	w.t.Helper()
	still := 0
	for range 2000 {
		before := w.kept.Serial
		if err := w.leads(); err != nil && !errors.Is(err, errKilled) {
			w.t.Fatal(err)
		}
		w.passes()
		if w.kept.Moving() || w.kept.Serial != before {
			still = 0
			continue
		}
		if still++; still > 3 {
			return
		}
	}
	w.t.Fatalf("it does not come to its end: %+v", w.kept)
}

func (w *world) steps() map[string]Step {
	out := map[string]Step{}
	for _, n := range w.kept.Nodes {
		out[n.Name] = n.Step
	}
	return out
}

// released checks that nothing of an upgrade is left on nodes.
func (w *world) released() {
	w.t.Helper()
	for name, m := range w.machines {
		if m.called || m.cordoned {
			w.t.Errorf("%s is left as it was for its turn: %+v", name, m)
		}
	}
}

func (w *world) all(step Step) {
	w.t.Helper()
	for name, s := range w.steps() {
		if s != step {
			w.t.Errorf("%s is %s", name, s)
		}
	}
}

func TestAClusterGoesOverNodeByNode(t *testing.T) {
	for _, c := range []struct{ servers, agents, parallel int }{{1, 0, 1}, {1, 2, 1}, {3, 5, 3}, {2, 0, 1}} {
		w := newWorld(t, c.servers, c.agents)
		w.plan.Parallel = c.parallel
		w.begins()
		w.runs()
		w.all(Upgraded)
		w.released()
		if w.kept.Stage != Complete || w.kept.Ended.IsZero() {
			t.Errorf("%+v: %+v", c, w.kept)
		}
		for name, m := range w.machines {
			if m.began != 1 || m.program != "new" || m.drained != (len(w.machines) > 1) { // where else could pods go?
				t.Errorf("%+v: %s: %+v", c, name, m)
			}
		}
	}
}

func TestTheLeaderMayEndAtAnyPoint(t *testing.T) {
	for at := 1; ; at++ {
		w := newWorld(t, 2, 2)
		w.machines["server-1"].podless = true
		w.machines["agent-1"].mine = true
		w.killAt = at
		w.begins()
		w.runs()
		w.all(Upgraded)
		w.released()
		for name, m := range w.machines {
			if m.began != 1 || m.mine != (name == "agent-1") {
				t.Errorf("at %d: %s: %+v", at, name, m)
			}
		}
		if t.Failed() {
			t.Fatalf("at %d", at)
		}
		if w.points < at {
			if at < 15 {
				t.Errorf("only %d points", at)
			}
			return
		}
	}
}

func TestTheFirstFailureHaltsAndAResumeGoesOn(t *testing.T) {
	for at := 0; ; at++ { // 0 is never
		w := newWorld(t, 1, 4)
		w.machines["agent-1"].fails = 1
		w.plan.Parallel = 2
		w.killAt = at
		w.begins()
		w.runs()
		if w.kept.Stage != Halted || w.kept.Failed() == nil || w.kept.Failed().Name != "agent-1" || w.kept.Failed().Error != "it did not work" || w.kept.Failed().Hint != "mend it" {
			t.Fatalf("at %d: %+v", at, w.kept)
		}
		w.released()
		if w.machines["agent-3"].began != 0 {
			t.Errorf("at %d: one more was begun with: %v", at, w.steps())
		}
		halted := w.points
		next, err := w.kept.Resume("server-0")
		if err != nil {
			t.Fatal(err)
		}
		w.kept = next
		w.runs()
		w.all(Upgraded)
		w.released()
		for name, m := range w.machines {
			if want := map[bool]int{true: 2, false: 1}[name == "agent-1"]; m.began != want {
				t.Errorf("at %d: %s began %d times", at, name, m.began)
			}
		}
		if t.Failed() {
			t.Fatalf("at %d", at)
		}
		if at > halted {
			return
		}
	}
}

func TestAnAbortBeginsWithNobodyAnyMore(t *testing.T) {
	for after := range 60 { // looks of the leader
		w := newWorld(t, 1, 3)
		w.begins()
		for range after {
			_ = w.leads() // nobody kills it
			w.passes()
		}
		before := w.kept
		next, err := before.Abort("server-0")
		if !before.Active() {
			if err == nil {
				t.Error("what has ended was called off")
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		w.kept = next
		w.runs()
		if w.kept.Stage != Aborted {
			t.Fatalf("after %d: %+v", after, w.kept)
		}
		w.released()
		for _, n := range before.Nodes {
			m := w.machines[n.Name]
			if n.Step != Upgrading && n.Step != Upgraded && m.began > 0 {
				t.Errorf("after %d: %s was begun with: it was %s", after, n.Name, n.Step)
			}
			if m.phase == upgrade.Trying {
				t.Errorf("after %d: %s was not waited for", after, n.Name)
			}
		}
	}
}

func TestWhatKeepsANodeFromGoingOver(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*world)
		node   string
		why    string
	}{
		"pods that stay":        {func(w *world) { w.machines["agent-0"].stuck = true }, "agent-0", "its pods have not left it within 1m0s: evicting"},
		"a node that is away":   {func(w *world) { w.machines["agent-0"].away = true }, "agent-0", "it has not answered"},
		"a node that is unwell": {func(w *world) { w.machines["agent-0"].unhappy = true }, "agent-0", "it is not well"},
		"a lone server unwell":  {func(w *world) { w.machines["server-0"].unhappy = true }, "server-0", "it is not well"},
	} {
		w := newWorld(t, 1, 2)
		c.change(w)
		w.begins()
		w.runs()
		f := w.kept.Failed()
		if w.kept.Stage != Halted || f == nil || f.Name != c.node || !strings.Contains(f.Error, c.why) {
			t.Errorf("%s: %+v", name, w.kept)
			continue
		}
		if w.machines[c.node].began != 0 {
			t.Errorf("%s: it was begun with", name)
		}
		w.released()
		// A node that is away is removed by a person, and the others go on.
		delete(w.machines, c.node)
		if c.node == "server-0" {
			continue
		}
		next, err := w.kept.Resume("server-0")
		if err != nil {
			t.Fatal(err)
		}
		w.kept = next
		w.runs()
		if got := w.steps(); w.kept.Stage != Complete || got[c.node] != Gone || got["agent-1"] != Upgraded {
			t.Errorf("%s: %s %v", name, w.kept.Stage, got)
		}
	}
}

func TestAwayAgentsComeLast(t *testing.T) {
	w := newWorld(t, 1, 3)
	w.machines["agent-0"].away = true
	w.begins()
	w.runs()
	if got, want := w.steps(), (map[string]Step{"server-0": Upgraded, "agent-0": Failed, "agent-1": Upgraded, "agent-2": Upgraded}); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestNoServerGoesOverWhileAnotherOneIsAway(t *testing.T) {
	w := newWorld(t, 3, 0)
	w.machines["server-2"].away = true
	w.begins()
	for range 200 {
		_ = w.leads() // nobody kills it
		w.passes()
	}
	_, _, waits := w.kept.Advance(w.facts())
	if w.kept.Stage != Going || w.machines["server-0"].began+w.machines["server-1"].began != 0 || len(waits) != 1 || !strings.Contains(waits[0], "server-2 does not answer") {
		t.Errorf("%v %v", w.steps(), waits)
	}
	delete(w.machines, "server-2") // k1s node remove
	w.runs()
	if got := w.steps(); w.kept.Stage != Complete || got["server-2"] != Gone {
		t.Errorf("%v", got)
	}
}

func TestPodsStayWhereAPersonWantsThat(t *testing.T) {
	w := newWorld(t, 1, 1)
	w.plan.Drain = 0
	w.machines["agent-0"].stuck = true
	w.begins()
	w.runs()
	w.all(Upgraded)
	if w.machines["agent-0"].pods != 2 {
		t.Error("they were moved")
	}
}

func TestWhoRunsItAlreadyIsLeftInPeace(t *testing.T) {
	w := newWorld(t, 1, 1)
	w.machines["agent-0"].program = "new"
	w.begins()
	w.runs()
	w.all(Upgraded)
	if m := w.machines["agent-0"]; m.began != 0 || m.pods != 2 {
		t.Errorf("%+v", m)
	}
}

func TestWhoJoinsMeanwhileGoesOverToo(t *testing.T) {
	w := newWorld(t, 1, 1)
	w.begins()
	for range 5 {
		_ = w.leads() // nobody kills it
		w.passes()
	}
	w.machines["agent-9"] = &machine{program: "old", pods: 1, leaving: tick}
	w.runs()
	w.all(Upgraded)
	if w.machines["agent-9"].program != "new" {
		t.Error("it was left out")
	}
}

func TestWhoWasRemovedAndJoinsAgainGoesOverToo(t *testing.T) {
	w := newWorld(t, 1, 2)
	w.machines["agent-1"].away = true
	w.begins()
	w.runs()
	delete(w.machines, "agent-1") // k1s node remove
	_ = w.leads()                 // nobody kills it
	if got := w.steps(); w.kept.Stage != Halted || got["agent-1"] != Gone {
		t.Fatalf("%s %v", w.kept.Stage, got)
	}
	next, err := w.kept.Resume("server-0")
	if err != nil {
		t.Fatal(err)
	}
	w.kept = next
	w.machines["agent-1"] = &machine{program: "old", pods: 1, leaving: tick}
	w.runs()
	w.all(Upgraded)
	if w.kept.Stage != Complete || w.machines["agent-1"].program != "new" {
		t.Errorf("%+v", w.kept)
	}
}

func TestWhoLeads(t *testing.T) {
	for _, c := range []struct {
		self, leader string
		servers      []string
		want         bool
	}{
		{"a", "a", []string{"a", "b"}, true}, {"b", "a", []string{"a", "b"}, false},
		{"b", "a", []string{"b", "c"}, true}, {"c", "a", []string{"b", "c"}, false}, {"c", "a", nil, false},
	} {
		if got := Leads(c.self, Record{Leader: c.leader}, c.servers); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestOneAfterTheOther(t *testing.T) {
	w := newWorld(t, 1, 0)
	w.begins()
	if _, err := Begin("server-0", &w.kept, Signed{}, w.plan, w.names()); !errs.Is(err, errs.Exists) {
		t.Error(err)
	}
	if _, err := w.kept.Resume("server-0"); !errs.Is(err, errs.Exists) {
		t.Error(err)
	}
	w.runs()
	next, err := Begin("server-0", &w.kept, Signed{}, w.plan, w.names())
	if err != nil || next.Serial != w.kept.Serial+1 || next.Stage != Going {
		t.Errorf("%+v, %v", next, err)
	}
	for _, act := range []func(string) (Record, error){w.kept.Resume, w.kept.Abort} {
		if _, err := act("server-0"); !errs.Is(err, errs.NotFound) {
			t.Error(err)
		}
	}
	aborting := Record{Serial: 4, Stage: Aborting}
	if again, err := aborting.Abort("server-0"); err != nil || again.Serial != 4 {
		t.Errorf("%+v, %v", again, err)
	}
}

func TestOnlyASignedPlanIsBelieved(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := newWorld(t, 1, 0).plan
	s, err := Sign(key, p)
	if err != nil {
		t.Fatal(err)
	}
	got, by, err := s.Open()
	if err != nil || got != p || by == "" {
		t.Fatalf("%+v, %q, %v", got, by, err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := Sign(other, p)
	if err != nil {
		t.Fatal(err)
	}
	if _, as, err := forged.Open(); err != nil || as == by {
		t.Errorf("two keys have one fingerprint: %q, %v", as, err)
	}
	for name, bad := range map[string]Signed{
		"another plan": {Plan: []byte(strings.Replace(string(s.Plan), `"new"`, `"bad"`, 1)), Key: s.Key, Signature: s.Signature},
		"another key":  {Plan: s.Plan, Key: forged.Key, Signature: s.Signature},
		"no signature": {Plan: s.Plan, Key: s.Key},
		"no key":       {Plan: s.Plan, Signature: s.Signature},
	} {
		if _, _, err := bad.Open(); !errs.Is(err, errs.Denied) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheRecordKeepsAllButThePlan(t *testing.T) {
	w := newWorld(t, 1, 2)
	w.machines["agent-0"].fails = 1
	w.begins()
	w.runs()
	got, err := Unmarshal(w.kept.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	if got.Order("agent-0") != nil || got.Plan.ID != "" {
		t.Error("a plan was believed that nobody has looked at")
	}
	if _, actions, waits := got.Advance(w.facts()); len(actions) > 0 || len(waits) != 1 {
		t.Errorf("%v %v", actions, waits)
	}
	got.Plan = w.plan
	if !reflect.DeepEqual(got, w.kept) {
		t.Errorf("%+v\nwant\n%+v", got, w.kept)
	}
	for _, bad := range []string{"", "{", `{"serial":0,"stage":"going"}`, `{"serial":1,"stage":"else"}`} {
		if _, err := Unmarshal([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
