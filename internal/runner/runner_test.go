//go:build linux

package runner

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/unitlog"
)

func options(t *testing.T) Options {
	t.Helper()
	dir := t.TempDir()
	return Options{Paths: paths.Paths{Data: filepath.Join(dir, "data"), Run: filepath.Join(dir, "run")}}
}

func shell(script string) component.Unit {
	return component.Unit{Name: "unit", Argv: []string{"/bin/sh", "-c", script}, StopTimeout: 10 * time.Second}
}

func TestFilesAndDirectoriesAreMadeAndOnlyWhatDiffersIsTouched(t *testing.T) {
	o := options(t)
	dir := filepath.Join(o.Paths.Data, "a", "b")
	same, changed := filepath.Join(dir, "same.yaml"), filepath.Join(dir, "new", "changed.yaml")
	u := shell("true")
	u.Dirs = []component.Dir{{Path: dir, Mode: 0o711}}
	u.Files = []component.File{{Path: same, Content: "x", Mode: 0o640}, {Path: changed, Content: "1", Mode: 0o600}}
	if err := prepare(u.Dirs, u.Files); err != nil {
		t.Fatal(err)
	}
	before, _ := os.Stat(same)
	if err := errors.Join(os.Chmod(dir, 0o700), os.Chmod(same, 0o666)); err != nil {
		t.Fatal(err)
	}
	u.Files[1].Content = "2"
	if err := prepare(u.Dirs, u.Files); err != nil {
		t.Fatal(err)
	}
	after, _ := os.Stat(same)
	if !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Error("a file that was right already was written again")
	}
	if b, err := os.ReadFile(changed); string(b) != "2" || err != nil {
		t.Errorf("changed file: %q, %v", b, err)
	}
	for name, want := range map[string]os.FileMode{dir: 0o711, same: 0o640, changed: 0o600} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", name, st.Mode().Perm(), err, want)
		}
	}
	entries, _ := os.ReadDir(filepath.Dir(changed))
	if len(entries) != 1 {
		t.Errorf("temporary files are left: %v", entries)
	}
}

func TestTheEnvironmentIsMinimal(t *testing.T) {
	t.Setenv("HTTP_PROXY_OF_THE_DAEMON", "x")
	o := options(t)
	o.Payload = "/payload/1234"
	u := shell("env")
	u.Env = map[string]string{"GOGC": "50", "HOME": "/elsewhere"}
	var exit *platform.ExitError
	if err := NewProcess(u, o).Run(t.Context()); !errors.As(err, &exit) || exit.Code != 0 {
		t.Fatalf("Run: %v", err)
	}
	lines, err := unitlog.Tail(o.Paths.Log("unit"), 100)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range unitlog.LastRun(lines) {
		name, _, _ := strings.Cut(l, "=")
		switch {
		case name == startMarker:
			got = append(got, name)
		case name != "PWD" && name != "OLDPWD" && name != "SHLVL" && name != "_": // the shell's own
			got = append(got, l)
		}
	}
	slices.Sort(got)
	want := []string{"GOGC=50", "HOME=/elsewhere", startMarker,
		"PATH=/payload/1234:/payload/1234/cni:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestTheRecordIsThereWhileTheProcessIs(t *testing.T) {
	o := options(t)
	p := NewProcess(shell("exec sleep 1000"), o)
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan int, 1)
	p.OnStart(func(pid int, _ bool) { started <- pid })
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	pid := <-started
	recs, err := Records(o.Paths)
	if err != nil || len(recs) != 1 || recs[0].Process.PID != pid || recs[0].Hash != p.hash || recs[0].Unit != "unit" {
		t.Errorf("records: %+v, %v", recs, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run ended with %v", err)
	}
	if recs, err := Records(o.Paths); len(recs) != 0 || err != nil {
		t.Errorf("records afterwards: %+v, %v", recs, err)
	}
}

// A daemon that is killed in the moment in which it starts a process has not written down which one that is.
func TestAProcessThatIsBeingStartedIsAmongThoseThatRun(t *testing.T) {
	o := options(t)
	u := shell("")
	u.Argv = []string{"/bin/sleep", "1000"}
	p := NewProcess(u, o)
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan int, 1)
	p.OnStart(func(pid int, _ bool) { started <- pid })
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	pid := <-started
	if got, err := Running(o); err != nil || !slices.Equal(got, []int{pid}) {
		t.Fatalf("Running: %v, %v, want %d", got, err, pid)
	}
	recs, err := Records(o.Paths)
	if err != nil || len(recs) != 1 {
		t.Fatalf("Records: %+v, %v", recs, err)
	}
	starting := recs[0]
	starting.Process = platform.ProcessID{}
	if err := o.withDefaults().record(starting); err != nil {
		t.Fatal(err)
	}
	if got, err := Running(o); err != nil || !slices.Equal(got, []int{pid}) {
		t.Errorf("while it is being started: %v, %v, want %d", got, err, pid)
	}
	if err := o.withDefaults().record(recs[0]); err != nil { // so that it is stopped
		t.Fatal(err)
	}
}

func TestStopRecordedStopsWhatIsNotKept(t *testing.T) {
	o := options(t)
	pids := map[string]int{}
	for _, name := range []string{"keep", "drop"} {
		u := shell("exec sleep 1000")
		u.Name = name
		p := NewProcess(u, o)
		ctx, cancel := context.WithCancelCause(t.Context())
		p.OnStart(func(pid int, _ bool) {
			pids[name] = pid
			cancel(platform.ErrDetach)
		})
		if err := p.Run(ctx); !errors.Is(err, platform.ErrDetach) {
			t.Fatal(err)
		}
	}
	if err := StopRecorded(t.Context(), o, func(unit string) bool { return unit == "keep" }); err != nil {
		t.Error(err)
	}
	recs, err := Records(o.Paths)
	if err != nil || len(recs) != 1 || recs[0].Unit != "keep" {
		t.Errorf("records: %+v, %v", recs, err)
	}
	if err := StopRecorded(t.Context(), o, nil); err != nil {
		t.Error(err)
	}
	for name, pid := range pids {
		if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err == nil {
			t.Errorf("%s is left", name)
		}
	}
}

func TestAUnitHasACgroupOfItsOwn(t *testing.T) {
	cg, err := platform.DetectCgroups()
	if err != nil || os.Geteuid() != 0 {
		if os.Getenv("K1S_TEST_ROOT") != "" {
			t.Fatalf("asked for, but cannot run: %v", err)
		}
		t.Skip("needs root and cgroups")
	}
	o := options(t)
	o.Cgroups, o.CgroupRoot = cg, "/k1s-test-runner-"+strconv.Itoa(os.Getpid())
	root, err := cg.Prepare(o.CgroupRoot)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := root.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	p := NewProcess(shell("exec sleep 1000"), o)
	p.OnStart(func(pid int, _ bool) {
		defer cancel()
		in, err := cg.At(o.CgroupRoot, "unit").Procs()
		if err != nil || !slices.Equal(in, []int{pid}) {
			t.Errorf("processes in its cgroup: %v, %v, want %d", in, err, pid)
		}
	})
	if err := p.Run(ctx); err != nil {
		t.Error(err)
	}
}

func TestACommandLineWithoutAbsolutePathIsRefused(t *testing.T) {
	u := shell("")
	u.Argv = []string{"sh"}
	if err := NewProcess(u, options(t)).Run(t.Context()); !errs.Is(err, errs.Invalid) {
		t.Errorf("got %v", err)
	}
}

func TestAGoroutineEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := Goroutine(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }).Run(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestAProgramThatIsGoneIsBroughtBackAndStarted(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	u := shell("")
	u.Argv = []string{program}
	o := options(t)
	asked, content := 0, "#!/bin/sh\nexit 7\n"
	o.Mend = func(context.Context) (bool, error) {
		asked++
		return content != "", os.WriteFile(program, []byte(content), 0o755)
	}
	exit := &platform.ExitError{}
	if err := NewProcess(u, o).Run(t.Context()); !errors.As(err, &exit) || exit.Code != 7 || asked != 1 {
		t.Errorf("got %v, after having asked %d times", err, asked)
	}
	// Not the program's file is what is wrong.
	u.Dirs = []component.Dir{{Path: filepath.Join(program, "dir")}}
	if err := NewProcess(u, o).Run(t.Context()); err == nil || asked != 1 {
		t.Errorf("got %v, after having asked %d times", err, asked)
	}
	// Nothing was to be mended.
	u.Dirs, content = nil, ""
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	if err := NewProcess(u, o).Run(t.Context()); !errors.Is(err, os.ErrNotExist) || asked != 2 {
		t.Errorf("got %v, after having asked %d times", err, asked)
	}
}
