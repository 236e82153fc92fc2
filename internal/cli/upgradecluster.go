package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/printer"
	"k1s.io/k1s/internal/upgrade/rollout"
)

// serverBack is how long this server may be silent in an upgrade of the cluster beside the time the new program has on it: it is fetched, and the
// node ends what it does.
const serverBack = 2 * time.Minute

type clusterUpgradeOptions struct {
	deps   Deps
	format printer.Format
	// action is what is done with the one there is; "" only shows it.
	action string
	follow bool
}

func newUpgradeStatusCmd(deps Deps, runF func(context.Context, clusterUpgradeOptions) error) *cobra.Command {
	o := clusterUpgradeOptions{deps: deps, format: printer.Table}
	cmd := &cobra.Command{
		Use: "status", Short: "Show how far the upgrade of the cluster is", Args: noArgs,
		Long: "Shows how far the upgrade of the cluster is that was begun with `k1s upgrade --cluster`, or how the last one ended. Any server can be asked.\nHow far this node alone is: k1s upgrade --status",
		RunE: func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	return cmd
}

func newUpgradeResumeCmd(deps Deps, runF func(context.Context, clusterUpgradeOptions) error) *cobra.Command {
	o := clusterUpgradeOptions{deps: deps, format: printer.Table, action: control.ResumeUpgrade, follow: true}
	cmd := &cobra.Command{
		Use: "resume", Short: "Go on with an upgrade of the cluster that has halted", Args: noArgs,
		Long: "Goes on with an upgrade of the cluster that has halted, when what was in the way is mended: the node that failed is told once more, and then\nthe others. The server that is asked leads from then on.",
		RunE: func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	return cmd
}

func newUpgradeAbortCmd(deps Deps, runF func(context.Context, clusterUpgradeOptions) error) *cobra.Command {
	o := clusterUpgradeOptions{deps: deps, format: printer.Table, action: control.AbortUpgrade, follow: true}
	cmd := &cobra.Command{
		Use: "abort", Short: "Call an upgrade of the cluster off", Args: noArgs,
		Long: "Begins with no other node. A node that is just going over comes to its end first. Those that went over stay as they are: to take one of them\nback, run there: k1s upgrade --file FILE.old --allow-older",
		RunE: func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	return cmd
}

func runClusterUpgrade(ctx context.Context, o clusterUpgradeOptions) error {
	c := control.NewClient(o.deps.Paths().ControlSocket())
	s := o.deps.Streams
	var u control.ClusterUpgrade
	var err error
	if o.action == "" {
		u, err = c.ClusterUpgrade(ctx)
	} else {
		u, err = c.UpgradeCluster(ctx, control.ClusterUpgradeRequest{Action: o.action})
	}
	if err != nil {
		return err
	}
	if o.follow {
		return followClusterUpgrade(ctx, o.deps, o.format, c, u)
	}
	return printer.Print(s.Out, o.format, u, func(w io.Writer) error { return printClusterUpgrade(w, u, time.Now()) })
}

// upgradeCluster begins with `k1s upgrade --cluster`.
func upgradeCluster(ctx context.Context, o upgradeOptions) error {
	file, err := filepath.Abs(o.file)
	if err != nil {
		return err
	}
	s := o.deps.Streams
	c := control.NewClient(o.deps.Paths().ControlSocket())
	req := control.ClusterUpgradeRequest{File: file, SHA256: o.sha256, AllowOlder: o.allowOlder, Timeout: o.timeout, Drain: o.drain, Parallel: o.parallel}
	if o.dryRun || !o.yes {
		try := req
		try.DryRun = true
		u, err := c.UpgradeCluster(ctx, try)
		if err != nil {
			return err
		}
		if err := printer.Print(s.Out, o.format, u, func(w io.Writer) error { return printClusterPlan(w, u) }); err != nil || o.dryRun {
			return err
		}
		if err := confirm(ctx, s, "Upgrade the cluster?"); err != nil {
			return err
		}
		req.SHA256 = u.To.Digest // what was looked at
	}
	u, err := c.UpgradeCluster(ctx, req)
	if err != nil {
		return err
	}
	if o.yes {
		for _, w := range u.Warnings {
			fmt.Fprintln(s.ErrOut, "note:", w)
		}
	}
	return followClusterUpgrade(ctx, o.deps, o.format, c, u)
}

func printClusterPlan(w io.Writer, u control.ClusterUpgrade) error {
	rows := [][]string{{"now", u.From.Version, u.From.Kubernetes, u.From.Digest[:min(12, len(u.From.Digest))]}, {"then", u.To.Version, u.To.Kubernetes, u.To.Digest[:min(12, len(u.To.Digest))]}}
	if err := printer.Columns(w, []string{"", "K1S", "KUBERNETES", "SHA-256"}, rows); err != nil {
		return err
	}
	drain := "its pods stay and run on"
	if u.Drain > 0 {
		drain = fmt.Sprintf("its pods leave it, within %s, as far as their disruption budgets let them", u.Drain)
	}
	together := "one at a time"
	if u.Parallel > 1 {
		together = fmt.Sprintf("%d at a time", u.Parallel)
	}
	var servers, agents []string
	for _, n := range u.Nodes {
		if n.Server {
			servers = append(servers, n.Name)
		} else {
			agents = append(agents, n.Name)
		}
	}
	var text strings.Builder
	fmt.Fprintf(&text, "\nservers, one at a time: %s\n", strings.Join(servers, ", "))
	if len(agents) > 0 {
		fmt.Fprintf(&text, "then agents, %s: %s\n", together, strings.Join(agents, ", "))
	}
	fmt.Fprintf(&text, "on each: it gets no new pods, and %s;\n  the program is tried for at most %s, and takes its place or is taken back; the node gets pods again\nat the first node that fails: halt, and wait for k1s upgrade resume or k1s upgrade abort\n", drain, u.Timeout)
	for _, warning := range u.Warnings {
		fmt.Fprintf(&text, "note: %s\n", warning)
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// clusterStep is a step for a person.
func clusterStep(n control.ClusterUpgradeNode) string {
	text, known := map[rollout.Step]string{
		rollout.Waiting: "waits for its turn", rollout.Asking: "is asked what it runs", rollout.Draining: "is emptied", rollout.Upgrading: "goes over",
		rollout.Upgraded: "upgraded", rollout.Failed: "failed", rollout.Gone: "was removed from the cluster",
	}[rollout.Step(n.Step)]
	if !known {
		return n.Step
	}
	return text
}

func printClusterUpgrade(w io.Writer, u control.ClusterUpgrade, now time.Time) error {
	if u.Stage == "" {
		_, err := fmt.Fprintln(w, "the cluster was never upgraded as a whole; how this node was: k1s upgrade --status")
		return err
	}
	var head strings.Builder
	to := u.To.String()
	if u.ID == "" {
		to = "what nobody has signed who may"
	}
	switch rollout.Stage(u.Stage) {
	case rollout.Complete:
		fmt.Fprintf(&head, "The cluster was upgraded to %s, %s ago.\n", to, printer.Age(now.Sub(u.Ended)))
	case rollout.Aborted:
		fmt.Fprintf(&head, "The upgrade of the cluster to %s was called off, %s ago.\n", to, printer.Age(now.Sub(u.Ended)))
	case rollout.Aborting:
		fmt.Fprintf(&head, "The upgrade of the cluster to %s is being called off; what is under way comes to its end.\n", to)
	case rollout.Halted:
		fmt.Fprintf(&head, "The upgrade of the cluster to %s has halted. Go on: k1s upgrade resume; leave it as it is: k1s upgrade abort\n", to)
	default:
		fmt.Fprintf(&head, "The cluster is being upgraded to %s, for %s; %s leads.\n", to, printer.Age(now.Sub(u.Began)), u.Leader)
	}
	for _, wait := range u.Waits {
		fmt.Fprintf(&head, "waits: %s\n", wait)
	}
	if u.Note != "" {
		fmt.Fprintf(&head, "note: %s\n", u.Note)
	}
	if _, err := io.WriteString(w, head.String()+"\n"); err != nil {
		return err
	}
	var rows [][]string
	for _, n := range u.Nodes {
		role := "agent"
		if n.Server {
			role = "server"
		}
		note := n.Error
		if note != "" && n.Hint != "" {
			note += "; " + n.Hint
		}
		if note == "" && n.Unschedulable {
			note = "gets no new pods"
		}
		age := "-"
		if !n.Since.IsZero() {
			age = printer.Age(now.Sub(n.Since))
		}
		rows = append(rows, []string{n.Name, role, clusterStep(n), age, orDash(n.Kubernetes), note})
	}
	return printer.Columns(w, []string{"NODE", "ROLE", "IS", "FOR", "KUBERNETES", "NOTE"}, rows)
}

// followClusterUpgrade tells how it goes on until it has ended or halted. Meanwhile this server itself goes over, and does not answer for a while.
func followClusterUpgrade(ctx context.Context, deps Deps, format printer.Format, c *control.Client, u control.ClusterUpgrade) error {
	say := deps.Streams.ErrOut
	said := map[string]string{}
	tell := func(about, line string) {
		if line != said[about] {
			said[about] = line
			fmt.Fprintln(say, line)
		}
	}
	silentSince := time.Time{}
	for {
		for _, n := range u.Nodes {
			if n.Step != string(rollout.Waiting) || said[n.Name] != "" {
				tell(n.Name, n.Name+" "+clusterStep(n))
			}
		}
		for _, wait := range u.Waits {
			if wait == said[strings.Fields(wait + " -")[0]] { // it is its step
				continue
			}
			tell("waits "+strings.Fields(wait + " -")[0], "  "+wait)
		}
		if u.Note != "" {
			tell("note", "  "+u.Note)
		}
		stage := rollout.Stage(u.Stage)
		moving := slices.ContainsFunc(u.Nodes, func(n control.ClusterUpgradeNode) bool {
			return slices.Contains([]rollout.Step{rollout.Asking, rollout.Draining, rollout.Upgrading}, rollout.Step(n.Step))
		})
		if stage == rollout.Complete || stage == rollout.Aborted || stage == rollout.Halted && !moving {
			break
		}
		select {
		case <-ctx.Done():
			fmt.Fprintln(say, "the upgrade of the cluster goes on; see: k1s upgrade status")
			return context.Cause(ctx)
		case <-time.After(askProgress):
		}
		next, err := c.ClusterUpgrade(ctx)
		if err != nil {
			if silentSince.IsZero() {
				silentSince = time.Now()
			}
			if time.Since(silentSince) > u.Timeout+serverBack {
				return errs.Hint(fmt.Errorf("asking how far the upgrade of the cluster is: %w", err), "it goes on when k1s runs; see: k1s upgrade status")
			}
			continue
		}
		silentSince, u = time.Time{}, next
	}
	if err := printer.Print(deps.Streams.Out, format, u, func(w io.Writer) error { return printClusterUpgrade(w, u, time.Now()) }); err != nil {
		return err
	}
	if rollout.Stage(u.Stage) == rollout.Halted {
		return haltedError(u)
	}
	return nil
}

// haltedError is why it has halted.
func haltedError(u control.ClusterUpgrade) error {
	var failed []error
	hint := "mend it, then: k1s upgrade resume; or leave it as it is: k1s upgrade abort"
	for _, n := range u.Nodes {
		if n.Step == string(rollout.Failed) {
			failed = append(failed, fmt.Errorf("%s: %s", n.Name, n.Error))
			if n.Hint != "" && len(failed) == 1 {
				hint = n.Hint + "; then: k1s upgrade resume; or leave it as it is: k1s upgrade abort"
			}
		}
	}
	return errs.Hint(fmt.Errorf("the upgrade of the cluster has halted: %w", errors.Join(failed...)), "%s", hint)
}
