package platform

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/health"
)

// Checks returns everything that is checked before a node starts.
func Checks() []Check {
	return []Check{
		{Name: "root", Summary: "permissions", Run: func(context.Context, CheckInput) []health.Problem { return decideRoot(os.Geteuid()) }},
		{Name: "kernel", Summary: "the kernel's version", Worker: true, Run: checkKernel},
		{Name: "nftables", Summary: "nf_tables and the expressions needed", Worker: true, Run: checkNFTables},
		{Name: "overlayfs", Summary: "the overlay file system in the data directory", Worker: true, Run: checkOverlay},
		{Name: "namespaces", Summary: "namespaces", Worker: true, Run: checkNamespaces},
		{Name: "seccomp", Summary: "seccomp filters", Worker: true, Run: checkSeccomp},
		{Name: "cgroups", Summary: "cgroups and their controllers", Worker: true, Run: checkCgroups},
		{Name: "capabilities", Summary: "capabilities", Run: checkCapabilities},
		{Name: "users", Summary: "users of the control plane", Run: checkUsers},
		{Name: "sysctls", Summary: "kernel settings", Worker: true, Run: checkSysctls},
		{Name: "open-files", Summary: "the limit of open files", Run: checkOpenFiles},
		{Name: "security", Summary: "SELinux", Worker: true, Run: checkSecurity},
		{Name: "swap", Summary: "swap", Worker: true, Run: func(context.Context, CheckInput) []health.Problem { return decideSwap(readString("/proc/swaps")) }},
		{Name: "memory", Summary: "memory", Run: func(_ context.Context, in CheckInput) []health.Problem {
			return decideMemory(in.Facts.MemoryBytes, in.Facts.MemoryLimit)
		}},
		{Name: "disk", Summary: "space in the data directory and its file system", Run: func(_ context.Context, in CheckInput) []health.Problem { return DiskProblems(in.Paths.Data) }},
		{Name: "data-dir", Summary: "writing safely to the data directory, and how long it takes", Run: checkDataDir},
		{Name: "clock", Summary: "the clock", Run: func(_ context.Context, in CheckInput) []health.Problem { return decideClock(in.now()) }},
		{Name: "hostname", Summary: "the host name", Run: checkHost},
		{Name: "node-ip", Summary: "the node's address", Run: func(_ context.Context, in CheckInput) []health.Problem {
			return decideNodeIP(in.Facts.NodeIP, in.Facts.NodeInterface)
		}},
		{Name: "ports", Summary: "ports of the components", Run: checkPorts},
		{Name: "cidrs", Summary: "pod and service ranges against the machine's network", Worker: true, Run: checkCIDRs},
		{Name: "firewall", Summary: "firewalls of others", Worker: true, Run: checkFirewall},
		{Name: "leftovers", Summary: "what an earlier node left", Worker: true, Run: checkLeftovers},
	}
}

func checkKernel(context.Context, CheckInput) []health.Problem {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return failed("the kernel's version", err)
	}
	return decideKernel(unix.ByteSliceToString(u.Release[:]))
}

// nftFeatures are the expressions that kube-proxy, flannel, the port mapper and network policies use, by the module that
// has them. Chains have a prefix because most short names are words of the language.
var nftFeatures = []struct{ module, rules string }{
	{"nft_chain_nat", "chain c-nat { type nat hook prerouting priority -100; }"},
	{"nft_masq", "chain c-masq { type nat hook postrouting priority 100; masquerade fully-random; }"},
	{"nft_nat", "chain c-dnat { type nat hook prerouting priority -100; meta l4proto tcp dnat to 192.0.2.1:80; }"},
	{"nft_ct", "chain c-ct { type filter hook forward priority 0; ct state new accept; }"},
	{"nft_reject_ipv4", "chain c-reject { type filter hook forward priority 0; reject; }"},
	{"nft_numgen", "chain c-numgen { meta mark set numgen random mod 2; }"},
	{"nft_fib_ipv4", "chain c-fib { type filter hook prerouting priority 0; fib daddr type local accept; }"},
	{"nf_tables: verdict maps", "map verdicts { type ipv4_addr . inet_proto . inet_service : verdict; }\n" +
		" chain c-vmap { ip daddr . meta l4proto . th dport vmap @verdicts; }"},
	{"nf_tables: dynamic sets", "set affinity { type ipv4_addr; flags dynamic,timeout; timeout 3h; }\n chain c-update { update @affinity { ip saddr }; }"},
	{"nf_tables: sets of ranges", "chain c-ranges { ip saddr { 192.0.2.0/25 } meta l4proto . th dport { 6 . 80-90, 17 . 53 } accept; }"},
	{"nf_tables: connection tracking by direction", "chain c-direction { ct direction reply accept; ct state related accept; }"},
	{"nf_tables: marks", "chain c-marks { meta mark set meta mark or 0x4000; }"},
}

func checkNFTables(ctx context.Context, in CheckInput) []health.Problem {
	if err := askNFTables(); err != nil {
		return one(health.New(health.NoNFTables, "the kernel does not answer for nf_tables: %v", err))
	}
	if in.NFT == "" {
		return nil
	}
	var all []string
	for _, f := range nftFeatures {
		all = append(all, f.rules)
	}
	err := tryNFT(ctx, in.NFT, strings.Join(all, "\n "))
	if err == nil || ctx.Err() != nil {
		return nil
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, fs.ErrNotExist) {
		return failed("nf_tables", err)
	}
	var missing []string
	for _, f := range nftFeatures {
		if tryNFT(ctx, in.NFT, f.rules) != nil {
			missing = append(missing, f.module)
		}
	}
	switch len(missing) {
	case 0: // none alone: too much at once, or a passing trouble
		return failed("nf_tables", err)
	case len(nftFeatures): // not even the simplest: nft itself is in trouble
		return one(health.New(health.NFTablesIncomplete, "no rule can be loaded with nf_tables: %v", err))
	}
	return one(health.New(health.NFTablesIncomplete, "nf_tables lacks what services need: %s", strings.Join(missing, ", ")))
}

// tryNFT really loads rules, in a network namespace that is born and dies with the process.
func tryNFT(ctx context.Context, nft, rules string) error {
	cmd := exec.CommandContext(ctx, nft, "-f", "-")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	cmd.Stdin = strings.NewReader("table ip k1s-probe {\n " + rules + "\n}\n")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("loading probe rules: %w: %s", err, strings.TrimSpace(out.String()))
	}
	return nil
}

// askNFTables asks the kernel for the generation of its rules, which every nf_tables answers.
func askNFTables() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}); err != nil {
		return err
	}
	const headerLen, nfgenLen = unix.NLMSG_HDRLEN, 4
	msg := make([]byte, headerLen+nfgenLen)
	binary.NativeEndian.PutUint32(msg[0:], uint32(len(msg)))
	binary.NativeEndian.PutUint16(msg[4:], unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN)
	binary.NativeEndian.PutUint16(msg[6:], unix.NLM_F_REQUEST)
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return err
	}
	msgs, err := syscall.ParseNetlinkMessage(buf[:n])
	if err != nil {
		return err
	}
	for _, m := range msgs {
		if m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4 {
			return unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
		}
		if m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
			return nil
		}
	}
	return errors.New("an answer of an unknown kind")
}

func checkOverlay(_ context.Context, in CheckInput) []health.Problem {
	if in.Facts.OverlayFS {
		return nil
	}
	why := "" // Facts tell only that it does not work
	if err := overlayWorks(in.Paths.Data); err != nil {
		why = ": " + err.Error()
	} else {
		return nil // a directory was made in between
	}
	return one(health.New(health.NoOverlayFS, "the overlay file system does not work at %s%s", in.Paths.Data, why))
}

func checkNamespaces(context.Context, CheckInput) []health.Problem {
	var missing []string
	for _, kind := range []string{"mnt", "pid", "net", "ipc", "uts"} {
		if _, err := os.Lstat("/proc/self/ns/" + kind); err != nil {
			missing = append(missing, kind)
		}
	}
	return decideNamespaces(missing)
}

func checkSeccomp(context.Context, CheckInput) []health.Problem {
	if _, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail"); err == nil || strings.Contains(readString("/proc/self/status"), "\nSeccomp_filters:") {
		return nil
	}
	return one(health.New(health.NoSeccomp, "the kernel has no seccomp filters"))
}

func checkCgroups(_ context.Context, in CheckInput) []health.Problem {
	cg, err := DetectCgroups()
	if err != nil {
		return one(health.New(health.NoCgroups, "%v", err))
	}
	controllers := []string{}
	for name, mount := range cg.Hierarchies {
		if name != "" {
			controllers = append(controllers, name)
			continue
		}
		// Below the root the list is what the parent lets us have.
		controllers = append(controllers, strings.Fields(readString(path.Join(mount, "cgroup.controllers")))...)
	}
	return decideCgroups(cg.Version, controllers)
}

func checkCapabilities(_ context.Context, in CheckInput) []health.Problem {
	if in.Facts.SysResource || os.Geteuid() != 0 {
		return nil
	}
	return one(health.New(health.NoCapSysResource, "the capability CAP_SYS_RESOURCE is missing"))
}

func checkSysctls(_ context.Context, in CheckInput) []health.Problem {
	read := func(key string) string { return strings.TrimSpace(readString("/proc/sys/" + key)) }
	var st unix.Statfs_t
	readonly := unix.Statfs("/proc/sys", &st) == nil && st.Flags&unix.ST_RDONLY != 0
	return decideSysctls(sysctls{
		Readonly:         readonly,
		Forward:          read("net/ipv4/ip_forward"),
		Bridged:          in.Config.Spec.Network.Backend == "none",
		BridgeNF:         read("net/bridge/bridge-nf-call-iptables"),
		ConntrackMax:     read("net/netfilter/nf_conntrack_max"),
		ConntrackWrite:   unix.Access("/proc/sys/net/netfilter/nf_conntrack_max", unix.W_OK) == nil,
		InotifyInstances: read("fs/inotify/max_user_instances"),
		InotifyWatches:   read("fs/inotify/max_user_watches"),
	})
}

func checkOpenFiles(context.Context, CheckInput) []health.Problem {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return failed("the limit of open files", err)
	}
	return decideOpenFiles(l.Max)
}

func checkSecurity(context.Context, CheckInput) []health.Problem {
	if strings.TrimSpace(readString("/sys/fs/selinux/enforce")) != "1" {
		return nil
	}
	return one(health.New(health.SELinux, "SELinux is enforcing"))
}

func checkDataDir(ctx context.Context, in CheckInput) []health.Problem {
	took, err := trySync(ctx, in.Paths.Data)
	if err != nil {
		return one(health.New(health.DataDirReadonly, "the data directory %s cannot be written to: %v", in.Paths.Data, err))
	}
	return decideSync(in.Paths.Data, took)
}

// trySync writes a few blocks as a database does, each synchronised, to a temporary file in dir or the
// nearest parent that exists.
func trySync(ctx context.Context, dir string) (took []time.Duration, err error) {
	base, err := existing(dir)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(base, ".k1s-check-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	block := bytes.Repeat([]byte("k1s!"), 1024)
	for range 5 {
		if ctx.Err() != nil {
			return took, nil
		}
		start := time.Now()
		if _, err := f.Write(block); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
	}
	return took, nil
}

func checkHost(_ context.Context, in CheckInput) []health.Problem {
	host, err := os.Hostname()
	if err != nil {
		return failed("the host name", err)
	}
	return decideHost(host, in.Facts.NodeName)
}

func checkPorts(_ context.Context, in CheckInput) []health.Problem {
	wanted := wantedPorts(in.Config.Spec)
	ports := make([]uint16, len(wanted))
	for i, w := range wanted {
		ports[i] = w.Port
	}
	listeners, err := ListenersOn(ports...)
	if err != nil {
		return failed("ports in use", err)
	}
	return decidePorts(wanted, listeners, append(slices.Clone(in.IgnorePIDs), os.Getpid()))
}

// ours says whether a node of ours has been here before.
func ours(in CheckInput) bool {
	if in.Adopting {
		return true
	}
	_, err := os.Stat(in.Paths.PKI("ca.crt"))
	return err == nil
}

func checkCIDRs(_ context.Context, in CheckInput) []health.Problem {
	links, err1 := readInterfaces()
	routes, err2 := readRoutes()
	if err := errors.Join(err1, err2); err != nil {
		return failed("the machine's networks", err)
	}
	return decideCIDRs(in.Config.Spec.Network, in.Facts.NodeIP, links, routes, ours(in))
}

func checkFirewall(ctx context.Context, in CheckInput) []health.Problem {
	if in.NFT == "" || os.Geteuid() != 0 {
		return nil
	}
	out, err := exec.CommandContext(ctx, in.NFT, "-j", "list", "chains").Output()
	if err != nil {
		return failed("firewalls of others", err)
	}
	found, err := decideFirewall(out)
	if err != nil {
		return failed("firewalls of others", err)
	}
	return found
}

func checkLeftovers(_ context.Context, in CheckInput) []health.Problem {
	var out []health.Problem
	if !ours(in) {
		points, err := mountPoints()
		if err != nil {
			return failed("leftovers", err)
		}
		links, err := readInterfaces()
		if err != nil {
			return failed("leftovers", err)
		}
		out = append(decideMounts(points, in.Paths.Kubelet, in.Paths.Run), decideLinks(links)...)
	}
	return append(out, decideProcesses(neighbours(), in.IgnorePIDs)...)
}

func mountPoints() ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 {
			out = append(out, unescapeMount(f[4]))
		}
	}
	return out, nil
}

// neighbours are the processes in our network namespace: a node in a sandbox has nothing to do with them.
func neighbours() []processInfo {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil
	}
	var out []processInfo
	for _, pid := range allPIDs() {
		name := processName(pid)
		if !slices.Contains(distributions, name) {
			continue // most of them: saves the second look
		}
		if ns, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "ns", "net")); err == nil && ns == own {
			out = append(out, processInfo{pid, name})
		}
	}
	return out
}
