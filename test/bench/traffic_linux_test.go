package main

import (
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"
)

// here is our own network namespace as a place.
func here(t *testing.T) place {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("going into a network namespace needs root")
	}
	in, err := enter(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	p := place{in, netip.MustParseAddr("127.0.0.1")}
	t.Cleanup(func() { leave(p) })
	return p
}

func TestTrafficBetweenPlaces(t *testing.T) {
	p := here(t)
	rate, err := stream(t.Context(), p, p, time.Second)
	if err != nil || rate <= 0 {
		t.Errorf("a stream: %v bytes a second, %v", rate, err)
	}
	took, err := pingPong(t.Context(), p, p, 20)
	if err != nil || len(took) != 20 || slices.Min(took) <= 0 {
		t.Errorf("round trips: %v, %v", took, err)
	}
}

func TestTrafficToAPlaceThatIsNotThereFails(t *testing.T) {
	p := here(t)
	gone := p
	gone.addr = netip.MustParseAddr("192.0.2.1")
	if _, err := stream(t.Context(), p, gone, time.Millisecond); err == nil {
		t.Error("a stream to an address that nobody has")
	}
	if _, err := pingPong(t.Context(), p, gone, 1); err == nil {
		t.Error("a byte to an address that nobody has")
	}
}

func TestAPortIsSeenToOpenAndToClose(t *testing.T) {
	p := here(t)
	l, err := p.in.listen(t.Context(), p.at(0))
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	c := policyCase{server: p, client: p}
	began := time.Now()
	if at, err := c.untilReached(t.Context(), port); err != nil || at.Before(began) {
		t.Errorf("the open port: %s, %v", at, err)
	}
	l.Close()
	closed := time.Now()
	if at, err := c.untilMissed(t.Context(), port); err != nil || at.Before(closed) {
		t.Errorf("the closed port: %s, %v", at, err)
	}
}

func TestOwnProcessHasItsAddressAndUsesCPU(t *testing.T) {
	if !slices.Contains(localAddrs(text("/proc/self/net/fib_trie")), netip.MustParseAddr("127.0.0.1")) {
		t.Error("127.0.0.1 is not found in our own network namespace")
	}
	if _, err := (policyCase{pid: os.Getpid()}).cpu(); err != nil {
		t.Error(err)
	}
}
