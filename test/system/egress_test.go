//go:build system

package system

import (
	"net/http"
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

// A host with one link: whatever of a cluster got out of it would be seen on the other end.
func TestPodsReachTheOutsideThroughTheHostsOwnSockets(t *testing.T) {
	t.Parallel()
	h := newHost(t, "nameserver "+worldDNS+"\n")
	w := newWorld(t, h)
	c := createdOn(t, h, "egress", withImages(t, "--egress")...)
	s := c.namespace(t, "egress")
	s.client(t)
	name := strings.TrimSuffix(worldName, ".")
	for _, url := range []string{"http://" + worldServer + "/", "http://" + name + "/"} {
		if out := s.sh(t, "client", "/bin/wget -q -T 20 -O - "+url); out != "hello "+hostLink {
			t.Errorf("%s answers a pod %q", url, out)
		}
	}
	if out := s.sh(t, "client", "/bin/nslookup "+name); !strings.Contains(out, worldServer) {
		t.Errorf("nslookup says %q", out)
	}
	if r := s.try(within(t, limit), "exec", "client", "--", "nslookup", "nowhere.outside.example"); r.failure == nil || !strings.Contains(r.err, "NXDOMAIN") {
		t.Errorf("a name that is not there: %v", r)
	}
	// The node itself goes the same way.
	if code, out, err := c.network(t).get(t.Context(), "http://"+worldServer+"/"); code != http.StatusOK || out != "hello "+hostLink {
		t.Errorf("the node is answered %d %q %v", code, out, err)
	}
	before, strange := w.seen()
	if before == 0 || len(strange) > 0 {
		t.Errorf("%d packets were seen on the host's link, and should not have been: %q", before, strange)
	}
	// Addresses of pods, services and nodes where nobody is stay inside.
	for _, address := range []string{"10.42.200.9", "10.43.200.9", "10.88.0.77", "169.254.169.254"} {
		if r := s.try(within(t, limit), "exec", "client", "--", "wget", "-q", "-T", "3", "-O", "-", "http://"+address+"/"); r.failure == nil {
			t.Errorf("%s answers: %v", address, r)
		}
	}
	if after, strange := w.seen(); len(strange) > 0 {
		t.Errorf("%d packets later: %q", after-before, strange)
	}
	// The host has nothing new in its network, before and after.
	for _, when := range []string{"with a cluster", "without it"} {
		h.run(t, `[ "$(ip -o link | wc -l)" = 2 ] || { ip link; false; }`, `[ -z "$(nft list ruleset)" ] || { nft list ruleset; false; }`,
			`[ "$(ip route | wc -l)" = 2 ] || { ip route; false; }`)
		if when == "with a cluster" {
			c.setGone()
			if err := c.remove(within(t, limit)); err != nil {
				t.Fatal(err)
			}
		}
	}
}
