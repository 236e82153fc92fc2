package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/daemon"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/printer"
)

type checkOptions struct {
	deps   Deps
	flags  *config.Flags
	format printer.Format
}

func newCheckCmd(deps Deps, runF func(context.Context, checkOptions) error) *cobra.Command {
	o := checkOptions{deps: deps, format: printer.Table}
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check whether this machine can be a node, each finding with a remedy",
		Long: "Looks at kernel, cgroups, ports, disk, memory, clock, firewall and leftovers of other installations.\n" +
			"Nothing is changed. The exit code is 4 when something keeps a node from starting.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	o.flags = config.RegisterFlags(cmd.Flags(), deps.Paths().ConfigFile())
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	cmd.SetUsageFunc(groupedUsage(cmd.UsageFunc()))
	return cmd
}

func runCheck(ctx context.Context, o checkOptions) error {
	do, err := daemonOptions(o.deps, o.flags)
	if err != nil {
		return err
	}
	problems, err := daemon.Check(ctx, do)
	if err != nil {
		return err
	}
	if problems == nil {
		problems = []health.Problem{} // JSON readers expect a list
	}
	err = printer.Print(o.deps.Streams.Out, o.format, problems, func(w io.Writer) error {
		if len(problems) == 0 {
			_, err := fmt.Fprintln(w, "nothing found: this machine can be a node")
			return err
		}
		return printProblems(w, problems)
	})
	if err != nil {
		return err
	}
	if len(health.Blocking(problems)) > 0 {
		return errs.New(errs.Unsupported, "this machine cannot be a node as it is")
	}
	return nil
}
