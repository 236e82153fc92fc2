package components

import (
	"fmt"
	"maps"
	"path"
	"strings"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/probe"
)

// BaseImage is made on the node from the payload: sandboxes and packaged pods run from it.
const BaseImage = "k1s.io/base:1"

// containerd is a process of its own in every mode: its restart must not touch anything else, and its
// shims keep the containers running while it is away.
var _ = register(component.Def{
	Name:    "containerd",
	Summary: "the container runtime",
	Roles:   component.Worker,
	Group:   runtime,
	When:    OwnRuntime,
	Spec:    containerdSpec,
	// It listens before it knows its pods, and refuses a kubelet until then; images it can have at once.
	Open: unixReady(containerdSocket),
	Ready: func(in component.Input) probe.Probe {
		return probe.Probe{Kind: probe.CRI, Addr: containerdSocket(in)}
	},
})

func containerdSocket(in component.Input) string { return in.Paths.ContainerdSocket() }

// OwnRuntime tells that we run containerd ourselves.
func OwnRuntime(in component.Input) bool { return in.Config.Spec.Runtime.Socket == "" }

// RuntimeEndpoint is the CRI socket as a URL.
func RuntimeEndpoint(in component.Input) string {
	if !OwnRuntime(in) {
		return in.Config.Spec.Runtime.Socket
	}
	return "unix://" + in.Paths.ContainerdSocket()
}

func containerdSpec(in component.Input) (component.Spec, error) {
	p := in.Paths
	file := component.File{Path: p.Rendered("containerd.toml"), Content: containerdConfig(in), Mode: 0o600}
	return component.Spec{
		Applet: "containerd",
		Args:   []string{"--config=" + file.Path},
		Env:    proxyEnv(in),
		Files:  []component.File{file},
		Dirs: []component.Dir{
			{Path: p.Containerd(), Mode: 0o700}, // as containerd makes it
			{Path: p.ContainerdState(), Mode: 0o711},
			{Path: p.CNIConf(), Mode: 0o755},
			{Path: p.Registries(), Mode: 0o700},
		},
	}, nil
}

// proxyEnv lets image pulls go through the proxy the daemon was started with, and nothing of the cluster.
func proxyEnv(in component.Input) map[string]string {
	if len(in.Facts.Proxy) == 0 {
		return nil
	}
	env := maps.Clone(in.Facts.Proxy)
	own := []string{
		"localhost", "127.0.0.0/8", "::1", in.Facts.NodeIP.String(), in.Config.Spec.Network.PodCIDR, in.Config.Spec.Network.ServiceCIDR,
		".svc", "." + in.Config.Spec.Cluster.Domain,
	}
	if user := env["NO_PROXY"]; user != "" {
		own = append([]string{user}, own...)
	}
	env["NO_PROXY"] = strings.Join(own, ",")
	return env
}

// containerdConfig is written by hand rather than through a TOML library: it is short, and comments
// and order are for people who read it.
func containerdConfig(in component.Input) string {
	p := in.Paths
	snapshotter := "overlayfs"
	if !in.Facts.OverlayFS {
		snapshotter = "native"
	}
	var b strings.Builder
	w := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	w("# Written by k1s at every start. Add or override settings in %s.", path.Join(p.Config, "containerd.d", "*.toml"))
	w("version = 4")
	w("root = %q", p.Containerd())
	w("state = %q", p.ContainerdState())
	w("imports = [%q, %q]", p.RegistryAuth(), path.Join(p.Config, "containerd.d", "*.toml"))
	if in.Registries != "" {
		w("# credentials of registries: %s", in.Registries) // a change of them is a change of this file
	}
	if in.Facts.SysResource {
		w("oom_score = -999")
	}
	w("")
	w("[timeouts]")
	w("  # What a busy machine does not let a shim answer within, 5 s by default, counts as dead, and its pod with it.")
	w("  'io.containerd.timeout.shim.load' = '30s'")
	w("")
	w("[plugins.'io.containerd.server.v1.grpc']")
	w("  address = %q", p.ContainerdSocket())
	w("[plugins.'io.containerd.server.v1.ttrpc']")
	w("  address = %q", p.ContainerdSocket()+".ttrpc")
	w("")
	w("[plugins.'io.containerd.cri.v1.images']")
	w("  snapshotter = %q", snapshotter)
	w("  [plugins.'io.containerd.cri.v1.images'.pinned_images]")
	w("    sandbox = %q", BaseImage)
	w("  [plugins.'io.containerd.cri.v1.images'.registry]")
	w("    config_path = %q", p.Registries())
	w("")
	w("[plugins.'io.containerd.cri.v1.runtime']")
	if !in.Facts.SysResource {
		w("  # Without CAP_SYS_RESOURCE the kernel refuses to lower OOM scores.")
		w("  restrict_oom_score_adj = true")
	}
	if !in.Facts.AppArmor {
		w("  disable_apparmor = true")
	}
	w("  # As often as the kubelet asks. Every second, which is the default, each pod costs 0.4 %% of a core.")
	w("  stats_collect_period = '10s'")
	w("  enable_unprivileged_ports = true")
	w("  enable_unprivileged_icmp = true")
	w("  [plugins.'io.containerd.cri.v1.runtime'.cni]")
	if in.Config.Spec.Network.Backend == "none" {
		// Somebody else's plugin: it installs itself where all of them do.
		w("    bin_dirs = [%q, %q]", "/opt/cni/bin", path.Join(in.Payload, "cni"))
		w("    conf_dir = %q", "/etc/cni/net.d")
	} else {
		w("    bin_dirs = [%q]", path.Join(in.Payload, "cni"))
		w("    conf_dir = %q", p.CNIConf())
	}
	w("  [plugins.'io.containerd.cri.v1.runtime'.containerd]")
	w("    default_runtime_name = 'runc'")
	w("    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]")
	w("      runtime_type = 'io.containerd.runc.v2'")
	w("      runtime_path = %q", path.Join(in.Payload, "containerd-shim-runc-v2"))
	w("      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]")
	w("        BinaryName = %q", path.Join(in.Payload, "runc"))
	w("        SystemdCgroup = %t", SystemdCgroups(in))
	w("        ShimCgroup = %q", ShimCgroup(in))
	return b.String()
}

// ShimCgroup is where shims live: not in containerd's own cgroup, whose memory would then be that of all
// pods' shims.
func ShimCgroup(in component.Input) string { return path.Join(in.Facts.CgroupRoot, "shims") }

// SystemdCgroups tells that pods' cgroups are made through systemd: where it is pid 1 and we run
// directly on the machine, two writers of one cgroup tree would fight.
func SystemdCgroups(in component.Input) bool { return in.Facts.Systemd && in.Facts.CgroupVersion == 2 }
