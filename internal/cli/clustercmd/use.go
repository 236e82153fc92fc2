package clustercmd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/kubeconfig"
)

func newKubeconfigCmd(e env) *cobra.Command {
	print := func(cmd *cobra.Command, args []string) error {
		return runKubeconfigPrint(cmd.Context(), e, nameOf(args))
	}
	cmd := &cobra.Command{
		Use: "kubeconfig [NAME]", Short: "Print a cluster's kubeconfig, or merge it into yours", Args: atMostName,
		ValidArgsFunction: completeName(e),
		RunE:              print,
	}
	cmd.AddCommand(&cobra.Command{
		Use: "print [NAME]", Short: "Print a cluster's kubeconfig", Args: atMostName, ValidArgsFunction: completeName(e), RunE: print,
	}, newKubeconfigMergeCmd(e))
	return cmd
}

func runKubeconfigPrint(ctx context.Context, e env, name string) error {
	m := e.manager(false)
	m.Progress = nil
	c, err := m.Kubeconfig(ctx, name)
	if err != nil {
		return cluster.Missing(err)
	}
	raw, err := kubeconfig.Build(c)
	if err == nil {
		_, err = e.streams.Out.Write(raw)
	}
	return err
}

func newKubeconfigMergeCmd(e env) *cobra.Command {
	file, noSwitch := "", false
	cmd := &cobra.Command{
		Use: "merge [NAME]", Short: "Add a cluster's context to your kubeconfig", Args: atMostName,
		Long: "Adds cluster, user and context to $KUBECONFIG or ~/.kube/config, as create does; everything else in it stays as\n" +
			"it is. An entry of the same name that is somebody else's is never overwritten.",
		ValidArgsFunction: completeName(e),
		RunE: func(cmd *cobra.Command, args []string) error {
			m := e.manager(true)
			m.Progress, m.KeepContext = nil, noSwitch
			if file != "" {
				m.Kubeconfigs = []string{file}
			}
			if len(m.Kubeconfigs) == 0 {
				return errs.Hint(errs.New(errs.Usage, "there is neither KUBECONFIG nor HOME: no kubeconfig to merge into"), "name it with --file")
			}
			context, changed, err := m.MergeKubeconfig(cmd.Context(), nameOf(args))
			if err != nil {
				return err
			}
			what := "is up to date"
			if changed {
				what = "written"
			}
			return e.tell(nil, fmt.Sprintf("context %s %s in %s", context, what, m.Kubeconfigs[0]))
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "merge into this file instead")
	cmd.Flags().BoolVar(&noSwitch, "no-switch", false, "leave the current context")
	return cmd
}

func newKubectlCmd(e env) *cobra.Command {
	return &cobra.Command{
		Use: "kubectl [NAME] -- ARG…", Short: "Run kubectl for a cluster, whatever the current context is",
		Example:           "  k1s cluster kubectl -- get nodes\n  k1s cluster kubectl dev -- apply -f app.yaml",
		ValidArgsFunction: completeName(e),
		Args:              func(cmd *cobra.Command, args []string) error { return splitAtDash(cmd, args, 1, nil) },
		RunE: func(cmd *cobra.Command, args []string) error {
			var s split
			if err := splitAtDash(cmd, args, 1, &s); err != nil {
				return err
			}
			return runKubectl(cmd.Context(), e, nameOf(s.before), s.after)
		},
	}
}

// split are the arguments on both sides of --.
type split struct{ before, after []string }

// splitAtDash separates a command's own arguments, at most n and the first a cluster's name, from those
// behind --.
func splitAtDash(cmd *cobra.Command, args []string, n int, out *split) error {
	at := cmd.ArgsLenAtDash()
	if at < 0 {
		return errs.Hint(errs.New(errs.Usage, "%s: put -- before what is to run", cmd.CommandPath()), "write: %s", strings.TrimSuffix(cmd.UseLine(), " [flags]"))
	}
	if at > n {
		return usage("%s takes at most %d names before --, got %d", cmd.CommandPath(), n, at)
	}
	if out != nil {
		out.before, out.after = args[:at], args[at:]
	}
	return cluster.ValidateName(nameOf(args[:at]))
}

func runKubectl(ctx context.Context, e env, name string, args []string) error {
	m := e.manager(false)
	m.Progress = nil
	st, err := m.Provider.Describe(ctx, name)
	if err != nil {
		return cluster.Missing(err)
	}
	if st.State == cluster.Stopped {
		return errs.Hint(errs.New(errs.NotRunning, "cluster %q is stopped", name), "run: k1s cluster start %s", name)
	}
	c, err := m.Kubeconfig(ctx, name)
	if err != nil {
		return err
	}
	if f, ok := m.Provider.(cluster.Files); ok && f.KubeconfigFile(name) != "" {
		file := f.KubeconfigFile(name)
		if err := kubeconfig.WriteFile(file, c); err != nil {
			return err
		}
		return e.runKubectl(ctx, file, args)
	}
	dir, err := os.MkdirTemp("", "k1s-kubectl-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "kubeconfig")
	if err := kubeconfig.WriteFile(file, c); err != nil {
		return err
	}
	return e.runKubectl(ctx, file, args)
}

func newExecCmd(e env) *cobra.Command {
	return &cobra.Command{
		Use: "exec [NAME [NODE]] -- COMMAND [ARG…]", Short: "Run a command in a node of a cluster",
		Example:           "  k1s cluster exec -- k1s status\n  k1s cluster exec dev server-0 -- sh",
		ValidArgsFunction: completeName(e),
		Args:              func(cmd *cobra.Command, args []string) error { return splitAtDash(cmd, args, 2, nil) },
		RunE: func(cmd *cobra.Command, args []string) error {
			var s split
			if err := splitAtDash(cmd, args, 2, &s); err != nil {
				return err
			}
			if len(s.after) == 0 {
				return usage("%s: no command behind --", cmd.CommandPath())
			}
			node := ""
			if len(s.before) > 1 {
				node = s.before[1]
			}
			return runExec(cmd.Context(), e, nameOf(s.before), node, s.after)
		},
	}
}

func runExec(ctx context.Context, e env, name, node string, argv []string) error {
	x, ok := e.deps.Provider.(cluster.Executor)
	if !ok {
		return errs.New(errs.Unsupported, "commands cannot be run in the nodes of these clusters")
	}
	st, err := e.deps.Provider.Describe(ctx, name)
	if err != nil {
		return cluster.Missing(err)
	}
	if node == "" {
		node = cluster.NodeName(cluster.Server, 0)
	}
	if !slices.ContainsFunc(st.Nodes, func(n cluster.Node) bool { return n.Name == node }) {
		var names []string
		for _, n := range st.Nodes {
			names = append(names, n.Name)
		}
		return errs.Hint(errs.New(errs.NotFound, "cluster %q has no node %q", name, node), "its nodes: %s", strings.Join(names, ", "))
	}
	err = x.Exec(ctx, name, node, argv, cluster.Streams{In: e.streams.In, Out: e.streams.Out, ErrOut: e.streams.ErrOut})
	return errs.Ended(argv[0]+" in node "+node, err)
}
