package components

import (
	"path"

	"k1s.io/k1s/internal/component"
)

// kube-proxy programs services into nftables; the rules stay when it stops, so it may be restarted
// at any time. It waits for /readyz, because before the bootstrap roles exist it is refused and then backs
// off for seconds.
var _ = register(component.Def{
	Name:    "kube-proxy",
	Summary: "services, as nftables rules",
	Roles:   component.Worker,
	Group:   node,
	Needs:   apiReady,
	Spec:    proxySpec,
	Ready:   httpReady(proxyHealthPort, "/healthz"),
})

func proxySpec(in component.Input) (component.Spec, error) {
	c, p := in.Config.Spec, in.Paths
	cfg := map[string]any{
		"apiVersion":         "kubeproxy.config.k8s.io/v1alpha1",
		"kind":               "KubeProxyConfiguration",
		"bindAddress":        "0.0.0.0",
		"clientConnection":   map[string]any{"kubeconfig": p.Kubeconfig("kube-proxy")},
		"clusterCIDR":        c.Network.PodCIDR,
		"enableProfiling":    false,
		"healthzBindAddress": local(proxyHealthPort),
		"hostnameOverride":   in.Facts.NodeName,
		"metricsBindAddress": local(proxyMetricsPort),
		"mode":               "nftables",
		// Upstream collects changes for a second, which was made for iptables, where each costs all the rules. With
		// nftables a change costs itself, and a pod that has become ready is reached that much sooner.
		"nftables": map[string]any{"minSyncPeriod": "100ms"},
	}
	if !in.Facts.InitialNetNS {
		// The conntrack limits belong to the machine; from a namespace they cannot be set and kube-proxy dies trying.
		cfg["conntrack"] = map[string]any{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}
	}
	keepOOMScore(cfg, in)
	if len(c.Gates) > 0 {
		cfg["featureGates"] = c.Gates
	}
	file, err := yamlFile(p.Rendered("kube-proxy.yaml"), merge(cfg, c.KubeProxy))
	if err != nil {
		return component.Spec{}, err
	}
	return component.Spec{
		Applet: "kube-proxy",
		Args:   []string{"--config=" + file.Path},
		Files:  []component.File{file},
		Dirs:   []component.Dir{{Path: path.Dir(file.Path), Mode: 0o700}},
	}, nil
}
