package rules

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The two directions. Each has a base chain of its own at the hook "forward", one after the other, so that what
// one of them accepts the other still judges. At that hook the addresses are those of pods: services were
// translated before (prerouting), and sources are masqueraded after (postrouting). What the node itself sends
// to its pods, as probes are, and what pods send to their node never comes by there.
type direction struct {
	name, short string
	priority    int
	pod, peer   string // which address of a packet is the pod's, and which the other side's
}

var directions = []direction{
	{"egress", "out", 0, "saddr", "daddr"},
	{"ingress", "in", 1, "daddr", "saddr"},
}

type family struct{ n, proto, addr, nfproto string }

var (
	ipv4 = family{"4", "ip", "ipv4_addr", "ipv4"}
	ipv6 = family{"6", "ip6", "ipv6_addr", "ipv6"}
)

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

// dport is what a set of named ports is asked with.
func (f family) dport() string { return f.proto + " daddr . meta l4proto . th dport" }

// Shape is what of a table depends on pods all the same. It only grows, and growing is rare: the first address of IPv6, and a
// pod that more policies select than any before.
type Shape struct {
	// Slots is how many verdict maps a direction has: enough for a pod that one policy less selects. It doubles.
	Slots int
	// IPv6 tells that there are pods with such addresses. Sets for a family without pods would only cost.
	IPv6 bool
}

// MinShape is the smallest shape.
var MinShape = Shape{Slots: 8}

func (s Shape) families() []family {
	if s.IPv6 {
		return []family{ipv4, ipv6}
	}
	return []family{ipv4}
}

// RuleOf gives a rule the ID it can be recognized by when it is read back: the kernel returns rules in another form
// than they were written in.
func RuleOf(text string) Rule { return Rule{Text: text, ID: digest(text)} }

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// selector picks pods: by their labels, in one namespace or in those whose labels it picks.
type selector struct {
	namespace  string // "" where namespaces decides
	namespaces labels.Selector
	pods       labels.Selector
}

func (s selector) String() string {
	if s.namespace != "" {
		return "pods(" + s.pods.String() + ") in " + s.namespace
	}
	return "pods(" + s.pods.String() + ") in namespaces(" + s.namespaces.String() + ")"
}

// matches takes the labels of the pod's namespace; nil, where they are not known yet, are picked by none.
func (s selector) matches(p Pod, namespace map[string]string) bool {
	if s.namespace != "" {
		return s.namespace == p.Key.Namespace && s.pods.Matches(labelsOf(p))
	}
	return namespace != nil && s.namespaces.Matches(labels.Set(namespace)) && s.pods.Matches(labelsOf(p))
}

// parse reads a selector of the API; nil is everything where empty says so. One that the API server should not have
// taken picks nothing.
func parse(s *metav1.LabelSelector) labels.Selector {
	if s == nil {
		return labels.Everything()
	}
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return out
}

// peers is a pair of sets, one for each family, that hold the addresses of the pods a selector picks; with a port,
// addresses with the number that port has.
type peers struct {
	selector selector
	local    bool   // of this node only
	port     string // name; "" for addresses only
	proto    uint8
	name     string // of the sets, without their family
}

func (p peers) set(f family) string {
	if p.port != "" {
		return "ports" + f.n + "-" + p.name
	}
	return "pods" + f.n + "-" + p.name
}

// policy is what has to be known of one to find its pods.
type policy struct {
	key    Key
	pods   labels.Selector
	chains map[string]string // by direction, "" where it allows nothing; no entry where it does not isolate
}

// static is everything that does not depend on pods.
type static struct {
	shape    Shape
	policies map[string][]policy // by namespace, sorted by name
	// peers by namespace; "" has those that pick from several.
	peers  map[string][]peers
	chains map[string]Chain
	sets   map[string]Set // without elements
}

// build makes the chains and sets for policies.
func build(all []*networkingv1.NetworkPolicy, shape Shape) *static {
	s := &static{shape: shape, policies: map[string][]policy{}, peers: map[string][]peers{}, chains: map[string]Chain{}, sets: map[string]Set{}}
	if len(all) == 0 {
		return s
	}
	for _, d := range directions {
		s.direction(d)
	}
	for _, f := range s.shape.families() {
		s.sets["self"+f.n] = Set{Type: f.addr + Dot + f.addr, Comment: "a pod with itself"}
	}
	b := builder{static: s, seen: map[string]peers{}}
	for _, np := range all {
		b.policy(np)
	}
	for ns := range s.policies {
		slices.SortFunc(s.policies[ns], func(a, b policy) int { return strings.Compare(a.key.Name, b.key.Name) })
	}
	return s
}

// direction makes what packets meet first. An answer is never judged, and what is related to a connection (an ICMP
// error) neither; packets of the direction a connection was opened in are judged each, so that a new policy also ends
// what is open. A pod without a policy costs one lookup. For one that has policies, slot after slot jumps to them,
// until one of them accepts or the slot after the last drops.
func (s *static) direction(d direction) {
	rules := []Rule{RuleOf("ct direction reply accept"), RuleOf("ct state related accept")}
	var slots []Rule
	for _, f := range s.shape.families() {
		s.sets[d.name+f.n] = Set{Type: f.addr, Comment: "pods of this node that policies isolate for " + d.name}
		rules = append(rules, RuleOf(f.proto+" "+d.pod+" @"+d.name+f.n+" goto "+d.name+"-pods"))
		slots = append(slots, RuleOf(f.proto+" saddr . "+f.proto+" daddr @self"+f.n+" accept"))
	}
	for i := range s.shape.Slots {
		for _, f := range s.shape.families() {
			name := slot(d, f, i)
			s.sets[name] = Set{Type: f.addr, Map: true}
			slots = append(slots, RuleOf(f.proto+" "+d.pod+" vmap @"+name))
		}
	}
	s.chains[d.name] = Chain{Base: &Base{Hook: "forward", Priority: d.priority}, Rules: rules}
	s.chains[d.name+"-pods"] = Chain{Rules: append(slots, RuleOf("drop"))}
}

func slot(d direction, f family, i int) string { return d.name + f.n + "-" + strconv.Itoa(i) }

type builder struct {
	*static
	seen map[string]peers
}

// maxName keeps names of chains below the kernel's limit of 255 bytes.
const maxName = 200

func chainName(d direction, k Key) string {
	name := d.short + "/" + k.Namespace + "/" + k.Name
	if len(name) > maxName {
		name = name[:maxName] + "-" + digest(name)
	}
	return name
}

func (b *builder) policy(np *networkingv1.NetworkPolicy) {
	p := policy{key: Key{Namespace: np.Namespace, Name: np.Name}, pods: parse(&np.Spec.PodSelector), chains: map[string]string{}}
	for _, d := range directions {
		if !isolates(np, d) {
			continue
		}
		var rules []Rule
		if d.name == "ingress" {
			for _, r := range np.Spec.Ingress {
				rules = append(rules, b.rule(d, p, r.From, r.Ports)...)
			}
		} else {
			for _, r := range np.Spec.Egress {
				rules = append(rules, b.rule(d, p, r.To, r.Ports)...)
			}
		}
		p.chains[d.name] = ""
		if len(rules) > 0 {
			name := chainName(d, p.key)
			p.chains[d.name] = name
			b.chains[name] = Chain{Rules: unique(rules)}
		}
	}
	b.policies[np.Namespace] = append(b.policies[np.Namespace], p)
}

// isolates is the API's own default: ingress always, egress where there are rules for it. The API server fills it in,
// but not for objects older than the field.
func isolates(np *networkingv1.NetworkPolicy, d direction) bool {
	if len(np.Spec.PolicyTypes) == 0 {
		return d.name == "ingress" || len(np.Spec.Egress) > 0
	}
	want := networkingv1.PolicyTypeIngress
	if d.name == "egress" {
		want = networkingv1.PolicyTypeEgress
	}
	return slices.Contains(np.Spec.PolicyTypes, want)
}

func unique(rules []Rule) []Rule {
	seen := map[string]bool{}
	return slices.DeleteFunc(rules, func(r Rule) bool {
		again := seen[r.ID]
		seen[r.ID] = true
		return again
	})
}

type namedPort struct {
	name  string
	proto uint8
}

// splitPorts are a rule's ports by number and by name; all is true where the rule is for every packet.
func splitPorts(ports []networkingv1.NetworkPolicyPort) (numbers []portRange, named []namedPort, all bool) {
	for _, p := range ports {
		proto := Protocol(p.Protocol)
		switch {
		case proto == 0:
		case p.Port == nil:
			numbers = append(numbers, portRange{proto, 0, 1<<16 - 1})
		case p.Port.Type == intstr.String:
			named = append(named, namedPort{p.Port.StrVal, proto})
		case p.Port.IntVal > 0 && p.Port.IntVal < 1<<16:
			r := portRange{proto, uint16(p.Port.IntVal), uint16(p.Port.IntVal)}
			if p.EndPort != nil && *p.EndPort >= p.Port.IntVal && *p.EndPort < 1<<16 {
				r.to = uint16(*p.EndPort)
			}
			numbers = append(numbers, r)
		}
	}
	return numbers, named, len(ports) == 0
}

// rule is one rule of a policy: who, and at which ports; each may be everything.
func (b *builder) rule(d direction, of policy, from []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) []Rule {
	numbers, named, allPorts := splitPorts(ports)
	var selectors []selector
	var blocks []*networkingv1.IPBlock
	for _, p := range from {
		switch {
		case p.IPBlock != nil:
			blocks = append(blocks, p.IPBlock)
		case p.NamespaceSelector != nil:
			selectors = append(selectors, selector{namespaces: parse(p.NamespaceSelector), pods: parse(p.PodSelector)})
		case p.PodSelector != nil:
			selectors = append(selectors, selector{namespace: of.key.Namespace, pods: parse(p.PodSelector)})
		}
	}
	var out []Rule
	add := func(conditions ...string) {
		out = append(out, RuleOf(strings.TrimSpace(strings.Join(append(conditions, "accept"), " "))))
	}
	withPorts := func(who ...string) {
		if allPorts {
			add(who...)
		}
		if len(numbers) > 0 {
			add(append(who, match(numbers))...)
		}
	}
	everybody := selector{namespaces: labels.Everything(), pods: labels.Everything()}
	if len(from) == 0 {
		withPorts()
	}
	networks := prefixes(blocks)
	for _, f := range b.shape.families() {
		block := blockMatch(f, d.peer, networks)
		if block != "" {
			withPorts(block)
		}
		for _, s := range selectors {
			withPorts(f.proto + " " + d.peer + " @" + b.peers(peers{selector: s}).set(f))
		}
		// A named port is one of the pod that packets go to. For ingress that is one of the policy's own.
		for _, n := range named {
			at := peers{selector: everybody, port: n.name, proto: n.proto}
			if d.name == "ingress" {
				at.local, at.selector = true, selector{namespace: of.key.Namespace, pods: of.pods}
			}
			ask := func(at peers) string { return f.dport() + " @" + b.peers(at).set(f) }
			if len(from) == 0 {
				add(ask(at))
			}
			if block != "" {
				add(block, ask(at))
			}
			for _, s := range selectors {
				if d.name == "ingress" {
					add(f.proto+" "+d.peer+" @"+b.peers(peers{selector: s}).set(f), ask(at))
				} else {
					add(ask(peers{selector: s, port: n.name, proto: n.proto}))
				}
			}
		}
	}
	return out
}

// blockMatch is the condition that an address is in one of the networks of a family, "" where there is none.
func blockMatch(f family, field string, networks []netip.Prefix) string {
	var all []string
	for _, p := range networks {
		if familyOf(p.Addr()) != f {
			continue
		}
		if p.Bits() == 0 {
			return "meta nfproto " + f.nfproto
		}
		all = append(all, p.String())
	}
	if len(all) == 0 {
		return ""
	}
	return f.proto + " " + field + " { " + strings.Join(all, ", ") + " }"
}

// maxComment is the longest comment of a set.
const maxComment = 120

// peers makes the sets for p where they are not there yet.
func (b *builder) peers(p peers) peers {
	what := p.selector.String()
	if p.port != "" {
		what = fmt.Sprintf("port %s/%d of %s", p.port, p.proto, what)
	}
	if p.local {
		what += " on this node"
	}
	if known, ok := b.seen[what]; ok {
		return known
	}
	p.name = digest(what)
	b.seen[what] = p
	b.static.peers[p.selector.namespace] = append(b.static.peers[p.selector.namespace], p)
	for _, f := range b.shape.families() {
		s := Set{Type: f.addr, Comment: what[:min(len(what), maxComment)]}
		if p.port != "" {
			s.Type += Dot + "inet_proto" + Dot + "inet_service"
		}
		b.sets[p.set(f)] = s
	}
	return p
}
