package tunnel

import (
	"net/netip"
	"testing"
)

func addrs(text ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range text {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func prefixes(text ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range text {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestANodeConnectsToItsOwnOnly(t *testing.T) {
	s := Scope{
		Node: netip.MustParseAddr("10.0.0.7"), Kubelet: 10250, Cluster: prefixes("10.42.0.0/16", "fd42::/48"), Pods: prefixes("10.42.3.0/24", "fd42:0:0:3::/64"),
		Own: addrs("127.0.0.1", "10.0.0.7", "192.168.1.7", "10.42.3.1", "fe80::1"),
	}
	for to, want := range map[string]bool{
		"10.0.0.7:10250": true, "10.42.3.5:443": true, "10.42.3.5:1": true, "[fd42:0:0:3::9]:8443": true,
		// The machine itself, by whatever address.
		"10.0.0.7:22": false, "10.0.0.7:6443": false, "10.42.3.1:22": false, "10.42.3.1:10250": false, "192.168.1.7:10250": false,
		"127.0.0.1:10250": false, "127.0.0.1:6443": false, "[::1]:10250": false, "0.0.0.0:10250": false, "[::]:10250": false, "[fe80::1]:10250": false,
		// Others.
		"10.42.4.5:443": false, "10.0.0.8:10250": false, "10.43.0.1:443": false, "169.254.169.254:80": false, "192.168.1.1:80": false, "203.0.113.9:443": false,
		"224.0.0.1:80": false, "10.42.3.5:0": false, "[fd42:0:0:4::9]:8443": false,
	} {
		if got := s.Allows(netip.MustParseAddrPort(to)); got != want {
			t.Errorf("%s: %v", to, got)
		}
	}
	if s.Allows(netip.AddrPort{}) || (Scope{}).Allows(netip.MustParseAddrPort("10.42.3.5:443")) {
		t.Error("nothing is something")
	}
	// What the API says of a node's networks counts within the cluster's.
	s.Pods = prefixes("0.0.0.0/0", "192.168.0.0/16")
	if s.Allows(netip.MustParseAddrPort("192.168.1.1:80")) || !s.Allows(netip.MustParseAddrPort("10.42.9.9:80")) {
		t.Error("a node's networks are not kept within the cluster's")
	}
}

func TestPodsThatNetworksDoNotTellAreKnownByTheirAddresses(t *testing.T) {
	s := Scope{Node: netip.MustParseAddr("10.0.0.7"), Kubelet: 10250, Own: addrs("10.0.0.7", "192.168.1.7", "127.0.0.1")}
	pods := []Pod{
		{Addrs: addrs("10.0.0.7"), HostNetwork: true, Ports: []uint16{9443, 22}},
		{Addrs: addrs("172.30.1.5"), Ports: []uint16{80}},
		{Addrs: addrs("192.168.1.7"), HostNetwork: true, Ports: []uint16{9999}},
		{Addrs: addrs("10.0.0.7"), Ports: []uint16{5000}}, // it says it is none of the host's network, and has its address
		{Addrs: addrs("127.0.0.1"), HostNetwork: true, Ports: []uint16{6443}},
	}
	for to, want := range map[string]bool{
		"10.0.0.7:9443": true, "172.30.1.5:80": true, "172.30.1.5:8080": true,
		"10.0.0.7:9444": false, "10.0.0.7:5000": false, "10.0.0.7:10250": false, "172.30.1.6:80": false, "192.168.1.7:9999": false, "127.0.0.1:6443": false, "172.30.1.5:0": false,
	} {
		if got := s.AllowsPod(netip.MustParseAddrPort(to), pods); got != want {
			t.Errorf("%s: %v", to, got)
		}
	}
}

func TestTargetsAreAddresses(t *testing.T) {
	for in, want := range map[string]string{
		"10.42.1.5:443": "10.42.1.5:443", "[fd42::5]:443": "[fd42::5]:443", "[::ffff:10.42.1.5]:443": "10.42.1.5:443",
		"": "", "10.42.1.5": "", "10.42.1.5:": "", "10.42.1.5:0": "", "10.42.1.5:65536": "", "localhost:80": "", "kubernetes.default.svc:443": "", "fd42::5:443": "",
		"[fe80::1%eth0]:443": "", "10.42.1.5:443:443": "", "010.42.1.5:443": "", "10.42.1.5:+443": "", "10.42.1.5:80 ": "",
	} {
		got, err := target(in)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("%q: %s, %v; want %q", in, got, err, want)
		}
	}
}
