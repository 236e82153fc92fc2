package platform

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/health"
)

// The decisions of the checks: from what was found to what is wrong. All pure.

const (
	mb = 1 << 20
	gb = 1 << 30
)

func one(p health.Problem) []health.Problem { return []health.Problem{p} }

func decideRoot(euid int) []health.Problem {
	if euid == 0 {
		return nil
	}
	return one(health.New(health.NotRoot, "k1s runs as user %d", euid))
}

// decideKernel takes what uname says, e.g. "6.1.0-18-amd64".
func decideKernel(release string) []health.Problem {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n < 2 {
		return failed("the kernel's version", fmt.Errorf("%q is no version", release))
	}
	if major > 5 || major == 5 && minor >= 13 {
		return nil
	}
	return one(health.New(health.KernelTooOld, "the kernel is %s, 5.13 or newer is needed", release))
}

// The controllers a kubelet refuses to start without, and those it only misses.
var (
	neededV1 = []string{"cpu", "cpuacct", "cpuset", "memory"}
	neededV2 = []string{"cpu", "cpuset", "memory"}
	missed   = []string{"pids"}
)

func decideCgroups(version int, controllers []string) []health.Problem {
	needed := neededV2
	var out []health.Problem
	switch version {
	case 0:
		return one(health.New(health.NoCgroups, "no cgroup file system is mounted at /sys/fs/cgroup"))
	case 1:
		needed = neededV1
		out = one(health.New(health.CgroupV1, "cgroup version 1 is in use"))
	}
	lacking := func(want []string) string {
		return strings.Join(slices.DeleteFunc(slices.Clone(want), func(c string) bool { return slices.Contains(controllers, c) }), ", ")
	}
	if l := lacking(needed); l != "" {
		out = append(out, health.New(health.CgroupControllers, "cgroup controllers are missing: %s", l))
	}
	if l := lacking(missed); l != "" {
		out = append(out, health.New(health.CgroupControllers, "cgroup controllers are missing: %s; the number of processes of a pod cannot be limited", l).As(health.Warning))
	}
	return out
}

// decideMemory is told how much there is, and the file that limits it, "" where that is the machine itself.
func decideMemory(bytes uint64, limit string) []health.Problem {
	const enough, least = 768 * mb, 400 * mb
	if bytes == 0 || bytes >= enough {
		return nil
	}
	p := health.New(health.MemoryLow, "%d MB of memory may be used, %d MB are recommended", bytes/mb, enough/mb)
	if bytes < least {
		p = health.New(health.MemoryLow, "%d MB of memory may be used, %d MB are needed", bytes/mb, least/mb).As(health.Error)
	}
	if limit != "" {
		p.Text += fmt.Sprintf(" (limited by the cgroup %s)", path.Dir(limit))
		p = p.Fix("raise the limit in %s (with systemd: MemoryMax), or run k1s in another cgroup", limit)
	}
	return one(p)
}

// diskFacts are about the file system of the data directory. Sizes are what root may use.
type diskFacts struct {
	Dir        string
	FreeBytes  uint64
	Inodes     uint64 // 0 where the file system does not count them
	FreeInodes uint64
	Type       string // "ext4", or a number in hexadecimal
}

func decideDisk(d diskFacts) []health.Problem {
	const enough, least = 2 * gb, 500 * mb
	const inodes = 20000
	var out []health.Problem
	switch {
	case d.FreeBytes < least:
		out = one(health.New(health.DiskLow, "%d MB are free at %s, %d MB are needed", d.FreeBytes/mb, d.Dir, least/mb).As(health.Error))
	case d.FreeBytes < enough:
		out = one(health.New(health.DiskLow, "%d MB are free at %s, %d MB are recommended", d.FreeBytes/mb, d.Dir, enough/mb))
	}
	if d.Inodes > 0 && d.FreeInodes < inodes {
		out = append(out, health.New(health.InodesLow, "%d inodes are free at %s, %d are recommended", d.FreeInodes, d.Dir, inodes))
	}
	switch d.Type {
	case "nfs", "cifs", "smb2", "9p", "ceph", "fuse":
		p := health.New(health.DataDirFS, "%s is on a file system of type %s", d.Dir, d.Type)
		if d.Type != "fuse" && d.Type != "9p" { // those may be local
			p = p.As(health.Error)
		}
		out = append(out, p)
	case "vfat", "exfat", "ntfs":
		out = append(out, health.New(health.DataDirFS, "%s is on a file system of type %s, which has no Unix permissions", d.Dir, d.Type).As(health.Error))
	case "tmpfs", "ramfs":
		out = append(out, health.New(health.DataDirFS, "%s is in memory: the cluster will be gone after a reboot", d.Dir))
	}
	return out
}

// decideSync takes how long each of a few safe writes took.
func decideSync(dir string, took []time.Duration) []health.Problem {
	const slow = 20 * time.Millisecond
	if len(took) == 0 {
		return nil
	}
	took = slices.Sorted(slices.Values(took))
	median, worst := took[len(took)/2], took[len(took)-1]
	if median <= slow {
		return nil
	}
	return one(health.New(health.DiskSlow, "a safe write to %s takes %s (median of %d, worst %s)",
		dir, median.Round(100*time.Microsecond), len(took), worst.Round(100*time.Microsecond)))
}

// earliest is a day before which no clock can be right.
var earliest = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func decideClock(now time.Time) []health.Problem {
	if !now.Before(earliest) {
		return nil
	}
	return one(health.New(health.Clock, "the machine's clock says %s, before this program was made", now.UTC().Format(time.RFC3339)))
}

func decideHost(host, nodeName string) []health.Problem {
	switch {
	case nodeName == "":
		return one(health.New(health.HostName, "no node name can be made from the host name %q", host).As(health.Error))
	case NodeName(nodeName) != nodeName:
		return one(health.New(health.HostName, "%q is no valid node name: lower case letters, digits, dots and dashes only", nodeName).As(health.Error))
	case nodeName == "localhost" || strings.HasPrefix(nodeName, "localhost."):
		return one(health.New(health.HostName, "the node is called %q; a second node of that name could not join", nodeName))
	case NodeName(host) == nodeName && host != nodeName:
		return one(health.New(health.HostName, "the host name %q is no valid node name; the node is called %q", host, nodeName).As(health.Info))
	}
	return nil
}

func decideNodeIP(ip netip.Addr, iface string) []health.Problem {
	switch {
	case !ip.IsValid():
		return one(health.New(health.NodeIP, "no interface has an address that others could reach"))
	case ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast():
		return one(health.New(health.NodeIP, "%s cannot be the address of a node", ip))
	case iface == "":
		return one(health.New(health.NodeIP, "no interface has the node's address %s", ip).As(health.Warning))
	case ip.Is6():
		return one(health.New(health.NodeIP, "the node has only the IPv6 address %s; pods and services use IPv4", ip).As(health.Warning))
	}
	return nil
}

// wantedPort is a port that a component of this node listens on.
type wantedPort struct {
	Port      uint16
	Addr      netip.Addr
	Component string
	Remedy    string
}

// wantedPorts follow from the configuration. Node ports are not among them: they need no listener.
func wantedPorts(s config.Spec) []wantedPort {
	all, local := netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{127, 0, 0, 1})
	bind, err := netip.ParseAddr(s.API.Bind)
	if err != nil {
		bind = all
	}
	var out []wantedPort
	if s.ControlPlane() {
		out = []wantedPort{
			{uint16(s.API.Port), bind, "kube-apiserver", "stop it, or set spec.api.port to another port"},
			{10257, local, "kube-controller-manager", ""},
			{10259, local, "kube-scheduler", ""},
		}
	} else {
		out = []wantedPort{{uint16(s.API.Port), local, "balancer", "stop it, or set spec.api.port to another port: this node's own way to the servers"}}
	}
	if s.ControlPlane() && s.Datastore.Endpoint == "etcd" {
		out = append(out, wantedPort{2379, all, "etcd", ""}, wantedPort{2380, all, "etcd", ""})
	}
	if s.Worker() {
		out = append(out,
			wantedPort{10250, all, "kubelet", ""}, wantedPort{10248, local, "kubelet", ""},
			wantedPort{10249, local, "kube-proxy", ""}, wantedPort{10256, all, "kube-proxy", ""})
	}
	return slices.DeleteFunc(out, func(p wantedPort) bool { return p.Port == 0 })
}

func decidePorts(wanted []wantedPort, listeners []Listener, ignore []int) []health.Problem {
	var out []health.Problem
	for _, w := range wanted {
		i := slices.IndexFunc(listeners, func(l Listener) bool {
			return l.Port == w.Port && overlap(l.Addr, w.Addr) && (l.PID == 0 || !slices.Contains(ignore, l.PID))
		})
		if i < 0 {
			continue
		}
		p := health.New(health.PortInUse, "port %d is in use by %s", w.Port, listeners[i]).Of(w.Component)
		if w.Remedy != "" {
			p = p.Fix("%s", w.Remedy)
		}
		out = append(out, p)
	}
	return out
}

// isClusterLink tells the links that flannel and the bridge plugin make; they carry pod addresses.
func isClusterLink(name string) bool {
	return name == "cni0" || strings.HasPrefix(name, "flannel")
}

// isPodRoute tells what a routed pod leaves on its node: the gateway's address on the node's end of its
// veth pair, and a route to the pod through it. Both are single addresses.
func isPodRoute(link string, p netip.Prefix) bool {
	return strings.HasPrefix(link, "veth") && p.IsSingleIP()
}

// decideCIDRs looks for the cluster's ranges in the machine's own network. ours says that a cluster of
// ours ran here before: then the routes to pods that still run, and flannel's routes to other nodes, which
// lie inside the pod range and go through a neighbour, are no surprise.
func decideCIDRs(s config.Network, nodeIP netip.Addr, links []netInterface, routes []route, ours bool) []health.Problem {
	var out []health.Problem
	var gateway netip.Addr
	for _, r := range routes {
		if r.Dst.Bits() == 0 {
			gateway = r.Via
		}
	}
	for _, c := range []struct{ what, field, cidr string }{
		{"pods", "spec.network.podCIDR", s.PodCIDR}, {"services", "spec.network.serviceCIDR", s.ServiceCIDR},
	} {
		cidr, err := netip.ParsePrefix(c.cidr)
		if err != nil {
			continue // the configuration's own checks name it
		}
		report := func(format string, args ...any) health.Problem {
			return health.New(health.CIDROverlap, "the range of %s %s %s", c.what, cidr, fmt.Sprintf(format, args...)).
				Fix("choose another range: %s", c.field)
		}
		if cidr.Contains(nodeIP) {
			out = append(out, report("contains the node's own address %s", nodeIP))
			continue
		}
		// A connected network shows as an address and as a route: say it once.
		told := map[netip.Prefix]bool{}
		for _, l := range links {
			if isClusterLink(l.Name) {
				continue
			}
			for _, a := range l.Addrs {
				if ours && isPodRoute(l.Name, a) {
					continue
				}
				if net := a.Masked(); net.Addr().Is4() && net.Bits() > 0 && cidr.Overlaps(net) && !told[net] {
					told[net] = true
					out = append(out, report("overlaps the network %s of interface %s", net, l.Name))
				}
			}
		}
		for _, r := range routes {
			switch {
			case r.Dst.Bits() == 0 || isClusterLink(r.Dev) || !cidr.Overlaps(r.Dst) || told[r.Dst]:
			case ours && isPodRoute(r.Dev, r.Dst):
			case ours && r.Via.IsValid() && r.Via != gateway && r.Dst.Bits() > cidr.Bits():
			case r.Dst.Bits() < cidr.Bits():
				told[r.Dst] = true
				out = append(out, report("lies in %s, to which this machine has a route by %s; hosts there cannot be reached any more", r.Dst, r.Dev).As(health.Warning))
			default:
				told[r.Dst] = true
				out = append(out, report("overlaps the route to %s by %s", r.Dst, r.Dev))
			}
		}
	}
	return out
}

// sysctls are the kernel settings that matter, "" where one does not exist.
type sysctls struct {
	Readonly         bool // /proc/sys cannot be written
	Forward          string
	Bridged          bool // pods may be ports of a bridge; k1s' own network routes them
	BridgeNF         string
	ConntrackMax     string
	ConntrackWrite   bool
	InotifyInstances string
	InotifyWatches   string
}

func decideSysctls(s sysctls) []health.Problem {
	var out []health.Problem
	if s.Readonly {
		out = append(out, health.New(health.ProcSysReadonly, "/proc/sys is read-only"))
	}
	switch {
	case s.Forward == "1":
	case s.Readonly:
		out = append(out, health.New(health.IPForwarding, "IPv4 packets are not forwarded, and /proc/sys is read-only").As(health.Error))
	default:
		out = append(out, health.New(health.IPForwarding, "IPv4 packets are not forwarded yet"))
	}
	switch {
	case !s.Bridged, s.BridgeNF == "1":
	case s.BridgeNF == "":
		out = append(out, health.New(health.BridgeNetfilter, "the module br_netfilter is not loaded"))
	default:
		out = append(out, health.New(health.BridgeNetfilter, "net.bridge.bridge-nf-call-iptables is %s", s.BridgeNF))
	}
	if s.ConntrackMax != "" && !s.ConntrackWrite {
		out = append(out, health.New(health.ConntrackReadonly, "the limit of tracked connections is %s and cannot be changed from here", s.ConntrackMax))
	}
	low := func(name, value string, least int) {
		if n, err := strconv.Atoi(value); err == nil && n < least {
			out = append(out, health.New(health.InotifyLow, "%s is %d, at least %d are recommended", name, n, least))
		}
	}
	low("fs.inotify.max_user_instances", s.InotifyInstances, 128)
	low("fs.inotify.max_user_watches", s.InotifyWatches, 8192)
	return out
}

func decideOpenFiles(hard uint64) []health.Problem {
	const enough = 65536
	if hard >= enough {
		return nil
	}
	return one(health.New(health.OpenFilesLow, "%d files may be open in a process, %d are recommended", hard, enough))
}

// decideSwap takes /proc/swaps.
func decideSwap(swaps string) []health.Problem {
	var kb uint64
	for line := range strings.Lines(swaps) {
		if f := strings.Fields(line); len(f) >= 3 {
			if n, err := strconv.ParseUint(f[2], 10, 64); err == nil {
				kb += n
			}
		}
	}
	if kb == 0 {
		return nil
	}
	return one(health.New(health.Swap, "%d MB of swap are on", kb/1024))
}

// decideMounts looks for mounts that a runtime left, in the mount points of this namespace.
func decideMounts(points []string, kubelet, run string) []health.Problem {
	var found []string
	for _, p := range points {
		for _, dir := range []string{path.Join(kubelet, "pods"), path.Join(kubelet, "plugins"), run, "/run/k3s", "/run/k0s"} {
			if strings.HasPrefix(p, dir+"/") {
				found = append(found, p)
			}
		}
	}
	if len(found) == 0 {
		return nil
	}
	return one(health.New(health.LeftoverMounts, "%d mounts of an earlier node are there, for example %s", len(found), found[0]))
}

func decideLinks(links []netInterface) []health.Problem {
	var found []string
	for _, l := range links {
		if isClusterLink(l.Name) || strings.HasPrefix(l.Name, "kube-") || strings.HasPrefix(l.Name, "cali") || strings.HasPrefix(l.Name, "cilium") {
			found = append(found, l.Name)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return one(health.New(health.LeftoverLinks, "interfaces of an earlier cluster are there: %s", strings.Join(found, ", ")))
}

// processInfo is a process in our network namespace.
type processInfo struct {
	PID  int
	Name string
}

// distributions are names of programs that belong to another Kubernetes on the same machine.
var distributions = []string{"kubelet", "k3s", "k3s-server", "k3s-agent", "k0s", "rke2", "kube-apiserver", "kube-proxy", "kubelite"}

func decideProcesses(procs []processInfo, ignore []int) []health.Problem {
	var found []string
	for _, p := range procs {
		if slices.Contains(distributions, p.Name) && !slices.Contains(ignore, p.PID) {
			found = append(found, fmt.Sprintf("%s (pid %d)", p.Name, p.PID))
		}
	}
	if len(found) == 0 {
		return nil
	}
	return one(health.New(health.LeftoverProcesses, "another Kubernetes runs here: %s", strings.Join(found, ", ")))
}

// decideFirewall takes `nft -j list chains`. What legacy iptables hold is not in it.
func decideFirewall(chains []byte) ([]health.Problem, error) {
	var doc struct {
		NFTables []struct {
			Chain *struct {
				Family, Table, Name, Hook, Policy string
			}
		}
	}
	if err := json.Unmarshal(chains, &doc); err != nil {
		return nil, fmt.Errorf("reading the answer of nft: %w", err)
	}
	var out []health.Problem
	for _, o := range doc.NFTables {
		c := o.Chain
		if c == nil || c.Policy != "drop" || (c.Hook != "forward" && c.Hook != "input") || c.Family == "ip6" {
			continue
		}
		out = append(out, health.New(health.ForeignFirewall, "chain %s of table %s %s drops packets by default (hook %s)", c.Name, c.Family, c.Table, c.Hook))
	}
	return out, nil
}

func decideNamespaces(missing []string) []health.Problem {
	if len(missing) == 0 {
		return nil
	}
	return one(health.New(health.NoNamespaces, "the kernel lacks namespaces of kind %s", strings.Join(missing, ", ")))
}
