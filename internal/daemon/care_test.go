package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/payload"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/restore"
)

// careful is a node with an etcd as its datastore, of which only directories are there; its applet is a shell script.
func careful(t *testing.T, script string) component.Input {
	t.Helper()
	dir := t.TempDir()
	in := component.Input{Config: config.Default(), Paths: paths.Paths{Data: dir, Run: dir + "/run", Config: dir + "/etc"}, Payload: dir + "/payload", Facts: component.Facts{NodeName: "node"}}
	in.Config.Spec.Datastore.Endpoint = "etcd"
	if err := os.MkdirAll(in.Payload, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(in.Payload, components.Program), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return in
}

func TestTheAppletIsAskedAndEndsWithUs(t *testing.T) {
	in := careful(t, `read job; case "$job" in *'"do":"list"'*) echo '{"revision":7}';; esac; read more; exit 0`)
	// It waits for the end of its input here, which does not come while it is asked; an applet ends by itself.
	in2 := careful(t, `read job; echo '{"revision":7}'`)
	if a, err := runCare(t.Context(), in2, etcdcare.Job{Do: etcdcare.List}); err != nil || a.Revision != 7 {
		t.Errorf("%+v, %v", a, err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 200*time.Millisecond, errors.New("enough"))
	defer cancel()
	if _, err := runCare(ctx, in, etcdcare.Job{Do: etcdcare.List}); err == nil || err.Error() != "enough" {
		t.Errorf("%v", err)
	}
	refuses := careful(t, `read job; echo '{"error":{"error":"no bucket","hint":"make it","kind":3},"entries":[{"name":"one"}]}'`)
	a, err := runCare(t.Context(), refuses, etcdcare.Job{Do: etcdcare.Save})
	if hint, _ := errs.HintOf(err); !errs.Is(err, errs.NotFound) || hint != "make it" || len(a.Entries) != 1 {
		t.Errorf("%+v, %v", a, err)
	}
	dies := careful(t, `read job; echo "error: etcd-care: out of luck" >&2; echo "hint:  try again" >&2; exit 1`)
	_, err = runCare(t.Context(), dies, etcdcare.Job{Do: etcdcare.Save})
	if hint, log := errs.HintOf(err); err == nil || err.Error() != "out of luck" || hint != "try again" || log != dies.Paths.Log(careName) {
		t.Errorf("%v (%s, %s)", err, hint, log)
	}
}

// etcdDirs says what the data directory, the archive and the staged directory have; "" for one that is not there.
func etcdDirs(t *testing.T, r *restoring) string {
	t.Helper()
	var out []string
	for _, dir := range []string{r.in.Paths.Etcd(), r.job.Archive, r.job.Staged} {
		b, err := os.ReadFile(filepath.Join(dir, "is"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		out = append(out, string(b))
	}
	return strings.Join(out, ",")
}

func TestDirectoriesChangePlacesAndBack(t *testing.T) {
	in := careful(t, "")
	make := func(old, staged bool) *restoring {
		t.Helper()
		for _, dir := range []string{in.Paths.Etcd(), in.Paths.EtcdArchive("then"), in.Paths.EtcdStaged("1")} {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
		r := &restoring{in: in, job: etcdcare.Restore{Staged: in.Paths.EtcdStaged("1"), Archive: in.Paths.EtcdArchive("then")}, archive: etcdcare.Snapshot{CA: "pin"}}
		for dir, is := range map[string]string{in.Paths.Etcd(): "old", r.job.Staged: "new"} {
			if is == "old" && !old || is == "new" && !staged {
				continue
			}
			if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "is"), []byte(is), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		if !old {
			r.job.Archive = ""
		}
		return r
	}
	r := make(true, true)
	for range 2 { // the second time there is nothing left to do
		if err := r.Switch(); err != nil || etcdDirs(t, r) != "new,old," {
			t.Errorf("switched: %s, %v", etcdDirs(t, r), err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(r.job.Archive, etcdcare.ArchiveMeta)); err != nil || !strings.Contains(string(b), `"ca": "pin"`) {
		t.Errorf("the archive says of itself %s, %v", b, err)
	}
	for range 2 {
		if err := r.Unswitch(); err != nil || etcdDirs(t, r) != "old,,new" {
			t.Errorf("taken back: %s, %v", etcdDirs(t, r), err)
		}
	}
	// Killed between the two renames.
	r = make(true, true)
	if err := os.Rename(in.Paths.Etcd(), r.job.Archive); err != nil {
		t.Fatal(err)
	}
	if err := r.Switch(); err != nil || etcdDirs(t, r) != "new,old," {
		t.Errorf("gone on: %s, %v", etcdDirs(t, r), err)
	}
	if err := os.Rename(in.Paths.Etcd(), r.job.Staged); err != nil {
		t.Fatal(err)
	}
	if err := r.Unswitch(); err != nil || etcdDirs(t, r) != "old,,new" {
		t.Errorf("gone back: %s, %v", etcdDirs(t, r), err)
	}
	// A new machine has nothing that could be put aside.
	r = make(false, true)
	if err := os.MkdirAll(in.Paths.Etcd(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.Switch(); err != nil || etcdDirs(t, r) != "new,," {
		t.Errorf("a first one: %s, %v", etcdDirs(t, r), err)
	}
}

func TestARestoreThatBrokeOffIsEndedAtTheStart(t *testing.T) {
	for phase, want := range map[restore.Phase]struct {
		dirs  string
		phase restore.Phase
	}{restore.Staging: {"old,,", restore.Failed}, restore.Finishing: {"old,,", restore.Failed}, restore.Switching: {"new,old,", restore.Starting}} {
		in := careful(t, "")
		d := &Daemon{o: Options{Paths: in.Paths}, log: slog.New(slog.DiscardHandler)}
		o := d.newRestore(in, etcdcare.Restore{ID: "1", Phase: phase, Staged: in.Paths.EtcdStaged("1"), Archive: in.Paths.EtcdArchive("then")})
		for dir, is := range map[string]string{in.Paths.Etcd(): "old", o.job.Staged: "new", in.Paths.EtcdStaged("other"): "left"} {
			if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "is"), []byte(is), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		if err := o.Keep(o.job); err != nil {
			t.Fatal(err)
		}
		if err := d.prepareRestore(in); err != nil {
			t.Fatal(err)
		}
		kept, err := readRestore(in.Paths)
		if err != nil || kept.Phase != want.phase || d.care.restore.Phase != want.phase || etcdDirs(t, &o.restoring) != want.dirs {
			t.Errorf("%s: %+v, %v, %s", phase, kept, err, etcdDirs(t, &o.restoring))
		}
		if exists(in.Paths.EtcdStaged("other")) {
			t.Errorf("%s: what an earlier one left stays", phase)
		}
	}
}

// A server that joined has its state beside its place then, and those it joined may be off for good: a restore leaves them out.
func TestAJoinedServerEndsARestoreThatBrokeOffBeforeItAsksForAPlace(t *testing.T) {
	in := careful(t, "")
	known := peers{
		Several: true, Joined: &joinedCluster{Servers: []string{"127.0.0.1:1"}}, // nobody is there
		Etcd: &etcdPart{Member: join.Member{Name: "node-0a1b2c3d", PeerURL: "https://10.0.0.2:2380"}, Answered: true},
	}
	if err := known.keep(in.Paths); err != nil {
		t.Fatal(err)
	}
	d := &Daemon{o: Options{Paths: in.Paths}, log: slog.New(slog.DiscardHandler), board: health.NewBoard(time.Now)}
	o := d.newRestore(in, etcdcare.Restore{ID: "1", Phase: restore.Switching, Staged: in.Paths.EtcdStaged("1"), Archive: in.Paths.EtcdArchive("then")})
	for dir, is := range map[string]string{o.job.Archive: "old", o.job.Staged: "new"} { // killed between the two renames
		snap := filepath.Join(dir, "member", "snap")
		if err := errors.Join(os.MkdirAll(snap, 0o700), os.WriteFile(filepath.Join(snap, "db"), nil, 0o600), os.WriteFile(filepath.Join(dir, "is"), []byte(is), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Keep(o.job); err != nil {
		t.Fatal(err)
	}
	if err := d.takePlace(t.Context(), &in); err != nil {
		t.Fatal(err)
	}
	if got := etcdDirs(t, &o.restoring); got != "new,old," || d.care.restore.Phase != restore.Starting || in.Etcd.Name != "node-0a1b2c3d" {
		t.Errorf("%s, %+v, %+v", got, d.care.restore, in.Etcd)
	}
}

func TestWhatSpeaksAgainstARestoreHasToBeAllowed(t *testing.T) {
	foreign, others := control.RestorePlan{Unfit: []string{"it is of another cluster"}}, control.RestorePlan{Others: []string{"b"}}
	for _, c := range []struct {
		plan control.RestorePlan
		r    control.RestoreRequest
		hint string // "" for allowed
	}{
		{control.RestorePlan{}, control.RestoreRequest{}, ""},
		{foreign, control.RestoreRequest{Alone: true}, "--foreign"},
		{foreign, control.RestoreRequest{Foreign: true}, ""},
		{others, control.RestoreRequest{Foreign: true}, "--alone"},
		{others, control.RestoreRequest{Alone: true}, ""},
	} {
		err := allowed(c.plan, c.r)
		if hint, _ := errs.HintOf(err); (err == nil) != (c.hint == "") || !strings.Contains(hint, c.hint) {
			t.Errorf("%+v %+v: %v", c.plan, c.r, err)
		}
	}
}

// etcd that is stopped, or has no majority, does not say who its members are.
func TestWhoIsLeftOutByARestoreIsKnownWithoutEtcd(t *testing.T) {
	in := careful(t, "")
	asked := func() []string {
		d := &Daemon{o: Options{Paths: in.Paths}, in: in, log: slog.New(slog.DiscardHandler)}
		var p control.RestorePlan
		d.lookForPlan(t.Context(), in, &p)
		return p.Others
	}
	if got := asked(); len(got) != 0 {
		t.Errorf("of one server %q", got)
	}
	in.Several = true
	if got := asked(); len(got) != 1 || !strings.Contains(got[0], "not known") {
		t.Errorf("of one that has forgotten the others %q", got)
	}
	if err := os.WriteFile(in.Paths.Server(), []byte(`{"several": true, "joined": {"servers": ["192.0.2.2:6443"]}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := asked(); !slices.Equal(got, []string{"192.0.2.2:6443"}) {
		t.Errorf("of one of several %q", got)
	}
}

// A server that is off, and one of several: the others may go on, and its member has the name that it joined with.
func TestARestoreOnAServerThatIsOffKnowsThatItIsOneOfSeveral(t *testing.T) {
	in := careful(t, `read job; case "$job" in
*'"do":"look"'*) echo '{"entries":[{"name":"then","where":"/then.db","state":"bare"}]}';;
*) echo "$job" > "$0.job"; echo '{"error":{"error":"out of luck"}}';;
esac`)
	if err := os.WriteFile(filepath.Join(in.Payload, ".index.json"), []byte(`{"files": [{"name": "k1s-pods", "link": "k1s-kube"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(payload.EnvSource, in.Payload)
	light := filepath.Join(t.TempDir(), "k1s")
	if err := errors.Join(os.WriteFile(light, []byte("light"), 0o755), os.WriteFile(in.Paths.Server(), []byte(`{"several": true, "joined": {"servers": ["192.0.2.2:6443"], "settings": {}}, "etcd": {"name": "node-0a1b2c3d", "answered": true}}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	in.Config.Spec.Node.IP = "192.0.2.1"
	o := Options{Config: in.Config, Paths: in.Paths, Executable: light, Log: slog.New(slog.DiscardHandler)}
	r := control.RestoreRequest{Snapshot: "/then.db", Foreign: true}
	never := func(control.RestorePlan) error { return errors.New("it is asked for") }
	// It has stopped to serve, and was stopped before it was told what the servers have decided about their datastore.
	follows := migration.Following{Attempt: "a1", Leader: "server-0", To: migration.Place{Identity: "x"}}
	err := errors.Join(os.MkdirAll(filepath.Dir(in.Paths.Following()), 0o700), os.WriteFile(in.Paths.Following(), follows.Marshal(), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	alone := r
	alone.Alone = true
	if _, err := RestoreOffline(t.Context(), o, alone, never); !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), "stayed with etcd") {
		t.Errorf("it is not known where the state is: %v", err)
	}
	db := o
	db.Config.Spec.Datastore.Endpoint = movedTo
	if err := errors.Join(os.MkdirAll(in.Paths.PKI(), 0o700), os.WriteFile(pki.KeyFile(in.Paths, pki.CA), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := CollectOffline(t.Context(), db, control.BackupRequest{}); !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), "stayed with postgres://[redacted]@db:5432/k1s") {
		t.Errorf("it is not known where the state is that is to be backed up: %v", err)
	}
	if err := os.Remove(in.Paths.Following()); err != nil {
		t.Fatal(err)
	}
	_, err = RestoreOffline(t.Context(), o, r, never)
	if hint, _ := errs.HintOf(err); !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), "192.0.2.2:6443") || !strings.Contains(hint, "--alone") {
		t.Errorf("%v (%s)", err, hint)
	}
	r.Alone = true
	if _, err := RestoreOffline(t.Context(), o, r, func(control.RestorePlan) error { return nil }); err == nil || !strings.Contains(err.Error(), "out of luck") {
		t.Errorf("%v", err)
	}
	job, err := os.ReadFile(filepath.Join(in.Payload, components.Program+".job"))
	if err != nil || !strings.Contains(string(job), `"member":"node-0a1b2c3d"`) {
		t.Errorf("%s %v", job, err)
	}
}

func TestCredentialsInASecretNeedTheAPI(t *testing.T) {
	in := careful(t, "")
	in.Config.Spec.Etcd.Snapshots.S3 = config.S3{Bucket: "b", Folder: "f", Secret: "s"}
	if _, err := s3(t.Context(), in, nil); !errs.Is(err, errs.NotRunning) {
		t.Errorf("%v", err)
	}
	in.Config.Spec.Etcd.Snapshots.S3.Secret = ""
	if got, err := s3(t.Context(), in, nil); err != nil || got.Bucket != "b" || got.Folder != "f" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestASnapshotThatFailedIsAProblem(t *testing.T) {
	in := careful(t, "")
	kept := careFile{At: time.Now(), Error: "no space", Hint: "make room"}
	if p := snapshotProblems(in, kept); len(p) != 1 || p[0].Code != health.SnapshotFailed || p[0].Remedy != "make room" || !strings.Contains(p[0].Text, "no space") {
		t.Errorf("%+v", p)
	}
	if p := snapshotProblems(in, careFile{}); len(p) != 0 {
		t.Errorf("%+v", p)
	}
	in.Config.Spec.Datastore.Endpoint = "sqlite"
	if p := snapshotProblems(in, kept); len(p) != 0 {
		t.Errorf("with another datastore: %+v", p)
	}
}
