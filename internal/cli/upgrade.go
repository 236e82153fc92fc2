package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/daemon"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/printer"
	"k1s.io/k1s/internal/upgrade"
	"k1s.io/k1s/internal/wait"
)

// guardBack is how long an init system may take to start a k1s again that was killed in the middle of an upgrade.
const guardBack = 30 * time.Second

type upgradeOptions struct {
	deps                            Deps
	format                          printer.Format
	file, sha256                    string
	dryRun, yes, allowOlder, status bool
	timeout                         time.Duration
	cluster                         bool
	parallel                        int
	drain                           time.Duration
	// given are the flags that only count with --cluster.
	given bool
}

func newUpgradeCmd(deps Deps, runF func(context.Context, upgradeOptions) error) *cobra.Command {
	o := upgradeOptions{deps: deps, format: printer.Table, timeout: 5 * time.Minute, parallel: 1, drain: 5 * time.Minute}
	cmd := &cobra.Command{
		Use:   "upgrade --file NEW",
		Short: "Go over to another k1s on this node, and back if it does not work",
		Long: "Lets another k1s run this node. The file is copied beside the present one, and its program is tried: it takes over what\n" +
			"runs, and restarts the components that are other ones in it. Pods run on. When the node has been well with it for some\n" +
			"seconds, it takes the place of the present file, which is kept as FILE.old. If the node is not well in time, or the program\n" +
			"ends, the present one goes on. Until the new one is in its place the machine starts the present one, whatever is killed.\n" +
			"Nothing is downloaded.\n\n" +
			"With --cluster, on a server, all nodes go over, one after the other and servers first: each is emptied, goes over in this way, and gets\n" +
			"pods again. They get the file from this server. It halts at the first node that fails.",
		Example: "  sudo k1s upgrade --file ./k1s --dry-run\n" +
			"  sudo k1s upgrade --file ./k1s\n" +
			"  sudo k1s upgrade --status\n" +
			"  sudo k1s upgrade --file /usr/local/bin/k1s.old --allow-older   # back to the one before\n" +
			"  sudo k1s upgrade --cluster --file ./k1s --parallel 3\n" +
			"  sudo k1s upgrade status",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.given = cmd.Flags().Changed("parallel") || cmd.Flags().Changed("drain-timeout")
			return runF(cmd.Context(), o)
		},
	}
	cmd.AddCommand(newUpgradeStatusCmd(deps, runClusterUpgrade), newUpgradeResumeCmd(deps, runClusterUpgrade), newUpgradeAbortCmd(deps, runClusterUpgrade))
	f := cmd.Flags()
	f.VarP(&o.format, "output", "o", "output format")
	f.StringVarP(&o.file, "file", "f", "", "the new k1s, on this machine")
	f.StringVar(&o.sha256, "sha256", "", "the SHA-256 the file has to have, in hexadecimal digits")
	f.BoolVar(&o.dryRun, "dry-run", false, "look at the file and the node, and show what would be done")
	f.BoolVar(&o.allowOlder, "allow-older", false, "also if it is older than the present one; never an older minor version of Kubernetes on a server")
	f.BoolVar(&o.status, "status", false, "show how far the upgrade is, or how the last one ended")
	f.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	f.DurationVar(&o.timeout, "timeout", o.timeout, "how long the new program may take until the node is well")
	f.BoolVar(&o.cluster, "cluster", false, "upgrade all nodes, one after the other; on a server")
	f.IntVar(&o.parallel, "parallel", o.parallel, "with --cluster: how many agents may go over at a time")
	f.DurationVar(&o.drain, "drain-timeout", o.drain, "with --cluster: how long pods may take to leave a node; 0 leaves them where they are, and they run on")
	return cmd
}

func runUpgrade(ctx context.Context, o upgradeOptions) error {
	s := o.deps.Streams
	switch sum, err := hex.DecodeString(o.sha256); {
	case o.status && (o.cluster || o.given || o.file != "" || o.dryRun || o.allowOlder || o.sha256 != ""):
		return errs.New(errs.Usage, "--status only shows how far this node is; give it alone. For the cluster: k1s upgrade status")
	case o.status:
		return upgradeStatus(o)
	case o.file == "":
		return errs.Hint(errs.New(errs.Usage, "say to which k1s: --file NEW"), "see: k1s upgrade --help")
	case o.timeout <= 0:
		return errs.New(errs.Usage, "--timeout %s: the new program needs some time until the node is well, most often seconds", o.timeout)
	case err != nil || o.sha256 != "" && len(sum) != 32:
		return errs.New(errs.Usage, "--sha256 %q is no SHA-256: it has 64 hexadecimal digits", o.sha256)
	case !o.cluster && o.given:
		return errs.New(errs.Usage, "--parallel and --drain-timeout are for --cluster: one node alone moves no pods")
	case o.cluster && o.parallel < 1:
		return errs.New(errs.Usage, "--parallel %d: at least one agent at a time has to go over", o.parallel)
	case o.cluster && o.drain < 0:
		return errs.New(errs.Usage, "--drain-timeout %s is less than nothing; with 0 pods stay where they are", o.drain)
	case o.cluster:
		return upgradeCluster(ctx, o)
	}
	file, err := filepath.Abs(o.file)
	if err != nil {
		return err
	}
	c := control.NewClient(o.deps.Paths().ControlSocket())
	req := control.UpgradeRequest{File: file, SHA256: o.sha256, AllowOlder: o.allowOlder, Timeout: o.timeout}
	if o.dryRun || !o.yes {
		try := req
		try.DryRun = true
		u, err := c.Upgrade(ctx, try)
		if err != nil {
			return err
		}
		if err := printer.Print(s.Out, o.format, u, func(w io.Writer) error { return printUpgradePlan(w, file, u) }); err != nil || o.dryRun || u.Same {
			return err
		}
		if err := confirm(ctx, s, "Upgrade?"); err != nil {
			return err
		}
		req.SHA256 = u.State.To.Digest // what was looked at
	}
	u, err := c.Upgrade(ctx, req)
	if err != nil {
		return err
	}
	if u.Same {
		fmt.Fprintf(s.ErrOut, "this node runs %s already\n", file)
		return nil
	}
	return followUpgrade(ctx, o, c, u.State)
}

func printUpgradePlan(w io.Writer, file string, u control.Upgrade) error {
	if u.Same {
		_, err := fmt.Fprintf(w, "this node runs %s already; nothing would be done\n", file)
		return err
	}
	rows := [][]string{{"now", u.State.From.Version, u.State.From.Kubernetes, u.State.From.Digest[:min(12, len(u.State.From.Digest))]}, {"then", u.State.To.Version, u.State.To.Kubernetes, u.State.To.Digest[:min(12, len(u.State.To.Digest))]}}
	if err := printer.Columns(w, []string{"", "K1S", "KUBERNETES", "SHA-256"}, rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n1. copy %s to %s\n2. let it run this node: components that are other ones in it restart, pods run on\n3. when the node has been well for %s, put it in the place of %s,\n   and keep that as %s\n   if it is not within %s, or the program ends: go on with the present one\n",
		file, u.State.Staged(), upgrade.Steady, u.State.File, u.State.Kept(), u.State.Timeout)
	return err
}

// followUpgrade tells how it goes on until it has ended and the node answers.
func followUpgrade(ctx context.Context, o upgradeOptions, c *control.Client, s upgrade.State) error {
	say := o.deps.Streams.ErrOut
	last := ""
	tell := func(line string) {
		if line != last {
			fmt.Fprintln(say, line)
			last = line
		}
	}
	tell(fmt.Sprintf("trying %s, for at most %s", s.To, s.Timeout))
	guarded := time.Now() // when it was seen that somebody brings it to its end
	for s.Active() {
		select {
		case <-ctx.Done():
			fmt.Fprintln(say, "the upgrade goes on; see: k1s upgrade --status")
			return context.Cause(ctx)
		case <-time.After(askProgress):
		}
		now, err := daemon.LastUpgrade(o.deps.Paths())
		if err != nil {
			return err
		}
		s = now
		if !s.Active() || daemon.Guarded(s) {
			guarded = time.Now()
		} else if time.Since(guarded) > guardBack {
			return errs.Hint(errs.New(errs.NotRunning, "k1s has ended while %s was tried, and nobody has started it again", s.To), "start it: %s is %s, as before", s.File, s.From)
		}
		if s.Phase == upgrade.Trying {
			askCtx, cancel := context.WithTimeout(ctx, 5*time.Second)
			if st, err := c.Status(askCtx); err == nil && st.Upgrade != nil {
				if why := whyNot(st); why != "" {
					tell("  " + why)
				}
			}
			cancel()
		}
	}
	if s.Phase == upgrade.Done {
		tell("it works, and has taken its place: " + s.File)
	}
	// Whoever comes next finds the node as it is from now on.
	waitCtx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("not within %s", o.timeout))
	defer cancel()
	err := wait.Until(waitCtx, 200*time.Millisecond, "the node to be running", func(ctx context.Context) error {
		st, err := c.Status(ctx)
		if err == nil && (st.State != control.Running || st.Upgrade != nil) {
			err = fmt.Errorf("it is %s: %s", st.State, whyNot(st))
		}
		return err
	})
	if s.Phase == upgrade.Failed {
		failed := fmt.Errorf("cannot upgrade to %s: %s", s.To, s.Error)
		if err != nil {
			return errs.Hint(errors.Join(failed, fmt.Errorf("%s runs again, and the node is not well: %w", s.From, err)), "see: k1s status")
		}
		fmt.Fprintf(say, "%s runs the node again, with everything it had\n", s.From)
		if s.Hint != "" {
			return errs.Hint(failed, "%s", s.Hint)
		}
		return failed
	}
	if err != nil {
		return errs.Hint(err, "see: k1s status")
	}
	fmt.Fprintf(say, "upgraded to %s; the one before is kept in %s\n", s.To, s.Kept())
	return nil
}

func upgradeStatus(o upgradeOptions) error {
	s, err := daemon.LastUpgrade(o.deps.Paths())
	if err != nil {
		return err
	}
	return printer.Print(o.deps.Streams.Out, o.format, s, func(w io.Writer) error { return printUpgrade(w, s, time.Now()) })
}

func printUpgrade(w io.Writer, s upgrade.State, now time.Time) error {
	var err error
	switch {
	case s.Phase == "":
		_, err = fmt.Fprintln(w, "this node has never been upgraded by this command")
	case s.Active():
		_, err = fmt.Fprintf(w, "%s, for %s: from %s to %s\n", s.Phase, printer.Age(now.Sub(s.Since)), s.From, s.To)
	case s.Phase == upgrade.Done:
		_, err = fmt.Fprintf(w, "done, %s ago: from %s to %s; the one before is kept in %s\n", printer.Age(now.Sub(s.Ended)), s.From, s.To, s.Kept())
	default:
		_, err = fmt.Fprintf(w, "taken back, %s ago: %s runs, and not %s: %s\n", printer.Age(now.Sub(s.Ended)), s.From, s.To, s.Error)
		if err == nil && s.Hint != "" {
			_, err = fmt.Fprintf(w, "hint: %s\n", s.Hint)
		}
	}
	return err
}
