package tunnel

import (
	"fmt"
	"net/netip"
	"slices"
)

// Scope is what a node is responsible for, and so what it connects to for a server.
type Scope struct {
	// Node is the node's own address, at which servers know its kubelet.
	Node netip.Addr
	// Kubelet is the kubelet's port.
	Kubelet uint16
	// Cluster is the network of all pods: what the API says of this node's counts within it.
	Cluster []netip.Prefix
	// Pods are the networks of this node's pods.
	Pods []netip.Prefix
	// Own are all addresses of this machine. In the networks of its pods there is one, behind which the machine's own
	// programs listen.
	Own []netip.Addr
}

// Pod is a pod of this node, as the API has it.
type Pod struct {
	Addrs []netip.Addr
	// HostNetwork: its addresses are the node's.
	HostNetwork bool
	// Ports are those its containers name.
	Ports []uint16
}

// Allows decides by addresses alone.
func (s Scope) Allows(to netip.AddrPort) bool {
	a := to.Addr()
	switch {
	case !a.IsValid() || to.Port() == 0 || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast():
		return false
	case a == s.Node:
		return to.Port() == s.Kubelet
	case slices.Contains(s.Own, a):
		return false
	}
	within := func(p netip.Prefix) bool { return p.Contains(a) }
	return slices.ContainsFunc(s.Cluster, within) && slices.ContainsFunc(s.Pods, within)
}

// AllowsPod decides by the pods of this node: those that have the node's own address, at the ports they name, and those
// whose addresses come from a network of the user's own.
func (s Scope) AllowsPod(to netip.AddrPort, pods []Pod) bool {
	a := to.Addr()
	if !a.IsValid() || to.Port() == 0 || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return false
	}
	own := a == s.Node || slices.Contains(s.Own, a)
	return slices.ContainsFunc(pods, func(p Pod) bool {
		if !slices.Contains(p.Addrs, a) || p.HostNetwork != own {
			return false
		}
		return !own || a == s.Node && slices.Contains(p.Ports, to.Port())
	})
}

// Foreign is the error about a target that is neither.
func (s Scope) Foreign(to netip.AddrPort) error {
	return fmt.Errorf("%s is neither its kubelet nor a pod on it", to)
}
