package daemon

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/kubeconfig"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/rotation"
	"k1s.io/k1s/internal/token"
)

// rotating is a server with certificates, and no components.
func rotating(t *testing.T) (*Daemon, component.Input) {
	t.Helper()
	dir := t.TempDir()
	in := component.Input{
		Config: config.Default(), Paths: paths.Paths{Data: dir + "/data", Run: dir + "/run", Config: dir + "/etc"},
		Facts: component.Facts{NodeName: "server-0", NodeIP: netip.MustParseAddr("10.0.0.1")},
	}
	d := &Daemon{log: slog.New(slog.DiscardHandler), board: health.NewBoard(time.Now), in: in, o: Options{Config: in.Config, Paths: in.Paths}}
	if _, err := certificates(t.Context(), d.log, in, false); err != nil {
		t.Fatal(err)
	}
	if err := d.prepareRotation(t.Context(), &in); err != nil || in.Trust != "" {
		t.Fatalf("%q, %v", in.Trust, err)
	}
	return d, in
}

// begin keeps a replacement as a user has asked for it.
func begin(t *testing.T, d *Daemon, in component.Input) rotation.State {
	t.Helper()
	all, err := pki.PrepareReplacement(t.Context(), in.Paths, "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s, err := d.rotating.state.Begin(authorities(all), time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := (rotator{d}).Keep(s); err != nil {
		t.Fatal(err)
	}
	return s
}

func ca(s rotation.State) rotation.Authority { return s.Authorities[0] }

func TestAStartGoesOnWithTheStageThatWasKept(t *testing.T) {
	d, in := rotating(t)
	s := begin(t, d, in)
	for _, stage := range []rotation.Stage{rotation.Trusting, rotation.Overlapping, rotation.Draining, rotation.Removing} {
		// The stage is kept, and the daemon is killed before it has done anything about it.
		s.Stage = stage
		if err := keepRotation(in.Paths, s); err != nil {
			t.Fatal(err)
		}
		next := &Daemon{log: d.log, board: health.NewBoard(time.Now), in: in, o: d.o}
		if err := next.prepareRotation(t.Context(), &in); err != nil {
			t.Fatal(err)
		}
		if in.Trust != s.Epoch() || !next.rotating.state.Active() {
			t.Errorf("%s: programs are to know %q", stage, in.Trust)
		}
		if _, err := certificates(t.Context(), d.log, in, false); err != nil {
			t.Fatalf("%s: %v", stage, err)
		}
		trusted, err := pki.ReadTrusted(in.Paths)
		if err != nil {
			t.Fatal(err)
		}
		want := map[rotation.Stage][]string{
			rotation.Trusting: {ca(s).Old, ca(s).New}, rotation.Overlapping: {ca(s).New, ca(s).Old}, rotation.Draining: {ca(s).New}, rotation.Removing: {ca(s).New},
		}[stage]
		if got := pki.Pins(trusted); !slices.Equal(got, want) {
			t.Errorf("%s: trusted are %v, want %v", stage, got, want)
		}
		admin, err := kubeconfig.Load(in.Paths.AdminKubeconfig())
		if err != nil || !slices.Equal(pki.PinsOf(admin.CA), want) {
			t.Errorf("%s: the administrator's kubeconfig trusts %v, %v", stage, pki.PinsOf(admin.CA), err)
		}
	}
	if err := os.RemoveAll(in.Paths.PKI("rotation")); err != nil {
		t.Fatal(err)
	}
	err := d.prepareRotation(t.Context(), &in)
	if hint, _ := errs.HintOf(err); err == nil || !strings.Contains(hint, "from a backup") {
		t.Errorf("without what replaces what: %v (%s)", err, hint)
	}
	if err := os.WriteFile(in.Paths.Rotation(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.prepareRotation(t.Context(), &in); err == nil {
		t.Error("half a file is gone on with")
	}
}

func TestThePlanOfAReplacementRestartsTheControlPlaneAndNothingElse(t *testing.T) {
	d, in := rotating(t)
	before, err := planOf(in)
	if err != nil {
		t.Fatal(err)
	}
	in.Trust = begin(t, d, in).Epoch()
	after, err := planOf(in)
	if err != nil {
		t.Fatal(err)
	}
	var changed []string
	for name, hash := range after {
		if before[name] != hash {
			changed = append(changed, name)
		}
	}
	if !slices.Equal(changed, []string{"control-plane"}) {
		t.Errorf("changed are %v", changed)
	}
}

// planOf are the hashes of the units, by name.
func planOf(in component.Input) (map[string]string, error) {
	in.Payload = "/payload"
	units, err := components.Plan(in)
	out := map[string]string{}
	for _, u := range units {
		out[u.Name] = u.Hash()
	}
	return out, err
}

// trustAPI is an API with nodes and what is published to pods.
type trustAPI struct {
	mu        sync.Mutex
	published map[string]string
	bindings  []map[string][]byte
	ready     map[string]bool
	extension map[string]string // extension-apiserver-authentication
	servers   []string          // addresses of the EndpointSlice kubernetes
}

const extensionPath = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"

func (a *trustAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	items := []any{}
	switch r.URL.Path {
	case extensionPath:
		m := kubeapi.ConfigMap{Metadata: kubeapi.SecretMeta{Name: "extension-apiserver-authentication", ResourceVersion: "7"}, Data: a.extension}
		if r.Method == http.MethodPut {
			if err := json.NewDecoder(r.Body).Decode(&m); err != nil || m.Metadata.ResourceVersion != "7" {
				http.Error(w, "what was read is not what is replaced", http.StatusConflict)
				return
			}
			a.extension = m.Data
		}
		_ = json.NewEncoder(w).Encode(m)
		return
	case "/api/v1/configmaps":
		for ns, ca := range a.published {
			items = append(items, map[string]any{"metadata": map[string]string{"namespace": ns}, "data": map[string]string{"ca.crt": ca}})
		}
	case "/api/v1/secrets":
		if r.URL.Query().Get("fieldSelector") == "type=kubernetes.io/service-account-token" {
			items = append(items, map[string]any{"metadata": map[string]string{"namespace": "apps", "name": "legacy"}})
		}
	case "/api/v1/namespaces/kube-system/secrets":
		if r.URL.Query().Get("labelSelector") == "k1s.io/type=node" {
			for _, b := range a.bindings {
				items = append(items, map[string]any{"metadata": map[string]string{"name": nodePrefix + string(b["name"])}, "data": b})
			}
		}
	case "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices":
		items = append(items, map[string]any{"endpoints": []any{map[string]any{"addresses": a.servers}}, "ports": []any{map[string]int{"port": 6443}}})
	case "/api/v1/nodes":
		for name, ready := range a.ready {
			status := "False"
			if ready {
				status = "True"
			}
			items = append(items, map[string]any{"metadata": map[string]string{"name": name}, "status": map[string]any{"conditions": []any{map[string]string{"type": "Ready", "status": status}}}})
		}
	default:
		http.NotFound(w, r)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"items": items})
}

// serve lets it answer with the server's certificate as it is in each moment.
func serve(t *testing.T, in component.Input, h http.Handler) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		c, err := tls.LoadX509KeyPair(pki.CertFile(in.Paths, pki.APIServer), pki.KeyFile(in.Paths, pki.APIServer))
		return &c, err
	}}
	srv.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(io.Discard, nil), slog.LevelError)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "https://")
}

func TestAReplacementWaitsForWhoIsThereAndForWhatPodsAreGiven(t *testing.T) {
	d, in := rotating(t)
	api := &trustAPI{published: map[string]string{}, ready: map[string]bool{"server-0": true, "agent-0": true, "agent-1": false}}
	addr := serve(t, in, api)
	var err error
	d.api, err = kubeapi.NewNamed("https://"+addr, join.ServerName, pki.CertFile(in.Paths, pki.CA), pki.CertFile(in.Paths, pki.DaemonClient), pki.KeyFile(in.Paths, pki.DaemonClient))
	if err != nil {
		t.Fatal(err)
	}
	old, err := pki.ReadTrusted(in.Paths)
	if err != nil {
		t.Fatal(err)
	}
	first := pki.Pins(old)[0]
	binding := func(name string, role token.Role, ip, trusts, issuer string) map[string][]byte {
		return map[string][]byte{
			"name": []byte(name), "role": []byte(role), "identity": []byte("aWRlbnRpdHk"), "ip": []byte(ip), "token": nil, "since": []byte("2026-01-01T00:00:00Z"), "until": []byte("2027-01-01T00:00:00Z"),
			"trusts": []byte(trusts), "issuer": []byte(issuer),
		}
	}
	api.bindings = []map[string][]byte{
		binding("server-0", token.Server, "10.0.0.1", "", ""), binding("agent-0", token.Agent, "10.0.0.30", first, first), binding("agent-1", token.Agent, "10.0.0.31", first, first),
	}

	plan, err := d.RotateCA(t.Context(), control.RotateRequest{DryRun: true, Keep: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.State.Authorities) != 3 || len(plan.Warnings) != 3 || !strings.Contains(plan.Warnings[0], "--drop-tokens") || !strings.Contains(plan.Warnings[1], "apps/legacy") ||
		!strings.Contains(plan.Warnings[2], "cannot be backed up until the replacement is at its end, 24h0m0s or more") || len(plan.Nodes) != 3 {
		t.Errorf("plan %+v", plan)
	}
	if s, err := readRotation(in.Paths); err != nil || s.Number != 0 {
		t.Errorf("looking has begun it: %v, %v", s, err)
	}

	for _, r := range []control.RotateRequest{{Keep: rotation.TokensLast}, {DropTokens: true}} {
		r.DryRun = true
		if plan, err := d.RotateCA(t.Context(), r); err != nil || len(plan.Warnings) != 2 {
			t.Errorf("%+v: warnings %q, %v", r, plan.Warnings, err)
		}
	}
	begun, err := d.RotateCA(t.Context(), control.RotateRequest{Keep: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	s := begun.State
	if _, err := d.RotateCA(t.Context(), control.RotateRequest{}); !errs.Is(err, errs.Exists) {
		t.Errorf("begun twice: %v", err)
	}
	if _, err := d.RotateCA(t.Context(), control.RotateRequest{Finish: true}); !errs.Is(err, errs.Failure) {
		t.Errorf("finished before it signs: %v", err)
	}
	if _, err := d.bootstrap(t.Context()); !errs.Is(err, errs.NotRunning) {
		t.Errorf("a server gets keys meanwhile: %v", err)
	}

	var later time.Duration
	look := func() (rotation.State, []string) {
		t.Helper()
		f, err := rotator{d}.Look(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		f.Now = f.Now.Add(later)
		return rotation.Next(s, f)
	}
	publish := func() {
		b, err := os.ReadFile(pki.CertFile(in.Paths, pki.CA))
		if err != nil {
			t.Fatal(err)
		}
		front, err := os.ReadFile(pki.CertFile(in.Paths, pki.FrontProxyCA))
		if err != nil {
			t.Fatal(err)
		}
		api.mu.Lock()
		// As upstream does it: what is there stays.
		api.extension = map[string]string{
			"client-ca-file": string(b) + api.extension["client-ca-file"], "requestheader-client-ca-file": string(front) + api.extension["requestheader-client-ca-file"],
			"requestheader-allowed-names": `["front-proxy-client"]`,
		}
		api.published["default"], api.published["kube-system"] = string(b), string(b)
		api.mu.Unlock()
	}
	publish()
	install := func() {
		t.Helper()
		d.in.Trust = s.Epoch() // there is nothing to restart
		if err := (rotator{d}).Install(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	install()
	if next, waits := look(); next.Stage != rotation.Trusting || len(waits) != 2 {
		t.Errorf("%s, %q", next.Stage, waits)
	}
	publish()
	if next, waits := look(); next.Stage != rotation.Trusting || len(waits) != 1 || !strings.HasPrefix(waits[0], "agent-0:") {
		t.Errorf("%s, %q", next.Stage, waits)
	}
	api.mu.Lock()
	api.bindings[1]["trusts"] = []byte(ca(s).Old + " " + ca(s).New)
	api.mu.Unlock()
	next, waits := look()
	if next.Stage != rotation.Overlapping {
		t.Fatalf("%s, %q", next.Stage, waits)
	}
	if err := (rotator{d}).Keep(next); err != nil {
		t.Fatal(err)
	}
	s = next
	install()
	publish()
	told, err := d.Rotation(t.Context())
	if err != nil || !slices.Equal(told.Behind, []string{"agent-0"}) || !slices.Equal(told.Away, []string{"agent-1"}) {
		t.Errorf("%+v, %v", told, err)
	}
	if got := fmt.Sprint(told.Nodes); got != "[{agent-0 false true [old new] old} {agent-1 false false [old] old} {server-0 true true [new old] new}]" {
		t.Errorf("nodes %s", got)
	}
	if _, err := d.RotateCA(t.Context(), control.RotateRequest{Finish: true}); err != nil {
		t.Fatal(err)
	}
	s = d.rotating.state
	if next, waits := look(); next.Stage != rotation.Overlapping || len(waits) != 2 || !strings.HasPrefix(waits[0], "running programs read the new CA by") {
		t.Errorf("running programs do not know the new CA yet: %s, %q", next.Stage, waits)
	}
	later = rotation.Settle
	if next, waits := look(); next.Stage != rotation.Overlapping || len(waits) != 1 {
		t.Errorf("a node that is there has no certificates yet: %s, %q", next.Stage, waits)
	}
	api.mu.Lock()
	api.bindings[1]["issuer"] = []byte(ca(s).New)
	api.mu.Unlock()
	if s, waits = look(); s.Stage != rotation.Draining {
		t.Fatalf("%s, %q", s.Stage, waits)
	}
	install()
	publish()
	if b, err := os.ReadFile(pki.CertFile(in.Paths, pki.ServiceAccount)); err != nil || strings.Count(string(b), "BEGIN PUBLIC KEY") != 2 {
		t.Errorf("tokens of pods are refused: %s, %v", b, err)
	}
	if _, waits := look(); len(waits) != 3 || waits[0] != "agent-0: trusts the old CA still" || waits[1] != "aggregated API servers are told to believe the old ca, front-proxy-ca" || !strings.HasPrefix(waits[2], "tokens of pods") {
		t.Errorf("waits for %q", waits)
	}
	api.mu.Lock()
	api.bindings[1]["trusts"] = []byte(ca(s).New)
	believed := api.extension
	api.mu.Unlock()
	for key, name := range map[string]string{"client-ca-file": pki.CA, "requestheader-client-ca-file": pki.FrontProxyCA} {
		b, err := os.ReadFile(pki.CertFile(in.Paths, name))
		if got := pki.PinsOf([]byte(believed[key])); err != nil || !slices.Equal(got, pki.PinsOf(b)) {
			t.Errorf("aggregated API servers believe %v, %v", got, err)
		}
	}
	if believed["requestheader-allowed-names"] != `["front-proxy-client"]` {
		t.Errorf("what else they are told is %v", believed)
	}
	if _, err := d.bootstrap(t.Context()); !errs.Is(err, errs.NotRunning) {
		t.Errorf("a server gets keys meanwhile: %v", err)
	}
	if _, waits := look(); len(waits) != 1 {
		t.Errorf("waits for %q", waits)
	}
	later += 24 * time.Hour
	if s, waits = look(); s.Stage != rotation.Removing {
		t.Fatalf("%s, %q", s.Stage, waits)
	}
	install()
	publish()
	if b, err := os.ReadFile(pki.CertFile(in.Paths, pki.ServiceAccount)); err != nil || strings.Count(string(b), "BEGIN PUBLIC KEY") != 1 {
		t.Errorf("tokens of the old key are good for ever: %s, %v", b, err)
	}
	// Until the end is kept the directory may be needed again.
	if err := (rotator{d}).Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(in.Paths.PKI("rotation", "new", "ca.key")); err != nil {
		t.Errorf("a replacement on its way has lost its keys: %v", err)
	}
	if s, waits = look(); s.Active() {
		t.Fatalf("%s, %q", s.Stage, waits)
	}
	if err := (rotator{d}).Keep(s); err != nil {
		t.Fatal(err)
	}
	if err := (rotator{d}).Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(in.Paths.PKI("rotation")); !os.IsNotExist(err) {
		t.Errorf("what is not needed is still there: %v", err)
	}
	if !pinned(in.Paths, first) || pinned(in.Paths, "x") {
		t.Error("the old CA's pin is not known as one of this cluster's")
	}
}

func TestAStageThatLastsIsLookedAtSeldom(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name string
		s    rotation.State
		want time.Duration
	}{
		{"just begun", rotation.State{Stage: rotation.Trusting, Since: now}, lookAgainAfter},
		{"waits for a node since days", rotation.State{Stage: rotation.Trusting, Since: now.Add(-48 * time.Hour)}, lookLaterAfter},
		{"has its time", rotation.State{Stage: rotation.Overlapping, Since: now, Until: now.Add(time.Hour)}, lookLaterAfter},
		{"whose time is over, and that waits for running programs", rotation.State{Stage: rotation.Overlapping, Since: now.Add(-time.Minute), Until: now.Add(-time.Minute)}, lookAgainAfter},
		{"whose time the user does not wait for", rotation.State{Stage: rotation.Overlapping, Since: now.Add(-time.Minute), Until: now.Add(time.Hour), Hurry: true}, lookAgainAfter},
	} {
		if got := lookPause(c.s, now); got != c.want {
			t.Errorf("one that %s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestAReplacementIsCalledOffAndNothingOvertakesThat(t *testing.T) {
	d, in := rotating(t)
	api := &trustAPI{ready: map[string]bool{"server-0": true}}
	var err error
	d.api, err = kubeapi.NewNamed("https://"+serve(t, in, api), join.ServerName, pki.CertFile(in.Paths, pki.CA), pki.CertFile(in.Paths, pki.DaemonClient), pki.KeyFile(in.Paths, pki.DaemonClient))
	if err != nil {
		t.Fatal(err)
	}
	s := begin(t, d, in)
	d.in.Trust = s.Epoch()
	if err := (rotator{d}).Install(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if _, err := d.RotateCA(t.Context(), control.RotateRequest{Abort: true, DryRun: true}); err != nil || d.rotating.state.Stage != rotation.Trusting {
		t.Errorf("looking has called it off: %s, %v", d.rotating.state, err)
	}
	if _, err := d.RotateCA(t.Context(), control.RotateRequest{Abort: true}); err != nil {
		t.Fatal(err)
	}
	// The switch was decided in the same moment.
	late := s
	late.Stage = rotation.Overlapping
	if err := (rotator{d}).Keep(late); !errs.Is(err, errs.Exists) {
		t.Errorf("the new CA signs though it was called off: %v", err)
	}
	kept, err := readRotation(in.Paths)
	if err != nil || kept.Stage != rotation.Aborting || d.rotating.state.Stage != rotation.Aborting {
		t.Fatalf("%s is kept, %v", kept, err)
	}
	d.in.Trust = kept.Epoch()
	if err := (rotator{d}).Install(t.Context(), kept); err != nil {
		t.Fatal(err)
	}
	if cas, err := pki.ReadTrusted(in.Paths); err != nil || !slices.Equal(pki.Pins(cas), []string{ca(s).Old}) {
		t.Errorf("trusted are %v, %v", pki.Pins(cas), err)
	}
	end := kept
	end.Stage = rotation.None
	if err := errors.Join((rotator{d}).Keep(end), (rotator{d}).Forget(t.Context())); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(in.Paths.PKI("rotation")); !os.IsNotExist(err) {
		t.Errorf("what is not needed is still there: %v", err)
	}
	if _, err := d.RotateCA(t.Context(), control.RotateRequest{Abort: true}); !errs.Is(err, errs.NotFound) {
		t.Errorf("called off without a beginning: %v", err)
	}
}

// One that was removed and runs on has no binding any more.
func TestNoAuthorityIsReplacedWhileAnotherServerServes(t *testing.T) {
	d, in := rotating(t)
	api := &trustAPI{ready: map[string]bool{"server-0": true}, servers: []string{"10.0.0.1", "10.0.0.2"}}
	var err error
	d.api, err = kubeapi.NewNamed("https://"+serve(t, in, api), join.ServerName, pki.CertFile(in.Paths, pki.CA), pki.CertFile(in.Paths, pki.DaemonClient), pki.KeyFile(in.Paths, pki.DaemonClient))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []control.RotateRequest{{Keep: time.Hour, DryRun: true}, {Keep: time.Hour}} {
		if _, err := d.RotateCA(t.Context(), r); !errs.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "10.0.0.2:6443") || strings.Contains(err.Error(), "10.0.0.1:6443") {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if s, err := readRotation(in.Paths); err != nil || s.Number != 0 {
		t.Errorf("it has begun: %v, %v", s, err)
	}
	api.mu.Lock()
	api.servers = api.servers[:1]
	api.mu.Unlock()
	if _, err := d.RotateCA(t.Context(), control.RotateRequest{Keep: time.Hour}); err != nil {
		t.Errorf("alone: %v", err)
	}
}

func TestKeysOfAReplacementThatDoesNotBeginAreNotLeftBehind(t *testing.T) {
	d, in := rotating(t)
	api := &trustAPI{ready: map[string]bool{"server-0": true}}
	var err error
	d.api, err = kubeapi.NewNamed("https://"+serve(t, in, api), join.ServerName, pki.CertFile(in.Paths, pki.CA), pki.CertFile(in.Paths, pki.DaemonClient), pki.KeyFile(in.Paths, pki.DaemonClient))
	if err != nil {
		t.Fatal(err)
	}
	gone := func(when string) {
		t.Helper()
		if _, err := os.Stat(in.Paths.PKI("rotation")); !os.IsNotExist(err) {
			t.Errorf("%s: keys are left: %v", when, err)
		}
	}
	// A directory is in the place of the file.
	if err := os.MkdirAll(in.Paths.Rotation()+"/x", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := d.RotateCA(t.Context(), control.RotateRequest{Keep: time.Hour}); err == nil || d.rotating.state.Active() {
		t.Errorf("it has begun: %s, %v", d.rotating.state, err)
	}
	gone("what could not be kept")
	if err := os.RemoveAll(in.Paths.Rotation()); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.PrepareReplacement(t.Context(), in.Paths, "", time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := d.prepareRotation(t.Context(), &in); err != nil {
		t.Fatal(err)
	}
	gone("a start after a kill")
}

// Who asks twice at once must not get the keys of one and the state of the other.
func TestOfTwoReplacementsThatAreAskedForAtOnceOneBegins(t *testing.T) {
	d, in := rotating(t)
	api := &trustAPI{ready: map[string]bool{"server-0": true}}
	var err error
	d.api, err = kubeapi.NewNamed("https://"+serve(t, in, api), join.ServerName, pki.CertFile(in.Paths, pki.CA), pki.CertFile(in.Paths, pki.DaemonClient), pki.KeyFile(in.Paths, pki.DaemonClient))
	if err != nil {
		t.Fatal(err)
	}
	failed := make([]error, 4)
	var wg sync.WaitGroup
	for i := range failed {
		wg.Go(func() { _, failed[i] = d.RotateCA(t.Context(), control.RotateRequest{Keep: time.Hour}) })
	}
	wg.Wait()
	begun := 0
	for _, err := range failed {
		if err == nil {
			begun++
		} else if !errs.Is(err, errs.Exists) {
			t.Error(err)
		}
	}
	s, err := readRotation(in.Paths)
	if err != nil || begun != 1 || s.Number != 1 {
		t.Errorf("%d have begun, %s is kept, %v", begun, s, err)
	}
	if b, err := os.ReadFile(in.Paths.PKI("rotation", "new", "ca.crt")); err != nil || !slices.Equal(pki.PinsOf(b), []string{ca(s).New}) {
		t.Errorf("the keys are not those of what is kept: %v, %v", pki.PinsOf(b), err)
	}
}

func TestAnAgentLearnsOfOtherCAsWhileItRunsAndWhenItComesBack(t *testing.T) {
	server, sin := rotating(t)
	agent := agentInput(t)
	agent.Paths.Run = t.TempDir()
	store := &oneNode{}
	s := &join.Server{
		Store: store, Admitting: &sync.Mutex{}, Settings: config.Shared(agent.Config), Domain: "cluster.local", Kubernetes: "v1.36.3", Now: time.Now, Log: server.log,
		Authority: func() (join.Authority, error) { return pki.OpenAuthority(sin.Paths) }, CA: func() ([]byte, error) { return pki.Published(sin.Paths) },
		Reserved: func() ([]string, error) { return nil, nil },
	}
	addr := serve(t, sin, s.Handler())
	trusted, err := pki.ReadTrusted(sin.Paths)
	if err != nil {
		t.Fatal(err)
	}
	if store.token, err = token.New(token.Agent, trusted[0]); err != nil {
		t.Fatal(err)
	}
	agent.Config.Spec.Join = config.Join{Server: "https://" + addr, Token: config.Secret(store.token.Text())}
	d := agentDaemon()
	m, err := d.join(t.Context(), &agent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.settle(t.Context(), d.log, agent); err != nil {
		t.Fatal(err)
	}
	d.in, d.o = agent, Options{Config: agent.Config, Paths: agent.Paths}
	d.sup = nil
	rot := begin(t, server, sin)
	expect := func(when string, trusts []string, issuer string) {
		t.Helper()
		now, err := pki.ReadTrusted(agent.Paths)
		if err != nil || !slices.Equal(pki.Pins(now), trusts) {
			t.Errorf("%s: it trusts %v, %v", when, pki.Pins(now), err)
		}
		if b := store.bound(); b.Trusts != strings.Join(trusts, " ") || b.Issuer != issuer {
			t.Errorf("%s: the servers know that it trusts %s and has certificates of %s", when, b.Trusts, b.Issuer)
		}
		if due := pki.DueOf(agent.Paths, pki.JoinedLeaves("agent-0", agent.Facts.NodeIP), time.Now()); len(due.Changes) > 0 {
			t.Errorf("%s: due are %v", when, due.Changes)
		}
	}
	stage := func(to rotation.Stage) {
		t.Helper()
		before, err := pki.Published(sin.Paths)
		if err != nil {
			t.Fatal(err)
		}
		rot.Stage = to
		server.in.Trust = rot.Epoch()
		if err := (rotator{server}).Install(t.Context(), rot); err != nil {
			t.Fatal(err)
		}
		// It is by this that nodes see that there is news.
		if after, err := pki.Published(sin.Paths); err != nil || bytes.Equal(before, after) {
			t.Errorf("in the stage %s the same is published as before, %v", to, err)
		}
	}
	refresh := func() {
		t.Helper()
		if _, err := d.renew(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	was, err := publishedCAs(t.Context(), agent)
	if err != nil {
		t.Fatal(err)
	}
	stage(rotation.Trusting)
	if now, err := publishedCAs(t.Context(), agent); err != nil || now == was {
		t.Errorf("it does not see that something has changed: %v", err)
	}
	refresh()
	expect("trusting", []string{ca(rot).Old, ca(rot).New}, ca(rot).Old)
	stage(rotation.Overlapping)
	refresh()
	// Who has read only the old CA, as metrics-server may have, is to know this kubelet.
	pair, err := tls.LoadX509KeyPair(pki.CertFile(agent.Paths, pki.KubeletServing), pki.KeyFile(agent.Paths, pki.KubeletServing))
	if err != nil || len(pair.Certificate) != 2 {
		t.Errorf("the kubelet shows %d certificates, %v", len(pair.Certificate), err)
	}
	expect("overlapping", []string{ca(rot).New, ca(rot).Old}, ca(rot).New)
	if was, err = publishedCAs(t.Context(), agent); err != nil {
		t.Fatal(err)
	}
	stage(rotation.Removing)
	if now, err := publishedCAs(t.Context(), agent); err != nil || now == was {
		t.Errorf("it does not see that the old one is not trusted any more: %v", err)
	}
	refresh()
	expect("removing", []string{ca(rot).New}, ca(rot).New)

	// It is away for a whole replacement.
	if err := (rotator{server}).Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.rotating.state = rotation.State{Number: 1}
	rot = begin(t, server, sin)
	stage(rotation.Trusting)
	stage(rotation.Overlapping)
	stage(rotation.Removing)
	if _, err := publishedCAs(t.Context(), agent); !errs.Is(err, errs.Denied) {
		t.Errorf("it trusts a server it cannot know: %v", err)
	}
	// The one it joined at is gone for good.
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k, err := readKept(agent.Paths)
	if err != nil {
		t.Fatal(err)
	}
	k.Servers = []string{k.Server}
	k.Server = "https://" + nobody.Addr().String()
	nobody.Close()
	keep := func() {
		t.Helper()
		b, err := json.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(agent.Paths.Agent(), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keep()
	gone := agent
	gone.Server = k.Server
	if _, err := publishedCAs(t.Context(), gone); !errs.Is(err, errs.Denied) {
		t.Errorf("one that is gone hides that another is a stranger: %v", err)
	}
	agent.Config.Spec.Join.Token = ""
	if m, err = d.join(t.Context(), &agent); err != nil || m.welcome == nil {
		t.Fatalf("it starts without asking: %v", err)
	}
	if _, err := m.settle(t.Context(), d.log, agent); err != nil {
		t.Fatal(err)
	}
	refresh()
	expect("back", []string{ca(rot).New}, ca(rot).New)
	if m, err = d.join(t.Context(), &agent); err != nil || m.welcome != nil {
		t.Errorf("it asks when there is nothing to ask: %v", err)
	}
	// Another cluster at the servers' address keeps it from nothing.
	_, foreign := rotating(t)
	agent.Config.Spec.Join.Server = serve(t, foreign, s.Handler())
	k.Server, k.Servers = agent.Config.Spec.Join.Server, nil
	keep()
	s.CA = func() ([]byte, error) { return pki.Published(foreign.Paths) }
	if m, err = d.join(t.Context(), &agent); err != nil || m.welcome != nil {
		t.Errorf("it does not start, or believes them: %v", err)
	}
}

// oneNode is a join.Store with one token and one node.
type oneNode struct {
	token token.Token
	mu    sync.Mutex
	b     []join.Binding
}

func (o *oneNode) bound() join.Binding {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b[0]
}

func (o *oneNode) Token(context.Context, string) (token.Record, error) {
	return o.token.Record("", time.Now(), time.Now().Add(time.Hour)), nil
}

func (o *oneNode) Bindings(context.Context) ([]join.Binding, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.b), nil
}

func (o *oneNode) Bind(_ context.Context, b join.Binding) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	b.Version = "1"
	o.b = []join.Binding{b}
	return nil
}

func (o *oneNode) Nodes(context.Context) ([]join.Node, error) { return nil, nil }

func (o *oneNode) Servers(context.Context) ([]string, error) { return nil, nil }
