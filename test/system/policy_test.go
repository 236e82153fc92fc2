//go:build system

package system

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// policed is three namespaces with three pods each, as in upstream's tests of network policies, and what else there is to
// reach: a service of the pod x/a, and the node itself, as a pod in its network sees it. The test listens in the pods'
// network namespaces, so that everything can be asked from everywhere at once.
type policed struct {
	*Cluster
	pods map[string]*policedPod // by "x/a"
	node network
	ip   netip.Addr // of the node

	mu  sync.Mutex // guards met
	met map[netip.Addr]int
}

type policedPod struct {
	network
	ip netip.Addr
}

// space of one of the three; the names are "x", "y" and "z" only to the test.
func (p *policed) space(ns string) space { return space{p.Cluster, "policy-" + ns} }

const policedPodYAML = `
apiVersion: v1
kind: Pod
metadata:
  name: NAME
  labels: {pod: NAME}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: shell
      image: k1s.io/test/busybox:1
      command: [sleep, infinity]
      ports: [{name: serve-80, containerPort: 80}, {name: serve-81, containerPort: 81}, {name: ask, containerPort: 53, protocol: UDP}]
---
`

func newPoliced(t *testing.T) *policed {
	t.Helper()
	p := &policed{Cluster: created(t, "policy", withImages(t)...), pods: map[string]*policedPod{}, met: map[netip.Addr]int{}}
	p.node = p.network(t)
	for _, ns := range []string{"x", "y", "z"} {
		s := p.namespace(t, "policy-"+ns)
		p.kubectl(t, "label", "namespace", s.ns, "ns="+ns)
		for _, name := range []string{"a", "b", "c"} {
			s.applies(t, strings.ReplaceAll(policedPodYAML, "NAME", name))
		}
	}
	for _, ns := range []string{"x", "y", "z"} {
		s := p.space(ns)
		s.ready(t, "a", "b", "c")
		for _, name := range []string{"a", "b", "c"} {
			p.pods[ns+"/"+name] = p.enter(t, s, name)
		}
	}
	p.ip = netip.MustParseAddr(p.kubectl(t, "get", "nodes", "-o", "jsonpath={.items[0].status.addresses[?(@.type=='InternalIP')].address}"))
	return p
}

// applies applies a manifest.
func (s space) applies(t *testing.T, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.kubectl(t, "apply", "-f", file)
}

// enter listens in a pod at the ports its manifest names.
func (p *policed) enter(t *testing.T, s space, name string) *policedPod {
	t.Helper()
	pod := &policedPod{network: networkOf(t, s.podProcess(t, name).pid)}
	pod.ip = netip.MustParseAddr(s.kubectl(t, "get", "pod", name, "-o", "jsonpath={.status.podIP}"))
	for _, port := range []string{":80", ":81"} {
		p.answer(pod.listen(t, port))
	}
	c := pod.listenPacket(t, ":53")
	go func() {
		b := make([]byte, 64)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:n], from)
		}
	}()
	return pod
}

// answer says something to whoever comes, and counts who did.
func (p *policed) answer(l net.Listener) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if from, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
				p.mu.Lock()
				p.met[from.Addr()]++
				p.mu.Unlock()
			}
			_, _ = c.Write([]byte("hello"))
			_ = c.Close()
		}
	}()
}

func (p *policed) times(a netip.Addr) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.met[a]
}

// asks tells whether somebody answers within a time.
func (n network) asks(ctx context.Context, kind string, to netip.AddrPort, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := n.dial(ctx, kind, to.String())
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if kind == "udp" {
		_, _ = c.Write([]byte("hello"))
	}
	_, err = c.Read(make([]byte, 64))
	return err == nil
}

// How long is waited for an answer that should come, and for one that should not.
const (
	patient   = 5 * time.Second
	impatient = 500 * time.Millisecond
)

// policedPorts are what every pod is asked at.
var policedPorts = map[string]struct {
	kind string
	port uint16
}{"80/tcp": {"tcp", 80}, "81/tcp": {"tcp", 81}, "53/udp": {"udp", 53}}

// mismatch asks every pod from every pod and tells who is not answered as the function says.
func (p *policed) mismatch(ctx context.Context, allowed func(from, to, port string) bool) error {
	missing, forbidden := p.mismatches(ctx, allowed)
	return errors.Join(missing, forbidden)
}

// mismatches tells who should be answered and is not, and who should not be and is.
func (p *policed) mismatches(ctx context.Context, allowed func(from, to, port string) bool) (missing, forbidden error) {
	var wrong [2][]string
	var mu sync.Mutex
	var all sync.WaitGroup
	for from, f := range p.pods {
		for to, target := range p.pods {
			for name, at := range policedPorts {
				all.Go(func() {
					should, patience := allowed(from, to, name), impatient
					if should {
						patience = patient
					}
					if did := f.asks(ctx, at.kind, netip.AddrPortFrom(target.ip, at.port), patience); did != should {
						mu.Lock()
						defer mu.Unlock()
						i := 0
						if did {
							i = 1
						}
						wrong[i] = append(wrong[i], fmt.Sprintf("%s → %s %s", from, to, name))
					}
				})
			}
		}
	}
	all.Wait()
	tell := func(what string, wrong []string) error {
		if len(wrong) == 0 {
			return nil
		}
		slices.Sort(wrong)
		return fmt.Errorf("%d of %d are %s: %s", len(wrong), len(p.pods)*len(p.pods)*len(policedPorts), what, strings.Join(wrong[:min(len(wrong), 8)], "; "))
	}
	return tell("not answered", wrong[0]), tell("answered", wrong[1])
}

// stays checks that nobody is answered who should not be, not once, and that everybody else is, who may have to wait on a busy machine.
func (p *policed) stays(t *testing.T, what string, allowed func(from, to, port string) bool) {
	t.Helper()
	eventually(t, limit, what, func(ctx context.Context) error {
		missing, forbidden := p.mismatches(ctx, allowed)
		if forbidden != nil {
			t.Errorf("%s: %v", what, forbidden)
		}
		return missing
	})
}

// becomes waits until everybody is answered as the function says.
func (p *policed) becomes(t *testing.T, what string, allowed func(from, to, port string) bool) {
	t.Helper()
	eventually(t, limit, what, func(ctx context.Context) error { return p.mismatch(ctx, allowed) })
	// The node itself, whose kubelet has probes to ask, is never refused.
	for name, pod := range p.pods {
		eventually(t, limit, what+": the node to reach "+name, func(ctx context.Context) error {
			if !p.node.asks(ctx, "tcp", netip.AddrPortFrom(pod.ip, 80), patient) {
				return errors.New("no answer")
			}
			return nil
		})
	}
}

// policy makes one in a namespace; it goes with the test.
func (p *policed) policy(t *testing.T, ns, name, spec string) {
	t.Helper()
	p.space(ns).applies(t, fmt.Sprintf("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: %s}, spec: %s}", name, spec))
	t.Cleanup(func() {
		if !p.isGone() {
			_ = p.space(ns).try(context.Background(), "delete", "networkpolicy", name, "--ignore-not-found")
		}
	})
}

func everybody(string, string, string) bool { return true }

func to(ns string) func(string) bool {
	return func(name string) bool { return strings.HasPrefix(name, ns+"/") }
}

var isX = to("x")

func TestNetworkPolicies(t *testing.T) {
	t.Parallel()
	p := newPoliced(t)
	p.becomes(t, "everybody to reach everybody", everybody)
	const denyIn, denyOut = "{podSelector: {}, policyTypes: [Ingress]}", "{podSelector: {}, policyTypes: [Egress]}"

	cases := []struct {
		name     string
		policies []string // of namespace x
		allowed  func(from, to, port string) bool
	}{
		{"deny all that comes in", []string{denyIn}, func(from, to, _ string) bool { return !isX(to) || from == to }},
		{"deny all that goes out", []string{denyOut}, func(from, to, _ string) bool { return !isX(from) || from == to }},
		{"deny both", []string{"{podSelector: {}, policyTypes: [Ingress, Egress]}"}, func(from, to, _ string) bool { return !isX(from) && !isX(to) || from == to }},
		{"allow from pods", []string{"{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}"},
			func(from, to, _ string) bool { return to != "x/a" || from == to || from == "x/b" }},
		{"allow from namespaces", []string{"{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}]}]}"},
			func(from, dest, _ string) bool { return dest != "x/a" || from == dest || to("y")(from) }},
		{"allow from pods of namespaces", []string{"{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}, podSelector: {matchLabels: {pod: b}}}]}]}"},
			func(from, to, _ string) bool { return to != "x/a" || from == to || from == "y/b" }},
		{"allow from namespaces or pods", []string{"{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}, {podSelector: {matchLabels: {pod: b}}}]}]}"},
			func(from, dest, _ string) bool {
				return dest != "x/a" || from == dest || to("y")(from) || from == "x/b"
			}},
		{"allow from expressions", []string{"{podSelector: {matchExpressions: [{key: pod, operator: In, values: [a, b]}]}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}}]}]}"},
			func(from, to, _ string) bool { return to != "x/a" && to != "x/b" || from == to || !isX(from) }},
		{"a port by number", []string{"{podSelector: {}, ingress: [{ports: [{port: 80}]}]}"}, func(from, to, port string) bool { return !isX(to) || from == to || port == "80/tcp" }},
		{"a port by name", []string{"{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}], ports: [{port: serve-81}]}]}"}, func(from, to, port string) bool { return !isX(to) || from == to || port == "81/tcp" }},
		{"a port by name on the way out", []string{"{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: z}}}], ports: [{port: serve-80}, {port: ask, protocol: UDP}]}]}"},
			func(from, dest, port string) bool {
				return !isX(from) || from == dest || to("z")(dest) && port != "81/tcp"
			}},
		{"UDP only", []string{"{podSelector: {}, ingress: [{ports: [{port: 53, protocol: UDP}]}]}"}, func(from, to, port string) bool { return !isX(to) || from == to || port == "53/udp" }},
		{"ports up to", []string{"{podSelector: {}, ingress: [{ports: [{port: 81, endPort: 90}]}]}"}, func(from, to, port string) bool { return !isX(to) || from == to || port == "81/tcp" }},
		{"policies add up", []string{denyIn, "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 80}]}]}", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {}}]}]}"},
			func(from, to, port string) bool {
				return !isX(to) || from == to || to == "x/a" && (port == "80/tcp" || isX(from))
			}},
		{"all is allowed to one", []string{denyIn, "{podSelector: {matchLabels: {pod: a}}, ingress: [{}]}"}, func(from, to, _ string) bool { return !isX(to) || from == to || to == "x/a" }},
		{"a block without exceptions", []string{fmt.Sprintf("{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{ipBlock: {cidr: 10.42.0.0/16, except: [%s/32, %s/32]}}]}]}", p.pods["y/b"].ip, p.pods["z/c"].ip)},
			func(from, to, _ string) bool { return to != "x/a" || from != "y/b" && from != "z/c" }},
		{"out to a block", []string{fmt.Sprintf("{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: %s/32}}]}]}", p.pods["z/a"].ip)},
			func(from, to, _ string) bool { return from != "x/a" || to == "z/a" || from == to }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for i, spec := range c.policies {
				p.policy(t, "x", fmt.Sprintf("p%d", i), spec)
			}
			p.becomes(t, c.name, c.allowed)
		})
	}
	t.Run("a policy that is deleted is over", func(t *testing.T) {
		p.becomes(t, "everybody to reach everybody again", everybody)
		if r := p.in(within(t, limit), "/var/lib/k1s/payload/current/nft", "list", "tables"); r.failure != nil || strings.Contains(r.out, "netpol") {
			t.Errorf("without policies there is a table: %v", r)
		}
	})

	t.Run("what changes is followed", func(t *testing.T) {
		p.policy(t, "x", "p", denyIn)
		p.becomes(t, "nobody to come in", func(from, to, _ string) bool { return !isX(to) || from == to })
		fromB := "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}, podSelector: {matchLabels: {pod: b}}}]}]}"
		p.policy(t, "x", "p", fromB)
		p.becomes(t, "the policy to be another", func(from, to, _ string) bool { return !isX(to) || from == to || from == "y/b" })
		p.space("y").kubectl(t, "label", "pod", "a", "pod=b", "--overwrite")
		p.becomes(t, "a pod to be labelled", func(from, to, _ string) bool { return !isX(to) || from == to || from == "y/b" || from == "y/a" })
		p.space("y").kubectl(t, "label", "pod", "a", "pod=a", "--overwrite")
		p.kubectl(t, "label", "namespace", "policy-z", "ns=y", "--overwrite")
		p.becomes(t, "a namespace to be labelled", func(from, to, _ string) bool { return !isX(to) || from == to || from == "y/b" || from == "z/b" })
		p.kubectl(t, "label", "namespace", "policy-z", "ns=z", "--overwrite")
		p.space("x").kubectl(t, "label", "pod", "c", "pod=free", "--overwrite")
		p.becomes(t, "labels to be as before", func(from, to, _ string) bool { return !isX(to) || from == to || from == "y/b" })
		p.policy(t, "x", "p", "{podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [free]}]}}")
		p.becomes(t, "one pod to be free", func(from, to, _ string) bool { return !isX(to) || from == to || to == "x/c" })
		p.space("x").kubectl(t, "label", "pod", "c", "pod=c", "--overwrite")
		p.becomes(t, "it to be isolated again", func(from, to, _ string) bool { return !isX(to) || from == to })
	})

	t.Run("services are judged by their pods and names are found", func(t *testing.T) {
		s := p.space("x")
		s.applies(t, "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {selector: {pod: a}, ports: [{port: 8000, targetPort: 80}]}}")
		service := netip.AddrPortFrom(netip.MustParseAddr(s.kubectl(t, "get", "service", "a", "-o", "jsonpath={.spec.clusterIP}")), 8000)
		p.policy(t, "x", "in", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}], ports: [{port: 80}]}]}")
		p.policy(t, "y", "out", "{podSelector: {matchLabels: {pod: c}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}], ports: [{port: 53, protocol: UDP}]}]}")
		for from, want := range map[string]bool{"y/a": true, "y/b": true, "y/c": false, "z/a": false, "x/b": false, "x/a": true} {
			patience := patient
			if !want {
				patience = impatient
			}
			eventually(t, limit, fmt.Sprintf("%s to reach the service: %t", from, want), func(ctx context.Context) error {
				if got := p.pods[from].asks(ctx, "tcp", service, patience); got != want {
					return fmt.Errorf("answered: %t", got)
				}
				return nil
			})
		}
		p.space("y").untilOutput(t, limit, "a pod that may ask for names only to be told one", contains(service.Addr().String()), "exec", "c", "--", "/bin/nslookup", "a.policy-x.svc.cluster.local")
	})

	t.Run("pods in the node's network and probes are left alone", func(t *testing.T) {
		s := p.space("x")
		p.policy(t, "x", "p", "{podSelector: {}, policyTypes: [Ingress, Egress]}")
		isolated := func(from, to, _ string) bool { return !isX(from) && !isX(to) || from == to }
		p.becomes(t, "everything to be denied", isolated)
		s.applies(t, `{apiVersion: v1, kind: Pod, metadata: {name: host, labels: {pod: host}}, spec: {hostNetwork: true, terminationGracePeriodSeconds: 0,
			containers: [{name: shell, image: 'k1s.io/test/busybox:1', command: [sleep, infinity]}]}}`)
		s.apply(t, "probes.yaml")
		s.ready(t, "host", "ready", "alive")
		host := networkOf(t, s.podProcess(t, "host").pid)
		p.answer(host.listen(t, netip.AddrPortFrom(p.ip, 8099).String()))
		for _, from := range []string{"x/a", "y/a"} { // out of a pod's reach is everything but its node
			if !p.pods[from].asks(t.Context(), "tcp", netip.AddrPortFrom(p.ip, 8099), patient) {
				t.Errorf("%s does not reach a pod in the node's network", from)
			}
		}
		if !host.asks(t.Context(), "tcp", netip.AddrPortFrom(p.pods["y/a"].ip, 80), patient) {
			t.Error("a pod in the node's network does not reach others")
		}
		p.becomes(t, "everything to be denied still", isolated)
		s.ready(t, "ready", "alive") // which their probes had to reach them for
	})

	t.Run("a pod has no moment without its policies", p.noMoment)

	t.Run("rules stay while k1s does not run", func(t *testing.T) {
		p.policy(t, "x", "p", denyIn)
		denied := func(from, to, _ string) bool { return !isX(to) || from == to }
		p.becomes(t, "nobody to come in", denied)
		was := p.running(t)
		// The unit that runs the agent, with everything beside it.
		agent, err := componentOf(was, "network-policy")
		if err != nil {
			t.Fatal(err)
		}
		kill(t, agent.PID)
		p.stays(t, "while it comes back", denied)
		p.running(t)
		p.in(within(t, limit), "k1s", "stop").wants(t, 0, "stopped")
		p.stays(t, "while k1s does not run", denied)
		p.starts(t)
		p.becomes(t, "nobody to come in after all", denied)
		p.space("x").kubectl(t, "delete", "networkpolicy", "p")
		p.becomes(t, "the restarted k1s to follow", everybody)
	})

	t.Run("reset removes the table", func(t *testing.T) {
		p.policy(t, "x", "p", denyIn)
		p.becomes(t, "nobody to come in", func(from, to, _ string) bool { return !isX(to) || from == to })
		const nft = "cp -r /var/lib/k1s/payload/$(readlink /var/lib/k1s/payload/current | xargs basename) /var/tmp/payload"
		if err := p.in(within(t, limit), "sh", "-c", nft).error(); err != nil {
			t.Fatal(err)
		}
		tables := func() string {
			r := p.in(within(t, limit), "/var/tmp/payload/nft", "list", "tables")
			if err := r.error(); err != nil {
				t.Fatal(err)
			}
			return r.out
		}
		if out := tables(); !strings.Contains(out, "inet k1s-netpol") {
			t.Fatalf("there is no table to begin with: %s", out)
		}
		p.setGone()
		p.in(within(t, limit), "sh", "-c", "for f in $(find /sys/fs/cgroup -maxdepth 2 -name cgroup.procs); do echo $$ > $f 2>/dev/null || true; done; exec k1s reset --yes").wants(t, 0)
		if out := tables(); strings.TrimSpace(out) != "" {
			t.Errorf("left: %s", out)
		}
	})
}

// noMoment starts pods that try to get out with their very first instruction, again and again.
func (p *policed) noMoment(t *testing.T) {
	s := p.space("z")
	const yaml = `{apiVersion: v1, kind: Pod, metadata: {name: NAME, labels: {hasty: "GROUP"}}, spec: {terminationGracePeriodSeconds: 0, restartPolicy: Never,
		containers: [{name: shell, image: 'k1s.io/test/busybox:1', command: [sh, -c, 'for i in 1 2 3; do /bin/wget -q -T 1 -O - http://TARGET/; done; echo tried; sleep infinity']}]}}`
	start := func(name, group string) netip.Addr {
		s.applies(t, strings.NewReplacer("NAME", name, "GROUP", group, "TARGET", p.pods["y/a"].ip.String()).Replace(yaml))
		s.ready(t, name)
		return netip.MustParseAddr(s.kubectl(t, "get", "pod", name, "-o", "jsonpath={.status.podIP}"))
	}
	free := start("free", "no")
	eventually(t, limit, "a pod without a policy to get out", func(context.Context) error {
		if p.times(free) == 0 {
			return errors.New("nothing has come from " + free.String())
		}
		return nil
	})
	p.policy(t, "z", "p", `{podSelector: {matchLabels: {hasty: "yes"}}, policyTypes: [Egress]}`)
	// As soon as the policy is created; the agent may hear of it after the kubelet hears of the pod, so let it.
	eventually(t, limit, "the table of the policy", func(ctx context.Context) error {
		r := p.in(ctx, "/var/lib/k1s/payload/current/nft", "list", "tables")
		if r.failure == nil && !strings.Contains(r.out, "netpol") {
			return errors.New("it is not there yet")
		}
		return r.error()
	})
	for i := range 5 {
		name := fmt.Sprintf("hasty%d", i)
		hasty := start(name, "yes")
		s.untilOutput(t, limit, "it to have tried", contains("tried"), "logs", name)
		if n := p.times(hasty); n != 0 {
			t.Errorf("the pod at %s got out %d times before its policy", hasty, n)
		}
	}
	s.kubectl(t, "delete", "pods", "-l", "hasty", "--wait=false")
}
