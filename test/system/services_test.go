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
	nodeIP := s.kubectl(t, "get", "node", "server-0", "-o", "jsonpath={.status.addresses[?(@.type=='InternalIP')].address}")
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
					pod, _, _ := strings.Cut(strings.TrimSpace(line), " ")
					answered[pod] = true
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
		other.untilOutput(t, limit, "http://"+name+"/ to answer", contains("web-"), "exec", "client", "--", "/bin/wget", "-q", "-T", "5", "-O", "-", "http://"+name+"/")
	}
	other.untilOutput(t, limit, "DNS to have the service's address "+ip, contains(ip), "exec", "client", "--", "/bin/nslookup", "web.dns.svc.cluster.local")
	// A headless service has the addresses of the pods themselves.
	ips := strings.Fields(s.kubectl(t, "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].status.podIP}"))
	other.untilOutput(t, limit, fmt.Sprintf("DNS to have the pods' addresses %q", ips),
		func(out string) bool {
			return !slices.ContainsFunc(ips, func(ip string) bool { return !strings.Contains(out, ip) })
		},
		"exec", "client", "--", "/bin/nslookup", "web-headless.dns.svc.cluster.local")
	// What does not exist is answered with a no.
	eventually(t, limit, "DNS to deny what does not exist", func(ctx context.Context) error {
		r := other.try(ctx, "exec", "client", "--", "nslookup", "nobody.dns.svc.cluster.local")
		if r.failure == nil {
			t.Errorf("a name that does not exist: %v", r)
		} else if !strings.Contains(r.out+r.err, "NXDOMAIN") {
			return r.error()
		}
		return nil
	})
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
	eventually(t, limit, "the node to reach DNS", func(ctx context.Context) error {
		conn, err := n.dial(ctx, "tcp", "10.43.0.10:53")
		if err == nil {
			err = conn.Close()
		}
		return err
	})
}
