package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/encryption"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
)

// objects are what the API servers of a cluster have in common.
type objects struct {
	mu        sync.Mutex // guards what follows
	rev       int
	maps      map[string]kubeapi.ConfigMap // of kube-system, by name
	secrets   map[string]kubeapi.Secret    // of kube-system, by name
	servers   []string                     // endpoints of the service kubernetes
	published string                       // the CA that pods are given
	restarts  int                          // how many control planes start in this moment
	stored    int64                        // bytes in the datastore, as the API server tells; 0 for not told. Nobody writes it later
	nodes     map[string]*fakeNode         // what is known of nodes beside their names
}

// fakeNode is what was written on a node.
type fakeNode struct {
	annotations   map[string]string
	unschedulable bool
	kubelet       string
	rev           int
}

// node is one of them; o.mu is held.
func (o *objects) node(name string) *fakeNode {
	if o.nodes == nil {
		o.nodes = map[string]*fakeNode{}
	}
	if o.nodes[name] == nil {
		o.nodes[name] = &fakeNode{annotations: map[string]string{}, kubelet: "v1.36.3"}
	}
	return o.nodes[name]
}

// shown is a node as the API has it; o.mu is held.
func (o *objects) shownNode(name string) map[string]any {
	n := o.node(name)
	return map[string]any{
		"metadata": map[string]any{"name": name, "annotations": maps.Clone(n.annotations), "resourceVersion": fmt.Sprint(n.rev)},
		"spec":     map[string]any{"unschedulable": n.unschedulable},
		"status": map[string]any{
			"conditions": []any{map[string]string{"type": "Ready", "status": "True"}}, "nodeInfo": map[string]string{"kubeletVersion": n.kubelet, "architecture": runtime.GOARCH},
		},
	}
}

// patchNode merges what upgrades of the cluster write on a node.
func (o *objects) patchNode(w http.ResponseWriter, r *http.Request) {
	var p struct {
		Metadata struct {
			ResourceVersion *string            `json:"resourceVersion"`
			Annotations     map[string]*string `json:"annotations"`
		} `json:"metadata"`
		Spec map[string]*bool `json:"spec"`
	}
	if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	n := o.node(r.PathValue("name"))
	if v := p.Metadata.ResourceVersion; v != nil && *v != fmt.Sprint(n.rev) {
		w.WriteHeader(http.StatusConflict)
		return
	}
	n.rev++
	for k, v := range p.Metadata.Annotations {
		if delete(n.annotations, k); v != nil {
			n.annotations[k] = *v
		}
	}
	if v, ok := p.Spec["unschedulable"]; ok {
		n.unschedulable = v != nil && *v
	}
	answer(w, o.shownNode(r.PathValue("name")))
}

// oneServer is a daemon and an API server that does what a daemon asks of it.
type oneServer struct {
	*Daemon
	t      *testing.T
	shared *objects
	https  *httptest.Server
	addr   string // host:port
	away   atomic.Bool
	now    atomic.Pointer[Daemon] // that takes the place of the first one; nil for none
	etcd   join.Members           // who takes part in its etcd; nil for nobody
	shown  atomic.Pointer[tls.Certificate]
	pool   atomic.Pointer[x509.CertPool] // whose clients the API server believes since it was started
}

func newServer(t *testing.T, shared *objects, name, ip string, keys pki.Bundle) *oneServer {
	t.Helper()
	p := paths.Paths{Data: t.TempDir(), Run: t.TempDir(), Config: t.TempDir()}
	if keys != nil {
		if err := keys.Install(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	in := component.Input{Paths: p, Config: config.Default(), Several: true, Facts: component.Facts{NodeName: name, NodeIP: netip.MustParseAddr(ip)}}
	in.Config.Spec.Datastore.Endpoint = "etcd"
	_, err := pki.Ensure(t.Context(), pki.Request{Paths: p, NodeName: name, NodeIP: in.Facts.NodeIP, ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), Etcd: true})
	if err != nil {
		t.Fatal(err)
	}
	s := &oneServer{t: t, shared: shared, Daemon: &Daemon{o: Options{Paths: p}, in: in, log: slog.New(slog.DiscardHandler), board: health.NewBoard(time.Now)}}
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	s.https = httptest.NewUnstartedServer(nil)
	s.https.Listener.Close()
	s.https.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.reads(t)
	s.https.Listener, s.addr = l, l.Addr().String()
	s.https.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		// Between two files the one before is shown, as by an API server.
		if cert, err := tls.LoadX509KeyPair(pki.CertFile(p, pki.APIServer), pki.KeyFile(p, pki.APIServer)); err == nil {
			s.shown.Store(&cert)
		}
		return &tls.Config{Certificates: []tls.Certificate{*s.shown.Load()}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: s.pool.Load()}, nil
	}}
	if s.api, err = serverClient(in, s.addr); err != nil {
		t.Fatal(err)
	}
	h := s.handler()
	s.https.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.away.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		h.ServeHTTP(w, r)
	})
	s.https.StartTLS()
	t.Cleanup(func() { s.api.Close(); s.https.Close() })
	shared.mu.Lock()
	shared.servers = append(shared.servers, s.addr)
	shared.mu.Unlock()
	identity, err := pki.Identity(p)
	if err != nil {
		t.Fatal(err)
	}
	b, err := join.OwnBinding(name, in.Facts.NodeIP, identity, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := (clusterStore{api: s.api}).Bind(t.Context(), *b); err != nil {
		t.Fatal(err)
	}
	if err := s.prepareEncryption(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	return s
}

// movesOf are the moves of the daemon that is a server's now.
type movesOf struct{ s *oneServer }

func (m movesOf) Answer(ctx context.Context, r join.MoveRequest) (join.MoveAnswer, *join.Order, error) {
	if d := m.s.now.Load(); d != nil {
		return movers{d}.Answer(ctx, r)
	}
	return movers{m.s.Daemon}.Answer(ctx, r)
}

// membersOf are the members of etcd as a server tells them.
type membersOf struct{ s *oneServer }

func (m membersOf) Join(ctx context.Context, who join.Member) (join.Membership, error) {
	return m.s.etcd.Join(ctx, who)
}

func (m membersOf) Promote(ctx context.Context, who join.Member) error {
	return m.s.etcd.Promote(ctx, who)
}

// reads is what an API server does when it starts.
func (s *oneServer) reads(t *testing.T) {
	t.Helper()
	pool, err := pki.Pool(pki.CertFile(s.o.Paths, pki.CA))
	if err != nil {
		t.Fatal(err)
	}
	s.pool.Store(pool)
}

func answer(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

func (s *oneServer) handler() http.Handler {
	o := s.shared
	mux := http.NewServeMux()
	mux.Handle(join.Prefix, (&join.Server{
		Store: clusterStore{api: s.api}, Secrets: func() ([]byte, error) { return s.keysState().Marshal(), nil }, Log: s.log, Now: time.Now, Admitting: &s.admitting, Moves: movesOf{s}, Members: membersOf{s},
		Authorities: s.authorities, NewAuthorities: s.newAuthorities, Upgrades: upgrader{s.Daemon},
	}).Handler())
	mux.HandleFunc("GET /api/v1/namespaces", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"items": []any{map[string]any{"metadata": map[string]any{"name": "kube-system", "uid": "1"}}}})
	})
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) { // it loads the file at once
		if o.stored > 0 {
			fmt.Fprintf(w, "apiserver_storage_size_bytes{storage_cluster_id=\"etcd-0\"} %d\n", o.stored)
		}
		raw, err := os.ReadFile(s.in.Paths.EncryptionConfig())
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(w, "apiserver_encryption_config_controller_last_config_info{apiserver_id_hash=\"sha256:1\",hash=%q} 1\n", encryption.Hash(raw))
	})
	mux.HandleFunc("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", func(w http.ResponseWriter, _ *http.Request) {
		o.mu.Lock()
		defer o.mu.Unlock()
		var items []any
		for _, a := range o.servers {
			host, port, _ := net.SplitHostPort(a)
			items = append(items, map[string]any{"endpoints": []any{map[string]any{"addresses": []string{host}}}, "ports": []any{map[string]any{"port": json.Number(port)}}})
		}
		answer(w, map[string]any{"items": items})
	})
	mux.HandleFunc("GET /api/v1/secrets", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"items": []any{map[string]any{"metadata": map[string]any{"namespace": "default", "name": "one", "resourceVersion": "1"}}}})
	})
	mux.HandleFunc("PUT /api/v1/namespaces/default/secrets/one", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"metadata": map[string]any{"resourceVersion": "1"}})
	})
	const ofSystem = "/api/v1/namespaces/kube-system/"
	mux.HandleFunc("GET "+ofSystem+"secrets", func(w http.ResponseWriter, _ *http.Request) {
		o.mu.Lock()
		defer o.mu.Unlock()
		items := []kubeapi.Secret{}
		for _, sec := range o.secrets {
			items = append(items, sec)
		}
		answer(w, map[string]any{"items": items})
	})
	mux.HandleFunc("POST "+ofSystem+"secrets", func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		defer o.mu.Unlock()
		var sec kubeapi.Secret
		if err := json.NewDecoder(r.Body).Decode(&sec); err != nil {
			s.t.Error(err)
		}
		sec.Metadata.ResourceVersion = "1"
		o.secrets[sec.Metadata.Name] = sec
		answer(w, sec)
	})
	write := func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		defer o.mu.Unlock()
		var m kubeapi.ConfigMap
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
			s.t.Error(err)
		}
		if m.Metadata.ResourceVersion != o.maps[m.Metadata.Name].Metadata.ResourceVersion {
			w.WriteHeader(http.StatusConflict)
			return
		}
		o.put(m)
		answer(w, m)
	}
	mux.HandleFunc("POST "+ofSystem+"configmaps", write)
	mux.HandleFunc("PUT "+ofSystem+"configmaps/{name}", write)
	mux.HandleFunc("GET "+ofSystem+"configmaps/{name}", func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		defer o.mu.Unlock()
		m, ok := o.maps[r.PathValue("name")]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		answer(w, m)
	})
	mux.HandleFunc("GET /api/v1/configmaps", func(w http.ResponseWriter, _ *http.Request) {
		o.mu.Lock()
		defer o.mu.Unlock()
		answer(w, map[string]any{"items": []any{map[string]any{"metadata": map[string]string{"namespace": "default"}, "data": map[string]string{"ca.crt": o.published}}}})
	})
	mux.HandleFunc("GET /api/v1/nodes", func(w http.ResponseWriter, _ *http.Request) {
		o.mu.Lock()
		defer o.mu.Unlock()
		var items []any
		for name := range o.secrets {
			items = append(items, o.shownNode(nodeOfSecret(name)))
		}
		answer(w, map[string]any{"items": items})
	})
	mux.HandleFunc("GET /api/v1/nodes/{name}", func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		defer o.mu.Unlock()
		answer(w, o.shownNode(r.PathValue("name")))
	})
	mux.HandleFunc("PATCH /api/v1/nodes/{name}", o.patchNode)
	return mux
}

// put keeps a ConfigMap; o.mu is held.
func (o *objects) put(m kubeapi.ConfigMap) {
	o.rev++
	m.Metadata.ResourceVersion = fmt.Sprint(o.rev)
	o.maps[m.Metadata.Name] = m
}

// newObjects are those of a cluster without servers.
func newObjects() *objects {
	return &objects{secrets: map[string]kubeapi.Secret{}, maps: map[string]kubeapi.ConfigMap{}}
}

// agree lets servers do what they do again and again, until none has anything to do.
func agree(t *testing.T, all ...*oneServer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	settled := func() bool {
		for _, s := range all {
			if st := s.keysState(); st.Change != nil || st.Serial != all[0].keysState().Serial {
				return false
			}
		}
		return true
	}
	var running sync.WaitGroup
	for _, s := range all {
		running.Go(func() {
			for ctx.Err() == nil && !settled() {
				s.agreeOnKeys(ctx)
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	running.Wait()
	if !settled() {
		for _, s := range all {
			t.Logf("%s: %v serial %d: %s", s.in.Facts.NodeName, s.keysState(), s.keysState().Serial, s.secrets.note)
		}
		t.Fatal("they do not agree")
	}
}

func (s *oneServer) asked(t *testing.T, action encryption.Action) {
	t.Helper()
	if e, err := s.ChangeEncryption(t.Context(), control.EncryptionRequest{Action: string(action)}); err != nil || e.Change == nil || e.Change.Leader != s.in.Facts.NodeName {
		t.Fatalf("%s: %+v, %v", action, e, err)
	}
}

func TestServersChangeTheKeysOfSecretsTogether(t *testing.T) {
	shared := newObjects()
	a := newServer(t, shared, "server-0", "127.0.0.1", nil)
	keys, err := pki.ReadBundle(a.in.Paths)
	if err != nil {
		t.Fatal(err)
	}
	b := newServer(t, shared, "server-1", "127.0.0.2", keys)
	a.asked(t, encryption.Enable)
	if _, err := b.ChangeEncryption(t.Context(), control.EncryptionRequest{Action: "disable"}); err == nil || !strings.Contains(err.Error(), "enable is not finished") {
		t.Errorf("something else at the other one: %v", err)
	}
	agree(t, a, b)
	first := a.keysState().Key
	if first.None() || b.keysState().Key != first {
		t.Fatalf("%v and %v", a.keysState(), b.keysState())
	}
	if file := providers(t, b.in.Paths); !strings.Contains(file, first.Secret.Reveal()) || file != providers(t, a.in.Paths) {
		t.Error("their API servers do not get the same")
	}
	if text := shared.maps[recordName].Data[recordKey]; strings.Contains(text, first.Secret.Reveal()) || !strings.Contains(text, first.Name) {
		t.Errorf("they agree about %s", text)
	}
	e, err := b.Encryption(t.Context())
	if err != nil || len(e.Servers) != 2 || !e.Servers[0].Loaded || !e.Servers[1].Loaded || e.Checked == nil || e.Checked.Objects != 1 {
		t.Errorf("%+v, %v", e, err)
	}

	// One is away: the other waits, and says for whom.
	b.away.Store(true)
	a.asked(t, encryption.Rotate)
	waiting, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	a.agreeOnKeys(waiting)
	cancel()
	if e, err = a.Encryption(t.Context()); err != nil || e.Change == nil || e.Change.Stage != "adding" || !strings.Contains(e.Change.Note, "server-1 does not answer") || e.Servers[1].Error == "" {
		t.Errorf("without server-1: %+v, change %+v, %v", e.Servers, e.Change, err)
	}
	b.away.Store(false)
	agree(t, a, b)
	second := a.keysState()
	if second.Key.Name == first.Name || b.keysState().Key != second.Key {
		t.Errorf("%v and %v", second, b.keysState())
	}

	// A disk of before: it asks the others before its API server starts.
	old := encryption.State{Key: first, Serial: 1}
	if err := keep(b.in.Paths, old, true); err != nil {
		t.Fatal(err)
	}
	if err := (peers{Several: true, Joined: &joinedCluster{Servers: []string{a.addr}}}).keep(b.in.Paths); err != nil {
		t.Fatal(err)
	}
	if err := b.prepareEncryption(t.Context(), b.in); err != nil || b.keysState().Key != second.Key {
		t.Errorf("it starts with %v, %v", b.keysState(), err)
	}
	// Nothing that Secrets could be written with is thrown away.
	aside, err := os.ReadDir(strings.TrimSuffix(b.in.Paths.EncryptionKeys(), "/keys.json"))
	if err != nil || !strings.Contains(fmt.Sprint(aside), "keys-2") {
		t.Errorf("its keys of before are not put aside: %v, %v", aside, err)
	}
	// Without its keys, and with nobody who tells it of newer ones, it learns of them from what all agree about.
	b.mu.Lock()
	b.secrets.state = encryption.State{}
	b.mu.Unlock()
	agree(t, a, b)
	if b.keysState().Key != second.Key {
		t.Errorf("it has %v", b.keysState())
	}
}

func TestAServerThatWasAloneFollowsOneThatJoins(t *testing.T) {
	d, in := preparing(t, "")
	if err := d.prepareEncryption(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	d.log = slog.New(slog.DiscardHandler)
	d.wakeEncryption()
	d.wakeEncryption() // nobody waits yet, and it does not block
	select {
	case <-d.secrets.wake:
	default:
		t.Error("who waits for something to do about the keys is not woken")
	}
}
