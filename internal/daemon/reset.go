package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/kubeconfig"
	"k1s.io/k1s/internal/ledger"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/step"
	"k1s.io/k1s/internal/wait"
)

// podLogs are the kubelet's fixed directories outside its root.
var podLogs = []string{"/var/log/pods", "/var/log/containers"}

// tables are the nftables tables kube-proxy makes, as family and name; flannel removes its own.
var tables = []string{"ip kube-proxy", "ip6 kube-proxy"}

// ResetSteps is the plan that removes a node: everything k1s has made on this machine, in the order in
// which it can be removed. Each step may be repeated. What the user wrote stays. A server of several leaves the others first;
// force goes on where they cannot be told.
func ResetSteps(o Options, force bool) []step.Step {
	p := o.Paths
	var in component.Input // known after the first step that needs it
	find := func(ctx context.Context) error {
		if in.Payload != "" {
			return nil
		}
		var err error
		in, err = offline(ctx, o)
		return err
	}
	steps := append(leaveSteps(o, force), []step.Step{
		{Name: "stop the node and end its pods", Do: func(ctx context.Context) error { return stopForReset(ctx, o) }},
		{Name: "end what is left in the node's cgroups, and remove them", Do: func(ctx context.Context) error { return removeCgroups(ctx, o) }},
		// With programs of the payload, which may be a mount of its own.
		{Name: "remove the pod network: links, routes and firewall tables", Do: func(ctx context.Context) error {
			if _, err := os.Stat(p.Payloads()); errors.Is(err, os.ErrNotExist) {
				return nil // it never ran
			}
			if err := find(ctx); err != nil {
				return err
			}
			return removeNetwork(ctx, in)
		}},
		{Name: "remove the network namespaces of pods that could not be ended", Do: func(context.Context) error {
			return removePodNetworks(findPodNetworks(p, cniResults))
		}},
		{Name: "unmount what is below " + p.Kubelet + ", " + p.Run + " and " + p.Data, Do: func(context.Context) error {
			return unmountBelow(p.Kubelet, p.Run, p.Data)
		}},
	}...)
	steps = append(steps, step.Step{Name: "set routes and kernel settings back to what they were", Do: func(ctx context.Context) error {
		l := ledger.Open(p.Ledger())
		return errors.Join(platform.RemoveServiceRoutes(ctx, l), platform.RestoreSysctls(ctx, l))
	}})
	steps = append(steps, step.Step{Name: "remove what was looked at of backups", Do: func(context.Context) error { return cleanPeeked(p) }})
	if s, err := LastUpgrade(p); err == nil && s.File != "" { // where it cannot be read they are not known
		for _, file := range []string{s.Staged(), s.Kept()} {
			steps = append(steps, step.Step{Name: "remove " + file, Do: func(context.Context) error { return removeIfThere(file) }})
		}
	}
	if out := o.Config.Spec.Kubeconfig.Output; out != "" {
		steps = append(steps, step.Step{Name: "remove the context from " + out, Do: func(ctx context.Context) error {
			_, err := kubeconfig.Remove(ctx, []string{out}, o.Config.Spec.Cluster.Name)
			return err
		}})
	}
	for _, dir := range append([]string{p.Kubelet, p.Run, p.Data, p.AdminKubeconfig(), p.DatastoreDropIn(), p.RestoreDropIn()}, podLogs...) {
		steps = append(steps, step.Step{Name: "remove " + dir, Do: func(context.Context) error { return os.RemoveAll(dir) }})
	}
	for _, dirs := range append([][]string{{path.Dir(p.AdminKubeconfig())}}, shared...) {
		top := dirs[len(dirs)-1]
		steps = append(steps, step.Step{Name: "remove " + top + " if nobody else uses it", Do: func(context.Context) error { return removeIfEmpty(dirs...) }})
	}
	return steps
}

// shared are directories that containerd, its libraries and the kubelet make outside of ours, each after what
// they make in it. Others may use them too.
var shared = [][]string{
	{cniResults, "/var/lib/cni"},                                      // what plugins answered, of libcni
	{"/opt/containerd/bin", "/opt/containerd/lib", "/opt/containerd"}, // for programs installed by ctr
	// Sockets of shims, and what runc remembers of containers.
	{"/run/containerd/s", "/run/containerd/runc/k8s.io", "/run/containerd/runc", "/run/containerd"},
	{podNamespaces},
	// Where the kubelet looks for FlexVolume drivers.
	{"/usr/libexec/kubernetes/kubelet-plugins/volume/exec", "/usr/libexec/kubernetes/kubelet-plugins/volume",
		"/usr/libexec/kubernetes/kubelet-plugins", "/usr/libexec/kubernetes"},
}

// removeIfEmpty removes directories that are there and have nothing in them. What is a mount point or
// cannot be changed is not of our making.
func removeIfEmpty(dirs ...string) error {
	var failed []error
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			failed = append(failed, err)
		case len(entries) == 0:
			if err := os.Remove(dir); !errors.Is(err, syscall.EBUSY) && !errors.Is(err, syscall.EROFS) {
				failed = append(failed, err)
			}
		}
	}
	return errors.Join(failed...)
}

func stopForReset(ctx context.Context, o Options) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 3*time.Minute, errors.New("the node did not stop within 3m"))
	defer cancel()
	c := control.NewClient(o.Paths.ControlSocket())
	err := c.Stop(ctx, control.StopRequest{Pods: true})
	if err == nil {
		return wait.Until(ctx, 100*time.Millisecond, "the node to stop", func(ctx context.Context) error {
			if running(ctx, o) {
				return errors.New("its daemon still runs")
			}
			return nil
		})
	}
	if !errs.Is(err, errs.NotRunning) {
		return err
	}
	if _, err := os.Stat(o.Paths.Payloads()); errors.Is(err, os.ErrNotExist) {
		return nil // it never ran
	}
	if _, err = StopLeftovers(ctx, o, true); errs.Is(err, errs.NotRunning) {
		return nil
	}
	return err
}

func removeCgroups(ctx context.Context, o Options) error {
	cg, err := platform.DetectCgroups()
	if err != nil {
		return err
	}
	root := o.CgroupRoot
	if root == "" {
		root = DefaultCgroupRoot
	}
	g := cg.At(root)
	return errors.Join(g.KillAll(ctx), g.Remove(ctx), removePodSlices(ctx, o, cg))
}

// podSlice is where the kubelet's systemd driver puts pods; its name cannot be chosen.
const podSlice = "/kubepods.slice"

// removePodSlices removes what the kubelet's systemd driver has made: the slices of pods stay when their
// containers have ended, because the kubelet that would remove them has been stopped before. Slices
// in which processes of somebody else are left stay.
func removePodSlices(ctx context.Context, o Options, cg *platform.Cgroups) error {
	if o.CgroupRoot != "" || cg.Version != 2 {
		return nil
	}
	slice := path.Join(cg.Hierarchies[""], podSlice)
	for _, needed := range []string{slice, o.Paths.Payloads()} { // without programs it never ran
		if _, err := os.Stat(needed); errors.Is(err, os.ErrNotExist) {
			return nil
		}
	}
	// Only where the pods could not be ended in order are there any left.
	tasks, err := os.ReadDir(path.Join(o.Paths.ContainerdState(), "io.containerd.runtime.v2.task/k8s.io"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var failed []error
	for _, scope := range scopesOf(slice, tasks) {
		failed = append(failed, cg.At(podSlice, scope).KillAll(ctx))
	}
	pids, err := cg.At(podSlice).Procs()
	if err = errors.Join(append(failed, err)...); err != nil || len(pids) > 0 {
		return err
	}
	if err := stopUnit(ctx, path.Base(podSlice)); err != nil {
		return err
	}
	return cg.At(podSlice).Remove(ctx)
}

// scopesOf finds the cgroups of containers by their ids, relative to the slice all are in.
func scopesOf(slice string, containers []os.DirEntry) []string {
	ours := map[string]bool{}
	for _, c := range containers {
		ours["cri-containerd-"+c.Name()+".scope"] = true
	}
	var found []string
	// What disappears meanwhile need not be found.
	_ = filepath.WalkDir(slice, func(name string, d os.DirEntry, err error) error {
		if err == nil && ours[d.Name()] {
			found = append(found, strings.TrimPrefix(filepath.ToSlash(name), slice))
		}
		return nil
	})
	return found
}

// removeNetwork removes what CNI, flannel and kube-proxy leave on purpose when they stop.
func removeNetwork(ctx context.Context, in component.Input) error {
	var failed []error
	if in.Config.Spec.Network.Backend != "none" {
		failed = append(failed, applet(ctx, in, "flannel", "--cleanup", "--backend="+in.Config.Spec.Network.Backend,
			"--pod-cidr="+in.Config.Spec.Network.PodCIDR, "--cni-conf-dir="+in.Paths.CNIConf()))
	}
	failed = append(failed, removeTables(ctx, path.Join(in.Payload, "nft"), tables))
	return errors.Join(failed...)
}

// podNamespaces is where containerd mounts the network namespaces of pods, and others theirs; cniResults is where libcni keeps what
// plugins have answered, until they have been told to undo it.
const (
	podNamespaces = "/run/netns"
	cniResults    = "/var/lib/cni/results"
)

// podNetworks are what is left of the network of our pods: namespaces by their names in podNamespaces, which keep links
// alive, and files in which libcni remembers it.
type podNetworks struct{ namespaces, files []string }

// findPodNetworks finds those of pods that were not ended. Ours are those whose addresses were given out of our directory, which is in
// the configuration that libcni keeps (https://github.com/containernetworking/cni, libcni/api.go, cachedInfo), and those of tasks
// of our containerd, for pods with a network of somebody else's.
func findPodNetworks(p paths.Paths, results string) podNetworks {
	var out podNetworks
	add := func(namespace string) {
		// As containerd calls them; others do not.
		if dir, name := path.Split(namespace); (dir == podNamespaces+"/" || dir == "/var"+podNamespaces+"/") && strings.HasPrefix(name, "cni-") {
			out.namespaces = append(out.namespaces, name)
		}
	}
	// What cannot be read is not known to be ours.
	ours := map[string]bool{}
	files, _ := filepath.Glob(filepath.Join(results, "*"))
	for _, f := range files {
		var kept struct {
			ContainerID string `json:"containerId"`
			Config      []byte `json:"config"`
			NetNS       string `json:"netns"`
		}
		if b, err := os.ReadFile(f); err != nil || json.Unmarshal(b, &kept) != nil || !bytes.Contains(kept.Config, []byte(strconv.Quote(p.CNIState()))) {
			continue
		}
		add(kept.NetNS)
		ours[kept.ContainerID] = kept.ContainerID != ""
	}
	for _, f := range files { // a pod has a loopback beside its network
		if slices.ContainsFunc(strings.Split(filepath.Base(f), "-"), func(part string) bool { return ours[part] }) {
			out.files = append(out.files, f)
		}
	}
	bundles, _ := filepath.Glob(filepath.Join(p.ContainerdState(), "io.containerd.runtime.v2.task/k8s.io/*/config.json"))
	for _, f := range bundles {
		var spec struct {
			Linux struct {
				Namespaces []struct {
					Type string `json:"type"`
					Path string `json:"path"`
				} `json:"namespaces"`
			} `json:"linux"`
		}
		if b, err := os.ReadFile(f); err != nil || json.Unmarshal(b, &spec) != nil {
			continue
		}
		for _, n := range spec.Linux.Namespaces {
			if n.Type == "network" {
				add(n.Path)
			}
		}
	}
	slices.Sort(out.namespaces)
	out.namespaces = slices.Compact(out.namespaces)
	return out
}

func removePodNetworks(n podNetworks) error {
	var failed []error
	for _, name := range n.namespaces {
		at := path.Join(podNamespaces, name)
		if err := unmount(at); err != nil {
			failed = append(failed, fmt.Errorf("unmounting %s: %w", at, err))
			continue
		}
		n.files = append(n.files, at)
	}
	for _, f := range n.files {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// mountsBelow picks the mount points below any of the roots, deepest first, so that they can be unmounted
// in this order. mountinfo is the text of /proc/self/mountinfo.
func mountsBelow(mountinfo string, roots ...string) []string {
	var out []string
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		at := unescape(f[4])
		for _, r := range roots {
			if strings.HasPrefix(at, strings.TrimSuffix(r, "/")+"/") {
				out = append(out, at)
				break
			}
		}
	}
	slices.Reverse(out) // later mounts lie on top of earlier ones
	return out
}

// unescape decodes the octal escapes of proc_pid_mountinfo(5).
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func unmountBelow(roots ...string) error {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if errors.Is(err, os.ErrNotExist) {
		return nil // no such thing on this platform
	}
	if err != nil {
		return err
	}
	var failed []error
	for _, at := range mountsBelow(string(raw), roots...) {
		if err := unmount(at); err != nil {
			failed = append(failed, fmt.Errorf("unmounting %s: %w", at, err))
		}
	}
	return errors.Join(failed...)
}
