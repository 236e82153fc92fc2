package platform

import (
	"context"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/health"
)

// shown are the problems as lines, which is how tests compare them.
func shown(ps []health.Problem) []string {
	var out []string
	for _, p := range ps {
		out = append(out, p.String())
	}
	return out
}

func TestDecisions(t *testing.T) {
	addr := netip.MustParseAddr
	day := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	all := []string{"cpu", "cpuacct", "cpuset", "memory", "pids", "io"}
	fine := sysctls{Forward: "1", Bridged: true, BridgeNF: "1", ConntrackMax: "262144", ConntrackWrite: true, InotifyInstances: "128", InotifyWatches: "65536"}
	with := func(change func(*sysctls)) sysctls { s := fine; change(&s); return s }
	disk := diskFacts{Dir: "/d", FreeBytes: 10 * gb, Inodes: 1e6, FreeInodes: 9e5, Type: "0xef53"}
	diskWith := func(change func(*diskFacts)) diskFacts { d := disk; change(&d); return d }
	ms := time.Millisecond

	for name, c := range map[string]struct {
		got  []health.Problem
		want []string
	}{
		"root":         {decideRoot(0), nil},
		"not root":     {decideRoot(1000), []string{"error: not-root: k1s runs as user 1000"}},
		"kernel 5.13":  {decideKernel("5.13.0-x"), nil},
		"kernel 6":     {decideKernel("6.1"), nil},
		"kernel 5.10":  {decideKernel("5.10.0-30-amd64"), []string{"error: kernel-too-old: the kernel is 5.10.0-30-amd64, 5.13 or newer is needed"}},
		"kernel 4":     {decideKernel("4.18.0"), []string{"error: kernel-too-old: the kernel is 4.18.0, 5.13 or newer is needed"}},
		"kernel weird": {decideKernel("???"), []string{`warning: check-failed: the kernel's version could not be checked: "???" is no version`}},

		"cgroup v2":                    {decideCgroups(2, all), nil},
		"cgroup v1":                    {decideCgroups(1, all), []string{"warning: cgroup-v1: cgroup version 1 is in use"}},
		"no cgroups":                   {decideCgroups(0, nil), []string{"error: no-cgroups: no cgroup file system is mounted at /sys/fs/cgroup"}},
		"no memory controller, as Pis": {decideCgroups(2, []string{"cpu", "cpuset", "pids"}), []string{"error: cgroup-controllers: cgroup controllers are missing: memory"}},
		"no pids controller": {decideCgroups(2, []string{"cpu", "cpuset", "memory"}),
			[]string{"warning: cgroup-controllers: cgroup controllers are missing: pids; the number of processes of a pod cannot be limited"}},

		"memory enough":  {decideMemory(768*mb, ""), nil},
		"memory unknown": {decideMemory(0, ""), nil},
		"memory low":     {decideMemory(768*mb-1, ""), []string{"warning: memory-low: 767 MB of memory may be used, 768 MB are recommended"}},
		"memory limited": {decideMemory(300*mb, "/sys/fs/cgroup/small/memory.max"), []string{
			"error: memory-low: 300 MB of memory may be used, 400 MB are needed (limited by the cgroup /sys/fs/cgroup/small)"}},
		"memory tiny": {decideMemory(399*mb, ""), []string{"error: memory-low: 399 MB of memory may be used, 400 MB are needed"}},

		"disk fine":           {decideDisk(disk), nil},
		"disk low":            {decideDisk(diskWith(func(d *diskFacts) { d.FreeBytes = gb })), []string{"warning: disk-low: 1024 MB are free at /d, 2048 MB are recommended"}},
		"disk full":           {decideDisk(diskWith(func(d *diskFacts) { d.FreeBytes = 0 })), []string{"error: disk-low: 0 MB are free at /d, 500 MB are needed"}},
		"no inodes":           {decideDisk(diskWith(func(d *diskFacts) { d.FreeInodes = 5 })), []string{"warning: inodes-low: 5 inodes are free at /d, 20000 are recommended"}},
		"inodes not counted":  {decideDisk(diskWith(func(d *diskFacts) { d.Inodes, d.FreeInodes = 0, 0 })), nil},
		"nfs":                 {decideDisk(diskWith(func(d *diskFacts) { d.Type = "nfs" })), []string{"error: data-dir-fs: /d is on a file system of type nfs"}},
		"fuse":                {decideDisk(diskWith(func(d *diskFacts) { d.Type = "fuse" })), []string{"warning: data-dir-fs: /d is on a file system of type fuse"}},
		"tmpfs":               {decideDisk(diskWith(func(d *diskFacts) { d.Type = "tmpfs" })), []string{"warning: data-dir-fs: /d is in memory: the cluster will be gone after a reboot"}},
		"vfat":                {decideDisk(diskWith(func(d *diskFacts) { d.Type = "vfat" })), []string{"error: data-dir-fs: /d is on a file system of type vfat, which has no Unix permissions"}},
		"fsync fast":          {decideSync("/d", []time.Duration{ms, 2 * ms, 900 * ms}), nil},
		"fsync slow":          {decideSync("/d", []time.Duration{90 * ms, 31 * ms, 25 * ms}), []string{"warning: disk-slow: a safe write to /d takes 31ms (median of 3, worst 90ms)"}},
		"fsync not tried":     {decideSync("/d", nil), nil},
		"clock right":         {decideClock(day), nil},
		"clock without power": {decideClock(time.Unix(0, 0)), []string{"error: clock: the machine's clock says 1970-01-01T00:00:00Z, before this program was made"}},

		"host fine":      {decideHost("n1", "n1"), nil},
		"host mapped":    {decideHost("My_Box", "my-box"), []string{`info: hostname: the host name "My_Box" is no valid node name; the node is called "my-box"`}},
		"host hopeless":  {decideHost("___", ""), []string{`error: hostname: no node name can be made from the host name "___"`}},
		"host localhost": {decideHost("localhost", "localhost"), []string{`warning: hostname: the node is called "localhost"; a second node of that name could not join`}},
		"name malformed": {decideHost("n1", "Node One"), []string{`error: hostname: "Node One" is no valid node name: lower case letters, digits, dots and dashes only`}},

		"ip fine":      {decideNodeIP(addr("192.0.2.1"), "eth0"), nil},
		"ip none":      {decideNodeIP(netip.Addr{}, ""), []string{"error: node-ip: no interface has an address that others could reach"}},
		"ip loopback":  {decideNodeIP(addr("127.0.0.1"), "lo"), []string{"error: node-ip: 127.0.0.1 cannot be the address of a node"}},
		"ip elsewhere": {decideNodeIP(addr("192.0.2.1"), ""), []string{"warning: node-ip: no interface has the node's address 192.0.2.1"}},
		"ip v6":        {decideNodeIP(addr("2001:db8::1"), "eth0"), []string{"warning: node-ip: the node has only the IPv6 address 2001:db8::1; pods and services use IPv4"}},

		"sysctls fine":     {decideSysctls(fine), nil},
		"forwarding off":   {decideSysctls(with(func(s *sysctls) { s.Forward = "0" })), []string{"info: ip-forwarding: IPv4 packets are not forwarded yet"}},
		"proc read-only":   {decideSysctls(with(func(s *sysctls) { s.Readonly = true })), []string{"warning: proc-sys-readonly: /proc/sys is read-only"}},
		"both":             {decideSysctls(with(func(s *sysctls) { s.Readonly, s.Forward = true, "0" })), []string{"warning: proc-sys-readonly: /proc/sys is read-only", "error: ip-forwarding: IPv4 packets are not forwarded, and /proc/sys is read-only"}},
		"no br_netfilter":  {decideSysctls(with(func(s *sysctls) { s.BridgeNF = "" })), []string{"warning: bridge-netfilter: the module br_netfilter is not loaded"}},
		"routed pods":      {decideSysctls(with(func(s *sysctls) { s.Bridged, s.BridgeNF = false, "" })), nil},
		"bridge nf off":    {decideSysctls(with(func(s *sysctls) { s.BridgeNF = "0" })), []string{"warning: bridge-netfilter: net.bridge.bridge-nf-call-iptables is 0"}},
		"conntrack fixed":  {decideSysctls(with(func(s *sysctls) { s.ConntrackWrite = false })), []string{"info: conntrack-limits-readonly: the limit of tracked connections is 262144 and cannot be changed from here"}},
		"conntrack absent": {decideSysctls(with(func(s *sysctls) { s.ConntrackMax, s.ConntrackWrite = "", false })), nil},
		"inotify low": {decideSysctls(with(func(s *sysctls) { s.InotifyInstances, s.InotifyWatches = "8", "100" })), []string{
			"warning: inotify-low: fs.inotify.max_user_instances is 8, at least 128 are recommended", "warning: inotify-low: fs.inotify.max_user_watches is 100, at least 8192 are recommended"}},
		"files":     {decideOpenFiles(1 << 20), nil},
		"files low": {decideOpenFiles(1024), []string{"warning: open-files-low: 1024 files may be open in a process, 65536 are recommended"}},
		"swap off":  {decideSwap("Filename\tType\tSize\tUsed\tPriority\n"), nil},
		"swap on":   {decideSwap("Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 2097148 0 -2\n/swap file 1024 0 -3\n"), []string{"info: swap: 2048 MB of swap are on"}},

		"mounts fine": {decideMounts([]string{"/", "/var/lib/kubelet", "/var/lib/kubelet-x/pods/1"}, "/var/lib/kubelet", "/run/k1s"), nil},
		"mounts left": {decideMounts([]string{"/var/lib/kubelet/pods/1/volumes/x", "/run/k3s/containerd/y"}, "/var/lib/kubelet", "/run/k1s"),
			[]string{"warning: leftover-mounts: 2 mounts of an earlier node are there, for example /var/lib/kubelet/pods/1/volumes/x"}},
		"links":     {decideLinks([]netInterface{{Name: "eth0"}, {Name: "docker0"}}), nil},
		"links old": {decideLinks([]netInterface{{Name: "cni0"}, {Name: "flannel.1"}}), []string{"warning: leftover-links: interfaces of an earlier cluster are there: cni0, flannel.1"}},
		"processes": {decideProcesses([]processInfo{{7, "kubelet"}, {8, "k3s-server"}, {9, "bash"}}, []int{7}),
			[]string{"warning: leftover-processes: another Kubernetes runs here: k3s-server (pid 8)"}},
		"namespaces": {decideNamespaces([]string{"pid", "net"}), []string{"error: no-namespaces: the kernel lacks namespaces of kind pid, net"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := shown(c.got); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			for _, p := range c.got {
				if p.Remedy == "" {
					t.Errorf("no remedy: %s", p)
				}
			}
		})
	}
}

func TestPortsAreReportedWithTheirOwner(t *testing.T) {
	spec := config.Spec{API: config.API{Port: 6443, Bind: "0.0.0.0"}}
	any4, local := netip.IPv4Unspecified(), netip.MustParseAddr("127.0.0.1")
	got := decidePorts(wantedPorts(spec), []Listener{
		{6443, netip.IPv6Unspecified(), 812, "haproxy"},
		{10250, local, 5, "kubelet"},                              // ours
		{10257, netip.MustParseAddr("192.0.2.1"), 9, "elsewhere"}, // another address
		{10256, any4, 0, ""},
		{2379, any4, 77, "etcd"}, // not wanted with sqlite
	}, []int{5})
	want := []health.Problem{
		health.New(health.PortInUse, "port 6443 is in use by haproxy (pid 812)").Of("kube-apiserver").Fix("stop it, or set spec.api.port to another port"),
		health.New(health.PortInUse, "port 10256 is in use by a program that cannot be seen from here").Of("kube-proxy"),
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", shown(got), shown(want))
	}
	spec.NoWorker, spec.Datastore.Endpoint = true, "etcd"
	var ports []uint16
	for _, w := range wantedPorts(spec) {
		ports = append(ports, w.Port)
	}
	if want := []uint16{6443, 10257, 10259, 2379, 2380}; !reflect.DeepEqual(ports, want) {
		t.Errorf("without worker, with etcd: got %v, want %v", ports, want)
	}
}

func TestOverlappingRangesAreFound(t *testing.T) {
	net := config.Network{PodCIDR: "10.42.0.0/16", ServiceCIDR: "10.43.0.0/16"}
	eth0 := netInterface{Name: "eth0", Up: true, Addrs: prefixes("192.0.2.7/24", "fe80::1/64")}
	r := func(dst, via, dev string) route {
		out := route{Dst: netip.MustParsePrefix(dst), Dev: dev}
		if via != "" {
			out.Via = netip.MustParseAddr(via)
		}
		return out
	}
	gw := r("0.0.0.0/0", "192.0.2.1", "eth0")
	for name, c := range map[string]struct {
		ip     string
		links  []netInterface
		routes []route
		ours   bool
		want   []string
	}{
		"nothing": {"192.0.2.7", []netInterface{eth0}, []route{gw, r("192.0.2.0/24", "", "eth0")}, false, nil},
		"the node is inside": {"10.42.3.4", nil, nil, false,
			[]string{"error: cidr-overlap: the range of pods 10.42.0.0/16 contains the node's own address 10.42.3.4"}},
		"an interface, told once": {"192.0.2.7", []netInterface{eth0, {Name: "tun0", Addrs: prefixes("10.43.8.1/24")}}, []route{gw, r("10.43.8.0/24", "", "tun0")}, false,
			[]string{"error: cidr-overlap: the range of services 10.43.0.0/16 overlaps the network 10.43.8.0/24 of interface tun0"}},
		"a route inside": {"192.0.2.7", []netInterface{eth0}, []route{gw, r("10.42.5.0/24", "192.0.2.9", "eth0")}, false,
			[]string{"error: cidr-overlap: the range of pods 10.42.0.0/16 overlaps the route to 10.42.5.0/24 by eth0"}},
		"flannel's route to a neighbour": {"192.0.2.7", []netInterface{eth0}, []route{gw, r("10.42.5.0/24", "192.0.2.9", "eth0")}, true, nil},
		"a route by the router, later": {"192.0.2.7", []netInterface{eth0}, []route{gw, r("10.42.5.0/24", "192.0.2.1", "eth0")}, true,
			[]string{"error: cidr-overlap: the range of pods 10.42.0.0/16 overlaps the route to 10.42.5.0/24 by eth0"}},
		"a company's wide route": {"192.0.2.7", []netInterface{eth0}, []route{gw, r("10.0.0.0/8", "192.0.2.9", "eth0")}, false, []string{
			"warning: cidr-overlap: the range of pods 10.42.0.0/16 lies in 10.0.0.0/8, to which this machine has a route by eth0; hosts there cannot be reached any more",
			"warning: cidr-overlap: the range of services 10.43.0.0/16 lies in 10.0.0.0/8, to which this machine has a route by eth0; hosts there cannot be reached any more"}},
		"pods that still run": {"192.0.2.7", []netInterface{eth0, {Name: "veth4da78034", Addrs: prefixes("10.42.0.1/32")}}, []route{gw, r("10.42.0.2/32", "", "veth4da78034")}, true, nil},
		"somebody else's pods": {"192.0.2.7", []netInterface{eth0, {Name: "veth4da78034", Addrs: prefixes("10.42.0.1/32")}}, []route{gw, r("10.42.0.2/32", "", "veth4da78034")}, false, []string{
			"error: cidr-overlap: the range of pods 10.42.0.0/16 overlaps the network 10.42.0.1/32 of interface veth4da78034",
			"error: cidr-overlap: the range of pods 10.42.0.0/16 overlaps the route to 10.42.0.2/32 by veth4da78034"}},
		"the cluster's own bridge": {"192.0.2.7", []netInterface{eth0, {Name: "cni0", Addrs: prefixes("10.42.0.1/24")}}, []route{gw, r("10.42.0.0/24", "", "cni0")}, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := decideCIDRs(net, netip.MustParseAddr(c.ip), c.links, c.routes, c.ours)
			if !reflect.DeepEqual(shown(got), c.want) {
				t.Errorf("got %q, want %q", shown(got), c.want)
			}
		})
	}
}

func TestAFirewallThatDropsIsNamed(t *testing.T) {
	got, err := decideFirewall([]byte(`{"nftables": [{"metainfo": {"version": "1.0.6"}},
		{"chain": {"family": "inet", "table": "filter", "name": "fwd", "handle": 1, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
		{"chain": {"family": "inet", "table": "filter", "name": "out", "hook": "output", "policy": "drop"}},
		{"chain": {"family": "ip6", "table": "f6", "name": "fwd", "hook": "forward", "policy": "drop"}},
		{"chain": {"family": "ip", "table": "t", "name": "in", "hook": "input", "policy": "accept"}},
		{"chain": {"family": "ip", "table": "t", "name": "plain"}}]}`))
	want := []string{"warning: foreign-firewall: chain fwd of table inet filter drops packets by default (hook forward)"}
	if err != nil || !reflect.DeepEqual(shown(got), want) {
		t.Errorf("got %q, %v; want %q", shown(got), err, want)
	}
	if _, err := decideFirewall([]byte("nft: error")); err == nil {
		t.Error("took rubbish")
	}
}

func TestChecksRunWhereTheyMatterAndAreSorted(t *testing.T) {
	say := func(ps ...health.Problem) func(context.Context, CheckInput) []health.Problem {
		return func(context.Context, CheckInput) []health.Problem { return ps }
	}
	checks := []Check{
		{Name: "a", Run: say(health.New(health.Swap, "on"), health.New(health.PortInUse, "x"))},
		{Name: "b", Worker: true, Run: say(health.New(health.NoNFTables, "none"))},
	}
	in := CheckInput{}
	if got, want := shown(RunChecks(t.Context(), checks, in)), []string{"error: no-nftables: none", "error: port-in-use: x", "info: swap: on"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	in.Config.Spec.NoWorker = true
	if got, want := shown(RunChecks(t.Context(), checks, in)), []string{"error: port-in-use: x", "info: swap: on"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
