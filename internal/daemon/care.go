package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
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
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/token"
	"k1s.io/k1s/internal/version"
)

// careName is the applet, and the name of its log.
const careName = "etcd-care"

// endWithin is how long the applet may take to end after it was asked to.
const endWithin = 10 * time.Second

// runCare lets the applet do a job. It ends with its input, so also with us.
func runCare(ctx context.Context, in component.Input, j etcdcare.Job) (etcdcare.Answer, error) {
	var answer etcdcare.Answer
	line, err := json.Marshal(j)
	if err != nil {
		return answer, err
	}
	log, err := appletLog(in, careName)
	if err != nil {
		return answer, err
	}
	defer log.Close() // the process has its own
	cmd := exec.CommandContext(ctx, path.Join(in.Payload, components.Program), careName)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, log
	cmd.Env = append(os.Environ(), "PATH="+in.Payload+":"+os.Getenv("PATH"))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return answer, err
	}
	cmd.Cancel, cmd.WaitDelay = stdin.Close, endWithin
	if err := cmd.Start(); err != nil {
		return answer, fmt.Errorf("starting the program that looks after etcd: %w", err)
	}
	_, err = stdin.Write(append(line, '\n')) // and is open until it ends
	if err = errors.Join(err, cmd.Wait()); err != nil {
		if ctx.Err() != nil {
			return answer, context.Cause(ctx)
		}
		return answer, programError("looking after etcd", careName, err, log.Name())
	}
	if err := json.Unmarshal(out.Bytes(), &answer); err != nil {
		return answer, errs.WithLog(fmt.Errorf("reading the answer of the program that looks after etcd: %w", err), log.Name())
	}
	if answer.Error != nil {
		return answer, answer.Error.Err()
	}
	return answer, nil
}

// careFile is what the schedule needs to know after a restart.
type careFile struct {
	// At is when the last snapshot by schedule was begun, or since when there is a schedule.
	At    time.Time       `json:"at"`
	Last  *etcdcare.Entry `json:"last,omitempty"` // that was taken
	Error string          `json:"error,omitempty"`
	Hint  string          `json:"hint,omitempty"`
}

func readCareFile(p paths.Paths) (careFile, error) {
	var f careFile
	if err := readStatusFile(p.EtcdCare(), &f); err != nil {
		return careFile{}, err
	}
	return f, nil
}

func (d *Daemon) keepCareFile(f careFile) error {
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(path.Dir(d.o.Paths.EtcdCare()), 0o700); err != nil {
		return err
	}
	return durable.WriteFile(d.o.Paths.EtcdCare(), append(b, '\n'), 0o600)
}

// snapshotDir is where snapshots are on this server.
func snapshotDir(in component.Input) string {
	if dir := in.Config.Spec.Etcd.Snapshots.Dir; dir != "" {
		return dir
	}
	return in.Paths.Snapshots()
}

// s3 is the configured bucket, its credentials included. api is nil while nothing runs.
func s3(ctx context.Context, in component.Input, api *kubeapi.Client) (etcdcare.S3, error) {
	c := in.Config.Spec.Etcd.Snapshots.S3
	out := etcdcare.S3{
		Endpoint: c.Endpoint, Bucket: c.Bucket, Folder: c.Folder, Region: c.Region, CAFile: c.CAFile, PathStyle: c.PathStyle, CredentialsFile: c.CredentialsFile,
	}
	if c.Bucket == "" || c.Secret == "" {
		return out, nil
	}
	const instead = "name a file with them instead (spec.etcd.snapshots.s3.credentialsFile)"
	if api == nil {
		return out, errs.Hint(errs.New(errs.NotRunning, "the credentials for S3 are in the Secret %s, which cannot be read while the API does not run", c.Secret), instead)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, askAPI, errors.New("the API server took more than 2s"))
	defer cancel()
	sec, err := api.Secret(ctx, systemNamespace, c.Secret)
	if err != nil {
		return out, errs.Hint(fmt.Errorf("reading the credentials for S3 from the Secret %s of kube-system: %w", c.Secret, err), "create it, with accessKey and secretKey, or %s", instead)
	}
	out.AccessKey, out.SecretKey, out.SessionToken = string(sec.Data["accessKey"]), string(sec.Data["secretKey"]), string(sec.Data["sessionToken"])
	if out.AccessKey == "" || out.SecretKey == "" {
		return out, errs.New(errs.Invalid, "the Secret %s of kube-system has no accessKey, or no secretKey", c.Secret)
	}
	return out, nil
}

// caPin identifies the cluster; "" where there is none yet.
func caPin(p paths.Paths) string {
	ca, err := pki.ReadCA(p)
	if err != nil {
		return ""
	}
	return token.Pin(ca)
}

// identity is what this node knows of a snapshot of its own before it is taken.
func identity(in component.Input, keys []string) etcdcare.Snapshot {
	return etcdcare.Snapshot{Node: in.Facts.NodeName, K1s: version.K1s, Kubernetes: version.Kubernetes, CA: caPin(in.Paths), SecretKeys: keys}
}

// secretKeys names the keys Secrets may be written with.
func secretKeys(p paths.Paths) []string {
	s, _, err := readKeys(p)
	if err != nil {
		return nil // the start says so
	}
	var out []string
	for _, k := range s.Providers() {
		if k.Name != "" {
			out = append(out, k.Name)
		}
	}
	return out
}

// etcdServer is the node where etcd is its datastore.
func (d *Daemon) etcdServer() (component.Input, *kubeapi.Client, error) {
	in, api, err := d.server()
	if err == nil && !components.UsesEtcd(in) {
		err = notEtcd(in)
	}
	return in, api, err
}

func notEtcd(in component.Input) error {
	return errs.Hint(errs.New(errs.Unsupported, "the datastore of this server is not the embedded etcd, but %s", in.Config.Spec.Datastore.Endpoint),
		"see: k1s datastore; to change it: k1s datastore migrate --to etcd")
}

// turn is to be had before snapshots are written or removed.
func (d *Daemon) turn(ctx context.Context) (func(), error) {
	select {
	case d.snapshots <- struct{}{}:
		return func() { <-d.snapshots }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// saveTime is how long a snapshot may take until it is at all its places.
const saveTime = 30 * time.Minute

// SaveSnapshot implements control.Backend.
func (d *Daemon) SaveSnapshot(ctx context.Context, r control.SnapshotRequest) (control.Snapshots, error) {
	if r.Name != "" {
		if err := etcdcare.CheckName(r.Name); err != nil {
			return control.Snapshots{}, err
		}
	}
	return d.saveSnapshot(ctx, etcdcare.Manual, r.Name)
}

func (d *Daemon) saveSnapshot(ctx context.Context, kind etcdcare.Kind, name string) (control.Snapshots, error) {
	in, api, err := d.etcdServer()
	if err != nil {
		return control.Snapshots{}, err
	}
	done, err := d.turn(ctx)
	if err != nil {
		return control.Snapshots{}, err
	}
	defer done()
	far, farErr := s3(ctx, in, api)
	if farErr != nil { // one here is better than none
		far = etcdcare.S3{}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, saveTime, fmt.Errorf("it took more than %s", saveTime))
	defer cancel()
	s := identity(in, secretKeys(in.Paths))
	if s.Kind, s.Name = kind, name; name == "" {
		s.Name = etcdcare.NewName(kind, s.Node, time.Now())
	}
	answer, err := runCare(ctx, in, etcdcare.Job{
		Do: etcdcare.Save, Dir: snapshotDir(in), S3: far, S3Only: in.Config.Spec.Etcd.Snapshots.S3.Only && farErr == nil, Snapshot: s, Etcd: components.EtcdClient(in),
	})
	if err = errors.Join(err, farErr); err != nil && len(answer.Entries) == 0 {
		return control.Snapshots{}, err
	}
	out := control.Snapshots{Snapshots: answer.Entries, Warnings: answer.Warnings}
	for _, e := range out.Snapshots {
		d.log.Info("snapshot of etcd taken", "kind", string(kind), "where", e.Where, "bytes", e.Bytes, "revision", e.Revision)
	}
	if err != nil {
		w := errs.ToWire(err)
		out.Problem = &w
	}
	return out, nil
}

// archives are the data directories that restores have put aside.
func archives(p paths.Paths) ([]string, error) { return filepath.Glob(p.EtcdArchive("*")) }

func listSnapshots(ctx context.Context, in component.Input, api *kubeapi.Client) (etcdcare.Answer, etcdcare.S3, error) {
	far, farErr := s3(ctx, in, api)
	if farErr != nil {
		far = etcdcare.S3{}
	}
	old, err := archives(in.Paths)
	if err != nil {
		return etcdcare.Answer{}, far, err
	}
	answer, err := runCare(ctx, in, etcdcare.Job{Do: etcdcare.List, Dir: snapshotDir(in), S3: far, Archives: old})
	if farErr != nil {
		answer.Warnings = append(answer.Warnings, "snapshots in S3 are not shown: "+farErr.Error())
	}
	return answer, far, err
}

// Snapshots implements control.Backend.
func (d *Daemon) Snapshots(ctx context.Context) (control.Snapshots, error) {
	in, api, err := d.etcdServer()
	if err != nil {
		return control.Snapshots{}, err
	}
	answer, _, err := listSnapshots(ctx, in, api)
	return control.Snapshots{Snapshots: answer.Entries, Warnings: answer.Warnings}, err
}

// RemoveSnapshots implements control.Backend.
func (d *Daemon) RemoveSnapshots(ctx context.Context, r control.RemoveSnapshotsRequest) (control.Snapshots, error) {
	in, api, err := d.etcdServer()
	if err != nil {
		return control.Snapshots{}, err
	}
	done, err := d.turn(ctx)
	if err != nil {
		return control.Snapshots{}, err
	}
	defer done()
	all, far, err := listSnapshots(ctx, in, api)
	if err != nil {
		return control.Snapshots{}, err
	}
	var gone []etcdcare.Entry
	if r.Prune {
		keep := in.Config.Spec.Etcd.Snapshots.Keep
		if r.Keep != nil {
			keep = *r.Keep
		}
		gone = etcdcare.Expired(all.Entries, in.Facts.NodeName, keep, r.Manual, time.Now())
	}
	for _, name := range r.Names {
		e, err := etcdcare.Find(all.Entries, name)
		if err != nil {
			return control.Snapshots{}, err
		}
		// A name means the snapshot wherever it is.
		for _, other := range all.Entries {
			if other.Where == name || e.Where != name && other.Name == name && (other.Node == e.Node || other.State != etcdcare.Complete) {
				gone = append(gone, other)
			}
		}
	}
	out := control.Snapshots{Snapshots: gone, Warnings: all.Warnings}
	if r.DryRun || len(gone) == 0 {
		return out, nil
	}
	job := etcdcare.Job{Do: etcdcare.Remove, S3: far}
	for _, e := range gone {
		job.Where = append(job.Where, e.Where)
	}
	answer, err := runCare(ctx, in, job)
	out.Snapshots = slices.DeleteFunc(out.Snapshots, func(e etcdcare.Entry) bool {
		return !slices.ContainsFunc(answer.Entries, func(r etcdcare.Entry) bool { return r.Where == e.Where })
	})
	for _, e := range out.Snapshots {
		d.log.Info("snapshot of etcd removed", "where", e.Where)
	}
	if err != nil {
		if len(out.Snapshots) == 0 {
			return control.Snapshots{}, err
		}
		w := errs.ToWire(err)
		out.Problem = &w
	}
	return out, nil
}

const (
	// lookAtClock is how often the time of the next snapshot is compared with a clock that somebody may set.
	lookAtClock = 20 * time.Second
	// saveAgain is when one by schedule is tried again that failed.
	saveAgain = 10 * time.Minute
)

// watchSchedule takes the snapshots that are due.
func (d *Daemon) watchSchedule(ctx context.Context) {
	kept, err := readCareFile(d.o.Paths)
	if err != nil {
		d.log.Warn("when the last snapshot was taken is not known", "err", err)
	}
	tick := time.NewTicker(lookAtClock)
	defer tick.Stop()
	for ctx.Err() == nil {
		d.mu.Lock()
		in, busy := d.in, d.care.restore.Active() || d.moving.active()
		d.mu.Unlock()
		now := time.Now()
		next := time.Time{}
		if components.UsesEtcd(in) {
			if kept.At.IsZero() || kept.At.After(now) { // the clock was set back
				kept.At = now
				if err := d.keepCareFile(kept); err != nil {
					d.log.Warn("what the schedule of snapshots needs to know is not kept", "err", err)
				}
			}
			next = etcdcare.Due(in.Config.Spec.Etcd.Snapshots.Schedule.After, kept.At, kept.Error != "", saveAgain)
		}
		d.mu.Lock()
		d.care.next, d.care.kept = next, kept
		d.mu.Unlock()
		if !next.IsZero() && !next.After(now) && !busy && d.isReady("etcd") {
			kept = d.saveScheduled(ctx, kept, now)
			continue
		}
		d.board.Report("snapshots", snapshotProblems(in, kept))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func snapshotProblems(in component.Input, kept careFile) []health.Problem {
	if kept.Error == "" || !components.UsesEtcd(in) {
		return nil
	}
	p := health.New(health.SnapshotFailed, "the snapshot of %s failed: %s", kept.At.Local().Format(time.DateTime), kept.Error).Of("etcd")
	if kept.Hint != "" {
		p = p.Fix("%s", kept.Hint)
	}
	return []health.Problem{p}
}

// saveScheduled takes one, and lets go what retention does not keep.
func (d *Daemon) saveScheduled(ctx context.Context, kept careFile, now time.Time) careFile {
	saved, err := d.saveSnapshot(ctx, etcdcare.Scheduled, "")
	if ctx.Err() != nil {
		return kept // the next start sees that it is due
	}
	kept.At, kept.Error, kept.Hint = now, "", ""
	if len(saved.Snapshots) > 0 {
		kept.Last = &saved.Snapshots[0]
	}
	if err == nil && saved.Problem != nil {
		err = saved.Problem.Err()
	}
	if err == nil {
		var pruned control.Snapshots
		pruned, err = d.RemoveSnapshots(ctx, control.RemoveSnapshotsRequest{Prune: true})
		if err == nil && pruned.Problem != nil {
			err = pruned.Problem.Err()
		}
	}
	if err != nil {
		kept.Error = strings.ReplaceAll(err.Error(), "\n", "; ")
		kept.Hint, _ = errs.HintOf(err)
		d.log.Error("snapshot of etcd by schedule", "err", err)
	}
	if err := d.keepCareFile(kept); err != nil {
		d.log.Warn("what the schedule of snapshots needs to know is not kept", "err", err)
	}
	return kept
}
