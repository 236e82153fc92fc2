package cluster_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/cluster/clustertest"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/kubeconfig"
)

// world is a manager over a fake provider whose nodes have written a kubeconfig.
type world struct {
	cluster.Manager
	fake *clustertest.Fake
	dir  string
	told []string
}

func (w *world) Step(what string)      { w.told = append(w.told, what) }
func (w *world) Waiting(reason string) { w.told = append(w.told, "… "+reason) }
func (w *world) Done()                 {}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{dir: dir, fake: clustertest.NewFake(dir)}
	w.Manager = cluster.Manager{
		Provider: w.fake, Progress: w, Kubeconfigs: []string{filepath.Join(dir, "home", ".kube", "config")},
		Ready: func(context.Context, cluster.Node) error { return nil },
	}
	node := filepath.Join(dir, "dev", "server-0")
	if err := os.MkdirAll(node, 0o700); err != nil {
		t.Fatal(err)
	}
	c := kubeconfig.Config{Name: "inside", Server: "https://127.0.0.1:6443", CA: []byte("ca"), Cert: []byte("cert"), Key: []byte("key")}
	if err := kubeconfig.WriteFile(filepath.Join(node, "admin.kubeconfig"), c); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) options() cluster.CreateOptions {
	return cluster.CreateOptions{Spec: cluster.Spec{Name: "dev", APIPort: 16500}, Nodes: []cluster.NodeSpec{{Role: cluster.Server}}, Wait: time.Minute}
}

func (w *world) clusters(t *testing.T) []string {
	t.Helper()
	names, err := w.fake.Clusters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestCreateWaitsSaysWhyAndAddsTheContext(t *testing.T) {
	w := newWorld(t)
	reasons := []string{"its daemon is starting", "the node is not Ready"}
	w.Ready = func(context.Context, cluster.Node) error {
		if len(reasons) == 0 {
			return nil
		}
		defer func() { reasons = reasons[1:] }()
		return errors.New(reasons[0])
	}
	st, err := w.Create(t.Context(), w.options())
	if err != nil {
		t.Fatal(err)
	}
	if st.State != cluster.Running || len(st.Nodes) != 1 {
		t.Errorf("got %+v", st)
	}
	want := []string{
		"creating the network of cluster dev", "starting node server-0", "waiting for node server-0",
		"… its daemon is starting", "… the node is not Ready", "waiting for the kubeconfig of cluster dev",
	}
	if !slices.Equal(w.told, want) {
		t.Errorf("told %q, want %q", w.told, want)
	}
	c, err := kubeconfig.Load(w.Kubeconfigs[0])
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != "k1s-dev" || c.Server != "https://127.0.0.1:16500" {
		t.Errorf("the kubeconfig has %s at %s", c.Name, c.Server)
	}
	if err := w.Delete(t.Context(), "dev"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(w.Kubeconfigs[0])
	if err != nil || strings.Contains(string(b), "dev") {
		t.Errorf("after the deletion: %v\n%s", err, b)
	}
}

func TestTheSameNameTwiceIsRefusedAndNothingChanges(t *testing.T) {
	w := newWorld(t)
	if _, err := w.Create(t.Context(), w.options()); err != nil {
		t.Fatal(err)
	}
	_, err := w.Create(t.Context(), w.options())
	if hint, _ := errs.HintOf(err); !errs.Is(err, errs.Exists) || !strings.Contains(hint, "k1s cluster delete dev") {
		t.Errorf("got %v (hint %q)", err, hint)
	}
	if err := w.Stop(t.Context(), "dev"); err != nil {
		t.Fatal(err)
	}
	_, err = w.Create(t.Context(), w.options())
	if hint, _ := errs.HintOf(err); !strings.Contains(hint, "k1s cluster start dev") {
		t.Errorf("stopped: got %v (hint %q)", err, hint)
	}
	if got := w.clusters(t); !slices.Equal(got, []string{"dev"}) {
		t.Errorf("clusters: %v", got)
	}
}

func TestACreationThatSomebodyElseWinsLeavesTheirsAlone(t *testing.T) {
	w := newWorld(t)
	w.fake.Fail = func(method string) error {
		if method == "Prepare" { // between the look and the creation
			w.fake.Fail = nil
			if _, err := w.fake.Prepare(t.Context(), cluster.Spec{Name: "dev", Creation: "theirs"}); err != nil {
				t.Error(err)
			}
		}
		return nil
	}
	if _, err := w.Create(t.Context(), w.options()); !errs.Is(err, errs.Exists) {
		t.Errorf("got %v", err)
	}
	if got := w.clusters(t); !slices.Equal(got, []string{"dev"}) {
		t.Errorf("left are %v", got)
	}
}

func TestAStoppedClusterIsStartedWithOtherAddresses(t *testing.T) {
	w := newWorld(t)
	if _, err := w.Create(t.Context(), w.options()); err != nil {
		t.Fatal(err)
	}
	at := netip.MustParsePrefix("10.99.0.0/24")
	if _, err := w.StartAt(t.Context(), "dev", at, time.Minute, true); !errs.Is(err, errs.Exists) {
		t.Errorf("while it runs: got %v", err)
	}
	if err := w.Stop(t.Context(), "dev"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.StartAt(t.Context(), "dev", netip.MustParsePrefix("10.99.0.0/16"), time.Minute, true); !errs.Is(err, errs.Invalid) {
		t.Errorf("a network that cannot be: got %v", err)
	}
	st, err := w.StartAt(t.Context(), "dev", at, time.Minute, true)
	if err != nil || st.Nodes[0].Addr.String() != "10.99.0.10" {
		t.Errorf("%+v, %v", st.Nodes, err)
	}
}

func TestAFailedCreationIsTakenBack(t *testing.T) {
	for _, keep := range []bool{false, true} {
		w := newWorld(t)
		w.fake.Fail = func(method string) error {
			if method == "Create" {
				return errors.New("no memory")
			}
			return nil
		}
		o := w.options()
		o.Keep = keep
		if _, err := w.Create(t.Context(), o); err == nil || !strings.Contains(err.Error(), "no memory") {
			t.Errorf("got %v", err)
		}
		if got := len(w.clusters(t)) == 1; got != keep {
			t.Errorf("keep %v: left %v", keep, w.clusters(t))
		}
	}
}

func TestAnInterruptedCreationIsTakenBack(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	w.Ready = func(context.Context, cluster.Node) error {
		cancel() // Ctrl-C while waiting
		return errors.New("not yet")
	}
	_, err := w.Create(ctx, w.options())
	if !errs.Is(err, errs.Interrupted) || !strings.Contains(err.Error(), "nothing is left") {
		t.Errorf("got %v, want an error of kind Interrupted that says that nothing is left", err)
	}
	if got := w.clusters(t); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestAClusterThatIsNotReadyInTimeIsKeptForALook(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.Ready = func(context.Context, cluster.Node) error { return errors.New("kubelet is starting") }
		_, err := w.Create(t.Context(), w.options())
		hint, log := errs.HintOf(err)
		if !errs.Is(err, errs.Timeout) || !strings.Contains(err.Error(), "kubelet is starting") || hint == "" || log == "" {
			t.Errorf("got %v (hint %q, log %q)", err, hint, log)
		}
		if got := w.clusters(t); len(got) != 1 {
			t.Errorf("left: %v", got)
		}
	})
}

// broken makes every node look as if its daemon had given up.
type broken struct{ *clustertest.Fake }

func (b broken) Describe(ctx context.Context, name string) (cluster.Status, error) {
	st, err := b.Fake.Describe(ctx, name)
	for i := range st.Nodes {
		st.Nodes[i].State, st.Nodes[i].Note = cluster.Broken, "its daemon gave up (exit status 2)"
	}
	return st, err
}

func TestWaitingEndsAtOnceWhenTheNodeGaveUp(t *testing.T) {
	w := newWorld(t)
	w.Provider = broken{w.fake}
	w.Ready = func(context.Context, cluster.Node) error { return errors.New("its daemon is starting") }
	_, err := w.Create(t.Context(), w.options())
	if err == nil || errs.Is(err, errs.Timeout) || !strings.Contains(err.Error(), "gave up (exit status 2)") {
		t.Errorf("got %v", err)
	}
}

func TestWhatIsWrongIsFoundBeforeAnythingIsMade(t *testing.T) {
	for what, change := range map[string]func(*cluster.CreateOptions){
		"bad name":   func(o *cluster.CreateOptions) { o.Spec.Name = "No" },
		"bad role":   func(o *cluster.CreateOptions) { o.Nodes[0].Role = "king" },
		"no bundle":  func(o *cluster.CreateOptions) { o.Nodes[0].Bundles = []string{"/nowhere/app.tar"} },
		"bundle dir": func(o *cluster.CreateOptions) { o.Nodes[0].Bundles = []string{"/"} },
	} {
		w := newWorld(t)
		o := w.options()
		change(&o)
		if _, err := w.Create(t.Context(), o); err == nil {
			t.Errorf("%s: got no error", what)
		}
		if len(w.clusters(t)) != 0 || len(w.told) != 0 {
			t.Errorf("%s: something was done: %v", what, w.told)
		}
	}
}

func TestAStoppedClusterStartsAgain(t *testing.T) {
	w := newWorld(t)
	if _, err := w.Start(t.Context(), "dev", time.Minute, false); !errs.Is(err, errs.NotFound) {
		t.Errorf("a cluster that is not there: got %v", err)
	}
	if _, err := w.Create(t.Context(), w.options()); err != nil {
		t.Fatal(err)
	}
	if err := w.Stop(t.Context(), "dev"); err != nil {
		t.Fatal(err)
	}
	st, err := w.Start(t.Context(), "dev", time.Minute, false)
	if err != nil || st.State != cluster.Running || st.Spec.APIPort != 16500 {
		t.Errorf("got %+v, %v", st, err)
	}
}

func TestAForeignContextOfTheSameNameIsNotOverwritten(t *testing.T) {
	w := newWorld(t)
	if err := os.MkdirAll(filepath.Dir(w.Kubeconfigs[0]), 0o700); err != nil {
		t.Fatal(err)
	}
	foreign := kubeconfig.Config{Name: "k1s-dev", Server: "https://example.test:6443"}
	if err := kubeconfig.WriteFile(w.Kubeconfigs[0], foreign); err != nil {
		t.Fatal(err)
	}
	_, err := w.Create(t.Context(), w.options())
	if err == nil || !strings.Contains(err.Error(), "the cluster is there") {
		t.Errorf("got %v", err)
	}
	c, err := kubeconfig.Load(w.Kubeconfigs[0])
	if err != nil || c.Server != foreign.Server {
		t.Errorf("the foreign context is now %+v, %v", c, err)
	}
	if len(w.clusters(t)) != 1 {
		t.Error("the cluster is gone")
	}
}

// given remembers with which tokens nodes were created.
type given struct {
	*clustertest.Fake
	tokens map[string]string
}

func (g *given) Create(ctx context.Context, n cluster.NodeSpec) (cluster.Node, error) {
	g.tokens[n.Name()] = n.Token
	return g.Fake.Create(ctx, n)
}

func withAgents(t *testing.T) (*world, *given, cluster.CreateOptions) {
	t.Helper()
	w := newWorld(t)
	g := &given{w.fake, map[string]string{}}
	w.Provider = g
	w.Token = func(_ context.Context, n cluster.Node, role cluster.Role) (string, error) {
		return string(role) + " token of " + n.Name, nil
	}
	o := w.options()
	o.Nodes = append(o.Nodes, cluster.NodeSpec{Role: cluster.Agent}, cluster.NodeSpec{Role: cluster.Agent, Index: 1, Args: []string{"--log-level=debug"}})
	return w, g, o
}

func TestAgentsAreStartedWithATokenOnceAServerGivesOne(t *testing.T) {
	w, g, o := withAgents(t)
	tries := 0
	w.Token = func(_ context.Context, n cluster.Node, role cluster.Role) (string, error) {
		if tries++; tries < 3 {
			return "", errors.New("its daemon is starting")
		}
		return string(role) + " token of " + n.Name, nil
	}
	st, err := w.Create(t.Context(), o)
	if err != nil || len(st.Nodes) != 3 {
		t.Fatalf("%+v, %v", st, err)
	}
	if g.tokens["server-0"] != "" || g.tokens["agent-0"] != "agent token of server-0" || g.tokens["agent-1"] != "agent token of server-0" {
		t.Errorf("tokens %v", g.tokens)
	}
	if !slices.Contains(w.told, "… its daemon is starting") || !slices.Contains(w.told, "waiting for node agent-1") {
		t.Errorf("told %q", w.told)
	}
	record, err := os.ReadFile(filepath.Join(w.dir, "dev", "cluster.json"))
	if err == nil && strings.Contains(string(record), "token of") {
		t.Errorf("the token is in the record:\n%s", record)
	}
	// A start needs no token: nodes that have joined are nodes.
	clear(g.tokens)
	if err := w.Stop(t.Context(), "dev"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Start(t.Context(), "dev", time.Minute, false); err != nil || g.tokens["agent-0"] != "" {
		t.Errorf("start: %v, tokens %v", err, g.tokens)
	}
}

func TestAServerThatGivesNoTokenIsKeptForALook(t *testing.T) {
	w, g, o := withAgents(t)
	synctest.Test(t, func(t *testing.T) {
		w.Token = func(context.Context, cluster.Node, cluster.Role) (string, error) {
			return "", errors.New("its daemon is starting")
		}
		_, err := w.Create(t.Context(), o)
		if _, log := errs.HintOf(err); !errs.Is(err, errs.Timeout) || !strings.Contains(err.Error(), "its daemon is starting") || log == "" {
			t.Errorf("got %v (log %q)", err, log)
		}
		if got := w.clusters(t); len(got) != 1 || len(g.tokens) != 1 {
			t.Errorf("left %v, nodes %v", got, g.tokens)
		}
	})
}

func TestAgentsAreAddedAndDeleted(t *testing.T) {
	w, g, o := withAgents(t)
	if _, err := w.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	added, err := w.AddNodes(t.Context(), "dev", cluster.Agent, 2, time.Minute)
	if err != nil || len(added) != 2 || added[0].Name != "agent-2" || added[1].Name != "agent-3" || g.tokens["agent-3"] == "" {
		t.Fatalf("%+v, %v, %v", added, err, g.tokens)
	}
	st, err := w.fake.Describe(t.Context(), "dev")
	if err != nil || strings.Join(st.Spec.Nodes[4].Args, " ") != "--log-level=debug" {
		t.Errorf("an agent that was added is not like the others: %+v, %v", st.Spec.Nodes, err)
	}
	var forgotten []string
	w.Forget = func(_ context.Context, server cluster.Node, name string) error {
		forgotten = append(forgotten, server.Name+" "+name)
		return nil
	}
	plan, err := w.DeleteNodePlan(t.Context(), "dev", "agent-0")
	if want := []string{"end node agent-0 with all its pods and remove its data", "take it out of the cluster, through server-0"}; err != nil || !slices.Equal(plan, want) {
		t.Errorf("the plan is %q, %v", plan, err)
	}
	for name, kind := range map[string]errs.Kind{"server-0": errs.Unsupported, "agent-7": errs.NotFound} {
		if plan, err := w.DeleteNodePlan(t.Context(), "dev", name); !errs.Is(err, kind) {
			t.Errorf("the plan for %s is %q, %v", name, plan, err)
		}
	}
	if err := w.DeleteNode(t.Context(), "dev", "agent-0"); err != nil || !slices.Equal(forgotten, []string{"server-0 agent-0"}) {
		t.Errorf("%v, %v", forgotten, err)
	}
	// Its name and its address are not given to another machine.
	if added, err = w.AddNodes(t.Context(), "dev", cluster.Agent, 1, time.Minute); err != nil || added[0].Name != "agent-4" {
		t.Errorf("%+v, %v", added, err)
	}
	if err := w.DeleteNode(t.Context(), "dev", "server-0"); !errs.Is(err, errs.Unsupported) {
		t.Errorf("deleting the server: %v", err)
	}
	if err := w.DeleteNode(t.Context(), "dev", "agent-7"); !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "agent-4") {
		t.Errorf("deleting nobody: %v", err)
	}
	if err := w.StopNode(t.Context(), "dev", "agent-1"); err != nil {
		t.Fatal(err)
	}
	if err := w.StartNode(t.Context(), "dev", "agent-1", time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := w.StopNode(t.Context(), "dev", "server-0"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.AddNodes(t.Context(), "dev", cluster.Agent, 1, time.Minute); !errs.Is(err, errs.NotRunning) {
		t.Errorf("adding to a cluster without a server: %v", err)
	}
}

func TestAgentsAreToldWhereTheirServerIs(t *testing.T) {
	spec := cluster.Spec{Name: "dev"}
	env := strings.Join(cluster.NodeEnviron(spec, cluster.NodeSpec{Role: cluster.Agent, Index: 1}), " ")
	for _, want := range []string{"K1S_NODE_NAME=agent-1", "K1S_NODE_IP=10.88.0.31", "K1S_ROLE=agent", "K1S_SERVER=https://10.88.0.10:6443", "K1S_TOKEN_FILE=/etc/k1s/token"} {
		if !strings.Contains(env, want) {
			t.Errorf("%s is not in %s", want, env)
		}
	}
	if env := strings.Join(cluster.NodeEnviron(spec, cluster.NodeSpec{Role: cluster.Server}), " "); strings.Contains(env, "TOKEN") || strings.Contains(env, "ROLE") {
		t.Errorf("a server: %s", env)
	}
}
