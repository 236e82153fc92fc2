package rules

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// packet is the first one of a connection, at the hook "forward".
type packet struct {
	from, to netip.Addr
	proto    uint8
	port     uint16
}

func (p packet) String() string { return fmt.Sprintf("%s → %s %d/%d", p.from, p.to, p.port, p.proto) }

// passes interprets a state as the kernel would: the part of nft's language that this package writes.
func passes(s State, p packet) bool {
	for _, name := range []string{"egress", "ingress"} {
		if c, ok := s.Chains[name]; ok && verdict(s, c, p) == "drop" {
			return false
		}
	}
	return true
}

func verdict(s State, c Chain, p packet) string {
	for _, r := range c.Rules {
		switch v := evaluate(s, r.Text, p); {
		case v == "accept", v == "drop":
			return v
		case strings.HasPrefix(v, "goto "):
			return verdict(s, mustChain(s, v[5:]), p)
		case strings.HasPrefix(v, "jump "):
			if v := verdict(s, mustChain(s, v[5:]), p); v != "" {
				return v
			}
		case v != "":
			panic("verdict " + v)
		}
	}
	return ""
}

func mustChain(s State, name string) Chain {
	c, ok := s.Chains[name]
	if !ok {
		panic("there is no chain " + name)
	}
	return c
}

// evaluate returns the verdict of one rule, "" where it does not match.
func evaluate(s State, text string, p packet) string {
	words := strings.Fields(text)
	var key []string
	for len(words) > 0 {
		w := words[0]
		words = words[1:]
		switch w {
		case "ct":
			return ""
		case "ip", "ip6":
			if (w == "ip") != p.from.Is4() {
				return ""
			}
			addr := p.from
			if words[0] == "daddr" {
				addr = p.to
			}
			key, words = append(key, addr.String()), words[1:]
		case "meta":
			switch words[0] {
			case "l4proto":
				key, words = append(key, number(p.proto)), words[1:]
			case "nfproto":
				if (words[1] == "ipv4") != p.from.Is4() {
					return ""
				}
				words = words[2:]
			}
		case "th":
			key, words = append(key, number16(p.port)), words[1:]
		case ".":
		case "vmap":
			set := mustSet(s, words[0][1:])
			return set.Elements[strings.Join(key, Dot)]
		case "{":
			var elements []string
			i := 0
			for ; words[i] != "}"; i++ {
				elements = append(elements, words[i])
			}
			words = words[i+1:]
			if !anyContains(strings.Split(strings.Join(elements, " "), ", "), key) {
				return ""
			}
			key = nil
		case "accept", "drop":
			return w
		case "goto", "jump":
			return w + " " + words[0]
		default:
			if !strings.HasPrefix(w, "@") {
				panic("do not understand " + w + " in " + text)
			}
			if _, ok := mustSet(s, w[1:]).Elements[strings.Join(key, Dot)]; !ok {
				return ""
			}
			key = nil
		}
	}
	panic("no verdict in " + text)
}

func mustSet(s State, name string) Set {
	set, ok := s.Sets[name]
	if !ok {
		panic("there is no set " + name)
	}
	return set
}

func anyContains(elements, key []string) bool {
	for _, e := range elements {
		all := true
		for i, part := range strings.Split(e, Dot) {
			if prefix, err := netip.ParsePrefix(part); err == nil {
				all = all && prefix.Contains(netip.MustParseAddr(key[i]))
				continue
			}
			from, to, isRange := strings.Cut(part, "-")
			if !isRange {
				to = from
			}
			n, _ := strconv.Atoi(key[i])
			low, _ := strconv.Atoi(from)
			high, _ := strconv.Atoi(to)
			all = all && low <= n && n <= high
		}
		if all {
			return true
		}
	}
	return false
}

// allowed is what the API's documentation says, as literally as possible, and by no means of the code that is tested.
func allowed(w World, p packet) bool {
	if p.from == p.to {
		return true
	}
	return side(w, p, p.from, p.to, true) && side(w, p, p.to, p.from, false)
}

// side judges a packet for the pod at the address own, if it is one of this node.
func side(w World, p packet, own, other netip.Addr, egress bool) bool {
	isolated := false
	for _, pod := range w.Pods {
		if !pod.Local || !hasIP(pod, own) {
			continue
		}
		for _, np := range w.Policies {
			if np.Namespace != pod.Key.Namespace || !selects(&np.Spec.PodSelector, pod.Labels) || !covers(np, egress) {
				continue
			}
			isolated = true
			if egress {
				for _, r := range np.Spec.Egress {
					if peersAllow(w, np.Namespace, r.To, other) && portsAllow(w, r.Ports, p) {
						return true
					}
				}
				continue
			}
			for _, r := range np.Spec.Ingress {
				if peersAllow(w, np.Namespace, r.From, other) && portsAllow(w, r.Ports, p) {
					return true
				}
			}
		}
	}
	return !isolated
}

func covers(np *networkingv1.NetworkPolicy, egress bool) bool {
	if len(np.Spec.PolicyTypes) == 0 {
		return !egress || len(np.Spec.Egress) > 0
	}
	for _, t := range np.Spec.PolicyTypes {
		if (t == networkingv1.PolicyTypeEgress) == egress {
			return true
		}
	}
	return false
}

func hasIP(p Pod, a netip.Addr) bool {
	for _, ip := range p.IPs {
		if ip == a {
			return true
		}
	}
	return false
}

func selects(s *metav1.LabelSelector, on map[string]string) bool {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		panic(err)
	}
	return sel.Matches(labels.Set(on))
}

func peersAllow(w World, namespace string, peers []networkingv1.NetworkPolicyPeer, other netip.Addr) bool {
	if len(peers) == 0 {
		return true
	}
	for _, peer := range peers {
		if b := peer.IPBlock; b != nil {
			in := netip.MustParsePrefix(b.CIDR).Contains(other)
			for _, e := range b.Except {
				in = in && !netip.MustParsePrefix(e).Contains(other)
			}
			if in {
				return true
			}
			continue
		}
		for _, pod := range w.Pods {
			if !hasIP(pod, other) {
				continue
			}
			inNamespace := pod.Key.Namespace == namespace
			if peer.NamespaceSelector != nil {
				inNamespace = selects(peer.NamespaceSelector, w.Namespaces[pod.Key.Namespace])
			}
			if inNamespace && (peer.PodSelector == nil || selects(peer.PodSelector, pod.Labels)) {
				return true
			}
		}
	}
	return false
}

func portsAllow(w World, ports []networkingv1.NetworkPolicyPort, p packet) bool {
	if len(ports) == 0 {
		return true
	}
	for _, port := range ports {
		if Protocol(port.Protocol) != p.proto {
			continue
		}
		switch {
		case port.Port == nil:
			return true
		case port.Port.Type == intstr.String:
			for _, pod := range w.Pods { // the pod that the packet goes to
				for _, has := range pod.Ports {
					if hasIP(pod, p.to) && has.Name == port.Port.StrVal && has.Protocol == p.proto && has.Number == p.port {
						return true
					}
				}
			}
		default:
			to := port.Port.IntVal
			if port.EndPort != nil {
				to = *port.EndPort
			}
			if int32(p.port) >= port.Port.IntVal && int32(p.port) <= to {
				return true
			}
		}
	}
	return false
}
