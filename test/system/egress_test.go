//go:build system

package system

import (
	"strings"
	"testing"
)

// The way out is closed unless it is asked for, and says so at once instead of letting programs time out.
func TestPodsReachNothingOutside(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "egress")
	s.client(t)
	// Documentation addresses: nobody is there even if a packet got out.
	for _, address := range []string{"192.0.2.1", "198.51.100.1", "203.0.113.1"} {
		r := s.try(within(t, limit), "exec", "client", "--", "wget", "-q", "-T", "30", "-O", "-", "http://"+address+"/")
		if r.failure == nil || !strings.Contains(r.err, "unreachable") && !strings.Contains(r.err, "no route to host") {
			t.Errorf("connecting to %s: %v", address, r)
		}
	}
	r := s.try(within(t, limit), "exec", "client", "--", "nslookup", "example.com.")
	if r.failure == nil {
		t.Errorf("a name of the outside was found: %v", r)
	}
}

// Neither does the machine the sandbox is on: what it listens on is not the node's.
func TestTheNodeHasNoLinkOfTheMachine(t *testing.T) {
	t.Parallel()
	c := shared(t)
	r := c.in(within(t, limit), "sh", "-c", "ls /sys/class/net")
	for _, link := range strings.Fields(r.out) {
		if link != "lo" && link != "eth0" && !strings.HasPrefix(link, "veth") && !strings.HasPrefix(link, "flannel") && !strings.HasPrefix(link, "kube-") {
			t.Errorf("the node has a link %s", link)
		}
	}
	if r.failure != nil || !strings.Contains(r.out, "eth0") {
		t.Errorf("links of the node: %v", r)
	}
}
