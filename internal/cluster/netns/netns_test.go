//go:build linux

package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/cluster/clustertest"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/testenv"
	"k1s.io/k1s/internal/wait"
)

// The test binary is also the program of the clusters it makes: their switch, their nodes' first process, and
// the node program (standIn).
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "cluster":
			if err := Main(context.Background(), os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, "error:", err)
				os.Exit(1)
			}
			os.Exit(0)
		case "server", "agent":
			standIn()
		case "refuse":
			fmt.Fprintln(os.Stderr, "error: no such setting")
			os.Exit(2)
		case "stop":
			// Ends the node's pods, as the real one does.
			if b, err := os.ReadFile("/var/lib/k1s/pod.pid"); err == nil {
				pid, _ := strconv.Atoi(string(b))
				_ = unix.Kill(pid, unix.SIGTERM)
				_ = os.WriteFile("/var/lib/k1s/stopped-in-order", nil, 0o600)
			}
			os.Exit(0)
		case "create": // DIR CGROUP: a creation of cluster one, to be killed
			o := Below(os.Args[2])
			o.CgroupRoot = os.Args[3]
			p := New(o)
			ctx := context.Background()
			_, err := p.Prepare(ctx, cluster.Spec{Name: "one"})
			for _, role := range []cluster.Role{cluster.Server, cluster.Agent} {
				if err == nil {
					_, err = p.Create(ctx, cluster.NodeSpec{Cluster: "one", Role: role})
				}
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "error:", err)
				os.Exit(1)
			}
			os.Exit(0)
		case "pod":
			_ = unix.Pause()
			os.Exit(0)
		case "ping", "burst", "fetch", "serve", "features":
			if err := ask(os.Args[1], os.Args[2]); err != nil {
				fmt.Fprintln(os.Stderr, "error:", err)
				os.Exit(1)
			}
			os.Exit(0)
		case "dial":
			c, err := net.DialTimeout("tcp", os.Args[2], 500*time.Millisecond)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			_ = c.Close()
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// standIn is a node program: an HTTP server at the API's port that tells about itself and starts a "pod", a
// process in namespaces and a cgroup of its own that outlives it; and a UDP echo.
func standIn() {
	die := func(err error) {
		fmt.Fprintln(os.Stderr, "stand-in:", err)
		os.Exit(1)
	}
	pc, err := net.ListenPacket("udp4", os.Getenv("K1S_NODE_IP")+":5353")
	if err != nil {
		die(err)
	}
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				die(err)
			}
			_, _ = pc.WriteTo(b[:n], from)
		}
	}()
	// Where it is asked whether it runs.
	socket := paths.Default().ControlSocket()
	if err := errors.Join(os.MkdirAll(filepath.Dir(socket), 0o755), os.RemoveAll(socket)); err != nil {
		die(err)
	}
	control, err := net.Listen("unix", socket)
	if err != nil {
		die(err)
	}
	go func() {
		for {
			c, err := control.Accept()
			if err != nil {
				die(err)
			}
			_ = c.Close()
		}
	}()
	mux := http.NewServeMux()
	mux.HandleFunc("/pid", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getpid()) })
	mux.HandleFunc("/stop", func(http.ResponseWriter, *http.Request) { os.Exit(0) })
	mux.HandleFunc("/env/{name}", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, os.Getenv(r.PathValue("name"))) })
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		b, err := os.ReadFile(r.FormValue("name"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		_, _ = w.Write(b)
	})
	mux.HandleFunc("/pod", func(w http.ResponseWriter, _ *http.Request) {
		cg := os.Getenv("K1S_CGROUP_ROOT") + "/kubepods/pod1"
		cmd := exec.Command(programInNode, "pod")
		cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID}
		err := makeCgroup(cg)
		if err == nil {
			err = cmd.Start()
		}
		if err == nil {
			err = joinCgroup(cg, cmd.Process.Pid)
		}
		if err == nil {
			err = os.WriteFile("/var/lib/k1s/pod.pid", []byte(strconv.Itoa(cmd.Process.Pid)), 0o600)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, cmd.Process.Pid)
	})
	l, err := net.Listen("tcp4", os.Getenv("K1S_NODE_IP")+":6443")
	if err != nil {
		die(err)
	}
	die(http.Serve(l, mux))
}

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// shortDir is a directory of the test whose path leaves room for the names of sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "k1s-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func testProvider(t *testing.T, change ...func(*Options)) *Provider {
	testenv.Root(t)
	o := Below(shortDir(t))
	o.CgroupRoot = "/k1s-test-" + strconv.Itoa(os.Getpid())
	o.StopTimeout = 10 * time.Second
	o.NFT = "/usr/sbin/nft"
	for _, c := range change {
		c(&o)
	}
	return New(o)
}

func TestConformance(t *testing.T) {
	testenv.Root(t)
	before := snapshot(t)
	clustertest.Run(t, func(t *testing.T) cluster.Provider { return testProvider(t) })
	same(t, before, snapshot(t))
}

// snapshot is everything of this machine that a cluster could leave a trace in, by what it is.
func snapshot(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for name, argv := range map[string][]string{
		"links":     {"ip", "-o", "link"},
		"addresses": {"ip", "-o", "addr"},
		"routes":    {"ip", "route", "show", "table", "all"},
		"rules":     {"ip", "rule"},
		"firewall":  {"nft", "list", "ruleset"},
	} {
		b, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", argv, err, b)
		}
		out[name] = string(b)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	out["mounts"] = string(mounts)
	dirs, err := cgroupDirs("/")
	if err != nil {
		t.Fatal(err)
	}
	// Other tests on this machine may come and go at the same time.
	dirs = slices.DeleteFunc(dirs, func(d string) bool { return !strings.Contains(d, "k1s-test-"+strconv.Itoa(os.Getpid())) })
	out["cgroups"] = strings.Join(dirs, "\n")
	for f := range privateSysctls {
		b, _ := os.ReadFile("/proc/sys/" + f)
		out["sysctl "+f] = string(b)
	}
	fwd, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	out["forwarding"] = string(fwd)
	return out
}

var network = []string{"links", "addresses", "routes", "rules", "firewall", "forwarding"}

func same(t *testing.T, before, after map[string]string, only ...string) {
	t.Helper()
	for k, b := range before {
		if (len(only) == 0 || slices.Contains(only, k)) && after[k] != b {
			t.Errorf("%s of this machine changed\nfrom:\n%s\nto:\n%s", k, b, after[k])
		}
	}
}

// up makes a cluster of one node and waits for its program.
func up(t *testing.T, p *Provider, spec cluster.Spec) (cluster.Spec, cluster.Node) {
	t.Helper()
	t.Cleanup(func() {
		if err := p.Delete(context.Background(), spec.Name, ""); err != nil {
			t.Error(err)
		}
		clustertest.NothingLeft(t, p, spec.Name)
	})
	s, err := p.Prepare(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	n, err := p.Create(t.Context(), cluster.NodeSpec{Cluster: spec.Name, Role: cluster.Server})
	if err != nil {
		t.Fatal(err)
	}
	get(t, s, "/pid")
	return s, n
}

// get asks the node program through the forwarded API port until it answers.
func get(t *testing.T, s cluster.Spec, path string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var body string
	err := wait.Until(ctx, 20*time.Millisecond, "the node program", func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", s.APIPort, path), nil)
		if err != nil {
			return wait.Permanent(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if body = string(b); err == nil && resp.StatusCode != http.StatusOK {
			return wait.Permanent(fmt.Errorf("%s: %s", resp.Status, body))
		}
		return err
	})
	if err != nil {
		b, _ := os.ReadFile(filepath.Join("/", s.Name))
		t.Fatalf("%v\n%s", err, b)
	}
	return body
}

func TestTheMachinesNetworkIsNotTouchedWhileAClusterRuns(t *testing.T) {
	testenv.Root(t)
	before := snapshot(t)
	p := testProvider(t)
	s, _ := up(t, p, cluster.Spec{Name: "one"})
	same(t, before, snapshot(t), append(network, "sysctl kernel/panic", "sysctl vm/overcommit_memory")...)
	if err := p.Delete(t.Context(), s.Name, ""); err != nil {
		t.Fatal(err)
	}
	same(t, before, snapshot(t))
}

func TestANodeHasARootOfItsOwn(t *testing.T) {
	p := testProvider(t)
	s, _ := up(t, p, cluster.Spec{Name: "one"})
	run := func(script string) (string, error) {
		var out, errOut strings.Builder
		err := p.Exec(t.Context(), "one", "server-0", []string{"sh", "-c", script}, cluster.Streams{Out: &out, ErrOut: &errOut})
		if err != nil {
			err = fmt.Errorf("%w: %s", err, errOut.String())
		}
		return strings.TrimSpace(out.String()), err
	}
	for _, c := range []struct{ what, script, want string }{
		{"host name", "hostname", "one-server-0"},
		{"kubelet's directory is empty", "ls -A /var/lib/kubelet", ""},
		{"/run is its own, with the directory of what stands in for k1s", "ls /run", "k1s\nk1s-init-state.json\nk1s-init.json"},
		{"machine's files are not there", "ls -A /root /home; test -e /var/lib/dpkg || echo none", "/home:\n\n/root:\nnone"},
		{"programs cannot be changed", "touch /usr/x 2>/dev/null || echo read-only", "read-only"},
		{"only its own links", "ls /sys/class/net", "eth0\nlo"},
		{"address", "ip -4 -o addr show eth0 | awk '{print $4}'", "10.88.0.10/24"},
		{"default route", "ip route show default", "default via 10.88.0.1 dev eth0"},
		{"the kubelet's settings are a copy", "cat /proc/sys/kernel/panic", "10"},
		{"mounts are shared with pods", "findmnt -no PROPAGATION /var | grep -o shared", "shared"},
		{"cgroups are there", "test -e /sys/fs/cgroup/cgroup.controllers -o -d /sys/fs/cgroup/memory && echo yes", "yes"},
		{"cgroup of commands", "grep -c /one/server-0/exec /proc/self/cgroup > /tmp/n; test $(cat /tmp/n) -gt 0 && echo yes", "yes"},
		{"no way out", "timeout 5 bash -c '</dev/tcp/203.0.113.1/80' 2>&1 | grep -o 'Network is unreachable' | head -1", "Network is unreachable"},
	} {
		got, err := run(c.script)
		if err != nil || got != c.want {
			t.Errorf("%s: got %q, %v, want %q", c.what, got, err, c.want)
		}
	}
	if got := get(t, s, "/env/K1S_CGROUP_ROOT"); got != p.opts.CgroupRoot+"/one/server-0" {
		t.Errorf("K1S_CGROUP_ROOT is %q", got)
	}
	_, err := run("exit 7")
	if ee, ok := asExit(err); !ok || ee != 7 {
		t.Errorf("exit status of a command: got %v, want 7", err)
	}
	// What a node mounts is seen on this machine by nobody.
	before := snapshot(t)["mounts"]
	if _, err := run("mkdir -p /var/m && mount -t tmpfs x /var/m && findmnt /var/m"); err != nil {
		t.Fatal(err)
	}
	if after := snapshot(t)["mounts"]; after != before {
		t.Errorf("a mount of the node reached this machine:\n%s", after)
	}
}

func asExit(err error) (int, bool) {
	var e interface{ ExitCode() int }
	for ; err != nil; err = unwrap(err) {
		if x, ok := err.(interface{ ExitCode() int }); ok {
			e = x
			break
		}
	}
	if e == nil {
		return 0, false
	}
	return e.ExitCode(), true
}

func unwrap(err error) error {
	u, ok := err.(interface{ Unwrap() error })
	if !ok {
		return nil
	}
	return u.Unwrap()
}

// Pods with hostUsers: false.
func TestAUserNamespaceInANodeMayHaveAProcfsOfItsOwn(t *testing.T) {
	testenv.Root(t)
	argv := []string{"unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "cat", "/proc/self/uid_map"}
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Skipf("not on this machine either: %v\n%s", err, out)
	}
	p := testProvider(t)
	up(t, p, cluster.Spec{Name: "one"})
	var out strings.Builder
	if err := p.Exec(t.Context(), "one", "server-0", argv, cluster.Streams{Out: &out, ErrOut: &out}); err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	// What a node may not change of the machine is still covered.
	if err := p.Exec(t.Context(), "one", "server-0", []string{"mountpoint", "-q", "/proc/sys/vm/overcommit_memory"}, cluster.Streams{}); err != nil {
		t.Error(err)
	}
}

func TestPublishedPortsLeadIntoTheCluster(t *testing.T) {
	p := testProvider(t)
	tcp, udp := freePorts(t)
	s, _ := up(t, p, cluster.Spec{Name: "one", Publish: []cluster.Publish{
		{HostPort: tcp, NodePort: 6443, Proto: "tcp"}, {HostPort: udp, NodePort: 5353, Proto: "udp"},
	}})
	if a, b := get(t, s, "/pid"), get(t, cluster.Spec{APIPort: tcp}, "/pid"); a != b {
		t.Errorf("the API answers as process %s, the published port as %s", a, b)
	}
	c, err := net.Dial("udp4", fmt.Sprintf("127.0.0.1:%d", udp))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 16)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err = wait.Until(ctx, 10*time.Millisecond, "the echo", func(context.Context) error { // a packet may be lost
		if _, err := c.Write([]byte("ping")); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		n, err := c.Read(buf)
		if err == nil && string(buf[:n]) != "ping" {
			return wait.Permanent(fmt.Errorf("got %q", buf[:n]))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestAPortInUseIsNamed(t *testing.T) {
	p := testProvider(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	t.Cleanup(func() {
		if err := p.Delete(context.Background(), "one", ""); err != nil {
			t.Error(err)
		}
		clustertest.NothingLeft(t, p, "one")
	})
	_, err = p.Prepare(t.Context(), cluster.Spec{Name: "one", APIPort: port})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("127.0.0.1:%d (tcp) to the cluster: it is in use by netns.test (pid %d)", port, os.Getpid())) {
		t.Errorf("got %v, want an error that names the port", err)
	}
}

func freePorts(t *testing.T) (tcp, udp uint16) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port), uint16(c.LocalAddr().(*net.UDPAddr).Port)
}

// Two users, or one with two K1S_CLUSTERS_DIR, know nothing of each other's clusters.
func TestClustersMadeAtOnceInDifferentDirectoriesGetDifferentPorts(t *testing.T) {
	const many = 4
	type made struct {
		spec cluster.Spec
		err  error
	}
	results := make(chan made, many)
	for i := range many {
		p := testProvider(t)
		name := "at-once-" + strconv.Itoa(i)
		t.Cleanup(func() {
			if err := p.Delete(context.Background(), name, ""); err != nil {
				t.Error(err)
			}
			clustertest.NothingLeft(t, p, name)
		})
		go func() {
			s, err := p.Prepare(context.Background(), cluster.Spec{Name: name})
			results <- made{s, err}
		}()
	}
	ports := map[uint16]bool{}
	for range many {
		r := <-results
		if r.err != nil {
			t.Error(r.err)
		}
		if ports[r.spec.APIPort] {
			t.Errorf("port %d was given twice", r.spec.APIPort)
		}
		ports[r.spec.APIPort] = true
	}
}

func TestAChosenPortThatSomebodyElseHasAtTheNextStartIsChosenAgain(t *testing.T) {
	p := testProvider(t)
	s, _ := up(t, p, cluster.Spec{Name: "one"})
	if err := p.Stop(t.Context(), "one", ""); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", s.APIPort))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	st := start(t, p, "one")
	if st.Spec.APIPort == s.APIPort || st.Spec.APIPort == 0 || st.State != cluster.Running {
		t.Errorf("the port was %d, is %d; the cluster is %s (%s)", s.APIPort, st.Spec.APIPort, st.State, st.Note)
	}
	get(t, st.Spec, "/pid")
}

func TestClustersOfOneNameInTwoDirectoriesDoNotDisturbEachOther(t *testing.T) {
	var ps []*Provider
	for range 2 {
		dir := shortDir(t)
		ps = append(ps, testProvider(t, func(o *Options) {
			root := o.CgroupRoot
			*o = Below(dir)
			o.CgroupRoot = filepath.Join(root, filepath.Base(o.CgroupRoot))
			o.StopTimeout = 10 * time.Second
		}))
	}
	up(t, ps[0], cluster.Spec{Name: "one"})
	s, _ := up(t, ps[1], cluster.Spec{Name: "one"})
	pid := get(t, s, "/pid")
	if err := ps[0].Delete(t.Context(), "one", ""); err != nil {
		t.Fatal(err)
	}
	clustertest.NothingLeft(t, ps[0], "one")
	if now := get(t, s, "/pid"); now != pid {
		t.Errorf("the other cluster's program was process %s and is %s", pid, now)
	}
}

func TestTwoClustersWithTheSameAddressesAnswerEachForItself(t *testing.T) {
	p := testProvider(t)
	s1, _ := up(t, p, cluster.Spec{Name: "one"})
	s2, _ := up(t, p, cluster.Spec{Name: "two"})
	for want, s := range map[string]cluster.Spec{"one": s1, "two": s2} {
		if got := get(t, s, "/env/K1S_CLUSTER_NAME"); got != want {
			t.Errorf("the API of cluster %s is answered by %s", want, got)
		}
	}
}

func TestNodesReachEachOtherAndPortsLeadToAllOfThem(t *testing.T) {
	p := testProvider(t)
	tcp, _ := freePorts(t)
	s, _ := up(t, p, cluster.Spec{Name: "one", Publish: []cluster.Publish{{HostPort: tcp, NodePort: 6443, Proto: "tcp"}}})
	if _, err := p.Create(t.Context(), cluster.NodeSpec{Cluster: "one", Role: cluster.Agent}); err != nil {
		t.Fatal(err)
	}
	var errOut strings.Builder
	err := p.Exec(t.Context(), "one", "agent-0", []string{"bash", "-c", "timeout 10 bash -c '</dev/tcp/10.88.0.10/6443'"}, cluster.Streams{ErrOut: &errOut})
	if err != nil {
		t.Errorf("the agent does not reach the server: %v: %s", err, errOut.String())
	}
	// The published port leads to one after the other; the API to the server only.
	seen := map[string]bool{}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = wait.Until(ctx, 20*time.Millisecond, "both nodes to answer", func(context.Context) error {
		if seen[get(t, cluster.Spec{APIPort: tcp}, "/env/K1S_NODE_NAME")] = true; len(seen) < 2 {
			return fmt.Errorf("only %v did", seen)
		}
		return nil
	})
	if err != nil || !seen["server-0"] || !seen["agent-0"] {
		t.Errorf("answered: %v, %v", seen, err)
	}
	for range 3 {
		if got := get(t, s, "/env/K1S_NODE_NAME"); got != "server-0" {
			t.Errorf("the API is answered by %s", got)
		}
	}
}

func kill9(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		rec, err := recordOf(pid)
		if err != nil {
			t.Fatal(err)
		}
		if err := rec.signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if !rec.waitGone(10 * time.Second) {
			t.Fatalf("process %d survives", pid)
		}
	}
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func start(t *testing.T, p *Provider, name string) cluster.Status {
	t.Helper()
	st := state(t, p, name)
	if _, err := p.Prepare(t.Context(), st.Spec); err != nil {
		t.Fatal(err)
	}
	for _, n := range st.Spec.Nodes {
		if _, err := p.Create(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	return state(t, p, name)
}

func state(t *testing.T, p *Provider, name string) cluster.Status {
	t.Helper()
	st, err := p.Describe(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestTheNodeProgramIsRestartedWhenItDies(t *testing.T) {
	p := testProvider(t)
	s, n := up(t, p, cluster.Spec{Name: "one"})
	old := get(t, s, "/pid")
	kill9(t, atoi(t, old))
	if now := get(t, s, "/pid"); now == old {
		t.Errorf("the node program is still process %s", now)
	}
	if st := state(t, p, "one"); st.State != cluster.Running || st.Nodes[0].PID != n.PID {
		t.Errorf("got %+v", st)
	}
}

// The first process of the node may not have written down yet that the program has ended.
func TestAStartThatFollowsAStopAtOnceIsNotLost(t *testing.T) {
	p := testProvider(t)
	s, n := up(t, p, cluster.Spec{Name: "one"})
	first, err := recordOf(n.PID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(n.Log)
			st, _ := os.ReadFile(filepath.Join(p.layout("one").nodeRun("server-0"), initStateName))
			t.Logf("%s\nstate: %s", b, st)
		}
	})
	for round := range 6 {
		program, err := recordOf(atoi(t, get(t, s, "/pid")))
		if err != nil {
			t.Fatal(err)
		}
		slow := round%2 == 0 // it hears of the end and of the start in one moment
		if slow {
			if err := first.signal(unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		}
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		if resp, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/stop", s.APIPort)); err == nil {
			_ = resp.Body.Close()
		}
		for deadline := time.Now().Add(time.Minute); program.alive(); {
			if time.Now().After(deadline) {
				t.Fatal("the node program does not end")
			}
		}
		if slow {
			time.AfterFunc(100*time.Millisecond, func() { _ = first.signal(unix.SIGCONT) })
		}
		if st := start(t, p, "one"); st.State != cluster.Running {
			t.Fatalf("after the start it is %s (%s), its node %s (%s)", st.State, st.Note, st.Nodes[0].State, st.Nodes[0].Note)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		err = wait.Until(ctx, 10*time.Millisecond, "another node program", func(context.Context) error {
			if get(t, s, "/pid") == fmt.Sprint(program.PID) {
				return errors.New("the old one answers")
			}
			return nil
		})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestANodeProgramThatWasStoppedStaysSoUntilTheClusterIsStarted(t *testing.T) {
	p := testProvider(t)
	s, n := up(t, p, cluster.Spec{Name: "one"})
	program := get(t, s, "/pid")
	pod, err := recordOf(atoi(t, get(t, s, "/pod")))
	if err != nil {
		t.Fatal(err)
	}
	stopIt := func() {
		t.Helper()
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		if resp, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/stop", s.APIPort)); err == nil {
			_ = resp.Body.Close()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := wait.Until(ctx, 10*time.Millisecond, "the cluster to be stopped", func(context.Context) error {
			st, err := p.Describe(ctx, "one")
			if err == nil && (st.State != cluster.Stopped || st.Nodes[0].State != cluster.Stopped || !strings.Contains(st.Note, "k1s cluster start one")) {
				err = fmt.Errorf("it is %s (%s), its node %s (%s)", st.State, st.Note, st.Nodes[0].State, st.Nodes[0].Note)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	stopIt()
	if !pod.alive() {
		t.Error("the pod has ended with the node program")
	}
	// A command can still be run there.
	if err := p.Exec(t.Context(), "one", "server-0", []string{"true"}, cluster.Streams{}); err != nil {
		t.Error(err)
	}
	st := start(t, p, "one")
	if st.State != cluster.Running || st.Nodes[0].PID != n.PID {
		t.Errorf("after the start: %+v", st)
	}
	if now := get(t, s, "/pid"); now == program {
		t.Error("the old node program answers")
	}
	if !pod.alive() {
		t.Error("the pod has ended with the start")
	}
	// Stopping the cluster ends pods in order, also while the node program is stopped.
	stopIt()
	if err := p.Stop(t.Context(), "one", ""); err != nil {
		t.Fatal(err)
	}
	if pod.alive() {
		t.Error("the pod survived the stop of the cluster")
	}
	if !fileExists(filepath.Join(p.layout("one").nodeVar("server-0"), "lib/k1s/stopped-in-order")) {
		t.Error("the pods were not ended in order")
	}
}

func TestStartMendsANodeThatHasGivenUp(t *testing.T) {
	p := testProvider(t)
	t.Cleanup(func() {
		if err := p.Delete(context.Background(), "one", ""); err != nil {
			t.Error(err)
		}
	})
	s, err := p.Prepare(t.Context(), cluster.Spec{Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	refusing := New(p.opts)
	refusing.opts.NodeArgs = []string{"refuse"}
	if _, err := refusing.Create(t.Context(), cluster.NodeSpec{Cluster: "one", Role: cluster.Server}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = wait.Until(ctx, 10*time.Millisecond, "the node to give up", func(context.Context) error {
		if st := state(t, p, "one"); st.State != cluster.Broken || !strings.Contains(st.Note, "gave up") {
			return fmt.Errorf("it is %s (%s)", st.State, st.Note)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	start(t, p, "one")
	get(t, s, "/pid")
}

func TestPodsSurviveTheDeathOfTheNodesFirstProcess(t *testing.T) {
	p := testProvider(t)
	s, n := up(t, p, cluster.Spec{Name: "one"})
	pod, err := recordOf(atoi(t, get(t, s, "/pod")))
	if err != nil {
		t.Fatal(err)
	}
	kill9(t, n.PID)
	if st := state(t, p, "one"); st.State != cluster.Broken || !strings.Contains(st.Note, "first process is gone") {
		t.Errorf("after the kill: got %s (%s)", st.State, st.Note)
	}
	st := start(t, p, "one")
	if st.State != cluster.Running || st.Nodes[0].PID == n.PID {
		t.Errorf("after the start: got %+v", st)
	}
	get(t, s, "/pid")
	if !pod.alive() {
		t.Error("the pod is gone")
	}
	// It runs in the same namespaces as before.
	if got := get(t, s, "/file?name=/var/lib/k1s/pod.pid"); got != strconv.Itoa(pod.PID) {
		t.Errorf("the node's files changed: %q", got)
	}
	// An orderly stop ends pods in order.
	if err := p.Stop(t.Context(), "one", ""); err != nil {
		t.Fatal(err)
	}
	if pod.alive() {
		t.Error("the pod survived the stop of the cluster")
	}
	if !fileExists(filepath.Join(p.layout("one").nodeVar("server-0"), "lib/k1s/stopped-in-order")) {
		t.Error("the pods were not ended in order")
	}
}

func TestAKilledSwitchIsShownAndStartBringsItBack(t *testing.T) {
	p := testProvider(t)
	s, n := up(t, p, cluster.Spec{Name: "one"})
	rec, err := readProc(p.layout("one").proc(switchName))
	if err != nil {
		t.Fatal(err)
	}
	kill9(t, rec.PID)
	if st := state(t, p, "one"); st.State != cluster.Broken || !strings.Contains(st.Note, "switch") {
		t.Errorf("got %s (%s)", st.State, st.Note)
	}
	if st := start(t, p, "one"); st.State != cluster.Running || st.Nodes[0].PID != n.PID || st.Spec.APIPort != s.APIPort {
		t.Errorf("after the start: got %+v", st)
	}
	get(t, s, "/pid")
}

// everything returns all processes of a cluster.
func everything(t *testing.T, p *Provider, name string) []int {
	t.Helper()
	a, err := cgroupPIDs(p.cgroup(name))
	if err != nil {
		t.Fatal(err)
	}
	if len(a) < 3 {
		t.Fatalf("a running cluster has at least a switch, a first process and a node program; got %v", a)
	}
	return a
}

func TestDeleteAfterEverythingWasKilled(t *testing.T) {
	testenv.Root(t)
	before := snapshot(t)
	p := testProvider(t)
	s, _ := up(t, p, cluster.Spec{Name: "one"})
	get(t, s, "/pod")
	kill9All(t, p)
	if err := p.Delete(t.Context(), "one", ""); err != nil {
		t.Fatal(err)
	}
	clustertest.NothingLeft(t, p, "one")
	same(t, before, snapshot(t))
}

// kill9All ends all processes of cluster one; processes die of each other's death, too.
func kill9All(t *testing.T, p *Provider) {
	t.Helper()
	everything(t, p, "one")
	if err := p.killAll(p.cgroup("one"), nil); err != nil {
		t.Fatal(err)
	}
}

func TestStartAfterAReboot(t *testing.T) {
	p := testProvider(t)
	s, _ := up(t, p, cluster.Spec{Name: "one"})
	get(t, s, "/pod")
	kill9All(t, p)
	// What a reboot takes: processes, mounts, cgroups; here the run directory stays, as on a machine where it
	// is no tmpfs.
	l := p.layout("one")
	if err := unmountBelow(l.runDir()); err != nil {
		t.Fatal(err)
	}
	if err := p.removeCgroups(p.cgroup("one")); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{l.proc(switchName), l.proc("server-0")} {
		rec, err := readProc(f)
		if err != nil {
			t.Fatal(err)
		}
		rec.PID, rec.Boot = os.Getpid(), "another" // the pid is somebody else's now
		b, _ := json.Marshal(rec)
		if err := os.WriteFile(f, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if st := state(t, p, "one"); st.State != cluster.Stopped {
		t.Errorf("after the reboot: got %s (%s)", st.State, st.Note)
	}
	if st := start(t, p, "one"); st.State != cluster.Running {
		t.Errorf("after the start: got %s (%s)", st.State, st.Note)
	}
	if got := get(t, s, "/file?name=/var/lib/k1s/pod.pid"); got == "" {
		t.Error("the node's data is gone")
	}
}

func TestANodeProgramThatGivesUpIsNotRestarted(t *testing.T) {
	p := testProvider(t, func(o *Options) { o.NodeArgs = []string{"refuse"} })
	t.Cleanup(func() {
		if err := p.Delete(context.Background(), "one", ""); err != nil {
			t.Error(err)
		}
	})
	if _, err := p.Prepare(t.Context(), cluster.Spec{Name: "one"}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Create(t.Context(), cluster.NodeSpec{Cluster: "one", Role: cluster.Server}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := wait.Until(ctx, 10*time.Millisecond, "the node to be broken", func(context.Context) error {
		st, err := p.Describe(ctx, "one")
		if err != nil {
			return wait.Permanent(err)
		}
		if n := st.Nodes[0]; n.State != cluster.Broken || !strings.Contains(n.Note, "gave up (exit status 2): no such setting") {
			return fmt.Errorf("it is %s (%s)", n.State, n.Note)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestNothingIsLeftOfManyClusters(t *testing.T) {
	testenv.Root(t)
	before := snapshot(t)
	p := testProvider(t)
	t.Cleanup(func() {
		if err := p.Delete(context.Background(), "one", ""); err != nil {
			t.Error(err)
		}
	})
	for range 20 {
		if _, err := p.Prepare(t.Context(), cluster.Spec{Name: "one"}); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Create(t.Context(), cluster.NodeSpec{Cluster: "one", Role: cluster.Server}); err != nil {
			t.Fatal(err)
		}
		if err := p.Delete(t.Context(), "one", ""); err != nil {
			t.Fatal(err)
		}
		clustertest.NothingLeft(t, p, "one")
	}
	same(t, before, snapshot(t))
	if fileExists(p.opts.State) || fileExists(p.opts.Run) {
		t.Error("directories are left")
	}
}

// In a mount namespace other than the machine's first the kernel may refuse to pin what was made on the wrong
// CPU. Every CPU is tried in turn as the one that made ours.
func TestClustersWorkInAnyMountNamespace(t *testing.T) {
	testenv.Root(t)
	if os.Getenv("K1S_TEST_INNER") != "" {
		p := testProvider(t)
		for i := range 4 {
			up(t, p, cluster.Spec{Name: "one"})
			if err := p.Delete(t.Context(), "one", ""); err != nil {
				t.Fatalf("cluster %d: %v", i, err)
			}
		}
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for cpu := range min(runtime.NumCPU(), 4) {
		cmd := exec.CommandContext(t.Context(), "taskset", "-c", strconv.Itoa(cpu), "unshare", "--mount", "--propagation", "shared",
			"sh", "-c", `taskset -apc 0-`+strconv.Itoa(runtime.NumCPU()-1)+` $$ >/dev/null; exec "$0" -test.run '^TestClustersWorkInAnyMountNamespace$'`, exe)
		cmd.Env = append(os.Environ(), "K1S_TEST_INNER=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("mount namespace made on CPU %d: %v\n%s", cpu, err, out)
		}
	}
}

func TestAnUnreadableRecordDoesNotPreventDeletion(t *testing.T) {
	p := testProvider(t)
	up(t, p, cluster.Spec{Name: "one"})
	if err := os.WriteFile(p.layout("one").record(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if st := state(t, p, "one"); st.State != cluster.Broken || !strings.Contains(st.Note, "cluster.json") && !strings.Contains(st.Note, "record") {
		t.Errorf("got %s (%s)", st.State, st.Note)
	}
	if err := p.Delete(t.Context(), "one", ""); err != nil {
		t.Fatal(err)
	}
	clustertest.NothingLeft(t, p, "one")
}

func TestNodesAreCutOffFromEachOtherAndHealed(t *testing.T) {
	p := testProvider(t)
	s, _ := up(t, p, cluster.Spec{Name: "one"})
	for i := range 2 {
		if _, err := p.Create(t.Context(), cluster.NodeSpec{Cluster: "one", Role: cluster.Agent, Index: i}); err != nil {
			t.Fatal(err)
		}
	}
	addr := map[string]string{"server-0": "10.88.0.10:6443", "agent-0": "10.88.0.30:6443", "agent-1": "10.88.0.31:6443"}
	// reach tells who reaches whom, e.g. "agent-0>agent-1".
	reach := func() string {
		t.Helper()
		var out []string
		for from := range addr {
			for to := range addr {
				if from != to && p.Exec(t.Context(), "one", from, []string{programInNode, "dial", addr[to]}, cluster.Streams{}) == nil {
					out = append(out, from+">"+to)
				}
			}
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	const all = "agent-0>agent-1 agent-0>server-0 agent-1>agent-0 agent-1>server-0 server-0>agent-0 server-0>agent-1"
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := wait.Until(ctx, 10*time.Millisecond, "all nodes to reach each other", func(context.Context) error {
		if got := reach(); got != all {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	m := cluster.Manager{Provider: p}
	for _, step := range []struct {
		what string
		do   func() error
		want string
	}{
		{"two cut off", func() error { return m.CutLink(t.Context(), "one", "agent-1", "agent-0") }, "agent-0>server-0 agent-1>server-0 server-0>agent-0 server-0>agent-1"},
		{"twice", func() error { return m.CutLink(t.Context(), "one", "agent-0", "agent-1") }, "agent-0>server-0 agent-1>server-0 server-0>agent-0 server-0>agent-1"},
		{"one off from all", func() error { return m.CutLink(t.Context(), "one", "server-0", "") }, ""},
		{"the two healed", func() error { return m.HealLink(t.Context(), "one", "agent-0", "agent-1") }, "agent-0>agent-1 agent-1>agent-0"},
		{"stopped and started", func() error {
			if err := p.Stop(t.Context(), "one", ""); err != nil {
				return err
			}
			st := start(t, p, "one")
			return wait.Until(ctx, 10*time.Millisecond, "the nodes", func(context.Context) error {
				for i, n := range []string{"server-0", "agent-0", "agent-1"} {
					if err := p.Exec(t.Context(), "one", n, []string{programInNode, "dial", addr[n]}, cluster.Streams{}); err != nil {
						return fmt.Errorf("%s: %w", st.Nodes[i].Name, err)
					}
				}
				return nil
			})
		}, "agent-0>agent-1 agent-1>agent-0"},
		{"all healed", func() error { return m.HealLink(t.Context(), "one", "", "") }, all},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		// After a while: a node that found nobody at an address looks for it again a moment later.
		err := wait.Until(ctx, 10*time.Millisecond, step.what, func(context.Context) error {
			if got := reach(); got != step.want {
				return fmt.Errorf("%q, want %q", got, step.want)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		get(t, s, "/pid") // from this machine, always
	}
	if err := m.HealLink(t.Context(), "one", "agent-0", "agent-1"); !errs.Is(err, errs.NotFound) {
		t.Errorf("healing what is not cut: %v", err)
	}
	if err := m.CutLink(t.Context(), "one", "agent-0", "agent-7"); !errs.Is(err, errs.NotFound) {
		t.Errorf("cutting nobody: %v", err)
	}
	if err := m.CutLink(t.Context(), "one", "agent-0", "agent-0"); !errs.Is(err, errs.Usage) {
		t.Errorf("cutting one off from itself: %v", err)
	}
}

// Stopping takes as long as pods take to end.
func TestCommandsForOneClusterDoNotWaitForThoseForAnother(t *testing.T) {
	p := testProvider(t)
	unlock, err := p.lock(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { unlock() }()
	up(t, p, cluster.Spec{Name: "two"})
	if err := p.Stop(t.Context(), "two", ""); err != nil {
		t.Error(err)
	}
	if err := p.Delete(t.Context(), "two", ""); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := p.Stop(ctx, "one", ""); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another k1s command for cluster one") {
		t.Errorf("stopping a cluster that is busy: %v", err)
	}
	unlock()
	unlock = func() {}
	if fileExists(p.opts.State) || fileExists(p.opts.Run) {
		t.Error("directories are left, though there is no cluster")
	}
}

func TestOneClusterMayBeDeletedTwiceAtOnce(t *testing.T) {
	p := testProvider(t)
	up(t, p, cluster.Spec{Name: "one"})
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if err := p.Delete(t.Context(), "one", ""); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if left, err := p.Leftovers(t.Context(), "one"); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	if fileExists(p.opts.State) || fileExists(p.opts.Run) {
		t.Error("directories are left, though there is no cluster")
	}
}

// On a machine that is busy a node's program takes its time to end, and nobody would start it again later.
func TestANodeGoesOnWhenItsProgramHasTakenLongToEnd(t *testing.T) {
	for name, c := range map[string]struct {
		ends, answers time.Duration // 0 is never
		ended         bool
		kind          errs.Kind
	}{
		"it has ended":     {ends: 1, ended: true},
		"it ends late":     {ends: 40 * time.Second, ended: true},
		"it answers late":  {answers: 40 * time.Second},
		"it does neither":  {kind: errs.Timeout},
		"both, one by one": {answers: 10 * time.Second, ends: 20 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				after := func(d time.Duration) bool { return d != 0 && time.Since(began) >= d-1 }
				ended, err := endsOrAnswers(t.Context(), func() bool { return !after(c.ends) }, func() bool { return after(c.answers) })
				if ended != c.ended || (err != nil) != (c.kind != 0) || err != nil && !errs.Is(err, c.kind) {
					t.Errorf("ended %t, %v", ended, err)
				}
			})
		})
	}
}
