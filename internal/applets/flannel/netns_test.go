//go:build linux

package flannel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/version"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"k1s.io/k1s/internal/testenv"
	"k1s.io/k1s/internal/wait"
)

// The tests in this file change links, routes and rules. Each runs in network and mount namespaces of
// its own without any way out, as a second process of the test program. They need root and iproute2, and
// are asked for by naming the directory of the CNI plugins.
const (
	cniEnv    = "K1S_TEST_CNI"
	insideEnv = "K1S_TEST_INSIDE"
	fetchEnv  = "K1S_TEST_FETCH" // this process prints what is at that URL
	serveEnv  = "K1S_TEST_SERVE" // this process is serveHTTP's
	nodeEnv   = "K1S_TEST_NODE"  // this process is a node of TestPodsOfTwoNodes
)

func TestMain(m *testing.M) {
	if text := os.Getenv(nodeEnv); text != "" {
		if err := runNode(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if url := os.Getenv(fetchEnv); url != "" {
		if err := fetch(url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if name := os.Getenv(serveEnv); name != "" {
		fmt.Fprintln(os.Stderr, runServer(name))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// inside returns true in the process that may change the network.
func inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) == t.Name() {
		sh(t, "ip link set lo up && mount -t tmpfs tmpfs /run && mkdir /run/netns")
		return true
	}
	if os.Getenv(cniEnv) == "" {
		t.Skipf("set %s to the directory of the CNI plugins to run this (as root)", cniEnv)
	}
	if os.Geteuid() != 0 {
		t.Fatalf("%s is set, but this is not root", cniEnv)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	// A process that is to die with its parent dies with the thread that started it, and whoever enters namespaces ends threads.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("inside: %v\n%s", err, out)
	}
	return false
}

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

func until(t *testing.T, what string, probe func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := wait.Until(ctx, 50*time.Millisecond, what, func(context.Context) error { return probe() }); err != nil {
		t.Fatal(err)
	}
}

// shows waits until a command's output holds a text, or does not.
func shows(t *testing.T, script, text string, want bool) {
	t.Helper()
	until(t, fmt.Sprintf("%q in %s: %t", text, script, want), func() error {
		out, err := exec.CommandContext(t.Context(), "sh", "-ec", script).CombinedOutput()
		if err == nil && strings.Contains(string(out), text) == want {
			return nil
		}
		return fmt.Errorf("%w %s", err, out)
	})
}

func optionsFor(t *testing.T, backend string) options {
	t.Helper()
	dir := t.TempDir()
	return options{
		nodeName: "me", backend: backend, podCIDR: netip.MustParsePrefix("10.42.0.0/16"), nodeIP: netip.MustParseAddr("192.0.2.1"),
		cniConfDir: dir, cniState: dir, ipMasq: true,
	}
}

func (o options) file() string { return filepath.Join(o.cniConfDir, conflistName) }

func TestNodeFollowsTheCluster(t *testing.T) {
	if !inside(t) {
		return
	}
	sh(t, "ip link add eth0 type veth peer name other && ip addr add 192.0.2.1/24 dev eth0 && ip link set eth0 up && ip link set other up")
	sh(t, "ip route add 10.42.99.0/24 via 192.0.2.99") // of a node that left while we were away
	o := optionsFor(t, hostGW)
	client := fake.NewClientset(apiNode("me", "", "", "", ""), apiNode("a", "10.42.1.0/24", "192.0.2.2", hostGW, "null"))
	api := client.CoreV1().Nodes()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- (&glue{options: o, client: client, log: slog.Default()}).run(ctx) }()

	shows(t, "cat /proc/sys/net/ipv4/ip_forward", "1", true)
	if _, err := os.Stat(o.file()); err == nil {
		t.Error("the CNI configuration is there before the pod CIDR")
	}
	me := apiNode("me", "10.42.0.0/24", "", "", "")
	if _, err := api.Update(ctx, me, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	shows(t, "cat "+o.file(), "10.42.0.0/24", true)
	shows(t, "ip route", "10.42.1.0/24 via 192.0.2.2 dev eth0", true)
	shows(t, "ip route", "10.42.99.0/24", false)
	shows(t, "nft list tables", "flannel-ipv4", true)
	published := func() error {
		n, err := api.Get(ctx, "me", metav1.GetOptions{})
		if err != nil {
			return err
		}
		got := trim(n)
		if !got.lease.managed || got.lease.publicIP != "192.0.2.1" || got.lease.backend != hostGW || !got.available {
			return fmt.Errorf("%+v", got)
		}
		return nil
	}
	until(t, "what other nodes need to know", published)

	// A node comes, a node goes.
	if _, err := api.Create(ctx, apiNode("b", "10.42.2.0/24", "192.0.2.3", hostGW, "null"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	shows(t, "ip route", "10.42.2.0/24 via 192.0.2.3", true)
	if err := api.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	shows(t, "ip route", "10.42.1.0/24", false)

	// Our own Node goes and comes back: nothing is torn down, and it is published again.
	if err := api.Delete(ctx, "me", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := api.Create(ctx, me, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "what other nodes need to know, again", published)
	shows(t, "ip route", "10.42.2.0/24 via 192.0.2.3", true)

	// It gets another pod CIDR.
	if err := api.Delete(ctx, "me", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := api.Create(ctx, apiNode("me", "10.42.7.0/24", "", "", ""), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	shows(t, "cat "+o.file(), "10.42.7.0/24", true)
	shows(t, "nft list table ip flannel-ipv4", "ip saddr 10.42.7.0/24 ip daddr 10.42.0.0/16 return", true)
	until(t, "what other nodes need to know, for the third time", published)

	cancel()
	if err := <-ended; err != nil {
		t.Errorf("run ended with %v", err)
	}
	if routes := sh(t, "ip route"); !strings.Contains(routes, "10.42.2.0/24") {
		t.Errorf("routes did not outlive us:\n%s", routes)
	}
	if tables := sh(t, "nft list tables"); !strings.Contains(tables, "flannel-ipv4") {
		t.Errorf("rules did not outlive us: %s", tables)
	}
	for range 2 { // the second time there is nothing, which is fine
		if err := Cleanup(t.Context(), o.podCIDR, o.cniConfDir); err != nil {
			t.Fatal(err)
		}
	}
	if left := sh(t, "ip route | grep -F 10.42. || true; nft list tables; ls "+o.cniConfDir); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

func TestAVXLANLinkThatIsRemovedComesBack(t *testing.T) {
	if !inside(t) {
		return
	}
	sh(t, "ip link add eth0 type veth peer name other && ip addr add 192.0.2.1/24 dev eth0 && ip link set eth0 up && ip link set other up")
	o := optionsFor(t, vxlan)
	client := fake.NewClientset(apiNode("me", "10.42.0.0/24", "", "", ""),
		apiNode("a", "10.42.1.0/24", "192.0.2.2", vxlan, `{"VNI":1,"VtepMAC":"02:00:00:00:00:0a"}`))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- (&glue{options: o, client: client, log: slog.Default()}).run(ctx) }()
	const route = "10.42.1.0/24 via 10.42.1.0 dev flannel.1 onlink"
	shows(t, "ip route", route, true)
	shows(t, "cat "+o.file(), `"mtu": 1450`, true)
	shows(t, "cat /proc/sys/net/ipv4/conf/flannel.1/rp_filter", "2", true)
	until(t, "our own annotations", func() error {
		n, err := client.CoreV1().Nodes().Get(ctx, "me", metav1.GetOptions{})
		if err == nil && !trim(n).available {
			err = errors.New("not there")
		}
		return err
	})
	mac := sh(t, "cat /sys/class/net/flannel.1/address 2>/dev/null || ip -o link show flannel.1 | sed 's/.*ether //; s/ .*//'")
	sh(t, "ip link del flannel.1")
	shows(t, "ip route", route, true)
	shows(t, "ip link show flannel.1", strings.TrimSpace(mac), true)
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("run ended with %v", err)
	}
	if err := Cleanup(t.Context(), o.podCIDR, ""); err != nil {
		t.Fatal(err)
	}
	if left := sh(t, "ip -o link show type vxlan; nft list tables"); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// nodeArgs start a node of the dataplane test in a process of its own.
type nodeArgs struct {
	Name, IP, Backend, ConfDir, StateDir string
	Nodes                                []*corev1.Node
}

func runNode(text string) error {
	var a nodeArgs
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	client := fake.NewClientset()
	for _, n := range a.Nodes {
		if _, err := client.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	o := options{
		nodeName: a.Name, backend: a.Backend, podCIDR: netip.MustParsePrefix("10.42.0.0/16"), nodeIP: netip.MustParseAddr(a.IP),
		cniConfDir: a.ConfDir, cniState: a.StateDir, ipMasq: true,
	}
	return (&glue{options: o, client: client, log: slog.Default()}).run(ctx)
}

// testNode is a network namespace that is a node.
type testNode struct {
	t        *testing.T
	name, ip string
	dir      string
}

func (n testNode) exec(script string) string { n.t.Helper(); return in(n.t, n.name, script) }

func in(t *testing.T, netns, script string) string {
	t.Helper()
	return sh(t, "nsenter --net=/run/netns/"+netns+" sh -ec '"+script+"'")
}

// cni adds or removes a pod's network with the real plugins, as the container runtime does.
func (n testNode) cni(add bool, pod string, ports ...map[string]any) string {
	n.t.Helper()
	list, err := libcni.ConfListFromFile(filepath.Join(n.dir, conflistName))
	if err != nil {
		n.t.Fatal(err)
	}
	c := libcni.NewCNIConfigWithCacheDir([]string{os.Getenv(cniEnv)}, filepath.Join(n.dir, "cache"), nsenterExec{n.name})
	rt := &libcni.RuntimeConf{ContainerID: pod, NetNS: "/run/netns/" + pod, IfName: "eth0", CapabilityArgs: map[string]any{}}
	if len(ports) > 0 {
		rt.CapabilityArgs["portMappings"] = ports
	}
	if !add {
		if err := c.DelNetworkList(n.t.Context(), list, rt); err != nil {
			n.t.Fatal(err)
		}
		return ""
	}
	if _, err := c.AddNetworkList(n.t.Context(), list, rt); err != nil {
		n.t.Fatal(err)
	}
	return strings.Fields(in(n.t, pod, "ip -4 -o addr show dev eth0"))[3]
}

func TestPodsOfTwoNodesReachEachOther(t *testing.T) {
	if !inside(t) {
		return
	}
	for _, backend := range []string{hostGW, vxlan} {
		t.Run(backend, func(t *testing.T) { twoNodes(t, backend) })
	}
}

func twoNodes(t *testing.T, backend string) {
	data := map[string]string{"a": "null", "b": "null"}
	if backend == vxlan {
		data = map[string]string{"a": `{"VNI":1,"VtepMAC":"02:00:00:00:00:0a"}`, "b": `{"VNI":1,"VtepMAC":"02:00:00:00:00:0b"}`}
	}
	cluster := []*corev1.Node{
		apiNode("a", "10.42.1.0/24", "192.0.2.1", backend, data["a"]),
		apiNode("b", "10.42.2.0/24", "192.0.2.2", backend, data["b"]),
	}
	sh(t, `ip netns add a; ip netns add b
ip link add eth0 netns a type veth peer name eth0 netns b
nsenter --net=/run/netns/a sh -ec "ip addr add 192.0.2.1/24 dev eth0; ip link set eth0 up; ip link set lo up; echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter"
nsenter --net=/run/netns/b sh -ec "ip addr add 192.0.2.2/24 dev eth0; ip link set eth0 up; ip link set lo up; echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter"
for p in a1 a2 b1; do ip netns add $p; done`)
	t.Cleanup(func() {
		out, err := exec.Command("sh", "-c", "for n in a b a1 a2 b1; do ip netns del $n; done").CombinedOutput()
		if err != nil {
			t.Errorf("%v %s", err, out)
		}
	})
	nodes := map[string]testNode{}
	for name, addr := range map[string]string{"a": "192.0.2.1", "b": "192.0.2.2"} {
		n := testNode{t: t, name: name, ip: addr, dir: t.TempDir()}
		nodes[name] = n
		args, err := json.Marshal(nodeArgs{Name: name, IP: addr, Backend: backend, ConfDir: n.dir, StateDir: filepath.Join(n.dir, "state"), Nodes: cluster})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("nsenter", "--net=/run/netns/"+name, os.Args[0])
		cmd.Env = append(os.Environ(), nodeEnv+"="+string(args))
		var log bytes.Buffer
		cmd.Stderr, cmd.Stdout = &log, &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			if err := cmd.Wait(); err != nil || t.Failed() {
				t.Errorf("node %s: %v\n%s", name, err, log.String())
			}
		})
	}
	a, b := nodes["a"], nodes["b"]
	shows(t, "nsenter --net=/run/netns/a ip route", "10.42.2.0/24", true)
	shows(t, "nsenter --net=/run/netns/b ip route", "10.42.1.0/24", true)

	hostPort := map[string]any{"hostPort": 8088, "containerPort": 8080, "protocol": "tcp"}
	ips := map[string]string{}
	ports := map[string][]map[string]any{"a1": {hostPort}}
	for pod, n := range map[string]testNode{"a1": a, "a2": a, "b1": b} {
		cidr := n.cni(true, pod, ports[pod]...)
		ips[pod], _, _ = strings.Cut(cidr, "/")
		in(t, pod, "ip link set lo up")
		serveHTTP(t, pod)
	}
	get := func(from, url, want string) {
		t.Helper()
		shows(t, "nsenter --net=/run/netns/"+from+" env "+fetchEnv+"=http://"+url+" "+os.Args[0], want, true)
	}
	get("a2", ips["a1"]+":8080/", "I am a1") // same node
	get("a1", ips["b1"]+":8080/", "I am b1") // other node
	get("b1", ips["a2"]+":8080/", "I am a2") // and back
	get("a", ips["a1"]+":8080/", "I am a1")  // node to its pod
	get("b", ips["a1"]+":8080/", "I am a1")  // node to another node's pod
	get("b", a.ip+":8088/", "I am a1")       // host port from another node
	get("b1", a.ip+":8088/", "I am a1")      // … from another node's pod
	get("a", a.ip+":8088/", "I am a1")       // … from the node itself
	get("a", "127.0.0.1:8088/", "I am a1")   // … by loopback
	get("a1", a.ip+":8088/", "I am a1")      // … from the pod behind it
	// Pods see each other's addresses; what leaves the pod network has the node's.
	get("a1", ips["b1"]+":8080/from", ips["a1"])
	serveHTTP(t, "b")
	get("a1", b.ip+":8080/from", a.ip)
	// A node that speaks from its own address, as a server bound to it does, is answered too.
	if backend == vxlan {
		// The answer comes back beside the overlay, which b's own interface must allow; a stays strict.
		b.exec("echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 0 > /proc/sys/net/ipv4/conf/eth0/rp_filter")
	}
	b.exec("busybox ping -c 1 -W 2 -I " + b.ip + " " + ips["a1"])

	if rules := a.exec("nft list table ip cni_hostport"); !strings.Contains(rules, "8088") {
		t.Errorf("the host port is not in nftables:\n%s", rules)
	}
	for pod, n := range map[string]testNode{"a1": a, "a2": a, "b1": b} {
		n.cni(false, pod, ports[pod]...)
	}
	if rules := a.exec("nft list table ip cni_hostport"); strings.Contains(rules, "8088") {
		t.Errorf("the host port outlived its pod:\n%s", rules)
	}
	if links := a.exec("ip -o link show type veth"); strings.Count(links, "\n") != 1 {
		t.Errorf("links outlived their pods:\n%s", links)
	}
}

// nsenterExec runs CNI plugins in a node's network namespace.
type nsenterExec struct{ netns string }

// ExecPlugin implements invoke.Exec.
func (e nsenterExec) ExecPlugin(ctx context.Context, plugin string, stdin []byte, environ []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "nsenter", "--net=/run/netns/"+e.netns, plugin)
	cmd.Env, cmd.Stdin = environ, bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s %s", plugin, err, out, stderr.String())
	}
	return out, nil
}

// FindInPath implements invoke.Exec.
func (nsenterExec) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// Decode implements invoke.Exec.
func (nsenterExec) Decode(b []byte) (version.PluginInfo, error) {
	return (&version.PluginDecoder{}).Decode(b)
}

// serveHTTP runs a server in a namespace that says where it is, and at /from who asks.
func serveHTTP(t *testing.T, netns string) {
	t.Helper()
	cmd := exec.Command("nsenter", "--net=/run/netns/"+netns, os.Args[0])
	cmd.Env = append(os.Environ(), serveEnv+"="+netns)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended, err := testenv.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = ended()
	})
}

func runServer(name string) error {
	return http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:gosec // a test's
		if r.URL.Path == "/from" {
			fmt.Fprintln(w, r.RemoteAddr)
			return
		}
		fmt.Fprintln(w, "I am", name)
	}))
}

func fetch(url string) error {
	c := http.Client{Timeout: 2 * time.Second}
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}
