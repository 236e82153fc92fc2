package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/addons"
	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/kubeconfig"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/probe"
	"k1s.io/k1s/internal/runner"
)

// The baseline is the node a careful person builds with a script: the same programs with the same
// certificates, the same security and the same network, every one a process of its own. What k1s does for
// speed is left out: upstream's bootstrap hooks, request rates, garbage collector and database settings; and
// what needs the API server starts when /readyz says so. Add-ons are applied with kubectl.
//
// These sub-commands are run in the node, the first as its daemon.
const (
	baselineCommand = "baseline"
	baselineStop    = "baseline-stop"
)

// untuned takes out what makes k1s fast. Everything named here is the default of the program concerned.
func untuned(c component.Component) component.Component {
	c.Spec.Args = slices.Clone(c.Spec.Args)
	switch c.Name {
	case "kine":
		for i, a := range c.Spec.Args {
			c.Spec.Args[i] = strings.Replace(a, "_synchronous=FULL", "_synchronous=NORMAL", 1)
		}
		c.Spec.Args = append(c.Spec.Args, "--emulated-etcd-version=3.5.13", "--notify-interval=5s")
	case "kube-apiserver":
		c.Spec.Env = map[string]string{"K1S_UPSTREAM_HOOKS": "1"}
		// The daemon writes the file that is named there, also where nothing is encrypted.
		c.Spec.Args = slices.DeleteFunc(c.Spec.Args, func(a string) bool { return strings.HasPrefix(a, "--encryption-provider-config") })
	case "kube-controller-manager", "kube-scheduler":
		c.Spec.Args = slices.DeleteFunc(c.Spec.Args, func(a string) bool {
			return strings.HasPrefix(a, "--kube-api-qps=") || strings.HasPrefix(a, "--kube-api-burst=")
		})
	}
	if c.Spec.Env == nil {
		c.Spec.Env = map[string]string{}
	}
	c.Spec.Env["K1S_GOGC"] = "off"
	return c
}

// baselineNode is the running baseline.
type baselineNode struct {
	in      component.Input
	options runner.Options
	running sync.WaitGroup
	failed  chan error
}

// runBaseline is the daemon of the baseline, in the node. It ends with ctx, and with it all its processes
// and pods.
func runBaseline(ctx context.Context) error {
	b := &baselineNode{failed: make(chan error, 16)}
	comps, err := b.prepare(ctx)
	if err != nil {
		return err
	}
	ends := map[string]context.CancelFunc{}
	up := func(name string) {
		i := slices.IndexFunc(comps, func(c component.Component) bool { return c.Name == name })
		if i < 0 {
			return
		}
		own, end := context.WithCancel(context.WithoutCancel(ctx))
		ends[name] = end
		b.start(own, comps[i])
	}
	defer func() {
		// The kubelet first, it would start the pods again; the store last.
		for _, group := range [][]string{
			{"kubelet", "kube-proxy", "flannel", "images", "kube-controller-manager", "kube-scheduler"}, {"kube-apiserver"}, {"kine", "containerd"},
		} {
			for _, name := range group {
				if end, ok := ends[name]; ok {
					end()
				}
			}
			if slices.Contains(group, "kubelet") && ends["containerd"] != nil {
				time.Sleep(time.Second) // until the kubelet has let go
				endPods(b.in)
			}
		}
		b.running.Wait()
	}()
	ready := func(name string) error {
		for _, c := range comps {
			if c.Name == name {
				return b.await(ctx, c)
			}
		}
		return nil
	}
	up("containerd")
	up("kine")
	up("kube-apiserver")
	if err := ready("containerd"); err != nil {
		return err
	}
	up("images")
	if err := errors.Join(ready("images"), ready("kube-apiserver")); err != nil {
		return err
	}
	for _, name := range []string{"kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "flannel"} {
		up(name)
	}
	if err := b.applyAddons(ctx); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-b.failed:
		return err
	}
}

// await waits until a component is ready, or one has failed.
func (b *baselineNode) await(ctx context.Context, c component.Component) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	passed := make(chan error, 1)
	go func() {
		passed <- until(ctx, func(ctx context.Context) error { return probe.Check(ctx, c.Ready) })
	}()
	select {
	case err := <-passed:
		return err
	case err := <-b.failed:
		cancel(err)
		<-passed
		return err
	}
}

// start runs one component until ctx ends.
func (b *baselineNode) start(ctx context.Context, c component.Component) {
	u := component.Unit{
		Name: c.Name, Argv: append([]string{path.Join(b.in.Payload, components.Program), c.Spec.Applet}, c.Spec.Args...),
		Env: c.Spec.Env, Files: c.Spec.Files, Dirs: c.Spec.Dirs, Components: []component.Component{c}, StopTimeout: c.StopTimeout,
	}
	b.running.Go(func() {
		err := runner.NewProcess(u, b.options).Run(ctx)
		if ctx.Err() == nil {
			b.failed <- fmt.Errorf("%s ended: %w", c.Name, err)
		}
	})
}

// prepare makes certificates and configuration, as k1s does.
func (b *baselineNode) prepare(ctx context.Context) ([]component.Component, error) {
	p := paths.Default()
	loaded, err := config.Effective(config.Sources{File: p.ConfigFile(), Env: os.Environ(), OtherEnv: []string{"K1S_SANDBOX", "K1S_CGROUP_ROOT"}},
		config.Known{Components: components.Names()})
	if err != nil {
		return nil, err
	}
	c := loaded.Config
	c.Spec.Disable = append(c.Spec.Disable, "network-policy") // upstream has none, and pods would wait for it
	root := os.Getenv("K1S_CGROUP_ROOT")
	facts, err := platform.DetectFacts(ctx, platform.FactsInput{DataDir: p.Data, NodeName: c.Spec.Node.Name, NodeIP: c.Spec.Node.IP, CgroupRoot: root})
	if err != nil {
		return nil, err
	}
	facts.Systemd = false // we were given a place in the tree
	programs, err := os.Readlink(p.CurrentPayload())
	if err != nil {
		return nil, fmt.Errorf("finding the unpacked payload: %w", err)
	}
	if !path.IsAbs(programs) {
		programs = path.Join(p.Payloads(), programs)
	}
	b.in = component.Input{Config: c, Paths: p, Facts: facts, Payload: programs, PayloadID: path.Base(programs)}

	services, err := netip.ParsePrefix(c.Spec.Network.ServiceCIDR)
	if err != nil {
		return nil, err
	}
	_, err = pki.Ensure(ctx, pki.Request{
		Paths: p, NodeName: facts.NodeName, NodeIP: facts.NodeIP, Domain: c.Spec.Cluster.Domain, ServiceCIDR: services, NoWorker: c.Spec.NoWorker,
	})
	if err == nil {
		err = b.kubeconfigs()
	}
	if err != nil {
		return nil, err
	}
	cg, err := platform.DetectCgroups()
	if err != nil {
		return nil, err
	}
	if _, err := cg.Prepare(root); err != nil {
		return nil, err
	}
	if _, err := cg.Ensure(root, path.Base(components.ShimCgroup(b.in))); err != nil {
		return nil, err
	}
	// containerd's configuration imports it; there are no credentials.
	err = errors.Join(os.MkdirAll(path.Dir(p.RegistryAuth()), 0o711), os.WriteFile(p.RegistryAuth(), nil, 0o600))
	if err != nil {
		return nil, err
	}
	b.options = runner.Options{Paths: p, Cgroups: cg, CgroupRoot: root, Payload: programs, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	comps, err := components.Render(b.in)
	for i, c := range comps {
		comps[i] = untuned(c)
	}
	return comps, err
}

func (b *baselineNode) kubeconfigs() error {
	p := b.in.Paths
	for _, dir := range []string{path.Dir(p.Kubeconfig("x")), p.Config} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	for name, cert := range map[string]string{
		"kube-controller-manager": pki.ControllerManagerClient, "kube-scheduler": pki.SchedulerClient, "kubelet": pki.KubeletClient,
		"kube-proxy": pki.KubeProxyClient,
		"flannel":    pki.AdminClient, // upstream's bootstrap roles have none for it
	} {
		if b.in.Config.Spec.NoWorker && (strings.HasPrefix(name, "kube-proxy") || name == "kubelet") {
			continue
		}
		err := kubeconfig.WriteFile(p.Kubeconfig(name), kubeconfig.Config{
			Name: "bench", Server: components.URL(b.in), CAFile: pki.CertFile(p, pki.CA), CertFile: pki.CertFile(p, cert), KeyFile: pki.KeyFile(p, cert),
		})
		if err != nil {
			return err
		}
	}
	c := kubeconfig.Config{Name: "bench", Server: components.URL(b.in)}
	var err error
	read := func(file string) []byte {
		text, e := os.ReadFile(file)
		err = errors.Join(err, e)
		return text
	}
	c.CA, c.Cert, c.Key = read(pki.CertFile(p, pki.CA)), read(pki.CertFile(p, pki.AdminClient)), read(pki.KeyFile(p, pki.AdminClient))
	return errors.Join(err, kubeconfig.WriteFile(p.AdminKubeconfig(), c))
}

// applyAddons gives the packaged manifests to kubectl.
func (b *baselineNode) applyAddons(ctx context.Context) error {
	dns, err := components.ClusterDNS(b.in)
	if err != nil {
		return err
	}
	files, err := addons.Render(addons.Node{
		ClusterDNS: dns, ClusterDomain: b.in.Config.Spec.Cluster.Domain,
		PodsProgram: path.Join(b.in.Payload, "k1s-pods"), PayloadID: b.in.PayloadID,
		BaseImage: components.BaseImage, StorageDir: b.in.Paths.Storage(),
	}, slices.DeleteFunc(slices.Clone(b.in.Config.Spec.Disable), func(name string) bool { return name == "network-policy" })) // no manifest
	if err != nil || len(files) == 0 {
		return err
	}
	args := []string{"kubectl", "--kubeconfig=" + b.in.Paths.AdminKubeconfig(), "apply"}
	for name, text := range files {
		// The first document describes the add-on and is not for the API server.
		_, manifests, _ := strings.Cut(text, "\n---\n")
		file := path.Join(b.in.Paths.Run, name)
		if err := os.WriteFile(file, []byte(manifests), 0o600); err != nil {
			return err
		}
		args = append(args, "-f", file)
	}
	out, err := exec.CommandContext(ctx, path.Join(b.in.Payload, components.Program), args...).CombinedOutput()
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("applying the add-ons: %w: %s", err, out)
	}
	return nil
}

// endPods is the same as k1s does when it is stopped with its pods.
func endPods(in component.Input) {
	cmd := exec.Command(path.Join(in.Payload, components.Program), "stop-pods", "--endpoint="+components.RuntimeEndpoint(in))
	cmd.Env = append(os.Environ(), "PATH="+in.Payload+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "error: ending the pods: %v: %s\n", err, out)
	}
}
