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
	"k1s.io/k1s/internal/paths"
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
	before, err := c.Status(ctx)
	if err == nil {
		err = c.Stop(ctx, control.StopRequest{Pods: o.pods})
	}
	switch {
	case errs.Is(err, errs.NotRunning):
		return stopLeftovers(ctx, o, err)
	case err != nil:
		return err
	}
	again := false
	err = wait.Until(ctx, 100*time.Millisecond, "the node to stop", func(ctx context.Context) error {
		s, err := c.Status(ctx)
		switch {
		case errs.Is(err, errs.NotRunning):
			return daemonEnded(ctx, o.deps.Paths())
		case err != nil:
			return err
		case s.PID != before.PID:
			again = true
			return nil
		}
		return errors.New(whyNotStopped(s))
	})
	if err != nil {
		return err
	}
	if again {
		fmt.Fprintln(o.deps.Streams.ErrOut, "stopped; something, its init system perhaps, has started it again")
		return nil
	}
	if left := daemon.PodsLeft(o.deps.Paths()); o.pods && left != nil {
		fmt.Fprintf(o.deps.Streams.ErrOut, "the node has stopped, but not all of its pods (%v); trying once more\n", left)
		do, err := daemonOptions(o.deps, nil)
		if err == nil {
			_, err = daemon.StopLeftovers(ctx, do, true)
		}
		if err != nil {
			return errs.Hint(fmt.Errorf("the node has stopped, and ending its pods did not succeed: %w", err), "run again, with more time: k1s stop --pods --timeout 10m")
		}
	}
	fmt.Fprintln(o.deps.Streams.ErrOut, whatNow(o))
	return nil
}

// daemonEnded tells whether the daemon has let go of the data directory, which it does a moment after its socket
// is gone: whoever starts the node next must not meet it.
func daemonEnded(ctx context.Context, p paths.Paths) error {
	ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	unlock, err := durable.Lock(ctx, p.Lock())
	if err != nil {
		return fmt.Errorf("its daemon is ending: %w", err)
	}
	unlock()
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
