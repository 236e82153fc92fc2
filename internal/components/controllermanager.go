package components

import (
	"strconv"

	"k1s.io/k1s/internal/component"
)

// The controller manager keeps no state. It waits for /readyz, not just for the port: it runs each
// controller under its own service account, and before the bootstrap roles exist their informers are
// refused and back off for seconds.
var _ = register(component.Def{
	Name:    "kube-controller-manager",
	Summary: "upstream's controllers",
	Roles:   component.ControlPlane,
	Group:   controlPlane,
	Needs:   []component.Need{{Component: "kube-apiserver", Level: component.Ready}},
	Spec:    controllerManagerSpec,
	Ready:   httpsReady(controllerPort, "/healthz"),
})

func controllerManagerSpec(in component.Input) (component.Spec, error) {
	c, p := in.Config.Spec, in.Paths
	var f flags
	f.controller(in, "kube-controller-manager", "controller-manager-serving", controllerPort)
	f.add("allocate-node-cidrs", "true")
	f.add("cluster-name", c.Cluster.Name)
	f.add("cluster-cidr", c.Network.PodCIDR)
	f.add("node-cidr-mask-size", strconv.Itoa(nodeCIDRMaskLength))
	f.add("service-cluster-ip-range", c.Network.ServiceCIDR)
	f.add("cluster-signing-cert-file", p.PKI("ca-signing.pem")) // the one that signs; ca.crt may hold more
	f.add("cluster-signing-key-file", p.PKI("ca.key"))
	f.add("root-ca-file", p.PKI("ca.crt"))
	f.add("service-account-private-key-file", p.PKI("sa.key"))
	f.add("use-service-account-credentials", "true")
	var ours map[string]bool
	if in.Several {
		// Without it upstream ends the whole process when the lease is lost, and when it is asked to stop, others wait
		// for the lease's end.
		ours = map[string]bool{"ControllerManagerReleaseLeaderElectionLockOnExit": true}
		// Who loses the lease restarts, and the API server of this machine with it (ADR 23). Upstream's 15, 10 and 2 seconds let
		// a machine that is busy, or an election of etcd and a slow disk after it, be enough for that.
		f.add("leader-elect-lease-duration", "30s")
		f.add("leader-elect-renew-deadline", "20s")
		f.add("leader-elect-retry-period", "4s")
	}
	f.gatesWith(in, ours)
	return component.Spec{
		Applet: "kube-controller-manager", Args: f, Env: trustEnv(in),
		Access: append(clientFiles(in, "kube-controller-manager"), reads(p.PKI("controller-manager-serving.key"), p.PKI("ca.key"), p.PKI("sa.key"))...),
		Given:  argumentFiles(in, "kube-controller-manager"),
	}, nil
}
