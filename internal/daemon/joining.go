package daemon

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/step"
	"k1s.io/k1s/internal/token"
	"k1s.io/k1s/internal/version"
	"k1s.io/k1s/internal/wait"
)

// Where tokens and nodes are kept: Secrets of kube-system, which are part of every backup and of no user's business.
const (
	systemNamespace = "kube-system"
	tokenPrefix     = "k1s-token-"
	nodePrefix      = "k1s-node-"
	tokenType       = "k1s.io/token"
	nodeType        = "k1s.io/node"
	typeLabel       = "k1s.io/type" // its value is "token" or "node"
)

// clusterStore is join.Store over the cluster's own API.
type clusterStore struct {
	api *kubeapi.Client
	// own is this server, told when the API does not know of any yet.
	own string
}

var _ join.Store = clusterStore{}

func (s clusterStore) Token(ctx context.Context, id string) (token.Record, error) {
	sec, err := s.api.Secret(ctx, systemNamespace, tokenPrefix+id)
	if err != nil {
		return token.Record{}, err
	}
	return token.FromData(id, sec.Data)
}

func (s clusterStore) Bindings(ctx context.Context) ([]join.Binding, error) {
	all, err := s.api.Secrets(ctx, systemNamespace, typeLabel+"=node")
	if err != nil {
		return nil, err
	}
	out := make([]join.Binding, 0, len(all))
	for _, sec := range all {
		b, err := bindingOf(sec)
		if err != nil {
			return nil, err // whose name it is cannot be guessed
		}
		out = append(out, b)
	}
	return out, nil
}

func nodeOfSecret(name string) string { return strings.TrimPrefix(name, nodePrefix) }

func bindingOf(sec kubeapi.Secret) (join.Binding, error) {
	b := join.Binding{
		Node: nodeOfSecret(sec.Metadata.Name), Role: token.Role(cmp.Or(string(sec.Data["role"]), string(token.Agent))), Identity: string(sec.Data["identity"]), Token: string(sec.Data["token"]),
		Version: sec.Metadata.ResourceVersion,
		Trusts:  string(sec.Data["trusts"]), Issuer: string(sec.Data["issuer"]),
	}
	raw, err := base64.RawURLEncoding.DecodeString(b.Identity)
	if err == nil && len(raw) == 0 {
		err = errors.New("it holds no identity")
	}
	for field, to := range map[string]*time.Time{"since": &b.Since, "until": &b.Until} {
		if err == nil {
			*to, err = time.Parse(time.RFC3339, string(sec.Data[field]))
		}
	}
	if err == nil {
		b.IP, err = netip.ParseAddr(string(sec.Data["ip"]))
	}
	if since, leaves := sec.Data[leavingKey]; err == nil && leaves {
		b.Leaving, err = time.Parse(time.RFC3339, string(since))
	}
	if err != nil {
		return b, errs.Hint(fmt.Errorf("the secret %s/%s is damaged: %w", systemNamespace, sec.Metadata.Name, err), "run: k1s node remove %s; the machine joins again with a token", b.Node)
	}
	return b, nil
}

func (s clusterStore) Bind(ctx context.Context, b join.Binding) error {
	sec := kubeapi.Secret{
		Metadata: kubeapi.SecretMeta{Name: nodePrefix + b.Node, Labels: map[string]string{typeLabel: "node"}, ResourceVersion: b.Version},
		Type:     nodeType,
		Data: map[string][]byte{
			"role": []byte(b.Role), "identity": []byte(b.Identity), "ip": []byte(b.IP.String()), "token": []byte(b.Token),
			"since": []byte(b.Since.UTC().Format(time.RFC3339)), "until": []byte(b.Until.UTC().Format(time.RFC3339)),
		},
	}
	if b.Trusts != "" {
		sec.Data["trusts"] = []byte(b.Trusts)
	}
	if b.Issuer != "" {
		sec.Data["issuer"] = []byte(b.Issuer)
	}
	if !b.Leaving.IsZero() {
		sec.Data[leavingKey] = []byte(b.Leaving.UTC().Format(time.RFC3339))
	}
	if b.Version == "" {
		return s.api.CreateSecret(ctx, systemNamespace, sec)
	}
	return s.api.ReplaceSecret(ctx, systemNamespace, sec)
}

func (s clusterStore) Nodes(ctx context.Context) ([]join.Node, error) {
	all, err := s.api.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]join.Node, 0, len(all))
	for _, n := range all {
		node := join.Node{Name: n.Metadata.Name, Ready: n.Ready(time.Time{}) == nil}
		for _, a := range n.Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == "InternalIP" {
				node.Addresses = append(node.Addresses, ip.Unmap())
			}
		}
		out = append(out, node)
	}
	return out, nil
}

func (s clusterStore) Servers(ctx context.Context) ([]string, error) {
	all, err := s.api.Servers(ctx)
	if err == nil && len(all) == 0 {
		all = []string{s.own} // it has not told the cluster about itself yet
	}
	return all, err
}

// serveJoining answers machines that join until ctx ends. They come through the API server, see applets/apiserver.
func (d *Daemon) serveJoining(ctx context.Context, in component.Input, api *kubeapi.Client) error {
	c := in.Config.Spec
	var private []netip.Prefix
	for _, cidr := range []string{c.Network.PodCIDR, c.Network.ServiceCIDR} {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return err
		}
		private = append(private, p)
	}
	s := &join.Server{
		Store: clusterStore{api: api, own: net.JoinHostPort(in.Facts.NodeIP.String(), fmt.Sprint(c.API.Port))}, Members: members{d}, Moves: movers{d}, Bootstrap: d.bootstrap,
		Secrets:     func() ([]byte, error) { return d.keysState().Marshal(), nil },
		Authorities: d.authorities, NewAuthorities: d.newAuthorities, Upgrades: upgrader{d},
		Admitting: &d.admitting,
		// Read for each machine: certificates are renewed, and nobody joins often.
		Authority: func() (join.Authority, error) { return pki.OpenAuthority(in.Paths) },
		CA:        func() ([]byte, error) { return pki.Published(in.Paths) },
		Domain:    c.Cluster.Domain,
		Reserved: func() ([]string, error) {
			names, err := pki.Names(in.Paths, pki.APIServer)
			return append(names, in.Facts.NodeName), err
		},
		Settings: config.Shared(in.Config), Private: private, Kubernetes: version.Kubernetes, Now: time.Now,
		Log: d.log.With("component", "join"),
	}
	socket := in.Paths.JoinSocket()
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing a stale socket: %w", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("opening the socket for machines that join: %w", err)
	}
	if err := openToAPIServer(in, socket); err != nil {
		return errors.Join(err, l.Close())
	}
	srv := &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("answering machines that join: %w", err)
	case <-ctx.Done():
	}
	// What is being decided is kept and told.
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	err = srv.Shutdown(stop)
	if err != nil {
		err = srv.Close()
	}
	<-served
	return err
}

// serveJoiners keeps the servers' end of joining, and its records in order.
func (d *Daemon) serveJoiners(ctx context.Context) {
	d.mu.Lock()
	in, api := d.in, d.api
	d.mu.Unlock()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := d.serveJoining(ctx, in, api); err != nil {
			d.log.Error("machines cannot join", "err", err)
			d.board.Report("join", []health.Problem{health.FromError(err, health.JoinClosed, "")})
		}
	})
	// A server that joins may have the datastore moved before this was ready: then it comes and goes.
	if d.sup.Await(ctx, "kube-apiserver", component.Ready) != nil {
		return
	}
	wg.Go(func() { d.watchLeaving(ctx, api) })
	wg.Go(func() {
		// Until it is: the others do not wait with keys for a server they do not know.
		said := ""
		_ = wait.Until(ctx, bindSelfEvery, "this server's own name to be kept in the cluster", func(ctx context.Context) error {
			err := d.bindSelf(ctx, in, clusterStore{api: api})
			if err != nil && ctx.Err() == nil && err.Error() != said {
				said = err.Error()
				d.log.Error("this server's own name is not kept in the cluster: another machine could take it", "err", err)
			}
			return err
		})
	})
	tick := time.NewTicker(expireEvery)
	defer tick.Stop()
	expired := expiredSince{}
	for {
		if err := d.expireTokens(ctx, expired); err != nil && ctx.Err() == nil {
			d.log.Warn("expired tokens not removed", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// bindSelfEvery is how long another try waits after one that failed.
const bindSelfEvery = 5 * time.Second

// bindSelf keeps for the others whose name this server's is. One that joined has been bound; the first one does it by
// itself, and again when it has another address. It has the keys of the cluster, so nobody could refuse.
func (d *Daemon) bindSelf(ctx context.Context, in component.Input, store clusterStore) error {
	identity, err := pki.Identity(in.Paths)
	if err != nil {
		return err
	}
	all, err := store.Bindings(ctx)
	if err != nil {
		return err
	}
	s, err := readPeers(in.Paths)
	if err != nil {
		return err
	}
	b, err := join.OwnBinding(in.Facts.NodeName, in.Facts.NodeIP, identity, all, time.Now())
	if err != nil || b == nil {
		return err
	}
	// The others had it, and it is gone. Where etcd is ours it tells who was removed, and what is missing here is only missing
	// in the snapshot that was restored.
	d.mu.Lock()
	now := d.in // the state may have moved since the start
	d.mu.Unlock()
	if s.Joined != nil && b.Version == "" && !components.UsesEtcd(now) {
		return d.wasRemoved(ctx)
	}
	return store.Bind(ctx, *b)
}

// expireEvery is how often tokens that nobody can use any more are looked for.
const expireEvery = 6 * time.Hour

// server is the API of a running server.
func (d *Daemon) server() (component.Input, *kubeapi.Client, error) {
	d.mu.Lock()
	in, api := d.in, d.api
	d.mu.Unlock()
	if !d.o.Config.Spec.ControlPlane() {
		return in, nil, errs.Hint(errs.New(errs.Unsupported, "this node is an agent"), "run the command on a server")
	}
	if api == nil {
		return in, nil, errs.Hint(errs.New(errs.NotRunning, "the node is starting"), "try again when it runs: k1s status")
	}
	return in, api, nil
}

// Tokens implements control.Backend.
func (d *Daemon) Tokens(ctx context.Context) ([]control.Token, error) {
	_, api, err := d.server()
	if err != nil {
		return nil, err
	}
	all, err := api.Secrets(ctx, systemNamespace, typeLabel+"=token")
	if err != nil {
		return nil, fmt.Errorf("listing tokens: %w", err)
	}
	out := []control.Token{}
	for _, s := range all {
		id := strings.TrimPrefix(s.Metadata.Name, tokenPrefix)
		t := control.Token{Record: token.Record{ID: id}}
		if r, err := token.FromData(id, s.Data); err != nil {
			t.Problem = err.Error()
		} else {
			t.Record, t.Expired = r, r.Expired(time.Now())
		}
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b control.Token) int { return a.Created.Compare(b.Created) })
	return out, nil
}

// CreateToken implements control.Backend. The text is in the answer and nowhere else.
func (d *Daemon) CreateToken(ctx context.Context, r control.TokenRequest) (control.NewToken, error) {
	in, api, err := d.server()
	if err != nil {
		return control.NewToken{}, err
	}
	role, err := token.ParseRole(r.Role)
	if err != nil {
		return control.NewToken{}, err
	}
	if r.TTL < 0 {
		return control.NewToken{}, errs.New(errs.Usage, "a token cannot be valid for %s", r.TTL)
	}
	ca, err := pki.ReadCA(in.Paths)
	if err != nil {
		return control.NewToken{}, err
	}
	t, err := token.New(role, ca)
	if err != nil {
		return control.NewToken{}, err
	}
	now, expires := time.Now(), time.Time{}
	if r.TTL > 0 {
		expires = now.Add(r.TTL)
	}
	rec := t.Record(r.Description, now, expires)
	err = api.CreateSecret(ctx, systemNamespace, kubeapi.Secret{
		Metadata: kubeapi.SecretMeta{Name: tokenPrefix + t.ID, Labels: map[string]string{typeLabel: "token"}},
		Type:     tokenType, Data: rec.Data(),
	})
	if err != nil {
		return control.NewToken{}, fmt.Errorf("keeping the token: %w", err)
	}
	d.log.Info("token created", "id", t.ID, "role", t.Role, "expires", rec.Expires)
	return control.NewToken{
		Token: control.Token{Record: rec}, Text: t.Text(),
		Server: "https://" + net.JoinHostPort(in.Facts.NodeIP.String(), fmt.Sprint(in.Config.Spec.API.Port)),
	}, nil
}

// RevokeToken implements control.Backend.
func (d *Daemon) RevokeToken(ctx context.Context, id string) error {
	_, api, err := d.server()
	if err != nil {
		return err
	}
	err = api.DeleteSecret(ctx, systemNamespace, tokenPrefix+id, "")
	if errs.Is(err, errs.NotFound) {
		return errs.Hint(errs.New(errs.NotFound, "there is no token %q", id), "see: k1s token ls")
	}
	if err == nil {
		d.log.Info("token revoked", "id", id)
	}
	return err
}

// RemoveNode implements control.Backend.
func (d *Daemon) RemoveNode(ctx context.Context, name string) error {
	return d.removeNode(ctx, name, false)
}

// notBegunError is of a removal that has changed nothing but that it is kept in the cluster.
type notBegunError struct{ error }

func (e notBegunError) Unwrap() error { return e.error }

// removeNode removes a node; with sparing no server whose member of etcd is there.
func (d *Daemon) removeNode(ctx context.Context, name string, sparing bool) error {
	steps, err := d.removal(ctx, name, sparing)
	if err != nil {
		return err
	}
	for i, s := range steps { // one that fails is the last: a member that cannot be removed keeps its name
		err := s.Do(ctx)
		if err == nil {
			continue
		}
		if _, not := errors.AsType[notBegunError](err); not || errs.Is(err, errs.Denied) { // it is not to go
			for _, done := range slices.Backward(steps[:i+1]) { // also the one that failed may have done something
				if done.Undo != nil {
					_ = done.Undo(ctx) // says what is the matter itself
				}
			}
		}
		return fmt.Errorf("removing node %s: %s: %w", name, s.Name, err)
	}
	d.log.Info("node removed", "node", name)
	return nil
}

// NodeRemoval implements control.Backend.
func (d *Daemon) NodeRemoval(ctx context.Context, name string) (control.NodeRemoval, error) {
	steps, err := d.removal(ctx, name, false)
	var out control.NodeRemoval
	if why := d.memberRefusal(ctx, name); err == nil && why != "" {
		out.Steps = append(out.Steps, "be refused now: "+why)
	}
	for _, s := range steps {
		out.Steps = append(out.Steps, s.Name)
	}
	return out, err
}

// removal is what takes a node out of the cluster. That it leaves is kept in the cluster first: then it cannot renew its certificates, and
// if this server dies another one goes on, see watchLeaving. Its name is free last, so that nobody has it meanwhile. Who was held up meanwhile
// does nothing to a machine that has joined under that name since.
func (d *Daemon) removal(ctx context.Context, name string, sparing bool) ([]step.Step, error) {
	in, api, err := d.server()
	if err != nil {
		return nil, err
	}
	if name == in.Facts.NodeName {
		return nil, errs.Hint(errs.New(errs.Invalid, "%s is this server itself", name), "to give it up: k1s reset")
	}
	nodes, err := api.Nodes(ctx)
	if err != nil {
		return nil, fmt.Errorf("looking for node %s: %w", name, err)
	}
	var steps []step.Step
	add := func(what string, remove func(context.Context) error) {
		steps = append(steps, step.Step{Name: what, Do: func(ctx context.Context) error {
			if err := remove(ctx); err != nil && !errs.Is(err, errs.NotFound) { // somebody else was faster
				return err
			}
			return nil
		}})
	}
	b, err := d.binding(ctx, api, name, sparing)
	if err != nil {
		return nil, err
	}
	server := b != nil && b.Role == token.Server && components.UsesEtcd(in)
	if b != nil {
		add("keep in the cluster that "+name+" leaves: it cannot renew its certificates any more", func(ctx context.Context) error {
			err := markLeaving(ctx, api, name, b.uid, true)
			if err != nil && ctx.Err() != nil && b.Leaving.IsZero() { // it may be kept all the same
				return notBegunError{err}
			}
			return err
		})
		steps[0].Undo = func(ctx context.Context) error { d.stays(ctx, api, name, b.uid); return nil }
	}
	if server {
		// Next, and if it cannot be nothing else is: a member that is gone counts against the majority.
		add("take server "+name+" out of etcd, if the members that stay are a majority without it", func(ctx context.Context) error {
			asked, err := d.removeMember(ctx, in, *b)
			if err != nil && !asked && b.Leaving.IsZero() { // whoever has begun before may have come further
				return notBegunError{err}
			}
			return err
		})
	}
	if i := slices.IndexFunc(nodes, func(n kubeapi.Node) bool { return n.Metadata.Name == name }); i >= 0 {
		add("delete node "+name+", and with it the pods that are bound to it", func(ctx context.Context) error {
			return unlessReplaced(api.DeleteNode(ctx, name, nodes[i].Metadata.UID))
		})
	}
	if b != nil {
		add("forget the machine behind "+name+": its name is free", func(ctx context.Context) error {
			if server {
				if _, err := d.removeMember(ctx, in, *b); err != nil { // it may have been joining in the same moment
					return err
				}
			}
			return unlessReplaced(api.DeleteSecret(ctx, systemNamespace, nodePrefix+name, b.uid))
		})
	}
	if len(steps) == 0 {
		return nil, errs.Hint(errs.New(errs.NotFound, "there is no node %q", name), "see: k1s kubectl get nodes")
	}
	return steps, nil
}

// unlessReplaced is err, nil where what was to go is gone and there is another one: somebody was faster, and the machine has joined again.
func unlessReplaced(err error) error {
	if errs.Is(err, errs.Exists) {
		return nil
	}
	return err
}

// leaver is a node that is removed.
type leaver struct {
	join.Binding
	uid     string // of its Secret; "" for whichever there is
	sparing bool   // it stays if it is a server whose member of etcd is there
}

// binding is whose name that of a node is; nil for nobody's.
func (d *Daemon) binding(ctx context.Context, api *kubeapi.Client, name string, sparing bool) (*leaver, error) {
	sec, err := api.Secret(ctx, systemNamespace, nodePrefix+name)
	if errs.Is(err, errs.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("finding out what %s is: %w", name, err)
	}
	// Of a damaged one the name is known, and removing the node is what mends it.
	b, _ := bindingOf(sec)
	return &leaver{Binding: b, uid: sec.Metadata.UID, sparing: sparing}, nil
}

// expiredSince is when each token was first found to have expired.
type expiredSince map[string]time.Time

// keepExpired is for how long an expired token is kept, so that who comes with it is told that it has expired.
const keepExpired = 24 * time.Hour

// due are the tokens to be removed. How long they have been expired is counted here: a clock that jumps ahead for a while makes tokens
// invalid for that while, and must not remove them.
func (e expiredSince) due(all []control.Token, now time.Time) []string {
	maps.DeleteFunc(e, func(id string, _ time.Time) bool {
		return !slices.ContainsFunc(all, func(t control.Token) bool { return t.ID == id && t.Expired })
	})
	var out []string
	for _, t := range all {
		if !t.Expired {
			continue
		}
		since, seen := e[t.ID]
		if !seen {
			since, e[t.ID] = now, now
		}
		if now.Sub(since) > keepExpired {
			out = append(out, t.ID)
		}
	}
	return out
}

// expireTokens removes what can no longer be used.
func (d *Daemon) expireTokens(ctx context.Context, seen expiredSince) error {
	all, err := d.Tokens(ctx)
	if err != nil {
		return err
	}
	var failed []error
	for _, id := range seen.due(all, time.Now()) {
		if err := d.RevokeToken(ctx, id); !errs.Is(err, errs.NotFound) { // another server was faster
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// apiClient asks the API as this node reaches it, with the rights it has.
func apiClient(in component.Input) (*kubeapi.Client, error) {
	cert := pki.DaemonClient
	name := ""
	if !in.Config.Spec.ControlPlane() {
		cert, name = pki.KubeletClient, join.ServerName // the node's own rights: its Node and its pods
	}
	return kubeapi.NewNamed(components.URL(in), name, pki.CertFile(in.Paths, pki.CA), pki.CertFile(in.Paths, cert), pki.KeyFile(in.Paths, cert))
}
