package daemon

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdapi"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/paths"
)

// nodesAPI has the Secrets of nodes and the Nodes of a cluster.
type nodesAPI struct {
	mu      sync.Mutex
	secrets map[string]map[string][]byte // data, by node
	version map[string]int
	nodes   []string
	asked   []string // what was changed
	fail    func(asked string) bool
	ready   []string       // nodes
	again   map[string]int // how often a node was replaced
}

func (a *nodesAPI) uid(node string) string { return fmt.Sprint(node, "/", a.again[node]) }

// spared tells that what is to be deleted is not what was meant.
func (a *nodesAPI) spared(r *http.Request, node string) bool {
	var o struct{ Preconditions struct{ UID string } }
	_ = json.NewDecoder(r.Body).Decode(&o)
	return o.Preconditions.UID != "" && o.Preconditions.UID != a.uid(node)
}

func (a *nodesAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	const secrets, nodes = "/api/v1/namespaces/kube-system/secrets", "/api/v1/nodes"
	secret := func(node string) kubeapi.Secret {
		return kubeapi.Secret{Metadata: kubeapi.SecretMeta{Name: nodePrefix + node, UID: a.uid(node), ResourceVersion: fmt.Sprint(a.version[node])}, Type: nodeType, Data: a.secrets[node]}
	}
	if r.Method != http.MethodGet {
		asked := r.Method + " " + r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		if a.fail != nil && a.fail(asked) {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		a.asked = append(a.asked, asked)
	}
	answer := func(v any) { _ = json.NewEncoder(w).Encode(v) }
	switch node, one := strings.CutPrefix(r.URL.Path, secrets+"/"+nodePrefix); {
	case one && a.secrets[node] == nil:
		http.NotFound(w, r)
	case one && r.Method == http.MethodGet:
		answer(secret(node))
	case one && r.Method == http.MethodPut:
		var s kubeapi.Secret
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil || s.Metadata.ResourceVersion != fmt.Sprint(a.version[node]) {
			w.WriteHeader(http.StatusConflict)
			return
		}
		a.secrets[node] = s.Data
		a.version[node]++
		answer(secret(node))
	case one && r.Method == http.MethodDelete && a.spared(r, node):
		w.WriteHeader(http.StatusConflict)
	case one && r.Method == http.MethodDelete:
		delete(a.secrets, node)
		answer(struct{}{})
	case r.URL.Path == secrets:
		var items []kubeapi.Secret
		for node := range a.secrets {
			items = append(items, secret(node))
		}
		answer(map[string]any{"items": items})
	case r.URL.Path == nodes:
		items := []any{}
		for _, n := range a.nodes {
			state := "Unknown"
			if slices.Contains(a.ready, n) {
				state = "True"
			}
			items = append(items, map[string]any{"metadata": map[string]any{"name": n, "uid": a.uid(n)}, "status": map[string]any{"conditions": []any{map[string]any{"type": "Ready", "status": state}}}})
		}
		answer(map[string]any{"items": items})
	case r.Method == http.MethodDelete && a.spared(r, strings.TrimPrefix(r.URL.Path, nodes+"/")):
		w.WriteHeader(http.StatusConflict)
	case r.Method == http.MethodDelete && slices.Contains(a.nodes, strings.TrimPrefix(r.URL.Path, nodes+"/")):
		a.nodes = slices.DeleteFunc(a.nodes, func(n string) bool { return n == strings.TrimPrefix(r.URL.Path, nodes+"/") })
		answer(struct{}{})
	default:
		http.NotFound(w, r)
	}
}

func bound(role string) map[string][]byte {
	return map[string][]byte{
		"role": []byte(role), "identity": []byte(base64.RawURLEncoding.EncodeToString([]byte("who it is"))), "ip": []byte("10.0.0.7"),
		"since": []byte("2026-01-01T00:00:00Z"), "until": []byte("2027-01-01T00:00:00Z"),
	}
}

// remover is a server of a cluster whose datastore is not its own etcd, and the cluster's API.
func remover(t *testing.T, nodes ...string) (*Daemon, *nodesAPI) {
	t.Helper()
	api := &nodesAPI{secrets: map[string]map[string][]byte{"server-0": bound("server")}, version: map[string]int{}, nodes: append([]string{"server-0"}, nodes...)}
	for _, n := range nodes {
		api.secrets[n] = bound("agent")
	}
	srv := httptest.NewTLSServer(api)
	t.Cleanup(srv.Close)
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := kubeapi.New(srv.URL, ca, "none.crt", "none.key")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	dir := t.TempDir()
	in := component.Input{Config: config.Default(), Paths: paths.Paths{Data: dir, Run: dir, Config: dir}, Facts: component.Facts{NodeName: "server-0"}}
	return &Daemon{o: Options{Config: in.Config, Paths: in.Paths}, in: in, api: c, log: slog.New(slog.DiscardHandler)}, api
}

func TestARemovalKeepsThatItHasBegunAndFreesTheNameLast(t *testing.T) {
	d, api := remover(t, "agent-0", "agent-1")
	plan, err := d.NodeRemoval(t.Context(), "agent-0")
	if err != nil || len(plan.Steps) != 3 || len(api.asked) != 0 {
		t.Errorf("the plan: %v, %v, asked %v", plan.Steps, err, api.asked)
	}
	if err := d.RemoveNode(t.Context(), "agent-0"); err != nil {
		t.Fatal(err)
	}
	want := []string{"PUT k1s-node-agent-0", "DELETE agent-0", "DELETE k1s-node-agent-0"}
	if !slices.Equal(api.asked, want) || !slices.Equal(api.nodes, []string{"server-0", "agent-1"}) || len(api.secrets) != 2 {
		t.Errorf("asked %v, left %v", api.asked, api.nodes)
	}
	if err := d.RemoveNode(t.Context(), "agent-0"); !errs.Is(err, errs.NotFound) {
		t.Errorf("again: %v", err)
	}
}

func TestARemovalThatIsCutOffAnywhereIsFinishedByAnother(t *testing.T) {
	for _, at := range []string{"DELETE agent-0", "DELETE k1s-node-agent-0"} {
		d, api := remover(t, "agent-0", "agent-1")
		api.fail = func(asked string) bool { return asked == at } // as if the API had died with this server
		if err := d.RemoveNode(t.Context(), "agent-0"); err == nil {
			t.Errorf("%s: it is done", at)
		}
		b, err := (clusterStore{api: d.api}).Bindings(t.Context())
		i := slices.IndexFunc(b, func(b join.Binding) bool { return b.Node == "agent-0" })
		if err != nil || i < 0 || b[i].Leaving.IsZero() {
			t.Fatalf("%s: it is not kept that it leaves: %+v, %v", at, b, err)
		}
		api.fail = nil
		other := &Daemon{o: d.o, in: d.in, api: d.api, log: d.log}
		other.in.Facts.NodeName = "server-1"
		seen := map[string]string{}
		finish := func() {
			t.Helper()
			if err := other.finishLeaving(t.Context(), other.api, seen); err != nil {
				t.Fatalf("%s: %v", at, err)
			}
		}
		asked := len(api.asked)
		if finish(); len(api.asked) != asked {
			t.Errorf("%s: at the first look it may be on its way: %v", at, api.asked)
		}
		other.moving.state.Phase = migration.Copying
		finish()
		other.moving.state.Phase = ""
		if finish(); len(api.asked) != asked {
			t.Errorf("%s: nothing is known of the time in which the datastore was moved: %v", at, api.asked)
		}
		if finish(); !slices.Equal(api.nodes, []string{"server-0", "agent-1"}) || api.secrets["agent-0"] != nil || len(api.secrets) != 2 {
			t.Errorf("%s: left are %v", at, api.nodes)
		}
		asked = len(api.asked)
		finish()
		if finish(); len(api.asked) != asked {
			t.Errorf("%s: something is done to those that stay: %v", at, api.asked)
		}
	}
}

// Its daemon was started beside an etcd, which nobody asks any more.
func TestAServerThatHasMovedFinishesRemovals(t *testing.T) {
	d, api := remover(t, "agent-0")
	d.openEtcd = func(component.Input) (*etcdapi.Client, error) {
		return nil, errs.New(errs.NotRunning, "it is not there")
	}
	d.in.Config.Spec.Datastore.Endpoint = "etcd"
	seen := map[string]string{}
	if err := markLeaving(t.Context(), d.api, "agent-0", "", true); err != nil {
		t.Fatal(err)
	}
	if err := d.finishLeaving(t.Context(), d.api, seen); err != nil {
		t.Fatal(err)
	}
	if err := d.finishLeaving(t.Context(), d.api, seen); !errs.Is(err, errs.NotRunning) || len(api.nodes) != 2 {
		t.Errorf("%v, left %v: then this test is wrong", err, api.nodes)
	}
	d.in.Config.Spec.Datastore.Endpoint = movedTo
	if err := d.finishLeaving(t.Context(), d.api, seen); err != nil || len(api.nodes) != 1 {
		t.Errorf("%v, left %v", err, api.nodes)
	}
}

func TestARemovalThatGoesOnIsLeftAlone(t *testing.T) {
	d, api := remover(t, "agent-0")
	seen := map[string]string{}
	for range 3 {
		if err := markLeaving(t.Context(), d.api, "agent-0", "", true); err != nil {
			t.Fatal(err)
		}
		if err := d.finishLeaving(t.Context(), d.api, seen); err != nil || len(api.nodes) != 2 {
			t.Fatalf("%v, left %v", err, api.nodes)
		}
		if err := markLeaving(t.Context(), d.api, "agent-0", "", false); err != nil { // somebody was refused, and somebody asks again
			t.Fatal(err)
		}
	}
	// A server that gives itself up does not end itself.
	if err := markLeaving(t.Context(), d.api, "server-0", "", true); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := d.finishLeaving(t.Context(), d.api, seen); err != nil || len(api.secrets) != 2 {
			t.Fatalf("%v, left %v", err, api.secrets)
		}
	}
}

func TestAMarkIsWrittenOverWhatANodeHasChangedMeanwhile(t *testing.T) {
	d, api := remover(t, "agent-0")
	times := 0
	api.fail = func(string) bool {
		if times++; times == 1 { // it has renewed its certificates between reading and writing
			api.version["agent-0"]++
		}
		return false
	}
	if err := markLeaving(t.Context(), d.api, "agent-0", "", true); err != nil || times != 2 {
		t.Errorf("%v, after %d tries", err, times)
	}
	if since, err := time.Parse(time.RFC3339, string(api.secrets["agent-0"][leavingKey])); err != nil || since.IsZero() {
		t.Errorf("since %s, %v", since, err)
	}
	if string(api.secrets["agent-0"]["role"]) != "agent" {
		t.Errorf("the rest is lost: %v", api.secrets["agent-0"])
	}
	api.fail = func(string) bool { api.version["agent-0"]++; return false }
	if err := markLeaving(t.Context(), d.api, "agent-0", "", false); !errs.Is(err, errs.Exists) {
		t.Errorf("against somebody who is always faster: %v", err)
	}
	d.stays(t.Context(), d.api, "agent-0", "") // says so, and goes on
	api.fail = nil
	d.stays(t.Context(), d.api, "agent-0", "")
	if _, leaves := api.secrets["agent-0"][leavingKey]; leaves {
		t.Error("it still leaves")
	}
	d.stays(t.Context(), d.api, "agent-7", "")
}

// trioEtcd is an etcd of server-0, which leads and is asked, server-1 and server-2.
type trioEtcd struct {
	mu      sync.Mutex
	members []string        // those there are; server-N has the ID N+1
	off     map[string]bool // those that do not answer
	links   string          // its metrics; "" for none
	removes int             // how often a removal was asked for
	fail    func(w http.ResponseWriter, path string) bool
}

func (e *trioEtcd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fail != nil && e.fail(w, r.URL.Path) {
		return
	}
	if node, ok := strings.CutPrefix(r.URL.Path, "/peer/"); ok && e.off[strings.TrimSuffix(node, "/version")] {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	switch r.URL.Path {
	case "/v3/maintenance/status":
		fmt.Fprint(w, `{"header":{"cluster_id":"9","member_id":"1","revision":"5"},"version":"3.6.0","dbSize":"1","dbSizeInUse":"1","dbSizeQuota":"9","leader":"1","raftIndex":"5","raftAppliedIndex":"5","raftTerm":"2"}`)
	case "/v3/cluster/member/list":
		var all []string
		for _, m := range e.members {
			all = append(all, fmt.Sprintf(`{"ID":"%c","name":"%s","peerURLs":["http://%s/peer/%s"]}`, m[len(m)-1]+1, m, r.Host, m))
		}
		fmt.Fprintf(w, `{"header":{},"members":[%s]}`, strings.Join(all, ","))
	case "/v3/cluster/member/remove":
		var q struct{ ID string }
		_ = json.NewDecoder(r.Body).Decode(&q)
		e.removes++
		e.members = slices.DeleteFunc(e.members, func(m string) bool { return string(m[len(m)-1]+1) == q.ID })
		fmt.Fprint(w, `{}`)
	case "/metrics":
		if e.links == "" {
			http.NotFound(w, r)
		}
		fmt.Fprint(w, e.links)
	}
}

// unlinked says that server-0 is connected with nobody.
const unlinked = "etcd_network_active_peers{Local=\"1\",Remote=\"2\"} 0\netcd_network_active_peers{Local=\"1\",Remote=\"3\"} 0\n"

// etcdRemover is the first of three servers with an etcd of their own.
func etcdRemover(t *testing.T) (*Daemon, *nodesAPI, *trioEtcd) {
	t.Helper()
	d, api := remover(t, "server-1", "server-2", "agent-0")
	for i, n := range []string{"server-0", "server-1", "server-2"} {
		b := bound("server")
		b["ip"] = []byte(fmt.Sprintf("10.0.0.%d", i))
		api.secrets[n] = b
	}
	d.in.Config.Spec.Datastore.Endpoint = "etcd"
	e := &trioEtcd{members: []string{"server-0", "server-1", "server-2"}, off: map[string]bool{}, links: unlinked}
	srv := httptest.NewServer(e)
	t.Cleanup(srv.Close)
	d.openEtcd = func(component.Input) (*etcdapi.Client, error) {
		c := etcdapi.New(srv.URL, nil)
		c.Metrics = srv.URL + "/metrics"
		return c, nil
	}
	return d, api, e
}

func (a *nodesAPI) leaves(node string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, leaves := a.secrets[node][leavingKey]
	return leaves
}

func TestARemovalThatIsInterruptedBeforeAnythingWasDoneIsTakenBack(t *testing.T) {
	const list, status, remove = "/v3/cluster/member/list", "/v3/maintenance/status", "/v3/cluster/member/remove"
	for name, c := range map[string]struct {
		at      string // the question at which it is interrupted
		refused bool   // before that
		kept    bool   // that it leaves
	}{
		"refused, and about to ask again":  {status, true, false},
		"before the members are known":     {list, false, false},
		"before it is known who is there":  {status, false, false},
		"after it was asked, nobody knows": {remove, false, true},
	} {
		d, api, e := etcdRemover(t)
		ctx, cancel := context.WithCancel(t.Context())
		asked := 0
		e.fail = func(w http.ResponseWriter, path string) bool {
			if path == c.at && (!c.refused || asked > 0) {
				cancel()
			}
			if path != remove {
				return false
			}
			asked++
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"message":"etcdserver: unhealthy cluster"}`)
			return true
		}
		if c.kept { // no answer comes
			inner := e.fail
			e.fail = func(w http.ResponseWriter, path string) bool {
				if inner(httptest.NewRecorder(), path) {
					panic(http.ErrAbortHandler)
				}
				return false
			}
		}
		err := d.RemoveNode(ctx, "server-2")
		cancel()
		if err == nil || errs.Is(err, errs.Denied) != c.refused || api.leaves("server-2") != c.kept || len(e.members) != 3 || len(api.nodes) != 4 {
			t.Errorf("%s: %v, it leaves: %t", name, err, api.leaves("server-2"))
		}
	}
	// Who has begun before may have come further.
	d, api, e := etcdRemover(t)
	if err := markLeaving(t.Context(), d.api, "server-2", "", true); err != nil {
		t.Fatal(err)
	}
	e.fail = func(w http.ResponseWriter, path string) bool { w.WriteHeader(http.StatusBadGateway); return true }
	if err := d.RemoveNode(t.Context(), "server-2"); err == nil || !api.leaves("server-2") {
		t.Errorf("begun before: %v, it leaves: %t", err, api.leaves("server-2"))
	}
}

func TestWhatWasCutOffIsFinishedOnlyOfAServerThatIsGone(t *testing.T) {
	for name, c := range map[string]struct {
		node     string
		change   func(*nodesAPI, *trioEtcd)
		finished bool
		dropped  bool // the mark
	}{
		"it answers": {"server-2", func(*nodesAPI, *trioEtcd) {}, false, true},
		"it is connected": {"server-2", func(_ *nodesAPI, e *trioEtcd) {
			e.off["server-2"] = true
			e.links = strings.ReplaceAll(unlinked, "} 0", "} 1")
		}, false, true},
		"its Node is Ready":     {"server-2", func(a *nodesAPI, e *trioEtcd) { e.off["server-2"] = true; a.ready = []string{"server-2"} }, false, true},
		"it is gone":            {"server-2", func(_ *nodesAPI, e *trioEtcd) { e.off["server-2"] = true }, true, false},
		"it is no member":       {"server-2", func(a *nodesAPI, e *trioEtcd) { e.members = e.members[:2]; a.ready = []string{"server-2"} }, true, false},
		"an agent that is well": {"agent-0", func(a *nodesAPI, _ *trioEtcd) { a.ready = []string{"agent-0"} }, true, false},
		"this one, which leads": {"server-0", func(*nodesAPI, *trioEtcd) {}, false, true},
		"this one does not lead": {"server-0", func(_ *nodesAPI, e *trioEtcd) {
			e.fail = func(w http.ResponseWriter, path string) bool {
				if path == "/v3/maintenance/status" {
					fmt.Fprint(w, `{"header":{"member_id":"1"},"leader":"2","raftTerm":"2"}`)
				}
				return path == "/v3/maintenance/status"
			}
		}, false, false},
	} {
		d, api, e := etcdRemover(t)
		c.change(api, e)
		if err := markLeaving(t.Context(), d.api, c.node, "", true); err != nil {
			t.Fatal(err)
		}
		seen := map[string]string{}
		for range 3 {
			if err := d.finishLeaving(t.Context(), d.api, seen); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		gone := api.secrets[c.node] == nil && !slices.Contains(api.nodes, c.node) && !slices.Contains(e.members, c.node)
		if gone != c.finished || !gone && api.leaves(c.node) == c.dropped || !c.finished && e.removes != 0 {
			t.Errorf("%s: gone %t, it leaves %t, removals %d", name, gone, api.leaves(c.node), e.removes)
		}
	}
}

func TestAServerThatIsThereIsRemovedWhenSomebodyAsksAndNotByItself(t *testing.T) {
	d, api, e := etcdRemover(t)
	if err := d.removeNode(t.Context(), "server-2", true); !errs.Is(err, errs.Denied) || api.leaves("server-2") || e.removes != 0 || len(api.nodes) != 4 {
		t.Errorf("by itself: %v, it leaves: %t", err, api.leaves("server-2"))
	}
	if err := d.RemoveNode(t.Context(), "server-2"); err != nil || len(e.members) != 2 || api.secrets["server-2"] != nil || slices.Contains(api.nodes, "server-2") {
		t.Errorf("asked for: %v, members are %v", err, e.members)
	}
}

func TestWhoWasHeldUpDoesNothingToAMachineThatHasJoinedSince(t *testing.T) {
	for before := range 4 {
		d, api, e := etcdRemover(t)
		e.off["server-2"] = true
		steps, err := d.removal(t.Context(), "server-2", false)
		if err != nil || len(steps) != 4 {
			t.Fatalf("%v, %v", steps, err)
		}
		for i, s := range steps {
			if i == before { // another server finishes, and the machine comes back with a token
				api.again = map[string]int{"server-2": 1}
				api.secrets["server-2"] = bound("server")
				api.nodes = []string{"server-0", "server-1", "server-2"}
				e.members, e.off = []string{"server-0", "server-1", "server-2"}, map[string]bool{}
				api.asked, e.removes = nil, 0
			}
			if err := s.Do(t.Context()); err != nil {
				t.Errorf("%d: %s: %v", before, s.Name, err)
			}
		}
		if api.secrets["server-2"] == nil || api.leaves("server-2") || !slices.Contains(api.nodes, "server-2") || e.removes != 0 || len(e.members) != 3 {
			t.Errorf("before step %d: left %v, members %v, asked %v", before, api.nodes, e.members, api.asked)
		}
	}
}
