package rules

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

// cluster is three namespaces of three pods each, as in upstream's tests: x, y, z with a, b, c. All are on this node but
// those of z. Port 80 is named "web" and 81 "alt", in pod b the other way round.
func cluster(policies ...*networkingv1.NetworkPolicy) World {
	w := World{Namespaces: map[string]map[string]string{}, Policies: policies}
	for i, ns := range []string{"x", "y", "z"} {
		w.Namespaces[ns] = map[string]string{"ns": ns}
		for j, name := range []string{"a", "b", "c"} {
			w.Pods = append(w.Pods, pod(ns, name, i, j))
		}
	}
	return w
}

func pod(ns, name string, i, j int) Pod {
	p := Pod{
		Key: Key{Namespace: ns, Name: name}, UID: types.UID(ns + name), Labels: map[string]string{"pod": name}, Local: ns != "z",
		IPs: []netip.Addr{
			netip.AddrFrom4([4]byte{10, 42, byte(i), byte(j + 2)}),
			netip.MustParseAddr(fmt.Sprintf("fd00:42:0:%d::%d", i, j+2)),
		},
		Ports: []Port{{"web", 6, 80}, {"alt", 6, 81}, {"dns", 17, 53}},
	}
	if name == "b" {
		p.Ports = []Port{{"web", 6, 81}, {"alt", 6, 80}, {"sig", 132, 90}}
	}
	return p
}

func policyOf(t *testing.T, text string) *networkingv1.NetworkPolicy {
	t.Helper()
	var np networkingv1.NetworkPolicy
	if err := yaml.UnmarshalStrict([]byte(text), &np.Spec); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	np.Namespace, np.Name = "x", "p"
	return &np
}

// packets are all that the pods may begin with one another, and some with the outside.
func packets(w World) []packet {
	var out []packet
	outside := []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.99"), netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("2001:db8:1::7")}
	var all []netip.Addr
	for _, p := range w.Pods {
		all = append(all, p.IPs...)
	}
	all = append(all, outside...)
	for _, from := range all {
		for _, to := range all {
			if from.Is4() != to.Is4() || slices.Contains(outside, from) && slices.Contains(outside, to) {
				continue
			}
			for _, port := range []struct {
				proto uint8
				n     uint16
			}{{6, 80}, {6, 81}, {6, 8000}, {17, 53}, {17, 80}, {132, 90}, {1, 0}} {
				out = append(out, packet{from, to, port.proto, port.n})
			}
		}
	}
	return out
}

func compareWithDocumentation(t *testing.T, w World, s State) (dropped int) {
	t.Helper()
	for _, p := range packets(w) {
		want := allowed(w, p)
		if !want {
			dropped++
		}
		if got := passes(s, p); got != want {
			t.Errorf("%s passes: %t, want %t", p, got, want)
		}
	}
	return dropped
}

// forms has every form of a policy; what it has to do says the function allowed. drops is how many of the packets it
// drops, so that a mistake common to both is seen.
var forms = map[string]struct {
	spec  string
	drops int
}{
	"deny all that comes in":     {"{podSelector: {}, policyTypes: [Ingress]}", 420},
	"deny all that goes out":     {"{podSelector: {}, policyTypes: [Egress]}", 420},
	"deny both":                  {"{podSelector: {}, policyTypes: [Ingress, Egress]}", 756},
	"types default to ingress":   {"{podSelector: {}}", 420},
	"types default to both":      {"{podSelector: {}, egress: [{}]}", 420},
	"allow all that comes in":    {"{podSelector: {}, ingress: [{}]}", 0},
	"one pod":                    {"{podSelector: {matchLabels: {pod: a}}}", 140},
	"some pods":                  {"{podSelector: {matchExpressions: [{key: pod, operator: In, values: [a, b]}]}}", 280},
	"not one pod":                {"{podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [a]}]}}", 280},
	"pods by a label there":      {"{podSelector: {matchExpressions: [{key: pod, operator: Exists}]}}", 420},
	"pods by a label not there":  {"{podSelector: {matchExpressions: [{key: pod, operator: DoesNotExist}]}}", 0},
	"from pods":                  {"{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}]}]}", 0},
	"from all pods of its own":   {"{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}", 0},
	"from namespaces":            {"{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}]}]}", 0},
	"from all namespaces":        {"{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}", 0},
	"from pods of namespaces":    {"{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}, podSelector: {matchLabels: {pod: b}}}]}]}", 0},
	"from pods or namespaces":    {"{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}, {podSelector: {matchLabels: {pod: b}}}]}]}", 0},
	"from not a namespace":       {"{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}}]}]}", 0},
	"from a block":               {"{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}", 0},
	"from a block but":           {"{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.64/26, 192.0.2.8/29]}}]}]}", 0},
	"from everywhere but":        {"{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.42.0.0/16]}}]}]}", 0},
	"from all of IPv4":           {"{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}", 0},
	"from blocks of both kinds":  {"{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 2001:db8::/32, except: ['2001:db8:1::/48']}}, {ipBlock: {cidr: 10.42.1.0/24}}]}]}", 0},
	"from blocks that overlap":   {"{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/25]}}, {ipBlock: {cidr: 192.0.2.0/28}}, {ipBlock: {cidr: 192.0.2.0/24}}]}]}", 0},
	"a block with bits of hosts": {"{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.77/24}}]}]}", 0},
	"to a port":                  {"{podSelector: {}, ingress: [{ports: [{port: 80}]}]}", 0},
	"to a port of UDP":           {"{podSelector: {}, ingress: [{ports: [{port: 53, protocol: UDP}]}]}", 0},
	"to a port of SCTP":          {"{podSelector: {}, ingress: [{ports: [{port: 90, protocol: SCTP}]}]}", 0},
	"to all ports of UDP":        {"{podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}", 0},
	"to ports up to":             {"{podSelector: {}, ingress: [{ports: [{port: 81, endPort: 8000}]}]}", 0},
	"to ranges that overlap":     {"{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 8000}, {port: 81}, {port: 82, endPort: 9000}, {protocol: UDP}, {port: 53, protocol: UDP}]}]}", 0},
	"to a port by name":          {"{podSelector: {}, ingress: [{ports: [{port: web}]}]}", 0},
	"to a name of none":          {"{podSelector: {}, ingress: [{ports: [{port: nothing}]}]}", 420},
	"to ports by both":           {"{podSelector: {}, ingress: [{ports: [{port: alt}, {port: 8000}]}]}", 0},
	"ports by name from pods":    {"{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}, {ipBlock: {cidr: 192.0.2.0/25}}], ports: [{port: web}, {port: dns, protocol: UDP}]}]}", 0},
	"out to pods":                {"{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {pod: a}}}]}]}", 0},
	"out to a block at a port":   {"{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.0.2.0/25}}], ports: [{port: 80}]}]}", 0},
	"out to a port by name":      {"{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}", 0},
	"out to pods by name":        {"{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}], ports: [{port: web}]}]}", 0},
	"out to a block by name":     {"{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.42.1.0/24}}], ports: [{port: web}]}]}", 0},
	"out, but DNS":               {"{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: z}}}], ports: [{port: 53, protocol: UDP}]}]}", 0},
	"two rules":                  {"{podSelector: {}, ingress: [{from: [{podSelector: {}}]}, {ports: [{port: 81}]}]}", 0},
}

func TestEveryFormOfAPolicyIsAsDocumented(t *testing.T) {
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			w := cluster(policyOf(t, form.spec))
			dropped := compareWithDocumentation(t, w, Desired(w, MinShape))
			if form.drops != 0 && dropped != form.drops {
				t.Errorf("%d packets are dropped, want %d", dropped, form.drops)
			}
			if all := len(packets(w)); dropped == all {
				t.Error("everything is dropped")
			}
		})
	}
}

func TestPoliciesAddUp(t *testing.T) {
	one := policyOf(t, "{podSelector: {}}")
	two := policyOf(t, "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}]}]}")
	three := policyOf(t, "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 81}]}]}")
	two.Name, three.Name = "q", "r"
	w := cluster(one, two, three)
	compareWithDocumentation(t, w, Desired(w, MinShape))
}

// letters of random worlds.
var (
	namespaces = []string{"x", "y", "z"}
	names      = []string{"a", "b", "c", "d"}
)

func randomSelector(r *rand.Rand, key string, values []string) *metav1.LabelSelector {
	switch r.IntN(5) {
	case 0:
		return &metav1.LabelSelector{}
	case 1, 2:
		return &metav1.LabelSelector{MatchLabels: map[string]string{key: values[r.IntN(len(values))]}}
	case 3:
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: metav1.LabelSelectorOpNotIn, Values: values[:1+r.IntN(2)]}}}
	default:
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: metav1.LabelSelectorOpExists}}}
	}
}

func randomPeers(r *rand.Rand) []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for range r.IntN(3) {
		var p networkingv1.NetworkPolicyPeer
		switch r.IntN(4) {
		case 0:
			p.PodSelector = randomSelector(r, "pod", names)
		case 1:
			p.NamespaceSelector = randomSelector(r, "ns", namespaces)
		case 2:
			p.PodSelector, p.NamespaceSelector = randomSelector(r, "pod", names), randomSelector(r, "ns", namespaces)
		default:
			p.IPBlock = &networkingv1.IPBlock{CIDR: "10.42.0.0/16", Except: []string{fmt.Sprintf("10.42.%d.0/24", r.IntN(3))}}
			if r.IntN(2) == 0 {
				p.IPBlock = &networkingv1.IPBlock{CIDR: "2001:db8::/32", Except: []string{"2001:db8:1::/48"}}
			}
		}
		out = append(out, p)
	}
	return out
}

func randomPorts(r *rand.Rand) []networkingv1.NetworkPolicyPort {
	var out []networkingv1.NetworkPolicyPort
	for range r.IntN(3) {
		proto := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}[r.IntN(3)]
		p := networkingv1.NetworkPolicyPort{Protocol: &proto}
		switch r.IntN(4) {
		case 0:
			p.Port = ptr.To(intstr.FromString([]string{"web", "alt", "dns", "sig"}[r.IntN(4)]))
		case 1:
			p.Port = ptr.To(intstr.FromInt32([]int32{53, 80, 81, 90}[r.IntN(4)]))
		case 2:
			p.Port, p.EndPort = ptr.To(intstr.FromInt32([]int32{50, 80}[r.IntN(2)])), ptr.To([]int32{80, 9000}[r.IntN(2)])
		}
		out = append(out, p)
	}
	return out
}

func randomPolicy(r *rand.Rand) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespaces[r.IntN(3)], Name: fmt.Sprintf("p%d", r.IntN(12))}}
	np.Spec.PodSelector = *randomSelector(r, "pod", names)
	np.Spec.PolicyTypes = [][]networkingv1.PolicyType{nil, {"Ingress"}, {"Egress"}, {"Ingress", "Egress"}}[r.IntN(4)]
	for range r.IntN(3) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: randomPeers(r), Ports: randomPorts(r)})
	}
	for range r.IntN(3) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: randomPeers(r), Ports: randomPorts(r)})
	}
	return np
}

// change does something to the engine and to the world. It returns what it was.
func change(r *rand.Rand, e *Engine, w *World) string {
	switch r.IntN(6) {
	case 0: // a policy comes or changes
		np := randomPolicy(r)
		e.SetPolicy(np)
		w.Policies = append(slices.DeleteFunc(slices.Clone(w.Policies), func(o *networkingv1.NetworkPolicy) bool { return o.Namespace == np.Namespace && o.Name == np.Name }), np)
		return "policy"
	case 1: // one goes
		if len(w.Policies) > 0 {
			np := w.Policies[r.IntN(len(w.Policies))]
			e.DeletePolicy(Key{Namespace: np.Namespace, Name: np.Name})
			w.Policies = slices.DeleteFunc(slices.Clone(w.Policies), func(o *networkingv1.NetworkPolicy) bool { return o == np })
		}
		return "policy"
	case 2: // a namespace is labelled
		ns, label := namespaces[r.IntN(3)], namespaces[r.IntN(3)]
		e.SetNamespace(ns, map[string]string{"ns": label})
		w.Namespaces[ns] = map[string]string{"ns": label}
		return "namespace"
	case 3: // a pod goes
		if len(w.Pods) > 0 {
			k := w.Pods[r.IntN(len(w.Pods))].Key
			e.DeletePod(k)
			w.Pods = slices.DeleteFunc(slices.Clone(w.Pods), func(p Pod) bool { return p.Key == k })
		}
		return "pod"
	default: // a pod comes or changes
		i, j := r.IntN(3), r.IntN(4)
		p := pod(namespaces[i], names[j], i, j)
		p.Labels = map[string]string{"pod": names[r.IntN(4)]}
		if r.IntN(3) > 0 {
			p.IPs = p.IPs[:1]
		}
		if r.IntN(4) == 0 {
			p.IPs = nil // it has none yet
		}
		if r.IntN(8) == 0 {
			p.IPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 42, 9, byte(r.IntN(3))})} // another one's, for a moment
		}
		e.SetPod(p)
		w.Pods = append(slices.DeleteFunc(slices.Clone(w.Pods), func(o Pod) bool { return o.Key == p.Key }), p)
		return "pod"
	}
}

func TestSmallChangesComeToTheSameAsStartingAnew(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		e, w := NewEngine(Shape{Slots: 1}), cluster() // so that it has to grow
		for i := range w.Pods {
			w.Pods[i].IPs = w.Pods[i].IPs[:1]
		}
		for ns, labels := range w.Namespaces {
			e.SetNamespace(ns, labels)
		}
		for _, p := range w.Pods {
			e.SetPod(p)
		}
		e.Commit()
		kernel := State{}
		for step := range 60 {
			shape := e.Shape()
			what := change(r, e, &w)
			ops := e.Commit()
			kernel = kernel.Apply(ops)
			grew := e.Shape() != shape
			for _, op := range ops {
				if what != "policy" && !grew && op.Kind != AddElement && op.Kind != DeleteElement {
					t.Fatalf("seed %d step %d: a change of a %s does %+v", seed, step, what, op)
				}
			}
			want := Desired(w, e.Shape())
			if left := Diff(kernel, want); len(left) > 0 {
				t.Fatalf("seed %d step %d: after a change of a %s this is left to do: %+v", seed, step, what, left)
			}
			if left := Diff(e.State(), want); len(left) > 0 {
				t.Fatalf("seed %d step %d: the engine is elsewhere: %+v", seed, step, left)
			}
			if step%10 == 9 {
				compareWithDocumentation(t, w, kernel)
				if t.Failed() {
					t.Fatalf("seed %d step %d", seed, step)
				}
			}
		}
	}
}

func TestAPodIsElementsOnly(t *testing.T) {
	e := NewEngine(Shape{Slots: 8, IPv6: true})
	w := cluster(
		policyOf(t, "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: web}]}], egress: [{to: [{namespaceSelector: {}}]}]}"),
	)
	for ns, labels := range w.Namespaces {
		e.SetNamespace(ns, labels)
	}
	e.SetPolicy(w.Policies[0])
	e.Commit()
	e.SetPod(w.Pods[0])
	got := describe(e.Commit())
	peer := func(prefix string) (names []string) {
		for name := range e.State().Sets {
			if strings.HasPrefix(name, prefix) && len(e.State().Sets[name].Elements) > 0 {
				names = append(names, name)
			}
		}
		return names
	}
	pods4, pods6, ports4, ports6 := peer("pods4-"), peer("pods6-"), peer("ports4-"), peer("ports6-")
	if len(pods4) != 1 || len(pods6) != 1 || len(ports4) != 1 || len(ports6) != 1 {
		t.Fatalf("peers are %v %v %v %v", pods4, pods6, ports4, ports6)
	}
	want := []string{
		"add egress4 10.42.0.2", "add egress4-0 10.42.0.2 jump out/x/p", "add egress4-1 10.42.0.2 drop",
		"add egress6 fd00:42::2", "add egress6-0 fd00:42::2 jump out/x/p", "add egress6-1 fd00:42::2 drop",
		"add ingress4 10.42.0.2", "add ingress4-0 10.42.0.2 jump in/x/p", "add ingress4-1 10.42.0.2 drop",
		"add ingress6 fd00:42::2", "add ingress6-0 fd00:42::2 jump in/x/p", "add ingress6-1 fd00:42::2 drop",
		"add " + pods4[0] + " 10.42.0.2", "add " + pods6[0] + " fd00:42::2",
		"add " + ports4[0] + " 10.42.0.2 . 6 . 80", "add " + ports6[0] + " fd00:42::2 . 6 . 80",
		"add self4 10.42.0.2 . 10.42.0.2", "add self6 fd00:42::2 . fd00:42::2",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("a new pod does\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// A pod that no policy is about costs nothing, and one that is only a peer costs its address.
	e.SetPod(w.Pods[2])
	if got := describe(e.Commit()); len(got) != 2 || !strings.HasPrefix(got[0], "add pods4-") || !strings.HasPrefix(got[1], "add pods6-") {
		t.Errorf("another pod does %q", got)
	}
	e.SetPod(w.Pods[2])
	if got := e.Commit(); len(got) != 0 {
		t.Errorf("no change does %v", got)
	}
}

func describe(ops []Op) []string {
	var out []string
	for _, op := range ops {
		verb := map[Kind]string{AddElement: "add", DeleteElement: "delete"}[op.Kind]
		if verb == "" {
			verb = fmt.Sprintf("kind %d", op.Kind)
		}
		out = append(out, strings.TrimSpace(strings.Join([]string{verb, op.Name, op.Key, op.Value}, " ")))
	}
	return out
}

func TestAPolicyTouchesItsOwnChainsAndSetsOnly(t *testing.T) {
	e := NewEngine(MinShape)
	w := cluster()
	for ns, labels := range w.Namespaces {
		e.SetNamespace(ns, labels)
	}
	for _, p := range w.Pods {
		e.SetPod(p)
	}
	other := policyOf(t, "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}")
	other.Name = "other"
	e.SetPolicy(other)
	e.Commit()
	own := func(op Op) bool {
		switch op.Kind {
		case AddChain, FlushChain, AddRule, DeleteChain:
			return op.Name == "in/x/p"
		case AddSet, DeleteSet:
			return strings.HasPrefix(op.Name, "pods")
		case AddElement, DeleteElement:
			return true
		}
		return false
	}
	for _, spec := range []string{
		"{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}]}]}",
		"{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}], ports: [{port: 80}]}]}",
		"{podSelector: {matchLabels: {pod: b}}, ingress: [{ports: [{port: 81}]}]}",
		"", // it goes
	} {
		if spec == "" {
			e.DeletePolicy(Key{Namespace: "x", Name: "p"})
		} else {
			e.SetPolicy(policyOf(t, spec))
		}
		ops := e.Commit()
		if len(ops) == 0 {
			t.Errorf("%s does nothing", spec)
		}
		for _, op := range ops {
			if !own(op) {
				t.Errorf("%s does %+v", spec, op)
			}
		}
	}
}

// A selector of what a namespace is not must not pick one whose labels nobody has told yet.
func TestANamespaceThatIsNotKnownIsPickedByNobody(t *testing.T) {
	w := cluster(policyOf(t, "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}}]}]}"))
	e := NewEngine(MinShape)
	e.SetPolicy(w.Policies[0])
	for _, p := range w.Pods {
		e.SetPod(p)
	}
	e.Commit()
	first := packet{w.Pods[3].IPs[0], w.Pods[0].IPs[0], 6, 80}
	if passes(e.State(), first) {
		t.Error("it is")
	}
	e.SetNamespace("y", nil)
	e.Commit()
	if !passes(e.State(), first) {
		t.Error("one without labels is not picked")
	}
}

func TestManyPoliciesForOnePodDoubleTheSlots(t *testing.T) {
	w := cluster()
	for i := range 20 {
		np := policyOf(t, fmt.Sprintf("{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: %d}]}]}", 70+i))
		np.Name = fmt.Sprintf("p%d", i)
		w.Policies = append(w.Policies, np)
	}
	s := Desired(w, MinShape)
	if _, ok := s.Sets["ingress4-31"]; !ok || len(s.Sets["ingress4-20"].Elements) != 1 {
		t.Errorf("slots are not 32, or the verdict after the last policy is missing: %v", s.Sets["ingress4-20"])
	}
	compareWithDocumentation(t, w, s)
}

func TestNoPolicyIsNoTable(t *testing.T) {
	e := NewEngine(MinShape)
	e.SetPolicy(policyOf(t, "{podSelector: {}}"))
	if ops := e.Commit(); ops[0].Kind != AddTable {
		t.Errorf("the first policy does %+v first", ops[0])
	}
	e.DeletePolicy(Key{Namespace: "x", Name: "p"})
	if ops := e.Commit(); len(ops) != 1 || ops[0].Kind != DeleteTable || !e.State().Empty() {
		t.Errorf("the last one's end does %+v", ops)
	}
}

func TestATableThatIsNotOursIsMadeAnew(t *testing.T) {
	w := cluster(policyOf(t, "{podSelector: {}}"))
	want := Desired(w, MinShape)
	for name, spoil := range map[string]func(State){
		"another hook": func(s State) { s.Chains["ingress"] = Chain{Base: &Base{Hook: "input"}} },
		"another type": func(s State) { s.Sets["self4"] = Set{Type: "ether_addr"} },
	} {
		old := State{}.Apply(Diff(State{}, want))
		spoil(old)
		ops := Diff(old, want)
		if ops[0].Kind != DeleteTable || len(Diff(old.Apply(ops), want)) > 0 {
			t.Errorf("%s: %+v", name, ops[0])
		}
	}
}

func TestLongNamesStayBelowTheKernelsLimitAndApart(t *testing.T) {
	long := strings.Repeat("n", 253)
	a, b := chainName(directions[0], Key{Namespace: strings.Repeat("x", 63), Name: long}), chainName(directions[0], Key{Namespace: strings.Repeat("x", 63), Name: long[1:]})
	if len(a) > 255 || a == b {
		t.Errorf("%q (%d) and %q", a, len(a), b)
	}
}

func TestWhatIsTakenFromAPod(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "a", UID: "image", Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "static"}, Labels: map[string]string{"l": "1"}},
		Spec: corev1.PodSpec{
			NodeName:   "me",
			Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 80}, {ContainerPort: 81}}}},
			InitContainers: []corev1.Container{
				{Ports: []corev1.ContainerPort{{Name: "once", ContainerPort: 82}}},
				{RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "beside", ContainerPort: 83, Protocol: corev1.ProtocolUDP}}},
			},
		},
		Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.42.0.5"}, {IP: "fd00::5"}}},
	}
	got, ok := PodOf(p, "me")
	want := Pod{
		Key: Key{Namespace: "x", Name: "a"}, UID: "static", Labels: map[string]string{"l": "1"}, Local: true,
		IPs:   []netip.Addr{netip.MustParseAddr("10.42.0.5"), netip.MustParseAddr("fd00::5")},
		Ports: []Port{{"web", 6, 80}, {"beside", 17, 83}},
	}
	if !ok || !got.Equal(want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for name, change := range map[string]func(*corev1.Pod){
		"hostNetwork": func(p *corev1.Pod) { p.Spec.HostNetwork = true },
		"succeeded":   func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded },
		"failed":      func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed },
	} {
		other := p.DeepCopy()
		change(other)
		if _, ok := PodOf(other, "me"); ok {
			t.Errorf("%s: it has addresses of its own", name)
		}
	}
}
