package join

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/token"
)

// seats is a Members that remembers.
type seats struct {
	asked    []Member
	promoted []Member
	refuse   error
}

func (s *seats) Join(_ context.Context, m Member) (Membership, error) {
	s.asked = append(s.asked, m)
	return Membership{Engine: "etcd", InitialCluster: "server-0=https://10.0.0.1:2380," + m.Name + "=" + m.PeerURL}, s.refuse
}

func (s *seats) Promote(_ context.Context, m Member) error {
	s.promoted = append(s.promoted, m)
	return s.refuse
}

// ofServers is a cluster that lets servers in.
func ofServers(t *testing.T) (*cluster, *seats) {
	t.Helper()
	c := newCluster(t)
	_, err := pki.Ensure(t.Context(), pki.Request{
		Paths: c.paths, NodeName: "server-0", NodeIP: netip.MustParseAddr("10.0.0.1"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), Etcd: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &seats{}
	c.server.Members = s
	c.server.Bootstrap = func(context.Context) (Bootstrap, error) {
		keys, err := pki.ReadBundle(c.paths)
		return Bootstrap{Keys: keys, Encryption: []byte("keys of secrets"), Datastore: Datastore{Engine: "etcd"}}, err
	}
	return c, s
}

func newServer(t *testing.T, name string) *machine {
	t.Helper()
	m := newMachine(t, name)
	m.req.Role, m.req.CSRs, m.req.IP = token.Server, nil, netip.MustParseAddr("10.0.0.2")
	return m
}

func (m *machine) joinAsServer(t *testing.T, c *cluster, tok *token.Token) (Welcome, Bootstrap, error) {
	t.Helper()
	return Client{Server: c.addr}.AskKeys(t.Context(), m.identity, m.req, *tok)
}

func TestAServerGetsTheKeysOfItsClusterAndAPlaceInItsDatastore(t *testing.T) {
	c, s := ofServers(t)
	m := newServer(t, "server-1")
	tok := c.token(t, token.Server, time.Hour)
	w, b, err := m.joinAsServer(t, c, tok)
	if err != nil {
		t.Fatal(err)
	}
	if string(b.Encryption) != "keys of secrets" || b.Datastore.Engine != "etcd" {
		t.Errorf("got %q, %+v", b.Encryption, b.Datastore)
	}
	if err := b.Keys.Install(t.Context(), m.paths); err != nil {
		t.Fatal(err)
	}
	theirs, _ := pki.ReadBundle(c.paths)
	ours, err := pki.ReadBundle(m.paths)
	if err != nil || len(ours) != len(theirs) {
		t.Fatalf("%d files of %d, %v", len(ours), len(theirs), err)
	}
	for name, content := range theirs {
		if !bytes.Equal(ours[name], content) {
			t.Errorf("%s differs", name)
		}
	}
	// With them it is a server like the first one.
	report, err := pki.Ensure(t.Context(), pki.Request{
		Paths: m.paths, NodeName: "server-1", NodeIP: m.req.IP, ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), Etcd: true,
	})
	if err != nil || len(report.Issued) < 10 {
		t.Errorf("its certificates: %d, %v", len(report.Issued), err)
	}
	bind := c.bindings["server-1"]
	if bind.Role != token.Server || bind.Token != tok.ID || bind.Until.Year() != 9999 {
		t.Errorf("kept %+v", bind)
	}
	// What went over the line holds none of the keys.
	wire, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"PRIVATE KEY", "keys of secrets"} {
		if strings.Contains(string(wire), secret) {
			t.Errorf("the answer has %q in it", secret)
		}
	}
	ca, err := pki.ReadCA(m.paths)
	if err != nil {
		t.Fatal(err)
	}
	client := Client{Server: c.addr, CAs: []*x509.Certificate{ca}}
	member := MemberRequest{Node: "server-1", Member: Member{Name: "server-1-0a1b2c3d", PeerURL: "https://10.0.0.2:2380"}}
	got, err := client.Member(t.Context(), m.identity, member)
	if err != nil || got.InitialCluster != "server-0=https://10.0.0.1:2380,server-1-0a1b2c3d=https://10.0.0.2:2380" {
		t.Errorf("member: %+v, %v", got, err)
	}
	member.Promote = true
	if _, err := client.Member(t.Context(), m.identity, member); err != nil || len(s.promoted) != 1 {
		t.Errorf("promoted %v, %v", s.promoted, err)
	}
	// What passes is asked again.
	s.refuse = errs.New(errs.NotRunning, "the first server moves its datastore")
	var away *Unreachable
	if _, err := client.Member(t.Context(), m.identity, member); !errors.As(err, &away) || !strings.Contains(err.Error(), "moves its datastore") {
		t.Errorf("not yet: %v", err)
	}
}

func TestAServerWithOtherSettingsIsRefusedBeforeItHasTheKeys(t *testing.T) {
	c, _ := ofServers(t)
	bootstrap, given := c.server.Bootstrap, 0
	c.server.Bootstrap = func(ctx context.Context) (Bootstrap, error) { given++; return bootstrap(ctx) }
	m := newServer(t, "server-1")
	conf := config.Default()
	conf.Spec.Network.ServiceCIDR = "10.44.0.0/16"
	m.req.Settings = config.Chosen(conf)
	_, _, err := m.joinAsServer(t, c, c.token(t, token.Server, time.Hour))
	if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), `spec.network.serviceCIDR is "10.44.0.0/16" here and "10.43.0.0/16" in the cluster`) {
		t.Errorf("%v", err)
	}
	if _, bound := c.bindings["server-1"]; bound || given != 0 {
		t.Errorf("bound %v, given %d times", bound, given)
	}
	// Who has no token is told nothing about settings.
	ca, caErr := pki.ReadCA(c.paths)
	if caErr != nil {
		t.Fatal(caErr)
	}
	_, err = Client{Server: c.addr, CAs: []*x509.Certificate{ca}}.Ask(t.Context(), m.identity, m.req, nil)
	if !errs.Is(err, errs.Denied) || strings.Contains(err.Error(), "10.43") {
		t.Errorf("without a token: %v", err)
	}
	conf.Spec.Network.ServiceCIDR = "10.43.0.0/16"
	m.req.Settings = config.Chosen(conf)
	m.req.Settings["spec.later"] = []byte(`"something only this one knows"`)
	if _, _, err := m.joinAsServer(t, c, c.token(t, token.Server, time.Hour)); err != nil || given != 1 {
		t.Errorf("with the cluster's: %v, given %d times", err, given)
	}
}

func TestOneThatIsBeingRemovedWaitsUntilThatIsDone(t *testing.T) {
	c, s := ofServers(t)
	m, agent := newServer(t, "server-1"), newMachine(t, "agent-0")
	tok := c.token(t, token.Server, time.Hour)
	if _, _, err := m.joinAsServer(t, c, tok); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.join(t, c, c.token(t, token.Agent, time.Hour)); err != nil {
		t.Fatal(err)
	}
	ca, err := pki.ReadCA(c.paths)
	if err != nil {
		t.Fatal(err)
	}
	client := Client{Server: c.addr, CAs: []*x509.Certificate{ca}}
	member := MemberRequest{Node: "server-1", Member: Member{Name: "server-1-0a1b2c3d", PeerURL: "https://10.0.0.2:2380"}}
	ask := map[string]func() error{
		"for the keys of the cluster": func() error { _, _, err := m.joinAsServer(t, c, tok); return err },
		"for its place":               func() error { _, err := client.Member(t.Context(), m.identity, member); return err },
		"for certificates":            func() error { _, err := agent.join(t, c, nil); return err },
	}
	leaving := func(since time.Time) {
		for _, name := range []string{"server-1", "agent-0"} {
			b := c.bindings[name]
			b.Leaving = since
			c.bindings[name] = b
		}
	}
	leaving(c.now)
	// A machine in its place has the name when that is free, and is told nothing without a token.
	var away *Unreachable
	if _, err := newMachine(t, "agent-0").join(t, c, c.token(t, token.Agent, time.Hour)); !errors.As(err, &away) || !strings.Contains(err.Error(), "is being removed from the cluster") {
		t.Errorf("another machine: %v", err)
	}
	if _, err := newMachine(t, "agent-0").join(t, c, nil); err == nil || errors.As(err, &away) || strings.Contains(err.Error(), "is being removed") {
		t.Errorf("another machine without a token: %v", err)
	}
	for what, try := range ask {
		var away *Unreachable
		if err := try(); !errors.As(err, &away) || !strings.Contains(err.Error(), "is being removed from the cluster") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if len(s.asked) != 0 || c.bindings["server-1"].Leaving.IsZero() || c.bindings["agent-0"].Leaving.IsZero() {
		t.Errorf("somebody was let in: %v, %+v", s.asked, c.bindings)
	}
	leaving(time.Time{}) // the removal was refused
	for what, try := range ask {
		if err := try(); err != nil {
			t.Errorf("%s, afterwards: %v", what, err)
		}
	}
}

func TestWhoMayNotBeAServerIsToldWhyAndGetsNothing(t *testing.T) {
	c, s := ofServers(t)
	tok := c.token(t, token.Server, time.Hour)
	agent, agentToken := newMachine(t, "agent-0"), c.token(t, token.Agent, time.Hour)
	if _, err := agent.join(t, c, agentToken); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		tok    *token.Token
		change func(*machine)
		says   string
	}{
		"a token for agents":     {agentToken, func(*machine) {}, "is for joining as agent, not as server"},
		"another minor version":  {tok, func(m *machine) { m.req.Kubernetes = "v1.35.1" }, "v1.35.1 and the cluster's servers v1.36.3"},
		"an agent's name":        {tok, func(m *machine) { m.req.Node = "agent-0" }, "belongs to another machine"},
		"an agent that is one":   {tok, func(m *machine) { m.req.Node, m.identity = "agent-0", agent.identity }, "a node of the cluster already, as agent"},
		"the first one's name":   {tok, func(m *machine) { m.req.Node = "server-0" }, "is that of a server"},
		"with certificates":      {tok, func(m *machine) { m.req.CSRs = agent.req.CSRs }, "issues its certificates itself"},
		"an agent for the keys":  {agentToken, func(m *machine) { m.req.Role = token.Agent }, "only a server asks for"},
		"the address of a node":  {tok, func(m *machine) { m.req.IP = agent.req.IP }, "is that of node agent-0"},
		"an address of services": {tok, func(m *machine) { m.req.IP = netip.MustParseAddr("10.43.0.9") }, "one of the cluster's pods or services"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newServer(t, "server-1")
			tc.change(m)
			w, b, err := m.joinAsServer(t, c, tc.tok)
			var away *Unreachable
			if err == nil || errors.As(err, &away) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %q", err, tc.says)
			}
			if w.Envelope != nil || b.Keys != nil {
				t.Error("it got something")
			}
		})
	}
	if len(c.bindings) != 1 {
		t.Errorf("kept %v", c.bindings)
	}
	// A server is a member under its own name and at its own address only.
	m := newServer(t, "server-1")
	if _, _, err := m.joinAsServer(t, c, tok); err != nil {
		t.Fatal(err)
	}
	ca, _ := pki.ReadCA(c.paths)
	client := Client{Server: c.addr, CAs: []*x509.Certificate{ca}}
	for name, tc := range map[string]struct {
		who     *machine
		request MemberRequest
		says    string
	}{
		"somebody else's name":    {m, MemberRequest{Node: "server-1", Member: Member{Name: "server-2-0a1b2c3d", PeerURL: "https://10.0.0.2:2380"}}, "cannot be the member"},
		"somebody else's address": {m, MemberRequest{Node: "server-1", Member: Member{Name: "server-1-0a1b2c3d", PeerURL: "https://10.0.0.9:2380"}}, "cannot be the member"},
		"no TLS":                  {m, MemberRequest{Node: "server-1", Member: Member{Name: "server-1-0a1b2c3d", PeerURL: "http://10.0.0.2:2380"}}, "cannot be the member"},
		"an agent":                {agent, MemberRequest{Node: "agent-0", Member: Member{Name: "agent-0-0a1b2c3d", PeerURL: "https://10.0.0.30:2380"}}, "is no server"},
		"a stranger":              {newServer(t, "server-1"), MemberRequest{Node: "server-1", Member: Member{Name: "server-1-0a1b2c3d", PeerURL: "https://10.0.0.2:2380"}}, "is no server"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := client.Member(t.Context(), tc.who.identity, tc.request); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %q", err, tc.says)
			}
		})
	}
	if len(s.asked)+len(s.promoted) > 0 {
		t.Errorf("asked of the datastore: %v %v", s.asked, s.promoted)
	}
	// The same machine may ask again, with a token only.
	if _, _, err := m.joinAsServer(t, c, tok); err != nil {
		t.Errorf("asking again: %v", err)
	}
	delete(c.tokens, tok.ID)
	if _, _, err := m.joinAsServer(t, c, tok); err == nil || !strings.Contains(err.Error(), "is not known") {
		t.Errorf("asking again without: %v", err)
	}
}

func TestAnEnvelopeOpensForItsRequestAndTokenOnly(t *testing.T) {
	c := newCluster(t)
	tok, other := *c.token(t, token.Server, time.Hour), *c.token(t, token.Server, time.Hour)
	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	another, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	what := Bootstrap{Encryption: []byte("secret")}
	e, err := seal(what, tok, "server-1", own.PublicKey().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := e.open(tok, "server-1", own); err != nil || string(b.Encryption) != "secret" {
		t.Errorf("opened %q, %v", b.Encryption, err)
	}
	changed := e
	changed.Sealed = bytes.Clone(e.Sealed)
	changed.Sealed[len(changed.Sealed)-1] ^= 1
	short := e
	short.Sealed = e.Sealed[:8]
	salted := e
	salted.Salt = make([]byte, saltLength)
	for name, open := range map[string]func() (Bootstrap, error){
		"another token": func() (Bootstrap, error) { return e.open(other, "server-1", own) },
		"another key":   func() (Bootstrap, error) { return e.open(tok, "server-1", another) },
		"another node":  func() (Bootstrap, error) { return e.open(tok, "server-2", own) },
		"changed":       func() (Bootstrap, error) { return changed.open(tok, "server-1", own) },
		"cut off":       func() (Bootstrap, error) { return short.open(tok, "server-1", own) },
		"another salt":  func() (Bootstrap, error) { return salted.open(tok, "server-1", own) },
		"empty":         func() (Bootstrap, error) { return Envelope{}.open(tok, "server-1", own) },
	} {
		if b, err := open(); !errs.Is(err, errs.Denied) || b.Encryption != nil {
			t.Errorf("%s: %q, %v", name, b.Encryption, err)
		}
	}
	again, err := seal(what, tok, "server-1", own.PublicKey().Bytes())
	if err != nil || bytes.Equal(again.Sealed, e.Sealed) || bytes.Equal(again.Salt, e.Salt) || bytes.Equal(again.Public, e.Public) {
		t.Errorf("the same thing sealed twice looks the same (%v)", err)
	}
	for _, bad := range [][]byte{nil, {1, 2, 3}, make([]byte, 32)} { // the last is a point of low order: it shares nothing
		if _, err := seal(what, tok, "server-1", bad); !errs.Is(err, errs.Invalid) {
			t.Errorf("sealed for %x: %v", bad, err)
		}
	}
}

func TestTheFirstServerKeepsItsOwnName(t *testing.T) {
	identity, err := pki.Identity(paths.Paths{Data: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	now, ip := time.Now(), netip.MustParseAddr("10.0.0.1")
	b, err := OwnBinding("server-0", ip, identity, nil, now)
	if err != nil || b == nil || b.Role != token.Server || b.Version != "" {
		t.Fatalf("%+v, %v", b, err)
	}
	b.Version = "7"
	if again, err := OwnBinding("server-0", ip, identity, []Binding{*b}, now); err != nil || again != nil {
		t.Errorf("kept again: %+v, %v", again, err)
	}
	moved, err := OwnBinding("server-0", netip.MustParseAddr("10.0.0.5"), identity, []Binding{*b}, now)
	if err != nil || moved == nil || moved.Version != "7" || moved.IP.String() != "10.0.0.5" {
		t.Errorf("at another address: %+v, %v", moved, err)
	}
	// Its address is nobody else's, also while it is away.
	c := claims{bindings: []Binding{*b}, nodes: []Node{{Name: "server-0"}}}
	if err := c.address("agent-0", ip, now.Add(time.Hour)); !errs.Is(err, errs.Denied) {
		t.Errorf("an agent at its address: %v", err)
	}
}

func TestAServerGetsTheKeysOfSecretsAndNobodyElse(t *testing.T) {
	c, _ := ofServers(t)
	c.server.Secrets = func() ([]byte, error) { return []byte("the newest keys of secrets"), nil }
	m, tok := newServer(t, "server-1"), c.token(t, token.Server, time.Hour)
	if _, _, err := m.joinAsServer(t, c, tok); err != nil {
		t.Fatal(err)
	}
	delete(c.tokens, tok.ID) // it needs none any more
	agent := newMachine(t, "agent-0")
	if _, err := agent.join(t, c, c.token(t, token.Agent, time.Hour)); err != nil {
		t.Fatal(err)
	}
	cas, err := pki.ReadTrusted(c.paths)
	if err != nil {
		t.Fatal(err)
	}
	client := Client{Server: c.addr, CAs: cas}
	if got, err := client.Keys(t.Context(), m.identity, "server-1"); err != nil || string(got) != "the newest keys of secrets" {
		t.Errorf("got %q, %v", got, err)
	}
	for name, ask := range map[string]func() ([]byte, error){
		"an agent":         func() ([]byte, error) { return client.Keys(t.Context(), agent.identity, "agent-0") },
		"as somebody else": func() ([]byte, error) { return client.Keys(t.Context(), agent.identity, "server-1") },
		"a stranger":       func() ([]byte, error) { return client.Keys(t.Context(), newServer(t, "x").identity, "server-2") },
		"a server of the past": func() ([]byte, error) {
			delete(c.bindings, "server-1")
			return client.Keys(t.Context(), m.identity, "server-1")
		},
	} {
		var removed *NoServer
		if got, err := ask(); !errs.Is(err, errs.Denied) || !errors.As(err, &removed) || got != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	// Who answers with another cluster's certificate does not say that.
	strange := Client{Server: newCluster(t).addr, CAs: cas}
	var removed *NoServer
	if got, err := strange.Keys(t.Context(), m.identity, "server-1"); !errs.Is(err, errs.Denied) || errors.As(err, &removed) || got != nil {
		t.Errorf("another cluster's server: %q, %v", got, err)
	}
	// What goes over the line is sealed for the request.
	k, err := sealed([]byte("the newest keys of secrets"), keysInfo, token.Token{}, "server-1", []byte{1})
	if !errs.Is(err, errs.Invalid) || k.Sealed != nil {
		t.Errorf("sealed for nobody: %v", err)
	}
	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if k, err = sealed([]byte("the newest keys of secrets"), keysInfo, token.Token{}, "server-1", own.PublicKey().Bytes()); err != nil || bytes.Contains(k.Sealed, []byte("keys")) {
		t.Errorf("sealed %q, %v", k.Sealed, err)
	}
	if _, err := k.open(token.Token{}, "server-1", own); err == nil {
		t.Error("it opens as the keys of a cluster")
	}
}

func TestAServerGetsTheKeysOfNewAuthoritiesAndNobodyElse(t *testing.T) {
	c, _ := ofServers(t)
	c.server.Authorities = func() (Authorities, error) {
		return Authorities{State: []byte(`{"version":1}`), Runs: "1-trusting", Ready: true}, nil
	}
	c.server.NewAuthorities = func() (pki.Bundle, error) { return pki.Bundle{"new/ca.key": []byte("a new key")}, nil }
	m := newServer(t, "server-1")
	if _, _, err := m.joinAsServer(t, c, c.token(t, token.Server, time.Hour)); err != nil {
		t.Fatal(err)
	}
	agent := newMachine(t, "agent-0")
	if _, err := agent.join(t, c, c.token(t, token.Agent, time.Hour)); err != nil {
		t.Fatal(err)
	}
	cas, err := pki.ReadTrusted(c.paths)
	if err != nil {
		t.Fatal(err)
	}
	client := Client{Server: c.addr, CAs: cas}
	if a, err := client.Authorities(t.Context(), m.identity, "server-1"); err != nil || a.Runs != "1-trusting" || !a.Ready || a.Envelope != nil {
		t.Errorf("how far it is: %+v, %v", a, err)
	}
	if got, err := client.AuthorityKeys(t.Context(), m.identity, "server-1"); err != nil || string(got["new/ca.key"]) != "a new key" {
		t.Errorf("the keys: %v, %v", got, err)
	}
	stranger := newServer(t, "server-2")
	for who, ask := range map[string]func() error{
		"an agent, for keys":         func() error { _, err := client.AuthorityKeys(t.Context(), agent.identity, "agent-0"); return err },
		"an agent":                   func() error { _, err := client.Authorities(t.Context(), agent.identity, "agent-0"); return err },
		"an agent, as somebody else": func() error { _, err := client.AuthorityKeys(t.Context(), agent.identity, "server-1"); return err },
		"a stranger":                 func() error { _, err := client.AuthorityKeys(t.Context(), stranger.identity, "server-2"); return err },
	} {
		if err := ask(); !errs.Is(err, errs.Denied) || !errors.As(err, new(*NoServer)) {
			t.Errorf("%s: %v", who, err)
		}
	}
	c.server.NewAuthorities = func() (pki.Bundle, error) { return nil, errs.New(errs.NotFound, "this server has none") }
	if got, err := client.AuthorityKeys(t.Context(), m.identity, "server-1"); !errs.Is(err, errs.NotFound) || got != nil {
		t.Errorf("there are none: %v, %v", got, err)
	}
}
