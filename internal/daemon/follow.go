package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
)

// following is a move that another server leads, and with which this one is asked to go.
type following struct {
	migration.Following
	ask  join.MoveAsk // what is to be done
	to   *join.Order  // nil until it was told
	done join.MoveAsk // what was done
	err  error        // why it cannot be
	in   component.Input
}

// readFollowing is what this server keeps while it goes with another one; nil for nothing.
func readFollowing(p paths.Paths) (*migration.Following, error) {
	b, err := os.ReadFile(p.Following())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var f migration.Following
	if err == nil {
		f, err = migration.UnmarshalFollowing(b)
	}
	if err != nil {
		return nil, errs.Hint(fmt.Errorf("reading with whom this server moves its datastore from %s: %w", p.Following(), err),
			"see on another server where the state is (k1s datastore); if this one is configured for that too (spec.datastore), remove that file")
	}
	return &f, nil
}

// fenced is the attempt for which the API server of a start is not to serve, since it is not known what the servers have agreed about, or
// the configuration does not name it yet; "" for none.
func fenced(p paths.Paths, now string) (string, error) {
	f, err := readFollowing(p)
	if err != nil {
		return "", err
	}
	if f != nil && (f.Decided != migration.Forward || f.To.Identity != now) {
		return f.Attempt, nil
	}
	b, err := os.ReadFile(p.Migration())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	s, err := migration.Unmarshal(b)
	if err != nil {
		return "", nil // prepareMove tells
	}
	if s = s.Recover(now, time.Now()); s.Phase == migration.Switching {
		return s.Attempt, nil
	}
	return "", nil
}

// undecided is an error where a server that does not run cannot know whether its state is where its configuration says.
func undecided(in component.Input) error {
	attempt, err := fenced(in.Paths, place(in.Config.Spec.Datastore).Identity)
	if err != nil || attempt == "" {
		return err
	}
	return errs.Hint(errs.New(errs.Exists, "it is not known here whether the servers have moved the datastore or have stayed with %s", place(in.Config.Spec.Datastore)),
		"start k1s, it finds out; if nobody can tell it any more see docs/how-to/datastores.md")
}

// movers is this server's part in moves of several, as others ask for it.
type movers struct{ d *Daemon }

var _ join.Moves = movers{}

// Answer implements join.Moves.
func (m movers) Answer(ctx context.Context, r join.MoveRequest) (join.MoveAnswer, *join.Order, error) {
	d := m.d
	if self := d.self(); r.To != self {
		return join.MoveAnswer{}, nil, errs.New(errs.Denied, "this is %s", self)
	}
	switch r.Ask {
	case join.AskReady:
		return answered(d.readyToFollow(r.Engine)), nil, nil
	case join.AskCheck, join.AskFence:
		return d.askedToFollow(ctx, r), nil, nil
	case join.AskOrder:
		d.mu.Lock()
		defer d.mu.Unlock()
		if s := d.moving.state; !s.Active() || s.Attempt != r.Attempt || d.moving.order == nil {
			return join.MoveAnswer{}, nil, nil
		}
		return join.MoveAnswer{Known: true}, d.moving.order, nil
	case join.AskLearn:
		d.mu.Lock()
		defer d.mu.Unlock()
		s := d.moving.state
		if s.Attempt != r.Attempt || r.Attempt == "" {
			return join.MoveAnswer{}, nil, nil
		}
		if d.moving.stopped == nil {
			d.moving.stopped = map[string]bool{}
		}
		d.moving.stopped[r.Node] = true // it asks when it has
		return join.MoveAnswer{Known: true, Decided: s.Told(r.Attempt)}, nil, nil
	}
	return join.MoveAnswer{}, nil, errs.New(errs.Invalid, "nobody knows what %.20q is", string(r.Ask))
}

func answered(err error) join.MoveAnswer {
	if err == nil {
		return join.MoveAnswer{Done: true}
	}
	w := errs.ToWire(err)
	return join.MoveAnswer{Error: &w}
}

// readyToFollow finds out whether this server could go with a move; engine is what the one that leads moves from.
func (d *Daemon) readyToFollow(engine config.Engine) error {
	d.mu.Lock()
	in, known, api, stopped, changing, restoring, rotating := d.in, d.moving, d.api, d.stopped, d.secrets.state.Change, d.care.restore.Active(), d.rotating.replacing()
	d.mu.Unlock()
	switch {
	case known.wake == nil || api == nil || stopped != nil:
		return errs.New(errs.NotRunning, "it is not running yet, or not any more")
	case known.following != nil:
		return errs.New(errs.Exists, "it still waits for the end of a move that %s has led", known.following.Leader)
	case known.state.Active():
		return errs.New(errs.Exists, "it moves the datastore itself")
	case changing != nil:
		return errs.New(errs.Exists, "the encryption of Secrets is being changed there")
	case restoring:
		return errs.New(errs.Exists, "a snapshot of etcd is being restored there")
	case rotating:
		return errs.New(errs.Exists, "the cluster's CA is being replaced there")
	case components.Engine(in) != engine:
		return errs.New(errs.Invalid, "its datastore is %s, and that of the server that leads is %s", components.Engine(in), engine)
	}
	if err := writesElsewhere(in); err != nil {
		return err
	}
	return (&move{d: d, from: in, to: in}).mayConfigure()
}

// askedToFollow is the answer to who leads; what is asked for is done by watchFollowing.
func (d *Daemon) askedToFollow(ctx context.Context, r join.MoveRequest) join.MoveAnswer {
	d.mu.Lock()
	asked, kept, in := d.moving.asked, d.moving.following, d.in
	d.mu.Unlock()
	if kept != nil { // it has stopped, or is about to, and tells so itself
		if kept.Attempt == r.Attempt {
			return join.MoveAnswer{}
		}
		return answered(errs.New(errs.Exists, "it still waits for the end of a move that %s has led", kept.Leader))
	}
	if asked == nil || asked.Attempt != r.Attempt {
		if err := d.readyToFollow(components.Engine(in)); err != nil {
			return answered(err)
		}
		all, err := (changer{d}).servers(ctx)
		if err != nil {
			return answered(err)
		}
		asked = &following{Following: migration.Following{Attempt: r.Attempt, Leader: r.Node, At: all[r.Node], Root: components.Root(in)}, in: in}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.moving.asked != nil && d.moving.asked.Attempt == r.Attempt {
		asked = d.moving.asked
	}
	if asked.err != nil {
		return answered(asked.err)
	}
	d.moving.asked = asked
	if asked.done == join.AskCheck && r.Ask == join.AskCheck {
		return answered(nil)
	}
	if asked.ask != r.Ask {
		asked.ask = r.Ask
		select {
		case d.moving.follow <- struct{}{}:
		default: // it is on its way
		}
	}
	return join.MoveAnswer{}
}

// watchFollowing goes with other servers that move the datastore.
func (d *Daemon) watchFollowing(ctx context.Context) {
	d.mu.Lock()
	wake, kept, in := d.moving.follow, d.moving.following, d.in
	d.mu.Unlock()
	if kept != nil {
		in.Fence = ""
		d.goesWith(ctx, follower{d: d, from: in, to: targetOf(in, *kept)}, *kept)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
		}
		d.mu.Lock()
		f := d.moving.asked
		goes := f != nil && f.err == nil
		d.mu.Unlock()
		if goes {
			d.follows(ctx, f)
		}
	}
}

// follows does what was asked for.
func (d *Daemon) follows(ctx context.Context, f *following) {
	d.mu.Lock()
	ask, done := f.ask, f.done
	d.mu.Unlock()
	w := follower{d: d, from: f.in, to: targetOf(f.in, f.Following)}
	if done == "" {
		err := w.check(ctx, f)
		if err != nil {
			d.log.Warn("this server cannot go with the datastore", "leader", f.Leader, "err", err)
			err = errors.Join(err, w.forgetOrder())
		}
		d.mu.Lock()
		f.err, f.done = err, join.AskCheck
		ask = f.ask
		d.mu.Unlock()
		if err != nil {
			return
		}
	}
	if ask != join.AskFence {
		return
	}
	d.admitting.Lock() // who was let in is known to the one that leads, or is not let in
	d.mu.Lock()
	err := error(nil)
	if d.moving.state.Active() || d.care.restore.Active() || d.stopped != nil {
		err = errs.New(errs.Exists, "something else is done to the datastore there")
	}
	f.err = err
	if err == nil {
		f.Since = time.Now().UTC().Truncate(time.Second)
		kept := f.Following
		d.moving.following = &kept
	}
	d.mu.Unlock()
	d.admitting.Unlock()
	if err == nil {
		d.log.Info("this server goes with the datastore", "leader", f.Leader, "from", f.From.String(), "to", f.To.String())
		d.goesWith(ctx, w, f.Following)
	}
}

// goesWith does so until the end.
func (d *Daemon) goesWith(ctx context.Context, w follower, f migration.Following) {
	for ctx.Err() == nil {
		var err error
		w.f = f
		if f, err = migration.Follow(ctx, &w, f); err == nil {
			break
		}
		if ctx.Err() == nil {
			d.log.Error("going with the datastore", "leader", f.Leader, "decided", string(f.Decided), "err", err)
			w.tell(health.FromError(err, health.DatastoreMove, ""))
		}
		select {
		case <-ctx.Done():
		case <-time.After(goOnAfter):
		}
	}
}

// follower is this server as the World of a move that another one leads.
type follower struct {
	d        *Daemon
	from, to component.Input
	f        migration.Following
}

var _ migration.Follower = (*follower)(nil)

// targetOf is this server with the datastore that it was told of in an attempt.
func targetOf(in component.Input, f migration.Following) component.Input {
	if config.Engine(f.To.Engine) == config.EmbeddedEtcd {
		in.Config.Spec.Datastore, in.Etcd = config.Datastore{Endpoint: config.DSN(config.EmbeddedEtcd)}, component.EtcdMember{}
		return in
	}
	in.Config.Spec.Datastore = config.Datastore{EndpointFile: in.Paths.DatastorePKI(path.Join(f.Attempt, "endpoint"))}
	for name, to := range map[string]*string{"ca.crt": &in.Config.Spec.Datastore.CAFile, "client.crt": &in.Config.Spec.Datastore.CertFile, "client.key": &in.Config.Spec.Datastore.KeyFile} {
		if file := in.Paths.DatastorePKI(path.Join(f.Attempt, name)); exists(file) {
			*to = file
		}
	}
	return in
}

// read takes what the files of the target say.
func (w *follower) read() error {
	w.to = targetOf(w.to, w.f)
	err := resolveDatastore(&w.to.Config)
	if err == nil {
		w.to.Datastore, err = datastoreID(w.to.Config.Spec.Datastore)
	}
	return err
}

// check asks what is to be done, and finds out whether this server reaches the new datastore: the same one as the server that leads.
func (w *follower) check(ctx context.Context, f *following) error {
	c, identity, err := w.d.moverClient(f.At)
	if err != nil {
		return err
	}
	o, err := c.Order(ctx, identity, join.MoveRequest{Node: w.d.self(), To: f.Leader, Attempt: f.Attempt})
	if err != nil {
		return err
	}
	dir := w.to.Paths.DatastorePKI(f.Attempt)
	if filepath.Dir(dir) != filepath.Clean(w.to.Paths.DatastorePKI("")) {
		return errs.New(errs.Invalid, "%.20q is no attempt", f.Attempt)
	}
	w.f = f.Following
	w.f.To.Engine = string(o.To.Engine)
	w.d.mu.Lock()
	known := w.d.moving
	w.d.mu.Unlock()
	if err := forgetOrders(w.from, known); err != nil { // of attempts that came to nothing
		return err
	}
	defer func() {
		if err := os.RemoveAll(w.from.Paths.Moving("")); err != nil {
			w.d.log.Warn("what it took to look at the new datastore is not removed", "err", err)
		}
	}()
	switch {
	case o.To.Engine == config.EmbeddedEtcd:
		err = w.mayBeMember(o)
	case o.To.Engine.External():
		err = w.keepOrder(dir, o.To)
	default:
		err = errs.New(errs.Unsupported, "several servers do not move to %s", o.To.Engine)
	}
	if err != nil {
		return err
	}
	if err := w.read(); err != nil {
		return err
	}
	if err := mayRead(w.to); err != nil {
		return err
	}
	is, err := settle(ctx, w.from, w.to, "", f.Attempt, nil)
	if err != nil {
		return err
	}
	if is.Of(f.Attempt) != migration.Open && components.UsesEtcd(w.to) {
		return errs.New(errs.Invalid, "the database that it uses, %s, is not the one that %s moves from", place(w.from.Config.Spec.Datastore), f.Leader)
	}
	if is.Of(f.Attempt) != migration.Open {
		return errs.Hint(errs.New(errs.Invalid, "what it reaches at %s is not the datastore that %s copies to", place(w.to.Config.Spec.Datastore), f.Leader),
			"the URL has to lead to the same database from every server: no localhost, and no name that means another machine there")
	}
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	f.to, f.ID, f.Kind = &o, o.ID, o.Kind
	f.From, f.To = place(w.from.Config.Spec.Datastore), place(w.to.Config.Spec.Datastore)
	return nil
}

// keepOrder writes how a database of others is reached.
func (w *follower) keepOrder(dir string, to join.Datastore) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, content := range map[string][]byte{"endpoint": []byte(to.Endpoint + "\n"), "ca.crt": to.CA, "client.crt": to.Cert, "client.key": to.Key} {
		if len(content) == 0 {
			continue
		}
		if err := durable.WriteFile(path.Join(dir, name), content, 0o600); err != nil {
			return fmt.Errorf("keeping how the new datastore is reached: %w", err)
		}
	}
	return nil
}

// mayBeMember finds out whether this server can be a member of the etcd that the leader founds.
func (w *follower) mayBeMember(o join.Order) error {
	if hasEtcd(w.from.Paths) && !o.Replace {
		return errHasEtcd(w.from.Paths)
	}
	ca, err := os.ReadFile(pki.CertFile(w.from.Paths, pki.EtcdCA))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading etcd's authority: %w", err)
	}
	if ours := pki.PinsOf(ca); len(ours) == 0 || !slices.Equal(ours, pki.PinsOf(o.To.CA)) {
		return errs.Hint(errs.New(errs.Invalid, "its authority for etcd (%s) is not that of the server that leads: its member would be let in by nobody", pki.CertFile(w.from.Paths, pki.EtcdCA)),
			"give up what is on that server (k1s reset), and let it join again")
	}
	in := w.from
	in.Config.Spec.Datastore = config.Datastore{Endpoint: config.DSN(config.EmbeddedEtcd)}
	return room(in, o.Bytes)
}

// errHasEtcd refuses to give up the data of an etcd without having been told to.
func errHasEtcd(p paths.Paths) error {
	return errs.Hint(errs.New(errs.Exists, "there is the data of an etcd (%s), which would be given up", p.Etcd()), "run the command with --replace if nobody needs it")
}

// forgetOrder removes how a datastore is reached to which this server does not go.
func (w *follower) forgetOrder() error {
	if w.f.Attempt == "" {
		return nil
	}
	return os.RemoveAll(w.to.Paths.DatastorePKI(w.f.Attempt))
}

func (w *follower) Keep(f migration.Following) error {
	if err := os.MkdirAll(path.Dir(w.from.Paths.Following()), 0o700); err != nil {
		return err
	}
	if err := durable.WriteFile(w.from.Paths.Following(), f.Marshal(), 0o600); err != nil {
		return err
	}
	w.f = f
	w.d.mu.Lock()
	w.d.moving.following = &f
	w.d.mu.Unlock()
	return nil
}

func (w *follower) Stop(ctx context.Context) error { return w.d.stopServing(ctx, w.f.Attempt) }

func (w *follower) Learn(ctx context.Context) (migration.Decision, error) {
	d := w.d
	var waits migration.Waiting
	silent, said := false, ""
	for {
		decided, err := w.ask(ctx)
		if decided == migration.Forward || decided == migration.Back {
			d.log.Info("it is decided where the datastore is", "by", w.f.Leader, "decided", string(decided))
			return decided, nil
		}
		if err == nil {
			if waits.Answered(); silent {
				silent = false
				w.tell()
			}
		} else if look, want, since := waits.Away(time.Now()); look {
			if silent = true; err.Error() != said {
				said = err.Error()
				d.log.Warn("the server that moves the datastore does not answer", "server", w.f.Leader, "err", err)
			}
			w.tell(health.New(health.DatastoreMove, "%s, which moves the datastore, has given no sign for %s: %v", w.f.Leader, time.Since(since).Round(time.Second), err))
			is, err := w.look(ctx, want)
			waits.Looked(time.Now(), is)
			if decided := is.Of(w.f.Attempt); err == nil && (decided == migration.Forward || decided == migration.Back) {
				d.log.Info("it is decided where the datastore is", "by", "what the servers agree by", "decided", string(decided))
				return decided, nil
			}
			if err != nil && ctx.Err() == nil {
				d.log.Warn("it is not known where the datastore is", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(askAgain):
		}
	}
}

// tell shows what keeps this server from going with the datastore.
func (w *follower) tell(problems ...health.Problem) { w.d.board.Report("datastore-move", problems) }

// ask asks the server that leads.
func (w *follower) ask(ctx context.Context) (migration.Decision, error) {
	a, err := w.d.askMover(ctx, w.f.Leader, w.f.At, join.MoveRequest{Ask: join.AskLearn, Attempt: w.f.Attempt})
	if err == nil && !a.Known {
		err = errs.New(errs.NotFound, "%s does not know of this move of the datastore", w.f.Leader)
	}
	return a.Decided, err
}

// look finds out from the new datastore what was decided. Who decides that they go back takes the old one into use again.
func (w *follower) look(ctx context.Context, want migration.Decision) (migration.Register, error) {
	if err := w.read(); err != nil {
		return migration.Register{}, err
	}
	var fence *migration.Fence
	if components.Engine(w.from).External() {
		fence = &migration.Fence{Attempt: w.f.Attempt}
	}
	return settle(ctx, w.from, w.to, want, w.f.Attempt, fence)
}

func (w *follower) Prepare() error {
	if err := w.read(); err != nil || !components.UsesEtcd(w.to) {
		return err
	}
	return newPlace(w.to, w.f.Attempt, w.f.At)
}

func (w *follower) Join(ctx context.Context) error {
	if err := w.read(); err != nil || !components.UsesEtcd(w.to) {
		return err
	}
	if err := w.d.issueFor(ctx, w.to); err != nil {
		return err
	}
	in := w.to
	err := w.d.becomeMember(ctx, &in)
	w.d.mu.Lock()
	if w.d.readyAt != nil {
		w.d.doing = "" // it has started long ago
	}
	w.d.mu.Unlock()
	return err
}

func (w *follower) Switch() error {
	if err := w.read(); err != nil {
		return err
	}
	to := w.to.Config.Spec.Datastore
	m := &move{d: w.d, from: w.from, to: w.to}
	if err := m.writeDropIn(dropIn(to, "k1s datastore "+string(w.f.Kind)+", which was asked for on "+w.f.Leader)); err != nil {
		return err
	}
	now, _, err := w.d.configured()
	if err == nil && place(now.Spec.Datastore).Identity != place(to).Identity {
		err = errs.New(errs.Failure, "with %s written, the configuration names %s: something stronger sets spec.datastore", w.to.Paths.DatastoreDropIn(), place(now.Spec.Datastore))
	}
	if err != nil {
		return err
	}
	// A rollback is asked for where the migration was. What this server has moved before is not where it would lead by now.
	s := migration.State{ID: w.f.ID, Kind: w.f.Kind, From: w.f.From, To: place(to), Phase: migration.Done, Since: w.f.Since, Ended: time.Now().UTC().Truncate(time.Second), Leader: w.f.Leader}
	if err := keepMove(w.from.Paths, s); err != nil {
		return err
	}
	w.d.mu.Lock()
	w.d.moving.state = s
	w.d.mu.Unlock()
	m.forgetOlder(s)
	return nil
}

func (w *follower) Serve(ctx context.Context) error {
	in := w.from
	now, _, err := w.d.configured()
	if err == nil && place(now.Spec.Datastore).Identity == w.f.To.Identity {
		if err = w.read(); err == nil {
			in = w.to
		}
		if err == nil && components.UsesEtcd(in) {
			err = placed(&in)
		}
	}
	if err != nil {
		return err
	}
	in.Fence = ""
	if err := w.d.use(ctx, in); err != nil {
		return err
	}
	w.d.wakeMembership() // it may have no vote yet
	return nil
}

func (w *follower) Forget() error {
	if err := removeIfThere(w.from.Paths.Following()); err != nil {
		return fmt.Errorf("forgetting with whom the datastore was moved: %w", err)
	}
	if err := durable.SyncDir(path.Dir(w.from.Paths.Following())); err != nil {
		return err
	}
	w.d.mu.Lock()
	w.d.moving.following, w.d.moving.asked = nil, nil
	w.d.mu.Unlock()
	w.tell()
	if w.f.Decided != migration.Forward {
		if err := w.forgetOrder(); err != nil {
			w.d.log.Warn("how a datastore is reached that is not used is not removed", "err", err)
		}
	}
	return os.RemoveAll(w.from.Paths.Moving(""))
}

// forgetOrders removes how datastores are reached that this server was told of and does not use, nor would go back to.
func forgetOrders(in component.Input, m moveState) error {
	dirs, err := filepath.Glob(in.Paths.DatastorePKI("*"))
	if err != nil {
		return err
	}
	c := in.Config.Spec.Datastore
	used := []string{c.EndpointFile, c.CAFile, c.CertFile, c.KeyFile}
	if m.following != nil {
		used = append(used, in.Paths.DatastorePKI(path.Join(m.following.Attempt, "x")))
	}
	for _, id := range []string{m.state.PreviousID, m.state.ID} { // that of one that is not at its end becomes the previous one
		var b before
		if raw, err := os.ReadFile(in.Paths.DatastoreBefore(id)); id != "" && err == nil && json.Unmarshal(raw, &b) == nil {
			used = append(used, b.EndpointFile, b.CAFile, b.CertFile, b.KeyFile)
		}
	}
	for _, dir := range dirs {
		st, serr := os.Stat(dir)
		if serr != nil || !st.IsDir() {
			continue
		}
		needed := false
		for _, f := range used {
			needed = needed || strings.HasPrefix(f, dir+"/")
		}
		if !needed {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	return err
}
