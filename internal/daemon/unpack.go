package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/backup"
	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/restore"
)

// Whose configuration a restored node has.
const (
	ConfigAuto    = "auto"    // this machine's where it has one, otherwise the backup's
	ConfigBackup  = "backup"  // the backup's
	ConfigMachine = "machine" // this machine's
)

// RestoreRequest is what is to be restored from an archive, and how.
type RestoreRequest struct {
	File string
	Key  backup.Key
	// To is the datastore to restore to, nil for the one the configuration names.
	To *config.Datastore
	// Config is one of ConfigAuto, ConfigBackup, ConfigMachine.
	Config string
	// Foreign also replaces the state of another cluster.
	Foreign bool
	// Alone also makes this machine the only server while others of the cluster run.
	Alone  bool
	DryRun bool
	// Load reads a configuration file and drop-ins as k1s server would.
	Load func(file, dropIns string) (config.Config, error)
	// Warn is told what did not go well and is no reason to fail.
	Warn func(string)
}

// RestorePlan is what a restore would do.
type RestorePlan struct {
	File     string          `json:"file"`
	Manifest backup.Manifest `json:"backup"`
	// Unfit names what keeps it from being restored here, Foreign that another cluster is here.
	Unfit   []string `json:"unfit,omitempty"`
	Foreign bool     `json:"foreign,omitempty"`
	// Replaced tells that the cluster has another CA here than in the backup.
	Replaced bool `json:"caReplaced,omitempty"`
	// Running are the addresses at which servers of the cluster answer.
	Running []string `json:"running,omitempty"`
	// Archive is where the present state goes, Present what of it there is.
	Archive string   `json:"archive,omitempty"`
	Present []string `json:"present,omitempty"`
	// Datastore is where the state will be.
	Datastore migration.Place `json:"datastore"`
	// Config tells whose configuration the node will have, Written which of its files are written.
	Config  string   `json:"config"`
	Written []string `json:"written,omitempty"`
	// FreeBytes of the disk; 0 is unknown.
	FreeBytes   uint64 `json:"freeBytes,omitempty"`
	NeededBytes uint64 `json:"neededBytes"`
}

// replaced is what of the data directory belongs to the state of a cluster. Nothing else is touched.
var replaced = []string{"pki", "encryption", "db", "etcd", "datastore", "server.json", "manifests"}

// dumpFile is the datastore's part while it is beside the others.
const dumpFile = "datastore.dump"

// unpacking is a restore of a backup as what it does to the disk. Nothing runs meanwhile.
type unpacking struct {
	p     paths.Paths
	state restore.State[backup.Origin]
	plan  *unpackPlan // nil for one that is only brought to its end
	warn  func(string)
	// revision that the new datastore begins behind
	revision int64
	// before each deed of Switch that changes something, in tests; nil otherwise
	before func() error
}

// unpackPlan is what making the new state takes.
type unpackPlan struct {
	RestorePlan
	in  component.Input
	key backup.Key
	// aside is what of replaced is there, empty directories included.
	aside   []string
	dropIns map[string][]byte // by name
	old     migration.Job     // where the present datastore is
}

var _ restore.World[backup.Origin] = (*unpacking)(nil)

func (u *unpacking) Now() time.Time { return time.Now().UTC() }

func (u *unpacking) Keep(s restore.State[backup.Origin]) error {
	u.state = s
	return durable.WriteFile(u.p.Restore(), s.Marshal(), 0o600)
}

// staged are the paths of what is being made.
func (u *unpacking) staged() paths.Paths {
	s := u.p
	s.Data, s.Config = u.state.Staged, path.Join(u.state.Staged, "config")
	return s
}

// Stage makes the whole new state.
func (u *unpacking) Stage(ctx context.Context) (backup.Origin, error) {
	from, s := u.state.From, u.staged()
	if err := errors.Join(os.RemoveAll(s.Data), os.MkdirAll(s.Data, 0o700)); err != nil {
		return from, err
	}
	if err := u.extract(ctx); err != nil {
		return from, err
	}
	if _, err := pki.ReadKept(s); err != nil {
		return from, errs.As(errs.Invalid, fmt.Errorf("the backup: %w", err))
	}
	if u.plan.Config == ConfigMachine {
		if err := os.RemoveAll(s.Config); err != nil {
			return from, err
		}
	}
	for name, content := range u.plan.dropIns {
		if err := os.MkdirAll(s.ConfigDropIns(), 0o700); err != nil {
			return from, err
		}
		if err := os.WriteFile(path.Join(s.ConfigDropIns(), name), content, 0o600); err != nil {
			return from, err
		}
	}
	// The machine's own key is not the cluster's.
	switch b, err := os.ReadFile(u.p.PKI(pki.NodeIdentity + ".key")); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return from, err
	default:
		if err := os.WriteFile(s.PKI(pki.NodeIdentity+".key"), b, 0o600); err != nil {
			return from, err
		}
	}
	if err := u.keepTokens(); err != nil {
		return from, err
	}
	if err := os.MkdirAll(s.Manifests(), 0o755); err != nil {
		return from, err
	}
	// A database of others, once it is filled, is not empty for the next attempt: what is known to fail does so before.
	if _, err := u.configurable(); err != nil {
		return from, err
	}
	revision, err := u.load(ctx)
	if err != nil {
		return from, err
	}
	u.revision = revision
	if err := os.Remove(path.Join(s.Data, dumpFile)); err != nil {
		return from, err
	}
	return from, errors.Join(durable.SyncTree(s.Data), durable.SyncDir(u.p.Data))
}

// keepTokens lets tokens of service accounts count on that were issued since: those of the pods that run on are among them.
func (u *unpacking) keepTokens() error {
	if u.plan.Foreign {
		return nil
	}
	present, err := os.ReadFile(u.p.PKI(pki.ServiceAccount + ".pub"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	file := u.staged().PKI(pki.ServiceAccount + ".pub")
	restored, also := os.ReadFile(file)
	if err := errors.Join(err, also); err != nil {
		return err
	}
	return os.WriteFile(file, withBlocks(restored, present), 0o644)
}

// withBlocks are the PEM blocks of a file, and behind them those of another that it has not.
func withBlocks(file, other []byte) []byte {
	has := func(b *pem.Block) bool {
		for rest := file; ; {
			var mine *pem.Block
			if mine, rest = pem.Decode(rest); mine == nil {
				return false
			}
			if mine.Type == b.Type && bytes.Equal(mine.Bytes, b.Bytes) {
				return true
			}
		}
	}
	for rest := other; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return file
		}
		if !has(b) {
			file = slices.Concat(bytes.TrimRight(file, "\n"), []byte("\n"), pem.EncodeToMemory(b))
		}
	}
}

// extract writes the parts below the staged directory, and cannot leave it.
func (u *unpacking) extract(ctx context.Context) error {
	f, err := os.Open(u.plan.File)
	if err != nil {
		return err
	}
	defer f.Close() // it is only read
	a, err := backup.Open(f, u.plan.key)
	if err != nil {
		return err
	}
	defer a.Close()
	if !reflect.DeepEqual(a.Manifest, u.plan.Manifest) {
		return errs.New(errs.Failure, "%s changed while it was read", u.plan.File)
	}
	root, err := os.OpenRoot(u.state.Staged)
	if err != nil {
		return err
	}
	defer root.Close() // nothing is written through it
	for {
		p, r, err := a.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		name := p.Name
		if name == backup.Datastore {
			name = dumpFile
		}
		if err := writeBelow(root, name, r); err != nil {
			return fmt.Errorf("unpacking %s: %w", p.Name, err)
		}
	}
}

// writeBelow writes a file with the directories it is in. Others may read certificates, and nothing else: a manifest may be a Secret.
func writeBelow(root *os.Root, name string, r io.Reader) error {
	public := strings.HasPrefix(name, backup.PKI) && (path.Ext(name) == ".crt" || path.Ext(name) == ".pub" || path.Ext(name) == ".pem")
	dirMode, mode := fs.FileMode(0o700), fs.FileMode(0o600)
	if public {
		mode = 0o644
	}
	if public || strings.HasPrefix(name, backup.PKI) {
		dirMode = 0o755
	}
	if err := root.MkdirAll(path.Dir(name), dirMode); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// relocated names the files of a datastore where they are now, when they will be below to.
func relocated(d config.Datastore, to, now paths.Paths) config.Datastore {
	for _, f := range []*string{&d.EndpointFile, &d.CAFile, &d.CertFile, &d.KeyFile} {
		for will, is := range map[string]string{to.Data: now.Data, to.Config: now.Config} {
			if rest, ok := strings.CutPrefix(*f, will+"/"); ok {
				if _, err := os.Stat(path.Join(is, rest)); err == nil {
					*f = path.Join(is, rest)
					break
				}
			}
		}
	}
	return d
}

// load writes the datastore, and tells the first revision it gives out.
func (u *unpacking) load(ctx context.Context) (revision int64, err error) {
	s, in := u.staged(), u.plan.in
	random := make([]byte, moveIDBytes)
	if _, err := rand.Read(random); err != nil {
		return 0, err
	}
	// A member of the cluster it was, should it still run, is refused: its log is another's.
	etcd := component.EtcdMember{Token: "restore-" + u.plan.Manifest.ID() + "-" + hex.EncodeToString(random)}
	in.Paths.Data, in.Etcd, in.Several = s.Data, etcd, false
	in.Config.Spec.Datastore = relocated(in.Config.Spec.Datastore, u.p, s)
	target, err := private(in, "target")
	defer func() { err = errors.Join(err, os.RemoveAll(u.p.Moving(""))) }()
	if err != nil {
		return 0, err
	}
	in.Paths = u.p // for the log
	m := u.plan.Manifest
	j := u.plan.old
	j.Mode, j.Root, j.Target, j.File, j.Summary, j.At = migration.Load, m.Store.Root, target, path.Join(s.Data, dumpFile), m.Store.Summary, m.At
	j.ID = migration.RestoreID(m.ID(), in.Facts.NodeName)
	if components.Engine(in).External() { // it becomes the restored cluster's
		j.Node = in.Facts.NodeName
		if err := u.claims(&j); err != nil {
			return 0, err
		}
	}
	c, err := startCopier(ctx, in, j)
	if err != nil {
		return 0, err
	}
	defer c.kill()
	e, err := c.until(ctx, nil, func(e migration.Event) bool {
		if e.Warning != "" {
			u.warn(e.Warning)
		}
		return e.Result != nil
	})
	if err != nil {
		return 0, err
	}
	return e.Result.TargetRevision, c.wait()
}

// claims says who takes a database of others: the cluster as it will be, in whose name it may have been taken by any CA it had, those that are
// here and not in the backup included.
func (u *unpacking) claims(j *migration.Job) (err error) {
	s := u.staged()
	if j.CA, err = os.ReadFile(pki.CertFile(s, pki.CA)); err != nil {
		return err
	}
	if j.Had, err = pki.Published(s); err != nil || u.plan.Foreign {
		return err
	}
	if present, err := pki.Published(u.p); err == nil && len(pki.PinsOf(present)) > 0 { // there may be none, or one that is damaged
		j.Had = slices.Concat(j.Had, []byte("\n"), present)
	}
	return nil
}

// Pause has nothing to do: nothing runs.
func (*unpacking) Pause(context.Context) error { return nil }

// configurable finds out whether the configuration, which may be on another disk, can be written, and names its files.
func (u *unpacking) configurable() ([]string, error) {
	files, err := filesBelow(u.staged().Config)
	if err != nil {
		return nil, err
	}
	mounts, err := mountInfo()
	if err != nil {
		return nil, err
	}
	for _, rel := range files {
		if err := mayReplace(mounts, path.Join(u.p.Config, rel), path.Join(u.staged().Config, rel)); err != nil {
			return nil, errs.Hint(fmt.Errorf("finding out whether the configuration can be written: %w", err), "make it writable")
		}
	}
	return files, nil
}

// Finish finds out once more whether the configuration can be written, for behind it there is no way back, and copies those of its files
// that will be overwritten to where the present state goes.
func (u *unpacking) Finish(context.Context) (int64, error) {
	files, err := u.configurable()
	if err != nil {
		return 0, err
	}
	if u.state.Archive == "" {
		return u.revision, nil
	}
	if err := os.MkdirAll(u.state.Archive, 0o700); err != nil {
		return 0, err
	}
	for _, rel := range files {
		b, err := os.ReadFile(path.Join(u.p.Config, rel))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		file := path.Join(u.state.Archive, "config", rel)
		if err == nil {
			err = os.MkdirAll(path.Dir(file), 0o700)
		}
		if err == nil {
			err = os.WriteFile(file, b, 0o600)
		}
		if err != nil {
			return 0, fmt.Errorf("putting the present configuration aside: %w", err)
		}
	}
	return u.revision, errors.Join(durable.SyncTree(u.state.Archive), durable.SyncDir(u.p.Data))
}

// mayReplace is an error where a file cannot get the content of another.
func mayReplace(mountinfo, file, content string) error {
	want, err := os.ReadFile(content)
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(file); err == nil && bytes.Equal(have, want) {
		return nil
	}
	dir := path.Dir(file)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if st, err := os.Lstat(file); err == nil && st.IsDir() {
		return errs.New(errs.Exists, "%s is a directory", file)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return err
	}
	if mountedItem(mountinfo, dir, []string{path.Base(file)}) != "" {
		return errs.New(errs.Unsupported, "%s is a mount of its own, and cannot be replaced", file)
	}
	staged, err := durable.Stage(file, nil, 0o600)
	if err != nil {
		return err
	}
	return staged.Discard()
}

// filesBelow names the files below a directory that may not be there.
func filesBelow(dir string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(file string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			out = append(out, strings.TrimPrefix(file, dir+"/"))
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return out, err
}

// Switch puts aside what was there when the restore began, and nothing else: what has its new place is told from what is old by that list,
// whatever is there. The configuration comes first: with it the next start finds the rest. When the staged directory has lost its name
// every deed is done.
func (u *unpacking) Switch() error {
	deed := func(do func() error) error {
		if u.before != nil {
			if err := u.before(); err != nil {
				return err
			}
		}
		return do()
	}
	s := u.staged()
	done := s.Data + switchedEnd
	if !exists(s.Data) {
		return deed(func() error { return os.RemoveAll(done) })
	}
	files, err := filesBelow(s.Config)
	if err != nil {
		return err
	}
	for _, rel := range files {
		b, err := os.ReadFile(path.Join(s.Config, rel))
		if err != nil {
			return err
		}
		file := path.Join(u.p.Config, rel)
		if err := os.MkdirAll(path.Dir(file), 0o755); err != nil {
			return err
		}
		if err := deed(func() error { return writeIfChanged(file, b, 0o600) }); err != nil {
			return fmt.Errorf("writing the configuration: %w", err)
		}
	}
	for _, item := range replaced {
		now, aside, next := path.Join(u.p.Data, item), path.Join(u.state.Archive, item), path.Join(s.Data, item)
		if slices.Contains(u.state.Old, item) && exists(now) && !exists(aside) {
			if err := deed(func() error { return os.Rename(now, aside) }); err != nil {
				return fmt.Errorf("putting %s aside: %w", now, err)
			}
		}
		if !exists(next) {
			continue
		}
		if exists(now) {
			return errs.Hint(errs.New(errs.Failure, "%s has appeared while a backup was restored", now), "move it away, and start k1s, or run this command again: the restore then goes on")
		}
		if err := deed(func() error { return os.Rename(next, now) }); err != nil {
			return fmt.Errorf("putting %s in its place: %w", now, err)
		}
	}
	if err := durable.SyncDir(u.p.Data); err != nil {
		return err
	}
	if u.state.Archive != "" {
		if err := durable.SyncDir(u.state.Archive); err != nil {
			return err
		}
	}
	if err := deed(func() error { return errors.Join(os.RemoveAll(done), os.Rename(s.Data, done)) }); err != nil {
		return err
	}
	return deed(func() error { return os.RemoveAll(done) })
}

// switchedEnd is behind the name of a staged directory from which everything has got its place.
const switchedEnd = ".done"

// Unswitch is not asked for: nothing is started, so nothing can fail then.
func (u *unpacking) Unswitch() error {
	return errs.New(errs.Failure, "what was restored is not taken back; what was before is in %s", u.state.Archive)
}

func (*unpacking) Start(context.Context) error  { return nil }
func (*unpacking) Resume(context.Context) error { return nil }

// Discard removes what was made. Of what has been put aside there are at most copies.
func (u *unpacking) Discard() error {
	err := os.RemoveAll(u.state.Staged)
	if u.state.Archive != "" && isOnly(u.state.Archive, "config") {
		err = errors.Join(err, os.RemoveAll(u.state.Archive))
	}
	return err
}

// isOnly tells that there is nothing in a directory but an entry of that name.
func isOnly(dir, name string) bool {
	all, err := os.ReadDir(dir)
	return err == nil && !slices.ContainsFunc(all, func(e fs.DirEntry) bool { return e.Name() != name })
}

func readUnpacking(p paths.Paths) (restore.State[backup.Origin], error) {
	b, err := os.ReadFile(p.Restore())
	if errors.Is(err, fs.ErrNotExist) {
		return restore.State[backup.Origin]{}, nil
	}
	var s restore.State[backup.Origin]
	if err == nil {
		s, err = restore.Unmarshal[backup.Origin](b)
	}
	if err != nil {
		return s, errs.Hint(fmt.Errorf("reading how far the last restore of a backup came from %s: %w", p.Restore(), err),
			"look for %s: while it is there the restore is not done; remove both, and restore again", p.RestoreStaged("…"))
	}
	return s, nil
}

// endRestore brings a restore of a backup to its end that broke off: back, or if the new state has begun to take its place, forward. The
// caller holds the lock of the data directory. Where it tells that there was one, the configuration may be another than before.
func endRestore(ctx context.Context, p paths.Paths) (ended bool, err error) {
	s, err := readUnpacking(p)
	if err != nil || !s.Active() {
		return false, err
	}
	u := &unpacking{p: p, state: s}
	if s, err = restore.Recover(u, s); err == nil && s.Active() {
		_, err = restore.Run(ctx, u, s)
	}
	return err == nil, err
}

// FinishRestore is for whoever starts a node, before the configuration is read: a restore of a backup that broke off is brought to its
// end, back or forward, and may change the configuration. It tells whether there was one.
func FinishRestore(ctx context.Context, p paths.Paths, log *slog.Logger) (ended bool, err error) {
	s, err := readUnpacking(p)
	if err != nil || !s.Active() {
		return false, err
	}
	unlock, err := lock(ctx, p)
	if err != nil {
		return false, err
	}
	defer unlock()
	if ended, err = endRestore(ctx, p); err != nil || !ended {
		return ended, err
	}
	s, err = readUnpacking(p)
	log.Warn("a restore of a backup broke off", "backup", s.From.Name, "now", string(s.Phase))
	return true, err
}
