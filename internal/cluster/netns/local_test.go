//go:build linux

package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/cluster/clustertest"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/kubeconfig"
	"k1s.io/k1s/internal/testenv"
	"k1s.io/k1s/internal/wait"
)

// in runs a shell line in a node.
func in(t *testing.T, p *Provider, node, script string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := p.Exec(t.Context(), "one", node, []string{"sh", "-c", script}, cluster.Streams{Out: &out, ErrOut: &out})
	return strings.TrimSpace(out.String()), err
}

func inside(t *testing.T, p *Provider, node, script, want string) {
	t.Helper()
	if got, err := in(t, p, node, script); err != nil || got != want {
		t.Errorf("%s: %s: got %q, %v, want %q", node, script, got, err, want)
	}
}

func write(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func add(t *testing.T, p *Provider, index int) {
	t.Helper()
	if _, err := p.Create(t.Context(), cluster.NodeSpec{Cluster: "one", Role: cluster.Agent, Index: index}); err != nil {
		t.Fatal(err)
	}
}

func TestNodesGetWhatTheClustersSpecGivesThem(t *testing.T) {
	p, dir := testProvider(t), shortDir(t)
	data := filepath.Dir(write(t, dir+"/data/file", "of the machine"))
	single := write(t, dir+"/single", "a file")
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer l.Close()
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("the machine\n"))
			_ = c.Close()
		}
	})
	s, _ := up(t, p, cluster.Spec{
		Name: "one",
		Volumes: []cluster.Volume{
			{Host: data, Node: "/data"}, {Host: data, Node: "/var/lib/k1s/storage/x", ReadOnly: true, On: "agents"}, {Host: single, Node: "/some/where/single", ReadOnly: true},
		},
		Env:   []cluster.Env{{Name: "A", Value: "all"}, {Name: "A", Value: "agents", On: "agents"}},
		Reach: []cluster.Reach{{Host: "127.0.0.1", Port: port}, {Host: "name.example", Port: 1}},
		Files: map[string][]byte{"registries.yaml": []byte("mirrors: {}\n"), "registries/ca.crt": []byte("ca")},
	})
	add(t, p, 0)
	inside(t, p, "server-0", "cat /data/file /some/where/single", "of the machinea file")
	inside(t, p, "server-0", "echo written > /data/new; echo x 2>/dev/null > /some/where/single || echo no", "no")
	inside(t, p, "server-0", "test -e /var/lib/k1s/storage/x || echo no", "no")
	inside(t, p, "agent-0", "cat /var/lib/k1s/storage/x/new; touch /var/lib/k1s/storage/x/y 2>/dev/null || echo no", "written\nno")
	inside(t, p, "server-0", "echo $A", "all")
	inside(t, p, "agent-0", "echo $A", "agents")
	if got := get(t, s, "/env/A"); got != "all" {
		t.Errorf("the node program has A=%s", got)
	}
	inside(t, p, "agent-0", "cat /etc/k1s/registries.yaml; stat -c %a /etc/k1s/registries.yaml; cat /etc/k1s/registries/ca.crt", "mirrors: {}\n600\nca")
	inside(t, p, "agent-0", "getent hosts host.k1s.internal name.example | awk '{print $1}' | uniq", "10.88.0.1")
	inside(t, p, "agent-0", fmt.Sprintf("bash -c 'cat < /dev/tcp/host.k1s.internal/%d'", port), "the machine")
	// Nothing else of this machine is reached this way.
	if out, err := in(t, p, "agent-0", fmt.Sprintf("timeout 5 bash -c '</dev/tcp/10.88.0.1/%d'", s.APIPort)); err == nil {
		t.Errorf("a port that is not to be reached answers: %s", out)
	}
	// All of it is there again after a stop, and the machine's files are left when the cluster goes.
	if err := p.Stop(t.Context(), "one", ""); err != nil {
		t.Fatal(err)
	}
	start(t, p, "one")
	inside(t, p, "agent-0", "cat /data/new; echo $A", "written\nagents")
	inside(t, p, "agent-0", fmt.Sprintf("bash -c 'cat < /dev/tcp/10.88.0.1/%d'", port), "the machine")
	if err := p.Delete(t.Context(), "one", ""); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{data + "/file": "of the machine", data + "/new": "written\n", single: "a file"} {
		if b, err := os.ReadFile(file); err != nil || string(b) != want {
			t.Errorf("%s after the deletion: %q, %v", file, b, err)
		}
	}
}

func TestAVolumeThatIsGoneIsNamedAtTheStart(t *testing.T) {
	p, dir := testProvider(t), shortDir(t)
	v := cluster.Volume{Host: dir + "/data", Node: "/data"}
	if err := os.Mkdir(v.Host, 0o755); err != nil {
		t.Fatal(err)
	}
	up(t, p, cluster.Spec{Name: "one", Volumes: []cluster.Volume{v}})
	if err := p.Stop(t.Context(), "one", ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(v.Host); err != nil {
		t.Fatal(err)
	}
	st := state(t, p, "one")
	if _, err := p.Prepare(t.Context(), st.Spec); err != nil {
		t.Fatal(err)
	}
	_, err := p.Create(t.Context(), st.Spec.Nodes[0])
	if hint, _ := errs.HintOf(err); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), v.Host) || hint != "make it first: mkdir -p "+v.Host {
		t.Errorf("got %v (hint %q)", err, hint)
	}
}

func TestPortsLeadToTheNodesChosenAndAppearWhereTheyAreWanted(t *testing.T) {
	p := testProvider(t)
	tcp, udp := freePorts(t)
	up(t, p, cluster.Spec{Name: "one", Publish: []cluster.Publish{
		{HostPort: tcp, NodePort: 6443, Proto: "tcp", On: "agent-1"}, {Address: ip("127.0.0.2"), HostPort: tcp, NodePort: 6443, Proto: "tcp", On: "servers"},
		{HostPort: udp, NodePort: 5353, Proto: "udp", On: "agents"},
	}})
	add(t, p, 0)
	add(t, p, 1)
	for range 4 {
		if got := get(t, cluster.Spec{APIPort: tcp}, "/env/K1S_NODE_NAME"); got != "agent-1" {
			t.Errorf("the port of agent-1 is answered by %s", got)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := wait.Until(ctx, 20*time.Millisecond, "the other address to answer", func(ctx context.Context) error {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp4", fmt.Sprintf("127.0.0.2:%d", tcp))
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil {
		t.Error(err)
	}
	err = p.Preflight(t.Context(), cluster.Spec{Name: "two", Publish: []cluster.Publish{{Address: ip("0.0.0.0"), HostPort: tcp, NodePort: 1, Proto: "tcp"}}}, nil)
	if hint, _ := errs.HintOf(err); err == nil || !strings.Contains(err.Error(), "cluster one has it") || !strings.Contains(hint, "k1s cluster stop one") {
		t.Errorf("a port of another cluster: got %v (hint %q)", err, hint)
	}
	if _, err := p.Prepare(t.Context(), cluster.Spec{Name: "two", Publish: []cluster.Publish{{Address: ip("203.0.113.77"), HostPort: udp, NodePort: 1, Proto: "tcp"}}}); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "does not have the address 203.0.113.77") {
		t.Errorf("an address of another machine: got %v", err)
	}
	if err := p.Delete(t.Context(), "two", ""); err != nil {
		t.Error(err)
	}
}

func TestArchivesAreOnTheDiskOnceAndReachEveryNode(t *testing.T) {
	p, dir := testProvider(t), shortDir(t)
	up(t, p, cluster.Spec{Name: "one"})
	l := p.layout("one")
	// links is how many names an archive has, 0 when a node does not have it.
	links := func(node, name string) uint64 {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(l.imagesOf(node), name), &st); err != nil {
			return 0
		}
		return uint64(st.Nlink)
	}
	bundle := write(t, dir+"/bundle.tar", "images")
	n := cluster.NodeSpec{Cluster: "one", Role: cluster.Agent, Bundles: []string{bundle}}
	if _, err := p.Create(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(bundle); err != nil { // the cluster has it
		t.Fatal(err)
	}
	n.Index = 1
	if _, err := p.Create(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if a, b := links("agent-0", "bundle.tar"), links("agent-1", "bundle.tar"); a != 3 || b != 3 {
		t.Errorf("the bundle has %d and %d names", a, b)
	}
	load := func(content, name string, on cluster.Selector) {
		t.Helper()
		archive := write(t, dir+"/app.tar", content)
		if err := p.AddImages(t.Context(), "one", archive, name, func(s string) bool { return strings.HasPrefix(s, "app-") }, on); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Stop(t.Context(), "one", "agent-1"); err != nil {
		t.Fatal(err)
	}
	load("one", "app-1.tar", "")
	load("one", "app-1.tar", "")
	if links("server-0", "app-1.tar") != 4 || links("agent-1", "app-1.tar") != 4 {
		t.Errorf("the archive has %d names", links("server-0", "app-1.tar"))
	}
	load("two", "app-2.tar", "agents")
	if links("server-0", "app-1.tar") != 0 || links("agent-0", "app-1.tar") != 0 || links("server-0", "app-2.tar") != 0 || links("agent-0", "app-2.tar") != 3 {
		t.Error("the new content has not taken the place of the old")
	}
	made, err := p.ImageDir("one")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AddImages(t.Context(), "one", write(t, made+"/.spool-1", "three"), "stdin-3.tar", func(string) bool { return false }, "servers"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(made + "/.spool-1"); !errors.Is(err, os.ErrNotExist) || links("server-0", "stdin-3.tar") != 2 {
		t.Errorf("what was read from standard input is there twice: %v", err)
	}
	add(t, p, 2)
	if links("agent-2", "app-2.tar") != 4 {
		t.Error("an agent that was added does not have what agents have")
	}
	inside(t, p, "agent-2", "cat /var/lib/k1s/images/app-2.tar", "two")
	if err := p.Delete(t.Context(), "one", "agent-2"); err != nil {
		t.Fatal(err)
	}
	inside(t, p, "agent-0", "cat /var/lib/k1s/images/app-2.tar", "two")
}

func TestAKilledNodeComesBackWithItsData(t *testing.T) {
	p := testProvider(t)
	s, n := up(t, p, cluster.Spec{Name: "one"})
	get(t, s, "/pod")
	inside(t, p, "server-0", "echo kept > /var/lib/kept; echo lost > /tmp/lost", "")
	if err := p.Kill(t.Context(), "one", "server-0"); err != nil {
		t.Fatal(err)
	}
	if left, err := cgroupPIDs(p.cgroup("one", "server-0")); err != nil || len(left) > 0 {
		t.Errorf("processes %v, %v", left, err)
	}
	if st := state(t, p, "one"); st.Nodes[0].State != cluster.Stopped {
		t.Errorf("after the kill: %+v", st.Nodes[0])
	}
	if _, err := os.Stat(filepath.Join(p.layout("one").nodeVar("server-0"), "lib/k1s/stopped-in-order")); !errors.Is(err, os.ErrNotExist) {
		t.Error("its pods were asked to end")
	}
	if st := start(t, p, "one"); st.State != cluster.Running || st.Nodes[0].PID == n.PID {
		t.Errorf("after the start: %+v", st)
	}
	inside(t, p, "server-0", "cat /var/lib/kept; test -e /tmp/lost || echo gone", "kept\ngone")
	if err := p.Kill(t.Context(), "none", "server-0"); err != nil {
		t.Errorf("killing what is not there: %v", err)
	}
}

func TestWhatIsInTheWayIsToldBeforeAnythingIsMade(t *testing.T) {
	p := testProvider(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := uint16(l.Addr().(*net.TCPAddr).Port)
	spec := cluster.Spec{
		Name: "one", APIPort: taken, Program: "/nowhere/k1s", Volumes: []cluster.Volume{{Host: "/nowhere/data", Node: "/data"}},
		Publish: []cluster.Publish{{Address: ip("0.0.0.0"), HostPort: taken, NodePort: 1, Proto: "tcp"}},
	}
	err = p.Preflight(t.Context(), spec, []cluster.NodeSpec{{Role: cluster.Server}, {Role: cluster.Agent}})
	for _, want := range []string{fmt.Sprintf("127.0.0.1:%d (tcp)", taken), fmt.Sprintf("0.0.0.0:%d (tcp)", taken), "/nowhere/k1s", "/nowhere/data"} {
		if err == nil || strings.Count(err.Error(), want) < 1 {
			t.Errorf("%s is not in: %v", want, err)
		}
	}
	if err != nil && strings.Count(err.Error(), "volume /nowhere/data") != 1 {
		t.Errorf("one volume is told for each node: %v", err)
	}
	clustertest.NothingLeft(t, p, "one")
	if err := p.Preflight(t.Context(), cluster.Spec{Name: "one"}, nil); err != nil {
		t.Errorf("nothing is in the way, and it says: %v", err)
	}
}

func TestAFullDiskIsToldWithARemedyAndNothingIsLeft(t *testing.T) {
	testenv.Root(t)
	dir := shortDir(t)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	o := Below(dir)
	o.CgroupRoot = fmt.Sprintf("/k1s-test-%d", os.Getpid())
	p := New(o)
	told := func(err error) {
		t.Helper()
		if hint, _ := errs.HintOf(err); !errors.Is(err, unix.ENOSPC) || !strings.Contains(hint, "K1S_CLUSTERS_DIR") {
			t.Errorf("got %v (hint %q)", err, hint)
		}
	}
	told(p.Preflight(t.Context(), cluster.Spec{Name: "one"}, nil))
	// It gets full in the middle.
	s, err := p.Prepare(t.Context(), cluster.Spec{Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	full, err := os.Create(filepath.Join(dir, "full"))
	if err != nil {
		t.Fatal(err)
	}
	for b := make([]byte, 4096); err == nil; {
		_, err = full.Write(b)
	}
	full.Close()
	_, err = p.Create(t.Context(), cluster.NodeSpec{Cluster: s.Name, Role: cluster.Server})
	told(err)
	if err := p.Delete(t.Context(), "one", ""); err != nil {
		t.Fatal(err)
	}
	clustertest.NothingLeft(t, p, "one")
}

func TestADeletedStateDirectoryDoesNotPreventDeletion(t *testing.T) {
	p := testProvider(t)
	up(t, p, cluster.Spec{Name: "one"})
	if err := os.RemoveAll(p.opts.State); err != nil {
		t.Fatal(err)
	}
	st := state(t, p, "one")
	if st.State != cluster.Broken {
		t.Errorf("it is %s (%s)", st.State, st.Note)
	}
	if err := p.Delete(t.Context(), "one", ""); err != nil {
		t.Fatal(err)
	}
	clustertest.NothingLeft(t, p, "one")
}

// TestAKilledCreationIsDeletedWithoutATrace kills who creates at many moments.
func TestAKilledCreationIsDeletedWithoutATrace(t *testing.T) {
	testenv.Root(t)
	before := snapshot(t)
	p := testProvider(t)
	// The whole of it takes some 100 ms.
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 25 {
		after := time.Duration(r.IntN(120)) * time.Millisecond
		cmd := exec.Command("/proc/self/exe", "create", filepath.Dir(p.opts.State), p.opts.CgroupRoot)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err := p.Delete(t.Context(), "one", ""); err != nil {
			t.Fatalf("killed after %s (%d of seed %d): %v", after, i, seed, err)
		}
		clustertest.NothingLeft(t, p, "one")
		if t.Failed() {
			t.Fatalf("killed after %s (%d of seed %d)", after, i, seed)
		}
	}
	same(t, before, snapshot(t))
}

func TestOneOfTwoCreationsOfOneNameIsRefusedAndDisturbsNothing(t *testing.T) {
	p := testProvider(t)
	t.Cleanup(func() {
		if err := p.Delete(context.Background(), "one", ""); err != nil {
			t.Error(err)
		}
		clustertest.NothingLeft(t, p, "one")
	})
	var (
		both   sync.WaitGroup
		failed [2]error
	)
	for i := range failed {
		both.Go(func() {
			m := cluster.Manager{Provider: p, Ready: func(_ context.Context, n cluster.Node) error {
				return kubeconfig.WriteFile(n.Kubeconfig, kubeconfig.Config{Name: "inside", Server: "https://127.0.0.1:6443"})
			}}
			_, failed[i] = m.Create(t.Context(), cluster.CreateOptions{
				Spec: cluster.Spec{Name: "one"}, Nodes: []cluster.NodeSpec{{Role: cluster.Server}}, Wait: time.Minute, NoKubeconfig: true,
			})
		})
	}
	both.Wait()
	if a, b := failed[0], failed[1]; !(a == nil && errs.Is(b, errs.Exists)) && !(b == nil && errs.Is(a, errs.Exists)) {
		t.Errorf("got %v", failed)
	}
	if st := state(t, p, "one"); st.State != cluster.Running || len(st.Nodes) != 1 {
		t.Errorf("it is %+v", st)
	}
}
