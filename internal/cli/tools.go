package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/kubeconfig"
	"k1s.io/k1s/internal/payload"
	"k1s.io/k1s/internal/platform"
)

// tool is a client program of the payload, set up for this node.
type tool struct {
	name, short string
	// env are variables it needs to find this node; those the user has set stay.
	env func(Deps) map[string]string
	// offline are commands that need no node, and elsewhere flags that name another one or none.
	offline, elsewhere []string
	// node tells whether the node can be asked; the tool's own words about that help nobody.
	node func(context.Context, Deps) error
}

// asksNode tells whether a command line is for this node.
func (t tool) asksNode(d Deps, args []string) bool {
	for k := range t.env(d) {
		if lookup(d.Environ(), k) != "" {
			return false
		}
	}
	command := ""
	for _, a := range args {
		name, _, _ := strings.Cut(a, "=")
		switch {
		case a == "-h" || a == "--help" || a == "--version" || slices.Contains(t.elsewhere, name):
			return false
		case command == "" && !strings.HasPrefix(a, "-"):
			command = a
		}
	}
	return command != "" && command != "help" && command != "completion" && !slices.Contains(t.offline, command)
}

// runtimeAnswers tells whether this node's containerd can be asked.
func runtimeAnswers(ctx context.Context, d Deps) error {
	socket := d.Paths().ContainerdSocket()
	c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	switch {
	case err == nil:
		return c.Close()
	case errors.Is(err, os.ErrPermission):
		return errs.Hint(fmt.Errorf("asking containerd at %s: permission denied", socket), "run it as root")
	}
	if _, err := control.NewClient(d.Paths().ControlSocket()).Status(ctx); err == nil {
		return nil // it is starting; or somebody else's runtime is used
	}
	return errs.Hint(errs.New(errs.NotRunning, "k1s is not running (no containerd answers at %s)", socket), "run: k1s server")
}

func tools() []tool { return []tool{kubectl(), ctr(), crictl()} }

func kubectl() tool {
	return tool{
		name: "kubectl", short: "Kubernetes' client, for this node's cluster; where there is no node, for your kubeconfig's",
		env: func(d Deps) map[string]string {
			if usersKubeconfig(d) {
				return nil
			}
			return map[string]string{"KUBECONFIG": d.Paths().AdminKubeconfig()}
		},
		offline:   []string{"config", "kustomize", "options", "plugin", "version"},
		elsewhere: []string{"--kubeconfig", "--server", "-s"},
		node: func(_ context.Context, d Deps) error {
			if usersKubeconfig(d) {
				return nil
			}
			_, err := readAdmin(d)
			switch {
			case errs.Is(err, errs.NotRunning):
				return errs.Hint(err, "run: k1s server; for a cluster on this machine: k1s cluster kubectl NAME -- …")
			case errors.Is(err, os.ErrPermission):
				hint, _ := errs.HintOf(err)
				return errs.Hint(err, "%s; for another cluster name your own kubeconfig: KUBECONFIG=~/.kube/config k1s kubectl …", hint)
			}
			return err
		},
	}
}

// usersKubeconfig tells that kubectl is to read the user's kubeconfig, as it does by itself: there is one, and no node was
// ever started on this machine. Where one was, its kubeconfig is the only one that is taken without being named, also by who
// may not read it: what is meant for this node is never sent to another cluster.
func usersKubeconfig(d Deps) bool {
	// The lock is the first a daemon makes, and stays until reset; the keys come only after unpacking and preflight.
	for _, ours := range []string{d.Paths().Lock(), d.Paths().ControlSocket(), d.Paths().AdminKubeconfig(), d.Paths().PKI(), d.Paths().Agent()} {
		if there(ours) {
			return false
		}
	}
	getenv := func(name string) string { return lookup(d.Environ(), name) }
	return slices.ContainsFunc(kubeconfig.Files(getenv, getenv("HOME")), there)
}

// there tells that a file exists, or that this user may not know.
func there(file string) bool {
	_, err := os.Stat(file)
	return !errors.Is(err, os.ErrNotExist)
}

func ctr() tool {
	return tool{
		name: "ctr", short: "containerd's client, for this node",
		env: func(d Deps) map[string]string {
			return map[string]string{"CONTAINERD_ADDRESS": d.Paths().ContainerdSocket(), "CONTAINERD_NAMESPACE": "k8s.io"}
		},
		offline: []string{"oci", "plugins"}, elsewhere: []string{"--address", "-a"}, node: runtimeAnswers,
	}
}

func crictl() tool {
	return tool{
		name: "crictl", short: "client of the container runtime interface, for this node",
		env: func(d Deps) map[string]string {
			endpoint := "unix://" + d.Paths().ContainerdSocket()
			return map[string]string{"CONTAINER_RUNTIME_ENDPOINT": endpoint, "IMAGE_SERVICE_ENDPOINT": endpoint}
		},
		offline: []string{"config"}, elsewhere: []string{"--runtime-endpoint", "-r", "--config", "-c"}, node: runtimeAnswers,
	}
}

func newToolCmds(deps Deps) []*cobra.Command {
	var out []*cobra.Command
	for _, t := range tools() {
		out = append(out, &cobra.Command{
			Use: t.name, Short: t.short,
			DisableFlagParsing: true, // all of it is the tool's
			RunE: func(cmd *cobra.Command, args []string) error {
				return runTool(cmd.Context(), deps, t, args)
			},
		})
	}
	return out
}

func runTool(ctx context.Context, deps Deps, t tool, args []string) error {
	if t.asksNode(deps, args) {
		if err := t.node(ctx, deps); err != nil {
			return err
		}
	}
	program, err := payloadProgram(ctx, deps, components.Program)
	if err != nil {
		return err
	}
	env := deps.Environ()
	for k, v := range t.env(deps) {
		if lookup(env, k) == "" {
			env = append(env, k+"="+v)
		}
	}
	return become(ctx, deps, program, t.name, args, env)
}

// payloadProgram finds a program of the unpacked payload; only when it has never been unpacked this takes
// longer than a look-up.
func payloadProgram(ctx context.Context, deps Deps, name string) (string, error) {
	return payloadProgramIn(ctx, deps, deps.Paths().Payloads(), name)
}

func payloadProgramIn(ctx context.Context, deps Deps, root, name string) (string, error) {
	exe, err := deps.Executable()
	if err != nil {
		return "", fmt.Errorf("finding this program's own file: %w", err)
	}
	p, err := payload.Open(exe)
	if err != nil {
		return "", err
	}
	// The same payload is not unpacked a second time where clusters on this machine have it already.
	for _, unpacked := range []string{root, clusterProvider(deps).Payloads()} {
		if dir, err := payload.Dir(p, unpacked); err == nil {
			return path.Join(dir, name), nil
		}
	}
	r, err := payload.Unpack(ctx, p, root, platform.AvailableMemory())
	if errors.Is(err, os.ErrPermission) {
		// Not root, and no node has run here: unpack for this user alone.
		cache, cacheErr := os.UserCacheDir()
		if cacheErr != nil {
			return "", errs.Hint(err, "run it once as root")
		}
		r, err = payload.Unpack(ctx, p, path.Join(cache, "k1s", "payload"), platform.AvailableMemory())
	}
	if err != nil {
		return "", fmt.Errorf("unpacking %s: %w", name, err)
	}
	return path.Join(r.Dir, name), nil
}

// runProgram runs a program as a child and passes its exit code on.
func runProgram(ctx context.Context, deps Deps, program, argv0 string, args, env []string) error {
	cmd := exec.CommandContext(ctx, program)
	cmd.Args = append([]string{argv0}, args...)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = deps.Streams.In, deps.Streams.Out, deps.Streams.ErrOut
	err := cmd.Run()
	if cmd.ProcessState == nil { // it did not start
		return fmt.Errorf("running %s: %w", argv0, err)
	}
	return errs.Ended(argv0, err)
}

// calledAs finds the tool this program was started as, through a link named like it.
func calledAs(argv0 string) (string, bool) {
	base := argv0[strings.LastIndexByte(argv0, '/')+1:]
	i := slices.IndexFunc(tools(), func(t tool) bool { return t.name == base })
	return base, i >= 0
}
