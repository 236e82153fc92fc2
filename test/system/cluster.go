//go:build system

package system

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/unitlog"
	"k1s.io/k1s/internal/wait"
)

// Cluster is a sandbox of one node.
type Cluster struct {
	name  string
	ports map[int]int // published: port of the node to port of 127.0.0.1
	host  *host       // what it is on; nil is this machine

	mu   sync.Mutex   // guards what follows
	node cluster.Node // known once it is created
	gone bool         // the test has taken it away on purpose
}

func newCluster(base string) *Cluster { return &Cluster{name: the.another(base)} }

// created makes a cluster for one test; args are those of `k1s cluster create`.
func created(t *testing.T, base string, args ...string) *Cluster {
	t.Helper()
	return createdOn(t, nil, base, args...)
}

// createdOn is created on another host than this machine.
func createdOn(t *testing.T, on *host, base string, args ...string) *Cluster {
	t.Helper()
	root(t)
	c := newCluster(base)
	c.host = on
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := c.remove(ctx); err != nil {
			t.Error(err)
		}
	})
	c.showOnFailure(t)
	if err := c.create(t.Context(), args...).error(); err != nil {
		t.Fatal(err)
	}
	return c
}

// k1s runs the program under test where the cluster is.
func (c *Cluster) k1s(ctx context.Context, args ...string) result { return c.k1sWith(ctx, "", args...) }

func (c *Cluster) k1sWith(ctx context.Context, stdin string, args ...string) result {
	argv, env := append([]string{the.program}, args...), the.environ()
	if c.host != nil {
		argv, env = append(c.host.enter(), argv...), c.host.environ()
	}
	return command(ctx, env, stdin, argv...)
}

// clusters is the directory of its host's clusters.
func (c *Cluster) clusters() string {
	if c.host != nil {
		return c.host.clusters()
	}
	return the.clusters()
}

// withImages are the arguments that offer the images of the tests.
func withImages(t *testing.T, args ...string) []string {
	t.Helper()
	root(t)
	busybox, app := the.archives(t)
	return append([]string{"--image-bundle", busybox, "--image-bundle", app}, args...)
}

func (c *Cluster) create(ctx context.Context, args ...string) result {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Minute)
	defer cancel()
	r := c.k1s(ctx, append([]string{"cluster", "create", c.name, "--wait", "6m"}, args...)...)
	if err := c.find(ctx); r.failure == nil && err != nil {
		r.failure = err
	}
	return r
}

// find learns where the node is.
func (c *Cluster) find(ctx context.Context) error {
	r := c.k1s(ctx, "cluster", "ls", "-o", "json")
	if err := r.error(); err != nil {
		return err
	}
	var all []cluster.Status
	if err := json.Unmarshal([]byte(r.out), &all); err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(s cluster.Status) bool { return s.Spec.Name == c.name && len(s.Nodes) > 0 })
	if i < 0 {
		return fmt.Errorf("k1s cluster ls does not show %s:\n%s", c.name, r.out)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.node = all[i].Nodes[0]
	return nil
}

func (c *Cluster) where() cluster.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.node
}

func (c *Cluster) isGone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}

func (c *Cluster) setGone() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
}

func (c *Cluster) remove(ctx context.Context) error {
	return c.k1s(ctx, "cluster", "delete", c.name, "--yes").error()
}

// try runs kubectl; its failure may be what the test wants.
func (c *Cluster) try(ctx context.Context, args ...string) result {
	return c.k1s(ctx, append([]string{"cluster", "kubectl", c.name, "--"}, args...)...)
}

// passing is what an API server of several, or one on a busy machine, rightly answers for a moment, and every client asks
// again after. What kubectl does until something is true, or in a pod, is not asked again.
var passing = regexp.MustCompile(`etcdserver: (leader changed|request timed out|no leader)|currently unable to handle the request|TLS handshake timeout|connection refused|connection reset|unexpected EOF|did not complete within`)

// kubectl runs kubectl, which must succeed, and returns its standard output.
func (c *Cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	var r result
	again := false
	err := wait.Until(within(t, limit), askKubectl, "kubectl "+strings.Join(args, " "), func(ctx context.Context) error {
		r = c.try(ctx, args...)
		switch {
		case r.failure == nil, again && strings.Contains(r.err, "AlreadyExists"): // the first answer was lost
			return nil
		case passing.MatchString(r.err) && !slices.ContainsFunc(args, func(a string) bool { return a == "exec" || a == "logs" || a == "cp" }):
			if !again { // once: somebody has to read this
				t.Logf("is asked again: %v", r.error())
			}
			again = true
			return r.error()
		}
		return wait.Permanent(r.error())
	})
	if err != nil {
		t.Fatal(err)
	}
	return r.out
}

// in runs a command in the node.
func (c *Cluster) in(ctx context.Context, argv ...string) result {
	return c.k1s(ctx, append([]string{"cluster", "exec", c.name, "--"}, argv...)...)
}

// put writes a file in the node, complete or not at all.
func (c *Cluster) put(t *testing.T, content []byte, path string) {
	t.Helper()
	script := fmt.Sprintf("mkdir -p %[1]s && cat > %[1]s/.incoming && mv %[1]s/.incoming %[2]s", filepath.Dir(path), path)
	r := c.k1sWith(within(t, limit), string(content), "cluster", "exec", c.name, "--", "sh", "-c", script)
	if err := r.error(); err != nil {
		t.Fatal(err)
	}
}

// disk is where a file of the node is on this machine: below "var", or below "etc" for its /etc/k1s.
func (c *Cluster) disk(path string) string {
	return filepath.Join(c.clusters(), "state", c.name, "nodes/server-0", path)
}

// status asks the node's daemon.
func (c *Cluster) status(ctx context.Context) (control.Status, error) {
	return control.NewClient(c.where().ControlSocket).Status(ctx)
}

// inTurn runs a part of a test that has its cluster in common with those after it. When one fails, they would most often fail as
// well, each after a long wait, and hide what was first.
func inTurn(t *testing.T, name string, part func(*testing.T)) {
	t.Helper()
	if !t.Run(name, part) {
		t.FailNow()
	}
}

// eventually polls until probe returns nil.
func eventually(t *testing.T, d time.Duration, what string, probe func(context.Context) error) {
	t.Helper()
	if err := wait.Until(within(t, d), 200*time.Millisecond, what, probe); err != nil {
		t.Fatal(err)
	}
}

// askKubectl is the pause between two calls of kubectl. One takes a tenth of a second of processor time or two, so more of
// them would be most of what tests do that wait side by side.
const askKubectl = time.Second

// settled waits until every pod of the node is ready, those of the add-ons too.
func (c *Cluster) settled(t *testing.T) {
	t.Helper()
	eventually(t, limit, "every pod to be ready", func(ctx context.Context) error {
		st, err := c.status(ctx)
		if err == nil && (st.Node == nil || st.Node.Pods.Total < 3 || st.Node.Pods.Ready < st.Node.Pods.Total) {
			err = fmt.Errorf("%+v", st.Node)
		}
		return err
	})
}

// untilOutput waits until kubectl's output is accepted.
func (c *Cluster) untilOutput(t *testing.T, d time.Duration, what string, accept func(string) bool, args ...string) string {
	t.Helper()
	var out string
	err := wait.Until(within(t, d), askKubectl, what, func(ctx context.Context) error {
		r := c.try(ctx, args...)
		if err := r.error(); err != nil {
			return err
		}
		if out = r.out; !accept(out) {
			return fmt.Errorf("kubectl %s says %q", strings.Join(args, " "), out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func is(want string) func(string) bool {
	return func(s string) bool { return strings.TrimSpace(s) == want }
}

func contains(want string) func(string) bool {
	return func(s string) bool { return strings.Contains(s, want) }
}

// running waits until the node is running again, everything in it ready.
func (c *Cluster) running(t *testing.T) control.Status {
	t.Helper()
	var s control.Status
	eventually(t, limit, "the node to be running", func(ctx context.Context) error {
		var err error
		if s, err = c.status(ctx); err != nil {
			return err
		}
		if s.State != control.Running {
			return fmt.Errorf("it is %s %s: %s", s.State, s.Doing, notReady(s))
		}
		return nil
	})
	return s
}

func notReady(s control.Status) string {
	var out []string
	for _, c := range s.Components {
		if c.State != "ready" {
			out = append(out, c.Name+" is "+c.State+" "+c.Note)
		}
	}
	if s.Node != nil && !s.Node.Ready {
		out = append(out, "node not Ready: "+s.Node.Reason)
	}
	return strings.Join(out, ", ")
}

// component is one component's status.
func componentOf(s control.Status, name string) (control.Component, error) {
	i := slices.IndexFunc(s.Components, func(c control.Component) bool { return c.Name == name })
	if i < 0 {
		return control.Component{}, fmt.Errorf("status does not show %s", name)
	}
	return s.Components[i], nil
}

// space is a namespace of a test, with its own kubectl.
type space struct {
	*Cluster
	ns string
}

// namespace makes one and removes it in the background after the test.
func (c *Cluster) namespace(t *testing.T, name string) space {
	t.Helper()
	s := space{c, name}
	c.kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		if c.isGone() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if t.Failed() {
			for _, args := range [][]string{{"get", "all,endpointslices,pvc", "-o", "wide"}, {"get", "events", "--sort-by=.lastTimestamp"}, {"describe", "pods"}} {
				t.Logf("kubectl -n %s %s:\n%s", name, strings.Join(args, " "), c.try(ctx, append([]string{"-n", name}, args...)...).out)
			}
		}
		if err := c.try(ctx, "delete", "namespace", name, "--wait=false").error(); err != nil {
			t.Log(err) // what it is for is to make room; most clusters go now anyway
		}
	})
	// Pods are refused until it is there.
	c.untilOutput(t, limit, "the service account of namespace "+name, contains("default"), "-n", name, "get", "serviceaccounts", "-o", "name")
	return s
}

func (s space) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return s.Cluster.kubectl(t, append([]string{"-n", s.ns}, args...)...)
}

func (s space) try(ctx context.Context, args ...string) result {
	return s.Cluster.try(ctx, append([]string{"-n", s.ns}, args...)...)
}

func (s space) untilOutput(t *testing.T, d time.Duration, what string, accept func(string) bool, args ...string) string {
	t.Helper()
	return s.Cluster.untilOutput(t, d, what, accept, append([]string{"-n", s.ns}, args...)...)
}

// apply applies a file of manifests/.
func (s space) apply(t *testing.T, manifest string) {
	t.Helper()
	file, err := filepath.Abs(filepath.Join("manifests", manifest)) // it may be applied from another host
	if err != nil {
		t.Fatal(err)
	}
	s.kubectl(t, "apply", "-f", file)
}

// rolledOut waits for workloads, e.g. "deployment/web".
func (s space) rolledOut(t *testing.T, workloads ...string) {
	t.Helper()
	for _, w := range workloads {
		s.kubectl(t, "rollout", "status", w, "--timeout=4m")
	}
}

// ready waits for pods by name.
func (s space) ready(t *testing.T, pods ...string) {
	t.Helper()
	for _, p := range pods {
		s.kubectl(t, "wait", "--for=condition=Ready", "pod/"+p, "--timeout=4m")
	}
}

// sh runs a shell line in a pod.
func (s space) sh(t *testing.T, pod, line string) string {
	t.Helper()
	return s.kubectl(t, "exec", pod, "--", "sh", "-c", line)
}

// client starts a pod to ask from.
func (s space) client(t *testing.T) {
	t.Helper()
	s.apply(t, "client.yaml")
	s.ready(t, "client")
}

// showOnFailure shows the node when the test has failed, before it is removed.
func (c *Cluster) showOnFailure(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			c.dump(t)
		}
	})
}

// dump logs what tells why a node is not as it should be.
func (c *Cluster) dump(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	t.Logf("k1s status of %s:\n%s", c.name, c.in(ctx, "k1s", "status", "-o", "wide"))
	t.Logf("events of %s:\n%s", c.name, lastLines(c.try(ctx, "get", "events", "-A", "--sort-by=.lastTimestamp").out, 30))
	logs, err := filepath.Glob(filepath.Join(c.clusters(), "state", c.name, "nodes/*/var/lib/k1s/log/*.log"))
	for _, f := range append(logs, c.where().Log) {
		if f == "" {
			continue
		}
		lines, terr := unitlog.Tail(f, 25)
		if terr != nil && !errors.Is(terr, os.ErrNotExist) {
			err = errors.Join(err, terr)
			continue
		}
		t.Logf("end of %s:\n%s", f, strings.Join(lines, "\n"))
	}
	if err != nil {
		t.Log("reading the logs:", err)
	}
}

// String shows a result in a log.
func (r result) String() string {
	if r.failure != nil {
		return r.out + r.err + r.failure.Error()
	}
	return r.out + r.err
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
