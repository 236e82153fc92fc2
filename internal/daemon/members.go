package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdapi"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/token"
	"k1s.io/k1s/internal/wait"
)

// members is join.Members of this node.
type members struct{ d *Daemon }

var _ join.Members = members{}

// moveAgainAfter is how long another try to move the datastore waits after one has failed: each may keep the API from
// serving for a moment.
const moveAgainAfter = 10 * time.Minute

// Join implements join.Members.
func (m members) Join(ctx context.Context, who join.Member) (join.Membership, error) {
	d := m.d
	d.mu.Lock()
	in, move := d.in, d.moving.state
	d.mu.Unlock()
	engine := components.Engine(in)
	out := join.Membership{Engine: engine}
	switch {
	case move.Active():
		return out, errs.New(errs.NotRunning, "the first server moves its datastore from %s to %s (%s)", move.From, move.To, move.Phase)
	case engine == config.SQLite:
		return out, m.leaveSQLite(ctx, move)
	case !in.Several:
		// The answer does not reach anybody while the control plane restarts.
		d.wakeSeveral()
		return out, errs.New(errs.NotRunning, "the first server prepares for not being the only one any more")
	case engine != config.EmbeddedEtcd:
		return out, nil
	}
	d.changing.Lock()
	defer d.changing.Unlock()
	if err := d.unmoved(); err != nil {
		return out, err
	}
	c, err := etcdClient(in)
	if err != nil {
		return out, err
	}
	defer c.Close()
	all, err := c.AgreedMembers(ctx)
	if err != nil {
		return out, memberError(err)
	}
	// Who asks again has lost the answer, or what it had: it gets another place if it has had this one.
	switch at, o := placeOf(all, who); at {
	case placeKept:
		out.InitialCluster = initialCluster(all, who)
		return out, nil
	case placeLost:
		return out, errs.Hint(errs.New(errs.Denied, "%s is a member already, and its data is not there any more", who.Name), "on another server: k1s node remove %s; then join again with a token", nodeOfMember(who.Name))
	case placeTaken:
		return out, errs.Hint(errs.New(errs.NotRunning, "the address %s is that of the member %s, which is off, or has moved and could not tell yet", who.PeerURL, o.Name),
			"start that server, or if it does not come back: k1s node remove %s", nodeOfMember(o.Name))
	case placeOld:
		d.log.Warn("a member that has lost its data is replaced", "member", o.Name, "url", who.PeerURL)
		if err := c.Remove(ctx, o.ID); err != nil {
			return out, fmt.Errorf("removing what %s was before: %w", who.PeerURL, memberError(err))
		}
	}
	added, all, err := c.AddLearner(ctx, who.PeerURL)
	if errors.Is(err, etcdapi.ErrTooManyLearners) {
		return out, m.blockedBy(ctx, c)
	}
	if err != nil {
		return out, memberError(err)
	}
	d.log.Info("a server is to be a member of etcd", "member", who.Name, "id", added.ID, "url", who.PeerURL)
	out.InitialCluster = initialCluster(all, who)
	return out, nil
}

// leaveSQLite begins to move the state to etcd.
func (m members) leaveSQLite(ctx context.Context, last migration.State) error {
	if last.Phase == migration.Failed && time.Since(last.Ended) < moveAgainAfter {
		return errs.New(errs.NotRunning, "the first server could not move its datastore to etcd, and tries again ten minutes later: %s", last.Error)
	}
	_, err := m.d.moveDatastore(ctx, control.DatastoreRequest{Action: migration.Migrate, Endpoint: "etcd"}, true)
	if err != nil && !errs.Is(err, errs.Exists) {
		return errs.As(errs.NotRunning, fmt.Errorf("the first server has to move its datastore to etcd, and cannot: %w", err))
	}
	return errs.New(errs.NotRunning, "the first server begins to move its datastore from SQLite to etcd, so that there can be several")
}

// learnerLimit is how long a member may be a learner that nobody asks a vote for, when another one waits to join.
const learnerLimit = 2 * time.Minute

// blockedBy tells for whom somebody waits who wants to join, and removes a learner that does not come.
func (m members) blockedBy(ctx context.Context, c *etcdapi.Client) error {
	all, err := c.AgreedMembers(ctx)
	if err != nil {
		return memberError(err)
	}
	for _, o := range all {
		if !o.IsLearner {
			continue
		}
		if m.d.learnerSeen(o.ID, false) < learnerLimit {
			return errs.New(errs.NotRunning, "another server is joining in this moment (%s)", strings.Join(o.PeerURLs, ", "))
		}
		m.d.log.Warn("a member is removed that never got so far as to vote", "member", o.Name, "url", o.PeerURLs)
		if err := c.Remove(ctx, o.ID); err != nil {
			return memberError(err)
		}
	}
	return errs.New(errs.NotRunning, "another server was joining a moment ago")
}

// Promote implements join.Members.
func (m members) Promote(ctx context.Context, who join.Member) error {
	m.d.changing.Lock()
	defer m.d.changing.Unlock()
	m.d.mu.Lock()
	in := m.d.in
	m.d.mu.Unlock()
	if err := m.d.unmoved(); err != nil {
		return err
	}
	if e := components.Engine(in); e != config.EmbeddedEtcd {
		return errs.New(errs.Invalid, "the cluster's datastore is %s: nobody has a vote there", e)
	}
	c, err := etcdClient(in)
	if err != nil {
		return err
	}
	defer c.Close()
	return m.promote(ctx, c, who)
}

func (m members) promote(ctx context.Context, c *etcdapi.Client, who join.Member) error {
	all, err := c.AgreedMembers(ctx)
	if err != nil {
		return memberError(err)
	}
	o, ok := memberNamed(all, who)
	if !ok { // who is told so begins anew, with nothing
		return errs.New(errs.NotFound, "%s is no member of the cluster's etcd any more", who.Name)
	}
	m.d.learnerSeen(o.ID, true)
	if err := c.Promote(ctx, o.ID); err != nil && !errors.Is(err, etcdapi.ErrNotLearner) {
		return memberError(err)
	}
	return nil
}

// unmoved is an error while the state is on its way to another datastore or comes from a snapshot.
func (d *Daemon) unmoved() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.moving.active():
		return errs.New(errs.NotRunning, "the datastore is being moved")
	case d.care.restore.Active():
		return errs.New(errs.NotRunning, "a snapshot of etcd is being restored")
	}
	return nil
}

// learnerSeen is how long ago somebody asked for a vote for a learner, since this daemon knows of it.
func (d *Daemon) learnerSeen(id uint64, now bool) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.learners == nil {
		d.learners = map[uint64]time.Time{}
	}
	if _, ok := d.learners[id]; now || !ok {
		d.learners[id] = time.Now()
	}
	return time.Since(d.learners[id])
}

// memberError is what an error of etcd means to somebody who asks: most of them pass.
func memberError(err error) error {
	if err == nil || errs.KindOf(err) != 0 {
		return err
	}
	return errs.As(errs.NotRunning, err)
}

// initialCluster are all members as etcd wants to be told of them. Who has not started yet has no name in the list.
func initialCluster(all []etcdapi.Member, who join.Member) string {
	var out []string
	for _, m := range all {
		name := m.Name
		if slices.Contains(m.PeerURLs, who.PeerURL) {
			name = who.Name
		}
		for _, u := range m.PeerURLs {
			out = append(out, name+"="+u)
		}
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

// nodeOfMember is the node a member is on.
func nodeOfMember(member string) string { return etcdcare.NodeOf(member) }

// wakeSeveral lets this server not be the only one any more.
func (d *Daemon) wakeSeveral() {
	select {
	case d.several <- struct{}{}:
	default: // it is on its way
	}
}

// watchSeveral does what follows when another server joins for the first time: things that one server does for all of them
// have to be agreed about from then on. That takes a restart of the control plane, once.
func (d *Daemon) watchSeveral(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.several:
		}
		if err := d.becomeSeveral(ctx); err != nil && ctx.Err() == nil {
			d.log.Error("this server cannot become one of several", "err", err)
		}
	}
}

func (d *Daemon) becomeSeveral(ctx context.Context) error {
	d.mu.Lock()
	in := d.in
	d.mu.Unlock()
	if in.Several {
		return nil
	}
	if err := keepSeveral(in); err != nil {
		return err
	}
	in.Several = true
	plan, err := components.Plan(in)
	if err != nil {
		return err
	}
	d.log.Info("another server joins: the control plane restarts as one of several")
	if err := d.sup.Apply(ctx, plan); err != nil {
		return err
	}
	d.mu.Lock()
	d.in.Several = true
	d.mu.Unlock()
	d.wakeEncryption() // the others may change keys from now on
	d.wakeRotation()   // and authorities
	return nil
}

func keepSeveral(in component.Input) error {
	s, err := readPeers(in.Paths)
	if err != nil {
		return err
	}
	s.Several = true
	return s.keep(in.Paths)
}

// alone tells that this is the cluster's only server. The error says what is in the way of what was to be done. Who counts is
// who has got the cluster's keys and was not removed: a server that is off, or that has not come so far as to be a
// member, would come back with what is changed now.
func (d *Daemon) alone(ctx context.Context, in component.Input, what string) error {
	all, err := clusterStore{api: d.client()}.Bindings(ctx)
	if err != nil {
		return fmt.Errorf("finding out whether this is the only server: %w", err)
	}
	var others []string
	for _, b := range all {
		if b.Role == token.Server && b.Node != in.Facts.NodeName {
			others = append(others, b.Node)
		}
	}
	if len(others) > 0 {
		return errs.Hint(errs.New(errs.Unsupported, "%s is not possible yet while there are other servers: %s", what, strings.Join(others, ", ")), "remove them before: k1s node remove NAME")
	}
	return nil
}

// removeMember takes a server out of etcd. Nothing is done when the others would have no majority after it, and of one that is to be spared when
// it is there; that is an error of kind errs.Denied. One that is no member is no error: it may have been let in and never come so far.
// asked tells that etcd was asked for it, and not known to have refused; before that nothing can have happened.
func (d *Daemon) removeMember(ctx context.Context, in component.Input, l leaver) (asked bool, err error) {
	if !components.UsesEtcd(in) {
		return false, nil
	}
	b := l.Binding
	d.changing.Lock()
	defer d.changing.Unlock()
	c, err := d.etcd(in)
	if err != nil {
		return false, err
	}
	defer c.Close()
	all, err := c.AgreedMembers(ctx)
	if err != nil {
		return false, fmt.Errorf("removing %s from etcd: %w", b.Node, err)
	}
	api := d.client()
	bindings, err := clusterStore{api: api}.Bindings(ctx)
	if err != nil {
		return false, fmt.Errorf("removing %s from etcd: %w", b.Node, err)
	}
	if l.uid != "" { // while it has the name, members of that name are its own: so this comes after they were listed
		sec, err := api.Secret(ctx, systemNamespace, nodePrefix+b.Node)
		if errs.Is(err, errs.NotFound) || err == nil && sec.Metadata.UID != l.uid {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("removing %s from etcd: %w", b.Node, err)
		}
	}
	for _, m := range all {
		if !isMember(m, b, bindings) {
			continue
		}
		was, err := removeSettled(ctx, c, m.ID, l.sparing)
		asked = asked || was
		switch {
		case errors.Is(err, errThere):
			return asked, errs.Hint(errs.New(errs.Denied, "%s is not removed from etcd: %w", b.Node, err), "if it is to go all the same: k1s node remove %s", b.Node)
		case errors.Is(err, etcdapi.ErrUnsafe):
			return asked, errs.Hint(errs.New(errs.Denied, "%s is not removed from etcd: %w", b.Node, err), "start the other servers first, or wait for a moment; see: k1s etcd ls")
		case err != nil && !errors.Is(err, etcdapi.ErrNoMember):
			return asked, fmt.Errorf("removing %s from etcd: %w", b.Node, err)
		}
		d.log.Info("member removed from etcd", "member", m.Name, "id", m.ID)
	}
	return asked, nil
}

// errThere says that a member is there that was to be removed for not being there.
var errThere = errors.New("it is there")

// settled is longer than the 5 s for which etcd wants the members that stay to have been connected (etcdserver.HealthInterval):
// one of them may have come a moment ago, and on a machine that is busy its connections break off now and then.
const settled = 30 * time.Second

// removeSettled waits for that before it takes a refusal for one. Who does not wait so long has been refused, too.
func removeSettled(ctx context.Context, c *etcdapi.Client, id uint64, sparing bool) (asked bool, err error) {
	until := time.Now().Add(settled)
	var refused error
	for {
		asked, err := removeSafe(ctx, c, id, sparing)
		switch {
		case errors.Is(err, etcdapi.ErrUnsafe):
			refused, asked = err, false
			if time.Now().After(until) {
				return asked, err
			}
		case err != nil && !asked && refused != nil:
			return asked, errors.Join(refused, err)
		default:
			return asked, err
		}
		select {
		case <-ctx.Done():
			return asked, errors.Join(refused, context.Cause(ctx))
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// removeSafe asks the others before, whether they are there: etcd does not for a member that it is not connected with.
func removeSafe(ctx context.Context, c *etcdapi.Client, id uint64, sparing bool) (asked bool, err error) {
	var f etcdcare.Facts
	if _, err := c.Facts(ctx, &f); err != nil {
		return false, err
	}
	if sparing && slices.ContainsFunc(f.Members, func(m etcdcare.Member) bool { return m.ID == id && etcdcare.Seen(m) }) {
		return false, errThere
	}
	if why := etcdcare.TooFew(f.Members, id); why != "" {
		return false, fmt.Errorf("%w: %s", etcdapi.ErrUnsafe, why)
	}
	return true, c.Remove(ctx, id)
}

// memberRefusal says why a server would not be taken out of etcd now; "" where it would, it is none, or nothing is known.
func (d *Daemon) memberRefusal(ctx context.Context, node string) string {
	in, api, err := d.etcdServer()
	if err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeoutCause(ctx, lookTime, fmt.Errorf("no answer within %s", lookTime))
	defer cancel()
	bindings, err := clusterStore{api: api}.Bindings(ctx)
	i := slices.IndexFunc(bindings, func(b join.Binding) bool { return b.Node == node && b.Role == token.Server })
	if err != nil || i < 0 {
		return ""
	}
	c, err := etcdClient(in)
	if err != nil {
		return ""
	}
	defer c.Close()
	var f etcdcare.Facts
	if _, err := c.Facts(ctx, &f); err != nil {
		return ""
	}
	for _, m := range f.Members {
		if !m.Unstarted && isMember(asListed(m), bindings[i], bindings) {
			return etcdcare.TooFew(f.Members, m.ID)
		}
	}
	return ""
}

// asListed is a member as etcd lists it.
func asListed(m etcdcare.Member) etcdapi.Member {
	return etcdapi.Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, IsLearner: m.Learner}
}

// isMember tells whether a member is a server's, by its name, and where it has never started by its address. The address of
// one that has may be an old one. A node may be called as a member of another one could be; all are the nodes there are.
func isMember(m etcdapi.Member, b join.Binding, all []join.Binding) bool {
	if m.Name != "" {
		named := slices.ContainsFunc(all, func(o join.Binding) bool { return o.Node == m.Name })
		return m.Name == b.Node || !named && nodeOfMember(m.Name) == b.Node
	}
	return slices.ContainsFunc(m.PeerURLs, func(raw string) bool {
		u, err := url.Parse(raw)
		return err == nil && b.IP.IsValid() && u.Hostname() == b.IP.String()
	})
}

// keepPeerURL tells the other members, or those that are to come, where this one is reached by now.
func (d *Daemon) keepPeerURL(ctx context.Context) {
	if d.sup.Await(ctx, "etcd", component.Ready) != nil { // also where it becomes the datastore later
		return
	}
	d.mu.Lock()
	in := d.in
	d.mu.Unlock()
	err := wait.Until(ctx, 5*time.Second, "the members of etcd", func(ctx context.Context) error {
		c, err := etcdClient(in)
		if err != nil {
			return err
		}
		defer c.Close()
		st, err := c.Status(ctx)
		if err != nil {
			return err
		}
		all, err := c.AgreedMembers(ctx)
		if err != nil {
			return err
		}
		ours := components.EtcdPeerURL(in)
		next, settled := nextPeerURL(all, st.ID, in.Facts.NodeName, ours)
		if next != "" {
			d.log.Info("this server's member of etcd has another address now", "is", ours, "told", next)
			if err := c.SetPeerURL(ctx, st.ID, next); err != nil {
				return err
			}
		}
		if !settled {
			return fmt.Errorf("%s is still that of another member", ours)
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		d.log.Error("the members of etcd are not told where this one is", "err", err)
	}
}
