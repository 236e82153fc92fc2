package components

import "k1s.io/k1s/internal/component"

// The add-on manager applies the packaged manifests and the user's. It lives beside the API server.
var _ = register(component.Def{
	Name:    "addon-manager",
	Summary: "applies packaged components and the manifests directory",
	Roles:   component.ControlPlane,
	Group:   controlPlane,
	Needs:   []component.Need{{Component: "kube-apiserver", Level: component.Ready}},
	Spec:    addonManagerSpec,
	Ready:   fileReady(AddonStatus),
})

// AddonStatus is the file the add-on manager reports in.
func AddonStatus(in component.Input) string { return in.Paths.Of("addon-manager", "addons.json") }

func addonManagerSpec(in component.Input) (component.Spec, error) {
	p := in.Paths
	var f flags
	f.add("kubeconfig", p.Kubeconfig("addon-manager"))
	f.add("packaged", p.Packaged())
	f.add("manifests", p.Manifests())
	f.add("status-file", AddonStatus(in))
	if in.Several {
		f.add("leader-elect", "true")
	}
	return component.Spec{
		Applet: "addon-manager",
		Args:   f,
		Dirs:   []component.Dir{{Path: p.Packaged(), Mode: 0o700}, {Path: p.Manifests(), Mode: 0o700}, {Path: p.Of("addon-manager"), Mode: 0o700}},
		Access: append(clientFiles(in, "addon-manager"), owns(p.Of("addon-manager")), views(p.Packaged()), views(p.Manifests())),
	}, nil
}
