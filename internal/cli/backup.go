package cli

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/backup"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/daemon"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/printer"
)

// envBackupPassphrase may hold the passphrase of an archive.
const envBackupPassphrase = "K1S_BACKUP_PASSPHRASE"

func newBackupCmd(deps Deps) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Back up the whole state of the cluster in one archive, and restore it",
		Long: "An archive has the cluster's objects, whichever datastore they are in, its certificate authorities, the key of service\n" +
			"accounts, the keys of Secrets, tokens, the configuration directory and the directory of manifests. It has no volumes and no\n" +
			"images. Who has it has the cluster: encrypt it (--passphrase-file, --recipient), or keep it where only root can read.",
	}
	cmd.AddCommand(newBackupCreateCmd(deps, runBackupCreate), newBackupLsCmd(deps, runBackupLs), newBackupInspectCmd(deps, runBackupInspect),
		newBackupVerifyCmd(deps, runBackupVerify), newBackupRestoreCmd(deps, runBackupRestore))
	return cmd
}

// secretFile reads a passphrase from a file that others cannot read, or with - from standard input.
func secretFile(deps Deps, file string) (backup.Passphrase, error) {
	var b []byte
	var err error
	if file == "-" {
		b, err = io.ReadAll(io.LimitReader(deps.Streams.In, 1<<16))
	} else {
		if st, serr := os.Stat(file); serr == nil && st.Mode().Perm()&0o007 != 0 && st.Mode().IsRegular() {
			return "", errs.Hint(errs.New(errs.Invalid, "%s can be read by everybody on this machine", file), "run: chmod 600 %s", file)
		}
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return "", errs.New(errs.Invalid, "reading the passphrase: %w", err)
	}
	p := strings.TrimRight(string(b), "\r\n")
	if p == "" {
		return "", errs.New(errs.Invalid, "the passphrase in %s is empty", file)
	}
	return backup.Passphrase(p), nil
}

// keyOptions say what opens an archive.
type keyOptions struct {
	passphraseFile, identityFile string
}

func (k *keyOptions) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.passphraseFile, "passphrase-file", "", "file with the passphrase of an encrypted archive, - for standard input; or "+envBackupPassphrase)
	cmd.Flags().StringVar(&k.identityFile, "identity-file", "", "file with a private key of age, for an archive that is encrypted for recipients")
}

func (k keyOptions) key(deps Deps) (backup.Key, error) {
	out := backup.Key{Passphrase: backup.Passphrase(lookup(deps.Environ(), envBackupPassphrase))}
	var err error
	if k.passphraseFile != "" {
		if out.Passphrase, err = secretFile(deps, k.passphraseFile); err != nil {
			return out, err
		}
	}
	if k.identityFile != "" {
		if out.Identities, err = os.ReadFile(k.identityFile); err != nil {
			return out, errs.New(errs.Invalid, "reading the private key: %w", err)
		}
	}
	return out, nil
}

type backupCreateOptions struct {
	deps           Deps
	format         printer.Format
	dir, name      string
	keep           int
	passphraseFile string
	recipients     []string
	recipientsFile string
}

// Created is what `k1s backup create` has made.
type Created struct {
	File      string          `json:"file"`
	Bytes     int64           `json:"bytes"`
	SHA256    string          `json:"sha256"`
	Encrypted bool            `json:"encrypted"`
	Manifest  backup.Manifest `json:"manifest"`
	// Removed are older archives that retention let go.
	Removed []string `json:"removed,omitempty"`
}

func newBackupCreateCmd(deps Deps, runF func(context.Context, backupCreateOptions) error) *cobra.Command {
	o := backupCreateOptions{deps: deps, format: printer.Table}
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Write the whole state to an archive, whether k1s runs or not",
		Long: "Writes an archive to a directory (0600, complete or not at all). The API is not paused: the datastore is read as it was at one\n" +
			"revision. Of several servers any one can make it.\n\n" +
			"A passphrase comes from a file, from standard input or from " + envBackupPassphrase + ", never from the command line. For recipients\n" +
			"(public keys of age, age1…) nothing secret is needed here at all; their private keys open the archive.",
		Example: "  k1s backup create --dir /mnt/backup --keep 7 --passphrase-file /etc/k1s-backup-passphrase\n" +
			"  k1s backup create --name before-upgrade\n  k1s backup create --recipient age1…",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("keep") && o.keep < 1 {
				return errs.New(errs.Usage, "--keep is %d: at least one has to be kept", o.keep)
			}
			return runF(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.VarP(&o.format, "output", "o", "output format")
	f.StringVar(&o.dir, "dir", "", "where to; k1s reset removes what is in the data directory (default "+deps.Paths().Backups()+")")
	f.StringVar(&o.name, "name", "", "name of the archive; one that is named is never removed by --keep (default by node and time)")
	f.IntVar(&o.keep, "keep", 0, "remove all but so many of the archives in that directory that this node has made and nobody has named")
	f.StringVar(&o.passphraseFile, "passphrase-file", "", "file with a passphrase to encrypt with, - for standard input")
	f.StringArrayVar(&o.recipients, "recipient", nil, "public key of age to encrypt for, age1…; may be repeated")
	f.StringVar(&o.recipientsFile, "recipients-file", "", "file with public keys of age, one a line")
	return cmd
}

func (o backupCreateOptions) lock() (backup.Lock, error) {
	l := backup.Lock{Recipients: o.recipients}
	if o.recipientsFile != "" {
		b, err := os.ReadFile(o.recipientsFile)
		if err != nil {
			return l, errs.New(errs.Invalid, "reading the public keys: %w", err)
		}
		more := backup.ParseRecipients(b)
		if len(more) == 0 {
			return l, errs.New(errs.Invalid, "there is no public key in %s", o.recipientsFile)
		}
		l.Recipients = append(l.Recipients, more...)
	}
	var err error
	if o.passphraseFile != "" {
		l.Passphrase, err = secretFile(o.deps, o.passphraseFile)
	} else if len(l.Recipients) == 0 {
		l.Passphrase = backup.Passphrase(lookup(o.deps.Environ(), envBackupPassphrase))
	}
	return l, errors.Join(err, l.Check())
}

func runBackupCreate(ctx context.Context, o backupCreateOptions) (err error) {
	if o.name != "" {
		if err := backup.CheckName(o.name); err != nil {
			return err
		}
	}
	l, err := o.lock()
	if err != nil {
		return err
	}
	dir := cmp.Or(o.dir, o.deps.Paths().Backups())
	if o.name != "" {
		for _, encrypted := range []bool{false, true} {
			if file := filepath.Join(dir, backup.FileName(o.name, encrypted)); fileExists(file) {
				return errs.New(errs.Exists, "there is a backup %q already: %s", o.name, file)
			}
		}
	}
	c, err := control.NewClient(o.deps.Paths().ControlSocket()).CollectBackup(ctx, control.BackupRequest{Name: o.name})
	if errs.Is(err, errs.NotRunning) {
		if _, serr := os.Stat(o.deps.Paths().Data); serr != nil || os.Geteuid() > 0 {
			return err // there is no node, or we may not read it
		}
		var do daemon.Options
		if do, err = daemonOptions(o.deps, nil); err == nil {
			c, err = daemon.CollectOffline(ctx, do, control.BackupRequest{Name: o.name})
		}
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(c.Dir)) }()
	if err := gatheredIn(o.deps.Paths().Data, c); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the directory of backups: %w", err)
	}
	made, err := writeArchive(ctx, c, filepath.Join(dir, backup.FileName(c.Manifest.Name, !l.None())), l)
	if err != nil {
		return err
	}
	if o.keep > 0 {
		keep := backup.Retention{Keep: o.keep, Node: c.Manifest.Node, CAs: append(casBefore(c.Dir), c.Manifest.CA), Made: made.File}
		if made.Removed, err = pruneBackups(dir, keep); err != nil {
			return errors.Join(fmt.Errorf("the backup is %s; older ones are not removed: %w", made.File, err))
		}
	}
	return printer.Print(o.deps.Streams.Out, o.format, made, func(w io.Writer) error {
		m := made.Manifest
		fmt.Fprintf(w, "file:      %s, %s%s\n", made.File, size(made.Bytes), map[bool]string{true: ", encrypted"}[made.Encrypted])
		fmt.Fprintf(w, "sha256:    %s\n", made.SHA256)
		fmt.Fprintf(w, "holds:     %d objects at revision %d, %d files of keys, configuration and manifests\n", m.Store.Keys, m.Store.Revision, len(m.Parts)-1)
		for _, left := range m.Left {
			fmt.Fprintf(w, "not in it: %s\n", left)
		}
		for _, r := range made.Removed {
			fmt.Fprintf(w, "removed:   %s\n", r)
		}
		return nil
	})
}

// casBefore are those the cluster had, as what was gathered in a directory tells; none where that cannot be read.
func casBefore(dir string) []string {
	p := paths.Paths{Data: dir} // the parts have their places
	b, err := os.ReadFile(pki.CrossFile(p))
	if err != nil {
		return nil
	}
	return pki.PinsOf(b)
}

// gatheredIn is an error where a state was gathered that is not the one in the data directory we were told: who runs is found by
// its socket, which is elsewhere.
func gatheredIn(data string, c control.Collected) error {
	ours, err := os.Stat(data)
	if err != nil {
		return errs.As(errs.NotFound, fmt.Errorf("looking at the data directory: %w", err))
	}
	if theirs, err := os.Stat(filepath.Dir(c.Dir)); err == nil && os.SameFile(ours, theirs) {
		return nil
	}
	return errs.Hint(errs.New(errs.Exists, "the k1s that runs has another data directory (%s) than %s", filepath.Dir(c.Dir), data), "stop it first: k1s stop")
}

func fileExists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}

// interruptible ends reading with ctx.
type interruptible struct {
	ctx context.Context
	io.ReadCloser
}

func (i interruptible) Read(b []byte) (int, error) {
	if i.ctx.Err() != nil {
		return 0, context.Cause(i.ctx)
	}
	return i.ReadCloser.Read(b)
}

// writeArchive writes what has been gathered under another name, puts it on the disk, reads it again, and gives it its name.
func writeArchive(ctx context.Context, c control.Collected, file string, l backup.Lock) (_ Created, err error) {
	out := Created{File: file, Manifest: c.Manifest, Encrypted: !l.None()}
	if fileExists(file) {
		return out, errs.New(errs.Exists, "there is a backup %s already", file)
	}
	f, err := newPart(file)
	if err != nil {
		return out, fmt.Errorf("writing the backup: %w", err)
	}
	part := f.Name()
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(part))
		}
	}()
	h := sha256.New()
	err = backup.Write(io.MultiWriter(f, h), c.Manifest, func(p backup.Part) (io.ReadCloser, error) {
		r, err := os.Open(filepath.Join(c.Dir, filepath.FromSlash(p.Name)))
		return interruptible{ctx, r}, err
	}, l)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = readBack(f, h.Sum(nil), l)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return out, fmt.Errorf("writing the backup %s: %w", file, err)
	}
	if st, err := os.Stat(part); err == nil {
		out.Bytes = st.Size()
	}
	out.SHA256 = hex.EncodeToString(h.Sum(nil))
	if err := giveName(part, file); err != nil {
		return out, fmt.Errorf("writing the backup %s: %w", file, err)
	}
	return out, durable.SyncDir(filepath.Dir(file))
}

// giveName gives a file its name, which another that is written at the same time may just have got.
func giveName(part, file string) error {
	switch err := os.Link(part, file); {
	case errors.Is(err, fs.ErrExist):
		return errs.New(errs.Exists, "there is one already")
	case err != nil: // there are file systems without links
		return os.Rename(part, file)
	}
	return os.Remove(part)
}

// newPart is a file (0600) that nobody else has, nor could have made before, beside one that is to be. pruneBackups finds it.
func newPart(file string) (*os.File, error) {
	return os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*"+backup.PartEnd)
}

// readBack checks an archive that was just written: its bytes always, and what is in it where it can be opened, which one for recipients
// cannot.
func readBack(f *os.File, want []byte, l backup.Lock) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if !bytes.Equal(h.Sum(nil), want) {
		return errs.New(errs.Failure, "what was read again is not what was written: is the disk failing?")
	}
	if len(l.Recipients) > 0 {
		return nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	a, err := backup.Open(f, backup.Key{Passphrase: l.Passphrase})
	if err != nil {
		return err
	}
	defer a.Close()
	_, err = a.Verify()
	return err
}

// listBackups are the archives of a directory, the newest first.
func listBackups(dir string) ([]backup.Entry, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := []backup.Entry{}
	for _, f := range files {
		st, err := f.Info()
		if err != nil || !st.Mode().IsRegular() {
			continue // it has just gone
		}
		e, ok := backup.ParseFile(filepath.Join(dir, f.Name()), st.ModTime().UTC())
		if !ok {
			continue
		}
		e.Bytes = st.Size()
		if !e.Encrypted {
			if m, err := manifestOf(e.File, backup.Key{}); err != nil {
				e.Problem = err.Error()
			} else {
				e.Manifest, e.At = &m, m.At
			}
		}
		out = append(out, e)
	}
	backup.Sort(out)
	return out, nil
}

// manifestOf reads the beginning of an archive.
func manifestOf(file string, k backup.Key) (backup.Manifest, error) {
	f, err := os.Open(file)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = errs.Hint(errs.As(errs.NotFound, err), "see: k1s backup ls")
		}
		return backup.Manifest{}, err
	}
	defer f.Close() // it is only read
	a, err := backup.Open(f, k)
	if err != nil {
		return backup.Manifest{}, fmt.Errorf("%s: %w", file, err)
	}
	defer a.Close()
	return a.Manifest, nil
}

// partAge is after which time an archive whose writing has not ended counts as interrupted.
const partAge = 24 * time.Hour

func pruneBackups(dir string, keep backup.Retention) ([]string, error) {
	all, err := listBackups(dir)
	if err != nil {
		return nil, err
	}
	var removed []string
	for _, e := range keep.Expired(all) {
		if rerr := os.Remove(e.File); rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		removed = append(removed, e.File)
	}
	parts, gerr := filepath.Glob(filepath.Join(dir, ".*"+backup.FileEnd+"*"+backup.PartEnd))
	err = errors.Join(err, gerr)
	for _, p := range parts {
		if st, serr := os.Stat(p); serr == nil && time.Since(st.ModTime()) > partAge {
			err = errors.Join(err, os.Remove(p))
		}
	}
	return removed, err
}

type backupLsOptions struct {
	deps   Deps
	format printer.Format
	dir    string
}

func newBackupLsCmd(deps Deps, runF func(context.Context, backupLsOptions) error) *cobra.Command {
	o := backupLsOptions{deps: deps, format: printer.Table}
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the archives in a directory",
		Long:  "Lists archives with what their manifests tell; of one that is encrypted only the name. It does not read them whole: that is verify.",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	cmd.Flags().StringVar(&o.dir, "dir", "", "which directory (default "+deps.Paths().Backups()+")")
	return cmd
}

func runBackupLs(_ context.Context, o backupLsOptions) error {
	dir := cmp.Or(o.dir, o.deps.Paths().Backups())
	all, err := listBackups(dir)
	if errors.Is(err, fs.ErrNotExist) && o.dir == "" {
		all, err = []backup.Entry{}, nil
	}
	if err != nil {
		return errs.As(errs.NotFound, fmt.Errorf("listing backups: %w", err))
	}
	return printer.Print(o.deps.Streams.Out, o.format, all, func(w io.Writer) error {
		rows := make([][]string, 0, len(all))
		for _, e := range all {
			row := []string{e.Name, e.At.Local().Format(time.DateTime), size(e.Bytes), "-", "-", "-", "readable", e.File}
			switch m := e.Manifest; {
			case m != nil:
				row[3], row[4], row[5] = m.Node, m.Kubernetes, fmt.Sprint(m.Store.Keys)
			case e.Encrypted:
				row[3], row[6] = cmp.Or(e.Node, "-"), "encrypted"
			default:
				row[6] = "unusable: " + e.Problem
			}
			rows = append(rows, row)
		}
		return printer.Columns(w, []string{"NAME", "TAKEN", "SIZE", "NODE", "KUBERNETES", "OBJECTS", "STATE", "FILE"}, rows)
	})
}

type backupFileOptions struct {
	deps   Deps
	format printer.Format
	file   string
	key    keyOptions
}

func oneArchive(args []string) error {
	if len(args) != 1 {
		return errs.Hint(errs.New(errs.Usage, "say which archive, as a file"), "see: k1s backup ls")
	}
	return nil
}

func newBackupInspectCmd(deps Deps, runF func(context.Context, backupFileOptions) error) *cobra.Command {
	return backupFileCmd(deps, &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what an archive holds",
		Long:  "Reads an archive's manifest: which cluster it is of, when it was made, with which versions, and what is in it.",
	}, runF)
}

func newBackupVerifyCmd(deps Deps, runF func(context.Context, backupFileOptions) error) *cobra.Command {
	return backupFileCmd(deps, &cobra.Command{
		Use:   "verify FILE",
		Short: "Read a whole archive, and check everything in it",
		Long: "Reads a whole archive and compares every file in it with its checksum, the objects with their number, the keys with each other and\n" +
			"with the cluster. What somebody changed on purpose, checksums included, shows only in an archive that is encrypted with a passphrase.\n\n" +
			"The exit code is 0 for one that can be restored, 2 for one that is damaged, 1 when it cannot be opened.",
	}, runF)
}

func backupFileCmd(deps Deps, cmd *cobra.Command, runF func(context.Context, backupFileOptions) error) *cobra.Command {
	o := backupFileOptions{deps: deps, format: printer.Table}
	cmd.Args = func(_ *cobra.Command, args []string) error { return oneArchive(args) }
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o.file = args[0]
		return runF(cmd.Context(), o)
	}
	cmd.Flags().VarP(&o.format, "output", "o", "output format")
	o.key.flags(cmd)
	return cmd
}

func runBackupInspect(_ context.Context, o backupFileOptions) error {
	k, err := o.key.key(o.deps)
	if err != nil {
		return err
	}
	m, err := manifestOf(o.file, k)
	if err != nil {
		return err
	}
	return printManifest(o, m)
}

func runBackupVerify(_ context.Context, o backupFileOptions) error {
	k, err := o.key.key(o.deps)
	if err != nil {
		return err
	}
	m, err := daemon.VerifyBackup(o.file, k)
	if err != nil {
		return err
	}
	if err := printManifest(o, m); err != nil || o.format != printer.Table {
		return err
	}
	_, err = fmt.Fprintln(o.deps.Streams.Out, "verified:    everything in it is as it was written")
	return err
}

func printManifest(o backupFileOptions, m backup.Manifest) error {
	return printer.Print(o.deps.Streams.Out, o.format, m, func(w io.Writer) error {
		fmt.Fprintf(w, "name:        %s\n", m.Name)
		fmt.Fprintf(w, "taken:       %s on %s\n", m.At.Local().Format(time.DateTime), m.Node)
		fmt.Fprintf(w, "cluster:     %s, authority %s\n", m.Cluster, m.CA)
		if len(m.Servers) > 0 {
			fmt.Fprintf(w, "servers:     beside it %s\n", strings.Join(m.Servers, ", "))
		}
		fmt.Fprintf(w, "versions:    k1s %s, Kubernetes %s, format %d\n", m.K1s, m.Kubernetes, m.Format)
		fmt.Fprintf(w, "datastore:   %s, %d objects, %s, revision %d\n", m.Store.Engine, m.Store.Keys, size(m.Store.Bytes), m.Store.Revision)
		if len(m.SecretKeys) > 0 {
			fmt.Fprintf(w, "Secrets:     encrypted with %s, which is in it\n", strings.Join(m.SecretKeys, ", "))
		}
		for _, left := range m.Left {
			fmt.Fprintf(w, "not in it:   %s\n", left)
		}
		rows := make([][]string, 0, len(m.Parts))
		for _, p := range m.Parts {
			rows = append(rows, []string{p.Name, fmt.Sprint(p.Bytes), p.SHA256})
		}
		fmt.Fprintln(w)
		return printer.Columns(w, []string{"FILE", "BYTES", "SHA256"}, rows)
	})
}

type backupRestoreOptions struct {
	deps    Deps
	format  printer.Format
	request daemon.RestoreRequest
	key     keyOptions
	to      string
	target  config.Datastore
	yes     bool
}

func newBackupRestoreCmd(deps Deps, runF func(context.Context, backupRestoreOptions) error) *cobra.Command {
	o := backupRestoreOptions{deps: deps, format: printer.Table}
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make this machine a server of the cluster in an archive, while k1s does not run",
		Long: "Restores a cluster from an archive: on an empty machine before k1s starts the first time, or in the place of what is on this one.\n" +
			"The whole new state is made beside the present one, checked, and then takes its place; what was before is put aside, never\n" +
			"deleted. Killed at any time, it is either not done, or done when k1s starts the next time.\n\n" +
			"The state can go to another datastore than it came from (--to). Revisions go on behind any that a client can have seen.\n" +
			"k1s has to be of the same version of Kubernetes as the backup, or newer.\n\n" +
			"Other servers of the cluster must not start again with what they have: run k1s reset --force on each, and let it join.",
		Example: "  k1s backup restore /mnt/backup/k1s-edge-1-20261121T120000Z.tar.zst.age --passphrase-file - --dry-run\n" +
			"  k1s backup restore before-upgrade.tar.zst --to etcd",
		Args: func(_ *cobra.Command, args []string) error { return oneArchive(args) },
		RunE: func(cmd *cobra.Command, args []string) error {
			o.request.File = args[0]
			return runF(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.VarP(&o.format, "output", "o", "output format")
	o.key.flags(cmd)
	f.StringVar(&o.to, "to", "", "datastore to restore to: sqlite, etcd, https://HOST:2379,…, or the URL of a database without a password (default as configured)")
	f.StringVar(&o.target.EndpointFile, "to-file", "", "file of one line that holds the URL, as spec.datastore.endpointFile")
	f.StringVar(&o.target.CAFile, "ca-file", "", "authority of the database's certificate, as spec.datastore.caFile")
	f.StringVar(&o.target.CertFile, "cert-file", "", "client certificate, as spec.datastore.certFile")
	f.StringVar(&o.target.KeyFile, "key-file", "", "its key, as spec.datastore.keyFile")
	f.StringVar(&o.request.Config, "config", daemon.ConfigAuto, "whose configuration counts: backup, machine, or auto: this machine's if it has one")
	f.BoolVar(&o.request.Foreign, "foreign", false, "also when another cluster is on this machine")
	f.BoolVar(&o.request.Alone, "alone", false, "also while other servers of the cluster answer")
	f.BoolVar(&o.request.DryRun, "dry-run", false, "print what would be done, and do nothing")
	f.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	return cmd
}

// complete makes the request of the flags.
func (o *backupRestoreOptions) complete() error {
	switch o.request.Config {
	case daemon.ConfigAuto, daemon.ConfigBackup, daemon.ConfigMachine:
	default:
		return errs.New(errs.Usage, "--config is %q: it is auto, backup or machine", o.request.Config)
	}
	if o.to != "" && o.target.EndpointFile != "" {
		return errs.New(errs.Usage, "say where to with one of --to and --to-file")
	}
	if o.to == "" && o.target.EndpointFile == "" {
		if o.target != (config.Datastore{}) {
			return errs.New(errs.Usage, "--ca-file, --cert-file and --key-file belong to --to or --to-file")
		}
		return nil
	}
	o.target.Endpoint = config.DSN(o.to)
	if o.to == "" {
		o.target.Endpoint = config.Default().Spec.Datastore.Endpoint
	} else if err := o.target.Endpoint.Check(); err != nil {
		hint, _ := errs.HintOf(err)
		return errs.Hint(errs.New(errs.Usage, "--to %w", err), "%s", hint)
	} else if o.target.Endpoint.HasPassword() {
		return errs.Hint(errs.New(errs.Usage, "the URL of --to has a password in it, and command lines can be read by everybody on this machine"), "put it into a file: --to-file")
	}
	o.request.To = &o.target
	return nil
}

// restoreBackupQuestion is asked before.
const restoreBackupQuestion = "Make this the state of this machine?"

func runBackupRestore(ctx context.Context, o backupRestoreOptions) error {
	if err := o.complete(); err != nil {
		return err
	}
	var err error
	if o.request.Key, err = o.key.key(o.deps); err != nil {
		return err
	}
	if os.Geteuid() > 0 {
		return errs.Hint(errs.New(errs.Failure, "cannot restore: it needs root"), "run: sudo k1s backup restore …")
	}
	do, err := defaultDaemonOptions(o.deps) // which configuration counts is found out there
	if err != nil {
		return err
	}
	o.request.Load = func(file, dropIns string) (config.Config, error) {
		loaded, err := config.Effective(config.Sources{File: file, DropIns: dropIns, Env: o.deps.Environ(), OtherEnv: otherEnv(), Stdin: o.deps.Streams.In},
			config.Known{Disable: disableNames(), Components: components.Names()})
		return loaded.Config, err
	}
	o.request.Warn = func(s string) { fmt.Fprintln(o.deps.Streams.ErrOut, "warning: "+s) }
	plan, state, err := daemon.RestoreBackup(ctx, do, o.request, func(p daemon.RestorePlan) error {
		if err := printUnpackPlan(o.deps.Streams.ErrOut, p); err != nil || o.yes {
			return err
		}
		return confirm(ctx, o.deps.Streams, restoreBackupQuestion)
	})
	switch {
	case err != nil:
		return err
	case state == nil:
		return printer.Print(o.deps.Streams.Out, o.format, plan, func(w io.Writer) error { return printUnpackPlan(w, plan) })
	}
	return printer.Print(o.deps.Streams.Out, o.format, state, func(w io.Writer) error {
		fmt.Fprintf(w, "The state is that of %s, of %s, in %s. Revisions go on behind %d.\n", state.From.Name, state.From.At.Local().Format(time.DateTime), plan.Datastore, state.Revision)
		if state.Archive != "" {
			fmt.Fprintf(w, "What was before is in %s.\n", state.Archive)
		}
		_, err := fmt.Fprintln(w, "Now start k1s: k1s server, or its service.")
		return err
	})
}

func printUnpackPlan(w io.Writer, p daemon.RestorePlan) error {
	m := p.Manifest
	fmt.Fprintf(w, "restore:  %s, of %s on %s: %d objects, %s, revision %d, Kubernetes %s\n", p.File, m.At.Local().Format(time.DateTime), m.Node, m.Store.Keys, size(m.Store.Bytes), m.Store.Revision, m.Kubernetes)
	for _, why := range p.Unfit {
		fmt.Fprintf(w, "but:      %s\n", why)
	}
	if p.Foreign {
		fmt.Fprintf(w, "but:      another cluster is on this machine; --foreign puts it aside all the same\n")
	}
	if len(p.Running) > 0 {
		fmt.Fprintf(w, "but:      servers of the cluster run, at %s; --alone restores all the same\n", strings.Join(p.Running, ", "))
	}
	if p.Replaced {
		fmt.Fprintf(w, "but:      the cluster's CA is another one here than in the backup: agents join again, and kubeconfigs are issued anew\n")
	}
	fmt.Fprintf(w, "to:       %s\n", p.Datastore)
	switch {
	case p.Config == daemon.ConfigBackup:
		fmt.Fprintf(w, "config:   the backup's; written: %s\n", strings.Join(p.Written, ", "))
	case len(p.Written) > 0:
		fmt.Fprintf(w, "config:   this machine's, and written: %s\n", strings.Join(p.Written, ", "))
	default:
		fmt.Fprintf(w, "config:   this machine's, unchanged\n")
	}
	if p.Archive != "" {
		fmt.Fprintf(w, "present:  is put aside, in %s: %s\n", p.Archive, strings.Join(p.Present, ", "))
	}
	if p.FreeBytes > 0 {
		fmt.Fprintf(w, "disk:     %d MiB free, %d MiB needed at most\n", p.FreeBytes>>20, p.NeededBytes>>20)
	}
	for _, s := range m.Servers {
		fmt.Fprintf(w, "server:   %s must not start again as it is; there: k1s reset --force, then join; if it does not come back: k1s node remove %s\n", s, s)
	}
	for _, left := range m.Left {
		fmt.Fprintf(w, "without:  %s\n", left)
	}
	_, err := fmt.Fprintln(w, "then:     start k1s")
	return err
}
