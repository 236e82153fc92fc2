package rules

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
)

// Engine keeps a state while the world changes, at the cost of the change: a pod is matched with the selectors there
// are, and nothing else is looked at. Its methods note changes; Commit says what they come to. It is not safe for
// concurrent use.
//
// The unit of everything is the address. Each element of each set begins with the address of a pod, so what a
// change of a pod comes to is the difference of what its addresses have.
type Engine struct {
	pods       map[Key]Pod
	namespaces map[string]map[string]string
	policies   map[Key]*networkingv1.NetworkPolicy

	inNamespace map[string]map[Key]bool // pods
	owners      map[netip.Addr][]Key    // most often one

	static *static
	state  State
	has    map[netip.Addr][]element

	shape Shape // that it has at least
	dirty map[netip.Addr]bool
	anew  bool // policies changed
}

// element is one of a set, with its verdict if that is a map.
type element struct{ set, key, value string }

func (e element) compare(o element) int {
	return cmp.Or(strings.Compare(e.set, o.set), strings.Compare(e.key, o.key), strings.Compare(e.value, o.value))
}

// NewEngine returns one for an empty world, whose tables have at least a shape, most often MinShape.
func NewEngine(shape Shape) *Engine {
	return &Engine{
		pods: map[Key]Pod{}, namespaces: map[string]map[string]string{}, policies: map[Key]*networkingv1.NetworkPolicy{},
		inNamespace: map[string]map[Key]bool{}, owners: map[netip.Addr][]Key{},
		static: build(nil, shape), has: map[netip.Addr][]element{}, dirty: map[netip.Addr]bool{}, shape: shape,
	}
}

// Desired is the state for a world.
func Desired(w World, shape Shape) State {
	e := NewEngine(shape)
	for _, p := range w.Policies {
		e.SetPolicy(p)
	}
	for name, labels := range w.Namespaces {
		e.SetNamespace(name, labels)
	}
	for _, p := range w.Pods {
		e.SetPod(p)
	}
	e.Commit()
	return e.State()
}

// State is the state as of the last Commit. It shares its content with the engine, which changes it.
func (e *Engine) State() State { return e.state }

// Policies tells how many there are.
func (e *Engine) Policies() int { return len(e.policies) }

// Shape is that of the table, as of the last Commit.
func (e *Engine) Shape() Shape { return e.static.shape }

// SetPolicy notes a policy that is new or changed.
func (e *Engine) SetPolicy(p *networkingv1.NetworkPolicy) {
	e.policies[Key{Namespace: p.Namespace, Name: p.Name}] = p
	e.anew = true
}

// DeletePolicy notes that a policy is gone.
func (e *Engine) DeletePolicy(k Key) {
	delete(e.policies, k)
	e.anew = true
}

// SetNamespace notes the labels of a namespace.
func (e *Engine) SetNamespace(name string, labels map[string]string) {
	if labels == nil {
		labels = map[string]string{}
	}
	if old, ok := e.namespaces[name]; ok && maps.Equal(old, labels) {
		return
	}
	e.namespaces[name] = labels
	e.touchNamespace(name)
}

// DeleteNamespace notes that a namespace is gone.
func (e *Engine) DeleteNamespace(name string) {
	delete(e.namespaces, name)
	e.touchNamespace(name)
}

// NamespaceNames are those there are.
func (e *Engine) NamespaceNames() []string { return slices.Sorted(maps.Keys(e.namespaces)) }

// PodKeys are the pods there are, in no order.
func (e *Engine) PodKeys() []Key { return slices.Collect(maps.Keys(e.pods)) }

// PolicyKeys are the policies there are, in no order.
func (e *Engine) PolicyKeys() []Key { return slices.Collect(maps.Keys(e.policies)) }

// Pod is one of the pods.
func (e *Engine) Pod(k Key) (Pod, bool) { p, ok := e.pods[k]; return p, ok }

func (e *Engine) touchNamespace(name string) {
	for k := range e.inNamespace[name] {
		e.touch(e.pods[k].IPs)
	}
}

func (e *Engine) touch(addrs []netip.Addr) {
	for _, a := range addrs {
		e.dirty[a] = true
	}
}

// SetPod notes a pod that is new or changed.
func (e *Engine) SetPod(p Pod) {
	old, had := e.pods[p.Key]
	if had && old.Equal(p) {
		return
	}
	if had {
		e.disown(old)
	}
	e.pods[p.Key] = p
	if e.inNamespace[p.Key.Namespace] == nil {
		e.inNamespace[p.Key.Namespace] = map[Key]bool{}
	}
	e.inNamespace[p.Key.Namespace][p.Key] = true
	for _, a := range p.IPs {
		if !slices.Contains(e.owners[a], p.Key) {
			e.owners[a] = append(e.owners[a], p.Key)
		}
	}
	e.touch(p.IPs)
}

// DeletePod notes that a pod is gone.
func (e *Engine) DeletePod(k Key) {
	old, had := e.pods[k]
	if !had {
		return
	}
	e.disown(old)
	delete(e.pods, k)
	delete(e.inNamespace[k.Namespace], k)
	if len(e.inNamespace[k.Namespace]) == 0 {
		delete(e.inNamespace, k.Namespace)
	}
}

func (e *Engine) disown(p Pod) {
	for _, a := range p.IPs {
		left := slices.DeleteFunc(e.owners[a], func(k Key) bool { return k == p.Key })
		if len(left) == 0 {
			delete(e.owners, a)
		} else {
			e.owners[a] = left
		}
	}
	e.touch(p.IPs)
}

// Commit returns what turns the state before the noted changes into the one after them: operations on elements only,
// unless policies changed or the table's shape has to grow.
func (e *Engine) Commit() []Op {
	if e.anew {
		return e.rebuild()
	}
	wanted := make(map[netip.Addr][]element, len(e.dirty))
	for a := range e.dirty {
		var fits bool
		if wanted[a], fits = e.elements(a); !fits {
			return e.rebuild()
		}
	}
	var ops []Op
	for a, want := range wanted {
		ops = append(ops, e.change(a, want)...)
	}
	e.dirty = map[netip.Addr]bool{}
	sortOps(ops)
	return ops
}

// rebuild makes everything from what is known, and compares.
func (e *Engine) rebuild() []Op {
	old := e.state
	all := slices.SortedFunc(maps.Values(e.policies), func(a, b *networkingv1.NetworkPolicy) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	for !e.fill(build(all, e.shape)) {
	}
	e.dirty, e.anew = map[netip.Addr]bool{}, false
	return Diff(old, e.state)
}

// fill puts all elements into a new table; false where its shape does not do, which has then grown.
func (e *Engine) fill(s *static) bool {
	e.static, e.state, e.has = s, State{Chains: s.chains, Sets: map[string]Set{}}, map[netip.Addr][]element{}
	for name, set := range s.sets {
		set.Elements = map[string]string{}
		e.state.Sets[name] = set
	}
	for a := range e.owners {
		want, fits := e.elements(a)
		if !fits {
			return false
		}
		e.has[a] = want
		for _, el := range want {
			e.state.Sets[el.set].Elements[el.key] = el.value
		}
	}
	return true
}

// change makes an address have other elements.
func (e *Engine) change(a netip.Addr, want []element) []Op {
	var ops []Op
	op := func(kind Kind, el element) {
		s := e.state.Sets[el.set]
		ops = append(ops, Op{Kind: kind, Name: el.set, Set: Set{Map: s.Map}, Key: el.key, Value: el.value})
		if kind == AddElement {
			s.Elements[el.key] = el.value
		} else {
			delete(s.Elements, el.key)
		}
	}
	old := e.has[a]
	for _, el := range old {
		if _, ok := slices.BinarySearchFunc(want, el, element.compare); !ok {
			op(DeleteElement, el)
		}
	}
	for _, el := range want {
		if _, ok := slices.BinarySearchFunc(old, el, element.compare); !ok {
			op(AddElement, el)
		}
	}
	if len(want) == 0 {
		delete(e.has, a)
	} else {
		e.has[a] = want
	}
	return ops
}

// elements are all that begin with an address, sorted. fits is false where the table has not the shape for them; the
// engine's shape has then grown.
func (e *Engine) elements(a netip.Addr) (out []element, fits bool) {
	if len(e.policies) == 0 {
		return nil, true
	}
	f, addr := familyOf(a), a.String()
	if f == ipv6 && !e.static.shape.IPv6 {
		e.shape.IPv6 = true
		return nil, false
	}
	for _, k := range e.owners[a] {
		p := e.pods[k]
		for _, from := range []string{k.Namespace, ""} {
			for _, s := range e.static.peers[from] {
				if s.local && !p.Local || !s.selector.matches(p, e.namespaces[k.Namespace]) {
					continue
				}
				if s.port == "" {
					out = append(out, element{set: s.set(f), key: addr})
				}
				for _, port := range p.Ports {
					if s.port != "" && port.Name == s.port && port.Protocol == s.proto {
						out = append(out, element{set: s.set(f), key: addr + Dot + number(port.Protocol) + Dot + number16(port.Number)})
					}
				}
			}
		}
	}
	isolated := false
	for _, d := range directions {
		chains, ok := e.selecting(a, d)
		if !ok {
			continue
		}
		isolated = true
		out = append(out, element{set: d.name + f.n, key: addr})
		if need := len(chains) + 1; need > e.static.shape.Slots {
			for e.shape.Slots < need {
				e.shape.Slots *= 2
			}
			return nil, false
		}
		for i, c := range chains {
			out = append(out, element{slot(d, f, i), addr, "jump " + c})
		}
		out = append(out, element{slot(d, f, len(chains)), addr, "drop"})
	}
	if isolated {
		out = append(out, element{set: "self" + f.n, key: addr + Dot + addr})
	}
	slices.SortFunc(out, element.compare)
	return slices.Compact(out), true
}

// selecting are the chains of the policies that select the pod of an address; ok tells that any does. Should two pods
// claim one address, as it can look for a moment when it is used again, both their policies count.
func (e *Engine) selecting(a netip.Addr, d direction) (chains []string, ok bool) {
	for _, k := range e.owners[a] {
		p := e.pods[k]
		if !p.Local {
			continue
		}
		for _, np := range e.static.policies[k.Namespace] {
			chain, isolates := np.chains[d.name]
			if !isolates || !np.pods.Matches(labelsOf(p)) {
				continue
			}
			ok = true
			if chain != "" {
				chains = append(chains, chain)
			}
		}
	}
	slices.Sort(chains)
	return slices.Compact(chains), ok
}
