package components

import (
	"strconv"

	"k1s.io/k1s/internal/component"
)

// The scheduler talks only to the API server and keeps no state, so it may be restarted at any time.
var _ = register(component.Def{
	Name:    "kube-scheduler",
	Summary: "assigns pods to nodes",
	Roles:   component.ControlPlane,
	Group:   controlPlane,
	Needs:   []component.Need{{Component: "kube-apiserver", Level: component.Ready}},
	Spec:    schedulerSpec,
	Ready:   httpsReady(schedulerPort, "/readyz"),
})

func schedulerSpec(in component.Input) (component.Spec, error) {
	p := in.Paths
	kubeconfig := p.Kubeconfig("kube-scheduler")
	var f flags
	f.add("kubeconfig", kubeconfig)
	f.add("authentication-kubeconfig", kubeconfig)
	f.add("authorization-kubeconfig", kubeconfig)
	f.add("client-ca-file", p.PKI("ca.crt"))
	f.add("requestheader-client-ca-file", p.PKI("front-proxy-ca.crt"))
	f.add("bind-address", loopback)
	f.add("secure-port", strconv.Itoa(schedulerPort))
	f.add("tls-cert-file", p.PKI("scheduler-serving.crt"))
	f.add("tls-private-key-file", p.PKI("scheduler-serving.key"))
	f.add("tls-min-version", tlsMinVersion)
	f.add("leader-elect", "false")
	f.add("kube-api-qps", clientQPS)
	f.add("kube-api-burst", clientQPS)
	f.add("profiling", "false")
	f.gates(in)
	return component.Spec{Applet: "kube-scheduler", Args: f}, nil
}
