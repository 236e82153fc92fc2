package components

import (
	"path"

	"k1s.io/k1s/internal/component"
)

// images makes the base image and imports the bundles directory. The kubelet waits for its first pass:
// a pod whose image arrives a moment later would sit in a pull back-off.
var _ = register(component.Def{
	Name:    "images",
	Summary: "makes the base image, imports and pins image bundles",
	Roles:   component.Worker,
	Group:   node,
	When:    OwnRuntime,
	Needs:   []component.Need{{Component: "containerd", Level: component.Open}},
	Spec:    imagesSpec,
	Ready:   fileReady(func(in component.Input) string { return path.Join(in.Paths.Run, "images.ready") }),
})

// ImageStatus is the file the images component reports in.
func ImageStatus(in component.Input) string { return path.Join(in.Paths.Run, "images.json") }

func imagesSpec(in component.Input) (component.Spec, error) {
	var f flags
	f.add("socket", in.Paths.ContainerdSocket())
	f.add("payload", in.Payload)
	f.add("bundles", in.Paths.Bundles())
	f.add("status-file", ImageStatus(in))
	f.add("ready-file", path.Join(in.Paths.Run, "images.ready"))
	return component.Spec{
		Applet: "images",
		Args:   f,
		Dirs:   []component.Dir{{Path: in.Paths.Bundles(), Mode: 0o755}},
	}, nil
}
