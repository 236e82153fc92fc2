package components

import "k1s.io/k1s/internal/component"

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
	var f flags
	f.controller(in, "kube-scheduler", "scheduler-serving", schedulerPort)
	f.gates(in)
	return component.Spec{
		Applet: "kube-scheduler", Args: f,
		Access: append(clientFiles(in, "kube-scheduler"), reads(in.Paths.PKI("scheduler-serving.key"))...),
		Given:  argumentFiles(in, "kube-scheduler"),
	}, nil
}
