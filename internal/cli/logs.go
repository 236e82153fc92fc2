package cli

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/unitlog"
)

type logsOptions struct {
	deps      Deps
	component string
	control.LogOptions
}

func newLogsCmd(deps Deps, runF func(context.Context, logsOptions) error) *cobra.Command {
	o := logsOptions{deps: deps}
	cmd := &cobra.Command{
		Use:   "logs COMPONENT",
		Short: "Show the log of a component",
		Long:  "Shows the log of a component. Components that share a process (see --isolation) share its log.",
		Args:  exactArgs(1, "the name of one component"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return components.Names(), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.component = args[0]
			return runF(cmd.Context(), o)
		},
	}
	cmd.Flags().BoolVarP(&o.Follow, "follow", "f", false, "go on until interrupted")
	cmd.Flags().IntVarP(&o.Lines, "lines", "n", 200, "how many of the last lines")
	return cmd
}

func runLogs(ctx context.Context, o logsOptions) error {
	err := control.NewClient(o.deps.Paths().ControlSocket()).Logs(ctx, o.component, o.LogOptions, o.deps.Streams.Out)
	if o.Follow && errors.Is(err, context.Canceled) {
		return nil // that is how following ends
	}
	if errs.Is(err, errs.NotRunning) {
		return logsOffline(ctx, o, err)
	}
	return err
}

// logsOffline reads the file of a unit called like the component or like its group, because the log of a
// node that does not run is what one wants most.
func logsOffline(ctx context.Context, o logsOptions, notRunning error) error {
	if !slices.Contains(components.Names(), o.component) && !slices.Contains(components.Groups(), o.component) {
		return errs.Hint(errs.New(errs.NotFound, "there is no component %q", o.component), "components: %s", strings.Join(components.Names(), ", "))
	}
	for _, unit := range components.UnitNames(o.component) {
		file := o.deps.Paths().Log(unit)
		if _, err := os.Stat(file); err != nil {
			continue
		}
		if o.Follow {
			return unitlog.Follow(ctx, file, o.Lines, o.deps.Streams.Out)
		}
		lines, err := unitlog.Tail(file, o.Lines)
		if err != nil {
			return err
		}
		for _, l := range lines {
			if _, err := o.deps.Streams.Out.Write([]byte(l + "\n")); err != nil {
				return err
			}
		}
		return nil
	}
	return notRunning
}
