package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/printer"
	"k1s.io/k1s/internal/restore"
)

type etcdOptions struct {
	deps   Deps
	format printer.Format
	// members leaves out all but them.
	members bool
}

func newEtcdCmd(deps Deps) *cobra.Command {
	cmd := newEtcdStatusCmd(deps, "etcd", runEtcd)
	cmd.Short = "Look after the embedded etcd: members, size, snapshots, restore"
	cmd.Long = "Shows this server's member of the embedded etcd, the other members, and what k1s does to keep it well. For servers whose\n" +
		"datastore is the embedded etcd (spec.datastore.endpoint: etcd)."
	ls := newEtcdStatusCmd(deps, "ls", runEtcd)
	ls.Short = "List the members"
	cmd.AddCommand(newEtcdStatusCmd(deps, "status", runEtcd), ls, newEtcdDefragCmd(deps, runEtcdDefrag), newSnapshotCmd(deps))
	return cmd
}

func newEtcdStatusCmd(deps Deps, use string, runF func(context.Context, etcdOptions) error) *cobra.Command {
	o := etcdOptions{deps: deps, format: printer.Table, members: use == "ls"}
	cmd := &cobra.Command{
		Use:   use,
		Short: "Show members, leader, size, alarms, and the snapshots by schedule",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	return cmd
}

func runEtcd(ctx context.Context, o etcdOptions) error {
	e, err := control.NewClient(o.deps.Paths().ControlSocket()).Etcd(ctx)
	if err != nil {
		return err
	}
	if o.members {
		return printer.Print(o.deps.Streams.Out, o.format, e.Members, func(w io.Writer) error { return printMembers(w, e) })
	}
	return printer.Print(o.deps.Streams.Out, o.format, e, func(w io.Writer) error { return printEtcd(w, e, time.Now()) })
}

func printEtcd(w io.Writer, e control.Etcd, now time.Time) error {
	if r := e.Restore; r != nil {
		fmt.Fprintln(w, restoreText(*r))
	}
	if e.Problem != "" {
		fmt.Fprintf(w, "etcd does not answer: %s\n", e.Problem)
	} else {
		fmt.Fprintf(w, "database:   %s, of which %s are in use; it may grow to %s\n", size(e.Bytes), size(e.InUse), size(e.Quota))
		fmt.Fprintf(w, "revision:   %d\n", e.Revision)
	}
	if e.FreeBytes > 0 {
		fmt.Fprintf(w, "disk:       %s free\n", size(int64(min(e.FreeBytes, 1<<62))))
	}
	for _, a := range e.Alarms {
		fmt.Fprintf(w, "alarm:      %s, of %s\n", a.Alarm, a.Member)
	}
	if e.Upkeep != "" && len(e.Alarms) > 0 {
		fmt.Fprintf(w, "            %s\n", e.Upkeep)
	}
	if d := e.Defragmented; d != nil {
		fmt.Fprintf(w, "defragment: %s, from %s to %s in %.2fs\n", ago(now, d.At), size(d.Before), size(d.After), d.Seconds)
	}
	s := e.Snapshots
	text := "taken by schedule: " + s.Schedule
	if !s.Next.IsZero() {
		text += ", next " + s.Next.Local().Format(time.DateTime)
	}
	fmt.Fprintf(w, "snapshots:  %s\n", text)
	if s.Last != nil {
		fmt.Fprintf(w, "            the last is %s, of %s\n", s.Last.Where, s.Last.At.Local().Format(time.DateTime))
	}
	if s.Error != "" {
		fmt.Fprintf(w, "            the last one failed: %s\n", s.Error)
	}
	if e.Problem != "" {
		return nil
	}
	fmt.Fprintln(w)
	return printMembers(w, e)
}

func ago(now, at time.Time) string {
	return now.Sub(at).Round(time.Second).String() + " ago"
}

func printMembers(w io.Writer, e control.Etcd) error {
	rows := make([][]string, 0, len(e.Members))
	for _, m := range e.Members {
		role, state, lag := "voter", "healthy", "-"
		switch {
		case m.Learner:
			role = "learner"
		case m.Leader:
			role = "leader"
		}
		if !m.Healthy {
			state = cmp.Or(m.Problem, "does not answer")
		}
		if m.Self {
			lag = strconv.FormatUint(e.Lag, 10)
		}
		rows = append(rows, []string{m.Name, strconv.FormatUint(m.ID, 16), role, strings.Join(m.PeerURLs, ","), lag, state})
	}
	return printer.Columns(w, []string{"MEMBER", "ID", "ROLE", "PEERS AT", "BEHIND", "STATE"}, rows)
}

func newEtcdDefragCmd(deps Deps, runF func(context.Context, etcdOptions) error) *cobra.Command {
	o := etcdOptions{deps: deps, format: printer.Table}
	cmd := &cobra.Command{
		Use:   "defrag",
		Short: "Give back the space that this server's member does not use",
		Long: "Copies what is in use into a new file. This server's member answers nobody while it does that: about a second for each\n" +
			"100 MiB in use. k1s does it by itself where that pays and does not disturb; this is for all other cases. Members are\n" +
			"defragmented one at a time; run it on each server. One that leads passes leadership on first.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	return cmd
}

func runEtcdDefrag(ctx context.Context, o etcdOptions) error {
	d, err := control.NewClient(o.deps.Paths().ControlSocket()).DefragmentEtcd(ctx)
	if err != nil {
		return err
	}
	return printer.Print(o.deps.Streams.Out, o.format, d, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "from %s to %s, in %.2fs\n", size(d.Before), size(d.After), d.Seconds)
		return err
	})
}

// restoreText tells of a restore in one line.
func restoreText(r etcdcare.Restore) string {
	what := "The last restore, of " + r.From.Name + ", "
	switch r.Phase {
	case restore.Done:
		what += "was done on " + r.Ended.UTC().Format(time.DateTime)
		if r.PausedS > 0 {
			what += fmt.Sprintf(" (the API paused for %.1fs)", r.PausedS)
		}
		if r.Archive != "" {
			what += "; what was before is in " + r.Archive
		}
		return what + "."
	case restore.Failed:
		return what + "failed on " + r.Ended.UTC().Format(time.DateTime) + ", and the state is what it was: " + r.Error
	}
	text := "restoring " + r.From.Name + ": " + map[restore.Phase]string{
		restore.Staging:   "fetching and checking it while the API serves",
		restore.Pausing:   "stopping the control plane",
		restore.Finishing: "going past the present revision",
		restore.Switching: "putting it in its place",
		restore.Starting:  "starting the control plane on it",
		restore.Reverting: "it did not start, so what was before is put back",
	}[r.Phase]
	if r.Error != "" {
		text += ": " + r.Error
	}
	return text
}
