package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/printer"
	"k1s.io/k1s/internal/wait"
)

type statusOptions struct {
	deps   Deps
	format printer.Format
	wait   time.Duration
}

func newStatusCmd(deps Deps, runF func(context.Context, statusOptions) error) *cobra.Command {
	o := statusOptions{deps: deps, format: printer.Table}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the node: components, what each waits for, pods, problems",
		Long: "Shows what the node knows about itself. The exit code is 0 when it runs (degraded or not), 3 when it\n" +
			"does not run, and with --wait 5 when it is not ready in time.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	cmd.Flags().DurationVar(&o.wait, "wait", 0, "wait this long until the node is running")
	return cmd
}

func runStatus(ctx context.Context, o statusOptions) error {
	c := control.NewClient(o.deps.Paths().ControlSocket())
	var s control.Status
	ask := func(ctx context.Context) (err error) {
		s, err = c.Status(ctx)
		return err
	}
	if o.wait == 0 {
		if err := ask(ctx); err != nil {
			return err
		}
	} else {
		waitCtx, cancel := context.WithTimeout(ctx, o.wait)
		defer cancel()
		err := wait.Until(waitCtx, 200*time.Millisecond, "the node to be running", func(ctx context.Context) error {
			if err := ask(ctx); err != nil {
				return err
			}
			if s.State != control.Running {
				return fmt.Errorf("it is %s: %s", s.State, whyNot(s))
			}
			return nil
		})
		if err != nil {
			return errs.Hint(err, "run: k1s status")
		}
	}
	return printer.Print(o.deps.Streams.Out, o.format, s, func(w io.Writer) error {
		return printStatus(w, s, o.format == printer.Wide, time.Now())
	})
}

// whyNot is the most telling reason a node is not running.
func whyNot(s control.Status) string {
	for _, c := range s.Components {
		if c.State != "ready" {
			return strings.TrimSpace(c.Name + " is " + c.State + " " + c.Note)
		}
	}
	if s.Node != nil && !s.Node.Ready {
		return "node not Ready: " + s.Node.Reason
	}
	return s.Doing
}

func printStatus(w io.Writer, s control.Status, wide bool, now time.Time) error {
	line := func(key, format string, a ...any) { fmt.Fprintf(w, "%-12s%s\n", key, fmt.Sprintf(format, a...)) }
	state := string(s.State)
	if s.Doing != "" {
		state += ", " + s.Doing
	}
	line("k1s", "%s, for %s (%s, Kubernetes %s, pid %d)", state, printer.Age(now.Sub(s.Since)), s.Version, s.Kubernetes, s.PID)
	if u := s.Upgrade; u != nil {
		line("upgrade", "%s, from %s to %s", u.Phase, u.From, u.To)
	}
	line("cluster", "%s at %s", s.Cluster, s.Server)
	if n := s.Node; n != nil {
		ready := "Ready"
		if !n.Ready {
			ready = "not Ready: " + n.Reason
		}
		line("node", "%s (%s) %s", n.Name, n.IP, ready)
		if s.DNS != nil && !s.DNS.Answers {
			line("dns", "%s does not answer: %s", s.DNS.Address, s.DNS.Reason)
		}
		line("pods", "%d of %d ready", n.Pods.Ready, n.Pods.Total)
		for _, p := range n.Pods.NotReady {
			line("", "not ready: %s", p)
		}
	}
	if t := s.Tunnels; t != nil {
		line("tunnels", "%s", tunnelsLine(*t))
	}
	fmt.Fprintln(w)

	header := []string{"COMPONENT", "STATE", "FOR", "RESTARTS", "NOTE"}
	separate := slices.ContainsFunc(s.Components, func(c control.Component) bool { return c.UID != 0 })
	if wide {
		header = []string{"COMPONENT", "STATE", "FOR", "RESTARTS", "PID", "PROCESS", "LAST EXIT", "LOG", "NOTE"}
		if separate {
			header = slices.Insert(header, 5, "USER")
		}
	}
	var rows [][]string
	for _, c := range s.Components {
		row := []string{c.Name, c.State, printer.Age(now.Sub(c.Since)), strconv.Itoa(c.Restarts)}
		if wide {
			row = append(row, strconv.Itoa(c.PID))
			if separate {
				row = append(row, user(c.UID))
			}
			row = append(row, c.Unit, c.LastExit, c.Log)
		}
		rows = append(rows, append(row, c.Note))
	}
	if err := printer.Columns(w, header, rows); err != nil {
		return err
	}
	if len(s.Addons) > 0 {
		fmt.Fprintln(w)
		rows = nil
		for _, a := range s.Addons {
			rows = append(rows, []string{a.Name, a.State, a.Note})
		}
		if err := printer.Columns(w, []string{"MANIFESTS", "STATE", "NOTE"}, rows); err != nil {
			return err
		}
	}
	if len(s.Problems) > 0 {
		fmt.Fprintln(w)
		return printProblems(w, s.Problems)
	}
	return nil
}

// user is a user as people say it; those of components need no names on the machine.
func user(uid int) string {
	if uid == 0 {
		return "root"
	}
	return strconv.Itoa(uid)
}

// tunnelsLine counts tunnels: of a server its nodes, of an agent its servers.
func tunnelsLine(t control.Tunnels) string {
	if len(t.Servers) == 0 {
		if len(t.Nodes) == 1 {
			return "to 1 node"
		}
		return fmt.Sprintf("to %d nodes", len(t.Nodes))
	}
	connected := 0
	for _, s := range t.Servers {
		if s.Connected {
			connected++
		}
	}
	return fmt.Sprintf("to %d of %d servers", connected, len(t.Servers))
}
