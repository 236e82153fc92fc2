package daemon

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/upgrade"
)

// fakeProgram is one that a test ends.
type fakeProgram struct {
	pid           int
	exited        chan struct{}
	exit          programExit
	onStop        programExit
	asked, killed bool
}

func newFakeProgram() *fakeProgram {
	return &fakeProgram{pid: 4711, exited: make(chan struct{}), onStop: programExit{Clean: true, How: "ended with exit status 0"}}
}

func (f *fakeProgram) PID() int               { return f.pid }
func (f *fakeProgram) Ended() <-chan struct{} { return f.exited }
func (f *fakeProgram) Exit() programExit      { return f.exit }

func (f *fakeProgram) end(e programExit) {
	select {
	case <-f.exited:
	default:
		f.exit = e
		close(f.exited)
	}
}

func (f *fakeProgram) RequestStop() {
	f.asked = true
	f.end(f.onStop)
}

func (f *fakeProgram) Kill() {
	f.killed = true
	f.end(programExit{How: "was ended by a signal (killed)"})
}

// upgradable is a directory with an old program, and a new one beside it.
func upgradable(t *testing.T) (paths.Paths, upgrade.State) {
	t.Helper()
	dir := t.TempDir()
	p := paths.Paths{Data: filepath.Join(dir, "data"), Run: filepath.Join(dir, "run"), Config: filepath.Join(dir, "etc")}
	if err := os.Mkdir(p.Data, 0o755); err != nil {
		t.Fatal(err)
	}
	s := upgrade.State{
		Phase: upgrade.Trying, File: filepath.Join(dir, "k1s"), Timeout: time.Minute,
		From: upgrade.Program{Version: "v0.1.0", Kubernetes: "v1.36.3", Payload: "one"}, To: upgrade.Program{Version: "v0.2.0", Kubernetes: "v1.36.4", Payload: "two"},
	}
	for file, content := range map[string]string{s.File: "old", s.Staged(): "new"} {
		if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if s.To.Digest, s.To.Bytes, err = digest(s.Staged()); err != nil {
		t.Fatal(err)
	}
	return p, s
}

// holdsProgram checks which program a file has, "" for none.
func holdsProgram(t *testing.T, file, want string) {
	t.Helper()
	got, err := os.ReadFile(file)
	if want == "" && errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil || string(got) != want {
		t.Errorf("%s has %q (%v), want %q", filepath.Base(file), got, err, want)
	}
}

func wellWith(s upgrade.State, pid int) control.Status {
	now := time.Now()
	return control.Status{
		PID: pid, Version: s.To.Version, Kubernetes: s.To.Kubernetes, Payload: s.To.Payload, ReadyAt: &now,
		Components: []control.Component{{Name: "kubelet", State: "ready"}}, Node: &control.Node{Ready: true, Kubelet: s.To.Kubernetes},
	}
}

func TestAProgramThatWorksTakesItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s := upgradable(t)
		child, began := newFakeProgram(), time.Now()
		g := &guard{upgradeFiles: upgradeFiles{p}, log: slog.New(slog.DiscardHandler),
			start: func(file string) (program, error) {
				if file != s.Staged() {
					t.Errorf("%s was started", file)
				}
				return child, nil
			},
			status: func(context.Context) (control.Status, error) {
				if time.Since(began) < 20*time.Second {
					return control.Status{}, errs.New(errs.NotRunning, "k1s is not running")
				}
				return wellWith(s, child.pid), nil
			},
		}
		got, err := g.run(t.Context(), s)
		if err != nil || got.Phase != upgrade.Done || g.stopped || child.asked || !child.killed {
			t.Errorf("%+v, %v, %+v", got, err, child)
		}
		if took := time.Since(began); took < 20*time.Second+upgrade.Steady {
			t.Errorf("it was believed after %s", took)
		}
		holdsProgram(t, s.File, "new")
		holdsProgram(t, s.Kept(), "old")
		holdsProgram(t, s.Staged(), "")
		if kept, err := LastUpgrade(p); err != nil || kept.Phase != upgrade.Done {
			t.Errorf("%+v, %v", kept, err)
		}
		if st, err := os.Stat(s.File); err != nil || st.Mode().Perm() != 0o755 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
	})
}

func TestAProgramThatDoesNotWorkIsTakenBack(t *testing.T) {
	type cause struct {
		act     func(*fakeProgram, context.CancelFunc)
		status  func(upgrade.State, *fakeProgram) (control.Status, error)
		want    string
		stopped bool
	}
	silent := func(upgrade.State, *fakeProgram) (control.Status, error) {
		return control.Status{}, errs.New(errs.NotRunning, "k1s is not running")
	}
	works := func(s upgrade.State, f *fakeProgram) (control.Status, error) {
		st := wellWith(s, f.pid)
		st.Components[0].State, st.Components[0].Note = "waiting", "for containerd"
		return st, nil
	}
	for name, c := range map[string]cause{
		"it ends at once": {act: func(f *fakeProgram, _ context.CancelFunc) {
			f.end(programExit{How: "ended with exit status 1", Said: "time=x level=INFO msg=starting\nerror: payload damaged\nhint:  get it again\n"})
		}, status: silent, want: "it ended with exit status 1: payload damaged"},
		"it ends well, and has never answered": {act: func(f *fakeProgram, _ context.CancelFunc) { f.end(f.onStop) }, status: silent, want: "it ended with exit status 0"},
		"it never answers":                     {status: silent, want: "not well with it within 1m0s: it does not answer yet"},
		"it is never well":                     {status: works, want: "not well with it within 1m0s: kubelet is waiting: for containerd"},
		"another one answers": {status: func(s upgrade.State, _ *fakeProgram) (control.Status, error) {
			return wellWith(s, 1), nil
		}, want: "process 1 answers"},
		"a part of it ends again and again": {status: func(s upgrade.State, f *fakeProgram) (control.Status, error) {
			st := wellWith(s, f.pid)
			st.Problems = []health.Problem{health.New(health.ComponentCrashloop, "kine has ended 5 times in a row")}
			return st, nil
		}, want: "kine has ended 5 times in a row"},
		"the node is stopped by its socket": {act: func(f *fakeProgram, _ context.CancelFunc) { f.end(f.onStop) }, status: works, want: "stopped while it was tried", stopped: true},
		"the node is stopped by a signal":   {act: func(_ *fakeProgram, stop context.CancelFunc) { stop() }, status: works, want: "stopped while it was tried", stopped: true},
		"it crashes later": {act: func(f *fakeProgram, _ context.CancelFunc) {
			f.end(programExit{How: "was ended by a signal (segmentation fault)"})
		}, status: works, want: "segmentation fault"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, s := upgradable(t)
				child := newFakeProgram()
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				g := &guard{upgradeFiles: upgradeFiles{p}, log: slog.New(slog.DiscardHandler),
					start:  func(string) (program, error) { return child, nil },
					status: func(context.Context) (control.Status, error) { return c.status(s, child) },
				}
				if c.act != nil {
					time.AfterFunc(3*time.Second, func() { c.act(child, stop) })
				}
				got, err := g.run(ctx, s)
				if err != nil || got.Phase != upgrade.Failed || !strings.Contains(got.Error, c.want) || g.stopped != c.stopped {
					t.Errorf("%+v, %v, stopped %t", got, err, g.stopped)
				}
				select {
				case <-child.exited:
				default:
					t.Error("it runs on")
				}
				holdsProgram(t, s.File, "old")
				holdsProgram(t, s.Staged(), "")
				if kept, err := LastUpgrade(p); err != nil || kept.Phase != upgrade.Failed {
					t.Errorf("%+v, %v", kept, err)
				}
			})
		})
	}
}

func TestAProgramThatCannotBeStartedIsTakenBack(t *testing.T) {
	p, s := upgradable(t)
	g := &guard{upgradeFiles: upgradeFiles{p}, log: slog.New(slog.DiscardHandler), start: func(string) (program, error) { return nil, errors.New("exec format error") }}
	got, err := g.run(t.Context(), s)
	if err != nil || got.Phase != upgrade.Failed || !strings.Contains(got.Error, "exec format error") {
		t.Errorf("%+v, %v", got, err)
	}
	holdsProgram(t, s.File, "old")
}

func startedAfter(t *testing.T, p paths.Paths) *Daemon {
	t.Helper()
	d := &Daemon{o: Options{Paths: p}, log: slog.New(slog.DiscardHandler), board: health.NewBoard(time.Now)}
	d.settleUpgrade()
	return d
}

func TestAStartAfterAnUpgradeThatWasBrokenOff(t *testing.T) {
	for _, c := range []struct {
		phase  upgrade.Phase
		placed bool
		want   upgrade.Phase
	}{
		{upgrade.Staging, false, upgrade.Failed}, {upgrade.Trying, false, upgrade.Failed}, {upgrade.Placing, false, upgrade.Failed}, {upgrade.Placing, true, upgrade.Done},
	} {
		p, s := upgradable(t)
		if c.placed {
			if err := (upgradeFiles{p}).Place(s); err != nil {
				t.Fatal(err)
			}
		}
		s.Phase, s.Guard = c.phase, upgrade.Process{PID: 1 << 22, Start: 1, Boot: "before"}
		if err := keepUpgrade(p, s); err != nil {
			t.Fatal(err)
		}
		d := startedAfter(t, p)
		kept, err := LastUpgrade(p)
		if err != nil || kept.Phase != c.want || !reflect.DeepEqual(d.upgrading, kept) {
			t.Errorf("%s: %+v, %v", c.phase, kept, err)
		}
		want := map[bool]string{true: "new", false: "old"}[c.placed]
		holdsProgram(t, s.File, want)
		holdsProgram(t, s.Staged(), "")
		if problems := d.board.List(); (len(problems) > 0) != (c.want == upgrade.Failed) {
			t.Errorf("%s: %v", c.phase, problems)
		}
	}
}

func TestADamagedRecordOfAnUpgradeDoesNotKeepANodeFromStarting(t *testing.T) {
	p, _ := upgradable(t)
	if err := os.WriteFile(p.Upgrade(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if d := startedAfter(t, p); d.upgrading.Phase != "" || len(d.board.List()) > 0 {
		t.Errorf("%+v, %v", d.upgrading, d.board.List())
	}
	_, err := LastUpgrade(p)
	if hint, _ := errs.HintOf(err); err == nil || !strings.Contains(hint, p.Upgrade()) {
		t.Errorf("%v, %q", err, hint)
	}
}

func TestAnOldFailureIsNoProblemAnyMore(t *testing.T) {
	_, s := upgradable(t)
	now := time.Now()
	failed := s.Fail(errors.New("no"), now)
	if got := upgradeProblems(failed, now.Add(time.Hour)); len(got) != 1 || got[0].Code != health.UpgradeFailed || !strings.Contains(got[0].Text, "k1s v0.2.0 with Kubernetes v1.36.4 was taken back: no") {
		t.Errorf("%+v", got)
	}
	if got := upgradeProblems(failed, now.Add(failedFor+time.Hour)); got != nil {
		t.Errorf("%+v", got)
	}
}

func TestWhatIsNoK1sIsRefused(t *testing.T) {
	dir := t.TempDir()
	foreign := make([]byte, 64)
	copy(foreign, "\x7fELF\x02\x01\x01")
	foreign[18] = 0x15 // EM_PPC64
	for name, c := range map[string]struct {
		content []byte
		want    string
	}{
		"script": {[]byte("#!/bin/sh\necho hello to all of you\n"), "it is no executable of Linux"},
		"short":  {[]byte("k1s"), "it is no executable of Linux"},
		"ppc64":  {foreign, "it is built for linux/ppc64"},
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, c.content, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := inspect(t.Context(), file, "NEW"); err == nil || !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "cannot upgrade to NEW: "+c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for file, want := range map[string]string{dir: "it is no file", filepath.Join(dir, "none"): "no such file"} {
		if _, err := inspect(t.Context(), file, file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", file, err)
		}
	}
	// This test is a program for this machine, and carries nothing.
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS == "linux" {
		if _, err := inspect(t.Context(), own, own); err == nil || !strings.Contains(err.Error(), "carries no payload") {
			t.Error(err)
		}
	}
}

func TestACopyHasTheModeOfTheProgramAndReplacesWhatWasLeft(t *testing.T) {
	_, s := upgradable(t)
	from := filepath.Join(t.TempDir(), "download")
	if err := os.WriteFile(from, []byte("newer"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := copyProgram(from, s.Staged(), s.File); err != nil {
		t.Fatal(err)
	}
	holdsProgram(t, s.Staged(), "newer")
	if st, err := os.Stat(s.Staged()); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if err := copyProgram(filepath.Join(t.TempDir(), "none"), s.Staged(), s.File); err == nil || !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestTheNextStartHasToFindTheConfigurationOfThisOne(t *testing.T) {
	running := config.Default()
	moved := running.Spec.Datastore
	moved.Endpoint = "etcd"
	for name, c := range map[string]struct {
		change func(*config.Config)
		err    error
		want   string
	}{
		"the same":                {},
		"the command has a role":  {change: func(c *config.Config) { c.Spec.Role = "" }},
		"the datastore has moved": {change: func(c *config.Config) { c.Spec.Datastore = moved }},
		"it differs":              {change: func(c *config.Config) { c.Spec.NoWorker = true }, want: "has changed since k1s was started"},
		"it cannot be read":       {err: errors.New("line 3"), want: "cannot be read again: line 3"},
	} {
		d := &Daemon{o: Options{Config: running, Reload: func() (config.Config, config.Origins, error) {
			again := config.Default()
			if c.change != nil {
				c.change(&again)
			}
			return again, nil, c.err
		}}}
		if err := d.startsAgain(moved); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestANodeThatIsBusyIsNotUpgraded(t *testing.T) {
	p, s := upgradable(t)
	r := control.UpgradeRequest{File: s.Staged(), Timeout: time.Minute}
	d := startedAfter(t, p)
	if _, err := d.Upgrade(t.Context(), r); !errs.Is(err, errs.NotRunning) || !strings.Contains(err.Error(), "the node is starting") {
		t.Error(err)
	}
	d.stopped = &control.StopRequest{}
	if _, err := d.Upgrade(t.Context(), r); !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), "this server is stopping") {
		t.Error(err)
	}
	if _, err := d.Upgrade(t.Context(), control.UpgradeRequest{File: "k1s", Timeout: time.Minute}); !errs.Is(err, errs.Usage) {
		t.Error(err)
	}
	d.replacing.Lock()
	if _, err := d.Upgrade(t.Context(), r); !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), "another upgrade is being prepared") {
		t.Error(err)
	}
	if kept, err := LastUpgrade(p); err != nil || kept.Phase != "" {
		t.Errorf("%+v, %v", kept, err)
	}
}
