package clustercmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/cluster/clustertest"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/iostreams"
	"k1s.io/k1s/internal/kubeconfig"
)

type world struct {
	fake *clustertest.Fake
	deps Deps
	dir  string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{dir: dir, fake: clustertest.NewFake(dir)}
	w.deps = Deps{
		Provider: w.fake,
		Ready:    func(context.Context, cluster.Node) error { return nil },
		Environ:  func() []string { return []string{"HOME=" + dir} },
	}
	for _, name := range []string{"k1s", "dev"} {
		node := filepath.Join(dir, name, "server-0")
		if err := os.MkdirAll(node, 0o700); err != nil {
			t.Fatal(err)
		}
		c := kubeconfig.Config{Name: "inside", Server: "https://127.0.0.1:6443", CA: []byte("ca"), Cert: []byte("cert"), Key: []byte("key")}
		if err := kubeconfig.WriteFile(filepath.Join(node, "admin.kubeconfig"), c); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *world) run(in string, args ...string) (out, errOut string, err error) {
	var o, e bytes.Buffer
	cmd := New(iostreams.Streams{In: strings.NewReader(in), Out: &o, ErrOut: &e}, w.deps)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(args)
	err = cmd.ExecuteContext(context.Background())
	return o.String(), e.String(), err
}

func TestALifeOfACluster(t *testing.T) {
	w := newWorld(t)
	out, told, err := w.run("", "create", "dev", "-p", "8080:30080", "--api-port", "16500")
	if err != nil || out != "" {
		t.Fatalf("create: %q, %v", out, err)
	}
	for _, want := range []string{"starting node server-0\n", "cluster dev is ready: https://127.0.0.1:16500\n",
		"127.0.0.1:8080 leads to port 30080", "context k1s-dev", "kubectl get pods -A"} {
		if !strings.Contains(told, want) {
			t.Errorf("create does not say %q:\n%s", want, told)
		}
	}
	out, _, err = w.run("", "ls")
	if f := strings.Fields(strings.Split(out, "\n")[1]); err != nil || strings.Join(f[:4], " ") != "dev running 1/1 127.0.0.1:16500" {
		t.Errorf("ls: %v\n%s", err, out)
	}
	out, _, err = w.run("", "ls", "-o", "json")
	if err != nil || !strings.Contains(out, `"apiPort": 16500`) {
		t.Errorf("ls -o json: %v\n%s", err, out)
	}
	out, _, err = w.run("", "kubeconfig", "dev")
	if err != nil || !strings.Contains(out, "https://127.0.0.1:16500") {
		t.Errorf("kubeconfig: %v\n%s", err, out)
	}
	if _, _, err = w.run("", "stop", "dev"); err != nil {
		t.Error(err)
	}
	if out, _, _ = w.run("", "ls"); !strings.Contains(out, "stopped") {
		t.Errorf("ls of a stopped cluster:\n%s", out)
	}
	if _, _, err = w.run("", "start", "dev"); err != nil {
		t.Error(err)
	}
	if _, _, err = w.run("", "delete", "dev"); !errs.Is(err, errs.Usage) {
		t.Errorf("delete without a terminal and --yes: got %v", err)
	}
	out, _, err = w.run("", "delete", "dev", "--dry-run")
	if err != nil || !strings.Contains(out, "end node server-0") {
		t.Errorf("delete --dry-run: %v\n%s", err, out)
	}
	for _, want := range []string{"cluster dev is deleted\n", "there is no cluster dev\n"} {
		if _, told, err = w.run("", "delete", "dev", "--yes"); err != nil || !strings.HasSuffix(told, want) {
			t.Errorf("delete: %v, %q, want %q", err, told, want)
		}
	}
}

func TestLinksAreCutDelayedListedAndHealed(t *testing.T) {
	w := newWorld(t)
	w.deps.Token = func(context.Context, cluster.Node, cluster.Role) (string, error) { return "k1s1.agent", nil }
	if _, _, err := w.run("", "create", "dev", "--agents", "2"); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ args, told string }{
		{"cut agent-1 agent-0", "agent-1 is cut off from agent-0\n"},
		{"delay agent-0 server-0 50ms --jitter 5ms", "agent-0 and server-0 hear each other 50ms ± 5ms later\n"},
		{"delay agent-1 1.5s", "agent-1 and all other nodes hear each other 1.5s later\n"},
	} {
		if _, told, err := w.run("", append([]string{"net", "-c", "dev"}, strings.Fields(step.args)...)...); err != nil || told != step.told {
			t.Errorf("%s: %v, %q", step.args, err, told)
		}
	}
	for args, want := range map[string]string{
		"delay agent-0 agent-1":               `"agent-1" is no duration`,
		"delay agent-0":                       "say which nodes, one or two, and by how much",
		"delay agent-0 agent-1 server-0 50ms": "say which nodes, one or two, and by how much",
		"delay agent-0 50ms --jitter 1s":      "a jitter of 1s is not possible with a delay of 50ms",
		"delay agent-0 0s":                    "a delay of 0s is not possible",
	} {
		if _, _, err := w.run("", append([]string{"net", "-c", "dev"}, strings.Fields(args)...)...); !errs.Is(err, errs.Usage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
	out, _, err := w.run("", "net", "ls", "-c", "dev")
	want := "NODE     AND        LINK              DROPPED  NOTE\n" +
		"agent-0  agent-1    cut off\n" +
		"agent-0  server-0   50ms ± 5ms later  0\n" +
		"agent-1  all nodes  1.5s later        0\n"
	if err != nil || out != want {
		t.Errorf("ls: %v\n%s\nwant\n%s", err, out, want)
	}
	var list []map[string]any
	out, _, err = w.run("", "net", "ls", "-c", "dev", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &list)
	}
	if got := fmt.Sprint(list); err != nil || got != "[map[a:agent-0 b:agent-1] map[a:agent-0 b:server-0 delay:50ms jitter:5ms] map[a:agent-1 delay:1.5s]]" {
		t.Errorf("ls -o json: %v, %s", err, got)
	}
	if _, told, err := w.run("", "net", "heal", "-c", "dev"); err != nil || told != "healed\n" {
		t.Errorf("heal: %v, %q", err, told)
	}
	if out, _, err := w.run("", "net", "ls", "-c", "dev", "-o", "json"); err != nil || out != "[]\n" {
		t.Errorf("ls after that: %v, %q", err, out)
	}
}

func TestDeletingANodeShowsItsPlanAndAsks(t *testing.T) {
	w := newWorld(t)
	w.deps.Token = func(context.Context, cluster.Node, cluster.Role) (string, error) { return "k1s1.agent", nil }
	w.deps.Forget = func(context.Context, cluster.Node, string) error { return nil }
	if _, _, err := w.run("", "create", "dev", "--agents", "1"); err != nil {
		t.Fatal(err)
	}
	out, _, err := w.run("", "node", "delete", "dev", "agent-0", "--dry-run")
	if want := "end node agent-0 with all its pods and remove its data\ntake it out of the cluster, through server-0\n"; err != nil || out != want {
		t.Errorf("the plan is %q, %v", out, err)
	}
	_, _, err = w.run("", "node", "delete", "dev", "agent-0")
	if hint, _ := errs.HintOf(err); !errs.Is(err, errs.Usage) || !strings.Contains(hint, "--dry-run") {
		t.Errorf("without a terminal and --yes: %v, hint %q", err, hint)
	}
	if out, _, _ := w.run("", "node", "ls", "dev"); !strings.Contains(out, "agent-0") {
		t.Errorf("it is gone:\n%s", out)
	}
	if _, _, err := w.run("", "node", "delete", "dev", "agent-0", "--yes"); err != nil {
		t.Error(err)
	}
	if out, _, _ := w.run("", "node", "ls", "dev"); strings.Contains(out, "agent-0") {
		t.Errorf("it is still there:\n%s", out)
	}
}

func TestWrongCommandLinesAreUsageErrorsAndDoNothing(t *testing.T) {
	w := newWorld(t)
	for _, args := range [][]string{
		{"create", "No"}, {"create", "a", "b"}, {"create", "-p", "x"}, {"create", "--set", "spec.isolation"},
		{"create", "--set", "spec.isolaton=none"}, {"create", "--set", "spec.isolation=no"}, {"create", "--", "--nonsense"}, {"create", "--", "word"},
		{"create", "--set", "spec.network.podCIDR=10.88.0.0/16"}, {"create", "--wait", "0s"}, {"create", "--config", "/nowhere"},
		{"delete"}, {"delete", "a", "--all"}, {"exec", "dev"}, {"exec", "--"}, {"kubectl", "get", "pods"}, {"ls", "x"},
	} {
		if _, _, err := w.run("", args...); !errs.Is(err, errs.Usage) && !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: got %v, want a usage error", args, err)
		}
	}
	if names, _ := w.fake.Clusters(context.Background()); len(names) != 0 {
		t.Errorf("clusters: %v", names)
	}
}

func TestWhatTheNodeIsGiven(t *testing.T) {
	w := newWorld(t)
	const conf = "apiVersion: k1s.io/v1alpha1\nkind: Config\nspec:\n  network:\n    podCIDR: 10.50.0.0/16\n"
	if _, _, err := w.run(conf, "create", "--no-wait", "--no-kubeconfig", "-c", "-",
		"--set", "spec.isolation=none", "--", "--log-level", "debug"); err != nil {
		t.Fatal(err)
	}
	st, err := w.fake.Describe(t.Context(), "k1s")
	if err != nil {
		t.Fatal(err)
	}
	n := st.Spec.Nodes[0]
	if got := strings.Join(cluster.NodeArgs(st.Spec, n), " "); n.Config != conf || got != "--log-level debug --isolation=none" {
		t.Errorf("config %q, arguments %q", n.Config, got)
	}
	if got := fmt.Sprint(st.Spec.Private); got != "[10.50.0.0/16 10.43.0.0/16]" {
		t.Errorf("private networks: %s", got)
	}
	if _, err := os.Stat(filepath.Join(w.dir, ".kube")); !os.IsNotExist(err) {
		t.Errorf("the kubeconfig was touched: %v", err)
	}
}

func TestDryRunPrintsThePlanAndDoesNothing(t *testing.T) {
	w := newWorld(t)
	out, _, err := w.run("", "create", "dev", "--dry-run")
	if err != nil || !strings.Contains(out, "start node server-0 at 10.88.0.10") {
		t.Errorf("%v\n%s", err, out)
	}
	if names, _ := w.fake.Clusters(t.Context()); len(names) != 0 {
		t.Errorf("clusters: %v", names)
	}
}

func TestKubectlGetsTheClustersKubeconfig(t *testing.T) {
	w := newWorld(t)
	if _, _, err := w.run("", "create", "dev", "--api-port", "16501"); err != nil {
		t.Fatal(err)
	}
	var got []string
	w.deps.Kubectl = func(_ context.Context, file string, args []string) error {
		c, err := kubeconfig.Load(file)
		got = append(args, c.Server)
		return err
	}
	if _, _, err := w.run("", "kubectl", "dev", "--", "get", "pods", "-A"); err != nil {
		t.Fatal(err)
	}
	if strings.Join(got, " ") != "get pods -A https://127.0.0.1:16501" {
		t.Errorf("got %q", got)
	}
}

func TestHiddenCommandsReachTheProvider(t *testing.T) {
	w := newWorld(t)
	var got []string
	w.deps.Internal = func(_ context.Context, args []string) error { got = args; return errors.New("stop") }
	if _, _, err := w.run("", "__exec", "/cgroup", "sh", "-c", "true"); err == nil || err.Error() != "stop" {
		t.Errorf("got %v", err)
	}
	if strings.Join(got, " ") != "__exec /cgroup sh -c true" {
		t.Errorf("got %q", got)
	}
}

func TestWhatANodeWaitsForIsSaid(t *testing.T) {
	ready := &control.Node{Ready: true}
	silent := &control.DNS{Reason: "no answer"}
	for _, c := range []struct {
		s    control.Status
		want string
	}{
		{control.Status{State: control.Starting, Doing: "waiting for the node to be Ready"}, "waiting for the node to be Ready"},
		{control.Status{State: control.Starting, Components: []control.Component{{Name: "kine", State: "ready"}, {Name: "kubelet", State: "waiting", Note: "for containerd"}}}, "kubelet is waiting: for containerd"},
		// A crash loop tells more than the step the node is at.
		{control.Status{State: control.Starting, Doing: "starting components", Components: []control.Component{{Name: "kubelet", State: "waiting"}, {Name: "kine", State: "backoff", Note: "exit code 2"}}}, "kine is in state backoff: exit code 2"},
		{control.Status{State: control.Running, Node: &control.Node{Reason: "no CNI"}}, "the node is not Ready: no CNI"},
		{control.Status{State: control.Running, Components: []control.Component{{Name: "kubelet", State: "ready"}}}, "the node is running"},
		// A server that is no worker has no node and no DNS.
		{control.Status{State: control.Running, Addons: []control.Addon{{Name: "coredns", State: "waiting"}}}, ""},
		{control.Status{State: control.Running, Node: ready, DNS: silent, Addons: []control.Addon{{Name: "coredns", State: "waiting", Note: "0/1"}}}, "DNS is waiting: 0/1"},
		// After a start the cluster still believes what it knew before the stop.
		{control.Status{State: control.Running, Node: ready, DNS: silent, Addons: []control.Addon{{Name: "coredns", State: "ready"}}}, "DNS does not answer: no answer"},
		{control.Status{State: control.Running, Node: ready, DNS: &control.DNS{Answers: true}, Addons: []control.Addon{{Name: "metrics-server", State: "waiting"}}}, ""},
		{control.Status{State: control.Degraded, Node: ready}, ""},
		{control.Status{State: control.Stopping}, "the node is stopping"},
	} {
		got := ""
		if err := whyNotReady(c.s); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%+v: got %q, want %q", c.s, got, c.want)
		}
	}
}
