package join

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/token"
)

// memory is a Store.
type memory struct {
	mu       sync.Mutex
	tokens   map[string]token.Record
	bindings map[string]Binding
	nodes    map[string]Node
	version  int
	broken   error
}

func (m *memory) Token(_ context.Context, id string) (token.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.tokens[id]
	if !ok {
		return r, errs.New(errs.NotFound, "no token %s", id)
	}
	return r, m.broken
}

func (m *memory) Bindings(context.Context) ([]Binding, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.bindings)), nil
}

func (m *memory) Bind(_ context.Context, b Binding) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bindings[b.Node].Version != b.Version {
		return errs.New(errs.Exists, "somebody was faster")
	}
	m.version++
	b.Version = strconv.Itoa(m.version)
	m.bindings[b.Node] = b
	return nil
}

func (m *memory) Nodes(context.Context) ([]Node, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.nodes)), nil
}

func (m *memory) Servers(context.Context) ([]string, error) {
	return []string{"10.0.0.1:6443", "10.0.0.2:6443"}, nil
}

// cluster is a server's end with a real CA behind a real TLS listener.
type cluster struct {
	*memory
	server *Server
	paths  paths.Paths
	addr   string
	now    time.Time
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{
		memory: &memory{tokens: map[string]token.Record{}, bindings: map[string]Binding{}, nodes: map[string]Node{}},
		paths:  paths.Paths{Data: t.TempDir()}, now: time.Now(),
	}
	_, err := pki.Ensure(t.Context(), pki.Request{
		Paths: c.paths, NodeName: "server-0", NodeIP: netip.MustParseAddr("10.0.0.1"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"),
	})
	if err != nil {
		t.Fatal(err)
	}
	c.server = &Server{
		Admitting: &sync.Mutex{},
		Store:     c.memory, Authority: func() (Authority, error) { return pki.OpenAuthority(c.paths) },
		Settings: config.Shared(config.Default()), Reserved: func() ([]string, error) {
			names, err := pki.Names(c.paths, pki.APIServer)
			return append(names, "*.example.com", "fd00::1"), err
		},
		CA: func() ([]byte, error) { return pki.Published(c.paths) }, Domain: "cluster.local",
		Private: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16")}, Kubernetes: "v1.36.3",
		Now: func() time.Time { return c.now }, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	srv := httptest.NewUnstartedServer(c.server.Handler())
	srv.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		now, err := tls.LoadX509KeyPair(pki.CertFile(c.paths, pki.APIServer), pki.KeyFile(c.paths, pki.APIServer))
		return &now, err
	}}
	srv.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(io.Discard, nil), slog.LevelError) // handshakes are refused on purpose
	srv.StartTLS()
	t.Cleanup(srv.Close)
	c.addr = strings.TrimPrefix(srv.URL, "https://")
	return c
}

func (c *cluster) token(t *testing.T, role token.Role, ttl time.Duration) *token.Token {
	t.Helper()
	ca, err := pki.ReadCA(c.paths)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := token.New(role, ca)
	if err != nil {
		t.Fatal(err)
	}
	c.tokens[tok.ID] = tok.Record("", c.now, c.now.Add(ttl))
	return &tok
}

// machine is one that joins.
type machine struct {
	paths    paths.Paths
	identity crypto.Signer
	requests pki.Requests
	req      Request
	joined   bool
}

func newMachine(t *testing.T, name string) *machine {
	t.Helper()
	m := &machine{paths: paths.Paths{Data: t.TempDir()}}
	var err error
	if m.identity, err = pki.Identity(m.paths); err != nil {
		t.Fatal(err)
	}
	ip := netip.MustParseAddr("10.0.0.30")
	if m.requests, err = pki.NewRequests(pki.JoinedLeaves(name, ip)); err != nil {
		t.Fatal(err)
	}
	m.req = Request{Role: token.Agent, Node: name, IP: ip, CSRs: m.requests.CSRs, K1s: "v0.1.0", Kubernetes: "v1.36.3"}
	return m
}

func (m *machine) join(t *testing.T, c *cluster, tok *token.Token) (Welcome, error) {
	t.Helper()
	ca, _ := pki.ReadCA(m.paths)
	if tok == nil && m.joined { // it would have installed what it was given
		var err error
		if ca, err = pki.ReadCA(c.paths); err != nil {
			t.Fatal(err)
		}
	}
	client := Client{Server: c.addr}
	if ca != nil {
		client.CAs = []*x509.Certificate{ca}
	}
	w, err := client.Ask(t.Context(), m.identity, m.req, tok)
	m.joined = m.joined || err == nil
	return w, err
}

func TestAMachineBecomesANodeAndRenewsItsCertificatesWithoutAToken(t *testing.T) {
	c, m := newCluster(t), newMachine(t, "agent-0")
	w, err := m.join(t, c, c.token(t, token.Agent, time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if len(w.Servers) != 2 || string(w.Settings["spec.network.podCIDR"]) != `"10.42.0.0/16"` {
		t.Errorf("told: %v %s", w.Servers, w.Settings)
	}
	if err := m.requests.Install(t.Context(), m.paths, w.CA, w.Certificates); err != nil {
		t.Fatal(err)
	}
	leaves := pki.JoinedLeaves(m.req.Node, m.req.IP)
	if due := pki.DueOf(m.paths, leaves, time.Now()); len(due.Changes) > 0 || !due.Usable {
		t.Errorf("certificates that were just issued: %+v", due)
	}
	later := time.Now().Add(25 * 24 * time.Hour)
	if due := pki.DueOf(m.paths, leaves, later); len(due.Changes) != len(leaves) || !due.Usable {
		t.Errorf("near their end: %+v", due)
	}
	if due := pki.DueOf(m.paths, leaves, time.Now().Add(40*24*time.Hour)); due.Usable {
		t.Error("certificates that have ended count as usable")
	}
	if w, err = m.join(t, c, nil); err != nil || len(w.Certificates) != len(leaves) {
		t.Errorf("renewing: %d certificates, %v", len(w.Certificates), err)
	}
	// With another address, too.
	m.req.IP = netip.MustParseAddr("10.0.0.77")
	if _, err = m.join(t, c, nil); err != nil || c.bindings["agent-0"].IP != m.req.IP {
		t.Errorf("with another address: %v, kept %v", err, c.bindings["agent-0"].IP)
	}
}

func TestCertificatesOfANodeServeForNothingElse(t *testing.T) {
	c, m := newCluster(t), newMachine(t, "agent-0")
	w, err := m.join(t, c, c.token(t, token.Agent, time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.requests.Install(t.Context(), m.paths, w.CA, w.Certificates); err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(pki.CertFile(m.paths, pki.KubeletServing), pki.KeyFile(m.paths, pki.KubeletServing))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{ServerName, "localhost", "127.0.0.1", "kubernetes.default.svc", "10.0.0.1", "10.43.0.1"} {
		if leaf.VerifyHostname(name) == nil {
			t.Errorf("the node's certificate is good for %s", name)
		}
	}
	// Somebody with a node's keys in the place of a server is found out.
	fake := httptest.NewUnstartedServer(http.NotFoundHandler())
	fake.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	fake.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(io.Discard, nil), slog.LevelError)
	fake.StartTLS()
	defer fake.Close()
	ca, err := pki.ReadCA(m.paths)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Client{Server: strings.TrimPrefix(fake.URL, "https://"), CAs: []*x509.Certificate{ca}}.Ask(t.Context(), m.identity, m.req, nil)
	var names x509.HostnameError
	if !errors.As(err, &names) {
		t.Errorf("asked in a server's place: %v", err)
	}
}

func TestWhoMayNotJoinIsToldWhy(t *testing.T) {
	c := newCluster(t)
	good := c.token(t, token.Agent, time.Hour)
	other := newCluster(t)
	revoked := c.token(t, token.Agent, time.Hour)
	delete(c.tokens, revoked.ID)
	wrong := *good
	wrong.Secret = revoked.Secret
	expired := c.token(t, token.Agent, -time.Minute)
	c.nodes["registered"] = Node{Name: "registered"}
	c.nodes["ready"] = Node{Name: "ready", Ready: true, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.44")}}
	for name, tc := range map[string]struct {
		tok    *token.Token
		change func(*Request)
		kind   errs.Kind
		want   string
	}{
		"no token at all":                      {nil, nil, errs.Invalid, "neither a token nor the CA"},
		"a wrong secret":                       {&wrong, nil, errs.Denied, "its secret is not"},
		"an expired token":                     {expired, nil, errs.Denied, "expired on"},
		"a revoked token":                      {revoked, nil, errs.Denied, "not known"},
		"another cluster's token":              {other.token(t, token.Agent, time.Hour), nil, errs.Denied, "not a server of the cluster"},
		"a server's token":                     {c.token(t, token.Server, time.Hour), nil, errs.Denied, "not as agent"},
		"a node that is there":                 {good, func(r *Request) { r.Node = "registered" }, errs.Denied, "belongs to another machine"},
		"the API's name":                       {good, func(r *Request) { r.Node = "kubernetes" }, errs.Invalid, "that of a server"},
		"a server's name":                      {good, func(r *Request) { r.Node = "server-0" }, errs.Invalid, "that of a server"},
		"a server's address":                   {good, func(r *Request) { r.IP = netip.MustParseAddr("10.0.0.1") }, errs.Invalid, "that of a server"},
		"a pod's address":                      {good, func(r *Request) { r.IP = netip.MustParseAddr("10.42.1.1") }, errs.Invalid, "pods or services"},
		"loopback":                             {good, func(r *Request) { r.IP = netip.MustParseAddr("127.0.0.1") }, errs.Invalid, "no address"},
		"a service's address, in another form": {good, func(r *Request) { r.IP = netip.MustParseAddr("::ffff:10.43.0.10") }, errs.Invalid, "pods or services"},
		"a server's address, with a zone":      {good, func(r *Request) { r.IP = netip.MustParseAddr("fd00::1%eth0") }, errs.Invalid, "that of a server"},
		"everybody's address":                  {good, func(r *Request) { r.IP = netip.MustParseAddr("255.255.255.255") }, errs.Invalid, "no address"},
		"a name below one of the API's":        {good, func(r *Request) { r.Node = "api.example.com" }, errs.Invalid, "that of a server"},
		"a service's name":                     {good, func(r *Request) { r.Node = "metrics-server.kube-system.svc" }, errs.Invalid, "services"},
		"a service's whole name":               {good, func(r *Request) { r.Node = "a.b.svc.cluster.local" }, errs.Invalid, "services"},
		"an empty label":                       {good, func(r *Request) { r.Node = "a..b" }, errs.Invalid, "cannot be the name"},
		"a very long name":                     {good, func(r *Request) { r.Node = strings.Repeat("a", 40000) }, errs.Invalid, "aaa…"},
		"the address of a node that is there":  {good, func(r *Request) { r.IP = netip.MustParseAddr("10.0.0.44") }, errs.Denied, "is that of node ready"},
		"no name":                              {good, func(r *Request) { r.Node = "../x" }, errs.Invalid, "cannot be the name"},
		"a newer Kubernetes":                   {good, func(r *Request) { r.Kubernetes = "v1.37.0" }, errs.Denied, "newer than the servers"},
		"a much older Kubernetes":              {good, func(r *Request) { r.Kubernetes = "v1.32.9" }, errs.Denied, "too old"},
		"a certificate of another":             {good, func(r *Request) { r.CSRs = map[string][]byte{pki.AdminClient: r.CSRs[pki.KubeletClient]} }, errs.Invalid, "no certificate"},
		"a role that is none":                  {good, func(r *Request) { r.Role = "admin" }, errs.Invalid, "is no role"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, "agent-9")
			if tc.change != nil {
				tc.change(&m.req)
			}
			w, err := m.join(t, c, tc.tok)
			if !errs.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v (kind %v), want %q", err, errs.KindOf(err), tc.want)
			}
			if err != nil && len(err.Error()) > 400 {
				t.Errorf("%d bytes are told", len(err.Error()))
			}
			if len(w.Certificates) > 0 {
				t.Error("it has certificates")
			}
			if _, ok := c.bindings[m.req.Node]; ok {
				t.Error("it has the name")
			}
		})
	}
}

func TestANameStaysWithItsMachine(t *testing.T) {
	c := newCluster(t)
	first, second := newMachine(t, "agent-0"), newMachine(t, "agent-0")
	tok := c.token(t, token.Agent, 400*24*time.Hour)
	if _, err := first.join(t, c, tok); err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		if _, err := second.join(t, c, tok); !errs.Is(err, errs.Denied) || !strings.Contains(err.Error(), "belongs to another machine") {
			t.Errorf("a second machine %s: %v", when, err)
		}
	}
	refused("before the first one is registered")
	c.nodes["agent-0"] = Node{Name: "agent-0", Ready: true}
	refused("while the first one is there")
	delete(c.nodes, "agent-0")
	c.now = c.now.Add(20 * 24 * time.Hour)
	refused("after somebody deleted the node, whose machine has certificates still")
	if _, err := first.join(t, c, nil); err != nil {
		t.Errorf("the first machine, which comes back: %v", err)
	}
	c.now = c.now.Add(20 * 24 * time.Hour)
	refused("because certificates that were renewed last longer")
	c.now = c.now.Add(20 * 24 * time.Hour)
	if _, err := second.join(t, c, nil); err == nil {
		t.Error("the name was taken without a token")
	}
	if _, err := second.join(t, c, tok); err != nil {
		t.Errorf("after the last certificate has ended: %v", err)
	}
	c.nodes["agent-0"] = Node{Name: "agent-0"}
	if _, err := first.join(t, c, tok); !errs.Is(err, errs.Denied) {
		t.Errorf("the first machine comes back: %v", err)
	}
	// Removed on purpose: free at once.
	delete(c.nodes, "agent-0")
	delete(c.bindings, "agent-0")
	if _, err := first.join(t, c, tok); err != nil {
		t.Errorf("after the node was removed: %v", err)
	}
}

func TestAnAddressStaysWithItsNodeForAsLongAsThatIsThere(t *testing.T) {
	c := newCluster(t)
	victim, thief := newMachine(t, "agent-0"), newMachine(t, "agent-1")
	tok := c.token(t, token.Agent, time.Hour)
	if _, err := victim.join(t, c, tok); err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		if w, err := thief.join(t, c, tok); !errs.Is(err, errs.Denied) || !strings.Contains(err.Error(), "is that of node agent-0") || len(w.Certificates) > 0 {
			t.Errorf("%s: %v", when, err)
		}
	}
	refused("before the other one is registered")
	c.nodes["agent-0"] = Node{Name: "agent-0", Ready: true, Addresses: []netip.Addr{victim.req.IP}}
	c.now = c.now.Add(time.Hour / 2)
	refused("while the other one is there")
	own := netip.MustParseAddr("10.0.0.31")
	thief.req.IP = own
	if _, err := thief.join(t, c, tok); err != nil {
		t.Fatal(err)
	}
	thief.req.IP = netip.MustParseAddr("::ffff:10.0.0.30")
	refused("as one that has joined, in another form")
	if c.bindings["agent-1"].IP != own {
		t.Errorf("kept %v", c.bindings["agent-1"].IP)
	}
	// The whole site was off, and the addresses were given out anew.
	c.nodes["agent-0"] = Node{Name: "agent-0", Addresses: []netip.Addr{victim.req.IP}}
	if _, err := thief.join(t, c, nil); err != nil || c.bindings["agent-1"].IP != victim.req.IP {
		t.Errorf("with the address of a node that is not there: %v", err)
	}
}

func TestWhoOnlyAsksWhatHasChangedGetsNoCertificates(t *testing.T) {
	c, m := newCluster(t), newMachine(t, "agent-0")
	if _, err := m.join(t, c, c.token(t, token.Agent, time.Hour)); err != nil {
		t.Fatal(err)
	}
	before := c.bindings["agent-0"]
	m.req.CSRs = nil
	w, err := m.join(t, c, nil)
	if err != nil || len(w.Certificates) != 0 || len(w.Servers) != 2 || len(w.Settings) == 0 || c.bindings["agent-0"] != before {
		t.Errorf("%+v, %v", w, err)
	}
}

func TestTheKeyOfTheCAIsReadForMachinesThatAreLetInOnly(t *testing.T) {
	c := newCluster(t)
	open, read := c.server.Authority, 0
	c.server.Authority = func() (Authority, error) { read++; return open() }
	ca, err := pki.ReadCA(c.paths)
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, "agent-0")
	if _, err := (Client{Server: c.addr, CAs: []*x509.Certificate{ca}}).Ask(t.Context(), m.identity, m.req, nil); !errs.Is(err, errs.Denied) || read != 0 {
		t.Errorf("without a token: %v, and the key was read %d times", err, read)
	}
	if _, err := m.join(t, c, c.token(t, token.Agent, time.Hour)); err != nil || read != 1 {
		t.Errorf("with one: %v, and the key was read %d times", err, read)
	}
}

func TestOfManyMachinesOfOneNameOneJoins(t *testing.T) {
	c := newCluster(t)
	tok := c.token(t, token.Agent, time.Hour)
	const n = 8
	results := make(chan error, n)
	for range n {
		m := newMachine(t, "agent-0")
		go func() {
			_, err := m.join(t, c, tok)
			results <- err
		}()
	}
	in := 0
	for range n {
		if err := <-results; err == nil {
			in++
		} else if !errs.Is(err, errs.Denied) {
			t.Errorf("%v", err)
		}
	}
	if in != 1 {
		t.Errorf("%d of %d joined", in, n)
	}
}

func TestARequestThatItsIdentityHasNotSignedIsRefused(t *testing.T) {
	c, m, thief := newCluster(t), newMachine(t, "agent-0"), newMachine(t, "agent-0")
	if _, err := m.join(t, c, c.token(t, token.Agent, time.Hour)); err != nil {
		t.Fatal(err)
	}
	// The thief knows the public half.
	r := m.req
	var err error
	if r.Identity, err = x509.MarshalPKIXPublicKey(m.identity.Public()); err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := sign(thief.identity, pathNode, body)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := sign(m.identity, pathNode, body)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Replace(body, []byte("10.0.0.30"), []byte("10.0.0.31"), 1)
	for name, tc := range map[string]struct {
		body []byte
		sig  string
	}{"another key": {body, theirs}, "nothing": {body, ""}, "another body": {changed, ours}} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, pathNode, bytes.NewReader(tc.body))
		req.Header.Set(signatureHeader, tc.sig)
		w := httptest.NewRecorder()
		c.server.Handler().ServeHTTP(w, req)
		if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "not signed") {
			t.Errorf("signed by %s: %d %s", name, w.Code, w.Body)
		}
	}
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, pathNode, bytes.NewReader(body))
	req.Header.Set(signatureHeader, ours)
	w := httptest.NewRecorder()
	if c.server.Handler().ServeHTTP(w, req); w.Code != http.StatusOK {
		t.Errorf("signed by its own: %d %s", w.Code, w.Body)
	}
}

func TestAServerThatCannotDecideIsAskedAgain(t *testing.T) {
	c, m := newCluster(t), newMachine(t, "agent-0")
	tok := c.token(t, token.Agent, time.Hour)
	c.broken = errors.New("the database is away")
	_, err := m.join(t, c, tok)
	var away *Unreachable
	if !errors.As(err, &away) || !strings.Contains(err.Error(), "the database is away") {
		t.Errorf("%v", err)
	}
	c.broken = nil
	if _, err := m.join(t, c, tok); err != nil {
		t.Error(err)
	}
	// Nobody there, and somebody else there.
	for _, h := range []http.Handler{http.NotFoundHandler(), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })} {
		other := httptest.NewUnstartedServer(h)
		other.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(io.Discard, nil), slog.LevelError)
		other.StartTLS()
		_, err := Client{Server: strings.TrimPrefix(other.URL, "https://")}.Ask(t.Context(), m.identity, m.req, tok)
		if !errors.As(err, &away) {
			t.Errorf("%v", err)
		}
		other.Close()
		if _, err = (Client{Server: strings.TrimPrefix(other.URL, "https://")}).Ask(t.Context(), m.identity, m.req, tok); !errors.As(err, &away) {
			t.Errorf("%v", err)
		}
	}
}

func TestAnAnswerThatDoesNotFitIsNotInstalled(t *testing.T) {
	c, m := newCluster(t), newMachine(t, "agent-0")
	w, err := m.join(t, c, c.token(t, token.Agent, time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	foreign := newMachine(t, "agent-1")
	foreign.req.IP = netip.MustParseAddr("10.0.0.31")
	fw, err := foreign.join(t, c, c.token(t, token.Agent, time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	other := newCluster(t)
	oca, err := other.server.Authority()
	if err != nil {
		t.Fatal(err)
	}
	missing := map[string][]byte{pki.KubeletClient: w.Certificates[pki.KubeletClient]}
	for name, tc := range map[string]struct {
		ca    []byte
		certs map[string][]byte
	}{"for another key": {w.CA, fw.Certificates}, "of another CA": {oca.PEM(), w.Certificates}, "missing": {w.CA, missing}, "without a CA": {nil, w.Certificates}} {
		if err := m.requests.Install(t.Context(), m.paths, tc.ca, tc.certs); err == nil {
			t.Errorf("certificates %s were installed", name)
		}
		if due := pki.DueOf(m.paths, pki.JoinedLeaves("agent-0", m.req.IP), time.Now()); due.Usable {
			t.Errorf("certificates %s were written", name)
		}
	}
}

func TestAddressesOfServers(t *testing.T) {
	for in, want := range map[string]string{
		"https://10.0.0.1:6443": "10.0.0.1:6443", "https://k8s.example/": "k8s.example:6443", "10.0.0.1": "10.0.0.1:6443", "k8s.example:7443": "k8s.example:7443",
		"2001:db8::1": "[2001:db8::1]:6443", "https://[2001:db8::1]:443": "[2001:db8::1]:443",
		"": "", "http://10.0.0.1": "", "https://": "", "https://a:0": "", "https://a:99999": "", "https://u:p@a": "", "https://a/x": "", "a b": "",
	} {
		got, err := Address(in)
		if got != want || (err == nil) != (want != "") || err != nil && !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

// replaced brings the cluster's CA into a phase of a replacement.
func (c *cluster) replaced(t *testing.T, all []pki.Replacement, phase pki.Phase) {
	t.Helper()
	if err := pki.InstallReplacement(t.Context(), c.paths, all, phase); err != nil {
		t.Fatal(err)
	}
	_, err := pki.Ensure(t.Context(), pki.Request{
		Paths: c.paths, NodeName: "server-0", NodeIP: netip.MustParseAddr("10.0.0.1"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), All: phase == pki.TrustNew,
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestMachinesFindTheWayToAClusterThatHasReplacedItsCA(t *testing.T) {
	c := newCluster(t)
	old := c.token(t, token.Agent, time.Hour)
	there, away := newMachine(t, "agent-0"), newMachine(t, "agent-1")
	away.req.IP = netip.MustParseAddr("10.0.0.31")
	for _, m := range []*machine{there, away} {
		w, err := m.join(t, c, old)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.requests.Install(t.Context(), m.paths, w.CA, w.Certificates); err != nil {
			t.Fatal(err)
		}
	}
	// asks is what a daemon does: it trusts what it is told, and tells that it does.
	asks := func(m *machine) (Welcome, error) {
		cas, err := pki.ReadTrusted(m.paths)
		if err != nil {
			t.Fatal(err)
		}
		r := m.req
		r.CSRs, r.Trusts, r.Issuer = nil, pki.Pins(cas), pki.IssuerOf(m.paths, pki.JoinedLeaves(m.req.Node, m.req.IP))
		w, err := Client{Server: c.addr, CAs: cas}.Ask(t.Context(), m.identity, r, nil)
		if err == nil {
			err = pki.Trust(t.Context(), m.paths, w.CA)
		}
		return w, err
	}
	all, err := pki.PrepareReplacement(t.Context(), c.paths, "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	first, second := all[0].Old, all[0].New

	c.replaced(t, all, pki.TrustBoth)
	for range 2 {
		if _, err := asks(there); err != nil {
			t.Fatal(err)
		}
	}
	if b := c.bindings["agent-0"]; b.Trusts != first+" "+second || b.Issuer != first {
		t.Errorf("of a node that has learned of the new CA is kept that it trusts %s, and has certificates of %s", b.Trusts, b.Issuer)
	}
	version := c.bindings["agent-0"].Version
	if _, err := asks(there); err != nil || c.bindings["agent-0"].Version != version {
		t.Errorf("a node that has no news is kept again: %v", err)
	}

	c.replaced(t, all, pki.SignNew)
	// A kill between the CA and the certificates leaves those of the old one, which is trusted still.
	if _, err := asks(there); err != nil {
		t.Fatal(err)
	}
	leaves := pki.JoinedLeaves(there.req.Node, there.req.IP)
	if due := pki.DueOf(there.paths, leaves, time.Now()); len(due.Changes) != len(leaves) || !due.Usable {
		t.Errorf("it does not start while no server answers: due are %v", due.Changes)
	}
	if due := pki.DueOf(there.paths, leaves, time.Now().Add(40*24*time.Hour)); due.Usable {
		t.Error("certificates of the old CA that have ended count as usable")
	}
	if got := pki.IssuerOf(there.paths, leaves); got != first {
		t.Errorf("its certificates are of %s", got)
	}
	// What was handed out may not have arrived.
	lost := there.req
	lost.Trusts, lost.Issuer = nil, first
	if _, err := (Client{Server: c.addr, CAs: mustTrusted(t, there)}).Ask(t.Context(), there.identity, lost, nil); err != nil || c.bindings["agent-0"].Issuer != first {
		t.Errorf("certificates that are on their way count as the node's: %s, %v", c.bindings["agent-0"].Issuer, err)
	}
	c.replaced(t, all, pki.TrustNew)
	again, err := pki.PrepareReplacement(t.Context(), c.paths, "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, phase := range []pki.Phase{pki.TrustBoth, pki.SignNew, pki.TrustNew} {
		c.replaced(t, again, phase)
	}
	third := again[0].New
	for name, m := range map[string]*machine{"one that knows one CA of two": there, "one that was away during both replacements": away} {
		if _, err := asks(m); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if cas, err := pki.ReadTrusted(m.paths); err != nil || !slices.Equal(pki.Pins(cas), []string{third}) {
			t.Errorf("%s trusts %d, %v", name, len(cas), err)
		}
		due := pki.DueOf(m.paths, pki.JoinedLeaves(m.req.Node, m.req.IP), time.Now())
		if len(due.Changes) != 4 || due.Changes[0].Reason != "signed by another authority" {
			t.Errorf("%s: due are %v", name, due.Changes)
		}
	}
	late := newMachine(t, "agent-2")
	late.req.IP = netip.MustParseAddr("10.0.0.32")
	if _, err := late.join(t, c, old); err != nil {
		t.Errorf("a machine with a token from before both: %v", err)
	}
	if got := c.bindings["agent-2"].Issuer; got != "" {
		t.Errorf("before it says so it has certificates of %s", got)
	}

	// A cluster that has nothing to do with it is not believed.
	stranger := newCluster(t)
	if _, err := (Client{Server: stranger.addr, CAs: mustTrusted(t, there)}).Ask(t.Context(), there.identity, there.req, nil); !errs.Is(err, errs.Denied) {
		t.Errorf("another cluster: %v", err)
	}
	// Of a database that was restored it is not known any more what certificates a node has.
	b := c.bindings["agent-2"]
	b.Issuer = first
	c.bindings["agent-2"] = b
	restored := late.req
	restored.CSRs, restored.Trusts, restored.Issuer = nil, slices.Repeat([]string{third}, 9), third
	if _, err := (Client{Server: c.addr, CAs: mustTrusted(t, there)}).Ask(t.Context(), late.identity, restored, nil); err != nil {
		t.Fatal(err)
	}
	if b := c.bindings["agent-2"]; b.Issuer != third || len(strings.Fields(b.Trusts)) != 8 {
		t.Errorf("kept is that its certificates are of %s, and that it trusts %s", b.Issuer, b.Trusts)
	}
	r := there.req
	r.CSRs, r.Issuer = nil, "everybody"
	if _, err := (Client{Server: c.addr, CAs: mustTrusted(t, there)}).Ask(t.Context(), there.identity, r, nil); !errs.Is(err, errs.Invalid) {
		t.Errorf("an issuer that is none: %v", err)
	}
	r = there.req
	r.Trusts = []string{"everybody"}
	if _, err := (Client{Server: c.addr, CAs: mustTrusted(t, there)}).Ask(t.Context(), there.identity, r, nil); !errs.Is(err, errs.Invalid) {
		t.Errorf("a pin that is none: %v", err)
	}
}

func mustTrusted(t *testing.T, m *machine) []*x509.Certificate {
	t.Helper()
	cas, err := pki.ReadTrusted(m.paths)
	if err != nil {
		t.Fatal(err)
	}
	return cas
}
