package platform

import (
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/ledger"
	"k1s.io/k1s/internal/testenv"
)

// siteWithoutAWayOut gives this goroutine a network with one link, which leads nowhere.
func siteWithoutAWayOut(t *testing.T, address string) netlink.Link {
	t.Helper()
	testenv.Root(t)
	runtime.LockOSThread() // and never unlocked: the thread, and with it the network, ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	a, err := netlink.ParseAddr(address)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lan"}, PeerName: "nowhere"}); err != nil {
		t.Fatal(err)
	}
	var lan netlink.Link
	for _, name := range []string{"lo", "nowhere", "lan"} {
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		if err != nil {
			t.Fatal(err)
		}
		lan = link
	}
	if err := netlink.AddrAdd(lan, a); err != nil {
		t.Fatal(err)
	}
	return lan
}

// way is the link by which an address would be reached, and from which address.
func way(t *testing.T, to string) (link, from string) {
	t.Helper()
	routes, err := netlink.RouteGet(net.ParseIP(to))
	if errors.Is(err, unix.ENETUNREACH) {
		return "unreachable", ""
	}
	if err != nil || len(routes) != 1 {
		t.Fatalf("%v, %v", routes, err)
	}
	l, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Name, routes[0].Src.String()
}

func TestServicesHaveARouteWhereNoneLeadsOut(t *testing.T) {
	lan := siteWithoutAWayOut(t, "192.0.2.10/24")
	l := ledger.Open(filepath.Join(t.TempDir(), "ledger.json"))
	node := netip.MustParseAddr("192.0.2.10")
	is := func(when, to, wantLink, wantFrom string) {
		t.Helper()
		if link, from := way(t, to); link != wantLink || from != wantFrom {
			t.Errorf("%s: %s is reached by %q from %q, want %q from %q", when, to, link, from, wantLink, wantFrom)
		}
	}
	set := func(services string) {
		t.Helper()
		if err := SetServiceRoute(t.Context(), l, netip.MustParsePrefix(services), node); err != nil {
			t.Fatal(err)
		}
	}
	is("before", "10.43.0.10", "unreachable", "")
	for range 2 { // every start sets it
		set("10.43.0.0/16")
	}
	is("set", "10.43.0.10", "lo", "192.0.2.10")
	is("set", "198.51.100.1", "unreachable", "")

	out := &netlink.Route{LinkIndex: lan.Attrs().Index, Gw: net.ParseIP("192.0.2.1")}
	if err := netlink.RouteAdd(out); err != nil {
		t.Fatal(err)
	}
	is("with a default route", "10.43.0.10", "lan", "192.0.2.10")
	if err := netlink.RouteDel(out); err != nil {
		t.Fatal(err)
	}
	is("without it again", "10.43.0.10", "lo", "192.0.2.10")

	set("10.96.0.0/12")
	is("another range", "10.43.0.10", "unreachable", "")
	is("another range", "10.96.0.10", "lo", "192.0.2.10")

	for range 2 { // reset may be repeated
		if err := RemoveServiceRoutes(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	is("removed", "10.96.0.10", "unreachable", "")
	if left, err := l.List(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("still remembered: %v, %v", left, err)
	}
	// What the machine has lost in a reboot is gone already.
	set("10.43.0.0/16")
	if err := removeServiceRoute("10.43.0.0/16"); err != nil {
		t.Fatal(err)
	}
	if err := RemoveServiceRoutes(t.Context(), l); err != nil {
		t.Error(err)
	}
}
