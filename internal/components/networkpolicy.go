package components

import (
	"path"
	"slices"

	"k1s.io/k1s/internal/component"
)

// networkPolicy is the component, and the name by which spec.disable leaves network policies out.
const networkPolicy = "network-policy"

// Optional are the components that spec.disable can leave out.
func Optional() []string { return []string{networkPolicy} }

// DisabledAddons are the add-ons that spec.disable leaves out, which has components as well.
func DisabledAddons(in component.Input) []string {
	return slices.DeleteFunc(slices.Clone(in.Config.Spec.Disable), func(name string) bool { return slices.Contains(Optional(), name) })
}

// The network policy agent turns NetworkPolicies into rules for the pods of this node; the rules stay when it stops.
// Its role is one of the bootstrap roles, so it waits for /readyz. Nothing waits for it: pods do so themselves, by its
// CNI plugin.
var _ = register(component.Def{
	Name:    networkPolicy,
	Summary: "network policies of the pods of this node, as nftables rules",
	Roles:   component.Worker,
	Group:   node,
	When:    PoliciesEnforced,
	Needs:   apiReady,
	Spec:    networkPolicySpec,
	Ready:   unixReady(policySocket),
})

// PoliciesEnforced tells whether network policies are k1s' to enforce: with a network of the user's own they are that
// network's.
func PoliciesEnforced(in component.Input) bool {
	return in.Config.Spec.Network.Backend != "none" && !slices.Contains(in.Config.Spec.Disable, networkPolicy)
}

func policySocket(in component.Input) string { return path.Join(in.Paths.Run, "network-policy.sock") }

func networkPolicySpec(in component.Input) (component.Spec, error) {
	var f flags
	f.add("kubeconfig", in.Paths.Kubeconfig(networkPolicy))
	f.add("node-name", in.Facts.NodeName)
	f.add("socket", policySocket(in))
	f.add("state-file", path.Join(in.Paths.Run, "network-policy.json"))
	return component.Spec{Applet: networkPolicy, Args: f}, nil
}
