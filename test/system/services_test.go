//go:build system

package system

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestServicesLeadToEveryReplica(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "services")
	s.apply(t, "web.yaml")
	s.client(t)
	s.rolledOut(t, "deployment/web")
	pods := strings.Fields(s.kubectl(t, "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name}"))
	if len(pods) != 3 {
		t.Fatalf("replicas %q, want 3", pods)
	}
	nodeIP := s.kubectl(t, "get", "nodes", "-o", "jsonpath={.items[0].status.addresses[?(@.type=='InternalIP')].address}")
	nodePort := s.kubectl(t, "get", "service", "web-nodeport", "-o", "jsonpath={.spec.ports[0].nodePort}")
	for kind, address := range map[string]string{
		"ClusterIP": "web",
		"headless":  "web-headless:8080",
		"NodePort":  nodeIP + ":" + nodePort,
	} {
		t.Run(kind, func(t *testing.T) {
			answered := map[string]bool{}
			eventually(t, limit, "an answer of every replica at "+address, func(ctx context.Context) error {
				r := s.try(ctx, "exec", "client", "--", "sh", "-c", "for i in 1 2 3 4 5 6; do /bin/wget -q -T 5 -O - http://"+address+"/ || exit; done")
				for line := range strings.Lines(r.out) {
					answered[strings.Fields(line)[0]] = true
				}
				for _, p := range pods {
					if !answered[p] {
						return fmt.Errorf("%s has not answered: %v", p, r)
					}
				}
				return r.error()
			})
		})
	}
}

func TestDNSKnowsServicesOfEveryNamespace(t *testing.T) {
	t.Parallel()
	c := shared(t)
	s := c.namespace(t, "dns")
	other := c.namespace(t, "dns-client")
	s.apply(t, "web.yaml")
	other.client(t)
	s.rolledOut(t, "deployment/web")
	ip := s.kubectl(t, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	for _, name := range []string{"web.dns", "web.dns.svc", "web.dns.svc.cluster.local"} {
		if out := other.sh(t, "client", "/bin/wget -q -T 5 -O - http://"+name+"/"); !strings.HasPrefix(out, "web-") {
			t.Errorf("http://%s/ answers %q", name, out)
		}
	}
	if out := other.sh(t, "client", "/bin/nslookup web.dns.svc.cluster.local"); !strings.Contains(out, ip) {
		t.Errorf("the service's address is %s, DNS says:\n%s", ip, out)
	}
	// A headless service has the addresses of the pods themselves.
	ips := strings.Fields(s.kubectl(t, "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].status.podIP}"))
	out := other.sh(t, "client", "/bin/nslookup web-headless.dns.svc.cluster.local")
	if slices.ContainsFunc(ips, func(ip string) bool { return !strings.Contains(out, ip) }) {
		t.Errorf("the pods' addresses are %q, DNS says:\n%s", ips, out)
	}
	// What does not exist is answered at once, with a no.
	r := other.try(within(t, limit), "exec", "client", "--", "nslookup", "nobody.dns.svc.cluster.local")
	if r.failure == nil || !strings.Contains(r.out+r.err, "NXDOMAIN") {
		t.Errorf("a name that does not exist: %v", r)
	}
}

// A machine of a site without a way out has no default route, and any machine may lose its own. Services are reached
// by the node itself all the same: host network pods, webhooks on their way, people with curl.
func TestTheNodeReachesServicesWithoutADefaultRoute(t *testing.T) {
	t.Parallel()
	c := created(t, "noroute")
	eventually(t, limit, "DNS to answer", func(ctx context.Context) error {
		s, err := c.status(ctx)
		if err == nil && (s.DNS == nil || !s.DNS.Answers) {
			err = fmt.Errorf("it does not answer: %+v", s.DNS)
		}
		return err
	})
	n := c.network(t)
	n.run(t, "ip route del default")
	conn, err := n.dial(within(t, limit), "tcp", "10.43.0.10:53")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}
