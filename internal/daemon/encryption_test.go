package daemon

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/encryption"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/token"
)

// preparing is a daemon that is about to write what an API server starts with.
func preparing(t *testing.T, provider string) (*Daemon, component.Input) {
	t.Helper()
	p := paths.Paths{Data: t.TempDir()}
	in := component.Input{Paths: p}
	in.Config.Spec.Datastore.Endpoint = "sqlite"
	in.Config.Spec.Secrets.Encryption = provider
	return &Daemon{in: in, board: health.NewBoard(time.Now)}, in
}

func providers(t *testing.T, p paths.Paths) string {
	t.Helper()
	b, err := os.ReadFile(p.EncryptionConfig())
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(p.EncryptionConfig())
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	return string(b)
}

func TestANodeThatIsNotAskedWritesNoKey(t *testing.T) {
	d, in := preparing(t, "")
	if err := d.prepareEncryption(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	if got := providers(t, in.Paths); got != string(encryption.State{}.File()) {
		t.Errorf("configuration %s", got)
	}
	if _, err := os.Stat(in.Paths.EncryptionKeys()); !os.IsNotExist(err) {
		t.Errorf("there is a file of keys: %v", err)
	}
	if p := d.encryptionProblems(); len(p) > 0 {
		t.Errorf("problems: %v", p)
	}
}

func TestOnlyANewClusterStartsWithANewKey(t *testing.T) {
	d, in := preparing(t, "secretbox")
	if err := d.prepareEncryption(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	first := providers(t, in.Paths)
	if !strings.Contains(first, "secretbox") {
		t.Errorf("a new cluster: %s", first)
	}
	if err := d.prepareEncryption(t.Context(), in); err != nil || providers(t, in.Paths) != first {
		t.Errorf("the next start has another key (%v)", err)
	}
	d, in = preparing(t, "secretbox")
	if err := os.MkdirAll(in.Paths.DB(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(in.Paths.DB(), "state.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.prepareEncryption(t.Context(), in); err != nil || strings.Contains(providers(t, in.Paths), "secretbox") {
		t.Errorf("a cluster with a database got a key before its Secrets were read (%v)", err)
	}
}

func TestLostOrDamagedKeysAreNeverReplaced(t *testing.T) {
	for name, damage := range map[string]func(string) error{
		"cut":   func(f string) error { return os.Truncate(f, 100) },
		"empty": func(f string) error { return os.Truncate(f, 0) },
		"gone":  os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			d, in := preparing(t, "aescbc")
			if err := d.prepareEncryption(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			before := providers(t, in.Paths)
			if err := damage(in.Paths.EncryptionKeys()); err != nil {
				t.Fatal(err)
			}
			if p := d.encryptionProblems(); len(p) != 1 || p[0].Code != health.EncryptionKeys {
				t.Errorf("while it runs: %v", p)
			}
			err := d.prepareEncryption(t.Context(), in)
			if hint, _ := errs.HintOf(err); err == nil || !strings.Contains(hint, "backup") {
				t.Errorf("at the next start: %v, hint %q", err, hint)
			}
			if providers(t, in.Paths) != before {
				t.Error("the API server's copy was replaced")
			}
		})
	}
}

func TestAChangedCopyIsWrittenAgainAtTheNextStart(t *testing.T) {
	d, in := preparing(t, "aescbc")
	if err := d.prepareEncryption(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	before := providers(t, in.Paths)
	if err := os.WriteFile(in.Paths.EncryptionConfig(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p := d.encryptionProblems(); len(p) != 1 || !strings.Contains(p[0].Remedy, "restart k1s") {
		t.Errorf("problems: %v", p)
	}
	if err := d.prepareEncryption(t.Context(), in); err != nil || providers(t, in.Paths) != before {
		t.Errorf("it is not as before (%v)", err)
	}
}

func TestWhatIsShownNamesKeysAndHoldsNone(t *testing.T) {
	k, err := encryption.NewKey(encryption.Secretbox, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := encryption.State{Key: k}.Begin(encryption.Disable, time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	e := wireEncryption(secretsState{state: s, done: 3, all: 7, note: "waits"}, component.Input{})
	if e.Enabled || len(e.Keys) != 2 || e.Keys[0].Name != k.Name || e.Change.Stage != "adding" || e.Change.All != 7 || e.Change.Note != "waits" {
		t.Errorf("%+v", e)
	}
}

// bindings is a join.Store of nothing but who is known.
type bindings struct {
	join.Store
	all []join.Binding
}

func (b bindings) Bindings(context.Context) ([]join.Binding, error) { return b.all, nil }

// answersForKeys lets a server with the authorities below p answer for keys, to the servers it knows.
func answersForKeys(t *testing.T, in component.Input, s encryption.State, known ...join.Binding) string {
	t.Helper()
	srv := &join.Server{
		Store: bindings{all: known}, Secrets: func() ([]byte, error) { return s.Marshal(), nil }, Admitting: &sync.Mutex{},
		CA: func() ([]byte, error) { return pki.Published(in.Paths) }, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	}
	return serve(t, in, srv.Handler())
}

// oneOfSeveral is a server on a database of others that asks the servers named.
func oneOfSeveral(t *testing.T) (*Daemon, component.Input, join.Binding) {
	t.Helper()
	d, in := rotating(t)
	in.Several = true
	in.Config.Spec.Datastore.Endpoint = postgresURL
	d.in = in
	identity, err := pki.Identity(in.Paths)
	if err != nil {
		t.Fatal(err)
	}
	b, err := join.OwnBinding(in.Facts.NodeName, in.Facts.NodeIP, identity, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return d, in, *b
}

func asks(t *testing.T, in component.Input, servers ...string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(in.Paths.EncryptionServers()), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in.Paths.EncryptionServers(), []byte(strings.Join(servers, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
}

func encrypted(t *testing.T, serial int64) encryption.State {
	t.Helper()
	k, err := encryption.NewKey(encryption.Secretbox, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return encryption.State{Key: k, Serial: serial}
}

func TestWhoWasRemovedOnlyItsOwnServersTell(t *testing.T) {
	newest := encrypted(t, 7)
	for name, tc := range map[string]struct {
		ask  func(d *Daemon, in component.Input, own join.Binding) []string
		says string
		keys bool
	}{
		"a server of another cluster has the address of one": {func(_ *Daemon, _ component.Input, own join.Binding) []string {
			_, other := rotating(t)
			return []string{answersForKeys(t, other, encrypted(t, 99), own)}
		}, "", false},
		"and another one answers": {func(_ *Daemon, in component.Input, own join.Binding) []string {
			_, other := rotating(t)
			return []string{answersForKeys(t, other, encrypted(t, 99)), answersForKeys(t, in, newest, own)}
		}, "", true},
		"its own servers have removed it": {func(_ *Daemon, in component.Input, _ join.Binding) []string {
			return []string{answersForKeys(t, in, newest)}
		}, "was removed from its cluster", false},
		"one of them knows it": {func(_ *Daemon, in component.Input, own join.Binding) []string {
			return []string{answersForKeys(t, in, newest), answersForKeys(t, in, newest, own)}
		}, "", true},
		"nobody answers": {func(*Daemon, component.Input, join.Binding) []string { return []string{"127.0.0.1:1"} }, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			d, in, own := oneOfSeveral(t)
			asks(t, in, tc.ask(d, in, own)...)
			err := d.prepareEncryption(t.Context(), in)
			if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Fatalf("got %v, want %q", err, tc.says)
			}
			s, err := readPeers(in.Paths)
			if err != nil || s.Removed != (tc.says != "") {
				t.Errorf("kept as removed: %v (%v)", s.Removed, err)
			}
			// It had none: the others have begun to encrypt without it.
			if kept, has, err := readKeys(in.Paths); err != nil || has != tc.keys || has && (kept.Serial != newest.Serial || !strings.Contains(providers(t, in.Paths), newest.Key.Name)) {
				t.Errorf("keys %v %s (%v)", has, kept, err)
			}
		})
	}
}

func TestWhoHasTheKeysIsWaitedFor(t *testing.T) {
	server := func(name, ip string) join.Binding {
		return join.Binding{Node: name, Role: token.Server, IP: netip.MustParseAddr(ip)}
	}
	all := []join.Binding{server("server-0", "10.0.0.1"), server("server-1", "10.0.0.2"), {Node: "agent-0", Role: token.Agent, IP: netip.MustParseAddr("10.0.0.30")}}
	alone := map[string]string{"server-0": ""}
	both := map[string]string{"server-0": "", "server-1": "10.0.0.2:6443"}
	for name, tc := range map[string]struct {
		bindings  []join.Binding
		answering []string
		args      map[string]string
		several   bool
		want      map[string]string
	}{
		"nobody else":                                    {nil, []string{"10.0.0.1:6443"}, nil, false, alone},
		"nobody answers yet":                             {nil, nil, nil, false, alone},
		"the first that joins, before it serves":         {all, []string{"10.0.0.1:6443"}, nil, false, both},
		"one that is off":                                {all, []string{"10.0.0.1:6443"}, nil, true, both},
		"one with a port of its own":                     {all, []string{"10.0.0.1:6443", "10.0.0.2:7443"}, nil, true, map[string]string{"server-0": "", "server-1": "10.0.0.2:7443"}},
		"the first server is not known":                  {all[1:], []string{"10.0.0.1:6443", "10.0.0.2:6443"}, nil, true, both},
		"another first server is not known":              {all[:1], []string{"10.0.0.1:6443", "10.0.0.9:6443"}, nil, true, map[string]string{"server-0": "", "10.0.0.9:6443": "10.0.0.9:6443"}},
		"an API at an agent's address":                   {all[2:], []string{"10.0.0.30:6443"}, nil, true, map[string]string{"server-0": "", "10.0.0.30:6443": "10.0.0.30:6443"}},
		"its own API is said to be at another address":   {nil, []string{"192.0.2.7:6443"}, map[string]string{"advertise-address": "192.0.2.7"}, false, alone},
		"another's API is said to be at another address": {all, []string{"192.0.2.7:6443"}, nil, true, map[string]string{"server-0": "", "server-1": "10.0.0.2:6443", "192.0.2.7:6443": "192.0.2.7:6443"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := component.Input{Config: config.Default(), Facts: component.Facts{NodeName: "server-0", NodeIP: netip.MustParseAddr("10.0.0.1")}, Several: tc.several}
			in.Config.Spec.Components = map[string]config.ComponentArgs{"kube-apiserver": {Args: tc.args}}
			if got := serversOf(in, tc.bindings, tc.answering); !maps.Equal(got, tc.want) {
				t.Errorf("got %v; want %v", got, tc.want)
			}
		})
	}
}

func TestAChangeThatIsOnItsWayIsLookedAt(t *testing.T) {
	d, in := rotating(t)
	s, err := encrypted(t, 3).Begin(encryption.Disable, time.Now().UTC().Truncate(time.Second), nil)
	if err != nil {
		t.Fatal(err)
	}
	record := encryption.Record{Serial: s.Serial, Leader: in.Facts.NodeName, State: s}
	addr := serve(t, in, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/namespaces/kube-system/configmaps/"+recordName {
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"metadata": map[string]string{"name": recordName, "resourceVersion": "9"}, "data": map[string]string{recordKey: string(record.Marshal())}})
	}))
	if d.api, err = serverClient(in, addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.api.Close)
	d.secrets = secretsState{state: s, kept: true, wake: make(chan struct{}, 1)}
	// Whoever leads it may wait for nothing in this moment.
	if err := d.beginChange(t.Context(), in, encryption.Disable, nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.secrets.wake:
	default:
		t.Error("nobody is woken")
	}
	d.secrets.wake <- struct{}{}
	d.wakeEncryption() // and nobody waits who wakes twice
}
