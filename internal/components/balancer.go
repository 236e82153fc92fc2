package components

import (
	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/probe"
)

// The balancer is where everything on an agent finds the API: this node's own address, behind it the servers that are
// well. It is Open while none of them is.
var _ = register(component.Def{
	Name:    "balancer",
	Summary: "this node's way to the servers",
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
	return component.Spec{Applet: "balancer", Args: f}, nil
}
