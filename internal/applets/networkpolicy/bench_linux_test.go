package networkpolicy

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"k1s.io/k1s/internal/applets/networkpolicy/rules"
)

// many is a cluster with policies of the usual kind, one in each namespace: in from the pods of the namespace and from
// those of a namespace for all (an ingress controller's), at a named port; out to DNS and to the own namespace. Each namespace
// has five pods, and this node has the first 110 of them all.
func many(policies int) rules.World {
	w := rules.World{Namespaces: map[string]map[string]string{}}
	for i := range policies {
		ns := fmt.Sprintf("ns%d", i)
		w.Namespaces[ns] = map[string]string{"kubernetes.io/metadata.name": ns}
		for j := range 5 {
			w.Pods = append(w.Pods, manyPod(i, j))
		}
		own := networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{}}
		of := func(name string) networkingv1.NetworkPolicyPeer {
			return networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": name}}}
		}
		w.Policies = append(w.Policies, &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "policy"},
			Spec: networkingv1.NetworkPolicySpec{
				PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
				Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{own, of("ns0")}, Ports: []networkingv1.NetworkPolicyPort{{Port: ptr.To(intstr.FromString("web"))}}}},
				Egress: []networkingv1.NetworkPolicyEgressRule{
					{To: []networkingv1.NetworkPolicyPeer{of("kube-system")}, Ports: []networkingv1.NetworkPolicyPort{{Protocol: ptr.To(corev1.ProtocolUDP), Port: ptr.To(intstr.FromInt32(53))}}},
					{To: []networkingv1.NetworkPolicyPeer{own}},
				},
				PolicyTypes: []networkingv1.PolicyType{"Ingress", "Egress"},
			},
		})
	}
	return w
}

func manyPod(i, j int) rules.Pod {
	n := 5*i + j
	return rules.Pod{
		Key: rules.Key{Namespace: fmt.Sprintf("ns%d", i), Name: fmt.Sprintf("pod%d", j)}, UID: types.UID(fmt.Sprint(n)), Local: n < 110,
		Labels: map[string]string{"app": "web", "pod-template-hash": "0123456789"},
		IPs:    []netip.Addr{netip.AddrFrom4([4]byte{10, 42, byte(n >> 8), byte(n)})}, Ports: []rules.Port{{Name: "web", Protocol: 6, Number: 8080}},
	}
}

// BenchmarkUpdate tells what changes cost, rules and kernel together: "ops" are operations of nftables, "rules-ms" is what of
// the time goes into finding them. Its results are in docs/adr/0020-network-policy.md.
func BenchmarkUpdate(b *testing.B) {
	if !inside(b) {
		return
	}
	for _, n := range []int{10, 100, 1000} {
		w := many(n)
		e := rules.NewEngine(rules.MinShape)
		for name, labels := range w.Namespaces {
			e.SetNamespace(name, labels)
		}
		for _, p := range w.Pods {
			e.SetPod(p)
		}
		for _, p := range w.Policies {
			e.SetPolicy(p)
		}
		k := &nftables{}
		// Two changes that undo each other, so that they can be done again.
		bench := func(what string, there, back func()) {
			b.Run(fmt.Sprintf("%s/policies=%d", what, n), func(b *testing.B) {
				var ops int
				var thinking time.Duration
				for i := range b.N {
					began := time.Now()
					if i%2 == 0 {
						there()
					} else {
						back()
					}
					do := e.Commit()
					thinking += time.Since(began)
					ops += len(do)
					if err := k.apply(b.Context(), do); err != nil {
						b.Fatal(err)
					}
				}
				if b.N%2 == 1 {
					back()
					if err := k.apply(b.Context(), e.Commit()); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(ops)/float64(b.N), "ops/op")
				b.ReportMetric(thinking.Seconds()*1000/float64(b.N), "rules-ms/op")
			})
		}
		b.Run(fmt.Sprintf("from-nothing/policies=%d", n), func(b *testing.B) {
			for range b.N {
				ops := rules.Diff(rules.State{}, rules.Desired(w, rules.MinShape))
				if err := k.apply(b.Context(), append([]rules.Op{{Kind: rules.DeleteTable}}, ops...)); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(len(ops)), "ops/op")
			}
		})
		e.Commit()
		b.Run(fmt.Sprintf("compare/policies=%d", n), func(b *testing.B) {
			for range b.N {
				old, err := k.read(b.Context())
				if err != nil || len(rules.Diff(old, e.State())) > 0 {
					b.Fatal(err, "or a difference")
				}
			}
		})
		pod := manyPod(1, 9)
		pod.IPs, pod.Local = []netip.Addr{netip.MustParseAddr("10.42.255.9")}, true
		bench("pod-here", func() { e.SetPod(pod) }, func() { e.DeletePod(pod.Key) })
		far := pod
		far.Local = false
		bench("pod-elsewhere", func() { e.SetPod(far) }, func() { e.DeletePod(far.Key) })
		relabelled := w.Pods[0]
		relabelled.Labels = map[string]string{"app": "other"}
		bench("pod-label", func() { e.SetPod(relabelled) }, func() { e.SetPod(w.Pods[0]) })
		bench("namespace-label", func() { e.SetNamespace("ns0", nil) }, func() { e.SetNamespace("ns0", w.Namespaces["ns0"]) })
		another := w.Policies[1].DeepCopy()
		another.Name = "another"
		another.Spec.Ingress[0].Ports[0].Port = ptr.To(intstr.FromInt32(8443))
		bench("policy", func() { e.SetPolicy(another) }, func() { e.DeletePolicy(rules.Key{Namespace: another.Namespace, Name: another.Name}) })
	}
}

// BenchmarkPackets tells what packets cost: there and back of a datagram between two pods, and a megabyte of TCP. Every packet of the
// direction in which a connection was opened is judged.
func BenchmarkPackets(b *testing.B) {
	if !inside(b) {
		return
	}
	n := newNode(b, false)
	server := n.world.Pods[0].IPs[0]
	var to, bulk net.Conn
	err := in("y-a", func() (err error) {
		if to, err = net.Dial("udp", netip.AddrPortFrom(server, 53).String()); err != nil {
			return err
		}
		bulk, err = net.Dial("tcp", netip.AddrPortFrom(server, 82).String())
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 64)
	megabyte := make([]byte, 1<<20)
	one := "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}], ports: [{port: 82}, {port: dns, protocol: UDP}]}]}"
	none := "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: nobody}}}], ports: [{port: 80}, {port: 8000, endPort: 9000}]}]}"
	for _, c := range []struct {
		name     string
		policies []string
	}{
		{"no-table", nil},
		{"pod-without-policy", []string{"{podSelector: {matchLabels: {pod: b}}}"}},
		{"one-policy", []string{one}},
		{"seven-policies", []string{none, none, none, none, none, none, one}},
	} {
		n.set(c.policies...)
		b.Run("datagram/"+c.name, func(b *testing.B) {
			for range b.N {
				if _, err := to.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := to.Read(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("megabyte/"+c.name, func(b *testing.B) {
			b.SetBytes(1 << 20)
			for range b.N {
				if _, err := bulk.Write(megabyte); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
