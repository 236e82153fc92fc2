package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/encryption"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/token"
	"k1s.io/k1s/internal/wait"
)

const (
	// askMetrics is how often the API server is asked whether it has loaded its encryption configuration. It looks
	// at the file every five seconds, and its metrics are a few hundred kilobytes.
	askMetrics = 2 * time.Second
	// loadTime is after how long without it something is wrong, and told.
	loadTime = time.Minute
	// goOnAfter is how long a change pauses that could not go on.
	goOnAfter = 5 * time.Second
	// lookForChange is how often one of several servers looks whether another one changes the keys; followChange, while that is so.
	lookForChange = 3 * time.Second
	followChange  = time.Second
	// lookForServers is how often it is kept whom to ask at the next start.
	lookForServers = time.Minute
	// askServer bounds a question to another server about its keys.
	askServer = 5 * time.Second
	// providerArg is the API server's own argument; a user who sets it manages keys in another way, such as KMS.
	providerArg = "encryption-provider-config"
	// advertiseArg is where a user can let the API server say it is elsewhere than at the node's address.
	advertiseArg = "advertise-address"
)

// secretsState is what the daemon knows of the encryption of Secrets; Daemon.mu guards it.
type secretsState struct {
	state     encryption.State
	kept      bool // there is a file with keys, or was when we started
	done, all int
	note      string
	wake      chan struct{}
	// unreadable tells that Secrets could not be read when they were last.
	unreadable bool
	// leader and servers are what is known of the others while keys are changed.
	leader  string
	servers []encryption.Standing
	asked   time.Time // about servers
	// serversKept is when the other servers were kept for the next start, or found to be the same.
	serversKept time.Time
}

// keysError is a file of keys that cannot be used.
type keysError struct {
	file string
	err  error
}

func (e *keysError) Error() string {
	return fmt.Sprintf("the keys that Secrets are encrypted with cannot be read from %s: %v", e.file, e.err)
}
func (e *keysError) Unwrap() error { return e.err }

// HealthCode is the code of this problem in package health.
func (e *keysError) HealthCode() string { return string(health.EncryptionKeys) }

// readKeys reads the state, and tells whether there is one. A missing file is the zero state, unless the API server's
// copy shows that keys have been there.
func readKeys(p paths.Paths) (encryption.State, bool, error) {
	bad := func(err error) error {
		return errs.Hint(&keysError{p.EncryptionKeys(), err}, "put %s back from a backup; k1s does not make new keys, because what the old ones encrypted could not be read any more", path.Dir(p.EncryptionKeys()))
	}
	b, err := os.ReadFile(p.EncryptionKeys())
	if errors.Is(err, os.ErrNotExist) {
		derived, e := os.ReadFile(p.EncryptionConfig())
		if e == nil && !bytes.Equal(derived, encryption.State{}.File()) {
			return encryption.State{}, false, bad(errors.New("it is gone"))
		}
		return encryption.State{}, false, nil
	}
	if err != nil {
		return encryption.State{}, false, bad(err)
	}
	s, err := encryption.Unmarshal(b)
	if err != nil {
		return encryption.State{}, false, bad(err)
	}
	return s, true, nil
}

// prepareEncryption writes the configuration an API server starts with. Only a cluster that has no database yet starts
// with a new key; an existing one is encrypted while it runs.
func (d *Daemon) prepareEncryption(ctx context.Context, in component.Input) error {
	s, kept, err := readKeys(in.Paths)
	if err != nil {
		return err
	}
	if want := in.Config.Spec.Secrets.Encryption; want != "" && !kept && !ownProviders(in) && !hasDatabase(in) && !in.Several {
		if s.Key, err = encryption.NewKey(encryption.Provider(want), time.Now(), rand.Reader); err != nil {
			return err
		}
		kept = true
	}
	// One that has no keys asks too: the others may have begun to encrypt after they have removed it. With etcd it cannot
	// write any more then.
	if in.Several && !ownProviders(in) && (kept || !components.UsesEtcd(in)) {
		if s, err = d.newerKeys(ctx, in, s); err != nil {
			return err
		}
		kept = kept || s.Serial > 0
	}
	d.mu.Lock()
	d.secrets = secretsState{state: s, kept: kept, wake: make(chan struct{}, 1)}
	d.mu.Unlock()
	return keep(in.Paths, s, kept)
}

// newerKeys asks the other servers, before this one's API server writes with keys that the others may have forgotten. Where
// none answers it has the right ones: no change goes on without a server that is away.
func (d *Daemon) newerKeys(ctx context.Context, in component.Input, ours encryption.State) (encryption.State, error) {
	raw, err := os.ReadFile(in.Paths.EncryptionServers())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return ours, err
	}
	peers, err := readPeers(in.Paths)
	if err != nil {
		return ours, err
	}
	servers := strings.Fields(string(raw))
	if len(servers) == 0 && peers.Joined != nil {
		servers = peers.Joined.Servers
	}
	if len(servers) == 0 {
		return ours, nil
	}
	d.step("asking the other servers for the keys of Secrets")
	var given bool
	var removed error
	for _, a := range askKeys(ctx, in, servers) {
		given = given || a.err == nil
		switch {
		case a.err == nil && a.state.Serial > ours.Serial:
			d.log.Info("newer keys of secrets", "from", a.server, "state", a.state.String())
			if ours.Loses(a.state) {
				if err := keysAside(in.Paths, time.Now()); err != nil {
					return ours, err
				}
			}
			ours = a.state
		case errors.As(a.err, new(*join.NoServer)):
			removed = a.err
			d.log.Warn("another server gives no keys of secrets to this one", "from", a.server, "err", a.err)
		case a.err != nil: // who answers without the cluster's certificate only has the address of one
			d.log.Debug("no keys of secrets", "from", a.server, "err", a.err)
		}
	}
	// With etcd it finds out from that. And while one of them knows this server, it is one.
	if removed != nil && !given && !components.UsesEtcd(in) {
		peers.Removed = true
		return ours, errs.Hint(errors.Join(errs.New(errs.Invalid, "this server was removed from its cluster: %w", removed), peers.keep(in.Paths)),
			"to join again: k1s server --server https://HOST:6443 --token-file FILE; to give up what is on it: k1s reset")
	}
	return ours, nil
}

// keysOf is what one server has.
type keysOf struct {
	server string
	state  encryption.State
	err    error
}

// askKeys asks servers, as host:port, for their keys, all at once.
func askKeys(ctx context.Context, in component.Input, servers []string) []keysOf {
	ctx, cancel := context.WithTimeoutCause(ctx, askServer, fmt.Errorf("no answer within %s", askServer))
	defer cancel()
	identity, err := pki.Identity(in.Paths)
	cas, caErr := pki.ReadTrusted(in.Paths)
	err = errors.Join(err, caErr)
	out := make([]keysOf, len(servers))
	var all sync.WaitGroup
	for i, server := range servers {
		all.Go(func() {
			out[i] = keysOf{server: server, err: err}
			if err != nil {
				return
			}
			raw, err := join.Client{Server: server, CAs: cas}.Keys(ctx, identity, in.Facts.NodeName)
			if err == nil {
				out[i].state, err = encryption.Unmarshal(raw)
			}
			out[i].err = err
		})
	}
	all.Wait()
	return out
}

// keysAside keeps a copy of keys that are about to be replaced by those of another time.
func keysAside(p paths.Paths, now time.Time) error {
	raw, err := os.ReadFile(p.EncryptionKeys())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = durable.WriteFile(p.EncryptionKeysAside(now), raw, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keeping the keys of Secrets of before: %w", err)
	}
	return nil
}

// keep writes the keys, and then what an API server reads, so that a key is never used that is not kept.
func keep(p paths.Paths, s encryption.State, keys bool) error {
	if keys {
		if err := writeIfChanged(p.EncryptionKeys(), s.Marshal(), 0o600); err != nil {
			return fmt.Errorf("keeping the keys of Secrets: %w", err)
		}
	}
	if err := writeIfChanged(p.EncryptionConfig(), s.File(), 0o600); err != nil {
		return fmt.Errorf("writing the API server's encryption configuration: %w", err)
	}
	return durable.CleanTemp(path.Dir(p.EncryptionKeys()))
}

// hasDatabase tells that there may be Secrets already: of a database elsewhere nothing is known yet.
func hasDatabase(in component.Input) bool {
	dir := ""
	switch in.Config.Spec.Datastore.Endpoint {
	case "sqlite":
		dir = in.Paths.DB()
	case "etcd":
		dir = in.Paths.Etcd()
	default:
		return true
	}
	entries, err := os.ReadDir(dir)
	return err != nil && !errors.Is(err, os.ErrNotExist) || len(entries) > 0
}

// ownProviders tells that the user gives the API server an encryption configuration.
func ownProviders(in component.Input) bool {
	_, ok := in.Config.Spec.Components["kube-apiserver"].Args[providerArg]
	return ok
}

// watchEncryption tells when Secrets cannot be read, and does the changes that are asked for.
func (d *Daemon) watchEncryption(ctx context.Context) {
	d.mu.Lock()
	in, wake := d.in, d.secrets.wake
	d.mu.Unlock()
	if ownProviders(in) || d.sup.Await(ctx, "kube-apiserver", component.Open) != nil {
		return
	}
	// It is not in the way of the start.
	_ = wait.Until(ctx, time.Second, "Secrets to be readable", d.secretsReadable)
	want := in.Config.Spec.Secrets.Encryption
	for {
		if want != "" {
			_, err := d.ChangeEncryption(ctx, control.EncryptionRequest{Action: string(encryption.Enable), Provider: want})
			switch {
			case ctx.Err() != nil:
				return
			case err == nil:
				want = ""
			case errs.Is(err, errs.Exists):
				// Another change is on its way, or was begun in the same moment: after it.
				d.log.Debug("secrets are not encrypted as configured yet", "err", err)
			default:
				d.log.Warn("secrets are not encrypted as configured", "err", err)
				d.reportStuck(err)
				select {
				case <-ctx.Done():
				case <-time.After(goOnAfter):
				}
				continue
			}
		}
		pause := d.agreeOnKeys(ctx)
		if want != "" && pause < 0 {
			pause = goOnAfter
		}
		var later <-chan time.Time
		if pause > 0 {
			later = time.After(pause)
		} else if pause == 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-later:
		}
	}
}

// undecryptable are parts of what upstream's providers say of an object they have no key for; other failures pass.
var undecryptable = []string{"transform", "tried to read encrypted data", "no matching"}

// secretsReadable asks for all of them, and returns an error where nothing is known yet.
func (d *Daemon) secretsReadable(ctx context.Context) error {
	err := d.client().Readable(ctx, "secrets")
	var st *kubeapi.StatusError
	switch {
	case err == nil:
		d.setUnreadable(false)
		d.board.Report("secrets", nil)
	case errors.As(err, &st) && st.Code == http.StatusInternalServerError && slices.ContainsFunc(undecryptable, func(s string) bool { return strings.Contains(st.Message, s) }):
		if d.setUnreadable(true) {
			d.log.Error("secrets cannot be read", "err", err)
		}
		d.board.Report("secrets", []health.Problem{health.New(health.SecretsUnreadable, "Secrets in the database cannot be read: %v", err)})
	default:
		return err // it is starting
	}
	return nil
}

// setUnreadable tells whether that is new.
func (d *Daemon) setUnreadable(so bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.secrets.unreadable
	d.secrets.unreadable = so
	return was != so
}

// agreeOnKeys brings this server into agreement with the others about the keys, and does the next stage of a change where it is
// the one to do it. The answer is after what time there is something to do again: less than nothing for when somebody asks.
func (d *Daemon) agreeOnKeys(ctx context.Context) time.Duration {
	d.mu.Lock()
	p, self, several, before, kept, unreadable := d.in.Paths, d.in.Facts.NodeName, d.in.Several, d.secrets.state, d.secrets.kept, d.secrets.unreadable
	d.mu.Unlock()
	idle := time.Duration(-1)
	if several {
		idle = lookForChange
	}
	// Somebody may have damaged the file meanwhile; going on would write it anew.
	if kept {
		if _, _, err := readKeys(p); err != nil {
			d.reportStuck(err)
			return goOnAfter
		}
	}
	d.keyring.Lock()
	state, duty, err := encryption.Sync(ctx, changer{d}, self, d.keysState())
	d.keyring.Unlock()
	if err == nil && unreadable {
		_ = d.secretsReadable(ctx) // the keys that were missing may be there now
	}
	if err == nil && duty == encryption.Lead {
		var found encryption.Check
		if found, err = encryption.Do(ctx, changer{d}, state); err == nil {
			d.keyring.Lock()
			state, err = encryption.Conclude(ctx, changer{d}, self, state, found)
			d.keyring.Unlock()
		}
	}
	if ctx.Err() != nil {
		return goOnAfter
	}
	if several && err == nil && (state.Serial != before.Serial || time.Since(d.serversKept()) > lookForServers) {
		d.keepServers(ctx)
	}
	switch {
	case err != nil && before.Change == nil && state.Change == nil && !errs.Is(err, errs.NotFound):
		// Nothing is being changed, and what is wrong with the API shows elsewhere.
		d.log.Debug("not known whether the keys of secrets are changed", "err", err)
		return goOnAfter
	case err != nil:
		d.reportStuck(err)
		d.log.Warn("the change of the encryption of secrets does not go on", "err", err)
		return goOnAfter
	}
	d.reportStuck(nil)
	if c := before.Change; c != nil && state.Change == nil {
		d.log.Info("the encryption of secrets is changed", "action", string(c.Action), "after", time.Since(c.Since).Round(time.Second))
	}
	switch {
	case duty == encryption.Lead:
		return 0
	case state.Change != nil:
		return followChange
	case d.isUnreadable():
		return goOnAfter
	}
	return idle
}

func (d *Daemon) isUnreadable() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.secrets.unreadable
}

func (d *Daemon) keysState() encryption.State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.secrets.state
}

// serversKept is when the other servers were kept the last time; zero for never.
func (d *Daemon) serversKept() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.secrets.serversKept
}

// keepServers keeps for the next start whom to ask for keys, those that are off too. Where none is known, those of before may
// still be the right ones.
func (d *Daemon) keepServers(ctx context.Context) {
	others, err := d.otherServers(ctx)
	if err == nil {
		if bound, err := (changer{d}).servers(ctx); err == nil { // without it those that answer are enough
			others = slices.AppendSeq(others, maps.Values(bound))
		}
		others = slices.DeleteFunc(others, func(s string) bool { return s == "" })
		slices.Sort(others)
		others = slices.Compact(others)
	}
	if err == nil && len(others) > 0 {
		err = writeIfChanged(d.o.Paths.EncryptionServers(), []byte(strings.Join(others, "\n")+"\n"), 0o600)
	}
	if err != nil {
		if ctx.Err() == nil {
			d.log.Warn("the other servers are not kept for the next start", "err", err)
		}
		return
	}
	d.mu.Lock()
	d.secrets.serversKept = time.Now()
	d.mu.Unlock()
}

// otherServers are those whose API is there, as host:port.
func (d *Daemon) otherServers(ctx context.Context) ([]string, error) {
	d.mu.Lock()
	in, api := d.in, d.api
	d.mu.Unlock()
	all, err := api.Servers(ctx)
	if err != nil {
		return nil, fmt.Errorf("finding the other servers: %w", err)
	}
	own := net.JoinHostPort(in.Facts.NodeIP.String(), strconv.Itoa(in.Config.Spec.API.Port))
	return slices.DeleteFunc(all, func(s string) bool { return s == own }), nil
}

func (d *Daemon) reportStuck(err error) {
	var problems []health.Problem
	note := ""
	if err != nil {
		problems, note = []health.Problem{health.FromError(err, health.EncryptionStuck, "")}, err.Error()
	}
	d.board.Report("encryption", problems)
	d.mu.Lock()
	d.secrets.note = note
	d.mu.Unlock()
}

func (d *Daemon) client() *kubeapi.Client {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.api
}

// changer is this node as the World of a change.
type changer struct{ d *Daemon }

var _ encryption.World = changer{}

// recordName is the ConfigMap of kube-system that has what the servers agree about. It is none of the Secrets: a server that
// lacks a key has to be able to read which.
const (
	recordName = "k1s-encryption"
	recordKey  = "record"
)

func (c changer) Record(ctx context.Context) (*encryption.Record, error) {
	m, err := c.d.client().ConfigMap(ctx, systemNamespace, recordName)
	if errs.Is(err, errs.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("finding out what the servers agree about the keys of Secrets: %w", err)
	}
	r, err := encryption.UnmarshalRecord([]byte(m.Data[recordKey]))
	if err != nil {
		return nil, errs.Hint(fmt.Errorf("the configmap %s/%s is damaged: %w", systemNamespace, recordName, err),
			"delete it: k1s kubectl -n %s delete configmap %s; the servers make it anew from their keys", systemNamespace, recordName)
	}
	r.Version = m.Metadata.ResourceVersion
	c.leads(r.Leader)
	return &r, nil
}

func (c changer) Agree(ctx context.Context, r encryption.Record) error {
	err := c.d.client().WriteConfigMap(ctx, systemNamespace, kubeapi.ConfigMap{
		Metadata: kubeapi.SecretMeta{Name: recordName, ResourceVersion: r.Version}, Data: map[string]string{recordKey: string(r.Marshal())},
	})
	if errs.Is(err, errs.Exists) {
		return errs.Hint(errs.New(errs.Exists, "another server was changing the keys of Secrets in the same moment"), "see: k1s encryption")
	}
	if err != nil {
		return fmt.Errorf("letting the servers agree about the keys of Secrets: %w", err)
	}
	c.leads(r.Leader)
	return nil
}

func (c changer) leads(server string) {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	c.d.secrets.leader = server
}

// servers are those that have the cluster's keys, by name, and where their APIs are. The first that joins is among them
// before this one is one of several. An API that is at none of their addresses has its own as its name: it may be one that
// is not known yet, or was removed and serves on, and it is asked like the others.
func (c changer) servers(ctx context.Context) (map[string]string, error) {
	c.d.mu.Lock()
	in, api := c.d.in, c.d.api
	c.d.mu.Unlock()
	all, err := clusterStore{api: api}.Bindings(ctx)
	if err != nil {
		return nil, fmt.Errorf("finding the other servers: %w", err)
	}
	answering, err := api.Servers(ctx)
	if err != nil {
		return nil, fmt.Errorf("finding the other servers: %w", err)
	}
	return serversOf(in, all, answering), nil
}

// serversOf is servers, of who is known and of the addresses at which APIs are.
func serversOf(in component.Input, all []join.Binding, answering []string) map[string]string {
	port := strconv.Itoa(in.Config.Spec.API.Port)
	out := map[string]string{in.Facts.NodeName: ""}
	known := []string{in.Facts.NodeIP.String()}
	if own, ok := in.Config.Spec.Components["kube-apiserver"].Args[advertiseArg]; ok {
		known = append(known, own)
	}
	for _, b := range all {
		if b.Role != token.Server || b.Node == in.Facts.NodeName {
			continue
		}
		known = append(known, b.IP.String())
		// Each has the port it likes; one that is away had the same as this one, most likely.
		out[b.Node] = net.JoinHostPort(b.IP.String(), port)
		for _, a := range answering {
			if host, _, err := net.SplitHostPort(a); err == nil && host == b.IP.String() {
				out[b.Node] = a
			}
		}
	}
	for _, a := range answering {
		if host, _, err := net.SplitHostPort(a); err == nil && !slices.Contains(known, host) {
			out[a] = a
		}
	}
	return out
}

func (c changer) Servers(ctx context.Context) ([]string, error) {
	all, err := c.servers(ctx)
	maps.DeleteFunc(all, func(name, at string) bool { return name == at }) // no name of a server
	return slices.Sorted(maps.Keys(all)), err
}

func (c changer) Fetch(ctx context.Context, names []string) ([]encryption.Key, error) {
	c.d.mu.Lock()
	in := c.d.in
	c.d.mu.Unlock()
	// Not by their bindings, which are Secrets.
	others, err := c.d.otherServers(ctx)
	if err != nil {
		return nil, err
	}
	var keys []encryption.Key
	var failed []error
	for _, a := range askKeys(ctx, in, others) {
		if a.err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", a.server, a.err))
			continue
		}
		keys = append(keys, a.state.Keys()...)
	}
	for _, n := range names {
		if !slices.ContainsFunc(keys, func(k encryption.Key) bool { return k.Name == n }) && len(failed) > 0 {
			return keys, errs.New(errs.NotFound, "the key %s is not here, and: %w", n, errors.Join(failed...))
		}
	}
	return keys, nil
}

func (c changer) Keep(s encryption.State, aside bool) error {
	// Who joins through this server gets the keys of before and is known to the others, or gets these.
	c.d.admitting.Lock()
	defer c.d.admitting.Unlock()
	if aside {
		c.d.log.Warn("the cluster's keys of secrets are not those this server had", "state", s.String())
		if err := keysAside(c.d.o.Paths, time.Now()); err != nil {
			return err
		}
	}
	if err := keep(c.d.o.Paths, s, true); err != nil {
		return err
	}
	c.d.mu.Lock()
	c.d.secrets.state, c.d.secrets.kept, c.d.secrets.done, c.d.secrets.all = s, true, 0, 0
	c.d.mu.Unlock()
	c.d.log.Info("encryption of secrets", "state", s.String(), "serial", s.Serial)
	return nil
}

func (c changer) Loaded(ctx context.Context, file []byte) error {
	ctx, cancel := context.WithTimeout(ctx, loadTime)
	defer cancel()
	return wait.Until(ctx, askMetrics, "the API servers to load their encryption configuration", func(ctx context.Context) error {
		before, err := c.servers(ctx)
		if err == nil {
			err = encryption.Waiting(c.standing(ctx, before, file))
		}
		if err == nil {
			// Who became known meanwhile may have older keys.
			var after map[string]string
			if after, err = c.servers(ctx); err == nil && len(after) != len(before) {
				err = errs.New(errs.NotRunning, "another server joins in this moment")
			}
			for name := range after {
				if _, ok := before[name]; !ok && err == nil {
					err = errs.New(errs.NotRunning, "%s joins in this moment", name)
				}
			}
		}
		c.note(err)
		return err
	})
}

// standing asks servers which keys their API servers use, all at once, and keeps the answers for who wants to know.
func (c changer) standing(ctx context.Context, servers map[string]string, file []byte) []encryption.Standing {
	ctx, cancel := context.WithTimeoutCause(ctx, askServer, fmt.Errorf("no answer within %s", askServer))
	defer cancel()
	c.d.mu.Lock()
	in, own := c.d.in, c.d.api
	c.d.mu.Unlock()
	want := encryption.Hash(file)
	names := slices.Sorted(maps.Keys(servers))
	out := make([]encryption.Standing, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() {
			api, err := own, error(nil)
			if at := servers[name]; at != "" {
				if api, err = serverClient(in, at); err == nil {
					defer api.Close()
				}
			}
			got := ""
			if err == nil {
				got, err = api.EncryptionConfig(ctx)
			}
			out[i] = encryption.Standing{Server: name, Err: err, Loaded: got == want, Unknown: name == servers[name]}
		})
	}
	all.Wait()
	c.d.mu.Lock()
	c.d.secrets.servers, c.d.secrets.asked = out, time.Now()
	c.d.mu.Unlock()
	return out
}

// serverClient asks another server's API with this one's rights.
func serverClient(in component.Input, server string) (*kubeapi.Client, error) {
	return kubeapi.NewNamed("https://"+server, join.ServerName, pki.CertFile(in.Paths, pki.CA), pki.CertFile(in.Paths, pki.DaemonClient), pki.KeyFile(in.Paths, pki.DaemonClient))
}

func (c changer) Rewrite(ctx context.Context) (encryption.Check, error) {
	found := encryption.Check{}
	for _, resource := range encryption.Resources() {
		n, err := c.d.client().Rewrite(ctx, resource, func(done, all int) {
			c.d.mu.Lock()
			c.d.secrets.done, c.d.secrets.all, c.d.secrets.note = done, all, ""
			c.d.mu.Unlock()
		})
		if err != nil {
			return found, fmt.Errorf("writing %s again: %w", resource, err)
		}
		found.Objects += n.Objects
		found.Rewritten += n.Written
	}
	found.At = time.Now().UTC().Truncate(time.Second)
	return found, nil
}

func (c changer) note(err error) {
	note := ""
	if err != nil {
		note = err.Error()
	}
	c.d.mu.Lock()
	c.d.secrets.note = note
	c.d.mu.Unlock()
}

// encryptionProblems compares the files with what is known: both are written by the daemon alone.
func (d *Daemon) encryptionProblems() []health.Problem {
	if !d.keyring.TryLock() {
		return nil // they are being written
	}
	defer d.keyring.Unlock()
	d.mu.Lock()
	known, in := d.secrets, d.in
	d.mu.Unlock()
	if known.wake == nil || ownProviders(in) {
		return nil
	}
	b, err := os.ReadFile(in.Paths.EncryptionKeys())
	derived, derivedErr := os.ReadFile(in.Paths.EncryptionConfig())
	d.mu.Lock()
	changing := known.state.Change != nil || d.secrets.state.Change != nil
	d.mu.Unlock()
	switch {
	case changing: // the files are ahead of what is known
		return nil
	case known.kept && (err != nil || !bytes.Equal(b, known.state.Marshal())):
		return []health.Problem{health.New(health.EncryptionKeys, "the file with the keys of Secrets, %s, is not as k1s wrote it; what runs has the keys, a restart would not", in.Paths.EncryptionKeys())}
	case derivedErr != nil || !bytes.Equal(derived, known.state.File()):
		return []health.Problem{health.New(health.EncryptionKeys, "the API server's encryption configuration, %s, is not as k1s wrote it", in.Paths.EncryptionConfig()).
			Fix("restart k1s: it writes the file again from %s", in.Paths.EncryptionKeys())}
	}
	return nil
}

// Encryption implements control.Backend.
func (d *Daemon) Encryption(ctx context.Context) (control.Encryption, error) {
	d.mu.Lock()
	err := d.encryptionKnown()
	in, known := d.in, d.secrets
	d.mu.Unlock()
	if err != nil {
		return control.Encryption{}, err
	}
	if in.Several && time.Since(known.asked) > askMetrics {
		c := changer{d}
		servers, err := c.servers(ctx)
		if err != nil {
			d.log.Debug("nothing is known of the keys of the other servers", "err", err)
			servers = map[string]string{in.Facts.NodeName: ""}
		}
		c.standing(ctx, servers, known.state.File())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return wireEncryption(d.secrets, d.in), nil
}

// encryptionKnown is an error where this node does not manage keys, or not yet; d.mu is held.
func (d *Daemon) encryptionKnown() error {
	switch {
	case d.secrets.wake == nil || d.api == nil:
		return errs.Hint(errs.New(errs.NotRunning, "the node is starting; nothing is known about its keys yet"), "try again when it runs: k1s status")
	case ownProviders(d.in):
		return errs.Hint(errs.New(errs.Unsupported, "the API server has an encryption configuration of your own: spec.components.kube-apiserver.args sets %s", providerArg),
			"change that file; the API server loads it within seconds")
	}
	return nil
}

// ChangeEncryption implements control.Backend.
func (d *Daemon) ChangeEncryption(ctx context.Context, r control.EncryptionRequest) (control.Encryption, error) {
	action := encryption.Action(r.Action)
	d.mu.Lock()
	err := d.encryptionKnown()
	in, before := d.in, d.secrets.state
	d.mu.Unlock()
	if err != nil {
		return control.Encryption{}, err
	}
	spec := in.Config.Spec.Secrets
	if action == encryption.Disable && spec.Encryption != "" {
		return control.Encryption{}, errs.Hint(errs.New(errs.Invalid, "cannot disable the encryption of Secrets: spec.secrets.encryption is %q, which would enable it at the next start", spec.Encryption),
			"remove it from the configuration, restart k1s, and disable it then")
	}
	newKey := func() (encryption.Key, error) {
		p := encryption.Provider(r.Provider)
		switch {
		case p != "":
		case spec.Encryption != "":
			p = encryption.Provider(spec.Encryption)
		case !before.Key.None():
			p = before.Key.Provider
		default:
			p = encryption.Secretbox
		}
		return encryption.NewKey(p, time.Now(), rand.Reader)
	}
	if before.Change == nil || before.Change.Action != action {
		if err := d.beginChange(ctx, in, action, newKey); err != nil {
			return control.Encryption{}, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return wireEncryption(d.secrets, in), nil
}

// beginChange lets the servers agree that there is a change, and wakes who does it.
func (d *Daemon) beginChange(ctx context.Context, in component.Input, action encryption.Action, newKey func() (encryption.Key, error)) error {
	d.keyring.Lock()
	defer d.keyring.Unlock()
	world, self := changer{d}, in.Facts.NodeName
	cannot := func(err error, hint string) error {
		return errs.Hint(fmt.Errorf("cannot %s the encryption of Secrets: %w", action, err), "%s", hint)
	}
	now, _, err := encryption.Sync(ctx, world, self, d.keysState())
	if err != nil {
		return cannot(err, "the API has to work, and the servers have to agree, first; see: k1s status")
	}
	if now.Change != nil {
		d.wakeEncryption() // this server may not have known of it
	}
	next, err := now.Begin(action, time.Now().UTC(), newKey)
	if err != nil || next.Change == now.Change {
		return err
	}
	// A change that begins with Secrets nobody can read would not end.
	if _, _, err := readKeys(in.Paths); err != nil {
		return err
	}
	if err := d.client().Readable(ctx, "secrets"); err != nil {
		return cannot(err, "every Secret has to be readable first; see: k1s status")
	}
	if _, err := encryption.Start(ctx, world, self, now, action, time.Now().UTC().Truncate(time.Second), newKey); err != nil {
		return err
	}
	d.mu.Lock()
	d.secrets.note = ""
	d.mu.Unlock()
	d.wakeEncryption()
	return nil
}

// wakeEncryption lets watchEncryption look now whether there is something to do: there is more for it from now on, or at once.
func (d *Daemon) wakeEncryption() {
	d.mu.Lock()
	wake := d.secrets.wake
	d.mu.Unlock()
	select {
	case wake <- struct{}{}:
	default: // it looks anyway, or does not run yet
	}
}

func wireEncryption(s secretsState, in component.Input) control.Encryption {
	out := control.Encryption{Enabled: !s.state.Key.None(), Configured: in.Config.Spec.Secrets.Encryption, Resources: encryption.Resources()}
	for i, k := range s.state.Providers() {
		out.Keys = append(out.Keys, control.EncryptionKey{Provider: string(k.Kind()), Name: k.Name, Writes: i == 0})
	}
	if c := s.state.Change; c != nil {
		out.Enabled = !c.To.None()
		out.Change = &control.EncryptionChange{Action: string(c.Action), Stage: string(c.Stage), Key: c.To.Name, Since: c.Since, Done: s.done, All: s.all, Note: s.note}
		if waits := encryption.Waiting(s.servers); s.leader != in.Facts.NodeName && s.note == "" && waits != nil {
			out.Change.Note = waits.Error()
		}
	}
	if in.Several {
		if out.Change != nil {
			out.Change.Leader = s.leader
		}
		for _, st := range s.servers {
			o := control.EncryptionServer{Name: st.Server, Loaded: st.Loaded}
			if st.Err != nil {
				o.Error = st.Err.Error()
			}
			out.Servers = append(out.Servers, o)
		}
	}
	if c := s.state.Checked; c != nil {
		out.Checked = &control.EncryptionChecked{At: c.At, Objects: c.Objects, Rewritten: c.Rewritten, Key: c.Key}
	}
	return out
}
