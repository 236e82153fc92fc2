// Package platform is what we may ask of the machine we run on: facts about it, checks of whether it can
// carry a node, who listens on a port, processes and cgroups. Decisions are pure functions that are tested
// everywhere; what asks the system sits in files with a build suffix. It changes nothing that it was not
// asked to change. Used by the daemon, the supervisor's runners and `k1s check`.
package platform

import (
	"net/netip"
	"slices"
	"strings"
)

// FactsInput is what the configuration says about the machine; empty fields are detected.
type FactsInput struct {
	DataDir    string // where overlay mounts are tried; it or one of its parents exists
	NodeName   string
	NodeIP     string
	CgroupRoot string // "/k1s" if empty
}

// defaultCgroupRoot is where everything of a node lives that runs directly on a machine.
const defaultCgroupRoot = "/k1s"

// maxNodeName is the length of a label value: the node's name is also its label kubernetes.io/hostname.
const maxNodeName = 63

// NodeName derives a node name from a host name: lower case, every other character a dash, each part
// between dots beginning and ending with a letter or digit. "" if nothing is left.
func NodeName(host string) string {
	host = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '.', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		default:
			return '-'
		}
	}, host)
	if len(host) > maxNodeName {
		host = host[:maxNodeName]
	}
	var parts []string
	for part := range strings.SplitSeq(host, ".") {
		if part = strings.Trim(part, "-"); part != "" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, ".")
}

// netInterface is a network interface with its addresses, as far as choosing among them needs.
type netInterface struct {
	Name     string
	Up       bool
	Loopback bool
	Addrs    []netip.Prefix
}

// route is an IPv4 route of the main table.
type route struct {
	Dst    netip.Prefix
	Via    netip.Addr // zero value for a directly connected network
	Dev    string
	Metric uint32
}

// containerLinks begin the names of interfaces that container engines and clusters make; their
// addresses mean nothing to other machines.
var containerLinks = []string{"docker", "br-", "veth", "cni", "flannel", "kube-", "cali", "virbr", "lxc", "podman", "cilium"}

func isContainerLink(name string) bool {
	return slices.ContainsFunc(containerLinks, func(p string) bool { return strings.HasPrefix(name, p) })
}

// chooseAddress picks the address a node is reached at: the one asked for, with the interface that has
// it; else the first of the interface with the best default route; else, as on a machine without a way
// out, the first one that others could reach. IPv4 comes first because the cluster's networks are IPv4.
// The result is not valid where there is none.
func chooseAddress(asked netip.Addr, links []netInterface, routes []route) (netip.Addr, string) {
	if asked.IsValid() {
		for _, l := range links {
			if slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr() == asked }) {
				return asked, l.Name
			}
		}
		return asked, ""
	}
	first := func(l netInterface, want func(netip.Addr) bool) netip.Addr {
		for _, p := range l.Addrs {
			if a := p.Addr(); l.Up && !l.Loopback && a.IsGlobalUnicast() && want(a) {
				return a
			}
		}
		return netip.Addr{}
	}

	var best *route
	for i, r := range routes {
		if r.Dst.Bits() == 0 && (best == nil || r.Metric < best.Metric) {
			best = &routes[i]
		}
	}
	if best != nil {
		for _, l := range links {
			if l.Name == best.Dev {
				if a := first(l, netip.Addr.Is4); a.IsValid() {
					return a, l.Name
				}
			}
		}
	}
	for _, want := range []func(netip.Addr) bool{netip.Addr.Is4, netip.Addr.Is6} {
		for _, containers := range []bool{false, true} {
			for _, l := range links {
				if isContainerLink(l.Name) != containers {
					continue
				}
				if a := first(l, want); a.IsValid() {
					return a, l.Name
				}
			}
		}
	}
	return netip.Addr{}, ""
}
