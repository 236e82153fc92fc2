package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
)

func newNodeCmd(deps Deps) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Manage the nodes of this cluster",
	}
	cmd.AddCommand(newNodeRemoveCmd(deps, runNodeRemove))
	return cmd
}

type nodeRemoveOptions struct {
	deps   Deps
	name   string
	dryRun bool
	yes    bool
}

func newNodeRemoveCmd(deps Deps, runF func(context.Context, nodeRemoveOptions) error) *cobra.Command {
	o := nodeRemoveOptions{deps: deps}
	cmd := &cobra.Command{
		Use: "remove NAME", Aliases: []string{"rm"}, Short: "Take a node out of the cluster, and free its name",
		Long: "Removes the node and what the cluster knows of the machine behind it: it can no longer renew its certificates,\n" +
			"and another machine may join under its name. Move its pods away first (k1s kubectl drain NAME), and give up\n" +
			"what is on the machine (k1s reset, there). A machine that is not reset works until its certificates end, at\n" +
			"most 30 days, and shows up again.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errs.Hint(errs.New(errs.Usage, "say which node to remove"), "see: k1s kubectl get nodes")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			return runF(cmd.Context(), o)
		},
	}
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "print what would be done")
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	return cmd
}

func runNodeRemove(ctx context.Context, o nodeRemoveOptions) error {
	c := control.NewClient(o.deps.Paths().ControlSocket())
	if o.dryRun {
		plan, err := c.NodeRemoval(ctx, o.name)
		if err != nil {
			return err
		}
		for _, s := range plan.Steps {
			fmt.Fprintf(o.deps.Streams.Out, "would %s\n", s)
		}
		return nil
	}
	if !o.yes {
		if err := confirm(ctx, o.deps.Streams, "Remove node "+o.name+" from the cluster?"); err != nil {
			return err
		}
	}
	if err := c.RemoveNode(ctx, o.name); err != nil {
		return err
	}
	fmt.Fprintf(o.deps.Streams.ErrOut, "node %s is removed\n", o.name)
	return nil
}
