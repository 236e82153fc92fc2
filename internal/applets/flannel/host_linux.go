package flannel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"k1s.io/k1s/internal/applets/networkpolicy/rules"
	"k1s.io/k1s/internal/errs"
)

// vxlanLink is what flannel calls its link.
const vxlanLink = "flannel.1"

// link is the interface other nodes are reached through.
type link struct {
	name     string
	index    int
	mtu      int
	addr     netip.Addr     // ours on it
	networks []netip.Prefix // reachable without a gateway
}

func (l link) podMTU(backend string) int {
	if backend == vxlan {
		return l.mtu - overhead
	}
	return l.mtu
}

// link finds the interface by name, else by address, else by the default route. It is asked again at
// every change, because interfaces come late on some machines and are replaced on others.
func (g *glue) link() (link, error) {
	l, err := g.pickLink()
	if err != nil {
		return link{}, fmt.Errorf("finding the interface other nodes are reached through: %w", err)
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return link{}, fmt.Errorf("reading the addresses of %s: %w", l.Attrs().Name, err)
	}
	out := link{name: l.Attrs().Name, index: l.Attrs().Index, mtu: l.Attrs().MTU, addr: g.nodeIP}
	for _, a := range addrs {
		p, ok := prefixOf(a.IPNet)
		if !ok {
			continue
		}
		out.networks = append(out.networks, p.Masked())
		if !out.addr.IsValid() {
			out.addr = p.Addr()
		}
	}
	if !out.addr.IsValid() {
		return link{}, fmt.Errorf("interface %s has no IPv4 address", out.name)
	}
	return out, nil
}

func (g *glue) pickLink() (netlink.Link, error) {
	if g.iface != "" {
		l, err := netlink.LinkByName(g.iface)
		return l, errs.Hint(wrap(err, "interface %s", g.iface), "interfaces are listed by: ip -brief address")
	}
	if g.nodeIP.IsValid() {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if a.IP.Equal(g.nodeIP.AsSlice()) {
				return netlink.LinkByIndex(a.LinkIndex)
			}
		}
		return nil, fmt.Errorf("no interface has the node's address %s", g.nodeIP)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if r.LinkIndex > 0 && (r.Dst == nil || r.Dst.IP.IsUnspecified()) {
			return netlink.LinkByIndex(r.LinkIndex)
		}
	}
	return nil, errs.Hint(errors.New("there is no default route"), "name the interface or the node's address in the configuration")
}

func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits), ok && a.Unmap().Is4()
}

// procSys is where the kernel shows the settings of this network namespace.
const procSys = "/proc/sys"

// sysctl makes sure that a setting below root has a value.
func sysctl(root, name, value string) error {
	file := filepath.Join(root, name)
	old, err := os.ReadFile(file)
	if err == nil && string(bytes.TrimSpace(old)) == value {
		return nil
	}
	if err == nil {
		err = os.WriteFile(file, []byte(value), 0o644)
	}
	if err == nil {
		return nil
	}
	key := strings.ReplaceAll(name, "/", ".")
	err = fmt.Errorf("setting %s to %s: %w", key, value, err)
	if errors.Is(err, unix.EROFS) || errors.Is(err, os.ErrPermission) {
		return errs.Hint(err, "/proc/sys is read-only here: set it where this container or sandbox is started (sysctl -w %s=%s), or mount it writable", key, value)
	}
	return err
}

// enableForwarding lets the node pass packets between pods and everything else.
func enableForwarding() error { return sysctl(procSys, "net/ipv4/ip_forward", "1") }

// looseReversePath relaxes the source check on the overlay's link where the machine is strict: a packet
// that a remote node sends from its own address to a pod here comes in through the overlay, but the way
// back to that address is another interface. Pods' own links need no such thing: the only source behind
// one is the pod the route points to.
func looseReversePath(name string) error {
	const loose = "2" // the larger of this and conf/all counts
	return sysctl(procSys, "net/ipv4/conf/"+name+"/rp_filter", loose)
}

// strictReversePath tells whether the kernel drops packets that come in on an interface other than the one
// their source is reached through. The larger of two settings counts, and 2 is the loose one.
func strictReversePath(name string) bool {
	strictest := 0
	for _, who := range []string{"all", name} {
		b, err := os.ReadFile(filepath.Join(procSys, "net/ipv4/conf", who, "rp_filter"))
		if err != nil {
			return false // it is only for a warning
		}
		if n, err := strconv.Atoi(string(bytes.TrimSpace(b))); err == nil {
			strictest = max(strictest, n)
		}
	}
	return strictest == 1
}

// podRoutes are the routes to other nodes' pods that a backend made: within the pod network, through a
// gateway. A pod's own route has none.
func podRoutes(podCIDR netip.Prefix) ([]netlink.Route, error) {
	all, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	var out []netlink.Route
	for _, r := range all {
		if p, ok := prefixOf(r.Dst); ok && r.Gw != nil && podCIDR.Contains(p.Addr()) && p.Bits() >= podCIDR.Bits() {
			out = append(out, r)
		}
	}
	return out, nil
}

// dropStale removes what the backends do not know of: routes to nodes that left while we were away, and
// the link of the other backend.
func dropStale(sm *leases, podCIDR netip.Prefix, l link) error {
	index := l.index
	if sm.config.BackendType == vxlan {
		v, err := netlink.LinkByName(vxlanLink)
		if err != nil {
			return fmt.Errorf("looking at %s: %w", vxlanLink, err)
		}
		index = v.Attrs().Index
	} else if err := removeVXLAN(); err != nil {
		return err
	}
	live := map[netip.Prefix]bool{}
	for _, l := range sm.current() {
		if p, ok := prefixOf(l.Subnet.ToIPNet()); ok {
			live[p] = true
		}
	}
	routes, err := podRoutes(podCIDR)
	if err != nil {
		return err
	}
	for _, r := range routes {
		p, _ := prefixOf(r.Dst)
		if live[p] && r.LinkIndex == index {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("removing the old route to %s: %w", p, err)
		}
	}
	return nil
}

func removeVXLAN() error {
	l, err := netlink.LinkByName(vxlanLink)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at %s: %w", vxlanLink, err)
	}
	if l.Type() != "vxlan" {
		return nil // somebody else's
	}
	if err := netlink.LinkDel(l); err != nil {
		return fmt.Errorf("removing %s: %w", vxlanLink, err)
	}
	return nil
}

// Cleanup removes what the applet has set up in this network namespace: the routes to other nodes' pods,
// the vxlan link, the tables, and the CNI configuration ("" for confDir: not that). What is not there is
// fine. Pods that still run lose their way to other nodes.
func Cleanup(ctx context.Context, podCIDR netip.Prefix, confDir string) error {
	var failed []error
	routes, err := podRoutes(podCIDR)
	failed = append(failed, err)
	for _, r := range routes {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			failed = append(failed, fmt.Errorf("removing the route to %s: %w", r.Dst, err))
		}
	}
	failed = append(failed, removeVXLAN())
	for _, t := range []struct {
		family knftables.Family
		name   string
		// onlyEmpty is a chain that must hold no rule: others use the CNI plugin portmap as well.
		onlyEmpty string
	}{
		{knftables.IPv4Family, guardTable, ""}, {knftables.InetFamily, rules.Table, ""},
		{knftables.IPv4Family, "flannel-ipv4", ""}, {knftables.IPv6Family, "flannel-ipv6", ""},
		{knftables.IPv4Family, "cni_hostport", "hostports"}, {knftables.IPv6Family, "cni_hostport", "hostports"},
	} {
		failed = append(failed, removeTable(ctx, t.family, t.name, t.onlyEmpty))
	}
	if confDir != "" {
		if err := os.Remove(filepath.Join(confDir, conflistName)); err != nil && !errors.Is(err, os.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

func removeTable(ctx context.Context, family knftables.Family, name, onlyEmpty string) error {
	nft, err := knftables.New(family, name)
	if err != nil {
		return fmt.Errorf("removing table %s %s: %w", family, name, err)
	}
	if onlyEmpty != "" {
		rules, err := nft.ListRules(ctx, onlyEmpty)
		if knftables.IsNotFound(err) {
			return nil
		}
		if err != nil || len(rules) > 0 {
			return err
		}
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{}) // so that deleting it cannot fail
	tx.Delete(&knftables.Table{})
	return wrap(nft.Run(ctx, tx), "removing table %s %s", family, name)
}
