package daemon

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/supervise"
	"k1s.io/k1s/internal/token"
	"k1s.io/k1s/internal/upgrade"
	"k1s.io/k1s/internal/upgrade/rollout"
)

// rolling are servers and agents that go on with an upgrade of the cluster as daemons do, over TLS. The program is a file, and a node that goes over to
// it says so from then on.
type rolling struct {
	t       *testing.T
	shared  *objects
	servers []*oneServer
	agents  []*Daemon
	content string
	to      upgrade.Program

	mu      sync.Mutex // guards what follows
	went    []string   // over, in this order
	fails   map[string]error
	emptied []string
}

func newRolling(t *testing.T, servers, agents int) *rolling {
	t.Helper()
	c := &rolling{t: t, shared: newObjects(), content: strings.Repeat("another k1s ", 50_000), fails: map[string]error{}}
	var keys pki.Bundle
	for i := range servers {
		s := newServer(t, c.shared, fmt.Sprintf("server-%d", i), fmt.Sprintf("127.0.0.%d", i+1), keys)
		if i == 0 {
			var err error
			if keys, err = pki.ReadBundle(s.in.Paths); err != nil {
				t.Fatal(err)
			}
		}
		c.node(s.Daemon)
		c.servers = append(c.servers, s)
	}
	for i := range agents {
		c.agents = append(c.agents, c.agent(fmt.Sprintf("agent-%d", i)))
	}
	file := t.TempDir() + "/k1s-next"
	if err := os.WriteFile(file, []byte(c.content), 0o755); err != nil {
		t.Fatal(err)
	}
	sum, n, err := digest(file)
	if err != nil {
		t.Fatal(err)
	}
	c.to = upgrade.Program{Version: "v0.9.0", Kubernetes: "v1.37.0", Payload: "p", Platform: "linux/amd64", Digest: sum, Bytes: n}
	return c
}

// node makes a daemon one that is well, and goes over.
func (c *rolling) node(d *Daemon) {
	now := time.Now()
	d.sup = supervise.New(d.log, supervise.Options{})
	d.readyAt, d.o.Config = &now, d.in.Config
	d.rolling.wake = make(chan struct{}, 1)
	name := d.in.Facts.NodeName
	d.goesOver = func(_ context.Context, r control.UpgradeRequest, order string) (control.Upgrade, error) {
		got, err := os.ReadFile(r.File)
		if err != nil || string(got) != c.content || r.SHA256 != c.to.Digest || r.Timeout != time.Minute {
			c.t.Errorf("%s got another program: %d bytes, %v, %+v", name, len(got), err, r)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if err := c.fails[name]; err != nil {
			return control.Upgrade{}, err
		}
		c.went = append(c.went, name)
		d.mu.Lock()
		d.upgrading, d.rolling.digest = upgrade.State{Phase: upgrade.Done, Order: order}, c.to.Digest
		d.mu.Unlock()
		c.shared.mu.Lock()
		c.shared.node(name).kubelet = c.to.Kubernetes
		c.shared.mu.Unlock()
		return control.Upgrade{}, nil
	}
	d.emptyNode = func(_ context.Context, _ component.Input, node string, _ time.Duration, said func(string)) error {
		c.shared.mu.Lock()
		n := c.shared.node(node)
		if !n.unschedulable {
			c.t.Errorf("%s is emptied and gets new pods", node)
		}
		c.shared.mu.Unlock()
		said("evicting pod default/web")
		c.mu.Lock()
		defer c.mu.Unlock()
		c.emptied = append(c.emptied, node)
		return nil
	}
}

func (c *rolling) agent(name string) *Daemon {
	c.t.Helper()
	first := c.servers[0]
	p := paths.Paths{Data: c.t.TempDir(), Run: c.t.TempDir(), Config: c.t.TempDir()}
	if err := os.MkdirAll(p.PKI(), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(pki.CertFile(p, pki.CA), []byte(first.read(c.t, pki.CA)), 0o600); err != nil {
		c.t.Fatal(err)
	}
	in := component.Input{Paths: p, Config: config.Default(), Server: c.servers[len(c.servers)-1].addr, Facts: component.Facts{NodeName: name, NodeIP: netip.MustParseAddr("127.0.1.1")}}
	in.Config.Spec.Role, in.Config.Spec.API.Port = config.Agent, 1 // nothing answers there
	d := &Daemon{o: Options{Paths: p}, in: in, log: slog.New(slog.DiscardHandler), board: health.NewBoard(time.Now), api: first.api}
	c.node(d)
	identity, err := pki.Identity(p)
	if err != nil {
		c.t.Fatal(err)
	}
	b, err := join.OwnBinding(name, in.Facts.NodeIP, identity, nil, time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	b.Role = token.Agent
	if err := (clusterStore{api: first.api}).Bind(c.t.Context(), *b); err != nil {
		c.t.Fatal(err)
	}
	return d
}

// begins lets the first server begin, in whose name the plan is signed by a key.
func (c *rolling) begins(key crypto.Signer) {
	c.t.Helper()
	s := c.servers[0]
	if err := os.MkdirAll(s.o.Paths.Programs(), 0o700); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(s.programFile(c.to.Digest), []byte(c.content), 0o700); err != nil {
		c.t.Fatal(err)
	}
	w := upgrader{s.Daemon}
	servers, err := (changer(w)).servers(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	f, _, err := w.look(c.t.Context(), servers)
	if err != nil {
		c.t.Fatal(err)
	}
	p := rollout.Plan{ID: "id", By: "server-0", To: c.to, Timeout: time.Minute, Drain: time.Minute, Parallel: 2, Began: time.Now().UTC()}
	signed, err := rollout.Sign(key, p)
	if err != nil {
		c.t.Fatal(err)
	}
	r, err := rollout.Begin("server-0", nil, signed, p, f.Machines)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := w.agree(c.t.Context(), r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *rolling) identity() crypto.Signer {
	c.t.Helper()
	key, err := pki.Identity(c.servers[0].o.Paths)
	if err != nil {
		c.t.Fatal(err)
	}
	return key
}

// runs lets all daemons do what they do again and again, until something is so.
func (c *rolling) runs(what string, until func(rollout.Record) bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	again := func(do func()) {
		all.Go(func() {
			for ctx.Err() == nil {
				do()
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	for _, s := range c.servers {
		drains := newDrains(s.Daemon)
		c.t.Cleanup(drains.end)
		again(func() {
			_, err := s.rollOn(ctx, drains)
			if ctx.Err() == nil {
				s.noteRollout(err)
			}
		})
	}
	for _, d := range c.agents {
		again(func() { _, _ = d.askOrder(ctx) }) // it is asked again
	}
	for {
		c.shared.mu.Lock()
		r, err := rollout.Unmarshal([]byte(c.shared.maps[rolloutRecord].Data[rolloutRecordKey]))
		c.shared.mu.Unlock()
		if err == nil && until(r) {
			break
		}
		if ctx.Err() != nil {
			c.t.Errorf("%s: never: %+v, %v", what, r, err)
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	all.Wait()
}

func TestServersAndAgentsAreUpgradedOneAfterTheOther(t *testing.T) {
	c := newRolling(t, 2, 2)
	c.shared.node("agent-1").unschedulable = true // by a person
	c.begins(c.identity())
	c.runs("all of them run it", func(r rollout.Record) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.shared.mu.Lock()
		defer c.shared.mu.Unlock()
		clean := true
		for _, n := range c.shared.nodes {
			clean = clean && len(n.annotations) == 0
		}
		for _, p := range c.programs() {
			_, err := os.Stat(p)
			clean = clean && errors.Is(err, fs.ErrNotExist)
		}
		return r.Stage == rollout.Complete && clean
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.went) != 4 || c.went[0] != "server-0" || c.went[1] != "server-1" || !slices.Contains(c.went, "agent-0") || !slices.Contains(c.went, "agent-1") {
		t.Errorf("over went %v", c.went)
	}
	slices.Sort(c.emptied)
	if !slices.Equal(c.emptied, []string{"agent-0", "agent-1", "server-0", "server-1"}) {
		t.Errorf("emptied were %v", c.emptied)
	}
	for _, name := range slices.Sorted(maps.Keys(c.shared.nodes)) {
		if n := c.shared.nodes[name]; n.unschedulable != (name == "agent-1") {
			t.Errorf("%s: %+v", name, n)
		}
	}
	u, err := c.servers[1].ClusterUpgrade(t.Context())
	if err != nil || u.Stage != "complete" || u.To.Digest != c.to.Digest || len(u.Nodes) != 4 || u.Nodes[3].Step != "upgraded" {
		t.Errorf("%+v, %v", u, err)
	}
}

// programs are where all of them keep a program.
func (c *rolling) programs() []string {
	var out []string
	for _, s := range c.servers {
		out = append(out, s.o.Paths.Programs())
	}
	for _, d := range c.agents {
		out = append(out, d.o.Paths.Programs())
	}
	return out
}

func TestWhatANodeRefusesHaltsTheUpgradeAndAPersonGoesOn(t *testing.T) {
	c := newRolling(t, 1, 2)
	c.fails["agent-0"] = errs.Hint(errs.New(errs.Unsupported, "it is a mount of its own"), "mount it elsewhere")
	c.begins(c.identity())
	c.runs("it halts", func(r rollout.Record) bool {
		return r.Stage == rollout.Halted && !r.Moving() && slices.ContainsFunc(c.servers[0].board.List(), func(p health.Problem) bool { return p.Code == health.UpgradeHalted })
	})
	s := c.servers[0]
	u, err := s.ClusterUpgrade(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(u.Nodes, func(n control.ClusterUpgradeNode) bool { return n.Step == "failed" })
	if i < 0 || u.Nodes[i].Name != "agent-0" || u.Nodes[i].Error != "it is a mount of its own" || u.Nodes[i].Hint != "mount it elsewhere" {
		t.Fatalf("%+v", u)
	}
	for _, p := range s.board.List() {
		if p.Code == health.UpgradeHalted && (!strings.Contains(p.Text, "agent-0: it is a mount of its own") || !strings.HasPrefix(p.Remedy, "mount it elsewhere; then: k1s upgrade resume")) {
			t.Errorf("told is %+v", p)
		}
	}
	if _, err := s.UpgradeCluster(t.Context(), control.ClusterUpgradeRequest{Action: control.ResumeUpgrade}); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	delete(c.fails, "agent-0")
	c.mu.Unlock()
	c.runs("it goes on", func(r rollout.Record) bool { return r.Stage == rollout.Complete })
	if got := s.board.List(); slices.ContainsFunc(got, func(p health.Problem) bool { return p.Code == health.UpgradeHalted }) {
		c.runs("nobody is told any more", func(rollout.Record) bool {
			return !slices.ContainsFunc(s.board.List(), func(p health.Problem) bool { return p.Code == health.UpgradeHalted })
		})
	}
	if _, err := s.UpgradeCluster(t.Context(), control.ClusterUpgradeRequest{Action: control.AbortUpgrade}); !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
}

func TestNobodyFollowsWhoeverMayWriteConfigMaps(t *testing.T) {
	forger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := newRolling(t, 1, 1)
	agents, err := pki.Identity(c.agents[0].o.Paths)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"somebody": forger, "an agent": agents} {
		c.shared.mu.Lock()
		delete(c.shared.maps, rolloutRecord)
		c.shared.node("agent-0").annotations[turnAnnotation] = "id"
		c.shared.mu.Unlock()
		c.begins(key)
		// As if it were its turn.
		w := upgrader{c.servers[0].Daemon}
		r, err := w.record(t.Context())
		if r == nil || !errs.Is(err, errs.Denied) || r.Plan.ID != "" {
			t.Fatalf("%s: %+v, %v", name, r, err)
		}
		for i := range r.Nodes {
			r.Nodes[i].Step, r.Nodes[i].Attempt = rollout.Upgrading, 1
		}
		r.Serial++
		if err := w.agree(t.Context(), *r); err != nil {
			t.Fatal(err)
		}
		looks := 0
		c.runs(name+" is not believed", func(rollout.Record) bool {
			looks++
			return looks > 20 && slices.ContainsFunc(c.servers[0].board.List(), func(p health.Problem) bool {
				return p.Code == health.UpgradeHalted && strings.Contains(p.Text, "not by a server of this cluster")
			})
		})
		if _, err := w.Program(c.to.Digest); !errs.Is(err, errs.NotFound) {
			t.Errorf("%s: the program is given: %v", name, err)
		}
		if a, err := w.Report(t.Context(), rollout.Report{Node: "agent-0"}); err == nil || a.Order != nil {
			t.Errorf("%s: an order is given: %+v, %v", name, a, err)
		}
		if len(c.went) > 0 {
			t.Errorf("%s: over went %v", name, c.went)
		}
		// It can be called off.
		if _, err := c.servers[0].UpgradeCluster(t.Context(), control.ClusterUpgradeRequest{Action: control.ResumeUpgrade}); !errs.Is(err, errs.Denied) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := c.servers[0].UpgradeCluster(t.Context(), control.ClusterUpgradeRequest{Action: control.AbortUpgrade}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		c.runs("it is called off", func(r rollout.Record) bool { return r.Stage == rollout.Aborted })
	}
}

func TestARecordThatIsGoneLeavesNothingOnNodes(t *testing.T) {
	c := newRolling(t, 2, 1)
	c.shared.mu.Lock()
	for _, name := range []string{"agent-0", "server-1"} {
		n := c.shared.node(name)
		n.annotations[turnAnnotation], n.unschedulable = "id", true
	}
	c.shared.node("agent-0").annotations[cordonAnnotation] = "id"
	c.shared.maps[rolloutRecord] = kubeapi.ConfigMap{Metadata: kubeapi.SecretMeta{Name: rolloutRecord, ResourceVersion: "x"}, Data: map[string]string{rolloutRecordKey: "{"}}
	c.shared.mu.Unlock()
	ctx := t.Context()
	s := c.servers[0]
	drains := newDrains(s.Daemon)
	defer drains.end()
	_, err := s.rollOn(ctx, drains)
	if s.noteRollout(err); !errors.Is(err, errDamagedRollout) || len(s.board.List()) != 1 || s.board.List()[0].Code != health.UpgradeHalted {
		t.Errorf("damaged: %v, %v", err, s.board.List())
	}
	if n := c.shared.node("agent-0"); !n.unschedulable {
		t.Error("what it says is taken for its end")
	}
	c.shared.mu.Lock()
	delete(c.shared.maps, rolloutRecord) // as it is told
	c.shared.mu.Unlock()
	for range 3 {
		for _, s := range c.servers {
			_, err := s.rollOn(ctx, drains)
			if s.noteRollout(err); err != nil {
				t.Error(err)
			}
		}
	}
	for name, cordoned := range map[string]bool{"agent-0": false, "server-1": true} { // that one by a person
		if n := c.shared.node(name); len(n.annotations) > 0 || n.unschedulable != cordoned {
			t.Errorf("%s: %+v", name, n)
		}
	}
	if got := s.board.List(); len(got) != 0 {
		t.Errorf("told is %v", got)
	}
}

func TestNothingElseBeginsAndNobodyTellsTooMuchWhileNodesAreAwayInTurn(t *testing.T) {
	c := newRolling(t, 1, 0)
	s := c.servers[0]
	s.moving.wake = make(chan *move, 1)
	s.rolling.record = &rollout.Record{Stage: rollout.Going}
	_, rotated := s.RotateCA(t.Context(), control.RotateRequest{DryRun: true})
	_, moved := s.MoveDatastore(t.Context(), control.DatastoreRequest{DryRun: true})
	for _, err := range []error{rotated, moved} {
		if !errs.Is(err, errs.Exists) || !strings.HasSuffix(err.Error(), "now: the cluster is being upgraded") {
			t.Errorf("%v", err)
		}
	}
	s.rolling.record = &rollout.Record{Stage: rollout.Going, Leader: "server-0", Plan: rollout.Plan{ID: "id"}}
	if _, err := (upgrader{s.Daemon}).Report(t.Context(), rollout.Report{Node: "agent-0", Error: strings.Repeat("€", 30_000)}); err != nil {
		t.Error(err)
	}
	if got := s.rolling.reports["agent-0"].Error; len(got) > maxTold || len(got) < maxTold-3 || strings.Trim(got, "€") != "" {
		t.Errorf("of a long reason %d bytes are kept", len(got))
	}
	if got := told("\x1b[2Jit\nfailed"); got != " [2Jit failed" {
		t.Errorf("told is %q", got)
	}
	s.rolling.record.Stage = rollout.Halted
	if err := s.notUpgraded("do something"); err != nil {
		t.Errorf("halted: %v", err)
	}
}

func TestAProgramIsFetchedWholeOrNotAtAll(t *testing.T) {
	c := newRolling(t, 2, 0)
	c.begins(c.identity())
	a, b := c.servers[0], c.servers[1]
	if _, err := (upgrader{a.Daemon}).record(t.Context()); err != nil {
		t.Fatal(err)
	}
	file, err := b.fetchProgram(t.Context(), c.to, []string{"127.0.0.1:1", a.addr})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != c.content {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := b.removePrograms(); err != nil {
		t.Fatal(err)
	}
	// What a server has is not what it is to be.
	if err := os.WriteFile(a.programFile(c.to.Digest), []byte(strings.ToUpper(c.content)), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := b.fetchProgram(t.Context(), c.to, []string{a.addr}); !errs.Is(err, errs.Denied) {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(b.o.Paths.Programs()); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
	for _, bad := range []upgrade.Program{{Digest: "../../etc/passwd", Bytes: 1}, {Digest: c.to.Digest}, {Digest: c.to.Digest, Bytes: maxProgram + 1}} {
		if _, err := b.fetchProgram(t.Context(), bad, []string{a.addr}); !errs.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestAnOrderIsFollowedWhenTheProgramIsHereAndItStillStands(t *testing.T) {
	c := newRolling(t, 1, 1)
	c.begins(c.identity())
	s, agent := c.servers[0], c.agents[0]
	if _, err := (upgrader{s.Daemon}).record(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := &rollout.Order{Key: "id/agent-0/1", Program: c.to, Timeout: time.Minute}
	agent.follow(t.Context(), o, []string{s.addr})
	if _, err := os.Stat(agent.programFile(c.to.Digest)); err != nil || len(c.went) > 0 {
		t.Errorf("getting it took its time, and it went over %v without having asked again: %v", c.went, err)
	}
	agent.follow(t.Context(), o, []string{s.addr})
	if !slices.Equal(c.went, []string{"agent-0"}) {
		t.Errorf("over went %v", c.went)
	}
}

func TestEachServerLooksForWhatItHasLeftOnNodes(t *testing.T) {
	c := newRolling(t, 2, 1)
	c.begins(c.identity())
	ctx := t.Context()
	drains := newDrains(c.servers[1].Daemon)
	defer drains.end()
	look := func(s *oneServer) {
		t.Helper()
		if _, err := s.rollOn(ctx, drains); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.servers[0].UpgradeCluster(ctx, control.ClusterUpgradeRequest{Action: control.AbortUpgrade}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		look(c.servers[0])
	}
	// What server-1 has decided while it led arrives after server-0 has looked.
	c.shared.mu.Lock()
	n := c.shared.node("agent-0")
	n.annotations[turnAnnotation], n.annotations[cordonAnnotation], n.unschedulable = "id", "id", true
	c.shared.mu.Unlock()
	look(c.servers[1])
	c.shared.mu.Lock()
	defer c.shared.mu.Unlock()
	if len(n.annotations) > 0 || n.unschedulable {
		t.Errorf("it stays so for ever: %+v", n)
	}
}

func TestANodeThatKubectlHasCordonedIsKnownAsOne(t *testing.T) {
	c := newRolling(t, 1, 1)
	s := c.servers[0]
	begun := make(chan struct{})
	running := true
	s.emptyNode = func(ctx context.Context, _ component.Input, node string, _ time.Duration, said func(string)) error {
		c.shared.mu.Lock()
		c.shared.node(node).unschedulable = true // it was released in this moment
		c.shared.mu.Unlock()
		said("node/" + node + " cordoned")
		close(begun)
		<-ctx.Done()
		running = false
		return ctx.Err()
	}
	drains := newDrains(s.Daemon)
	defer drains.end()
	drains.begin(t.Context(), "id", "agent-0", time.Minute)
	<-begun
	drains.only(nil)
	if running {
		t.Error("it goes on while the node is released")
	}
	left, err := (upgrader{s.Daemon}).sweep(t.Context(), rollout.Record{})
	if n := c.shared.node("agent-0"); err != nil || !left || n.unschedulable || len(n.annotations) > 0 {
		t.Errorf("%+v, %v, %v", n, left, err)
	}
}

func TestWhatIsKnownBeforeTheClusterIsUpgraded(t *testing.T) {
	node := func(arch string) kubeapi.Node {
		var n kubeapi.Node
		n.Status.NodeInfo.Architecture = arch
		return n
	}
	f := rollout.Facts{
		Machines: map[string]bool{"server-0": true, "server-1": true, "agent-0": false},
		Nodes:    map[string]rollout.Seen{"server-0": {Ready: true}, "server-1": {Ready: true}, "agent-0": {Why: "off"}},
	}
	nodes := map[string]kubeapi.Node{"server-0": node(""), "server-1": node(""), "agent-0": node("")}
	w, err := mayRollOut(f, nodes, "server-0", time.Minute)
	if err != nil || len(w) != 2 || !strings.Contains(w[0], "not Ready: agent-0") || !strings.Contains(w[1], "no majority") {
		t.Errorf("%q, %v", w, err)
	}
	nodes["agent-0"] = node("s390x")
	if _, err := mayRollOut(f, nodes, "server-0", 0); !errs.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "agent-0 is s390x") {
		t.Errorf("%v", err)
	}
	nodes["agent-0"] = node("")
	f.Nodes["server-1"] = rollout.Seen{Why: "off"}
	if _, err := mayRollOut(f, nodes, "server-0", 0); !errs.Is(err, errs.NotRunning) || !strings.Contains(err.Error(), "server-1 is not Ready: off") {
		t.Errorf("%v", err)
	}
	alone := rollout.Facts{Machines: map[string]bool{"server-0": true}, Nodes: map[string]rollout.Seen{"server-0": {Ready: true}}}
	w, err = mayRollOut(alone, map[string]kubeapi.Node{"server-0": node("")}, "server-0", time.Minute)
	if err != nil || len(w) != 2 || !strings.Contains(w[0], "with one server") || !strings.Contains(w[1], "nowhere to go") {
		t.Errorf("%q, %v", w, err)
	}
}

func TestWhyANodeCannotBeEmptied(t *testing.T) {
	for said, want := range map[string]string{
		"node/agent-0 cordoned\nerror: unable to drain node \"agent-0\" due to error: cannot delete cannot delete Pods that declare no controller (use --force to override): default/bare, continuing command...\nThere are pending nodes to be drained:\n agent-0\ncannot delete cannot delete Pods that declare no controller (use --force to override): default/bare\n": "cannot delete cannot delete Pods that declare no controller (use --force to override): default/bare",
		"evicting pod default/web\nerror when evicting pods/\"web\" -n \"default\" (will retry after 5s): Cannot evict pod as it would violate the pod's disruption budget.\nerror: unable to drain node \"agent-0\" due to error: [error when evicting pods/\"web\" -n \"default\": global timeout reached: 10s], continuing command...\n":                                "error when evicting pods/\"web\" -n \"default\": global timeout reached: 10s",
		"error: You must be logged in to the server (Unauthorized)\n": "You must be logged in to the server (Unauthorized)",
		"": "",
	} {
		if got := drainError(said); got != want {
			t.Errorf("%q\nwant %q", got, want)
		}
	}
	var heard []string
	l := &lines{said: func(s string) { heard = append(heard, s) }}
	for _, part := range []string{"evicting pod ", "a\n\nevic", "ting pod b\nrest"} {
		if n, err := l.Write([]byte(part)); err != nil || n != len(part) {
			t.Error(n, err)
		}
	}
	if !slices.Equal(heard, []string{"evicting pod a", "evicting pod b"}) {
		t.Errorf("%q", heard)
	}
}
