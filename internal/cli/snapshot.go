package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/daemon"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/printer"
	"k1s.io/k1s/internal/restore"
)

func newSnapshotCmd(deps Deps) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Take, list, remove and restore snapshots of the embedded etcd",
		Long: "A snapshot is the cluster's state: every object, Secrets included. It holds no certificate authorities, no service account\n" +
			"key and no keys of Secrets: keep pki and encryption of the data directory as well, apart from it.",
	}
	cmd.AddCommand(newSnapshotSaveCmd(deps, runSnapshotSave), newSnapshotLsCmd(deps, runSnapshotLs), newSnapshotRmCmd(deps, runSnapshotRm),
		newSnapshotPruneCmd(deps, runSnapshotRm), newSnapshotRestoreCmd(deps, runSnapshotRestore))
	return cmd
}

type snapshotOptions struct {
	deps   Deps
	format printer.Format
	name   string
}

func newSnapshotSaveCmd(deps Deps, runF func(context.Context, snapshotOptions) error) *cobra.Command {
	o := snapshotOptions{deps: deps, format: printer.Table}
	cmd := &cobra.Command{
		Use:   "save [NAME]",
		Short: "Take a snapshot now, check it, and copy it to S3 where that is configured",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage(cmd, fmt.Errorf("one snapshot is taken, and so many names given: %d", len(args)))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.name = args[0]
			}
			return runF(cmd.Context(), o)
		},
	}
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	return cmd
}

func runSnapshotSave(ctx context.Context, o snapshotOptions) error {
	if o.name != "" {
		if err := etcdcare.CheckName(o.name); err != nil {
			return err
		}
	}
	s, err := control.NewClient(o.deps.Paths().ControlSocket()).SaveSnapshot(ctx, control.SnapshotRequest{Name: o.name})
	if err != nil {
		return err
	}
	return printSnapshots(o.deps, o.format, s)
}

func newSnapshotLsCmd(deps Deps, runF func(context.Context, snapshotOptions) error) *cobra.Command {
	o := snapshotOptions{deps: deps, format: printer.Table}
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the snapshots, here and in S3, and check those that are here",
		Long: "Lists the snapshots of this server and those in S3, and the data that restores have put aside. What is here is read and\n" +
			"compared with its checksum; of what is in S3 only the size is compared, until it is restored.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	return cmd
}

func runSnapshotLs(ctx context.Context, o snapshotOptions) error {
	s, err := control.NewClient(o.deps.Paths().ControlSocket()).Snapshots(ctx)
	if err != nil {
		return err
	}
	return printSnapshots(o.deps, o.format, s)
}

// printSnapshots shows some, and fails when something did after they were there.
func printSnapshots(deps Deps, f printer.Format, s control.Snapshots) error {
	if s.Snapshots == nil {
		s.Snapshots = []etcdcare.Entry{}
	}
	for _, w := range s.Warnings {
		fmt.Fprintln(deps.Streams.ErrOut, "warning: "+w)
	}
	err := printer.Print(deps.Streams.Out, f, s, func(w io.Writer) error {
		rows := make([][]string, 0, len(s.Snapshots))
		for _, e := range s.Snapshots {
			state := string(e.State)
			if e.Problem != "" {
				state += ": " + e.Problem
			}
			revision := "-"
			if e.Revision > 0 {
				revision = fmt.Sprint(e.Revision)
			}
			row := []string{e.Name, cmp.Or(string(e.Kind), "-"), e.At.Local().Format(time.DateTime), size(e.Bytes), revision, cmp.Or(e.Node, "-"), state}
			if f == printer.Wide {
				row = append(row, cmp.Or(e.Kubernetes, "-"), cmp.Or(e.SHA256, "-"))
			}
			rows = append(rows, append(row, e.Where))
		}
		head := []string{"NAME", "KIND", "TAKEN", "SIZE", "REVISION", "NODE", "STATE"}
		if f == printer.Wide {
			head = append(head, "KUBERNETES", "SHA256")
		}
		return printer.Columns(w, append(head, "WHERE"), rows)
	})
	if s.Problem != nil {
		err = errors.Join(s.Problem.Err(), err)
	}
	return err
}

type snapshotRmOptions struct {
	deps    Deps
	format  printer.Format
	request control.RemoveSnapshotsRequest
	keep    int
	yes     bool
}

func newSnapshotRmCmd(deps Deps, runF func(context.Context, snapshotRmOptions) error) *cobra.Command {
	o := snapshotRmOptions{deps: deps, format: printer.Table}
	cmd := &cobra.Command{
		Use:   "rm NAME…",
		Short: "Remove snapshots, wherever they are",
		Long: "Removes snapshots by name, here and in S3, or by place, as ls shows it, there only. Also what is unfinished, and data\n" +
			"that a restore has put aside.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errs.Hint(errs.New(errs.Usage, "say which snapshots to remove"), "see: k1s etcd snapshot ls")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.request.Names = args
			return runF(cmd.Context(), o)
		},
	}
	rmFlags(cmd, &o)
	return cmd
}

func newSnapshotPruneCmd(deps Deps, runF func(context.Context, snapshotRmOptions) error) *cobra.Command {
	o := snapshotRmOptions{deps: deps, format: printer.Table, request: control.RemoveSnapshotsRequest{Prune: true}}
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove the snapshots of this server that are more than are to be kept",
		Long: "Removes, of the snapshots that this server took by schedule, all but the newest ones, here and in S3; what is unfinished\n" +
			"for a day; and of the data that restores have put aside all but the newest two. It is what happens after each\n" +
			"snapshot by schedule. What is corrupt never counts as one that is kept.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("keep") {
				if o.keep < 1 {
					return errs.New(errs.Usage, "--keep is %d: at least one has to be kept", o.keep)
				}
				o.request.Keep = &o.keep
			}
			return runF(cmd.Context(), o)
		},
	}
	cmd.Flags().IntVar(&o.keep, "keep", 0, "how many to keep at each place, instead of spec.etcd.snapshots.keep")
	cmd.Flags().BoolVar(&o.request.Manual, "manual", false, "count and remove those that somebody asked for as well")
	rmFlags(cmd, &o)
	return cmd
}

func rmFlags(cmd *cobra.Command, o *snapshotRmOptions) {
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	cmd.Flags().BoolVar(&o.request.DryRun, "dry-run", false, "print what would be removed, and do nothing")
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
}

func runSnapshotRm(ctx context.Context, o snapshotRmOptions) error {
	c := control.NewClient(o.deps.Paths().ControlSocket())
	look := o.request
	look.DryRun = true
	s, err := c.RemoveSnapshots(ctx, look)
	if err != nil || o.request.DryRun {
		if err != nil {
			return err
		}
		return printSnapshots(o.deps, o.format, s)
	}
	if len(s.Snapshots) == 0 {
		fmt.Fprintln(o.deps.Streams.ErrOut, "there is nothing to remove")
		return printSnapshots(o.deps, o.format, s)
	}
	if !o.yes {
		for _, e := range s.Snapshots {
			fmt.Fprintln(o.deps.Streams.ErrOut, e.Where)
		}
		if err := confirm(ctx, o.deps.Streams, "Remove them?"); err != nil {
			return err
		}
	}
	if s, err = c.RemoveSnapshots(ctx, o.request); err != nil {
		return err
	}
	return printSnapshots(o.deps, o.format, s)
}

type snapshotRestoreOptions struct {
	deps    Deps
	format  printer.Format
	request control.RestoreRequest
	yes     bool
}

func newSnapshotRestoreCmd(deps Deps, runF func(context.Context, snapshotRestoreOptions) error) *cobra.Command {
	o := snapshotRestoreOptions{deps: deps, format: printer.Table}
	cmd := &cobra.Command{
		Use:   "restore NAME|FILE|s3://BUCKET/OBJECT|DIRECTORY",
		Short: "Take the cluster back to the state of a snapshot",
		Long: "Takes the cluster back to the state of a snapshot, whether k1s runs or not. Where it runs, the API serves until the\n" +
			"snapshot is fetched, checked and made ready; then the control plane restarts on it. Pods that are in the snapshot run on;\n" +
			"those that are not are ended. Revisions go on behind the present one, so every client is told to read everything\n" +
			"again, and none sees time go back. The present data is put aside; its directory can be restored in the same way.\n\n" +
			"Certificates, the service account key and the keys of Secrets are in no snapshot. They are those of this server.",
		Example: "  k1s etcd snapshot restore before-upgrade --dry-run\n  k1s etcd snapshot restore before-upgrade\n" +
			"  k1s etcd snapshot restore /var/lib/k1s/etcd-before-20261121T180000Z   # back again",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errs.Hint(errs.New(errs.Usage, "say which snapshot to restore"), "see: k1s etcd snapshot ls")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.request.Snapshot = args[0]
			return runF(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.VarP(&o.format, "output", "o", "output format")
	f.BoolVar(&o.request.DryRun, "dry-run", false, "print what would be done, and do nothing")
	f.BoolVar(&o.request.Foreign, "foreign", false, "also take one of another cluster, or of which nothing is known")
	f.BoolVar(&o.request.Alone, "alone", false, "restore although etcd has other members: this server becomes the only one")
	f.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	return cmd
}

// restoreQuestion is asked before.
const restoreQuestion = "Go back to this, and lose what was written since?"

func runSnapshotRestore(ctx context.Context, o snapshotRestoreOptions) error {
	// The daemon has another working directory.
	if what := o.request.Snapshot; !strings.HasPrefix(what, etcdcare.S3Scheme) {
		if _, err := os.Stat(what); strings.ContainsRune(what, '/') || err == nil && !filepath.IsAbs(what) && filepath.Ext(what) == etcdcare.FileEnd {
			abs, err := filepath.Abs(what)
			if err != nil {
				return err
			}
			o.request.Snapshot = abs
		}
	}
	c := control.NewClient(o.deps.Paths().ControlSocket())
	look := o.request
	look.DryRun = true
	seen, err := c.RestoreSnapshot(ctx, look)
	if errs.Is(err, errs.NotRunning) {
		return restoreOffline(ctx, o, err)
	}
	if err != nil {
		return err
	}
	if o.request.DryRun {
		return printer.Print(o.deps.Streams.Out, o.format, seen.Plan, func(w io.Writer) error { return printRestorePlan(w, *seen.Plan) })
	}
	if err := o.confirm(ctx, *seen.Plan); err != nil {
		return err
	}
	started, err := c.RestoreSnapshot(ctx, o.request)
	if err != nil {
		return err
	}
	r, last := *started.Restore, ""
	for r.Active() {
		if s := restoreText(r); s != last {
			fmt.Fprintln(o.deps.Streams.ErrOut, s)
			last = s
		}
		select {
		case <-ctx.Done():
			fmt.Fprintln(o.deps.Streams.ErrOut, "the restore goes on; see: k1s etcd status")
			return context.Cause(ctx)
		case <-time.After(askProgress):
		}
		e, err := c.Etcd(ctx)
		if err != nil {
			return errs.Hint(fmt.Errorf("asking how far it is: %w", err), "see: k1s etcd status")
		}
		if e.Restore != nil {
			r = *e.Restore
		}
	}
	return o.ended(r)
}

// confirm shows what would be done, and asks.
func (o *snapshotRestoreOptions) confirm(ctx context.Context, p control.RestorePlan) error {
	if err := printRestorePlan(o.deps.Streams.ErrOut, p); err != nil {
		return err
	}
	if o.yes {
		return nil
	}
	return confirm(ctx, o.deps.Streams, restoreQuestion)
}

func (o *snapshotRestoreOptions) ended(r etcdcare.Restore) error {
	if r.Phase == restore.Failed {
		err := errs.New(errs.Failure, "the state is what it was: %s", r.Error)
		if r.Hint != "" {
			return errs.Hint(err, "%s", r.Hint)
		}
		return err
	}
	return printer.Print(o.deps.Streams.Out, o.format, r, func(w io.Writer) error {
		fmt.Fprintf(w, "The state is that of %s, of %s. Revisions go on behind %d.\n", r.From.Name, r.From.At.Local().Format(time.DateTime), r.Revision)
		if r.Archive != "" {
			fmt.Fprintf(w, "What was before is kept; to go back to it: k1s etcd snapshot restore %s\n", r.Archive)
		}
		return nil
	})
}

// restoreOffline does it in this process.
func restoreOffline(ctx context.Context, o snapshotRestoreOptions, notRunning error) error {
	if _, err := os.Stat(o.deps.Paths().Data); err != nil || os.Geteuid() > 0 {
		return notRunning // there is no node, or we may not touch it
	}
	do, err := daemonOptions(o.deps, nil)
	if err != nil {
		return err
	}
	done, err := daemon.RestoreOffline(ctx, do, o.request, func(p control.RestorePlan) error { return o.confirm(ctx, p) })
	switch {
	case err != nil:
		return err
	case done.Plan != nil:
		return printer.Print(o.deps.Streams.Out, o.format, done.Plan, func(w io.Writer) error { return printRestorePlan(w, *done.Plan) })
	}
	return o.ended(*done.Restore)
}

func printRestorePlan(w io.Writer, p control.RestorePlan) error {
	s := p.Snapshot
	fmt.Fprintf(w, "restore:  %s, of %s, %s", s.Where, s.At.Local().Format(time.DateTime), size(s.Bytes))
	if s.Revision > 0 {
		fmt.Fprintf(w, ", revision %d", s.Revision)
		if p.Revision > 0 {
			fmt.Fprintf(w, "; the present one is %d", p.Revision)
		}
	}
	fmt.Fprintln(w)
	for _, why := range p.Unfit {
		fmt.Fprintf(w, "but:      %s\n", why)
	}
	if p.Archive != "" {
		fmt.Fprintf(w, "present:  is put aside, in %s\n", p.Archive)
	}
	if len(p.Others) > 0 {
		fmt.Fprintf(w, "members:  this server becomes the only one; to be stopped before, and to join again: %s\n", strings.Join(p.Others, ", "))
	}
	then := "nothing runs; start k1s afterwards"
	if p.Running {
		then = "the control plane restarts on it; pods that are not in it are ended"
	}
	_, err := fmt.Fprintf(w, "then:     %s\n", then)
	return err
}
