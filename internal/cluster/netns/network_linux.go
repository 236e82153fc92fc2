package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Everything here runs on a thread that has entered the namespace it works on.

// bridgeName is the bridge, in its own namespace, and nodeLink a node's link, in the node's.
const (
	bridgeName = "k1s"
	nodeLink   = "eth0"
)

// setUpBridge furnishes a bridge namespace. It forwards without having anywhere to forward to: so a packet
// to a foreign address is answered with "network unreachable" at once instead of being lost.
func setUpBridge(addr netip.Prefix) error {
	if err := loopbackUp(); err != nil {
		return err
	}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("making the cluster's bridge: %w", err)
	}
	if err := addAddr(br, addr); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(br); err != nil {
		return fmt.Errorf("bringing up the cluster's bridge: %w", err)
	}
	return enableForwarding()
}

// plug makes a link between the bridge, in whose namespace the thread is, and the node whose network
// namespace is given. Neither end ever shows in the machine's own namespace. hostEnd names the end here.
func plug(hostEnd string, nodeNS int, mtu int) error {
	br, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("finding the cluster's bridge: %w", err)
	}
	if old, err := netlink.LinkByName(hostEnd); err == nil { // of a node that is gone, not yet cleaned up
		if err := netlink.LinkDel(old); err != nil {
			return fmt.Errorf("removing the old link %s: %w", hostEnd, err)
		}
	}
	attrs := netlink.LinkAttrs{Name: hostEnd, MTU: mtu, MasterIndex: br.Attrs().Index}
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: nodeLink, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(nodeNS)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("making the link %s: %w", hostEnd, err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return fmt.Errorf("bringing up the link %s: %w", hostEnd, err)
	}
	return nil
}

// mtu of the links between nodes: the usual one of Ethernet, so that what works here works outside.
const linkMTU = 1500

// setUpNodeNetwork gives the node's link its address and the node a way to everything that is not on the
// bridge. There has to be one: without a default route the kernel refuses to connect to service addresses
// before the firewall has had a chance to translate them.
func setUpNodeNetwork(addr netip.Prefix, gateway netip.Addr) error {
	if err := loopbackUp(); err != nil {
		return err
	}
	link, err := netlink.LinkByName(nodeLink)
	if err != nil {
		return fmt.Errorf("finding the node's link: %w", err)
	}
	if err := addAddr(link, addr); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bringing up the node's link: %w", err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("setting the node's default route: %w", err)
	}
	return enableForwarding()
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bringing up the loopback link: %w", err)
	}
	return nil
}

func addAddr(link netlink.Link, addr netip.Prefix) error {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), 32)}}
	if err := netlink.AddrAdd(link, a); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("giving %s the address %s: %w", link.Attrs().Name, addr, err)
	}
	return nil
}

// enableForwarding writes this network namespace's own switch: files below /proc/sys/net belong to the
// namespace of the thread that opens them.
func enableForwarding() error {
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("enabling forwarding inside the cluster: %w", err)
	}
	return nil
}

func hasLink(name string) bool {
	_, err := netlink.LinkByName(name)
	return err == nil
}
