package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/rotation"
)

// replacing are servers that go on with a replacement as daemons do, an agent, and somebody at each server who asks all others all the time.
type replacing struct {
	t       *testing.T
	shared  *objects
	servers []*oneServer
	first   string // the pin of the CA of the beginning
	stop    []context.CancelFunc
	running []*sync.WaitGroup
	asking  *sync.WaitGroup
	enough  context.CancelFunc
}

func newReplacing(t *testing.T, n int) *replacing {
	t.Helper()
	c := &replacing{t: t, shared: newObjects(), asking: &sync.WaitGroup{}}
	var keys pki.Bundle
	for i := range n {
		s := newServer(t, c.shared, fmt.Sprintf("server-%d", i), fmt.Sprintf("127.0.0.%d", i+1), keys)
		if i == 0 {
			var err error
			if keys, err = pki.ReadBundle(s.in.Paths); err != nil {
				t.Fatal(err)
			}
		}
		s.restart = func(_ context.Context, in component.Input) error { return c.restarts(s) }
		s.works = func() bool { return !s.away.Load() }
		s.begins(t)
		c.servers = append(c.servers, s)
	}
	c.first = c.servers[0].trusts(t)[0]
	c.shared.published = c.servers[0].read(t, pki.CA)
	c.shared.secrets["k1s-node-agent-0"] = kubeapi.Secret{Metadata: kubeapi.SecretMeta{Name: "k1s-node-agent-0", ResourceVersion: "1"}, Data: map[string][]byte{
		"role": []byte("agent"), "identity": []byte("aWRlbnRpdHk"), "ip": []byte("10.0.0.30"), "since": []byte("2026-01-01T00:00:00Z"), "until": []byte("2027-01-01T00:00:00Z"),
	}}
	for i := range c.servers {
		c.stop, c.running = append(c.stop, nil), append(c.running, &sync.WaitGroup{})
		c.runs(i)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c.enough = cancel
	for _, s := range c.servers {
		c.asking.Go(func() { c.asks(ctx, s) })
	}
	c.asking.Go(func() { c.agent(ctx) })
	t.Cleanup(c.ends)
	return c
}

func (c *replacing) ends() {
	for i := range c.servers {
		c.killed(i)
	}
	c.enough()
	c.asking.Wait()
}

// begins is what a start does.
func (s *oneServer) begins(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	in := s.in
	s.mu.Unlock()
	if err := s.prepareRotation(t.Context(), &in); err != nil {
		t.Fatal(err)
	}
	if _, err := certificates(t.Context(), s.log, in, false); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	before := s.in.Trust
	s.in = in
	s.mu.Unlock()
	if before != in.Trust && s.restart != nil {
		if err := s.restart(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
}

// runs lets the daemon of a server do what it does again and again.
func (c *replacing) runs(i int) {
	ctx, cancel := context.WithCancel(c.t.Context())
	c.stop[i] = cancel
	c.running[i].Go(func() {
		for ctx.Err() == nil {
			c.servers[i].replaceTogether(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
}

func (c *replacing) killed(i int) {
	c.stop[i]()
	c.running[i].Wait()
}

// restarts is what a control plane does that is started anew. Nobody else may.
func (c *replacing) restarts(s *oneServer) error {
	c.shared.mu.Lock()
	c.shared.restarts++
	if c.shared.restarts > 1 {
		c.t.Errorf("%d control planes restart at once", c.shared.restarts)
	}
	c.shared.mu.Unlock()
	s.away.Store(true)
	b, err := os.ReadFile(pki.CertFile(s.o.Paths, pki.CA))
	pool, poolErr := pki.Pool(pki.CertFile(s.o.Paths, pki.CA))
	time.Sleep(20 * time.Millisecond)
	s.pool.Store(pool)
	s.away.Store(false)
	c.shared.mu.Lock()
	c.shared.restarts--
	c.shared.published = string(b) // by a controller manager that has just begun to lead
	c.shared.mu.Unlock()
	return errors.Join(err, poolErr)
}

// asks is a server's client of all APIs, with what is on its disk in each moment.
func (c *replacing) asks(ctx context.Context, s *oneServer) {
	for ctx.Err() == nil {
		for _, o := range c.servers {
			s.mu.Lock()
			in := s.in
			s.mu.Unlock()
			api, err := serverClient(in, o.addr)
			if err == nil {
				_, err = api.Nodes(ctx)
				api.Close()
			}
			var told *kubeapi.StatusError
			// Between the certificate and its key it has read neither of them as a pair.
			mixed := err != nil && strings.Contains(err.Error(), "private key does not match public key")
			if err != nil && !mixed && !errors.As(err, &told) && ctx.Err() == nil {
				c.t.Errorf("%s is refused by %s: %v", s.in.Facts.NodeName, o.in.Facts.NodeName, err)
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// agent asks one server after the other.
func (c *replacing) agent(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		s := c.servers[i%len(c.servers)]
		if b, err := os.ReadFile(pki.CertFile(s.o.Paths, pki.CA)); err == nil && !s.away.Load() {
			pins := pki.PinsOf(b)
			c.shared.mu.Lock()
			sec := c.shared.secrets["k1s-node-agent-0"]
			data := map[string][]byte{"trusts": []byte(strings.Join(pins, " ")), "issuer": []byte(pins[0])}
			for k, v := range sec.Data {
				if data[k] == nil {
					data[k] = v
				}
			}
			sec.Data = data
			c.shared.secrets["k1s-node-agent-0"] = sec
			c.shared.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *oneServer) read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(pki.CertFile(s.o.Paths, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (s *oneServer) trusts(t *testing.T) []string {
	t.Helper()
	return pki.PinsOf([]byte(s.read(t, pki.CA)))
}

func (s *oneServer) rotationState() rotation.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rotating.state
}

// record is what they agree about, and how it is changed behind their backs: time passes.
func (c *replacing) record(change func(*rotation.Record)) rotation.Record {
	c.t.Helper()
	c.shared.mu.Lock()
	defer c.shared.mu.Unlock()
	m, ok := c.shared.maps[rotationRecord]
	if !ok {
		return rotation.Record{}
	}
	r, err := rotation.UnmarshalRecord([]byte(m.Data[rotationRecordKey]))
	if err != nil {
		c.t.Fatal(err)
	}
	if change != nil {
		change(&r)
		m.Data = map[string]string{rotationRecordKey: string(r.Marshal())}
		c.shared.put(m)
	}
	return r
}

// until waits for something that daemons do by themselves.
func (c *replacing) until(what string, is func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); !is(); {
		if time.Now().After(deadline) {
			for _, s := range c.servers {
				s.mu.Lock()
				c.t.Logf("%s: %s serial %d, runs %q, waits for %q, note %q", s.in.Facts.NodeName, s.rotating.state, s.rotating.state.Serial, s.in.Trust, s.rotating.waits, s.rotating.note)
				s.mu.Unlock()
			}
			c.t.Fatalf("%s: not yet; they agree about %+v", what, c.record(nil))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// joint tells that all servers run a stage.
func (c *replacing) joint(stage rotation.Stage) func() bool {
	return func() bool {
		r := c.record(nil)
		return r.State.Stage == stage && r.Joint
	}
}

func TestThreeServersReplaceTheirAuthoritiesTogether(t *testing.T) {
	c := newReplacing(t, 3)
	a, b := c.servers[0], c.servers[1]
	ask := func(s *oneServer, r control.RotateRequest) (control.Rotation, error) {
		return s.RotateCA(t.Context(), r)
	}
	b.away.Store(true)
	if _, err := ask(a, control.RotateRequest{DryRun: true}); !errs.Is(err, errs.NotRunning) || !strings.Contains(err.Error(), "server-1 does not answer") {
		t.Errorf("without server-1: %v", err)
	}
	b.away.Store(false)
	if got := (replacer{a.Daemon}).ask(t.Context(), map[string]string{"server-0": "", "server-1": b.addr, b.addr: b.addr}); len(got) != 2 || got[1].Server != "server-1" {
		t.Errorf("one that is at two addresses counts for two: %+v", got)
	}
	if got := (replacer{a.Daemon}).ask(t.Context(), map[string]string{"server-0": "", b.addr: b.addr}); len(got) != 2 || !got[0].Unknown {
		t.Errorf("one that was removed and runs on is not seen: %+v", got)
	}
	plan, err := ask(a, control.RotateRequest{Keep: time.Hour, DryRun: true})
	if err != nil || len(plan.Servers) != 3 || len(plan.State.Authorities) != 4 || plan.Behind != nil {
		t.Fatalf("%+v, %v", plan, err)
	}
	if c.record(nil).Serial != 0 || holds(a.o.Paths) != "" {
		t.Error("looking has begun it")
	}
	if _, err := a.bootstrap(t.Context()); err != nil {
		t.Errorf("no server can join: %v", err)
	}
	for i := range c.servers { // so that nobody restarts while they are asked
		c.killed(i)
	}
	begun, err := ask(a, control.RotateRequest{Keep: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	next := ca(begun.State).New
	if _, err := ask(b, control.RotateRequest{}); !errs.Is(err, errs.Exists) {
		t.Errorf("begun twice: %v", err)
	}
	for _, s := range c.servers { // also at one that has not come to the stage yet
		if _, err := s.bootstrap(t.Context()); !errs.Is(err, errs.NotRunning) {
			t.Errorf("a server gets keys meanwhile: %v", err)
		}
	}
	for i := range c.servers {
		c.runs(i)
	}
	// One daemon is killed as soon as it has the new keys, and another one as soon as the new CA signs there.
	c.until("server-2 to have the keys", func() bool { return holds(c.servers[2].o.Paths) == next || c.joint(rotation.Overlapping)() })
	c.killed(2)
	c.servers[2].begins(t)
	c.runs(2)
	c.until("the new CA to sign at server-1", func() bool { return b.rotationState().Stage == rotation.Overlapping })
	c.killed(1)
	b.begins(t)
	c.runs(1)
	c.until("the new CA to sign everywhere", c.joint(rotation.Overlapping))
	for _, s := range c.servers {
		if got := s.trusts(t); !slices.Equal(got, []string{next, c.first}) {
			t.Errorf("%s trusts %v", s.in.Facts.NodeName, got)
		}
		for _, name := range []string{pki.FrontProxyCA, pki.EtcdCA} {
			if got := s.read(t, name); got != a.read(t, name) || strings.Count(got, "BEGIN CERT") != 2 {
				t.Errorf("%s has another %s", s.in.Facts.NodeName, name)
			}
		}
		if got := s.read(t, pki.ServiceAccount); got != a.read(t, pki.ServiceAccount) || strings.Count(got, "BEGIN PUBLIC KEY") != 2 {
			t.Errorf("%s verifies tokens of %s", s.in.Facts.NodeName, got)
		}
	}
	c.until("the agent to be there", func() bool {
		r, err := b.Rotation(t.Context())
		return err == nil && len(r.Behind) == 0 && len(r.Servers) == 3 && r.Servers[0].Leader && r.Servers[2].There && len(r.Waits) == 2
	})
	if _, err := ask(b, control.RotateRequest{Abort: true}); !errs.Is(err, errs.Failure) {
		t.Errorf("called off after the new one signs: %v", err)
	}
	if _, err := ask(c.servers[2], control.RotateRequest{Finish: true, DropTokens: true}); err != nil {
		t.Fatal(err)
	}
	if s := c.record(nil).State; !s.Hurry || !s.DropTokens {
		t.Errorf("what was said at another server counts for nobody: %+v", s)
	}
	// One is off, and the others wait for it by name.
	b.away.Store(true)
	c.record(func(r *rotation.Record) {
		r.Serial, r.State.Since, r.BehindAt = r.Serial+1, r.State.Since.Add(-rotation.Settle), time.Time{}
	})
	c.until("somebody to say who is waited for", func() bool {
		r, err := c.servers[2].Rotation(t.Context())
		return err == nil && len(r.Waits) == 1 && strings.Contains(r.Waits[0], "server-1 does not answer") && slices.Equal(r.Behind, []string{"server-1"})
	})
	if got := c.record(nil); got.State.Stage != rotation.Overlapping {
		t.Errorf("they have gone on without it: %s", got.State)
	}
	b.away.Store(false)
	c.until("the end", func() bool {
		return !c.record(nil).State.Active() && !slices.ContainsFunc(c.servers, func(s *oneServer) bool {
			_, err := os.Stat(s.o.Paths.PKI("rotation"))
			return s.rotationState().Active() || !os.IsNotExist(err)
		})
	})
	for _, s := range c.servers {
		if got := s.trusts(t); !slices.Equal(got, []string{next}) {
			t.Errorf("%s trusts %v", s.in.Facts.NodeName, got)
		}
		for _, name := range []string{pki.FrontProxyCA, pki.EtcdCA, pki.ServiceAccount} {
			if got := s.read(t, name); got != a.read(t, name) || strings.Count(got, "BEGIN ") != 1 {
				t.Errorf("%s has %s", s.in.Facts.NodeName, got)
			}
		}
		keys, err := pki.KeyPins(s.o.Paths)
		if err != nil || keys[pki.CA] != next {
			t.Errorf("%s signs with %v, %v", s.in.Facts.NodeName, keys, err)
		}
	}
	if text := c.shared.maps[rotationRecord].Data[rotationRecordKey]; strings.Contains(text, "PRIVATE") || !strings.Contains(text, next) {
		t.Errorf("they agree about %s", text)
	}
	if _, err := b.bootstrap(t.Context()); err != nil {
		t.Errorf("no server can join: %v", err)
	}
}

func TestThreeServersCallAReplacementOff(t *testing.T) {
	c := newReplacing(t, 3)
	a, b := c.servers[0], c.servers[1]
	// One of them is busy with something else, so that the new CA does not sign yet.
	c.killed(2)
	if _, err := a.RotateCA(t.Context(), control.RotateRequest{Keep: time.Hour}); err != nil {
		t.Fatal(err)
	}
	c.until("two to trust the new one", func() bool { return len(a.trusts(t)) == 2 && len(b.trusts(t)) == 2 })
	c.until("it to be called off", func() bool { // its API is away for a moment when it restarts
		_, err := b.RotateCA(t.Context(), control.RotateRequest{Abort: true})
		return err == nil
	})
	c.runs(2)
	c.until("the end", func() bool {
		return !c.record(nil).State.Active() && !slices.ContainsFunc(c.servers, func(s *oneServer) bool { return s.rotationState().Active() || holds(s.o.Paths) != "" })
	})
	for _, s := range c.servers {
		if got := s.trusts(t); !slices.Equal(got, []string{c.first}) {
			t.Errorf("%s trusts %v", s.in.Facts.NodeName, got)
		}
	}
	if r := c.record(nil); !r.State.Aborted {
		t.Errorf("%+v", r)
	}
}

// Who is lost while nobody else has the new keys takes the replacement with it, and another one begins.
func TestAReplacementWhoseKeysAreLostComesToNothing(t *testing.T) {
	c := newReplacing(t, 3)
	a, b := c.servers[0], c.servers[1]
	for i := range c.servers {
		c.killed(i)
	}
	if _, err := a.RotateCA(t.Context(), control.RotateRequest{Keep: time.Hour}); err != nil {
		t.Fatal(err)
	}
	a.away.Store(true)
	c.shared.mu.Lock()
	c.shared.servers = slices.DeleteFunc(c.shared.servers, func(s string) bool { return s == a.addr })
	delete(c.shared.secrets, nodePrefix+"server-0") // k1s node remove
	c.shared.mu.Unlock()
	c.runs(1)
	c.runs(2)
	c.until("nothing to be replaced", func() bool { r := c.record(nil); return r.Serial > 1 && !r.State.Active() })
	if _, err := b.RotateCA(t.Context(), control.RotateRequest{Keep: time.Hour}); err != nil {
		t.Errorf("another one: %v", err)
	}
}

// What another server gives has to be what was agreed about.
func TestKeysOfNewAuthoritiesAreCheckedAndGoToServersOnly(t *testing.T) {
	c := newReplacing(t, 2)
	a, b := c.servers[0], c.servers[1]
	for i := range c.servers {
		c.killed(i)
	}
	begun, err := a.RotateCA(t.Context(), control.RotateRequest{Keep: time.Hour})
	if err != nil || !slices.ContainsFunc(begun.Warnings, func(w string) bool { return strings.HasPrefix(w, "etcd of two servers") }) {
		t.Fatalf("%q, %v", begun.Warnings, err)
	}
	other := begun.State
	other.Authorities = slices.Clone(other.Authorities)
	other.Authorities[3].New = other.Authorities[3].Old
	if err := (replacer{b.Daemon}).fetch(t.Context(), other); err == nil || holds(b.o.Paths) != "" {
		t.Errorf("others are taken: %v", err)
	}
	if err := (replacer{b.Daemon}).fetch(t.Context(), begun.State); err != nil || holds(b.o.Paths) != ca(begun.State).New {
		t.Errorf("%v", err)
	}
	c.shared.mu.Lock()
	delete(c.shared.secrets, nodePrefix+"server-1") // it is removed
	c.shared.mu.Unlock()
	if err := pki.ForgetReplacement(t.Context(), b.o.Paths); err != nil {
		t.Fatal(err)
	}
	if err := (replacer{b.Daemon}).fetch(t.Context(), begun.State); err == nil || !strings.Contains(err.Error(), "is no server of this cluster") || holds(b.o.Paths) != "" {
		t.Errorf("one that was removed is given keys: %v", err)
	}
}

// A server was off while the CA was replaced, so the others have removed it; and it followed a move that it knows no end of. When it joins again,
// which takes a token and no reset, none of that is about it any more.
func TestAServerThatJoinsAgainGoesOnWithNothingOfBefore(t *testing.T) {
	for _, stage := range []rotation.Stage{rotation.None, rotation.Trusting, rotation.Overlapping, rotation.Draining, rotation.Removing} {
		t.Run(string(stage), func(t *testing.T) {
			shared := newObjects()
			first := newServer(t, shared, "server-0", "127.0.0.1", nil)
			keys, err := pki.ReadBundle(first.in.Paths)
			if err != nil {
				t.Fatal(err)
			}
			removed := newServer(t, shared, "server-1", "127.0.0.2", keys)
			here, there := removed.in.Paths, first.in.Paths
			all, err := pki.PrepareReplacement(t.Context(), there, "", time.Now())
			if err != nil {
				t.Fatal(err)
			}
			fresh, err := pki.ReadReplacement(there, all)
			if err != nil {
				t.Fatal(err)
			}
			s := rotation.State{Number: 1, Stage: stage, Serial: 3, Authorities: authorities(all), Since: time.Now(), Keep: time.Hour}
			in := removed.in
			err = errors.Join(pki.KeepReplacement(t.Context(), here, all, fresh), hold(here, s), keepRotation(here, s), removed.prepareRotation(t.Context(), &in))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := certificates(t.Context(), removed.log, in, false); err != nil {
				t.Fatal(err)
			}
			f := migration.Following{Attempt: "a1", Leader: "server-0", At: first.addr, To: migration.Place{Identity: "x"}}
			led := migration.State{Attempt: "a0", Servers: []string{"server-0"}, Phase: migration.Switching}
			err = errors.Join(os.MkdirAll(path.Dir(here.Following()), 0o700), os.WriteFile(here.Following(), f.Marshal(), 0o600), os.WriteFile(here.Migration(), led.Marshal(), 0o600),
				os.WriteFile(here.DatastoreGoing(), nil, 0o600), os.WriteFile(here.DatastoreBefore("a0"), nil, 0o600), peers{Several: true, Removed: true}.keep(here))
			if err != nil {
				t.Fatal(err)
			}
			// What the others have done since.
			for _, phase := range []pki.Phase{pki.TrustBoth, pki.SignNew, pki.TrustNew} {
				if err := pki.InstallReplacement(t.Context(), there, all, phase); err != nil {
					t.Fatal(err)
				}
			}
			if keys, err = pki.ReadBundle(there); err != nil {
				t.Fatal(err)
			}

			in = removed.in
			d := &Daemon{o: removed.o, in: in, log: removed.log, board: removed.board}
			a := &arrival{d: d, peers: peers{Several: true, Joined: &joinedCluster{Pending: true}}, keys: join.Bootstrap{Keys: keys, Datastore: join.Datastore{Engine: config.EmbeddedEtcd}}}
			if err := a.settle(t.Context(), &in); err != nil {
				t.Fatal(err)
			}
			if err := d.prepareRotation(t.Context(), &in); err != nil {
				t.Fatalf("it does not start: %v", err)
			}
			if _, err := certificates(t.Context(), d.log, in, false); err != nil {
				t.Fatalf("it does not start: %v", err)
			}
			trusted, err := pki.ReadTrusted(here)
			if err != nil || !slices.Equal(pki.Pins(trusted), []string{ca(s).New}) {
				t.Errorf("it trusts %v, %v, and the cluster only %s", pki.Pins(trusted), err, ca(s).New)
			}
			if d.rotating.state.Active() || in.Trust != "" || holds(here) != "" {
				t.Errorf("it goes on with %+v", d.rotating.state)
			}
			if fence, err := fenced(here, place(in.Config.Spec.Datastore).Identity); err != nil || fence != "" {
				t.Errorf("its API server waits for the end of %q, %v", fence, err)
			}
			for _, file := range []string{here.Following(), here.Migration(), here.DatastoreGoing(), here.DatastoreBefore("a0"), here.PKI("ca-chain.pem")} {
				if exists(file) {
					t.Errorf("%s is there", file)
				}
			}
		})
	}
}
