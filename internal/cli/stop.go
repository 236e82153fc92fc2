package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/daemon"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/wait"
)

type stopOptions struct {
	deps    Deps
	pods    bool
	timeout time.Duration
}

func newStopCmd(deps Deps, runF func(context.Context, stopOptions) error) *cobra.Command {
	o := stopOptions{deps: deps}
	cmd := &cobra.Command{
		Use:   "stop",
		Short: "Stop the node; pods keep running unless --pods is given",
		Long: "Stops all components in order. Pods keep running, and the next start finds them; with --pods they are\n" +
			"ended too. It also stops what a daemon that was killed has left.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().BoolVar(&o.pods, "pods", false, "end the pods too")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 2*time.Minute, "how long it may take")
	return cmd
}

func runStop(ctx context.Context, o stopOptions) error {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("not stopped within %s", o.timeout))
	defer cancel()
	c := control.NewClient(o.deps.Paths().ControlSocket())
	err := c.Stop(ctx, control.StopRequest{Pods: o.pods})
	switch {
	case errs.Is(err, errs.NotRunning):
		return stopLeftovers(ctx, o, err)
	case err != nil:
		return err
	}
	err = wait.Until(ctx, 100*time.Millisecond, "the node to stop", func(ctx context.Context) error {
		s, err := c.Status(ctx)
		if errs.Is(err, errs.NotRunning) {
			return nil
		}
		if err != nil {
			return err
		}
		return errors.New(whyNotStopped(s))
	})
	if err != nil {
		return err
	}
	// It holds its lock a moment longer than its socket; whoever starts the node next must not meet it.
	unlock, err := durable.Lock(ctx, o.deps.Paths().Lock())
	if err != nil {
		return fmt.Errorf("waiting for the daemon to end: %w", err)
	}
	unlock()
	fmt.Fprintln(o.deps.Streams.ErrOut, whatNow(o))
	return nil
}

// whatNow says what is left and how to go on.
func whatNow(o stopOptions) string {
	out := "stopped"
	if !o.pods {
		out += "; pods run on"
	}
	if cluster := sandbox(o.deps); cluster != "" {
		out += "; to start it again, run outside of this node: k1s cluster start " + cluster
	}
	return out
}

func whyNotStopped(s control.Status) string {
	for _, c := range s.Components {
		if c.State != "stopped" {
			return fmt.Sprintf("%s is %s", c.Name, c.State)
		}
	}
	return s.Doing
}

// stopLeftovers stops what a killed daemon has left; with nothing left the node was not running at all.
func stopLeftovers(ctx context.Context, o stopOptions, notRunning error) error {
	do, err := daemonOptions(o.deps, nil)
	if err != nil {
		return err
	}
	n, err := daemon.StopLeftovers(ctx, do, o.pods)
	switch {
	case errs.Is(err, errs.NotRunning):
		return notRunning
	case err != nil:
		return err
	case n == 0:
		fmt.Fprintln(o.deps.Streams.ErrOut, "k1s was not running; its pods are ended")
		return nil
	}
	fmt.Fprintf(o.deps.Streams.ErrOut, "stopped %d processes a killed daemon had left\n", n)
	return nil
}
