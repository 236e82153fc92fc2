package cli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/printer"
)

// envMoveTo may hold the URL of the datastore to migrate to, with a password in it.
const envMoveTo = "K1S_MIGRATE_TO"

type datastoreOptions struct {
	deps   Deps
	format printer.Format
}

func newDatastoreCmd(deps Deps) *cobra.Command {
	cmd := newDatastoreStatusCmd(deps, "datastore", runDatastore)
	cmd.Short = "Show where the cluster's state is; move it to another datastore, and back"
	cmd.Long = "Shows the datastore of this server, its size and revision, and what became of the last move to another one."
	cmd.AddCommand(newDatastoreStatusCmd(deps, "status", runDatastore), newDatastoreMigrateCmd(deps, runDatastoreMove), newDatastoreRollbackCmd(deps, runDatastoreMove))
	return cmd
}

func newDatastoreStatusCmd(deps Deps, use string, runF func(context.Context, datastoreOptions) error) *cobra.Command {
	o := datastoreOptions{deps: deps, format: printer.Table}
	cmd := &cobra.Command{
		Use:   use,
		Short: "Show the datastore, its size and revision, and its last move",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	return cmd
}

func runDatastore(ctx context.Context, o datastoreOptions) error {
	d, err := control.NewClient(o.deps.Paths().ControlSocket()).Datastore(ctx)
	if err != nil {
		return err
	}
	return printDatastore(o.deps.Streams.Out, o.format, d)
}

func printDatastore(w io.Writer, f printer.Format, d control.Datastore) error {
	return printer.Print(w, f, d, func(w io.Writer) error {
		revision := "-"
		if d.Revision > 0 {
			revision = strconv.FormatInt(d.Revision, 10)
		}
		if err := printer.Columns(w, []string{"DATASTORE", "ENDPOINT", "SIZE", "REVISION"}, [][]string{{d.Engine, d.Endpoint, size(d.Bytes), revision}}); err != nil {
			return err
		}
		if d.Move == nil {
			return nil
		}
		if _, err := fmt.Fprintf(w, "\n%s\n", moveText(*d.Move, d.Progress)); err != nil {
			return err
		}
		if p := d.Move.Previous; p != nil && !d.Move.Active() {
			return printPrevious(w, *d.Move)
		}
		return nil
	})
}

// printPrevious tells how to get back to what was left.
func printPrevious(w io.Writer, s migration.State) error {
	if len(s.Servers) > 0 && config.Engine(s.Previous.Engine) == config.EmbeddedEtcd {
		_, err := fmt.Fprintf(w, "to have %s on the servers again, with what is written until then: k1s datastore rollback\n", s.Previous)
		return err
	}
	_, err := fmt.Fprintf(w, "%s is kept as it was left; to go back to it: k1s datastore rollback\n", s.Previous)
	return err
}

// size of a datastore for a person; 0 is unknown.
func size(n int64) string {
	switch {
	case n <= 0:
		return "-"
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", (n+1023)>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// moveText tells of a move in one line.
func moveText(s migration.State, p *migration.Progress) string {
	name := map[migration.Kind]string{migration.Migrate: "migration", migration.Rollback: "rollback"}[s.Kind]
	what := fmt.Sprintf("The last %s, from %s to %s, ", name, s.From, s.To)
	if s.Leader != "" {
		what += "which was asked for on " + s.Leader + ", "
	}
	switch s.Phase {
	case migration.Done:
		what += "was done on " + s.Ended.UTC().Format(time.DateTime)
		if s.Result != nil {
			what += fmt.Sprintf(" (%d keys", s.Result.Keys)
			if s.PausedS > 0 {
				what += fmt.Sprintf("; the API paused for %.1fs", s.PausedS)
			}
			what += ")"
		}
		return what + "."
	case migration.Failed:
		return what + "failed on " + s.Ended.UTC().Format(time.DateTime) + ", and the state is where it was: " + s.Error
	}
	text := fmt.Sprintf("%s from %s to %s: ", name, s.From, s.To) + map[migration.Phase]string{
		migration.Copying:   "copying while the API serves",
		migration.Fencing:   "stopping the control planes of " + strings.Join(s.Servers, ", ") + ", one after the other",
		migration.Pausing:   "stopping the control plane",
		migration.Finishing: "copying what was written meanwhile, and comparing everything",
		migration.Switching: "changing the configuration",
		migration.Starting:  "starting the control plane on the new datastore",
	}[s.Phase]
	if s.Kind == migration.Rollback && s.Phase == migration.Finishing {
		text = fmt.Sprintf("%s from %s to %s: going past the revision of now in the old datastore", name, s.From, s.To)
	}
	if p != nil && p.All > 0 {
		text += fmt.Sprintf(" (%s: %d of %d)", p.Doing, p.Done, p.All)
	}
	if s.Error != "" {
		text += ": " + s.Error
	}
	return text
}

type datastoreMoveOptions struct {
	deps    Deps
	format  printer.Format
	request control.DatastoreRequest
	to      string
	yes     bool
}

func newDatastoreMigrateCmd(deps Deps, runF func(context.Context, datastoreMoveOptions) error) *cobra.Command {
	o := datastoreMoveOptions{deps: deps, format: printer.Table, request: control.DatastoreRequest{Action: migration.Migrate}}
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Move the cluster's state to another datastore while the node runs",
		Long: "Copies the whole state to another datastore: sqlite, etcd (embedded), or an etcd, PostgreSQL, MySQL or NATS of yours.\n" +
			"The API serves while it is copied. Then the control plane is stopped for some seconds: what was written meanwhile is\n" +
			"copied, everything is compared, the configuration is changed, and the control plane starts on the new datastore.\n" +
			"Pods run on. The old datastore is kept as it was left, for k1s datastore rollback.\n\n" +
			"Of several servers all go together; each has to be there, and has to reach a database of yours. The server on which\n" +
			"this is asked for hands the URL and the certificates to the others, sealed. To an etcd of theirs it goes first, with\n" +
			"the state, and the others become members of that one after the other.\n\n" +
			"A URL with a password is given in a file (--to-file, which then stays part of the configuration) or in the\n" +
			"variable " + envMoveTo + ", not on the command line. Whatever breaks off before the configuration is changed leaves\n" +
			"the cluster on the old datastore; the same command then goes on with what is copied already.",
		Example: "  k1s datastore migrate --to etcd\n  k1s datastore migrate --to-file /etc/k1s/datastore --ca-file /etc/k1s/db-ca.crt --dry-run",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.VarP(&o.format, "output", "o", "output format")
	f.StringVar(&o.to, "to", "", "where to: sqlite, etcd, https://HOST:2379,…, or the URL of a database without a password")
	f.StringVar(&o.request.EndpointFile, "to-file", "", "file of one line that holds the URL, as spec.datastore.endpointFile")
	f.StringVar(&o.request.CAFile, "ca-file", "", "authority of the database's certificate, as spec.datastore.caFile")
	f.StringVar(&o.request.CertFile, "cert-file", "", "client certificate, as spec.datastore.certFile")
	f.StringVar(&o.request.KeyFile, "key-file", "", "its key, as spec.datastore.keyFile")
	f.BoolVar(&o.request.Replace, "replace", false, "overwrite what is in the new datastore")
	moveFlags(cmd, &o)
	return cmd
}

func newDatastoreRollbackCmd(deps Deps, runF func(context.Context, datastoreMoveOptions) error) *cobra.Command {
	o := datastoreMoveOptions{deps: deps, format: printer.Table, request: control.DatastoreRequest{Action: migration.Rollback}}
	cmd := &cobra.Command{
		Use:   "rollback",
		Short: "Go back to the datastore of before the last migration, as it was left",
		Long: "Takes the datastore of before the last migration into use again. What has been written since is not in it, and is\n" +
			"lost to the cluster; --dry-run says what that is. To take it along, migrate to the old datastore instead. An etcd that\n" +
			"several servers had is made anew, with all that is written until then.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	moveFlags(cmd, &o)
	return cmd
}

func moveFlags(cmd *cobra.Command, o *datastoreMoveOptions) {
	cmd.Flags().BoolVar(&o.request.DryRun, "dry-run", false, "print what would be done, and do nothing")
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
}

// target completes the request, and refuses what others could read.
func (o *datastoreMoveOptions) target() error {
	if o.request.Action != migration.Migrate {
		return nil
	}
	fromEnv := lookup(o.deps.Environ(), envMoveTo)
	given := 0
	for _, s := range []string{o.to, o.request.EndpointFile, fromEnv} {
		if s != "" {
			given++
		}
	}
	if given != 1 {
		return errs.New(errs.Usage, "say where to, with one of --to, --to-file and %s", envMoveTo)
	}
	o.request.Endpoint = o.to + fromEnv
	if o.request.Endpoint != "" {
		if err := config.DSN(o.request.Endpoint).Check(); err != nil {
			hint, _ := errs.HintOf(err)
			return errs.Hint(errs.New(errs.Usage, "the new datastore %w", err), "%s", hint)
		}
	}
	if config.DSN(o.to).HasPassword() {
		return errs.Hint(errs.New(errs.Usage, "--to has a password, and a command line can be read by everybody on this machine"),
			"put the URL into a file of mode 0600 and give that with --to-file")
	}
	for _, file := range []*string{&o.request.EndpointFile, &o.request.CAFile, &o.request.CertFile, &o.request.KeyFile} {
		if *file == "" {
			continue
		}
		abs, err := filepath.Abs(*file)
		if err != nil {
			return err
		}
		*file = abs
	}
	return nil
}

func runDatastoreMove(ctx context.Context, o datastoreMoveOptions) error {
	if err := o.target(); err != nil {
		return err
	}
	c := control.NewClient(o.deps.Paths().ControlSocket())
	destroys := o.request.Action == migration.Rollback || o.request.Replace
	if o.request.DryRun || destroys {
		r := o.request
		r.DryRun = true
		d, err := c.MoveDatastore(ctx, r)
		if err != nil {
			return err
		}
		if o.request.DryRun {
			return printer.Print(o.deps.Streams.Out, o.format, d.Plan, func(w io.Writer) error { return printMovePlan(w, *d.Plan) })
		}
		if err := printMovePlan(o.deps.Streams.ErrOut, *d.Plan); err != nil {
			return err
		}
		if !o.yes {
			question := "Overwrite what is there?"
			switch {
			case o.request.Action != migration.Rollback:
			case d.Plan.Kind == migration.Migrate:
				question = "Go back, and take along what was written since?"
			default:
				question = "Go back, and lose what was written since?"
			}
			if err := confirm(ctx, o.deps.Streams, question); err != nil {
				return err
			}
		}
	}
	d, err := c.MoveDatastore(ctx, o.request)
	if err != nil {
		return err
	}
	last := ""
	for d.Move == nil || d.Move.Active() {
		if d.Move != nil {
			if s := moveText(*d.Move, d.Progress); s != last {
				fmt.Fprintln(o.deps.Streams.ErrOut, s)
				last = s
			}
		}
		select {
		case <-ctx.Done():
			fmt.Fprintln(o.deps.Streams.ErrOut, "the move goes on; see: k1s datastore")
			return context.Cause(ctx)
		case <-time.After(askProgress):
		}
		if d, err = c.Datastore(ctx); err != nil {
			return errs.Hint(fmt.Errorf("asking how far it is: %w", err), "see: k1s datastore")
		}
	}
	if d.Move.Phase == migration.Failed {
		err := errs.New(errs.Failure, "the state is where it was, in %s: %s", d.Move.From, d.Move.Error)
		if d.Move.Hint != "" {
			return errs.Hint(err, "%s", d.Move.Hint)
		}
		return errs.Hint(err, "mend that and run the command again: it goes on with what is copied already")
	}
	return printer.Print(o.deps.Streams.Out, o.format, d.Move, func(w io.Writer) error { return printMoved(w, *d.Move) })
}

func printMovePlan(w io.Writer, p control.DatastorePlan) error {
	fmt.Fprintf(w, "from:  %s\nto:    %s\n", p.From, p.To)
	if s := p.Seen; s != nil {
		fmt.Fprintf(w, "copy:  %d keys, %s, revision %d\n", s.Keys, size(s.Bytes), s.Revision)
		switch {
		case s.Resumes:
			fmt.Fprintf(w, "       %d are there already, from an earlier attempt\n", s.TargetKeys)
		case s.TargetKeys > 0:
			fmt.Fprintf(w, "       the new datastore is not empty: it has %d keys, which only --replace overwrites\n", s.TargetKeys)
		}
		if config.Engine(p.To.Engine) == config.ExternalEtcd && s.TargetRevision < s.Revision {
			fmt.Fprintf(w, "       and %d writes before that: an etcd of yours comes to the revision of now in no other way\n", s.Revision-s.TargetRevision)
		}
	}
	if p.NeededBytes > 0 {
		fmt.Fprintf(w, "disk:  %s free, %s needed at most\n", size(int64(p.FreeBytes)), size(int64(p.NeededBytes)))
	}
	if p.Kind == migration.Rollback {
		fmt.Fprintf(w, "lost:  what was written since %s:\n\n", p.Since.UTC().Format(time.DateTime))
		var rows [][]string
		for _, r := range p.Lost {
			rows = append(rows, []string{r.Prefix, strconv.Itoa(r.Missing), strconv.Itoa(r.Differs), strconv.Itoa(r.Extra)})
		}
		if err := printer.Columns(w, []string{"PREFIX", "NEW", "CHANGED", "DELETED"}, rows); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	if len(p.Servers) > 0 {
		_, err := fmt.Fprintf(w, "then:  the control planes of this server and of %s restart, and %s is written on each\n", strings.Join(p.Servers, ", "), p.DropIn)
		return err
	}
	_, err := fmt.Fprintf(w, "then:  the control plane restarts, and %s is written\n", p.DropIn)
	return err
}

// printMoved shows what was compared.
func printMoved(w io.Writer, s migration.State) error {
	if s.Result == nil {
		_, err := fmt.Fprintln(w, moveText(s, nil))
		return err
	}
	if s.Kind == migration.Migrate {
		var rows [][]string
		for _, r := range s.Result.Rows {
			same := "yes"
			if !r.Equal() {
				same = "no"
			}
			rows = append(rows, []string{r.Prefix, strconv.Itoa(r.Keys), size(r.Bytes), strconv.Itoa(r.Leased), r.Target, same})
		}
		if err := printer.Columns(w, []string{"PREFIX", "KEYS", "SIZE", "EXPIRING", "HASH", "SAME"}, rows); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "%d keys, %s; revision %d, before %d; %d changes while the API was stopped, for %.1fs.\n",
		s.Result.Keys, size(s.Result.Bytes), s.Result.TargetRevision, s.Result.SourceRevision, s.Result.Late, s.PausedS)
	_, err := fmt.Fprintf(w, "The state is in %s.\n", s.To)
	if s.Previous != nil {
		err = printPrevious(w, s)
	}
	return err
}
