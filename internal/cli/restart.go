package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/control"
)

type restartOptions struct {
	deps      Deps
	component string
}

func newRestartCmd(deps Deps, runF func(context.Context, restartOptions) error) *cobra.Command {
	o := restartOptions{deps: deps}
	return &cobra.Command{
		Use:   "restart COMPONENT",
		Short: "Restart a component, with those that share its process",
		Args:  exactArgs(1, "the name of one component"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return components.Names(), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.component = args[0]
			return runF(cmd.Context(), o)
		},
	}
}

func runRestart(ctx context.Context, o restartOptions) error {
	if err := control.NewClient(o.deps.Paths().ControlSocket()).Restart(ctx, o.component); err != nil {
		return err
	}
	fmt.Fprintf(o.deps.Streams.ErrOut, "restarting %s\n", o.component)
	return nil
}
