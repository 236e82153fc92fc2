package daemon

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/wait"
)

const (
	// checkWithin is how long a server may take to find out that it reaches the new datastore, and stopWithin until it has stopped to
	// serve from the old one.
	checkWithin = 2 * time.Minute
	stopWithin  = 3 * time.Minute
	// askAgain is how often the servers ask each other while they move.
	askAgain = 500 * time.Millisecond
)

// otherMovers are the other servers, all of which go with a move, and where their APIs are. An API server of nobody the cluster knows is
// an error: it would write on to the old datastore.
func (d *Daemon) otherMovers(ctx context.Context) (map[string]string, error) {
	all, err := (changer{d}).servers(ctx)
	if err != nil {
		return nil, err
	}
	delete(all, d.self())
	for name, at := range all {
		if name == at {
			return nil, errs.Hint(errs.New(errs.NotRunning, "cannot move the datastore now: the API is also served at %s, by no server that the cluster knows", at),
				"a server that has just started becomes known within seconds; one that was removed and runs on has to be stopped there")
		}
	}
	return all, nil
}

// together finds out whether the other servers can go with a move; nothing is changed.
func (m *move) together(ctx context.Context, others map[string]string) error {
	if len(others) == 0 {
		return nil
	}
	from, to := components.Engine(m.from), components.Engine(m.to)
	names := strings.Join(slices.Sorted(maps.Keys(others)), ", ")
	m.others = slices.Sorted(maps.Keys(others))
	m.d.mu.Lock()
	replacing := m.d.rotating.replacing()
	m.d.mu.Unlock()
	if replacing { // every server restarts then when it is its turn
		return errs.Hint(errs.New(errs.Exists, "the cluster's CA is being replaced"), "wait for its end: k1s certs rotate-ca --status")
	}
	switch {
	case to == config.SQLite:
		return errs.Hint(errs.New(errs.Unsupported, "SQLite is for one server, and there are others: %s", names), "remove them before: k1s node remove NAME")
	case from == config.SQLite:
		return errs.New(errs.Unsupported, "the state is in SQLite, which is for one server, and there are others: %s", names)
	}
	return m.d.askMovers(ctx, others, func(ctx context.Context, name, at string) error {
		a, err := m.d.askMover(ctx, name, at, join.MoveRequest{Ask: join.AskReady, Engine: from})
		if errors.As(err, new(*join.Unreachable)) {
			return errs.Hint(fmt.Errorf("it is away (%w), and every server has to go with the datastore", err), "start it; if it does not come back: k1s node remove %s", name)
		}
		if err == nil && a.Error != nil {
			err = a.Error.Err()
		}
		return err
	})
}

// askMovers asks all servers at once. The error names those of which there is one.
func (d *Daemon) askMovers(ctx context.Context, servers map[string]string, ask func(ctx context.Context, name, at string) error) error {
	names := slices.Sorted(maps.Keys(servers))
	failed := make([]error, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() {
			if err := ask(ctx, name, servers[name]); err != nil {
				failed[i] = fmt.Errorf("%s: %w", name, err)
			}
		})
	}
	all.Wait()
	failed = slices.DeleteFunc(failed, func(err error) bool { return err == nil })
	switch len(failed) {
	case 0:
		return nil
	case 1:
		return failed[0] // with its hint
	}
	return errors.Join(failed...)
}

// askMover asks one other server.
func (d *Daemon) askMover(ctx context.Context, name, at string, r join.MoveRequest) (join.MoveAnswer, error) {
	c, identity, err := d.moverClient(at)
	if err != nil {
		return join.MoveAnswer{}, err
	}
	r.Node, r.To = d.self(), name
	return c.Move(ctx, identity, r)
}

// resumed is a move of a daemon that was killed.
func (d *Daemon) resumed(in component.Input, s migration.State) *move {
	m := &move{d: d, to: in, from: in}
	m.to.Fence, m.from.Fence = "", ""
	if s.Phase != migration.Switching {
		return m
	}
	m.reload = true
	return m
}

// going is how the datastore is reached to which several servers are on their way.
type going struct {
	Datastore before `json:"datastore"`
	File      []byte `json:"file"` // the drop-in; null for none
}

// keepGoing keeps it for a daemon that starts when it is not known what was decided.
func (m *move) keepGoing() error {
	to := m.to.Config.Spec.Datastore
	g := going{File: m.dropIn, Datastore: before{Endpoint: to.Endpoint.Reveal(), EndpointFile: to.EndpointFile, CAFile: to.CAFile, CertFile: to.CertFile, KeyFile: to.KeyFile}}
	raw, err := json.Marshal(g)
	if err != nil {
		return err
	}
	p := m.from.Paths
	if err := os.MkdirAll(path.Dir(p.DatastoreGoing()), 0o700); err != nil {
		return err
	}
	if err := durable.WriteFile(p.DatastoreGoing(), raw, 0o600); err != nil {
		return fmt.Errorf("keeping how the new datastore is reached: %w", err)
	}
	return nil
}

// readGoing completes a move that goes on with what was kept.
func (m *move) readGoing() error {
	raw, err := os.ReadFile(m.from.Paths.DatastoreGoing())
	var g going
	if err == nil {
		err = json.Unmarshal(raw, &g)
	}
	if err != nil {
		return errs.Hint(fmt.Errorf("reading how the new datastore is reached: %w", err), "restore %s from a backup", m.from.Paths.DatastoreGoing())
	}
	m.dropIn = g.File
	b := g.Datastore
	to := config.Datastore{Endpoint: config.DSN(b.Endpoint), EndpointFile: b.EndpointFile, CAFile: b.CAFile, CertFile: b.CertFile, KeyFile: b.KeyFile}
	m.to.Config.Spec.Datastore = to
	if components.UsesEtcd(m.to) {
		m.to.Etcd = component.EtcdMember{} // the first member
	}
	m.to.Datastore, err = datastoreID(to)
	return err
}

// fence is what is to stand in a database of others that several servers leave; nil for none. An embedded etcd needs none: nobody writes
// to it without most of its members.
func (m *move) fence() *migration.Fence {
	if len(m.others) == 0 || !components.Engine(m.from).External() {
		return nil
	}
	return &migration.Fence{Attempt: m.attempt, To: place(m.to.Config.Spec.Datastore).String()}
}

// settle asks what the servers have agreed about, after this one has said what it wants.
func (m *move) settle(ctx context.Context, want migration.Decision) (migration.Register, error) {
	if m.reload {
		if err := m.readGoing(); err != nil {
			return migration.Register{}, err
		}
		m.reload = false
	}
	return settle(ctx, m.from, m.to, want, m.attempt, nil)
}

// settle is migration.Settle between two datastores: what the servers agree by is in the one that all of them reach. With a fence that is taken out of from where they go back.
func settle(ctx context.Context, from, to component.Input, want migration.Decision, attempt string, fence *migration.Fence) (migration.Register, error) {
	j := migration.Job{Mode: migration.Settle, Root: components.Root(from), Attempt: attempt, Want: want, Fence: fence}
	agreed := to
	if !components.Engine(to).External() { // one server has it, until they have agreed
		agreed = from
	}
	var err error
	if j.Target, err = private(agreed, "register"); err != nil {
		return migration.Register{}, err
	}
	if fence != nil {
		if j.Source, err = private(from, "fence"); err != nil {
			return migration.Register{}, err
		}
	}
	return runSettle(ctx, from, j)
}

func runSettle(ctx context.Context, in component.Input, j migration.Job) (migration.Register, error) {
	c, err := startCopier(ctx, in, j)
	if err != nil {
		return migration.Register{}, err
	}
	defer c.kill()
	e, err := c.until(ctx, nil, func(e migration.Event) bool { return e.Settled != nil })
	if err != nil {
		return migration.Register{}, err
	}
	return *e.Settled, nil
}

// unfenced takes the fence of a move that was given up out of the datastore in use, and tells that there is none.
func (d *Daemon) unfenced(ctx context.Context) bool {
	d.mu.Lock()
	s, in := d.moving.state, d.in
	d.mu.Unlock()
	if s.Phase != migration.Failed || !s.Fence {
		return true
	}
	if components.Engine(in).External() {
		j := migration.Job{Mode: migration.Settle, Root: components.Root(in), Attempt: s.Attempt, Fence: &migration.Fence{Attempt: s.Attempt}}
		var err error
		if j.Source, err = private(in, "fence"); err == nil {
			_, err = runSettle(ctx, in, j)
		}
		if err != nil {
			if ctx.Err() == nil {
				d.log.Warn("the datastore in use is still fenced for a move that was given up", "err", err)
			}
			return false
		}
	}
	s.Fence = false
	if err := keepMove(d.o.Paths, s); err != nil {
		d.log.Warn("not kept that the datastore in use is not fenced any more", "err", err)
		return false
	}
	d.mu.Lock()
	if d.moving.state.Attempt == s.Attempt {
		d.moving.state.Fence = false
	}
	d.mu.Unlock()
	return true
}

// Fence lets all other servers check that they reach the new datastore, and then stop one after the other: so there is always a
// majority of etcd's members.
func (m *move) Fence(ctx context.Context) error {
	d := m.d
	if err := m.announce(ctx); err != nil {
		return err
	}
	others, err := m.sameServers(ctx)
	if err != nil {
		return err
	}
	err = d.askMovers(ctx, others, func(ctx context.Context, name, at string) error {
		return m.until(ctx, checkWithin, name, at, join.AskCheck)
	})
	if err != nil {
		return fmt.Errorf("not every server can go with it: %w", err)
	}
	for _, name := range m.others {
		if err := m.until(ctx, stopWithin, name, others[name], join.AskFence); err != nil {
			return fmt.Errorf("%s does not stop serving from the old datastore: %w", name, err)
		}
		d.log.Info("a server has stopped serving from the old datastore", "server", name)
	}
	// From now on nobody joins through any of them.
	_, err = m.sameServers(ctx)
	return err
}

// announce begins what the servers agree about, and has ready what they ask for.
func (m *move) announce(ctx context.Context) error {
	is, err := m.settle(ctx, migration.Open)
	if err != nil {
		return err
	}
	if d := is.Of(m.attempt); d != migration.Open {
		return errs.New(errs.Failure, "the servers have decided already: %s", d)
	}
	to, err := reachedWith(m.to.Config.Spec.Datastore)
	if err == nil && components.UsesEtcd(m.to) {
		if to.CA, err = os.ReadFile(pki.CertFile(m.to.Paths, pki.EtcdCA)); err != nil {
			err = fmt.Errorf("reading etcd's authority: %w", err)
		}
	}
	if err != nil {
		return err
	}
	m.d.mu.Lock()
	m.d.moving.order = &join.Order{ID: m.id, Kind: m.kind, From: place(m.from.Config.Spec.Datastore), To: to, Replace: m.replace}
	m.d.mu.Unlock()
	return nil
}

// reachedWith is a database of others as another server needs it.
func reachedWith(c config.Datastore) (join.Datastore, error) {
	out := join.Datastore{Engine: c.Endpoint.Engine(), Endpoint: c.Endpoint.Reveal()}
	for _, f := range []struct {
		name string
		to   *[]byte
	}{{c.CAFile, &out.CA}, {c.CertFile, &out.Cert}, {c.KeyFile, &out.Key}} {
		if f.name == "" {
			continue
		}
		raw, err := os.ReadFile(f.name)
		if err != nil {
			return out, fmt.Errorf("reading how the datastore is reached: %w", err)
		}
		*f.to = raw
	}
	return out, nil
}

// sameServers are the other servers, which have to be those that were there when it began.
func (m *move) sameServers(ctx context.Context) (map[string]string, error) {
	others, err := m.d.otherMovers(ctx)
	if err != nil {
		return nil, err
	}
	if now := slices.Sorted(maps.Keys(others)); !slices.Equal(now, m.others) {
		return nil, errs.New(errs.Exists, "the servers changed meanwhile: they were %s beside this one, and are %s", strings.Join(m.others, ", "), strings.Join(now, ", "))
	}
	return others, nil
}

// until asks a server for something until it is done. Whether it has stopped it tells by itself.
func (m *move) until(ctx context.Context, limit time.Duration, name, at string, what join.MoveAsk) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %s", limit))
	defer cancel()
	return wait.Until(ctx, askAgain, name, func(ctx context.Context) error {
		m.d.mu.Lock()
		stopped := m.d.moving.stopped[name]
		m.d.mu.Unlock()
		if stopped {
			return nil
		}
		a, err := m.d.askMover(ctx, name, at, join.MoveRequest{Ask: what, Attempt: m.attempt})
		switch {
		case err != nil && final(err):
			return wait.Permanent(err)
		case err != nil:
			return err
		case a.Error != nil:
			return wait.Permanent(a.Error.Err())
		case !a.Done:
			return errors.New("it has not said yet that it has done so")
		}
		return nil
	})
}

// stopServing starts the control plane anew, with an API server that serves nothing: the members of an embedded etcd run on.
func (d *Daemon) stopServing(ctx context.Context, attempt string) error {
	in, err := d.fenceIn(ctx, attempt)
	if err != nil {
		return err
	}
	if !components.UsesEtcd(in) {
		return nil
	}
	ready, cancel := context.WithTimeoutCause(ctx, serveWithin, fmt.Errorf("not within %s", serveWithin))
	defer cancel()
	return d.sup.Wait(ready, "etcd", component.Ready)
}

func (d *Daemon) fenceIn(ctx context.Context, attempt string) (component.Input, error) {
	// Who starts the control plane anew in this moment, for a stage of another CA, does so before this, or finds that it has stopped.
	d.changing.Lock()
	defer d.changing.Unlock()
	d.mu.Lock()
	in := d.in
	in.Fence = attempt
	d.mu.Unlock()
	plan, err := components.Plan(in)
	if err != nil {
		return in, err
	}
	// First: whoever starts the control plane for another reason is not to start one that serves.
	d.mu.Lock()
	d.in.Fence = attempt
	d.mu.Unlock()
	if err := d.sup.Apply(ctx, plan); err != nil {
		return in, fmt.Errorf("stopping the API server: %w", err)
	}
	return in, nil
}

// moverClient asks another server as this one.
func (d *Daemon) moverClient(at string) (join.Client, crypto.Signer, error) {
	d.mu.Lock()
	p := d.in.Paths
	d.mu.Unlock()
	identity, err := pki.Identity(p)
	if err != nil {
		return join.Client{}, nil, err
	}
	cas, err := pki.ReadTrusted(p)
	return join.Client{Server: at, CAs: cas}, identity, err
}
