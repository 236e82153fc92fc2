package platform

import (
	"net/netip"
	"strings"
	"testing"
)

func TestNodeNameIsMadeFromAHostName(t *testing.T) {
	for host, want := range map[string]string{
		"node1": "node1", "Edge-Box": "edge-box", "my_laptop": "my-laptop", "-x-": "x", "a..b.": "a.b", "a-.-b": "a.b", "ümlaut": "mlaut",
		"": "", "___": "", "node.example.org": "node.example.org", strings.Repeat("a", 62) + "-b": strings.Repeat("a", 62),
	} {
		if got := NodeName(host); got != want {
			t.Errorf("%q: got %q, want %q", host, got, want)
		}
	}
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestTheNodesAddressIsChosen(t *testing.T) {
	lo := netInterface{Name: "lo", Up: true, Loopback: true, Addrs: prefixes("127.0.0.1/8", "192.0.2.99/32")}
	docker := netInterface{Name: "docker0", Up: true, Addrs: prefixes("172.17.0.1/16")}
	eth0 := netInterface{Name: "eth0", Up: true, Addrs: prefixes("fe80::1/64", "2001:db8::1/64", "169.254.1.1/16", "192.0.2.7/24", "192.0.2.8/24")}
	eth1 := netInterface{Name: "eth1", Up: true, Addrs: prefixes("198.51.100.1/24")}
	down := netInterface{Name: "eth2", Addrs: prefixes("203.0.113.1/24")}
	v6 := netInterface{Name: "eth3", Up: true, Addrs: prefixes("2001:db8::3/64")}
	via := func(dev string, metric uint32) route {
		return route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Dev: dev, Metric: metric}
	}
	for name, c := range map[string]struct {
		asked  string
		links  []netInterface
		routes []route
		want   string
	}{
		"the default route's interface":              {"", []netInterface{lo, eth0, eth1}, []route{via("eth1", 0)}, "198.51.100.1 eth1"},
		"of two the better one":                      {"", []netInterface{lo, eth0, eth1}, []route{via("eth1", 200), via("eth0", 100)}, "192.0.2.7 eth0"},
		"no default route":                           {"", []netInterface{lo, docker, down, eth0, eth1}, nil, "192.0.2.7 eth0"},
		"nothing but a container engine's interface": {"", []netInterface{lo, docker}, nil, "172.17.0.1 docker0"},
		"the default route's interface has no IPv4":  {"", []netInterface{lo, v6, eth1}, []route{via("eth3", 0)}, "198.51.100.1 eth1"},
		"only IPv6":                            {"", []netInterface{lo, v6}, nil, "2001:db8::3 eth3"},
		"nothing":                              {"", []netInterface{lo, down}, nil, "invalid IP "},
		"asked for":                            {"192.0.2.8", []netInterface{lo, eth0, eth1}, []route{via("eth1", 0)}, "192.0.2.8 eth0"},
		"asked for, on the loopback interface": {"192.0.2.99", []netInterface{lo, eth0}, nil, "192.0.2.99 lo"},
		"asked for, not here":                  {"192.0.2.50", []netInterface{lo, eth0}, nil, "192.0.2.50 "},
	} {
		t.Run(name, func(t *testing.T) {
			var asked netip.Addr
			if c.asked != "" {
				asked = netip.MustParseAddr(c.asked)
			}
			ip, dev := chooseAddress(asked, c.links, c.routes)
			if got := ip.String() + " " + dev; got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
