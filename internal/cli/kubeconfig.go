package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/kubeconfig"
)

func newKubeconfigCmd(deps Deps) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print, merge or export the administrator's kubeconfig",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKubeconfigPrintCmd(deps), newKubeconfigMergeCmd(deps), newKubeconfigExportCmd(deps))
	return cmd
}

func newKubeconfigPrintCmd(deps Deps) *cobra.Command {
	return &cobra.Command{
		Use: "print", Short: "Print it as it is", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			raw, err := readAdmin(deps)
			if err != nil {
				return err
			}
			_, err = deps.Streams.Out.Write(raw)
			return err
		},
	}
}

// isAgent tells that this machine has joined a cluster as an agent.
func isAgent(deps Deps) bool {
	_, err := os.Stat(deps.Paths().Agent())
	return err == nil
}

func readAdmin(deps Deps) ([]byte, error) {
	file := deps.Paths().AdminKubeconfig()
	raw, err := os.ReadFile(file)
	switch {
	case os.IsNotExist(err) && isAgent(deps):
		return nil, errs.Hint(errs.New(errs.Unsupported, "this node is an agent: it has no rights in its cluster but its own"),
			"run it on a server; or bring an administrator's kubeconfig of the cluster, which works here too, at https://127.0.0.1 and the API's port")
	case os.IsNotExist(err):
		return nil, errs.Hint(errs.New(errs.NotRunning, "there is no kubeconfig yet: this node has never started (%s)", file), "run: k1s server")
	case os.IsPermission(err):
		return nil, errs.Hint(fmt.Errorf("reading the kubeconfig: %w", err), "run it as root, or set spec.kubeconfig.group")
	case err != nil:
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	return raw, nil
}

type mergeOptions struct {
	deps    Deps
	file    string
	name    string
	server  string
	current bool
}

func newKubeconfigMergeCmd(deps Deps) *cobra.Command {
	o := mergeOptions{deps: deps}
	cmd := &cobra.Command{
		Use:   "merge",
		Short: "Add this cluster to your own kubeconfig",
		Long: "Adds cluster, user and context to $KUBECONFIG or ~/.kube/config; everything else in it stays as it is.\n" +
			"An entry of the same name that is somebody else's is never overwritten.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runKubeconfigMerge(cmd.Context(), o) },
	}
	cmd.Flags().StringVar(&o.file, "file", "", "merge into this file instead")
	cmd.Flags().StringVar(&o.name, "name", "", "name of the context instead of the cluster's")
	cmd.Flags().StringVar(&o.server, "server", "", "address of the API, e.g. https://node.example:6443")
	cmd.Flags().BoolVar(&o.current, "use", true, "make it the current context")
	return cmd
}

func runKubeconfigMerge(ctx context.Context, o mergeOptions) error {
	if _, err := readAdmin(o.deps); err != nil {
		return err
	}
	c, err := kubeconfig.Load(o.deps.Paths().AdminKubeconfig())
	if err != nil {
		return err
	}
	if o.name != "" {
		c.Name = o.name
	}
	if o.server != "" {
		c.Server = o.server
	}
	files, err := userKubeconfigs(o.deps, o.file)
	if err != nil {
		return err
	}
	changed, err := kubeconfig.Merge(ctx, files, c, kubeconfig.MergeOptions{SetCurrent: o.current})
	if err != nil {
		return err
	}
	what := "is up to date"
	if changed {
		what = "written"
	}
	fmt.Fprintf(o.deps.Streams.ErrOut, "context %q %s in %s\n", c.Name, what, files[0])
	return nil
}

func userKubeconfigs(deps Deps, file string) ([]string, error) {
	if file != "" {
		return []string{file}, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, errs.Hint(fmt.Errorf("finding your kubeconfig: %w", err), "name it with --file")
	}
	env := deps.Environ()
	return kubeconfig.Files(func(k string) string { return lookup(env, k) }, home), nil
}

type exportOptions struct {
	deps   Deps
	server string
	name   string
	output string
}

func newKubeconfigExportCmd(deps Deps) *cobra.Command {
	o := exportOptions{deps: deps}
	cmd := &cobra.Command{
		Use:     "export",
		Short:   "Write a self-contained kubeconfig for use elsewhere",
		Example: "  k1s kubeconfig export --server https://203.0.113.7:6443 --name edge > edge.kubeconfig",
		Args:    noArgs,
		RunE:    func(*cobra.Command, []string) error { return runKubeconfigExport(o) },
	}
	cmd.Flags().StringVar(&o.server, "server", "", "address under which the API is reached from there")
	cmd.Flags().StringVar(&o.name, "name", "", "name of the context")
	cmd.Flags().StringVar(&o.output, "file", "", "write to this new file (mode 0600) instead of standard output")
	return cmd
}

func runKubeconfigExport(o exportOptions) error {
	raw, err := readAdmin(o.deps)
	if err != nil {
		return err
	}
	out, err := kubeconfig.Export(raw, kubeconfig.ExportOptions{Server: o.server, Name: o.name})
	if err != nil {
		return err
	}
	if o.output == "" {
		_, err = o.deps.Streams.Out.Write(out)
		return err
	}
	f, err := os.OpenFile(o.output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if os.IsExist(err) {
		return errs.Hint(errs.New(errs.Exists, "%s exists, and nothing is overwritten", o.output), "choose another name")
	}
	if err != nil {
		return fmt.Errorf("writing the kubeconfig: %w", err)
	}
	if _, err := f.Write(out); err != nil {
		return fmt.Errorf("writing %s: %w", o.output, err)
	}
	return f.Close()
}
