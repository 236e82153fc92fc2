// Package clustercmd is `k1s cluster`: making, using and removing clusters on this machine. It parses and
// prints; the work is done by package cluster and a provider. Used by cmd/k1s by way of cli.
package clustercmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/image"
	"k1s.io/k1s/internal/iostreams"
	"k1s.io/k1s/internal/kubeconfig"
)

// Deps are what the commands get from the program. Only Provider is needed.
type Deps struct {
	// Provider makes clusters.
	Provider cluster.Provider
	// Internal is what the hidden sub-commands do with which a provider starts processes of its own; args[0]
	// is the sub-command's name.
	Internal func(ctx context.Context, args []string) error
	// Ready asks a node once whether it is ready for work; nil asks its control socket.
	Ready func(ctx context.Context, n cluster.Node) error
	// Token asks a server once for a token for nodes of a role; nil asks its control socket.
	Token func(ctx context.Context, n cluster.Node, role cluster.Role) (string, error)
	// Forget takes a node out of the cluster through a server; nil asks its control socket.
	Forget func(ctx context.Context, server cluster.Node, name string) error
	// Images asks a node once which of its bundles are imported; nil reads its report.
	Images func(ctx context.Context, n cluster.Node) ([]image.Bundle, error)
	// ProgramVersion checks that a file is a k1s and tells its version; nil asks it.
	ProgramVersion func(ctx context.Context, file string) (string, error)
	// Kubectl runs kubectl with a kubeconfig file; nil runs `k1s kubectl`.
	Kubectl func(ctx context.Context, kubeconfig string, args []string) error
	// Environ is the environment; nil is that of the process.
	Environ func() []string
}

func (d Deps) getenv(name string) string {
	environ := os.Environ
	if d.Environ != nil {
		environ = d.Environ
	}
	value := ""
	for _, kv := range environ() {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			value = v
		}
	}
	return value
}

// env is what every command works with.
type env struct {
	deps    Deps
	streams iostreams.Streams
}

func (e env) manager(withKubeconfig bool) cluster.Manager {
	m := cluster.Manager{Provider: e.deps.Provider, Ready: e.deps.Ready, Token: e.deps.Token, Forget: e.deps.Forget, Images: e.deps.Images, Progress: newProgress(e.streams.ErrOut)}
	if m.Ready == nil {
		m.Ready = askNode
	}
	if m.Forget == nil {
		m.Forget = forget
	}
	if m.Token == nil {
		m.Token = askToken
	}
	if m.Images == nil {
		m.Images = readImages
	}
	if withKubeconfig {
		m.Kubeconfigs = kubeconfig.Files(e.deps.getenv, e.deps.getenv("HOME"))
	}
	return m
}

// New builds the command.
func New(streams iostreams.Streams, deps Deps) *cobra.Command {
	e := env{deps: deps, streams: streams}
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "Make and remove clusters on this machine",
		Long: "A cluster made here lives in namespaces of its own on this machine. The machine's network is not\n" +
			"touched: the Kubernetes API and published ports appear on 127.0.0.1 only, unless another address is given,\n" +
			"pods reach the outside only with --egress, and deleting the cluster leaves nothing.",
		Example: "  k1s cluster create dev --agents 2 --publish 8080:30080\n" +
			"  k1s cluster image load dev app.tar\n" +
			"  k1s cluster ls -o wide\n" +
			"  k1s cluster delete dev",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newCreateCmd(e), newLsCmd(e), newStartCmd(e), newStopCmd(e), newDeleteCmd(e),
		newKubeconfigCmd(e), newKubectlCmd(e), newExecCmd(e), newNodeCmd(e), newNetCmd(e),
		newImageCmd(e), newLogsCmd(e), newConfigCmd(e),
	)
	for _, name := range []string{"__switch", "__node", "__exec"} {
		cmd.AddCommand(&cobra.Command{
			Use: name, Hidden: true, DisableFlagParsing: true,
			RunE: func(cmd *cobra.Command, args []string) error {
				if deps.Internal == nil {
					return errs.As(errs.Unsupported, errors.ErrUnsupported)
				}
				return deps.Internal(cmd.Context(), append([]string{name}, args...))
			},
		})
	}
	return cmd
}

func usage(format string, args ...any) error {
	return errs.Hint(errs.New(errs.Usage, format, args...), "see: k1s cluster --help")
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage("%s takes no argument, got %q", cmd.CommandPath(), args[0])
	}
	return nil
}

// atMostName accepts one optional name of a cluster.
func atMostName(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usage("%s takes one name, got %q too", cmd.CommandPath(), args[1])
	}
	return cluster.ValidateName(nameOf(args))
}

func nameOf(args []string) string {
	if len(args) == 0 {
		return cluster.DefaultName
	}
	return args[0]
}

// completeName offers the names of clusters.
func completeName(e env) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		names, err := e.deps.Provider.Clusters(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// runKubectl is the default of Deps.Kubectl: this program's own kubectl.
func (e env) runKubectl(ctx context.Context, kubeconfig string, args []string) error {
	if e.deps.Kubectl != nil {
		return e.deps.Kubectl(ctx, kubeconfig, args)
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program's own file: %w", err)
	}
	cmd := exec.CommandContext(ctx, exe, append([]string{"kubectl"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = e.streams.In, e.streams.Out, e.streams.ErrOut
	return cmd.Run()
}

// confirm asks before something is destroyed; without a terminal only --yes will do.
func (e env) confirm(ctx context.Context, question string, yes bool) error {
	if yes {
		return nil
	}
	if !iostreams.IsTerminal(e.streams.In) || !iostreams.IsTerminal(e.streams.ErrOut) {
		return errs.Hint(errs.New(errs.Usage, "%s needs a confirmation, and there is no terminal to ask on", question), "add --yes, or look first with --dry-run")
	}
	answer, err := iostreams.Ask(ctx, e.streams, question+"? [y/N] ")
	if err != nil && ctx.Err() == nil {
		return err
	}
	if a := strings.ToLower(answer); a != "y" && a != "yes" {
		return errs.New(errs.Interrupted, "nothing was done")
	}
	return nil
}
