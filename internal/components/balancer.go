package components

import (
	"fmt"
	"strconv"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/probe"
)

// The balancer is where everything on an agent finds the API: this node's own address, behind it the servers that are
// well. It is Open while none of them is.
var _ = register(component.Def{
	Name:    "balancer",
	Summary: "this node's way to the servers, and theirs to it",
	Roles:   component.Agent,
	Group:   node,
	Spec:    balancerSpec,
	Open: func(in component.Input) probe.Probe {
		return probe.Probe{Kind: probe.TCP, Addr: apiAddr(in)}
	},
	Ready: apiserverReady,
})

// apiReady is the need of what is refused, and backs off for seconds, before the bootstrap roles exist.
var apiReady = []component.Need{
	{Component: "kube-apiserver", Level: component.Ready},
	{Component: "balancer", Level: component.Ready},
}

func balancerSpec(in component.Input) (component.Spec, error) {
	var f flags
	f.add("listen", apiAddr(in))
	f.add("fallback", in.Server)
	f.add("ca-file", in.Paths.PKI("ca.crt"))
	// Of this node's clients, kube-proxy is the one that may read endpoints.
	f.add("kubeconfig", in.Paths.Kubeconfig("kube-proxy"))
	f.add("servers-file", in.Paths.Servers())
	// The servers' way to this node goes the same ways as this node's to them.
	f.add("node-name", in.Facts.NodeName)
	f.add("node-ip", in.Facts.NodeIP.String())
	f.add("kubelet-port", kubeletPortOf(in))
	f.add("pod-cidr", in.Config.Spec.Network.PodCIDR)
	f.add("node-kubeconfig", in.Paths.Kubeconfig("kubelet"))
	f.add("node-cert", in.Paths.PKI("kubelet-client.crt"))
	f.add("node-key", in.Paths.PKI("kubelet-client.key"))
	f.add("tunnels-file", in.Paths.AgentTunnels())
	return component.Spec{Applet: "balancer", Args: f}, nil
}

// kubeletPortOf is where the kubelet listens, which the user may have changed in its configuration.
func kubeletPortOf(in component.Input) string {
	if port, ok := in.Config.Spec.Kubelet["port"]; ok {
		return fmt.Sprint(port)
	}
	return strconv.Itoa(kubeletPort)
}
