package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/daemon"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/iostreams"
	"k1s.io/k1s/internal/step"
)

type resetOptions struct {
	deps   Deps
	dryRun bool
	yes    bool
	force  bool
}

func newResetCmd(deps Deps, runF func(context.Context, resetOptions) error) *cobra.Command {
	o := resetOptions{deps: deps}
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Remove the node and all its data; the configuration file stays",
		Long: "Ends all pods and components and removes everything k1s has made on this machine: data, volumes,\n" +
			"mounts, links, firewall tables and cgroups. Files you wrote in the configuration directory stay. A server of\n" +
			"several leaves the others first.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "print what would be done")
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&o.force, "force", false, "also when the other servers of the cluster cannot be told")
	return cmd
}

func runReset(ctx context.Context, o resetOptions) error {
	do, err := daemonOptions(o.deps, nil)
	if err != nil {
		// A broken configuration must not keep anybody from getting rid of it.
		if do, err = defaultDaemonOptions(o.deps); err != nil {
			return err
		}
	}
	steps := daemon.ResetSteps(do, o.force)
	if o.dryRun {
		step.Print(o.deps.Streams.Out, steps)
		return nil
	}
	if !o.yes {
		if err := confirm(ctx, o.deps.Streams, "Remove this node and all its data, volumes included?"); err != nil {
			return err
		}
	}
	err = step.RunAll(ctx, steps, func(name string) { fmt.Fprintln(o.deps.Streams.ErrOut, name) })
	if hint, _ := errs.HintOf(err); err != nil && hint == "" {
		return errs.Hint(err, "mend what is named and run k1s reset again: it goes on where it failed")
	}
	return err
}

// confirm asks on a terminal and refuses elsewhere.
func confirm(ctx context.Context, s iostreams.Streams, question string) error {
	if !iostreams.IsTerminal(s.In) {
		return errs.Hint(errs.New(errs.Usage, "this cannot be undone, and there is no terminal to ask on"), "add --yes, or look first with --dry-run")
	}
	line, err := iostreams.Ask(ctx, s, question+" [y/N] ")
	if err != nil && ctx.Err() == nil {
		return err
	}
	if a := strings.ToLower(line); a != "y" && a != "yes" {
		return errs.New(errs.Interrupted, "nothing was done")
	}
	return nil
}
