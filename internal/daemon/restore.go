package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/restore"
)

// careState is what the daemon knows of snapshots of etcd; Daemon.mu guards it.
type careState struct {
	next    time.Time // of a snapshot by schedule; zero for none
	kept    careFile
	restore etcdcare.Restore
	wake    chan *onlineRestore // holds one
}

// restoring is what a restore does to the disk, whether the node runs or not.
type restoring struct {
	in      component.Input
	s3      etcdcare.S3
	job     etcdcare.Restore // its ID, its places and the snapshot do not change
	kept    func(etcdcare.Restore)
	archive etcdcare.Snapshot // what the data that is put aside is
	warn    func(string)
}

func (r *restoring) Now() time.Time { return time.Now().UTC() }

func (r *restoring) Keep(s etcdcare.Restore) error {
	file := r.in.Paths.EtcdRestore()
	if err := os.MkdirAll(path.Dir(file), 0o700); err != nil {
		return err
	}
	if err := durable.WriteFile(file, s.Marshal(), 0o600); err != nil {
		return err
	}
	r.kept(s)
	return nil
}

// etcdJob is what every job about the staged directory has.
func (r *restoring) etcdJob(do etcdcare.Do) etcdcare.Job {
	member, peer := components.EtcdMember(r.in)
	return etcdcare.Job{
		Do: do, Dir: snapshotDir(r.in), S3: r.s3, Where: []string{r.job.From.Where}, Snapshot: r.job.From.Snapshot,
		Staged: r.job.Staged, Old: r.job.Archive, Member: member, Peer: peer,
	}
}

func (r *restoring) Stage(ctx context.Context) (etcdcare.Entry, error) {
	answer, err := runCare(ctx, r.in, r.etcdJob(etcdcare.Stage))
	if err != nil {
		return r.job.From, err
	}
	if len(answer.Entries) != 1 {
		return r.job.From, errors.New("the program that looks after etcd did not say what it has restored")
	}
	r.job.From = answer.Entries[0]
	return r.job.From, nil
}

func (r *restoring) Finish(ctx context.Context) (int64, error) {
	j := r.etcdJob(etcdcare.Advance)
	if j.Old != "" {
		j.Old = r.in.Paths.Etcd() // it has not moved yet
	}
	answer, err := runCare(ctx, r.in, j)
	for _, w := range answer.Warnings {
		r.warn(w)
	}
	return answer.Revision, err
}

// Switch: the staged directory is there until the last deed is done.
func (r *restoring) Switch() error {
	p := r.in.Paths
	if !exists(r.job.Staged) {
		return nil
	}
	if r.job.Archive != "" && !exists(r.job.Archive) {
		if err := r.describe(p.Etcd()); err != nil {
			return err
		}
		if err := os.Rename(p.Etcd(), r.job.Archive); err != nil {
			return fmt.Errorf("putting etcd's data aside: %w", err)
		}
	}
	if err := removeEmpty(p.Etcd()); err != nil {
		return err
	}
	if err := os.Rename(r.job.Staged, p.Etcd()); err != nil {
		return fmt.Errorf("putting the restored data in its place: %w", err)
	}
	return durable.SyncDir(p.Data)
}

// describe writes what a data directory is into it, for when it is to be restored.
func (r *restoring) describe(dir string) error {
	b, err := etcdcare.MarshalSnapshot(r.archive)
	if err == nil {
		err = durable.WriteFile(path.Join(dir, etcdcare.ArchiveMeta), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("describing etcd's data before it is put aside: %w", err)
	}
	return nil
}

// Unswitch: the archive is there until the last deed is done.
func (r *restoring) Unswitch() error {
	p := r.in.Paths
	if r.job.Archive == "" || !exists(r.job.Archive) {
		return nil
	}
	if exists(p.Etcd()) {
		if err := errors.Join(os.RemoveAll(r.job.Staged), os.Rename(p.Etcd(), r.job.Staged)); err != nil {
			return fmt.Errorf("taking the restored data away: %w", err)
		}
	}
	if err := os.Rename(r.job.Archive, p.Etcd()); err != nil {
		return fmt.Errorf("putting etcd's data back: %w", err)
	}
	return durable.SyncDir(p.Data)
}

func (r *restoring) Discard() error {
	return errors.Join(os.RemoveAll(r.job.Staged), removeIfThere(r.job.Staged+".download"))
}

func exists(dir string) bool {
	_, err := os.Lstat(dir)
	return err == nil
}

// offlineRestore is a World in which nothing runs.
type offlineRestore struct{ restoring }

var _ restore.World[etcdcare.Entry] = (*offlineRestore)(nil)

func (*offlineRestore) Pause(context.Context) error  { return nil }
func (*offlineRestore) Start(context.Context) error  { return nil }
func (*offlineRestore) Resume(context.Context) error { return nil }

// onlineRestore is this node as the World of one.
type onlineRestore struct {
	restoring
	d *Daemon
	// served tells that the control plane ran when it began, so that how it starts says something about the new data.
	served bool
	began  bool
}

var _ restore.World[etcdcare.Entry] = (*onlineRestore)(nil)

func (d *Daemon) newRestore(in component.Input, r etcdcare.Restore) *onlineRestore {
	o := &onlineRestore{d: d, restoring: restoring{in: in, job: r, archive: archiveOf(in)}}
	o.warn = func(s string) { d.log.Warn("restoring etcd", "warning", s) }
	o.kept = func(s etcdcare.Restore) {
		d.mu.Lock()
		d.care.restore = s
		d.mu.Unlock()
		d.log.Info("restoring etcd", "from", s.From.Where, "phase", string(s.Phase))
	}
	return o
}

// archiveOf is what the present data will be once it is put aside.
func archiveOf(in component.Input) etcdcare.Snapshot {
	s := identity(in, secretKeys(in.Paths))
	s.Kind, s.At = etcdcare.Archived, time.Now().UTC().Truncate(time.Second)
	return s
}

func (o *onlineRestore) Pause(ctx context.Context) error {
	plan, err := components.Plan(o.in)
	if err == nil {
		err = o.d.sup.Apply(ctx, components.WithoutControlPlane(plan))
	}
	if err != nil {
		return fmt.Errorf("stopping the control plane: %w", err)
	}
	return nil
}

func (o *onlineRestore) Resume(ctx context.Context) error {
	if o.d.stopRequest() != nil {
		return nil // the node ends
	}
	plan, err := components.Plan(o.in)
	if err != nil {
		return err
	}
	return o.d.sup.Apply(ctx, plan)
}

func (o *onlineRestore) Start(ctx context.Context) error {
	d, now := o.d, time.Now()
	// Later tries cannot tell whether an earlier one has served; and of one that goes on after a restart less is known.
	mayGoBack := o.served && !o.began
	o.began = true
	if err := o.Resume(ctx); err != nil {
		return err
	}
	open, cancel := context.WithTimeoutCause(ctx, openWithin, fmt.Errorf("not within %s", openWithin))
	err := d.sup.Wait(open, apiserver, component.Open)
	cancel()
	if err != nil && ctx.Err() == nil && mayGoBack {
		err = fmt.Errorf("the API server does not get on with the restored data: %w", err)
		if perr := o.Pause(ctx); perr != nil || d.opened(now) {
			return errors.Join(err, perr)
		}
		return restore.NotServed{Err: err}
	}
	if err != nil {
		return err
	}
	ready, cancel := context.WithTimeoutCause(ctx, serveWithin, fmt.Errorf("not within %s", serveWithin))
	defer cancel()
	return d.sup.Wait(ready, apiserver, component.Ready)
}

// readRestore reads how far the last one came.
func readRestore(p paths.Paths) (etcdcare.Restore, error) {
	b, err := os.ReadFile(p.EtcdRestore())
	if errors.Is(err, os.ErrNotExist) {
		return etcdcare.Restore{}, nil
	}
	var r etcdcare.Restore
	if err == nil {
		r, err = restore.Unmarshal[etcdcare.Entry](b)
	}
	if err != nil {
		return r, errs.Hint(fmt.Errorf("reading how far the last restore of etcd came from %s: %w", p.EtcdRestore(), err),
			"look for %s: while it is there and %s is not, name it so; then remove that file", p.EtcdStaged("…"), p.Etcd())
	}
	return r, nil
}

// snapshotInPlace is an error while a restore of a snapshot has broken off where etcd's data directory may be either, or none.
func snapshotInPlace(p paths.Paths) error {
	r, err := readRestore(p)
	if err == nil && r.Committed() && r.Phase != restore.Starting {
		err = errs.Hint(errs.New(errs.Exists, "the restore of a snapshot of etcd has broken off (%s)", r.Phase), "start k1s once, it goes on")
	}
	return err
}

// prepareRestore ends a restore that a killed daemon had begun, as far as that goes before anything runs.
func (d *Daemon) prepareRestore(in component.Input) error {
	r, err := readRestore(in.Paths)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.care.restore, d.care.wake = r, make(chan *onlineRestore, 1)
	d.mu.Unlock()
	if r.Active() {
		was := r.Phase
		if r, err = restore.Recover(d.newRestore(in, r), r); err != nil {
			return err
		}
		d.log.Warn("a restore of etcd broke off", "from", r.From.Where, "phase", string(was), "now", string(r.Phase))
	}
	return removeStaged(in.Paths)
}

// removeStaged removes what restores have left that were killed.
func removeStaged(p paths.Paths) error {
	left, err := filepath.Glob(p.EtcdStaged("*"))
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// forgetArchives leaves the newest of what restores have put aside. Their names end with the time.
func forgetArchives(p paths.Paths) error {
	all, err := archives(p)
	if err != nil {
		return err
	}
	slices.Sort(all)
	for _, dir := range all[:max(0, len(all)-etcdcare.KeepArchives)] {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// watchRestores does the restores that are asked for, and ends one that a killed daemon had begun.
func (d *Daemon) watchRestores(ctx context.Context) {
	d.mu.Lock()
	r, wake, in := d.care.restore, d.care.wake, d.in
	d.mu.Unlock()
	var o *onlineRestore
	if r.Active() {
		o = d.newRestore(in, r)
	}
	for {
		for o != nil && ctx.Err() == nil {
			r, err := o.run(ctx)
			if err == nil || !r.Active() {
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(goOnAfter):
			}
		}
		select {
		case <-ctx.Done():
			return
		case o = <-wake:
		}
	}
}

func (o *onlineRestore) run(ctx context.Context) (etcdcare.Restore, error) {
	d := o.d
	d.planning.Lock()
	defer d.planning.Unlock()
	d.mu.Lock()
	r := d.care.restore
	d.mu.Unlock()
	r, err := restore.Run(ctx, o, r)
	d.mu.Lock()
	d.care.restore = r
	d.mu.Unlock()
	if err != nil {
		d.log.Error("etcd is not restored", "from", r.From.Where, "phase", string(r.Phase), "err", err)
		return r, err
	}
	if err := forgetArchives(o.in.Paths); err != nil {
		d.log.Warn("older data that restores have put aside is not removed", "err", err)
	}
	d.log.Info("etcd is restored", "from", r.From.Where, "revision", r.Revision, "before", r.Archive, "paused", time.Duration(r.PausedS*float64(time.Second)))
	return r, nil
}

// resolveSnapshot finds the snapshot that is meant, and reads all of it where it is on this server.
func resolveSnapshot(ctx context.Context, in component.Input, api *kubeapi.Client, what string) (etcdcare.Entry, etcdcare.S3, error) {
	if !strings.Contains(what, "/") {
		all, far, err := listSnapshots(ctx, in, api)
		if err != nil {
			return etcdcare.Entry{}, far, err
		}
		e, err := etcdcare.Find(all.Entries, what)
		if err != nil && len(all.Warnings) > 0 {
			err = fmt.Errorf("%w; %s", err, strings.Join(all.Warnings, "; "))
		}
		return e, far, err
	}
	var far etcdcare.S3
	if rest, ok := strings.CutPrefix(what, etcdcare.S3Scheme); ok {
		var err error
		if far, err = s3(ctx, in, api); err != nil {
			return etcdcare.Entry{}, far, err
		}
		if bucket, _, _ := strings.Cut(rest, "/"); bucket != far.Bucket {
			return etcdcare.Entry{}, far, errs.New(errs.Invalid, "%s is in another bucket than the one that is configured, %q", what, far.Bucket)
		}
	}
	answer, err := runCare(ctx, in, etcdcare.Job{Do: etcdcare.Look, Dir: snapshotDir(in), S3: far, Where: []string{what}})
	if err == nil && len(answer.Entries) != 1 {
		err = errs.New(errs.NotFound, "there is no %s", what)
	}
	if err != nil {
		return etcdcare.Entry{}, far, err
	}
	return answer.Entries[0], far, nil
}

// planRestore checks what can be checked before anything is done.
func planRestore(ctx context.Context, in component.Input, api *kubeapi.Client, r control.RestoreRequest) (control.RestorePlan, etcdcare.S3, error) {
	e, far, err := resolveSnapshot(ctx, in, api, r.Snapshot)
	if err != nil {
		return control.RestorePlan{}, far, err
	}
	if e.State != etcdcare.Complete && e.State != etcdcare.Bare {
		return control.RestorePlan{}, far, errs.Hint(errs.New(errs.Invalid, "the snapshot %s is %s: %s", e.Where, e.State, e.Problem), "take another one; see: k1s etcd snapshot ls")
	}
	here := identity(in, secretKeys(in.Paths))
	if pinned(in.Paths, e.CA) {
		here.CA = e.CA // this cluster had it before
	}
	plan := control.RestorePlan{Snapshot: e, Unfit: e.Unfit(etcdcare.Here{CA: here.CA, Kubernetes: here.Kubernetes, SecretKeys: here.SecretKeys})}
	if !isEmpty(in.Paths.Etcd()) {
		plan.Archive = in.Paths.EtcdArchive(time.Now().UTC().Format("20060102T150405Z"))
	}
	return plan, far, nil
}

// allowed tells whether a plan may be carried out.
func allowed(p control.RestorePlan, r control.RestoreRequest) error {
	if len(p.Unfit) > 0 && !r.Foreign {
		return errs.Hint(errs.New(errs.Invalid, "the snapshot %s should not be restored here: %s", p.Snapshot.Name, strings.Join(p.Unfit, "; ")), "to do it all the same, add --foreign")
	}
	if len(p.Others) > 0 && !r.Alone {
		return errs.Hint(errs.New(errs.Exists, "etcd has other members: %s. They have to be stopped, reset (k1s reset --force) before they start again, and to join again", strings.Join(p.Others, ", ")), "stop them, and add --alone")
	}
	return nil
}

func beginRestore(last etcdcare.Restore, p control.RestorePlan, in component.Input) (etcdcare.Restore, error) {
	random := make([]byte, moveIDBytes)
	if _, err := rand.Read(random); err != nil {
		return last, err
	}
	id := hex.EncodeToString(random)
	next, err := last.Begin(etcdcare.Restore{
		ID: id, From: p.Snapshot, Archive: p.Archive, Staged: in.Paths.EtcdStaged(id), Since: time.Now().UTC().Truncate(time.Second),
	})
	return next, errs.Hint(err, "watch it with: k1s etcd status")
}

// RestoreSnapshot implements control.Backend.
func (d *Daemon) RestoreSnapshot(ctx context.Context, r control.RestoreRequest) (control.Restored, error) {
	in, api, err := d.etcdServer()
	if err != nil {
		return control.Restored{}, err
	}
	if err := d.mayRestore(); err != nil {
		return control.Restored{}, err
	}
	plan, far, err := planRestore(ctx, in, api, r)
	if err != nil {
		return control.Restored{}, err
	}
	plan.Running = true
	d.lookForPlan(ctx, in, &plan)
	if r.DryRun {
		return control.Restored{Plan: &plan}, nil
	}
	if err := allowed(plan, r); err != nil {
		return control.Restored{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	state, err := beginRestore(d.care.restore, plan, in)
	if err != nil {
		return control.Restored{}, err
	}
	if d.moving.active() {
		return control.Restored{}, errs.New(errs.Exists, "somebody has begun to move the datastore")
	}
	o := d.newRestore(in, state)
	o.s3, o.served = far, true
	d.care.restore = state
	d.care.wake <- o // holds one, and nothing is on its way
	return control.Restored{Restore: &state}, nil
}

// mayRestore refuses while something else is done to the datastore.
func (d *Daemon) mayRestore() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.care.wake == nil || d.stopped != nil:
		return errs.Hint(errs.New(errs.NotRunning, "the node is not running yet, or not any more"), "try again when it runs: k1s status")
	case d.moving.active():
		return errs.Hint(errs.New(errs.Exists, "the datastore is being moved"), "wait for its end: k1s datastore")
	}
	return nil
}

// leftOut are the other servers, as far as this one's disk knows them. They count where etcd does not say who its members are: one without a
// majority does not, and nor does one that is stopped, and just then the others may go on without this server.
func leftOut(in component.Input) []string {
	if !in.Several {
		return nil
	}
	known := knownServers(in.Paths)
	if len(known) == 0 {
		return []string{"servers whose addresses are not known here"}
	}
	return known
}

// lookForPlan adds what etcd says, if it answers: a restore may be what it needs to.
func (d *Daemon) lookForPlan(ctx context.Context, in component.Input, p *control.RestorePlan) {
	p.Others = leftOut(in)
	c, err := etcdClient(in)
	if err != nil {
		return
	}
	defer c.Close()
	f, s, err := d.look(ctx, c, in)
	if err != nil {
		return
	}
	p.Revision, p.Others = s.Revision, nil
	for _, m := range f.Members {
		if !m.Self {
			p.Others = append(p.Others, m.Name)
		}
	}
	slices.Sort(p.Others)
}

// RestoreOffline restores a snapshot while the node does not run.
func RestoreOffline(ctx context.Context, o Options, r control.RestoreRequest, confirm func(control.RestorePlan) error) (control.Restored, error) {
	if r.DryRun {
		switch s, err := readUnpacking(o.Paths); {
		case err != nil:
			return control.Restored{}, err
		case s.Active():
			return control.Restored{}, errs.Hint(errs.New(errs.Exists, "the restore of the backup %s has broken off, and what the state will be is known at its end", s.From.Name),
				"start k1s, or run this command without --dry-run: either brings it to its end")
		}
	}
	unlock, in, err := quiet(ctx, &o)
	if err != nil {
		return control.Restored{}, err
	}
	defer unlock()
	if err := asServer(&in); err != nil { // what its member is called, and whether there are others
		return control.Restored{}, err
	}
	if !components.UsesEtcd(in) {
		return control.Restored{}, errs.Hint(notEtcd(in), "what k1s server is told by flags is not known while it does not run: write it into %s", in.Paths.ConfigFile())
	}
	if err := undecided(in); err != nil { // where they have moved, what is restored here would never be used
		return control.Restored{}, err
	}
	last, err := readRestore(in.Paths)
	if err != nil {
		return control.Restored{}, err
	}
	world := func(s etcdcare.Restore, far etcdcare.S3) *offlineRestore {
		return &offlineRestore{restoring{in: in, s3: far, job: s, archive: archiveOf(in), kept: func(etcdcare.Restore) {}, warn: func(s string) { o.Log.Warn("restoring etcd", "warning", s) }}}
	}
	if last.Active() && !r.DryRun {
		// What is begun first: the present data may be either.
		w := world(last, etcdcare.S3{})
		if last, err = restore.Recover(w, last); err == nil && last.Active() {
			last, err = restore.Run(ctx, w, last)
		}
		if err != nil {
			return control.Restored{}, err
		}
	}
	plan, far, err := planRestore(ctx, in, nil, r)
	if err != nil {
		return control.Restored{}, err
	}
	plan.Others = leftOut(in)
	if r.DryRun {
		return control.Restored{Plan: &plan}, nil
	}
	if err := errors.Join(allowed(plan, r), removeStaged(in.Paths)); err != nil {
		return control.Restored{}, err
	}
	if err := confirm(plan); err != nil {
		return control.Restored{}, err
	}
	state, err := beginRestore(last, plan, in)
	if err != nil {
		return control.Restored{}, err
	}
	if state, err = restore.Run(ctx, world(state, far), state); err == nil {
		if err := forgetArchives(in.Paths); err != nil {
			o.Log.Warn("older data that restores have put aside is not removed", "err", err)
		}
	}
	return control.Restored{Restore: &state}, err
}

// restoreDoing is what a restore does, for the status.
func restoreDoing(r etcdcare.Restore) string {
	return fmt.Sprintf("restoring the snapshot %s: %s", r.From.Name, r.Phase)
}
