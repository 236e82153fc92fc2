package components

import (
	"path"
	"strconv"

	"k1s.io/k1s/internal/component"
)

// flannel gives pods their network: it writes the CNI configuration as soon as the node has its pod
// CIDR, and keeps the routes to other nodes. Routes and rules stay when it stops. Its role is one of the
// bootstrap roles, so it waits for /readyz.
var _ = register(component.Def{
	Name:    "flannel",
	Summary: "pod network between nodes, CNI configuration",
	Roles:   component.Worker,
	Group:   node,
	When:    func(in component.Input) bool { return in.Config.Spec.Network.Backend != "none" },
	Needs:   apiReady,
	Spec:    flannelSpec,
	Ready:   fileReady(Conflist),
})

// Conflist is the CNI configuration that flannel writes. Where it is not there pods wait for their network.
func Conflist(in component.Input) string { return path.Join(in.Paths.CNIConf(), "10-k1s.conflist") }

func flannelSpec(in component.Input) (component.Spec, error) {
	n, p := in.Config.Spec.Network, in.Paths
	var f flags
	f.add("kubeconfig", p.Kubeconfig("flannel"))
	f.add("node-name", in.Facts.NodeName)
	f.add("node-ip", in.Facts.NodeIP.String())
	f.add("interface", in.Facts.NodeInterface)
	f.add("backend", n.Backend)
	f.add("pod-cidr", n.PodCIDR)
	f.add("cni-conf-dir", p.CNIConf())
	f.add("cni-state-dir", p.CNIState())
	if PoliciesEnforced(in) {
		f.add("policy-socket", policySocket(in))
	}
	if n.MTU != 0 {
		f.add("mtu", strconv.Itoa(n.MTU))
	}
	return component.Spec{
		Applet: "flannel",
		Args:   f,
		Dirs:   []component.Dir{{Path: p.CNIConf(), Mode: 0o755}, {Path: p.CNIState(), Mode: 0o755}},
	}, nil
}
