package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdapi"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/token"
	"k1s.io/k1s/internal/version"
	"k1s.io/k1s/internal/wait"
)

// peers is what a server keeps of the other servers. The zero value: it is the only one there ever was.
type peers struct {
	// Several tells that there was another one.
	Several bool `json:"several,omitempty"`
	// Joined is how this server came to its cluster; nil for the first one.
	Joined *joinedCluster `json:"joined,omitempty"`
	// Etcd is its part in an embedded etcd; nil for the first one, and where the datastore is another.
	Etcd *etcdPart `json:"etcd,omitempty"`
	// Removed tells that the others have removed it.
	Removed bool `json:"removed,omitempty"`
	// Founding tells that its cluster is one only if the database it names is nobody's: until then everything can be given up.
	Founding bool `json:"founding,omitempty"`
}

type joinedCluster struct {
	// Pending: it has not got the cluster's keys yet, or not all of them.
	Pending bool `json:"pending,omitempty"`
	// Servers were there when it joined, the one it was told of first.
	Servers  []string                   `json:"servers"`
	Settings map[string]json.RawMessage `json:"settings"`
}

type etcdPart struct {
	join.Member
	InitialCluster string `json:"initialCluster,omitempty"`
	// Learner: it has no vote yet.
	Learner bool `json:"learner,omitempty"`
	// Answered: it has its place. It has no name where it has left the etcd of others for a datastore of its own.
	Answered bool `json:"answered,omitempty"`
	// Moved is the attempt to move the datastore with which this server came to it, and From the server that led: host:port. Both are ""
	// where it is a member since it joined.
	Moved string `json:"moved,omitempty"`
	From  string `json:"from,omitempty"`
}

// named tells that it is a member of an etcd that others are in, or is to be.
func (e *etcdPart) named() bool { return e != nil && e.Name != "" }

func readPeers(p paths.Paths) (peers, error) {
	var s peers
	b, err := os.ReadFile(p.Server())
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return s, errs.Hint(fmt.Errorf("reading what this server knows of the others: %w", err), "restore %s from a backup", p.Server())
	}
	return s, nil
}

func (s peers) keep(p paths.Paths) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := writeIfChanged(p.Server(), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("keeping what this server knows of the others: %w", err)
	}
	return nil
}

// copies tells that this server has no vote in etcd yet. In a datastore that the servers have gone to meanwhile nobody has one.
func (s peers) copies(in component.Input) bool {
	return s.Etcd != nil && s.Etcd.Learner && components.UsesEtcd(in)
}

// into is what follows from it for what runs.
func (s peers) into(in *component.Input) error {
	in.Several = s.Several
	if s.Etcd != nil {
		in.Etcd = component.EtcdMember{Name: s.Etcd.Name, InitialCluster: s.Etcd.InitialCluster}
	}
	if s.Joined == nil {
		return nil
	}
	return adopt(in, s.Joined.Settings)
}

// asServer lets a plan that is only printed be that of a server of its cluster, if it has joined one.
func asServer(in *component.Input) error {
	s, err := readPeers(in.Paths)
	if err != nil {
		return err
	}
	r, err := readRotation(in.Paths)
	if err != nil {
		return err
	}
	in.Trust = r.Epoch()
	return s.into(in)
}

// joinServers makes this machine a server of a cluster that is there, as far as that can be done before the machine has
// been checked: it gets the cluster's keys and settings. Where there is nothing to join it takes what it knows into in.
func (d *Daemon) joinServers(ctx context.Context, in *component.Input) (*arrival, error) {
	s, err := readPeers(in.Paths)
	if err != nil {
		return nil, err
	}
	where := in.Config.Spec.Join
	if s.Removed && where.Server == "" {
		return nil, errs.Hint(errs.New(errs.Invalid, "this server was removed from its cluster"),
			"to join again: k1s server --server https://HOST:6443 --token-file FILE; to give up what is on it: k1s reset")
	}
	if s.Joined != nil && s.Joined.Pending && where.Server == "" {
		// It may have some of the cluster's keys, and none of its own may be made beside them.
		return nil, errs.Hint(errs.New(errs.Invalid, "this machine has begun to join a cluster, and does not know any more where it is"),
			"run: k1s server --server https://HOST:6443 --token-file FILE; to give up what is on it: k1s reset --force")
	}
	if s.Joined != nil && !s.Joined.Pending && !s.Removed || where.Server == "" {
		return nil, s.into(in)
	}
	t, tokenErr := readToken(where)
	ca, err := pki.ReadCA(in.Paths)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if ca != nil && s.Joined == nil && !s.Removed {
		if t != nil && !pinned(in.Paths, t.Pin) {
			return nil, errs.Hint(errs.New(errs.Invalid, "this machine is a server of a cluster of its own (%s); it cannot join %s", in.Paths.Data, where.Server),
				"leave out spec.join (--server), or give up what is on it: k1s reset")
		}
		// The first server, configured like the others. What has become of their token does not matter.
		d.log.Info("this machine is a server already, and joins nobody", "server", where.Server)
		return nil, s.into(in)
	}
	if tokenErr != nil {
		return nil, tokenErr
	}
	if t == nil {
		return nil, errs.Hint(errs.New(errs.Invalid, "a server needs a token to join (spec.join.tokenFile)"), "get one on a server with: k1s token create --role server")
	}
	addr, err := join.Address(where.Server)
	if err != nil {
		return nil, err
	}
	a := &arrival{d: d, token: *t}
	servers := []string{addr}
	if s.Joined != nil {
		servers = append(servers, slices.DeleteFunc(s.Joined.Servers, func(o string) bool { return o == addr })...)
	}
	d.step("joining the cluster at " + addr)
	err = d.askServers(ctx, func(ctx context.Context) error {
		a.welcome, a.keys, err = a.ask(ctx, *in, servers)
		return err
	})
	if err != nil {
		return nil, err
	}
	if s.Joined != nil || s.Removed {
		if in.Config, err = d.joinsAgain(in.Config); err != nil {
			return nil, err
		}
	}
	if in.Config, err = withDatastore(in.Config, in.Paths, a.keys.Datastore); err != nil {
		return nil, err
	}
	a.peers = peers{Several: true, Joined: &joinedCluster{Pending: true, Servers: append([]string{addr}, a.welcome.Servers...), Settings: a.welcome.Settings}}
	return a, a.peers.into(in)
}

// pinned tells that a token's pin is of the CA that is here, or of one before it.
func pinned(p paths.Paths, pin string) bool {
	b, err := pki.Published(p)
	return err == nil && slices.Contains(pki.PinsOf(b), pin)
}

// askAgainAfter is how long to wait before servers are asked again that did not answer. A node adds to it by chance, so that
// those of a site that was off do not come all at once.
const askAgainAfter = time.Second

// askServers asks until it is answered, and tells meanwhile what it waits for.
func (d *Daemon) askServers(ctx context.Context, ask func(context.Context) error) error {
	var refused error
	said := ""
	err := wait.Until(ctx, askAgainAfter+mathrand.N(askAgainAfter), "a server of the cluster", func(ctx context.Context) error {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		var away *join.Unreachable
		if !errors.As(err, &away) {
			refused = err
			return wait.Permanent(err)
		}
		if d.step("joining the cluster: " + err.Error()); said != err.Error() {
			said = err.Error()
			d.log.Info("waiting for a server", "err", err)
		}
		d.board.Report("join", []health.Problem{waitingProblem(err)})
		return err
	})
	if refused != nil {
		return refused // what was waited for does not matter
	}
	if err == nil {
		d.board.Report("join", nil)
	}
	return err
}

// waitingProblem is what a machine is told that waits for servers: they may be away, or one has answered that something else comes first.
func waitingProblem(err error) health.Problem {
	p := health.FromError(err, health.ServersAway, "")
	if !errs.Is(err, errs.NotRunning) {
		return p
	}
	p = p.As(health.Warning)
	if hint, _ := errs.HintOf(err); hint == "" {
		p = p.Fix("nothing has to be done here: this machine asks again; if it takes minutes, run on that server: k1s status")
	}
	return p
}

// arrival is a machine that is becoming a server.
type arrival struct {
	d       *Daemon
	token   token.Token
	welcome join.Welcome
	keys    join.Bootstrap
	peers   peers
}

// ask sends the request to servers until one of them decides.
func (a *arrival) ask(ctx context.Context, in component.Input, servers []string) (join.Welcome, join.Bootstrap, error) {
	identity, err := pki.Identity(in.Paths)
	if err != nil {
		return join.Welcome{}, join.Bootstrap{}, err
	}
	r := join.Request{
		Role: token.Server, Node: in.Facts.NodeName, IP: in.Facts.NodeIP, K1s: version.K1s, Kubernetes: version.Kubernetes, Settings: config.Chosen(in.Config),
	}
	var first error
	for _, s := range servers {
		// Not the CA that may be here already: the token says which cluster is meant.
		w, b, err := join.Client{Server: s}.AskKeys(ctx, identity, r, a.token)
		if err == nil {
			return w, b, nil
		}
		if first == nil {
			first = err
		}
	}
	return join.Welcome{}, join.Bootstrap{}, first
}

// joinsAgain is the configuration of a machine that was a server once, or has begun to be one: what k1s itself has written then about the
// datastore is nobody's word.
func (d *Daemon) joinsAgain(c config.Config) (config.Config, error) {
	_, origins, err := d.o.Reload()
	if err != nil {
		return c, fmt.Errorf("reading the configuration again: %w", err)
	}
	for name, o := range origins {
		if (name == "spec.datastore" || strings.HasPrefix(name, "spec.datastore.")) && o.Name != d.o.Paths.DatastoreDropIn() {
			return c, nil
		}
	}
	c.Spec.Datastore = config.Default().Spec.Datastore
	return c, nil
}

// withDatastore lets the configuration name the cluster's datastore. What it says itself has to be the default or the same.
func withDatastore(c config.Config, p paths.Paths, theirs join.Datastore) (config.Config, error) {
	if err := resolveDatastore(&c); err != nil {
		return c, err
	}
	ours := c.Spec.Datastore
	if ours.Endpoint.Engine() == theirs.Engine && (!theirs.Engine.External() || ours.Endpoint.Reveal() == theirs.Endpoint) {
		return c, nil
	}
	if ours.EndpointFile != "" || ours.Endpoint != config.Default().Spec.Datastore.Endpoint {
		return c, errs.Hint(errs.New(errs.Invalid, "this server's configuration is not that of its cluster: spec.datastore.endpoint is %s here and %s in the cluster", ours.Endpoint.Engine(), theirs.Engine),
			"leave it out: a server takes it from its cluster")
	}
	if !theirs.Engine.External() {
		c.Spec.Datastore = config.Datastore{Endpoint: config.DSN(theirs.Engine)}
		return c, nil
	}
	c.Spec.Datastore = config.Datastore{EndpointFile: p.DatastorePKI("endpoint")}
	for _, f := range []struct {
		content []byte
		name    string
		field   *string
	}{{theirs.CA, "ca.crt", &c.Spec.Datastore.CAFile}, {theirs.Cert, "client.crt", &c.Spec.Datastore.CertFile}, {theirs.Key, "client.key", &c.Spec.Datastore.KeyFile}} {
		if len(f.content) > 0 {
			*f.field = p.DatastorePKI(f.name)
		}
	}
	return c, nil
}

// settle writes what the server was given. It may be cut off anywhere: the next start asks again, until it is complete.
func (a *arrival) settle(ctx context.Context, in *component.Input) error {
	p := in.Paths
	old, err := readPeers(p)
	if err != nil {
		return err
	}
	if old.Removed { // it may have been cut off before it could do it
		if err := archive(p.Etcd(), time.Now()); err != nil {
			return err
		}
	}
	if err := errors.Join(forgetPodCIDR(*in), forgetUnderWay(ctx, p)); err != nil {
		return err
	}
	if err := a.peers.keep(p); err != nil {
		return err
	}
	if err := a.keys.Keys.Install(ctx, p); err != nil {
		return err
	}
	if a.keys.Encryption != nil {
		if err := writeIfChanged(p.EncryptionKeys(), a.keys.Encryption, 0o600); err != nil {
			return fmt.Errorf("keeping the keys of Secrets: %w", err)
		}
	}
	if err := a.settleDatastore(in); err != nil {
		return err
	}
	a.peers.Joined.Pending = false
	return a.peers.keep(p)
}

// forgetUnderWay removes what a machine that joins again was in the middle of when the others went on without it: it gets their keys as they
// are, and their datastore. Brought to its end, an old replacement of authorities would put those of then in the place of theirs.
func forgetUnderWay(ctx context.Context, p paths.Paths) error {
	files, err := filepath.Glob(p.DatastoreBefore("*"))
	err = errors.Join(err, forgetUnkept(ctx, p))
	for _, file := range append(files, p.Rotation(), p.Following(), p.Migration(), p.DatastoreGoing()) {
		err = errors.Join(err, removeIfThere(file))
	}
	if err != nil {
		return fmt.Errorf("forgetting what was under way when this server was removed: %w", err)
	}
	return nil
}

// settleDatastore makes the next start find the cluster's datastore.
func (a *arrival) settleDatastore(in *component.Input) error {
	p, theirs := in.Paths, a.keys.Datastore
	if theirs.Engine.External() && in.Config.Spec.Datastore.EndpointFile == p.DatastorePKI("endpoint") {
		if err := os.MkdirAll(p.DatastorePKI(""), 0o700); err != nil {
			return err
		}
		for name, content := range map[string][]byte{"endpoint": []byte(theirs.Endpoint + "\n"), "ca.crt": theirs.CA, "client.crt": theirs.Cert, "client.key": theirs.Key} {
			if len(content) == 0 {
				continue
			}
			if err := writeIfChanged(p.DatastorePKI(name), content, 0o600); err != nil {
				return fmt.Errorf("keeping how the datastore is reached: %w", err)
			}
		}
	}
	if err := writeIfChanged(p.DatastoreDropIn(), dropIn(in.Config.Spec.Datastore, "k1s when this server joined its cluster"), 0o600); err != nil {
		return errs.Hint(fmt.Errorf("changing the configuration: %w", err), "it has to name the cluster's datastore, so %s has to be writable", p.ConfigDropIns())
	}
	return resolveDatastore(&in.Config)
}

// memberNameBytes make names of members of one node differ, since one may be removed and join again.
const memberNameBytes = 4

// takePlace makes sure of this server's place in the datastore. A restore that was cut off comes first: the state it is to go on with
// may be beside its place, and whoever has state asks nobody for a place.
func (d *Daemon) takePlace(ctx context.Context, in *component.Input) error {
	if err := d.prepareRestore(*in); err != nil {
		return err
	}
	return d.becomeMember(ctx, in)
}

// becomeMember takes this server's place in the cluster's datastore, unless it has it. It waits for others who are
// doing the same, and for the first server, which may have to move its datastore before.
func (d *Daemon) becomeMember(ctx context.Context, in *component.Input) error {
	s, err := readPeers(in.Paths)
	if err != nil || s.Joined == nil && !s.Etcd.named() {
		return err
	}
	embedded := components.UsesEtcd(*in)
	switch {
	case embedded && hasEtcd(in.Paths) || !embedded && s.Etcd != nil && s.Etcd.Answered:
		return s.into(in) // it was there before
	case !embedded && s.Etcd != nil && s.Etcd.Moved != "":
		return s.into(in) // and is to be in an etcd, for which it is not configured yet
	case !s.Etcd.named():
		if s.Etcd, err = newMember(*in); err != nil {
			return err
		}
		if err := s.keep(in.Paths); err != nil { // before anybody else knows of it
			return err
		}
	}
	// What an earlier member of this machine was told is not about this one.
	if err := removeIfThere(components.EtcdRemoved(*in)); err != nil {
		return err
	}
	if embedded { // one that has not started has nothing in its directory that counts
		if err := os.RemoveAll(in.Paths.Etcd()); err != nil {
			return err
		}
	}
	d.step("becoming a member of the cluster's datastore")
	err = d.askServers(ctx, func(ctx context.Context) error {
		m, err := d.askMember(ctx, *in, s, false)
		if err != nil {
			return err
		}
		if m.Engine != components.Engine(*in) {
			return errs.Hint(errs.New(errs.Invalid, "the cluster's datastore is %s by now, and this server is configured for %s", m.Engine, components.Engine(*in)),
				"give up what is on this server (k1s reset) and join again")
		}
		s.Etcd.InitialCluster, s.Etcd.Learner, s.Etcd.Answered = m.InitialCluster, embedded, true
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.keep(in.Paths); err != nil {
		return err
	}
	return s.into(in)
}

// newMember is a member that nobody knows of yet.
func newMember(in component.Input) (*etcdPart, error) {
	random := make([]byte, memberNameBytes)
	if _, err := rand.Read(random); err != nil {
		return nil, err
	}
	return &etcdPart{Member: join.Member{Name: in.Facts.NodeName + "-" + hex.EncodeToString(random), PeerURL: components.EtcdPeerURL(in)}}, nil
}

// newPlace makes this server one that is to be a member of the etcd that another one, at its address, has founded in an attempt to move the
// datastore. What it had of an etcd before is gone first: no start may take that for the new one. Again it does nothing.
func newPlace(in component.Input, attempt, at string) error {
	s, err := readPeers(in.Paths)
	if err != nil || s.Etcd != nil && s.Etcd.Moved == attempt {
		return err
	}
	if err := os.RemoveAll(in.Paths.Etcd()); err != nil {
		return fmt.Errorf("removing the data of the etcd that was left: %w", err)
	}
	if err := durable.SyncDir(path.Dir(in.Paths.Etcd())); err != nil {
		return err
	}
	if s.Etcd, err = newMember(in); err != nil {
		return err
	}
	s.Etcd.Moved, s.Etcd.From = attempt, at
	return s.keep(in.Paths)
}

// placed takes what this server is in etcd.
func placed(in *component.Input) error {
	s, err := readPeers(in.Paths)
	if err != nil {
		return err
	}
	return s.into(in)
}

// hasEtcd tells that a member has data.
func hasEtcd(p paths.Paths) bool {
	_, err := os.Stat(path.Join(p.Etcd(), "member", "snap", "db"))
	return err == nil
}

// mayStartEtcd keeps a server of several from starting with an empty etcd of its own: it would be another cluster with
// the same keys, and whoever trusts this one would trust it. It is asked after whatever was under way has been
// brought to its end.
func mayStartEtcd(in component.Input) error {
	if !in.Several || !components.UsesEtcd(in) || in.Etcd.Name != "" || hasEtcd(in.Paths) {
		return nil
	}
	return errs.Hint(errs.New(errs.Failure, "this server is one of several, and its etcd has no data (%s)", in.Paths.Etcd()),
		"if the other servers run: k1s node remove %s there, then k1s reset --force and k1s server --server https://HOST:6443 --token-file FILE here; if none is left: restore a snapshot, k1s etcd snapshot restore", in.Facts.NodeName)
}

// askMember asks the servers that are known about this one's place in the datastore.
func (d *Daemon) askMember(ctx context.Context, in component.Input, s peers, promote bool) (join.Membership, error) {
	identity, err := pki.Identity(in.Paths)
	if err != nil {
		return join.Membership{}, err
	}
	cas, err := pki.ReadTrusted(in.Paths)
	if err != nil {
		return join.Membership{}, err
	}
	var servers []string
	if s.Etcd.From != "" { // it is in there, whoever else is
		servers = append(servers, s.Etcd.From)
	}
	if s.Joined != nil {
		servers = append(servers, s.Joined.Servers...)
	}
	if named, err := join.Address(in.Config.Spec.Join.Server); err == nil && !slices.Contains(servers, named) {
		servers = append([]string{named}, servers...) // those it knows may have moved since it joined
	}
	var first error
	for _, server := range servers {
		m, err := join.Client{Server: server, CAs: cas}.Member(ctx, identity, join.MemberRequest{Node: in.Facts.NodeName, Member: s.Etcd.Member, Promote: promote})
		if err == nil {
			return m, nil
		}
		if first == nil || final(err) && !final(first) {
			first = err
		}
	}
	if hint, _ := errs.HintOf(first); errs.Is(first, errs.Invalid) && hint == "" { // it has moved before it was a member, for one
		first = errs.Hint(first, "on another server: k1s node remove %s; then here: k1s server --server https://HOST:6443 --token-file FILE", in.Facts.NodeName)
	}
	return join.Membership{}, first
}

// final tells an error that a server of the cluster has answered, which asking again does not change, from not having reached one.
func final(err error) bool {
	return !errors.As(err, new(*join.Unreachable)) && !errors.As(err, new(*join.Stranger))
}

// askVoteEvery is how often a member that copies asks whether it has caught up.
const askVoteEvery = 200 * time.Millisecond

// watchMembership gets this server its vote, and finds out whether the others have removed it.
func (d *Daemon) watchMembership(ctx context.Context) {
	d.mu.Lock()
	in := d.in
	d.mu.Unlock()
	s, err := readPeers(in.Paths)
	if err != nil {
		d.log.Error("nothing is known of the other servers", "err", err)
		return
	}
	// Whether it gets its vote is found out beside this: one that copies can be removed, too.
	var vote chan error
	var voting sync.WaitGroup
	defer voting.Wait()
	begin := func() {
		if s.copies(in) {
			vote = make(chan error, 1)
			voting.Go(func() { vote <- d.getVote(ctx, in, s) })
		}
	}
	begin()
	tick := time.NewTicker(lookForRemoval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.membership: // it has become one while it runs
			if vote != nil {
				continue
			}
			d.mu.Lock()
			in = d.in
			d.mu.Unlock()
			if s, err = readPeers(in.Paths); err != nil {
				d.log.Error("nothing is known of the other servers", "err", err)
				return
			}
			begin()
			continue
		case err := <-vote:
			vote = nil
			d.mu.Lock()
			now := d.in
			d.mu.Unlock()
			if err == nil || ctx.Err() != nil || !s.copies(now) {
				continue
			}
			d.log.Error("this server is no member of the datastore", "err", err)
			d.board.Report("membership", []health.Problem{health.FromError(err, health.NoMember, "etcd")})
			switch {
			case errs.Is(err, errs.NotFound): // somebody has waited for it for too long
				if in, s, err = d.copyAgain(ctx, s); err == nil {
					d.board.Report("membership", nil)
					begin()
				}
			case errors.As(err, new(*join.NoServer)): // not from whoever has the address of one now
				if err = d.wasRemoved(ctx); err == nil {
					return
				}
			}
			if err != nil && ctx.Err() == nil {
				d.log.Error("this server is no member of the datastore", "err", err)
			}
			continue
		case <-tick.C:
		}
		// Why one without a vote was removed is what it is told when it asks for its vote: it may begin anew.
		if _, err := os.Stat(components.EtcdRemoved(in)); err != nil || vote != nil {
			continue
		}
		if err := d.wasRemoved(ctx); err != nil {
			d.log.Error("what a removed member leaves is not put aside", "err", err)
			continue
		}
		return
	}
}

// wakeMembership lets this server ask for its vote, after it has become a member while it runs.
func (d *Daemon) wakeMembership() {
	select {
	case d.membership <- struct{}{}:
	default: // it is on its way
	}
}

// mayCopyAgain refuses where this server's own etcd says that it has a vote: then its data may be what a majority is made of, whatever
// // others say of it. It may be starting; one that never answers has been removed, and has ended.
func mayCopyAgain(ctx context.Context, c *etcdapi.Client) error {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTime, fmt.Errorf("no answer within %s", lookTime))
	defer cancel()
	var st etcdapi.Status
	err := wait.Until(ctx, askVoteEvery, "this server's etcd", func(ctx context.Context) (err error) {
		st, err = c.Status(ctx)
		return err
	})
	if err == nil && !st.Learner {
		return errs.Hint(errs.New(errs.Denied, "another server does not know this one's member of etcd, which says that it has a vote: its data is not thrown away"),
			"see on both servers: k1s etcd ls")
	}
	return nil
}

// copyAgain takes another place in etcd, with nothing of what was copied for the one that is gone.
func (d *Daemon) copyAgain(ctx context.Context, s peers) (component.Input, peers, error) {
	d.mu.Lock()
	in := d.in
	d.mu.Unlock()
	c, err := etcdClient(in)
	if err != nil {
		return in, s, err
	}
	defer c.Close()
	if err := mayCopyAgain(ctx, c); err != nil {
		return in, s, err
	}
	plan, err := components.Plan(in)
	if err != nil {
		return in, s, err
	}
	if err := d.sup.Apply(ctx, components.WithoutControlPlane(plan)); err != nil {
		return in, s, err
	}
	if err := os.RemoveAll(in.Paths.Etcd()); err != nil { // a learner's: everything in it is with the others
		return in, s, err
	}
	if err := removeIfThere(components.EtcdRemoved(in)); err != nil {
		return in, s, err
	}
	if err := d.becomeMember(ctx, &in); err != nil {
		return in, s, err
	}
	if s, err = readPeers(in.Paths); err != nil {
		return in, s, err
	}
	if plan, err = components.Plan(in); err != nil {
		return in, s, err
	}
	d.mu.Lock()
	d.in.Etcd = in.Etcd
	d.mu.Unlock()
	return in, s, d.sup.Apply(ctx, plan)
}

// lookForRemoval is how often the sign is looked for that others have removed this server.
const lookForRemoval = time.Second

func (d *Daemon) getVote(ctx context.Context, in component.Input, s peers) error {
	d.log.Info("copying the cluster's state", "member", s.Etcd.Name)
	said := ""
	err := wait.Until(ctx, askVoteEvery, "a vote in etcd", func(ctx context.Context) error {
		_, err := d.askMember(ctx, in, s, true)
		var away *join.Unreachable
		if err != nil && !errors.As(err, &away) {
			return wait.Permanent(err)
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			d.log.Debug("no vote yet", "err", err)
		}
		return err
	})
	if err != nil {
		return err
	}
	s.Etcd.Learner = false
	d.log.Info("this server is a member of the datastore", "member", s.Etcd.Name)
	return s.keep(in.Paths)
}

// wasRemoved ends the control plane of a server that the others have removed, and puts its data aside: nobody needs it any
// more, and somebody might.
func (d *Daemon) wasRemoved(ctx context.Context) error {
	d.mu.Lock()
	in := d.in
	d.mu.Unlock()
	d.log.Error("this server was removed from its cluster")
	s, err := readPeers(in.Paths)
	if err != nil {
		return err
	}
	s.Removed, s.Etcd = true, nil
	if err := s.keep(in.Paths); err != nil { // first: the next start is not to begin with it again
		return err
	}
	plan, err := components.Plan(in)
	if err != nil {
		return err
	}
	if err := d.sup.Apply(ctx, components.WithoutControlPlane(plan)); err != nil {
		return err
	}
	if err := archive(in.Paths.Etcd(), time.Now()); err != nil {
		return err
	}
	d.board.Report("membership", []health.Problem{health.New(health.ServerRemoved, "the other servers have removed this one from the cluster")})
	return removeIfThere(components.EtcdRemoved(in))
}

// archive puts a directory aside, with the time in its name.
func archive(dir string, now time.Time) error {
	err := os.Rename(dir, dir+"-removed-"+now.UTC().Format("20060102T150405Z"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, durable.SyncDir(path.Dir(dir)))
}

// bootstrap is what another server needs to be one.
func (d *Daemon) bootstrap(ctx context.Context) (join.Bootstrap, error) {
	d.mu.Lock()
	in, replacing, move, follows := d.in, d.rotating.state, d.moving.state, d.moving.following != nil
	d.mu.Unlock()
	if to := config.Engine(move.To.Engine); follows || move.Active() && (to.External() || components.Engine(in).External()) {
		return join.Bootstrap{}, errs.New(errs.NotRunning, "the datastore is being moved to %s; a server can join after that", move.To)
	}
	if replacing.Active() {
		return join.Bootstrap{}, errs.Hint(errs.New(errs.NotRunning, "the cluster's CA is being replaced (%s); a server can join after that", replacing.Stage), "%s", replacing.Sooner())
	}
	// What is agreed about begins on the other servers first, maybe.
	if in.Several {
		r, err := (replacer{d}).record(ctx)
		if err != nil {
			return join.Bootstrap{}, err
		}
		if r != nil && r.State.Active() {
			return join.Bootstrap{}, errs.Hint(errs.New(errs.NotRunning, "the cluster's CA is being replaced (%s); a server can join after that", r.State.Stage), "%s", r.State.Sooner())
		}
	}
	var b join.Bootstrap
	c := in.Config.Spec.Datastore
	switch e := components.Engine(in); {
	case !e.External():
		b.Datastore.Engine = config.EmbeddedEtcd
	default:
		b.Datastore = join.Datastore{Engine: e, Endpoint: c.Endpoint.Reveal()}
		for file, to := range map[string]*[]byte{c.CAFile: &b.Datastore.CA, c.CertFile: &b.Datastore.Cert, c.KeyFile: &b.Datastore.Key} {
			if file == "" {
				continue
			}
			raw, err := os.ReadFile(file)
			if err != nil {
				return b, fmt.Errorf("reading how the datastore is reached: %w", err)
			}
			*to = raw
		}
	}
	with := in
	with.Config.Spec.Datastore = config.Datastore{Endpoint: "etcd"} // its authority is one of the keys
	d.renewing.Lock()
	_, err := certificates(ctx, d.log, with, false)
	d.renewing.Unlock()
	if err != nil {
		return b, err
	}
	if b.Keys, err = pki.ReadBundle(in.Paths); err != nil {
		return b, err
	}
	raw, err := os.ReadFile(in.Paths.EncryptionKeys())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return b, fmt.Errorf("reading the keys of Secrets: %w", err)
	}
	if err == nil {
		b.Encryption = bytes.Clone(raw)
	}
	return b, nil
}
