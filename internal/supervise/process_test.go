//go:build linux

package supervise_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/probe"
	"k1s.io/k1s/internal/runner"
	"k1s.io/k1s/internal/supervise"
	"k1s.io/k1s/internal/wait"
)

// The children under supervision, and the second supervisor, are this test binary run again.
func TestMain(m *testing.M) {
	if mode := os.Getenv("TEST_CHILD"); mode != "" {
		child(mode, os.Getenv("TEST_DIR"))
		return
	}
	os.Exit(m.Run())
}

func child(mode, dir string) {
	go func() { // whatever happens to the test, nothing of it stays: its directory is its life line
		for {
			if _, err := os.Stat(dir); err != nil {
				os.Exit(0)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	say := func(file string) {
		// Whoever sees the file reads all of it.
		file = filepath.Join(dir, file)
		if err := errors.Join(os.WriteFile(file+".new", []byte(fmt.Sprint(os.Getpid())), 0o600), os.Rename(file+".new", file)); err != nil {
			panic(err)
		}
	}
	name := os.Getenv("TEST_NAME")
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	fmt.Println("hello from", mode)
	switch mode {
	case "ready":
		say(name + ".ready")
		<-term
		fmt.Println("goodbye")
	case "exit-code":
		fmt.Fprintln(os.Stderr, "fatal: the database is corrupt")
		os.Exit(7)
	case "ignore-stop":
		signal.Ignore(syscall.SIGTERM)
		say(name + ".ready")
		select {}
	case "fork-grandchild": // as containerd starts its shims
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), "TEST_CHILD=ready", "TEST_NAME=grandchild")
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := c.Start(); err != nil {
			panic(err)
		}
		for {
			if _, err := os.Stat(filepath.Join(dir, "grandchild.ready")); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		say(name + ".ready")
		<-term
	case "supervisor":
		b, err := os.ReadFile(filepath.Join(dir, "units.json"))
		if err != nil {
			panic(err)
		}
		var units []component.Unit
		if err := json.Unmarshal(b, &units); err != nil {
			panic(err)
		}
		s := newSupervisor(dir)
		if err := s.Apply(context.Background(), units); err != nil {
			panic(err)
		}
		panic(s.Run(context.Background()))
	}
}

func testPaths(dir string) paths.Paths {
	return paths.Paths{Data: filepath.Join(dir, "data"), Run: filepath.Join(dir, "run")}
}

func newSupervisor(dir string) *supervise.Supervisor {
	p := testPaths(dir)
	return supervise.New(slog.New(slog.DiscardHandler), supervise.Options{
		NewRunner: func(u component.Unit) supervise.Runner { return runner.NewProcess(u, runner.Options{Paths: p}) },
		LogPath:   p.Log,
	})
}

func unit(t *testing.T, dir, name, mode string, needs ...string) component.Unit {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := component.Component{Name: name, Ready: probe.Probe{Kind: probe.File, Addr: filepath.Join(dir, name+".ready")}}
	for _, n := range needs {
		c.Needs = append(c.Needs, component.Need{Component: n, Level: component.Ready})
	}
	return component.Unit{
		Name: name, Argv: []string{exe}, StopTimeout: 10 * time.Second,
		Env:        map[string]string{"TEST_CHILD": mode, "TEST_DIR": dir, "TEST_NAME": name},
		Components: []component.Component{c},
	}
}

// start runs a supervisor in this process until stop is called, or the test ends.
func start(t *testing.T, dir string, units ...component.Unit) (s *supervise.Supervisor, stop func(cause error) error) {
	t.Helper()
	s = newSupervisor(dir)
	if err := s.Apply(t.Context(), units); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = s.Run(ctx)
	}()
	stop = func(cause error) error {
		cancel(cause)
		<-done
		return err
	}
	t.Cleanup(func() { _ = stop(nil) })
	return s, stop
}

func ready(t *testing.T, s *supervise.Supervisor, names ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, name := range names {
		if err := s.Wait(ctx, name, component.Ready); err != nil {
			t.Fatal(err)
		}
	}
}

func eventually(t *testing.T, what string, probe func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := wait.Until(ctx, 5*time.Millisecond, what, func(context.Context) error { return probe() }); err != nil {
		t.Fatal(err)
	}
}

func pidOf(t *testing.T, s *supervise.Supervisor, name string) int {
	t.Helper()
	for _, st := range s.Snapshot() {
		if st.Component == name {
			return st.PID
		}
	}
	t.Fatalf("no component %s", name)
	return 0
}

func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

func events(s *supervise.Supervisor, unit string) []string {
	var list []string
	for _, e := range s.Events() {
		if e.Unit == unit {
			list = append(list, e.What)
		}
	}
	return list
}

func TestAKilledProcessComesBackWhileOthersStay(t *testing.T) {
	dir := t.TempDir()
	s, stop := start(t, dir, unit(t, dir, "a", "ready"), unit(t, dir, "b", "ready", "a"))
	ready(t, s, "a", "b")
	a, b := pidOf(t, s, "a"), pidOf(t, s, "b")
	if err := syscall.Kill(a, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a to be another process", func() error {
		if pid := pidOf(t, s, "a"); pid == 0 || pid == a {
			return errors.New("it is not yet")
		}
		return nil
	})
	ready(t, s, "a")
	st := s.Snapshot()[0]
	if st.Restarts != 1 || st.LastExit == nil || st.LastExit.Signal != "killed" {
		t.Errorf("status of a: %+v, last exit %+v", st, st.LastExit)
	}
	if now := pidOf(t, s, "b"); now != b {
		t.Errorf("b was process %d and is %d", b, now)
	}
	if err := stop(nil); err != nil {
		t.Error(err)
	}
	for _, pid := range []int{b, st.PID} {
		if alive(pid) {
			t.Errorf("process %d is left", pid)
		}
	}
	if left, _ := runner.Records(testPaths(dir)); len(left) != 0 {
		t.Errorf("records are left: %v", left)
	}
}

func TestChildrenOutliveAKilledDaemonAndTheNextOneAdoptsAndStopsThem(t *testing.T) {
	dir := t.TempDir()
	units := []component.Unit{unit(t, dir, "a", "ready"), unit(t, dir, "b", "ready", "a"), unit(t, dir, "gone", "ready")}
	b, err := json.Marshal(units)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "units.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command(os.Args[0])
	daemon.Env = append(os.Environ(), "TEST_CHILD=supervisor", "TEST_DIR="+dir)
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	p := testPaths(dir)
	var recs []runner.Record
	eventually(t, "the first daemon to start all units", func() error {
		for _, u := range units {
			if _, err := os.Stat(filepath.Join(dir, u.Name+".ready")); err != nil {
				return err
			}
		}
		var err error
		if recs, err = runner.Records(p); err != nil {
			return err
		}
		for _, r := range recs { // a process may be ready before it is written down which it is
			if r.Process.PID == 0 {
				return fmt.Errorf("%s is not recorded yet", r.Unit)
			}
		}
		return nil
	})
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait()
	pids := map[string]int{}
	for _, r := range recs {
		pids[r.Unit] = r.Process.PID
		if !alive(r.Process.PID) {
			t.Fatalf("%s died with its daemon", r.Unit)
		}
	}

	// The next daemon knows a as it is, b with other arguments, and no third unit.
	changed := units[1]
	changed.Argv = append(slices.Clone(changed.Argv), "--changed")
	if err := os.Remove(filepath.Join(dir, "b.ready")); err != nil {
		t.Fatal(err)
	}
	if err := runner.StopRecorded(t.Context(), runner.Options{Paths: p}, func(u string) bool { return u != "gone" }); err != nil {
		t.Fatal(err)
	}
	s, stop := start(t, dir, units[0], changed)
	ready(t, s, "a", "b")
	if now := pidOf(t, s, "a"); now != pids["a"] || !s.Snapshot()[0].Adopted {
		t.Errorf("a was process %d and is %d: %+v", pids["a"], now, s.Snapshot()[0])
	}
	if now := pidOf(t, s, "b"); now == pids["b"] || alive(pids["b"]) || s.Snapshot()[1].Adopted {
		t.Errorf("b was not replaced: was %d, is %d", pids["b"], now)
	}
	if alive(pids["gone"]) {
		t.Error("the unit that is no longer wanted is left")
	}
	if got := events(s, "a"); !slices.Contains(got, "adopted") || slices.Contains(got, "started") {
		t.Errorf("events of a: %v", got)
	}

	// The end of a process that is not our child is noticed as well.
	if err := syscall.Kill(pids["a"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a to be started anew", func() error {
		if pid := pidOf(t, s, "a"); pid == 0 || pid == pids["a"] {
			return errors.New("it is not yet")
		}
		return nil
	})
	last := []int{pidOf(t, s, "a"), pidOf(t, s, "b")}
	if err := stop(nil); err != nil {
		t.Error(err)
	}
	for _, pid := range last {
		if alive(pid) {
			t.Errorf("process %d is left", pid)
		}
	}
}

func TestDetachedUnitsAreAdoptedAndStoppedProperly(t *testing.T) {
	dir := t.TempDir()
	u := unit(t, dir, "a", "ready")
	s, stop := start(t, dir, u)
	ready(t, s, "a")
	pid := pidOf(t, s, "a")
	if err := stop(supervise.ErrDetach); err != nil {
		t.Fatal(err)
	}
	if !alive(pid) {
		t.Fatal("it was not left running")
	}
	s, stop = start(t, dir, u)
	ready(t, s, "a")
	if now := pidOf(t, s, "a"); now != pid {
		t.Errorf("it was process %d and is %d", pid, now)
	}
	if err := stop(nil); err != nil || alive(pid) {
		t.Errorf("stopped: %v, alive: %v", err, alive(pid))
	}
	log, _ := os.ReadFile(testPaths(dir).Log("a"))
	if !strings.Contains(string(log), "hello from ready\n") || !strings.HasSuffix(string(log), "goodbye\n") {
		t.Errorf("log:\n%s", log)
	}
}

func TestAProcessThatIgnoresTheRequestIsKilled(t *testing.T) {
	dir := t.TempDir()
	u := unit(t, dir, "a", "ignore-stop")
	u.StopTimeout = 100 * time.Millisecond
	s, stop := start(t, dir, u)
	ready(t, s, "a")
	pid := pidOf(t, s, "a")
	if err := stop(nil); err != nil {
		t.Error(err)
	}
	if alive(pid) {
		t.Error("it is still there")
	}
	last := s.Events()
	if i := slices.IndexFunc(last, func(e supervise.Event) bool { return strings.Contains(e.Reason, "killed") }); i < 0 {
		t.Errorf("no event tells that it was killed: %+v", last)
	}
}

func TestWhatAProcessHasStartedOutlivesItsStop(t *testing.T) {
	dir := t.TempDir()
	s, stop := start(t, dir, unit(t, dir, "a", "fork-grandchild"))
	ready(t, s, "a")
	pid := pidOf(t, s, "a")
	b, err := os.ReadFile(filepath.Join(dir, "grandchild.ready"))
	if err != nil {
		t.Fatal(err)
	}
	var grandchild int
	if _, err := fmt.Sscan(string(b), &grandchild); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(grandchild, syscall.SIGKILL)
	if err := stop(nil); err != nil {
		t.Error(err)
	}
	if alive(pid) || !alive(grandchild) {
		t.Errorf("alive: the process %v, what it has started %v", alive(pid), alive(grandchild))
	}
}

func TestACrashAtStartBacksOffAndShowsTheLog(t *testing.T) {
	dir := t.TempDir()
	s, _ := start(t, dir, unit(t, dir, "a", "exit-code"))
	eventually(t, "a crash loop to be reported", func() error {
		if len(s.Problems()) == 0 {
			return errors.New("no problem yet")
		}
		return nil
	})
	p := s.Problems()[0]
	if p.Code != supervise.CodeCrashLoop || !strings.Contains(p.Text, "exited with status 7") || p.Log != testPaths(dir).Log("a") ||
		!slices.Equal(p.Tail, []string{"hello from exit-code", "fatal: the database is corrupt"}) {
		t.Errorf("problem: %+v", p)
	}
	if e := s.Snapshot()[0].LastExit; e == nil || e.Code != 7 {
		t.Errorf("last exit: %+v", e)
	}
}

func TestPrepareErrorsNamePathAndRemedy(t *testing.T) {
	dir := t.TempDir()
	inTheWay := filepath.Join(dir, "file")
	if err := os.WriteFile(inTheWay, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	noProgram := unit(t, dir, "no-program", "ready")
	noProgram.Argv = []string{filepath.Join(dir, "payload", "kube-apiserver")}
	badDir := unit(t, dir, "bad-dir", "ready")
	badDir.Dirs = []component.Dir{{Path: filepath.Join(inTheWay, "sub"), Mode: 0o700}}
	readOnly := unit(t, dir, "read-only", "ready")
	readOnly.Files = []component.File{{Path: "/proc/k1s-cannot-be-here/file", Mode: 0o600}}
	notExec := unit(t, dir, "not-exec", "ready")
	notExec.Argv = []string{inTheWay}
	s, _ := start(t, dir, noProgram, badDir, readOnly, notExec)
	eventually(t, "four failed units", func() error {
		if n := len(s.Problems()); n != 4 {
			return fmt.Errorf("%d problems", n)
		}
		return nil
	})
	for i, want := range []struct{ text, remedy string }{
		{filepath.Join(dir, "payload", "kube-apiserver"), "the unpacked payload is incomplete"},
		{filepath.Join(inTheWay, "sub"), "a file is where a directory has to be"},
		{"/proc/k1s-cannot-be-here/file", ""},
		{inTheWay, "make " + inTheWay + " executable"},
	} {
		p := s.Problems()[i]
		if p.Code != supervise.CodeUnitFailed || !strings.Contains(p.Text, want.text) || !strings.Contains(p.Remedy, want.remedy) {
			t.Errorf("problem %+v, want text %q, remedy %q", p, want.text, want.remedy)
		}
	}
}

func TestARecordWhosePidIsSomebodyElsesNowIsDropped(t *testing.T) {
	dir := t.TempDir()
	u := unit(t, dir, "a", "ready")
	stranger := exec.Command(os.Args[0])
	stranger.Env = append(os.Environ(), "TEST_CHILD=ready", "TEST_DIR="+dir, "TEST_NAME=stranger")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = stranger.Process.Kill()
		_ = stranger.Wait()
	}()
	p := testPaths(dir)
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	rec := runner.Record{Unit: "a", Hash: u.Hash(), Process: platform.ProcessID{
		PID: stranger.Process.Pid, Start: 1, Boot: strings.TrimSpace(string(boot)),
	}}
	b, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(p.Units(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.Unit("a"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	s, stop := start(t, dir, u)
	ready(t, s, "a")
	if pidOf(t, s, "a") == stranger.Process.Pid || s.Snapshot()[0].Adopted {
		t.Error("the stranger was adopted")
	}
	if err := stop(nil); err != nil {
		t.Error(err)
	}
	if !alive(stranger.Process.Pid) {
		t.Error("the stranger was ended")
	}
}

func TestAProcessWhoseStarterDiedBeforeWritingItsPidIsFound(t *testing.T) {
	dir := t.TempDir()
	u := unit(t, dir, "a", "ready")
	s, stop := start(t, dir, u)
	ready(t, s, "a")
	pid := pidOf(t, s, "a")
	if err := stop(supervise.ErrDetach); err != nil {
		t.Fatal(err)
	}
	p := testPaths(dir)
	recs, err := runner.Records(p)
	if err != nil || len(recs) != 1 {
		t.Fatal(recs, err)
	}
	recs[0].Process = platform.ProcessID{}
	b, _ := json.Marshal(recs[0])
	if err := os.WriteFile(p.Unit("a"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	s, stop = start(t, dir, u)
	ready(t, s, "a")
	if now := pidOf(t, s, "a"); now != pid {
		t.Errorf("it was process %d, a second one %d was started", pid, now)
	}
	if err := stop(nil); err != nil || alive(pid) {
		t.Errorf("stopped: %v, alive: %v", err, alive(pid))
	}
}

// Fifty units, each needing one before it, most of them killed at random times, in the end all is well and
// all can be stopped in bounded time.
func TestFiftyUnitsSurviveChaos(t *testing.T) {
	if testing.Short() {
		t.Skip("starts more than fifty processes")
	}
	dir := t.TempDir()
	var units []component.Unit
	for i := range 50 {
		var needs []string
		if i > 0 {
			needs = []string{fmt.Sprintf("u%02d", i/3)}
		}
		if i/3 == i {
			needs = nil
		}
		units = append(units, unit(t, dir, fmt.Sprintf("u%02d", i), "ready", needs...))
	}
	s, stop := start(t, dir, units...)
	var names []string
	for _, u := range units {
		names = append(names, u.Name)
	}
	ready(t, s, names...)
	seen := map[int]bool{}
	for i := range 60 {
		name := names[i*7%50]
		var pid int
		eventually(t, name+" to run", func() error {
			if pid = pidOf(t, s, name); pid == 0 || seen[pid] {
				return errors.New("it does not")
			}
			return nil
		})
		seen[pid] = true
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
		if i%20 == 19 {
			if err := s.Restart(names[(i*11+3)%50]); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "all to be ready again", func() error {
		for _, st := range s.Snapshot() {
			if st.State != supervise.Ready || seen[st.PID] {
				return fmt.Errorf("%s is %s", st.Component, st.State)
			}
		}
		return nil
	})
	var pids []int
	for _, st := range s.Snapshot() {
		pids = append(pids, st.PID)
	}
	if err := stop(nil); err != nil {
		t.Error(err)
	}
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %d is left", pid)
		}
	}
	if left, err := runner.Records(testPaths(dir)); len(left) != 0 || err != nil {
		t.Errorf("records are left: %v, %v", left, err)
	}
}

func TestACorruptRecordIsAnErrorWithARemedy(t *testing.T) {
	dir := t.TempDir()
	p := testPaths(dir)
	if err := os.MkdirAll(p.Units(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.Unit("a"), []byte("{half"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := runner.NewProcess(unit(t, dir, "a", "ready"), runner.Options{Paths: p}).Run(t.Context())
	if hint, _ := errs.HintOf(err); err == nil || !strings.Contains(err.Error(), p.Unit("a")) || hint == "" {
		t.Errorf("error %v, hint %q", err, hint)
	}
}
