package components

import (
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/errs"
)

// The kubelet must not start before containerd answers and the base image is there: it would back off.
// The API server's port is enough, it retries its registration by itself.
var _ = register(component.Def{
	Name:    "kubelet",
	Summary: "runs the pods of this node",
	Roles:   component.Worker,
	Group:   node,
	Needs: []component.Need{
		{Component: "containerd", Level: component.Ready},
		{Component: "images", Level: component.Ready},
		{Component: "kube-apiserver", Level: component.Open},
		{Component: "balancer", Level: component.Open}, // not Ready: a node goes on with its pods while no server answers
	},
	Spec:        kubeletSpec,
	Ready:       httpReady(kubeletHealthPort, "/healthz"),
	StopTimeout: 20 * time.Second,
})

func kubeletSpec(in component.Input) (component.Spec, error) {
	c, p := in.Config.Spec, in.Paths
	dns, err := ClusterDNS(in)
	if err != nil {
		return component.Spec{}, err
	}
	driver, cgroupRoot := "cgroupfs", in.Facts.CgroupRoot
	if SystemdCgroups(in) {
		driver, cgroupRoot = "systemd", ""
	}
	cfg := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"address":    "0.0.0.0",
		"port":       kubeletPort,
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": p.PKI("ca.crt")},
		},
		"authorization":            map[string]any{"mode": "Webhook"},
		"cgroupDriver":             driver,
		"cgroupRoot":               cgroupRoot,
		"clusterDNS":               []string{dns},
		"clusterDomain":            c.Cluster.Domain,
		"containerRuntimeEndpoint": RuntimeEndpoint(in),
		"enableProfilingHandler":   false,
		// cgroup v1 still runs here, with a health warning, where upstream has begun to refuse it.
		"failCgroupV1":          false,
		"failSwapOn":            false,
		"healthzBindAddress":    loopback,
		"healthzPort":           kubeletHealthPort,
		"maxParallelImagePulls": 3,
		"registerNode":          true,
		"rotateCertificates":    false, // k1s renews certificates itself
		"serializeImagePulls":   false,
		"serverTLSBootstrap":    false,
		"tlsCertFile":           p.PKI("kubelet-serving.crt"),
		"tlsMinVersion":         tlsMinVersion,
		"tlsPrivateKeyFile":     p.PKI("kubelet-serving.key"),
		"volumePluginDir":       path.Join(p.Kubelet, "volume-plugins"),
		"kubeAPIQPS":            50,
		"kubeAPIBurst":          100,
		"eventRecordQPS":        50,
		"shutdownGracePeriod":   "0s",
	}
	if in.Facts.Sandbox {
		keepPodsOnFullDisks(cfg)
	}
	keepOOMScore(cfg, in)
	if len(c.Gates) > 0 {
		gates := map[string]any{}
		for k, v := range c.Gates {
			gates[k] = v
		}
		cfg["featureGates"] = gates
	}
	taints, err := parseTaints(c.Node.Taints)
	if err != nil {
		return component.Spec{}, err
	}
	if len(taints) > 0 {
		cfg["registerWithTaints"] = taints
	}
	var files []component.File
	resolver := in.Facts.Resolver.File
	if resolver == "" {
		resolver = p.Rendered("resolv.conf")
		files = append(files, component.File{Path: resolver, Content: in.Facts.Resolver.Text, Mode: 0o644})
	}
	cfg["resolvConf"] = resolver
	file, err := yamlFile(p.Rendered("kubelet.yaml"), merge(cfg, c.Kubelet))
	if err != nil {
		return component.Spec{}, err
	}
	var f flags
	f.add("config", file.Path)
	f.add("kubeconfig", p.Kubeconfig("kubelet"))
	f.add("hostname-override", in.Facts.NodeName)
	f.add("node-ip", in.Facts.NodeIP.String())
	f.add("root-dir", p.Kubelet)
	f.add("cert-dir", p.PKI("kubelet"))
	if OwnRuntime(in) {
		// cAdvisor does not follow the CRI endpoint. Without it, its metrics name no container and no image,
		// and there is no network traffic of pods.
		f.add("containerd", p.ContainerdSocket())
	}
	var labels []string
	for _, k := range slices.Sorted(maps.Keys(c.Node.Labels)) {
		labels = append(labels, k+"="+c.Node.Labels[k])
	}
	f.add("node-labels", strings.Join(labels, ","))
	return component.Spec{
		Applet: "kubelet",
		Args:   f,
		Files:  append(files, file),
		Dirs: []component.Dir{
			{Path: p.Kubelet, Mode: 0o750},
			{Path: p.PKI("kubelet"), Mode: 0o700},
			// Volumes of local-path are open to all users: the directory around them keeps the machine's own out.
			{Path: p.Storage(), Mode: 0o700},
		},
	}, nil
}

// keepPodsOnFullDisks is for clusters that are thrown away, and whose disks are the machine's: how full those are says nothing about
// the cluster, and neither its pods nor its images are what fills them. Thresholds that are named replace all of the kubelet's own,
// so that of memory is named too.
func keepPodsOnFullDisks(cfg map[string]any) {
	cfg["evictionHard"] = map[string]any{
		"imagefs.available": "0%", "imagefs.inodesFree": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
		"memory.available": "100Mi",
	}
	cfg["imageGCHighThresholdPercent"] = 100
}

// parseTaints reads "key=value:Effect" and "key:Effect".
func parseTaints(in []string) ([]map[string]any, error) {
	var out []map[string]any
	for _, t := range in {
		kv, effect, ok := strings.Cut(t, ":")
		if !ok || effect == "" {
			return nil, errs.New(errs.Invalid, "spec.node.taints: %q is not key=value:Effect", t)
		}
		key, value, _ := strings.Cut(kv, "=")
		m := map[string]any{"key": key, "effect": effect}
		if value != "" {
			m["value"] = value
		}
		out = append(out, m)
	}
	return out, nil
}
