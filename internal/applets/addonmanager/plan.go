package addonmanager

import (
	"slices"
	"strings"
)

// Phases in which the objects of a stack are applied; those of one phase at the same time.
const (
	phaseFirst    = iota // what others live in or are made of: namespaces, kinds
	phaseMeans           // what workloads use: permissions, configuration, services, storage
	phaseWorkload        // what runs, and everything whose kind says nothing to us
	phaseGates           // what may refuse requests, once what serves it is on its way
	phases
)

// phase keeps controllers from finding half of what they need: a ReplicaSet that misses its service
// account backs off for longer than the account takes.
func phase(r ref) int {
	switch r.Group {
	case "":
		switch r.Kind {
		case "Namespace":
			return phaseFirst
		case "Pod", "ReplicationController":
			return phaseWorkload
		}
		return phaseMeans
	case "apiextensions.k8s.io":
		return phaseFirst
	case "rbac.authorization.k8s.io", "storage.k8s.io", "scheduling.k8s.io", "node.k8s.io", "networking.k8s.io",
		"policy", "coordination.k8s.io", "flowcontrol.apiserver.k8s.io", "apiregistration.k8s.io":
		return phaseMeans
	case "admissionregistration.k8s.io":
		return phaseGates
	}
	return phaseWorkload
}

// ordered returns the objects of each phase, in the order of the files.
func ordered(objects []object) [phases][]object {
	var out [phases][]object
	for _, o := range objects {
		p := phase(o.ref())
		out[p] = append(out[p], o)
	}
	return out
}

// applied is one entry of an inventory.
type applied struct {
	ref
	Version string `json:"version"`
	// UID is empty until the object was applied: an inventory is written before, so that a crash in
	// between leaves nothing that nobody knows of.
	UID string `json:"uid,omitempty"`
	// Owned is a digest of the fields that are ours; it changes when somebody takes one over.
	Owned string `json:"owned,omitempty"`
}

// keep is the annotation (with the value "false") of objects that stay when they leave their stack.
const keep = "k1s.io/prune"

// never are namespaces the cluster cannot be without.
var never = []string{"default", "kube-system", "kube-public", "kube-node-lease"}

// prunable returns what of an inventory is to be deleted, in that order: what is not wanted any more by any
// stack. Gates go first, so that they do not refuse the rest, namespaces and kinds last.
func prunable(inventory []applied, wanted map[ref]bool) []applied {
	var out []applied
	for _, a := range inventory {
		switch {
		case wanted[a.ref]:
		case a.Group == "" && a.Kind == "Namespace" && slices.Contains(never, a.Name):
		default:
			out = append(out, a)
		}
	}
	slices.SortStableFunc(out, func(a, b applied) int {
		if d := phase(b.ref) - phase(a.ref); d != 0 {
			return d
		}
		return strings.Compare(a.ref.String(), b.ref.String())
	})
	return out
}

// wantedBy collects what stacks want.
func wantedBy(stacks []stack) map[ref]bool {
	out := map[ref]bool{}
	for _, s := range stacks {
		for _, o := range s.objects {
			out[o.ref()] = true
		}
	}
	return out
}

// merged is the inventory to write before applying: what is there, and what is about to be.
func merged(inventory []applied, objects []object) (out []applied, grew bool) {
	out = slices.Clone(inventory)
	known := map[ref]bool{}
	for _, a := range inventory {
		known[a.ref] = true
	}
	for _, o := range objects {
		if r := o.ref(); !known[r] {
			out = append(out, applied{ref: r, Version: o.GroupVersionKind().Version})
			grew = true
		}
	}
	return out, grew
}
