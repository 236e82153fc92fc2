package networkpolicy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"k1s.io/k1s/internal/applets/networkpolicy/rules"
	"k1s.io/k1s/internal/testenv"
)

// The tests in this file change links, routes and rules. Each runs in network and mount namespaces of its own without
// any way out, as a second process of the test program. They need root, iproute2 and nft.
const insideEnv = "K1S_TEST_INSIDE"

// inside returns true in the process that may change the network.
func inside(t testing.TB) bool {
	t.Helper()
	if os.Getenv(insideEnv) == t.Name() {
		sh(t, "ip link set lo up && mount -t tmpfs tmpfs /run && mkdir /run/netns")
		return true
	}
	testenv.Root(t)
	run := []string{"-test.run=^" + t.Name() + "$", "-test.v"}
	if _, ok := t.(*testing.B); ok {
		run = []string{"-test.run=^$", "-test.bench=^" + t.Name() + "$"}
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], run...)
	cmd.Env = append(os.Environ(), insideEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	// A process that is to die with its parent dies with the thread that started it, and whoever enters namespaces ends threads.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("inside: %v\n%s", err, out)
	} else if _, ok := t.(*testing.B); ok {
		fmt.Printf("%s", out)
	}
	return false
}

func sh(t testing.TB, script string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// in runs f on a thread in a network namespace, "" for the node's. The thread ends with it.
func in(netns string, f func() error) error {
	if netns == "" {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is of no use to others
		fd, err := os.Open("/run/netns/" + netns)
		if err == nil {
			err = unix.Setns(int(fd.Fd()), unix.CLONE_NEWNET)
			_ = fd.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// node is the pods of the test cluster: three namespaces of three pods, all on this node, and somebody outside.
type node struct {
	t       testing.TB
	world   rules.World
	kernel  *nftables
	outside []netip.Addr
}

func newNode(t testing.TB, bridged bool) *node {
	t.Helper()
	n := &node{t: t, kernel: &nftables{}}
	sh(t, "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter")
	if bridged {
		sh(t, `echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables; echo 1 > /proc/sys/net/bridge/bridge-nf-call-ip6tables
			ip link add cni0 type bridge; ip link set cni0 up; ip addr add 10.42.0.1/16 dev cni0; ip addr add fd00:42::1/64 dev cni0 nodad`)
	}
	n.world.Namespaces = map[string]map[string]string{}
	for i, ns := range []string{"x", "y", "z"} {
		n.world.Namespaces[ns] = map[string]string{"ns": ns}
		for j, name := range []string{"a", "b", "c"} {
			p := rules.Pod{
				Key: rules.Key{Namespace: ns, Name: name}, Labels: map[string]string{"pod": name}, Local: true,
				IPs:   []netip.Addr{netip.AddrFrom4([4]byte{10, 42, byte(i), byte(j + 2)}), netip.MustParseAddr(fmt.Sprintf("fd00:42::%d:%d", i+1, j+2))},
				Ports: []rules.Port{{Name: "web", Protocol: 6, Number: 80}, {Name: "alt", Protocol: 6, Number: 81}, {Name: "dns", Protocol: 17, Number: 53}},
			}
			n.world.Pods = append(n.world.Pods, p)
			n.connect(p, bridged)
		}
	}
	n.outside = []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}
	sh(t, `ip netns add outside; ip link add up0 type veth peer name eth0 netns outside
		ip addr add 192.0.2.1/24 dev up0; ip addr add 2001:db8::1/64 dev up0 nodad; ip link set up0 up
		ip -n outside link set lo up; ip -n outside addr add 192.0.2.7/24 dev eth0; ip -n outside addr add 2001:db8::7/64 dev eth0 nodad; ip -n outside link set eth0 up
		ip -n outside route add default via 192.0.2.1; ip -n outside -6 route add default via 2001:db8::1`)
	n.serve("outside")
	return n
}

func netnsOf(p rules.Pod) string { return p.Key.Namespace + "-" + p.Key.Name }

func (n *node) connect(p rules.Pod, bridged bool) {
	ns, four, six := netnsOf(p), p.IPs[0].String(), p.IPs[1].String()
	r := strings.NewReplacer("NS", ns, "FOUR", four, "SIX", six)
	script := `ip netns add NS; ip link add vNS type veth peer name eth0 netns NS; ip link set vNS up; ip -n NS link set lo up; `
	if bridged {
		script += `ip link set vNS master cni0; ip -n NS addr add FOUR/16 dev eth0; ip -n NS addr add SIX/64 dev eth0 nodad; ip -n NS link set eth0 up
			ip -n NS route add default via 10.42.0.1; ip -n NS -6 route add default via fd00:42::1`
	} else { // as the CNI plugin ptp does
		script += `ip addr add 10.42.0.1/32 dev vNS; ip addr add fd00:42::1/128 dev vNS nodad; ip route add FOUR/32 dev vNS; ip -6 route add SIX/128 dev vNS
			ip -n NS addr add FOUR/32 dev eth0; ip -n NS addr add SIX/128 dev eth0 nodad; ip -n NS link set eth0 up
			ip -n NS route add 10.42.0.1/32 dev eth0; ip -n NS route add default via 10.42.0.1
			ip -n NS -6 route add fd00:42::1/128 dev eth0; ip -n NS -6 route add default via fd00:42::1`
	}
	sh(n.t, r.Replace(script))
	n.serve(ns)
}

// serve answers TCP at 80 and 81 with what it is told, and UDP at 53 and 54, until the process ends. At 82 it only listens.
func (n *node) serve(netns string) {
	err := in(netns, func() error {
		sink, err := net.Listen("tcp", ":82")
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := sink.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(io.Discard, c) }()
			}
		}()
		for _, port := range []string{":80", ":81"} {
			l, err := net.Listen("tcp", port)
			if err != nil {
				return err
			}
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						b := make([]byte, 64)
						for {
							k, err := c.Read(b)
							if err != nil {
								_ = c.Close()
								return
							}
							_, _ = c.Write(b[:k])
						}
					}()
				}
			}()
		}
		for _, port := range []string{":53", ":54"} {
			c, err := net.ListenPacket("udp", port)
			if err != nil {
				return err
			}
			go func() {
				b := make([]byte, 64)
				for {
					k, from, err := c.ReadFrom(b)
					if err != nil {
						return
					}
					_, _ = c.WriteTo(b[:k], from)
				}
			}()
		}
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

// How long a probe waits that should be answered, and one that should not.
const (
	long  = 5 * time.Second
	short = 400 * time.Millisecond
)

// ask tells whether somebody answers.
func ask(netns, network string, to netip.AddrPort, patience time.Duration) bool {
	err := in(netns, func() error {
		c, err := net.DialTimeout(network, to.String(), patience)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		b := make([]byte, 64)
		_, err = c.Read(b)
		return err
	})
	return err == nil
}

// want makes the policies so and probes everything from everybody: who may reach whom is what the function says, by
// names such as "x/a" and "outside".
func (n *node) want(what string, allowed func(from, to, port string) bool, policies ...string) {
	n.t.Helper()
	n.set(policies...)
	type end struct {
		name, netns string
		ips         []netip.Addr
	}
	ends := []end{{"outside", "outside", n.outside}}
	for _, p := range n.world.Pods {
		ends = append(ends, end{p.Key.String(), netnsOf(p), p.IPs})
	}
	var wrong []string
	var mu sync.Mutex
	var all sync.WaitGroup
	slots := make(chan struct{}, 300)
	for _, from := range ends {
		for _, to := range ends {
			for f, ip := range to.ips {
				for port, at := range map[string]struct {
					network string
					n       uint16
				}{"80/tcp": {"tcp", 80}, "81/tcp": {"tcp", 81}, "53/udp": {"udp", 53}, "54/udp": {"udp", 54}} {
					if f == 1 && port != "80/tcp" && port != "53/udp" { // it is enough for IPv6
						continue
					}
					slots <- struct{}{}
					all.Go(func() {
						defer func() { <-slots }()
						should, patience := allowed(from.name, to.name, port), short
						if should {
							patience = long
						}
						if did := ask(from.netns, at.network, netip.AddrPortFrom(ip, at.n), patience); did != should {
							mu.Lock()
							defer mu.Unlock()
							wrong = append(wrong, fmt.Sprintf("%s → %s (%s) %s: answered %t", from.name, to.name, ip, port, did))
						}
					})
				}
			}
		}
	}
	all.Wait()
	if len(wrong) > 0 {
		slices.Sort(wrong)
		n.t.Errorf("%s: %d wrong:\n%s\n%s", what, len(wrong), strings.Join(wrong[:min(len(wrong), 12)], "\n"), sh(n.t, "nft list table inet "+rules.Table+" || true"))
	}
	// What the node itself asks its pods is never judged.
	for _, p := range n.world.Pods {
		if !ask("", "tcp", netip.AddrPortFrom(p.IPs[0], 80), long) {
			n.t.Errorf("%s: the node does not reach %s", what, p.Key)
		}
	}
}

// set makes the kernel's table that of the world with these policies, from what is there.
func (n *node) set(policies ...string) {
	n.t.Helper()
	n.world.Policies = nil
	for i, text := range policies {
		var np networkingv1.NetworkPolicy
		if err := yaml.UnmarshalStrict([]byte(text), &np.Spec); err != nil {
			n.t.Fatalf("%s: %v", text, err)
		}
		np.Namespace, np.Name = "x", fmt.Sprintf("p%d", i)
		n.world.Policies = append(n.world.Policies, &np)
	}
	want := rules.Desired(n.world, rules.MinShape)
	old, err := n.kernel.read(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.kernel.apply(n.t.Context(), rules.Diff(old, want)); err != nil {
		n.t.Fatal(err)
	}
	now, err := n.kernel.read(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	if left := rules.Diff(now, want); len(left) > 0 {
		n.t.Fatalf("what is read back is not what was written: %+v", left)
	}
}

func inX(name string) bool { return strings.HasPrefix(name, "x/") }

func TestPacketsPassAsPoliciesSay(t *testing.T) {
	if !inside(t) {
		return
	}
	matrix(t, newNode(t, false))
}

// k1s' own pods are routed. On a bridge the same holds where the kernel shows bridged frames to the hooks of IP.
func TestPacketsOfABridgePassAsPoliciesSay(t *testing.T) {
	if !inside(t) {
		return
	}
	if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err != nil {
		t.Skip("this kernel has no br_netfilter: bridged frames do not come by the hooks of IP")
	}
	matrix(t, newNode(t, true))
}

func matrix(t *testing.T, n *node) {
	everything := func(string, string, string) bool { return true }
	n.want("no policy", everything)
	const deny = "{podSelector: {}, policyTypes: [Ingress]}"
	n.want("deny all that comes in", func(from, to, _ string) bool { return !inX(to) || from == to }, deny)
	n.want("from a pod of a namespace by a port's name", func(from, to, port string) bool {
		return !inX(to) || from == to || from == "y/b" && port == "80/tcp"
	}, deny, "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}, podSelector: {matchLabels: {pod: b}}}], ports: [{port: web}]}]}")
	n.world.Pods[4].Labels = map[string]string{"pod": "other"}
	n.want("that pod has another label now", func(from, to, _ string) bool { return !inX(to) || from == to },
		deny, "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}, podSelector: {matchLabels: {pod: b}}}], ports: [{port: web}]}]}")
	n.world.Pods[4].Labels = map[string]string{"pod": "b"}
	n.want("out to DNS only", func(from, to, port string) bool { return !inX(from) || from == to || port == "53/udp" },
		"{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]}")
	n.want("out to a name of UDP, in from ports up to", func(from, to, port string) bool {
		return from == to || (!inX(from) || port == "53/udp" && to != "outside") && (!inX(to) || port != "54/udp")
	}, "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: dns, protocol: UDP}]}]}",
		"{podSelector: {}, ingress: [{ports: [{port: 79, endPort: 90}, {port: 1, endPort: 53, protocol: UDP}]}]}")
	n.want("blocks without exceptions", func(from, to, _ string) bool { return from == to || to != "x/a" || from == "outside" || from == "y/a" },
		"{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.42.0.0/16]}}, {ipBlock: {cidr: '2001:db8::/32'}},"+
			"{ipBlock: {cidr: 10.42.1.0/24, except: [10.42.1.3/32, 10.42.1.4/32]}}, {ipBlock: {cidr: 'fd00:42::2:0/112', except: ['fd00:42::2:3/128', 'fd00:42::2:4/128']}}]}]}")
	n.want("all is allowed to one and from it", func(from, to, _ string) bool {
		return from == to || !inX(from) && !inX(to) || from == "x/a" && !inX(to) || to == "x/a" && !inX(from)
	},
		"{podSelector: {}, policyTypes: [Ingress, Egress]}", "{podSelector: {matchLabels: {pod: a}}, ingress: [{}], egress: [{}], policyTypes: [Ingress, Egress]}")
	n.want("the last policy has gone", everything)
	if tables := sh(t, "nft list tables"); tables != "" {
		t.Errorf("without policies there are tables: %s", tables)
	}
}

// The kernel needs no SCTP of its own for packets of it to pass or not.
func TestSCTPIsJudgedByItsPorts(t *testing.T) {
	if !inside(t) {
		return
	}
	n := newNode(t, false)
	n.set("{podSelector: {}, ingress: [{ports: [{port: 90, protocol: SCTP}]}]}")
	heard := make(chan uint16, 10)
	if err := in("x-a", func() error {
		c, err := net.ListenPacket("ip4:132", "0.0.0.0")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = c.Close() })
		go func() {
			b := make([]byte, 1500)
			for {
				k, _, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				if k >= 4 {
					heard <- binary.BigEndian.Uint16(b[2:])
				}
			}
		}()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, port := range []uint16{91, 90} { // packets do not overtake one another: when the second is there the first was dropped
		if err := in("y-a", func() error {
			c, err := net.Dial("ip4:132", n.world.Pods[0].IPs[0].String())
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write(sctpInit(port))
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case port := <-heard:
		if port != 90 {
			t.Errorf("a packet to port %d passes", port)
		}
	case <-time.After(long):
		t.Error("a packet to port 90 does not pass")
	}
}

// sctpInit is the first packet of an association (RFC 9260, sections 3.1 and 3.3.2).
func sctpInit(port uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, 40000)
	b = binary.BigEndian.AppendUint16(b, port)
	b = append(b, make([]byte, 8)...) // verification tag, checksum
	b = append(b, 1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 16, 0, 0, 1, 0, 1, 0, 0, 0, 1)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func TestServicesAreJudgedByTheirPods(t *testing.T) {
	if !inside(t) {
		return
	}
	n := newNode(t, false)
	// As kube-proxy does it: translated before routing, with the node's address only where a pod meets itself.
	sh(t, `nft -f - <<-END
		table ip services {
			chain pre { type nat hook prerouting priority -100; ip daddr 10.43.0.1 tcp dport 8080 dnat to 10.42.0.2:80; }
			chain out { type nat hook output priority -100; ip daddr 10.43.0.1 tcp dport 8080 dnat to 10.42.0.2:80; }
			chain post { type nat hook postrouting priority 100; ip saddr . ip daddr { 10.42.0.2 . 10.42.0.2 } masquerade; }
		}
		END
		ip route add 10.43.0.0/16 dev lo`)
	service := netip.MustParseAddrPort("10.43.0.1:8080")
	n.set("{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}]}]}",
		"{podSelector: {matchLabels: {pod: b}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {pod: a}}}], ports: [{port: web}]}]}",
		"{podSelector: {matchLabels: {pod: c}}, policyTypes: [Egress]}")
	for from, want := range map[string]bool{"x-b": true, "x-a": true, "": true, "y-b": false, "x-c": false, "outside": false} {
		patience := long
		if !want {
			patience = short
		}
		if got := ask(from, "tcp", service, patience); got != want {
			t.Errorf("%q reaches the service: %t, want %t", from, got, want)
		}
	}
}

func TestAPolicyEndsWhatIsOpenAndLetsAnswersThrough(t *testing.T) {
	if !inside(t) {
		return
	}
	n := newNode(t, false)
	to := netip.AddrPortFrom(n.world.Pods[0].IPs[0], 80)
	var c net.Conn
	if err := in("y-a", func() (err error) { c, err = net.DialTimeout("tcp", to.String(), long); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	says := func(patience time.Duration) error {
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 8))
		return err
	}
	if err := says(long); err != nil {
		t.Fatal(err)
	}
	n.set("{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}") // the server's side: y-a is no more allowed
	if err := says(short); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection goes on under a policy that forbids it: %v", err)
	}
	n.set() // what was sent again meanwhile arrives now
	if err := says(long); err != nil {
		t.Errorf("the connection does not go on without the policy: %v", err)
	}
}

func TestATableIsPutRightAndNeverEmptied(t *testing.T) {
	if !inside(t) {
		return
	}
	n := newNode(t, false)
	policies := []string{"{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: web}, {port: 8000, endPort: 8100}]}]}"}
	n.set(policies...)
	// What another process finds is what this one has left, and nothing is written.
	after := &nftables{}
	old, err := after.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if ops := rules.Diff(old, rules.Desired(n.world, rules.MinShape)); len(ops) > 0 {
		t.Errorf("starting again does %+v", ops)
	}
	for what, tamper := range map[string]string{
		"an element less": "delete element inet k1s-netpol ingress4 { 10.42.0.2 }",
		"an element more": "add element inet k1s-netpol ingress4 { 10.9.9.9 }",
		"another verdict": "delete element inet k1s-netpol ingress4-0 { 10.42.0.2 }; add element inet k1s-netpol ingress4-0 { 10.42.0.2 : accept }",
		"a rule more":     "insert rule inet k1s-netpol in/x/p0 accept",
		"no rules":        "flush chain inet k1s-netpol ingress-pods",
		"a chain more":    "add chain inet k1s-netpol other; add rule inet k1s-netpol other jump in/x/p0",
		"a set more":      "add set inet k1s-netpol other { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/8 . 80-90 } }",
		"no table":        "delete table inet k1s-netpol",
		"no tables":       "flush ruleset",
	} {
		sh(t, "nft '"+tamper+"'")
		n.set(policies...) // fails where something is left
		if !t.Failed() && ask("y-a", "tcp", netip.AddrPortFrom(n.world.Pods[0].IPs[0], 80), short) {
			t.Errorf("after %s the policy is not in force", what)
		}
	}
}

// One name that nft does not take would keep all policies from being written.
func TestNamesOfAllKindsAreTaken(t *testing.T) {
	if !inside(t) {
		return
	}
	n := newNode(t, false)
	var np networkingv1.NetworkPolicy
	odd := "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: example.com/a_b.c-d, operator: In, values: ['', A_b.9-z, '0']}, {key: b, operator: DoesNotExist}]}, podSelector: {matchLabels: {app.kubernetes.io/name: '1.2.3'}}}], ports: [{port: a-1-b}]}]}"
	if err := yaml.UnmarshalStrict([]byte(odd), &np.Spec); err != nil {
		t.Fatal(err)
	}
	for _, name := range []rules.Key{
		{Namespace: "0", Name: "0"}, {Namespace: "default", Name: "10.0.0.1"}, {Namespace: "ip", Name: "accept"}, {Namespace: "drop", Name: "fe80--1.a"},
		{Namespace: strings.Repeat("x", 63), Name: strings.Repeat("y", 253)}, {Namespace: strings.Repeat("x", 63), Name: strings.Repeat("y", 252)}, {Namespace: "k1s", Name: "ingress-pods"},
	} {
		p := np.DeepCopy()
		p.Namespace, p.Name = name.Namespace, name.Name
		n.world.Policies = append(n.world.Policies, p)
	}
	want := rules.Desired(n.world, rules.MinShape)
	if err := n.kernel.apply(t.Context(), rules.Diff(rules.State{}, want)); err != nil {
		t.Fatal(err)
	}
	got, err := n.kernel.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if left := rules.Diff(got, want); len(left) > 0 {
		t.Errorf("what is read back is not what was written: %+v", left)
	}
}

func TestTheKernelsRefusalIsToldAndChangesNothing(t *testing.T) {
	if !inside(t) {
		return
	}
	n := newNode(t, false)
	n.set("{podSelector: {}}")
	before := sh(t, "nft list ruleset")
	err := n.kernel.apply(context.Background(), []rules.Op{
		{Kind: rules.DeleteElement, Name: "ingress4", Key: "10.42.0.2"}, {Kind: rules.DeleteElement, Name: "ingress4", Key: "10.9.9.9"},
	})
	if err == nil || !strings.Contains(err.Error(), "writing network policies") {
		t.Errorf("deleting what is not there: %v", err)
	}
	if after := sh(t, "nft list ruleset"); after != before {
		t.Errorf("half of the transaction is done:\n%s", after)
	}
}
