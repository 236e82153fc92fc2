package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/probe"
	"k1s.io/k1s/internal/rotation"
	"k1s.io/k1s/internal/supervise"
)

const (
	movedTo  = "postgres://k1s:tops3cret@db:5432/k1s"
	oldStore = "the old datastore"
	newStore = "the new datastore"
)

// copierScript is a program that copies, in the words of a shell. What the servers agree about is in a file, and so is which database it is
// that it reaches.
const copierScript = `#!/bin/sh
read job
field() { printf '%%s' "$job" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
register=%q
case "$job" in
*'"mode":"settle"'*'"target":{"etcd"'*) echo "error: nobody reaches an etcd of one server" >&2; exit 1 ;;
*'"mode":"settle"'*)
	until mkdir "$register.lock" 2>/dev/null; do sleep 0.01; done
	attempt=$(field attempt) want=$(field want) was= decided=
	[ ! -f "$register" ] || read was decided < "$register"
	if [ "$want" = open ] && [ "$was" != "$attempt" ]; then was=$attempt; decided=open
	elif [ -n "$want" ] && [ "$was" = "$attempt" ] && [ "$decided" = open ]; then decided=$want; fi
	[ -z "$was" ] || echo "$was $decided" > "$register"
	rmdir "$register.lock"
	echo '{"settled":{"attempt":"'"$was"'","decision":"'"$decided"'"}}' ;;
*'"mode":"copy"'*)
	echo '{"marked":true}'; echo '{"caughtUp":true}'
	read finish || exit 1
	echo '{"result":{"keys":7}}' ;;
*'"mode":"pass"'*) echo '{"result":{"keys":7}}' ;;
esac
`

// together is a cluster of several servers, each with a daemon that can be started and stopped.
type together struct {
	t        *testing.T
	servers  []*mover
	register string
	toEtcd   bool // from a database of others to an etcd of theirs; else the other way round

	mu     sync.Mutex // guards what follows
	serves map[string]string
	wrong  []string
	log    bytes.Buffer
	// joined are the names of members by their nodes, votes those that have one; copying counts how often each was told to wait.
	joined  map[string]string
	votes   map[string]bool
	copying map[string]int
}

// founded is the etcd of the one that leads, as join.Members.
type founded struct {
	c *together
	m *mover
}

func (f founded) Join(_ context.Context, who join.Member) (join.Membership, error) {
	d := f.m.now.Load()
	d.mu.Lock()
	out, active := join.Membership{Engine: components.Engine(d.in), InitialCluster: "all"}, d.moving.active()
	d.mu.Unlock()
	if active {
		return out, errs.New(errs.NotRunning, "the datastore is being moved")
	}
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	f.c.joined[nodeOfMember(who.Name)] = who.Name
	return out, nil
}

func (f founded) Promote(_ context.Context, who join.Member) error {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	node := nodeOfMember(who.Name)
	if f.c.copying[node]++; f.c.copying[node] < 3 || f.c.joined[node] != who.Name {
		return errs.New(errs.NotRunning, "it copies")
	}
	f.c.votes[node] = true
	return nil
}

type mover struct {
	*oneServer
	all   *together
	node  string
	first component.Input // of the daemon that was there before any
	stop  func()
}

// last is its last move.
func (m *mover) last() migration.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.moving.state
}

func (c *together) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log.Write(b)
}

func newTogether(t *testing.T, n int) *together { return newTogetherIn(t, n, "etcd") }

// newTogetherIn has its state in a datastore. Where that is a database of others each server has the data of an etcd that was left.
func newTogetherIn(t *testing.T, n int, endpoint config.DSN) *together {
	t.Helper()
	c := &together{t: t, register: filepath.Join(t.TempDir(), "register"), serves: map[string]string{}, joined: map[string]string{}, votes: map[string]bool{}, copying: map[string]int{}}
	c.toEtcd = endpoint.Engine().External()
	shared := &objects{secrets: map[string]kubeapi.Secret{}}
	for i := range n {
		name := fmt.Sprintf("server-%d", i)
		m := &mover{oneServer: nil, all: c}
		if i == 0 {
			m.oneServer = newServer(t, shared, name, "127.0.0.1", nil)
		} else {
			m.oneServer = newServer(t, shared, name, fmt.Sprintf("127.0.0.%d", i+1), keysOfServer(t, c.servers[0].oneServer))
		}
		p := m.in.Paths
		m.in.Payload, m.in.Config.Spec.Datastore.Endpoint = t.TempDir(), endpoint
		m.node, m.first, m.etcd = name, m.in, founded{c, m}
		m.reaches(c.register)
		write := func(file, content string) {
			t.Helper()
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		write(p.ConfigFile(), "apiVersion: k1s.io/v1alpha1\nkind: Config\nspec:\n  datastore:\n    endpoint: "+endpoint.Reveal()+"\n")
		s := peers{Several: true}
		if c.toEtcd {
			write(components.DatabaseFile(etcdOf(m.first)), "stale")
			if i == 2 { // one that has joined, and was a member
				s.Joined = &joinedCluster{Servers: []string{c.servers[0].addr}}
				s.Etcd = &etcdPart{Member: join.Member{Name: "server-2-0ld0ld"}, InitialCluster: "before", Answered: true}
			}
		}
		if err := s.keep(p); err != nil {
			t.Fatal(err)
		}
		m.o.Reload = func() (config.Config, config.Origins, error) {
			l, err := config.Load(config.Sources{File: p.ConfigFile(), DropIns: p.ConfigDropIns()})
			return l.Config, l.Origins, err
		}
		c.servers = append(c.servers, m)
	}
	t.Cleanup(func() {
		for _, m := range c.servers {
			m.ends()
		}
	})
	return c
}

// etcdOf is a server with an etcd of its own.
func etcdOf(in component.Input) component.Input {
	in.Config.Spec.Datastore = config.Datastore{Endpoint: "etcd"}
	return in
}

// turns tells that the next move is the other way round: what was new is old.
func (c *together) turns(toEtcd bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.toEtcd = toEtcd
	for name := range c.serves {
		c.serves[name] = oldStore
	}
}

// names are those of members, by node.
func (c *together) names() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.joined)
}

// reaches lets the program that copies find a database.
func (m *mover) reaches(register string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.first.Payload, components.Program), fmt.Appendf(nil, copierScript, register), 0o700); err != nil {
		m.t.Fatal(err)
	}
}

func (c *together) registered() (attempt string, d migration.Decision) {
	raw, err := os.ReadFile(c.register)
	if err != nil {
		return "", ""
	}
	f := strings.Fields(string(raw))
	return f[0], migration.Decision(f[1])
}

// life is a process of a unit: of the control plane it tells what its API server serves.
type life struct {
	m *mover
	u component.Unit
}

func (l life) Run(ctx context.Context) error {
	if !slices.ContainsFunc(l.u.Components, func(c component.Component) bool { return c.Name == apiserver }) {
		<-ctx.Done()
		return nil
	}
	c, name := l.m.all, l.m.node
	from := oldStore
	if (l.u.Env[components.EnvClaim] != "") != c.toEtcd {
		from = newStore
	}
	fenced := l.u.Env[components.EnvFence] != ""
	c.mu.Lock()
	if slices.ContainsFunc(l.u.Components, func(c component.Component) bool { return c.Name == "etcd" }) && c.toEtcd {
		db := components.DatabaseFile(etcdOf(l.m.first))
		was, err := os.ReadFile(db)
		if err == nil && string(was) == "stale" || c.joined[name] == "" && l.m != c.servers[0] {
			c.wrong = append(c.wrong, fmt.Sprintf("%s starts its etcd with %q, and is %q in that of all", name, was, c.joined[name]))
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(db), 0o700), os.WriteFile(db, []byte("new"), 0o600)); err != nil {
			c.wrong = append(c.wrong, err.Error())
		}
	}
	_, decided := c.registered()
	if fenced {
		from = ""
	}
	if c.serves[name] = from; from == oldStore && decided == migration.Forward || from == newStore && decided != migration.Forward {
		c.wrong = append(c.wrong, fmt.Sprintf("%s serves from %s, and it is decided %q", name, from, decided))
	}
	c.mu.Unlock()
	l.m.away.Store(fenced)
	<-ctx.Done()
	c.mu.Lock()
	c.serves[name] = ""
	c.mu.Unlock()
	l.m.away.Store(true)
	return nil
}

// starts is a daemon that starts with what is on its disk.
func (m *mover) starts() {
	m.t.Helper()
	now, _, err := m.Daemon.configured()
	if err != nil {
		m.t.Fatal(err)
	}
	in := m.first
	in.Config.Spec.Datastore = now.Spec.Datastore
	if in.Datastore, err = datastoreID(now.Spec.Datastore); err != nil {
		m.t.Fatal(err)
	}
	if in.Fence, err = fenced(in.Paths, place(now.Spec.Datastore).Identity); err != nil {
		m.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(m.all, &slog.HandlerOptions{Level: slog.LevelDebug}))
	d := &Daemon{o: m.o, in: in, api: m.api, log: log, board: m.board, secrets: m.secrets, membership: make(chan struct{}, 1)}
	if err := errors.Join(placed(&d.in), d.becomeMember(m.t.Context(), &d.in)); err != nil {
		m.t.Fatal(err)
	}
	if in = d.in; in.Fence == "" {
		if err := mayStartEtcd(in); err != nil && m.all.toEtcd {
			m.t.Fatal(err)
		}
	}
	d.sup = supervise.New(log, supervise.Options{NewRunner: func(u component.Unit) supervise.Runner { return life{m, u} }, Probe: func(context.Context, probe.Probe) error { return nil }})
	if err := d.prepareMove(in); err != nil {
		m.t.Fatal(err)
	}
	plan, err := components.Plan(in)
	if err == nil {
		err = d.sup.Apply(m.t.Context(), plan)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.Daemon = d
	m.now.Store(d)
	ctx, cancel := context.WithCancel(context.WithoutCancel(m.t.Context()))
	var all sync.WaitGroup
	all.Go(func() { _ = d.sup.Run(ctx) })
	all.Go(func() { d.watchMoves(ctx) })
	all.Go(func() { d.watchFollowing(ctx) })
	all.Go(func() { d.watchMembership(ctx) })
	m.stop = func() { cancel(); all.Wait() }
}

func (m *mover) ends() {
	if m.stop != nil {
		m.stop()
		m.stop = nil
	}
}

func (c *together) start() {
	c.t.Helper()
	for _, m := range c.servers {
		m.starts()
	}
	c.until("all to serve", func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, m := range c.servers {
			if c.serves[m.node] == "" {
				return fmt.Errorf("%s does not", m.node)
			}
		}
		return nil
	})
}

func (c *together) until(what string, look func() error) {
	c.t.Helper()
	var err error
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = look(); err == nil {
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t.Fatalf("waited for %s: %v\n%s", what, err, c.log.String())
}

// one waits until all serve from one datastore, and nothing is left of the way there.
func (c *together) one(from string) {
	c.t.Helper()
	c.until("all to serve from "+from, func() error {
		for _, m := range c.servers {
			c.mu.Lock()
			serves := c.serves[m.node]
			c.mu.Unlock()
			now, _, err := m.Daemon.configured()
			if err != nil {
				return err
			}
			m.mu.Lock()
			moving := m.moving.active()
			m.mu.Unlock()
			if external := now.Spec.Datastore.Endpoint.Engine().External(); serves != from || external != ((from == newStore) != c.toEtcd) || moving || exists(m.first.Paths.Following()) || exists(m.first.Paths.DatastoreGoing()) {
				return fmt.Errorf("%s serves from %q, is configured for %s; on its way: %v, kept: %v, %v", m.node, serves, now.Spec.Datastore.Endpoint, moving, exists(m.first.Paths.Following()), exists(m.first.Paths.DatastoreGoing()))
			}
			orders, err := filepath.Glob(m.first.Paths.DatastorePKI("*"))
			if err != nil || (from == oldStore || c.toEtcd) && len(orders) > 0 {
				return fmt.Errorf("%s keeps %q, %v", m.node, orders, err)
			}
		}
		return nil
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.wrong {
		c.t.Error(w)
	}
	if strings.Contains(c.log.String(), "tops3cret") {
		c.t.Error("the password is in a log")
	}
}

func (c *together) moves(r control.DatastoreRequest) error {
	c.t.Helper()
	r.Action = migration.Migrate
	switch {
	case r.Endpoint == "" && c.toEtcd:
		r.Endpoint, r.Replace = "etcd", true
	case r.Endpoint == "":
		r.Endpoint = movedTo
	}
	_, err := c.servers[0].MoveDatastore(c.t.Context(), r)
	return err
}

func (c *together) ended() migration.State {
	c.t.Helper()
	var s migration.State
	c.until("the end of the move", func() error {
		if s = c.servers[0].last(); s.Active() {
			return fmt.Errorf("it is %s: %s", s.Phase, s.Error)
		}
		return nil
	})
	return s
}

func TestAllServersGoWithTheDatastore(t *testing.T) {
	c := newTogether(t, 3)
	c.start()
	if err := c.moves(control.DatastoreRequest{}); err != nil {
		t.Fatal(err)
	}
	if s := c.ended(); s.Phase != migration.Done || len(s.Servers) != 2 {
		t.Fatalf("%+v\n%s", s, c.log.String())
	}
	c.one(newStore)
	for _, m := range c.servers {
		now, _, err := m.Daemon.configured()
		if err != nil || now.Spec.Datastore.Endpoint.Reveal() != movedTo {
			t.Errorf("%s is configured for another one, %v", m.node, err)
		}
	}
	follows := c.servers[1]
	if s := follows.last(); s.Phase != migration.Done || s.Leader != "server-0" || s.Previous != nil {
		t.Errorf("%+v", s)
	}
	err := filepath.WalkDir(follows.first.Paths.Data, func(file string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(file)
		if st, serr := d.Info(); serr == nil && bytes.Contains(raw, []byte("tops3cret")) && st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", file, st.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// A backup has what it is reached with.
	follows.mu.Lock()
	in := follows.Daemon.in
	follows.mu.Unlock()
	keys, err := clusterKeys(in)
	if name := "pki/datastore/" + c.servers[0].last().Attempt + "/endpoint"; err != nil || string(keys[name]) != movedTo+"\n" {
		t.Errorf("%s is not in a backup, %v", name, err)
	}
	// The next start finds all of it.
	for _, m := range c.servers {
		m.ends()
	}
	c.start()
	c.one(newStore)
	if _, err = follows.MoveDatastore(t.Context(), control.DatastoreRequest{Action: migration.Rollback}); !errs.Is(err, errs.NotFound) {
		t.Errorf("a rollback of one that has followed: %v", err)
	}
	// From one database of others to another.
	c.register += "-next"
	for _, m := range c.servers {
		m.reaches(c.register)
	}
	if err := follows.lead(t, "mysql://k1s:tops3cret@tcp(db:3306)/k1s"); err != nil {
		t.Fatal(err)
	}
	areIn := func(engine config.Engine) {
		t.Helper()
		c.until("all to be in "+string(engine), func() error {
			for _, m := range c.servers {
				if now, _, err := m.Daemon.configured(); err != nil || now.Spec.Datastore.Endpoint.Engine() != engine {
					return fmt.Errorf("%s is configured for %s, %w", m.node, now.Spec.Datastore.Endpoint, err)
				}
			}
			return nil
		})
		c.one(newStore)
	}
	areIn(config.MySQL)
	// And back, for which the one that has led is asked; it leads again.
	c.register = strings.TrimSuffix(c.register, "-next")
	for _, m := range c.servers {
		m.reaches(c.register)
	}
	if _, err := c.servers[0].MoveDatastore(t.Context(), control.DatastoreRequest{Action: migration.Rollback}); !errs.Is(err, errs.NotFound) {
		t.Errorf("a rollback of one that has followed: %v", err)
	}
	if _, err := follows.MoveDatastore(t.Context(), control.DatastoreRequest{Action: migration.Rollback}); err != nil {
		t.Fatal(err)
	}
	areIn(config.Postgres)
	if s := follows.last(); s.Kind != migration.Rollback || s.Phase != migration.Done || s.Previous != nil || s.Fence {
		t.Errorf("%+v", s)
	}
}

func TestAllServersGoToAnEtcdOfTheirsAndBack(t *testing.T) {
	c := newTogetherIn(t, 3, movedTo)
	c.start()
	// What is there of an etcd is given up only when somebody says so.
	if _, err := c.servers[0].MoveDatastore(t.Context(), control.DatastoreRequest{Action: migration.Migrate, Endpoint: "etcd"}); !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), "there is the data of an etcd") {
		t.Fatalf("not asked to replace it: %v", err)
	}
	members := func() {
		t.Helper()
		c.until("all to have a vote", func() error {
			for _, m := range c.servers[1:] {
				s, err := readPeers(m.first.Paths)
				if err != nil {
					return err
				}
				c.mu.Lock()
				joined, votes := c.joined[m.node], c.votes[m.node]
				c.mu.Unlock()
				if s.Etcd == nil || s.Etcd.Name != joined || !s.Etcd.Answered || s.Etcd.Learner || !votes || s.Etcd.InitialCluster != "all" {
					return fmt.Errorf("%s is %+v, and %q, %v for the one that leads", m.node, s.Etcd, joined, votes)
				}
				m.mu.Lock()
				name := m.Daemon.in.Etcd.Name
				m.mu.Unlock()
				if name != joined {
					return fmt.Errorf("the etcd of %s runs as %q", m.node, name)
				}
			}
			return nil
		})
	}
	if err := c.moves(control.DatastoreRequest{}); err != nil {
		t.Fatal(err)
	}
	if s := c.ended(); s.Phase != migration.Done || len(s.Servers) != 2 || s.Kind != migration.Migrate || s.Previous == nil {
		t.Fatalf("%+v\n%s", s, c.log.String())
	}
	c.one(newStore)
	members()
	// The next start has its place, and asks nobody.
	for _, m := range c.servers {
		m.ends()
	}
	first := c.names()
	c.start()
	c.one(newStore)
	if now := c.names(); !maps.Equal(now, first) {
		t.Errorf("they were %q, and are %q", first, now)
	}
	// Back to the database as it was left.
	c.turns(false)
	if _, err := c.servers[0].MoveDatastore(t.Context(), control.DatastoreRequest{Action: migration.Rollback}); err != nil {
		t.Fatal(err)
	}
	if s := c.ended(); s.Phase != migration.Done || s.Kind != migration.Rollback {
		t.Fatalf("%+v\n%s", s, c.log.String())
	}
	c.one(newStore)
}

// A cluster has moved from its etcd to a database, and goes back: the etcd is made anew, with what is in the database.
func TestServersGoBackToTheEtcdTheyHad(t *testing.T) {
	c := newTogether(t, 2)
	c.start()
	if err := c.moves(control.DatastoreRequest{}); err != nil {
		t.Fatal(err)
	}
	if s := c.ended(); s.Phase != migration.Done {
		t.Fatalf("%+v\n%s", s, c.log.String())
	}
	c.one(newStore)
	for _, m := range c.servers { // what was left on the disks
		db := components.DatabaseFile(etcdOf(m.first))
		if err := errors.Join(os.MkdirAll(filepath.Dir(db), 0o700), os.WriteFile(db, []byte("stale"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	c.turns(true)
	d, err := c.servers[0].MoveDatastore(t.Context(), control.DatastoreRequest{Action: migration.Rollback})
	if err != nil || d.Move.Kind != migration.Migrate {
		t.Fatalf("%+v, %v", d.Move, err)
	}
	if s := c.ended(); s.Phase != migration.Done || s.Previous == nil {
		t.Fatalf("%+v\n%s", s, c.log.String())
	}
	c.until("all to serve from it", func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, m := range c.servers {
			if c.serves[m.node] != newStore {
				return fmt.Errorf("%s serves from %q", m.node, c.serves[m.node])
			}
		}
		if len(c.joined) != 1 || len(c.wrong) > 0 {
			return fmt.Errorf("joined: %q; %q", c.joined, c.wrong)
		}
		return nil
	})
}

func TestAServerWithAnotherAuthorityForEtcdKeepsAllWhereTheyAre(t *testing.T) {
	c := newTogetherIn(t, 2, movedTo)
	other, err := os.ReadFile(pki.CertFile(newServer(t, newObjects(), "stranger", "127.0.0.8", nil).in.Paths, pki.EtcdCA))
	if err == nil {
		err = os.WriteFile(pki.CertFile(c.servers[1].first.Paths, pki.EtcdCA), other, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.start()
	if err := c.moves(control.DatastoreRequest{}); err != nil {
		t.Fatal(err)
	}
	if s := c.ended(); s.Phase != migration.Failed || !strings.Contains(s.Error, "server-1: its authority for etcd") {
		t.Errorf("%+v", s)
	}
	c.one(oldStore)
}

// lead lets a server move all of them.
func (m *mover) lead(t *testing.T, to string) error {
	t.Helper()
	_, err := m.MoveDatastore(t.Context(), control.DatastoreRequest{Action: migration.Migrate, Endpoint: to})
	return err
}

func TestAMoveIsRefusedBeforeAnythingIsChangedWhereNotAllCanGo(t *testing.T) {
	for name, c := range map[string]struct {
		before func(*together)
		to     string
		words  string
	}{
		"one is away": {before: func(c *together) { c.servers[2].away.Store(true) }, words: "server-2: it is away"},
		"one is configured by something stronger": {before: func(c *together) {
			p := c.servers[1].first.Paths
			if err := errors.Join(os.MkdirAll(p.ConfigDropIns(), 0o700), os.WriteFile(filepath.Join(p.ConfigDropIns(), "zzz.yaml"), []byte("apiVersion: k1s.io/v1alpha1\nkind: Config\nspec: {datastore: {endpoint: etcd}}\n"), 0o600)); err != nil {
				c.t.Fatal(err)
			}
		}, words: "server-1: spec.datastore.endpoint is set by"},
		"one changes its keys": {before: func(c *together) {
			c.servers[1].mu.Lock()
			c.servers[1].care.restore.Phase = "staging"
			c.servers[1].mu.Unlock()
		}, words: "server-1: a snapshot of etcd is being restored"},
		"one has agreed to another CA": {before: func(c *together) {
			c.servers[1].mu.Lock()
			c.servers[1].rotating.agreed.Stage = rotation.Trusting
			c.servers[1].mu.Unlock()
		}, words: "server-1: the cluster's CA is being replaced"},
		"the one that leads has": {before: func(c *together) {
			c.servers[0].mu.Lock()
			c.servers[0].rotating.agreed.Stage = rotation.Trusting
			c.servers[0].mu.Unlock()
		}, words: "the cluster's CA is being replaced"},
		"to SQLite": {to: "sqlite", words: "SQLite is for one server, and there are others: server-1, server-2"},
		"an API server of nobody": {before: func(c *together) {
			c.servers[0].shared.mu.Lock()
			c.servers[0].shared.servers = append(c.servers[0].shared.servers, "127.0.0.9:6443")
			c.servers[0].shared.mu.Unlock()
		}, words: "by no server that the cluster knows"},
	} {
		t.Run(name, func(t *testing.T) {
			all := newTogether(t, 3)
			all.start()
			if c.before != nil {
				c.before(all)
			}
			err := all.moves(control.DatastoreRequest{Endpoint: c.to})
			if err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%v, want something about %s", err, c.words)
			}
			if attempt, _ := all.registered(); attempt != "" || exists(all.servers[0].first.Paths.Migration()) {
				t.Error("something has begun")
			}
		})
	}
}

func TestAServerThatReachesAnotherDatabaseKeepsAllWhereTheyAre(t *testing.T) {
	c := newTogether(t, 3)
	c.servers[2].reaches(filepath.Join(t.TempDir(), "another"))
	c.start()
	if err := c.moves(control.DatastoreRequest{}); err != nil {
		t.Fatal(err)
	}
	if s := c.ended(); s.Phase != migration.Failed || !strings.Contains(s.Error, "server-2: what it reaches at postgres://") || strings.Contains(s.Error, "tops3cret") || !strings.Contains(s.Hint, "localhost") {
		t.Errorf("%+v", s)
	}
	// The others have been asked, and have not stopped.
	c.mu.Lock()
	for name, from := range c.serves {
		if from != oldStore {
			t.Errorf("%s serves from %q", name, from)
		}
	}
	c.mu.Unlock()
	// When it is put right they go, and with the same command.
	c.servers[2].reaches(c.register)
	if err := c.moves(control.DatastoreRequest{}); err != nil {
		t.Fatal(err)
	}
	if s := c.ended(); s.Phase != migration.Done {
		t.Errorf("%+v", s)
	}
	c.one(newStore)
}

// All daemons were killed, with their machines, in the moment before the leader was told what it had decided.
func TestServersThatStartFindOutWhatWasDecided(t *testing.T) {
	startAfterAKill(t, "etcd")
}

func TestServersOnTheirWayToAnEtcdThatStartFindOutWhatWasDecided(t *testing.T) {
	startAfterAKill(t, movedTo)
}

func startAfterAKill(t *testing.T, from config.DSN) {
	for _, c := range []struct {
		registered migration.Decision
		phase      migration.Phase
		want       string
	}{
		{migration.Open, migration.Fencing, oldStore}, {migration.Open, migration.Finishing, oldStore},
		{migration.Open, migration.Switching, newStore}, {migration.Forward, migration.Switching, newStore}, {migration.Back, migration.Switching, oldStore},
	} {
		t.Run(string(c.registered)+" while "+string(c.phase), func(t *testing.T) {
			all := newTogetherIn(t, 3, from)
			all.killedIn(c.phase, c.registered)
			for _, m := range all.servers {
				m.starts()
			}
			all.one(c.want)
		})
	}
}

// killedIn puts on the disks what there is when everybody is killed in a phase, after the others have stopped.
func (c *together) killedIn(phase migration.Phase, registered migration.Decision) {
	t := c.t
	t.Helper()
	const attempt = "a77e3b7"
	keep := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	keep(os.WriteFile(c.register, []byte(attempt+" "+string(registered)+"\n"), 0o600))
	leader := c.servers[0]
	to := movedTo
	if c.toEtcd {
		to = "etcd"
		keep(os.WriteFile(components.DatabaseFile(etcdOf(leader.first)), []byte("new"), 0o600))
	}
	m, err := leader.newMove(leader.first, migration.State{}, control.DatastoreRequest{Action: migration.Migrate, Endpoint: to})
	keep(err)
	keep(m.keepGoing())
	keep(keepMove(leader.first.Paths, migration.State{
		ID: "1", Kind: migration.Migrate, From: place(m.from.Config.Spec.Datastore), To: place(m.to.Config.Spec.Datastore), Phase: phase,
		Servers: []string{"server-1", "server-2"}, Attempt: attempt, Fence: true,
	}))
	for _, s := range c.servers[1:] {
		if !c.toEtcd {
			dir := s.first.Paths.DatastorePKI(attempt)
			keep(os.MkdirAll(dir, 0o700))
			keep(os.WriteFile(filepath.Join(dir, "endpoint"), []byte(movedTo+"\n"), 0o600))
		}
		f := migration.Following{Attempt: attempt, To: place(m.to.Config.Spec.Datastore)}
		w := follower{d: s.Daemon, from: s.first, to: targetOf(s.first, f), f: f}
		keep(w.read())
		keep(os.MkdirAll(filepath.Dir(s.first.Paths.Following()), 0o700))
		keep(os.WriteFile(s.first.Paths.Following(), migration.Following{
			Attempt: attempt, ID: "1", Kind: migration.Migrate, Leader: "server-0", At: leader.addr, Root: "/registry",
			From: place(s.first.Config.Spec.Datastore), To: place(w.to.Config.Spec.Datastore),
		}.Marshal(), 0o600))
	}
}

// One that follows was killed after it had learned that the etcd has the state: wherever that was, it is a new member in the end.
func TestAFollowerGoesOnToTheEtcdFromWhatItHasKept(t *testing.T) {
	for name, came := range map[string]func(w *follower) error{
		"it knows":                func(*follower) error { return nil },
		"it is to be a member":    func(w *follower) error { return w.Prepare() },
		"it is configured for it": func(w *follower) error { return errors.Join(w.Prepare(), w.Switch()) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newTogetherIn(t, 3, movedTo)
			c.killedIn(migration.Switching, migration.Forward)
			s := c.servers[2]
			kept, err := readFollowing(s.first.Paths)
			if err != nil {
				t.Fatal(err)
			}
			kept.Decided = migration.Forward
			w := &follower{d: s.Daemon, from: s.first, to: targetOf(s.first, *kept), f: *kept}
			if err := errors.Join(w.Keep(*kept), came(w)); err != nil {
				t.Fatal(err)
			}
			for _, m := range c.servers {
				m.starts()
			}
			c.one(newStore)
			p, err := readPeers(s.first.Paths)
			if err != nil || p.Etcd == nil || p.Etcd.Name == "server-2-0ld0ld" || p.Etcd.Name != c.names()["server-2"] || !p.Etcd.Answered {
				t.Errorf("%+v, %v", p.Etcd, err)
			}
		})
	}
}

func TestAServerAloneFindsOutFromTheNewDatastore(t *testing.T) {
	for _, c := range []struct {
		registered, want, is migration.Decision
	}{
		{migration.Open, "", migration.Open}, {migration.Open, migration.Back, migration.Back}, {migration.Forward, migration.Back, migration.Forward},
	} {
		all := newTogether(t, 2)
		all.killedIn(migration.Finishing, c.registered)
		s := all.servers[1]
		kept, err := readFollowing(s.first.Paths)
		if err != nil {
			t.Fatal(err)
		}
		w := follower{d: s.Daemon, from: s.first, to: targetOf(s.first, *kept), f: *kept}
		r, err := w.look(t.Context(), c.want)
		if err != nil || r.Of(kept.Attempt) != c.is {
			t.Errorf("%s, wanted %q: %+v, %v", c.registered, c.want, r, err)
		}
	}
}

func TestWhichStartsMayNotServe(t *testing.T) {
	etcd, db := place(config.Datastore{Endpoint: "etcd"}), place(config.Datastore{Endpoint: movedTo})
	follows := func(d migration.Decision) []byte {
		return migration.Following{Attempt: "f", From: etcd, To: db, Decided: d}.Marshal()
	}
	leads := func(p migration.Phase) []byte {
		return migration.State{Attempt: "l", Servers: []string{"b"}, From: etcd, To: db, Phase: p}.Marshal()
	}
	for name, c := range map[string]struct {
		following, migration []byte
		now                  migration.Place
		want                 string
	}{
		"nothing is known":                       {nil, nil, etcd, ""},
		"it follows":                             {follows(""), nil, etcd, "f"},
		"it follows, configured by hand":         {follows(""), nil, db, "f"},
		"it is to go":                            {follows(migration.Forward), nil, etcd, "f"},
		"it has gone":                            {follows(migration.Forward), nil, db, ""},
		"it leads, and nothing is decided":       {nil, leads(migration.Finishing), etcd, ""},
		"it leads, and nobody knows":             {nil, leads(migration.Switching), etcd, "l"},
		"it leads, and has gone":                 {nil, leads(migration.Switching), db, ""},
		"it leads, and its configuration is old": {nil, leads(migration.Starting), etcd, "l"},
		"it has led":                             {nil, leads(migration.Done), db, ""},
	} {
		_, in := configuredBy(t, "")
		for file, content := range map[string][]byte{in.Paths.Following(): c.following, in.Paths.Migration(): c.migration} {
			if content == nil {
				continue
			}
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, content, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := fenced(in.Paths, c.now.Identity); err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
}

func TestWhoIsAnsweredAboutAMove(t *testing.T) {
	c := newTogether(t, 2)
	c.start()
	one := movers{c.servers[0].Daemon}
	if _, _, err := one.Answer(t.Context(), join.MoveRequest{Node: "server-1", To: "server-7", Ask: join.AskReady}); !errs.Is(err, errs.Denied) {
		t.Errorf("what was meant for another one: %v", err)
	}
	if _, _, err := one.Answer(t.Context(), join.MoveRequest{Node: "server-1", To: "server-0", Ask: "dance"}); !errs.Is(err, errs.Invalid) {
		t.Errorf("nonsense: %v", err)
	}
	if a, o, err := one.Answer(t.Context(), join.MoveRequest{Node: "server-1", To: "server-0", Ask: join.AskOrder, Attempt: "x"}); err != nil || o != nil || a.Known {
		t.Errorf("an order where there is none: %+v, %+v, %v", a, o, err)
	}
	if a, _, err := one.Answer(t.Context(), join.MoveRequest{Node: "server-1", To: "server-0", Ask: join.AskLearn, Attempt: "x"}); err != nil || a.Known || a.Decided != "" {
		t.Errorf("what is not known here: %+v, %v", a, err)
	}
	// Over the line, an attempt that leads out of its directory is none.
	two := c.servers[1]
	a, err := c.servers[0].askMover(t.Context(), "server-1", two.addr, join.MoveRequest{Ask: join.AskCheck, Attempt: "../../x"})
	for end := time.Now().Add(time.Minute); err == nil && a.Error == nil && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		a, err = c.servers[0].askMover(t.Context(), "server-1", two.addr, join.MoveRequest{Ask: join.AskCheck, Attempt: "../../x"})
	}
	if err != nil || a.Error == nil {
		t.Errorf("%+v, %v", a, err)
	}
	// The file of a move that is not understood keeps a server from starting.
	if err := errors.Join(os.MkdirAll(filepath.Dir(two.first.Paths.Following()), 0o700), os.WriteFile(two.first.Paths.Following(), []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	_, err = fenced(two.first.Paths, "x")
	if hint, _ := errs.HintOf(err); err == nil || hint == "" {
		t.Errorf("half a file: %v, %q", err, hint)
	}
	if err := os.Remove(two.first.Paths.Following()); err != nil {
		t.Fatal(err)
	}
}

// Its turn with the CA comes in the moment in which it is to stop: it must not serve again after it has told that it does not.
func TestAServerThatGoesOverToAnotherCADoesNotServeAfterItHasStopped(t *testing.T) {
	c := newTogether(t, 1)
	c.start()
	d := c.servers[0].Daemon
	d.mu.Lock()
	in := d.in
	d.mu.Unlock()
	goes, goOn := make(chan struct{}), make(chan struct{})
	d.restart = func(ctx context.Context, in component.Input) error {
		close(goes)
		<-goOn
		plan, err := components.Plan(in)
		if err != nil {
			return err
		}
		return d.sup.Apply(ctx, plan)
	}
	s := begin(t, d, in)
	installed, stopped := make(chan error, 1), make(chan error, 1)
	go func() { installed <- rotator{d}.Install(t.Context(), s) }()
	<-goes
	go func() { stopped <- d.stopServing(t.Context(), "a1") }()
	time.Sleep(500 * time.Millisecond) // as far as it comes
	close(goOn)
	if err := errors.Join(<-installed, <-stopped); err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	in = d.in
	d.mu.Unlock()
	if in.Fence != "a1" || in.Trust != s.Epoch() {
		t.Errorf("it goes on as %q, and trusts what is of %q", in.Fence, in.Trust)
	}
	c.until("what was started last", func() error {
		for _, u := range d.sup.Snapshot() {
			if u.Component == apiserver && u.State == supervise.Ready {
				return nil
			}
		}
		return errors.New("it starts")
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if from := c.serves["server-0"]; from != "" {
		t.Errorf("it serves from %s", from)
	}
}

// Its daemon was started beside etcd, where that tells who was removed; it has learned where the state is, and was removed meanwhile.
func TestAServerThatHasFollowedDoesNotTakeBackItsName(t *testing.T) {
	c := newTogether(t, 2)
	c.start()
	if err := c.moves(control.DatastoreRequest{}); err != nil {
		t.Fatal(err)
	}
	if s := c.ended(); s.Phase != migration.Done {
		t.Fatalf("%+v", s)
	}
	c.one(newStore)
	follows, api := c.servers[1], c.servers[0].api
	if err := (peers{Several: true, Joined: &joinedCluster{}}).keep(follows.first.Paths); err != nil {
		t.Fatal(err)
	}
	c.servers[0].shared.mu.Lock()
	delete(c.servers[0].shared.secrets, nodePrefix+"server-1")
	c.servers[0].shared.mu.Unlock()
	if err := follows.bindSelf(t.Context(), follows.first, clusterStore{api: api}); err != nil {
		t.Fatal(err)
	}
	all, err := (clusterStore{api: api}).Bindings(t.Context())
	if err != nil || len(all) != 1 {
		t.Errorf("there are %+v, %v", all, err)
	}
	if s, err := readPeers(follows.first.Paths); err != nil || !s.Removed {
		t.Errorf("it does not know that it was removed: %+v, %v", s, err)
	}
}

// It waits for the end while others are asked by another one of its kind.
func TestWhatTheProgramThatCopiesSaysIsNotLostToOneThatAsks(t *testing.T) {
	_, in := configuredBy(t, "")
	in.Payload = t.TempDir()
	const script = `#!/bin/sh
read job
case "$job" in
*'"mode":"copy"'*) echo "a line of its log" >&2; echo '{"caughtUp":true}'; read finish; printf 'error: out of luck\nhint:  try again\n' >&2; exit 1;;
*) echo '{"settled":{}}';;
esac
`
	if err := os.WriteFile(filepath.Join(in.Payload, components.Program), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := startCopier(t.Context(), in, migration.Job{Mode: migration.Copy})
	if err != nil {
		t.Fatal(err)
	}
	defer c.kill()
	if _, err := c.until(t.Context(), nil, func(e migration.Event) bool { return e.CaughtUp }); err != nil {
		t.Fatal(err)
	}
	if _, err := runSettle(t.Context(), in, migration.Job{Mode: migration.Settle}); err != nil {
		t.Fatal(err)
	}
	if err := c.finish(); err != nil {
		t.Fatal(err)
	}
	_, err = c.until(t.Context(), nil, func(e migration.Event) bool { return e.Result != nil })
	if hint, _ := errs.HintOf(err); err == nil || !strings.Contains(err.Error(), "out of luck") || hint != "try again" {
		t.Errorf("%v (%s)", err, hint)
	}
}

// It followed once, so how the datastore is reached that it leaves is in files of ours; and was killed before the end was kept.
func TestAStartInTheLastPhaseKeepsWhatARollbackNeeds(t *testing.T) {
	d, in := configuredBy(t, "")
	d.log = slog.New(slog.DiscardHandler)
	order := in.Paths.DatastorePKI("a1/endpoint")
	if err := errors.Join(os.MkdirAll(filepath.Dir(order), 0o700), os.WriteFile(order, []byte(movedTo+"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	in.Config.Spec.Datastore = config.Datastore{Endpoint: movedTo, EndpointFile: order}
	if err := os.WriteFile(in.Paths.ConfigFile(), []byte("apiVersion: k1s.io/v1alpha1\nkind: Config\nspec: {datastore: {endpointFile: "+order+"}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := d.newMove(in, migration.State{}, control.DatastoreRequest{Action: migration.Migrate, Endpoint: "mysql://k1s@tcp(db:3306)/k1s"})
	if err != nil {
		t.Fatal(err)
	}
	m.id = "x"
	s := migration.State{ID: m.id, Kind: migration.Migrate, From: place(in.Config.Spec.Datastore), To: place(m.to.Config.Spec.Datastore), Phase: migration.Switching}
	if err := errors.Join(m.Switch(t.Context()), keepMove(in.Paths, s)); err != nil {
		t.Fatal(err)
	}
	now, _, err := d.configured()
	if err != nil {
		t.Fatal(err)
	}
	in.Config = now
	if err := d.prepareMove(in); err != nil {
		t.Fatal(err)
	}
	if s := d.moving.state; s.Phase != migration.Starting {
		t.Fatalf("%+v: then this test is wrong", s)
	}
	done := d.moving.state.Advance(time.Now())
	if err := errors.Join(keepMove(in.Paths, done), d.prepareMove(in)); err != nil {
		t.Fatal(err)
	}
	back, err := d.newMove(in, done, control.DatastoreRequest{Action: migration.Rollback})
	if err != nil || back.to.Config.Spec.Datastore.Endpoint != movedTo {
		t.Errorf("there is no way back: %v", err)
	}
}

func TestWhatIsKeptForTheLeaderIsReadAgain(t *testing.T) {
	d, in := configuredBy(t, "spec:\n  datastore:\n    endpoint: etcd\n")
	ca := filepath.Join(t.TempDir(), "endpoint")
	if err := os.WriteFile(ca, []byte(movedTo), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, r := range []control.DatastoreRequest{{Endpoint: movedTo}, {EndpointFile: ca}} {
		r.Action = migration.Migrate
		m, err := d.newMove(in, migration.State{}, r)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.keepGoing(); err != nil {
			t.Fatal(err)
		}
		again := d.resumed(in, migration.State{Phase: migration.Switching})
		if err := again.readGoing(); err != nil || again.to.Config.Spec.Datastore != m.to.Config.Spec.Datastore || again.to.Datastore != m.to.Datastore || !bytes.Equal(again.dropIn, m.dropIn) {
			t.Errorf("%+v, %v", again.to.Config.Spec.Datastore, err)
		}
		if st, err := os.Stat(in.Paths.DatastoreGoing()); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st, err)
		}
		var g going
		raw, err := os.ReadFile(in.Paths.DatastoreGoing())
		if err != nil || json.Unmarshal(raw, &g) != nil || g.Datastore.Endpoint == "" {
			t.Errorf("%s, %v", raw, err)
		}
	}
}

func keysOfServer(t *testing.T, s *oneServer) pki.Bundle {
	t.Helper()
	keys, err := pki.ReadBundle(s.in.Paths)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}
