package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/wait"
)

const (
	// openWithin is how long the API server may take to answer at all on a new datastore, before the old one is taken
	// back.
	openWithin = 3 * time.Minute
	// serveWithin is how long it may take then until it serves what it served before.
	serveWithin = 2 * time.Minute
	// spare is what has to be free on the disk beside several times the contents.
	spare = 64 << 20
	times = 3
)

// moveState is what the daemon knows of the datastore's last move; Daemon.mu guards it.
type moveState struct {
	state    migration.State
	progress *migration.Progress
	wake     chan *move // holds one

	// order is for those that go with this server while it leads; stopped are those that have told that they have.
	order   *join.Order
	stopped map[string]bool
	// following is what this server keeps while it goes with another one; asked what that one asked for last.
	following *migration.Following
	asked     *following
	follow    chan struct{} // holds one: there is something to do about asked
}

// active tells that the datastore is being moved, by this server or by another one.
func (m moveState) active() bool { return m.state.Active() || m.following != nil }

// moveIDBytes make the id of a move.
const moveIDBytes = 8

// place is a datastore as it may be shown. Of ours there is one each, whatever else is configured.
func place(d config.Datastore) migration.Place {
	h := sha256.New()
	if !d.Endpoint.Engine().External() {
		d = config.Datastore{Endpoint: d.Endpoint}
	}
	fmt.Fprintf(h, "%q", []string{d.Endpoint.Reveal(), d.EndpointFile, d.CAFile, d.CertFile, d.KeyFile})
	return migration.Place{Engine: string(d.Endpoint.Engine()), Endpoint: d.Endpoint.String(), Identity: hex.EncodeToString(h.Sum(nil)[:8])}
}

// prepareMove reads how far the last move came, and decides what is to become of it.
func (d *Daemon) prepareMove(in component.Input) error {
	m := moveState{wake: make(chan *move, 1), follow: make(chan struct{}, 1)}
	var err error
	if m.following, err = readFollowing(in.Paths); err != nil {
		return err
	}
	b, err := os.ReadFile(in.Paths.Migration())
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return fmt.Errorf("reading how far the last move of the datastore came: %w", err)
	default:
		s, err := migration.Unmarshal(b)
		if err != nil {
			return errs.Hint(fmt.Errorf("reading how far the last move of the datastore came from %s: %w", in.Paths.Migration(), err),
				"remove that file if no move was on its way; k1s datastore rollback is not possible then")
		}
		m.state = s.Recover(place(in.Config.Spec.Datastore).Identity, time.Now().UTC().Truncate(time.Second))
		if m.state.Phase != s.Phase {
			d.log.Warn("a move of the datastore broke off", "from", s.From, "to", s.To, "phase", string(s.Phase), "now", string(m.state.Phase))
			if err := keepMove(in.Paths, m.state); err != nil {
				return err
			}
		}
	}
	d.mu.Lock()
	d.moving = m
	d.mu.Unlock()
	if !m.state.Active() {
		err = removeIfThere(in.Paths.DatastoreGoing())
	}
	return errors.Join(err, os.RemoveAll(in.Paths.Moving("")), forgetOrders(in, m))
}

func keepMove(p paths.Paths, s migration.State) error {
	if err := os.MkdirAll(path.Dir(p.Migration()), 0o700); err != nil {
		return err
	}
	return durable.WriteFile(p.Migration(), s.Marshal(), 0o600)
}

// watchMoves does the moves that are asked for, and ends one that a killed daemon had begun.
func (d *Daemon) watchMoves(ctx context.Context) {
	d.mu.Lock()
	s, wake, in := d.moving.state, d.moving.wake, d.in
	d.mu.Unlock()
	var m *move
	if s.Active() { // only its last phases are left
		m = d.resumed(in, s)
	}
	for {
		for m != nil && ctx.Err() == nil {
			s, err := m.run(ctx)
			if err == nil || !s.Active() {
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(goOnAfter):
			}
		}
		select {
		case <-ctx.Done():
			return
		case m = <-wake:
			continue
		default:
		}
		var again <-chan time.Time
		if !d.unfenced(ctx) {
			again = time.After(goOnAfter)
		}
		m = nil
		select {
		case <-ctx.Done():
			return
		case m = <-wake:
		case <-again:
		}
	}
}

// Datastore implements control.Backend.
func (d *Daemon) Datastore(ctx context.Context) (control.Datastore, error) {
	if _, _, err := d.server(); errs.Is(err, errs.Unsupported) {
		return control.Datastore{}, err
	}
	d.mu.Lock()
	in, m, api := d.in, d.moving, d.api
	d.mu.Unlock()
	if m.wake == nil || api == nil {
		return control.Datastore{}, errs.Hint(errs.New(errs.NotRunning, "the node is starting"), "try again when it runs: k1s status")
	}
	out := control.Datastore{Place: place(in.Config.Spec.Datastore), Progress: m.progress}
	if m.state.Phase != "" {
		s := m.state
		out.Move = &s
	}
	if file := components.DatabaseFile(in); file != "" {
		for _, f := range []string{file, file + "-wal"} {
			if st, err := os.Stat(f); err == nil {
				out.Bytes += st.Size()
			}
		}
	}
	if m.state.Active() {
		return out, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, askAPI, errors.New("the API server took more than 2s"))
	defer cancel()
	// What cannot be known now is left out: k1s status tells why the API does not answer.
	out.Revision, _ = api.Revision(ctx)
	if out.Bytes == 0 {
		out.Bytes, _ = api.DatastoreBytes(ctx)
	}
	return out, nil
}

// before is what a rollback needs of a datastore that was left.
type before struct {
	At time.Time `json:"at"`
	// DropIn is what stood in ours; nil where there was none.
	DropIn       *string `json:"dropIn"`
	Endpoint     string  `json:"endpoint"` // whole
	EndpointFile string  `json:"endpointFile,omitempty"`
	CAFile       string  `json:"caFile,omitempty"`
	CertFile     string  `json:"certFile,omitempty"`
	KeyFile      string  `json:"keyFile,omitempty"`
	// Servers were the others that left it together with this one.
	Servers []string `json:"servers,omitempty"`
}

// MoveDatastore implements control.Backend.
func (d *Daemon) MoveDatastore(ctx context.Context, r control.DatastoreRequest) (control.Datastore, error) {
	return d.moveDatastore(ctx, r, false)
}

// moveDatastore begins a move; several says that it is done so that another server can join.
func (d *Daemon) moveDatastore(ctx context.Context, r control.DatastoreRequest, several bool) (control.Datastore, error) {
	if _, _, err := d.server(); errs.Is(err, errs.Unsupported) {
		return control.Datastore{}, err
	}
	d.mu.Lock()
	in, known, api, stopped, changing, restoring := d.in, d.moving, d.api, d.stopped, d.secrets.state.Change, d.care.restore.Active()
	d.mu.Unlock()
	switch {
	case known.wake == nil || api == nil || stopped != nil:
		return control.Datastore{}, errs.Hint(errs.New(errs.NotRunning, "the node is not running yet, or not any more"), "try again when it runs: k1s status")
	case changing != nil && !several: // a change waits for the server that joins
		return control.Datastore{}, errs.Hint(errs.New(errs.Exists, "the encryption of Secrets is being changed"), "wait for its end: k1s encryption")
	}
	if restoring {
		return control.Datastore{}, errs.Hint(errs.New(errs.Exists, "a snapshot of etcd is being restored"), "wait for its end: k1s etcd status")
	}
	if known.following != nil {
		return control.Datastore{}, errs.Hint(errs.New(errs.Exists, "%s moves the datastore", known.following.Leader), "watch it there: k1s datastore")
	}
	if err := d.notUpgraded("move the datastore"); err != nil && !several {
		return control.Datastore{}, err
	}
	var others map[string]string
	if !several { // those who join know of it
		d.admitting.Lock()
		defer d.admitting.Unlock()
		var err error
		if others, err = d.otherMovers(ctx); err != nil {
			return control.Datastore{}, err
		}
	}
	d.changing.Lock()
	defer d.changing.Unlock()
	r, shared, err := alongBack(in.Paths, known.state, r, len(others) > 0)
	if err != nil {
		return control.Datastore{}, err
	}
	m, err := d.newMove(in, known.state, r)
	if err != nil {
		return control.Datastore{}, err
	}
	if err := m.together(ctx, others); err != nil {
		return control.Datastore{}, err
	}
	m.anew = components.UsesEtcd(m.to) && (shared || len(others) > 0)
	if several {
		m.to.Several = true
		if err := keepSeveral(in); err != nil {
			return control.Datastore{}, err
		}
	}
	random := make([]byte, moveIDBytes)
	if _, err := rand.Read(random); err != nil {
		return control.Datastore{}, err
	}
	s, err := known.state.Begin(r.Action, place(m.from.Config.Spec.Datastore), place(m.to.Config.Spec.Datastore), time.Now().UTC().Truncate(time.Second), func() string { return hex.EncodeToString(random) })
	if err != nil {
		return control.Datastore{}, err
	}
	s = s.Together(slices.Sorted(maps.Keys(others)), hex.EncodeToString(random))
	m.resumes = s.Marked
	if m.anew && !m.replace && !m.resumes && hasEtcd(in.Paths) {
		return control.Datastore{}, errHasEtcd(in.Paths)
	}
	if r.DryRun {
		plan, err := m.plan(ctx, s)
		if err != nil {
			return control.Datastore{}, err
		}
		return control.Datastore{Place: s.From, Plan: &plan}, nil
	}
	if m.served, err = api.Namespaces(ctx); err != nil {
		return control.Datastore{}, errs.Hint(fmt.Errorf("cannot move the datastore now: %w", err), "the API has to work first; see: k1s status")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.care.restore.Active() || d.moving.state.Active() || d.moving.state.ID != known.state.ID || d.moving.state.Phase != known.state.Phase {
		return control.Datastore{}, errs.New(errs.Exists, "somebody else has begun to move the datastore")
	}
	if d.moving.following != nil {
		return control.Datastore{}, errs.New(errs.Exists, "another server has begun to move the datastore")
	}
	if len(s.Servers) > 0 {
		if err := m.keepGoing(); err != nil {
			return control.Datastore{}, err
		}
	}
	if err := keepMove(in.Paths, s); err != nil {
		return control.Datastore{}, err
	}
	d.moving.state, d.moving.progress, d.moving.stopped = s, nil, map[string]bool{}
	d.moving.wake <- m // holds one, and nothing is on its way
	return control.Datastore{Place: s.From, Move: &s}, nil
}

// readBefore is what a rollback needs of the datastore that a move has left.
func readBefore(p paths.Paths, id string) (before, error) {
	var b before
	raw, err := os.ReadFile(p.DatastoreBefore(id))
	if err == nil {
		err = json.Unmarshal(raw, &b)
	}
	if err != nil {
		return b, fmt.Errorf("reading the configuration of before the migration: %w", err)
	}
	return b, nil
}

// alongBack makes a migration of a rollback to an etcd that several servers had, or are to have: one that is made anew, with the content of
// now. As they left it, it cannot be taken into use: its members do not start without each other, and cannot be brought past the revisions that
// clients know while they do not run. shared tells that it is one.
func alongBack(p paths.Paths, last migration.State, r control.DatastoreRequest, several bool) (_ control.DatastoreRequest, shared bool, err error) {
	if r.Action != migration.Rollback || last.Previous == nil || config.Engine(last.Previous.Engine) != config.EmbeddedEtcd {
		return r, false, nil
	}
	b, err := readBefore(p, last.PreviousID)
	if err != nil || len(b.Servers) == 0 && !several {
		return r, false, err
	}
	return control.DatastoreRequest{Action: migration.Migrate, Endpoint: string(config.EmbeddedEtcd), Replace: true, DryRun: r.DryRun}, true, nil
}

// newMove checks what can be checked without the datastores.
func (d *Daemon) newMove(in component.Input, last migration.State, r control.DatastoreRequest) (*move, error) {
	if err := writesElsewhere(in); err != nil {
		return nil, err
	}
	m := &move{d: d, from: in, to: in, replace: r.Replace}
	to := &m.to.Config.Spec.Datastore
	switch r.Action {
	case migration.Migrate:
		*to = config.Datastore{Endpoint: config.DSN(r.Endpoint), EndpointFile: r.EndpointFile, CAFile: r.CAFile, CertFile: r.CertFile, KeyFile: r.KeyFile}
		switch {
		case (r.Endpoint == "") == (r.EndpointFile == ""):
			return nil, errs.New(errs.Usage, "one of the URL of the new datastore and a file that holds it has to be given")
		case r.Endpoint == "":
			to.Endpoint = "sqlite"
		}
		m.dropIn = dropIn(*to, "k1s datastore migrate")
		m.to.Etcd = component.EtcdMember{} // one that is made by the move is the first of its own
	case migration.Rollback:
		if last.Previous == nil {
			break // Begin says so
		}
		b, err := readBefore(in.Paths, last.PreviousID)
		if err != nil {
			return nil, err
		}
		*to = config.Datastore{Endpoint: config.DSN(b.Endpoint), EndpointFile: b.EndpointFile, CAFile: b.CAFile, CertFile: b.CertFile, KeyFile: b.KeyFile}
		if b.DropIn != nil {
			m.dropIn = []byte(*b.DropIn)
		}
		m.leftAt = b.At
	default:
		return nil, errs.New(errs.Usage, "there is no action %q: it is migrate or rollback", r.Action)
	}
	if err := to.Endpoint.Check(); err != nil {
		hint, _ := errs.HintOf(err)
		return nil, errs.Hint(errs.New(errs.Invalid, "the new datastore %w", err), "%s", hint)
	}
	if err := resolveDatastore(&m.to.Config); err != nil {
		return nil, err
	}
	var err error
	if m.to.Datastore, err = datastoreID(*to); err != nil {
		return nil, err
	}
	if err := mayRead(m.to); err != nil {
		return nil, err
	}
	return m, m.mayConfigure()
}

// writesElsewhere is an error where the API server is told by its own arguments where to write.
func writesElsewhere(in component.Input) error {
	for _, arg := range []string{"etcd-servers", "etcd-servers-overrides"} {
		if _, set := in.Config.Spec.Components["kube-apiserver"].Args[arg]; set {
			return errs.New(errs.Unsupported, "cannot move the datastore: spec.components.kube-apiserver.args sets %s, so k1s does not know where everything is", arg)
		}
	}
	return nil
}

// mayConfigure finds out before anything is done whether the configuration can be changed at the end.
func (m *move) mayConfigure() error {
	p := m.from.Paths
	now, origins, err := m.d.configured()
	if err != nil {
		return fmt.Errorf("reading the configuration again: %w", err)
	}
	if place(now.Spec.Datastore).Identity != place(m.from.Config.Spec.Datastore).Identity {
		return errs.Hint(errs.New(errs.Invalid, "the configuration names another datastore now than the one that is used, %s", place(m.from.Config.Spec.Datastore)),
			"restart k1s with the configuration as it is, or correct it")
	}
	for name, o := range origins {
		if name != "spec.datastore" && !strings.HasPrefix(name, "spec.datastore.") {
			continue
		}
		later := filepath.Dir(o.Name) == filepath.Clean(p.ConfigDropIns()) && filepath.Base(o.Name) > filepath.Base(p.DatastoreDropIn())
		if o.Kind == config.FromFlag || o.Kind == config.FromEnvironment || later {
			return errs.Hint(errs.New(errs.Invalid, "%s is set by %s, which is stronger than the file that k1s is going to write, %s", name, o, p.DatastoreDropIn()),
				"move that setting into %s and restart k1s", p.ConfigFile())
		}
	}
	if err := os.MkdirAll(p.ConfigDropIns(), 0o755); err != nil {
		return fmt.Errorf("making the directory for the configuration of the new datastore: %w", err)
	}
	staged, err := durable.Stage(p.DatastoreDropIn(), nil, 0o600)
	if err != nil {
		return errs.Hint(err, "the configuration has to be changed at the end, so %s has to be writable", p.ConfigDropIns())
	}
	return staged.Discard()
}

// configured is what the next start would find.
func (d *Daemon) configured() (config.Config, config.Origins, error) {
	c, origins, err := d.o.Reload()
	if err == nil {
		err = resolveDatastore(&c)
	}
	return c, origins, err
}

// dropIn is the file that names a datastore, and who wrote it. null takes back what other files say.
func dropIn(d config.Datastore, by string) []byte {
	var b bytes.Buffer
	b.WriteString("# Written by " + by + ": the cluster's state is there since then. To change it, move the state again.\n" +
		"apiVersion: k1s.io/v1alpha1\nkind: Config\nspec:\n  datastore:\n")
	endpoint := d.Endpoint.Reveal()
	if d.EndpointFile != "" {
		endpoint = ""
	}
	for _, f := range []struct{ name, value string }{
		{"endpoint", endpoint}, {"endpointFile", d.EndpointFile}, {"caFile", d.CAFile}, {"certFile", d.CertFile}, {"keyFile", d.KeyFile},
	} {
		value := "null"
		if f.value != "" {
			quoted, err := json.Marshal(f.value) // JSON is YAML
			if err != nil {
				panic(err) // a string
			}
			value = string(quoted)
		}
		fmt.Fprintf(&b, "    %s: %s\n", f.name, value)
	}
	return b.Bytes()
}

// move is this node as the World of one.
type move struct {
	d        *Daemon
	from, to component.Input
	dropIn   []byte // that of the target; nil for none
	replace  bool
	anew     bool              // the target is an etcd of several servers, of which this one founds the first member; what is there is not opened
	resumes  bool              // it goes on with what an earlier attempt left in the target
	leftAt   time.Time         // when the datastore of a rollback was left
	served   map[string]string // namespaces, with their UIDs, before
	old      []byte            // our drop-in of before; nil for none
	copier   *copierProcess
	began    bool // to start the control plane on the new one
	id       string
	reload   bool     // how the new datastore is reached is read when it is needed
	attempt  string   // of several servers; "" for one
	others   []string // the other servers
	kind     migration.Kind
}

var _ migration.World = (*move)(nil)

// run does it, or goes on with it.
func (m *move) run(ctx context.Context) (migration.State, error) {
	d := m.d
	d.mu.Lock()
	s := d.moving.state
	d.mu.Unlock()
	d.planning.Lock()
	defer d.planning.Unlock()
	m.id, m.kind, m.attempt, m.others = s.ID, s.Kind, s.Attempt, s.Servers
	s, err := migration.Run(ctx, m, s)
	if m.copier != nil {
		m.copier.kill()
		m.copier = nil
	}
	if cleaned := os.RemoveAll(d.o.Paths.Moving("")); cleaned != nil {
		d.log.Warn("what the move of the datastore needed is not removed", "err", cleaned)
	}
	d.mu.Lock()
	d.moving.state, d.moving.progress = s, nil
	if !s.Active() {
		d.moving.order = nil
	}
	d.mu.Unlock()
	if !s.Active() {
		if cleaned := removeIfThere(d.o.Paths.DatastoreGoing()); cleaned != nil {
			d.log.Warn("how the new datastore is reached is not removed", "err", cleaned)
		}
	}
	attrs := []any{"kind", string(s.Kind), "from", s.From.String(), "to", s.To.String(), "phase", string(s.Phase)}
	if s.Phase == migration.Failed {
		err = errors.Join(err, removeIfThere(d.o.Paths.DatastoreBefore(s.ID)))
	}
	if err != nil {
		d.log.Error("the datastore is not moved", append(attrs, "err", err)...)
		return s, err
	}
	d.log.Info("the datastore is moved", append(attrs, "paused", time.Duration(s.PausedS*float64(time.Second)))...)
	m.forgetOlder(s)
	return s, nil
}

// forgetOlder removes what a rollback of earlier moves would have needed.
func (m *move) forgetOlder(s migration.State) {
	p := m.from.Paths
	files, err := filepath.Glob(p.DatastoreBefore("*"))
	for _, f := range files {
		if f != p.DatastoreBefore(s.PreviousID) {
			err = errors.Join(err, os.Remove(f))
		}
	}
	if err != nil {
		m.d.log.Warn("configurations of datastores of before are not removed", "err", err)
	}
}

func (m *move) Now() time.Time { return time.Now().UTC() }

func (m *move) Keep(s migration.State) error {
	if err := keepMove(m.d.o.Paths, s); err != nil {
		return err
	}
	m.d.mu.Lock()
	m.d.moving.state = s
	m.d.mu.Unlock()
	m.d.log.Info("moving the datastore", "from", s.From.String(), "to", s.To.String(), "phase", string(s.Phase))
	return nil
}

// private writes the files with which somebody opens a datastore who is alone with it.
func private(in component.Input, name string) (migration.Store, error) {
	s, files, err := components.Private(in, name)
	if err != nil {
		return s, err
	}
	dirs := []string{in.Paths.Moving("")}
	if dir := components.LocalDir(in); dir != "" {
		dirs = append(dirs, dir)
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return s, err
		}
	}
	for _, f := range files {
		if err := durable.WriteFile(f.Path, []byte(f.Content), f.Mode); err != nil {
			return s, err
		}
	}
	if e := components.Engine(in); e.External() && e.Kine() {
		return s, durable.WriteFile(in.Paths.Moving(name+".dsn"), []byte(in.Config.Spec.Datastore.Endpoint.Reveal()+"\n"), 0o600)
	}
	return s, nil
}

// job describes both sides.
func (m *move) job(mode migration.Mode) (migration.Job, error) {
	j := migration.Job{Mode: mode, ID: m.id, Root: components.Root(m.from), Live: components.Served(m.from), Replace: m.replace, Fence: m.fence()}
	var err, also error
	if len(m.others) > 0 && components.UsesEtcd(m.from) {
		j.Source = j.Live // its members run on: what the majority has is what was acknowledged
	} else {
		j.Source, err = private(m.from, "source")
	}
	to := m.to
	if m.anew {
		to.Etcd.Token = m.attempt // members of one that was left are strangers to it
	}
	j.Target, also = private(to, "target")
	if err = errors.Join(err, also); err == nil && components.Engine(m.to).External() {
		j.Node = m.from.Facts.NodeName
		if j.CA, err = os.ReadFile(pki.CertFile(m.from.Paths, pki.CA)); err == nil {
			j.Had, err = pki.Published(m.from.Paths)
		}
	}
	return j, err
}

// plan looks at both sides.
func (m *move) plan(ctx context.Context, s migration.State) (_ control.DatastorePlan, err error) {
	p := control.DatastorePlan{Kind: s.Kind, From: s.From, To: s.To, Servers: s.Servers, DropIn: m.from.Paths.DatastoreDropIn(), Since: m.leftAt}
	if !m.d.planning.TryLock() {
		return p, errs.New(errs.Exists, "somebody else looks at a move of the datastore just now")
	}
	defer m.d.planning.Unlock()
	defer func() { err = errors.Join(err, os.RemoveAll(m.from.Paths.Moving(""))) }()
	m.id = s.ID
	dir := components.LocalDir(m.to)
	absent := dir != "" && (m.anew || isEmpty(dir))
	mode := migration.Look
	if s.Kind == migration.Rollback {
		mode = migration.Differ
	}
	j, err := m.job(mode)
	if err != nil {
		return p, err
	}
	if absent {
		if isEmpty(dir) {
			if err := removeEmpty(dir); err != nil {
				return p, err
			}
		}
		j.Target = migration.Store{}
	}
	c, err := startCopier(ctx, m.from, j)
	if err != nil {
		return p, err
	}
	defer c.kill()
	e, err := c.until(ctx, nil, func(e migration.Event) bool { return e.Seen != nil || e.Result != nil })
	if err != nil {
		return p, err
	}
	p.Seen = e.Seen
	if e.Result != nil {
		p.Lost = slices.DeleteFunc(e.Result.Rows, migration.Row.Equal)
	}
	if p.Seen != nil && dir != "" {
		p.FreeBytes, p.NeededBytes, err = space(m.to, p.Seen.Bytes)
	}
	return p, err
}

func isEmpty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0
}

func removeEmpty(dir string) error {
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// space is what is free on this server's disk and what a copy of so many bytes needs.
func space(to component.Input, size int64) (free, needed uint64, err error) {
	free, err = platform.FreeBytes(to.Paths.Data)
	if errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	return free, times*uint64(size) + spare, err
}

// room is an error where this server's disk cannot take a copy of so many bytes; 0 is unknown. What is in its place goes, or is part of it.
func room(to component.Input, size int64) error {
	free, needed, err := space(to, size)
	if err != nil || free == 0 || size == 0 {
		return err
	}
	if st, err := os.Stat(components.DatabaseFile(to)); err == nil {
		free += uint64(st.Size())
	}
	if free < needed {
		return errs.Hint(errs.New(errs.Failure, "there is not enough space below %s: %d MiB are free, a copy may need %d", to.Paths.Data, free>>20, needed>>20), "make room")
	}
	return nil
}

// size is that of the datastore that is left, in bytes; 0 is unknown.
func (m *move) size(ctx context.Context) int64 {
	if file := components.DatabaseFile(m.from); file != "" {
		st, err := os.Stat(file)
		if err != nil {
			return 0
		}
		return st.Size()
	}
	m.d.mu.Lock()
	api := m.d.api
	m.d.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, askAPI)
	defer cancel()
	size, err := api.DatastoreBytes(ctx)
	if err != nil {
		m.d.log.Warn("not known how much space a copy of the datastore needs", "err", err)
		return 0
	}
	return size
}

func (m *move) Copy(ctx context.Context) (marked bool, err error) {
	if err := m.prepareTarget(ctx); err != nil {
		return false, err
	}
	j, err := m.job(migration.Copy)
	if err != nil {
		return false, err
	}
	if m.copier, err = startCopier(ctx, m.from, j); err != nil {
		return false, err
	}
	_, err = m.copier.until(ctx, m.progress, func(e migration.Event) bool { return e.CaughtUp })
	return m.copier.marked, err
}

// prepareTarget makes ready what a datastore on this server needs.
func (m *move) prepareTarget(ctx context.Context) error {
	if components.UsesEtcd(m.to) { // it needs certificates
		if err := m.d.issueFor(ctx, m.to); err != nil {
			return err
		}
	}
	if dir := components.LocalDir(m.to); dir != "" {
		if err := room(m.to, m.size(ctx)); err != nil {
			return err
		}
		if m.anew || m.replace && !m.resumes {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("removing what is to be replaced: %w", err)
			}
		}
	}
	return nil
}

func (m *move) progress(p migration.Progress) {
	m.d.mu.Lock()
	m.d.moving.progress = &p
	m.d.mu.Unlock()
}

func (m *move) Pause(ctx context.Context) error {
	if len(m.others) > 0 && components.UsesEtcd(m.from) {
		return m.d.stopServing(ctx, m.attempt)
	}
	plan, err := components.Plan(m.from)
	if err != nil {
		return err
	}
	if err := m.d.sup.Apply(ctx, components.WithoutControlPlane(plan)); err != nil {
		return fmt.Errorf("stopping the control plane: %w", err)
	}
	return nil
}

func (m *move) Finish(ctx context.Context) (migration.Result, error) {
	defer m.showsAlive(ctx, aliveEvery)()
	if m.kind == migration.Rollback {
		j, err := m.job(migration.Pass)
		if err != nil {
			return migration.Result{}, err
		}
		if m.copier, err = startCopier(ctx, m.from, j); err != nil {
			return migration.Result{}, err
		}
	} else if err := m.copier.finish(); err != nil {
		return migration.Result{}, err
	}
	e, err := m.copier.until(ctx, m.progress, func(e migration.Event) bool { return e.Result != nil })
	if err != nil {
		return migration.Result{}, err
	}
	err = m.copier.wait()
	m.copier = nil
	return *e.Result, err
}

func (m *move) Switch(ctx context.Context) error {
	if len(m.others) == 0 {
		return m.configure()
	}
	is, err := m.settle(ctx, migration.Forward)
	switch {
	case err != nil:
		return migration.InDoubt{Err: fmt.Errorf("it is not known whether the servers have agreed: %w", err)}
	case is.Of(m.attempt) == migration.Forward:
	default: // nobody but this server could have written that, and it has not
		return errs.Hint(errs.New(errs.Failure, "the other servers have gone back meanwhile: this one was away for too long"), "run the command again: it goes on with what is copied already")
	}
	if err := m.configure(); err != nil {
		return migration.InDoubt{Err: fmt.Errorf("the servers have agreed, and this one cannot go with it yet: %w", err)}
	}
	return nil
}

// configure changes the configuration, or leaves it as it is.
func (m *move) configure() error {
	p := m.from.Paths
	old, err := os.ReadFile(p.DatastoreDropIn())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := leaveMembers(m.to); err != nil { // a start that finds the new configuration is not to look for a place that it had
		return err
	}
	was := m.from.Config.Spec.Datastore
	b := before{At: m.Now(), Endpoint: was.Endpoint.Reveal(), EndpointFile: was.EndpointFile, CAFile: was.CAFile, CertFile: was.CertFile, KeyFile: was.KeyFile, Servers: m.others}
	if was.EndpointFile != "" {
		b.Endpoint = "sqlite" // beside a file nothing else may be said
	}
	if err == nil {
		text := string(old)
		b.DropIn, m.old = &text, old
	}
	raw, err := json.Marshal(b)
	if err != nil {
		return err
	}
	// One that goes on may have been here before.
	if at, _, err := m.d.configured(); err != nil || place(at.Spec.Datastore).Identity != place(m.to.Config.Spec.Datastore).Identity {
		if err := writeIfChanged(p.DatastoreBefore(m.id), raw, 0o600); err != nil {
			return fmt.Errorf("keeping the configuration of the datastore that is left: %w", err)
		}
	}
	if err := m.writeDropIn(m.dropIn); err != nil {
		return errors.Join(err, m.Unswitch())
	}
	now, _, err := m.d.configured()
	if err == nil && place(now.Spec.Datastore).Identity != place(m.to.Config.Spec.Datastore).Identity {
		err = errs.New(errs.Failure, "with %s written, the configuration names %s: something stronger sets spec.datastore", p.DatastoreDropIn(), place(now.Spec.Datastore))
	}
	if err != nil {
		return errors.Join(err, m.Unswitch())
	}
	return nil
}

func (m *move) Unswitch() error { return m.writeDropIn(m.old) }

func (m *move) writeDropIn(content []byte) error {
	file := m.from.Paths.DatastoreDropIn()
	if content == nil {
		if err := removeIfThere(file); err != nil {
			return fmt.Errorf("changing the configuration: %w", err)
		}
		return durable.SyncDir(path.Dir(file))
	}
	err := os.MkdirAll(path.Dir(file), 0o755)
	if err == nil {
		err = durable.WriteFile(file, content, 0o600)
	}
	if err != nil {
		return fmt.Errorf("changing the configuration: %w", err)
	}
	return nil
}

// use makes the daemon one of that datastore, and starts its control plane.
func (d *Daemon) use(ctx context.Context, in component.Input) error {
	d.mu.Lock()
	current := d.in // what else it has may be newer
	current.Config.Spec.Datastore, current.Datastore, current.Several = in.Config.Spec.Datastore, in.Datastore, in.Several
	current.Etcd, current.Fence = in.Etcd, in.Fence
	plan, err := components.Plan(current)
	if err == nil {
		err = leaveMembers(in)
	}
	if err != nil {
		d.mu.Unlock()
		return err
	}
	d.in = current
	d.mu.Unlock()
	d.wakeEncryption() // it may be one of several now
	if err := writeDatastore(in); err != nil {
		return err
	}
	if components.UsesEtcd(in) { // of one that was left there are none
		if err := d.issueFor(ctx, in); err != nil {
			return err
		}
	}
	if err := d.sup.Apply(ctx, plan); err != nil {
		return err
	}
	d.forgetEtcdLeaves()
	return nil
}

// issueFor issues what a datastore of this server needs, which may not be in use yet.
func (d *Daemon) issueFor(ctx context.Context, in component.Input) error {
	d.renewing.Lock()
	defer d.renewing.Unlock()
	_, err := certificates(ctx, d.log, in, false)
	return err
}

// forgetEtcdLeaves removes the certificates of an etcd that is not in use: nobody renews them, and everybody would be told when they end.
func (d *Daemon) forgetEtcdLeaves() {
	d.renewing.Lock()
	defer d.renewing.Unlock()
	d.mu.Lock()
	in := d.in
	d.mu.Unlock()
	if components.UsesEtcd(in) {
		return
	}
	if err := pki.ForgetEtcd(in.Paths); err != nil {
		d.log.Warn("certificates of an etcd that is not in use are not removed", "err", err)
	}
}

// leaveMembers forgets what this server was in the etcd of others, where it begins with one of its own. That it has its place stays: also
// when the move is taken back it asks nobody for one, since there may be nobody any more.
func leaveMembers(in component.Input) error {
	s, err := readPeers(in.Paths)
	if err != nil || s.Etcd == nil || !components.UsesEtcd(in) || in.Etcd.Name != "" {
		return err
	}
	s.Etcd = &etcdPart{Answered: true}
	return s.keep(in.Paths)
}

func (m *move) Resume(ctx context.Context) error {
	if m.copier != nil { // it has the datastore open
		m.copier.kill()
		m.copier = nil
	}
	if m.d.stopRequest() != nil {
		return nil // the node ends
	}
	return m.d.use(ctx, m.from)
}

const apiserver = "kube-apiserver"

func (m *move) Start(ctx context.Context) error {
	d, now := m.d, time.Now()
	// Later tries cannot tell whether an earlier one has served; and of one that goes on after a restart less is known.
	mayGoBack := !m.began && m.served != nil && len(m.others) == 0
	m.began = true
	if err := d.use(ctx, m.to); err != nil {
		return err
	}
	open, cancel := context.WithTimeoutCause(ctx, openWithin, fmt.Errorf("not within %s", openWithin))
	err := d.sup.Wait(open, apiserver, component.Open)
	cancel()
	if err != nil && ctx.Err() == nil && mayGoBack {
		err = fmt.Errorf("the API server does not get on with the new datastore: %w", err)
		plan, perr := components.Plan(m.to)
		if perr == nil {
			perr = d.sup.Apply(ctx, components.WithoutControlPlane(plan))
		}
		if perr != nil || d.opened(now) {
			return errors.Join(err, perr)
		}
		return migration.NotServed{Err: err}
	}
	if err != nil {
		return err
	}
	ready, cancel := context.WithTimeoutCause(ctx, serveWithin, fmt.Errorf("not within %s", serveWithin))
	defer cancel()
	if err := d.sup.Wait(ready, apiserver, component.Ready); err != nil {
		return err
	}
	return wait.Until(ready, 50*time.Millisecond, "the API server to serve what it served before", m.servesTheSame)
}

// opened tells that the API server answered since a time.
func (d *Daemon) opened(since time.Time) bool {
	for _, e := range d.sup.Events() {
		if e.Component == apiserver && (e.What == "open" || e.What == "ready") && e.Time.After(since) {
			return true
		}
	}
	return false
}

// servesTheSame compares the namespaces and reads all Secrets, which may be encrypted.
func (m *move) servesTheSame(ctx context.Context) error {
	api := m.d.client()
	if m.served != nil {
		now, err := api.Namespaces(ctx)
		if err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(m.served)) {
			if m.kind == migration.Migrate && now[name] != m.served[name] {
				return errs.New(errs.Failure, "the namespace %s is %q now, and was %q", name, now[name], m.served[name])
			}
		}
		if now["kube-system"] != m.served["kube-system"] {
			return errs.New(errs.Failure, "this is another cluster: kube-system is %q, and was %q", now["kube-system"], m.served["kube-system"])
		}
	}
	return api.Readable(ctx, "secrets")
}
