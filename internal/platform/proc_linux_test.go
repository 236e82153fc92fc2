package platform

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/errs"
)

func startSh(t *testing.T, script string) (Process, string) {
	t.Helper()
	out, err := os.OpenFile(filepath.Join(t.TempDir(), "out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p, err := NewProcesses().Start(Command{Argv: []string{"/bin/sh", "-c", script}, Env: []string{"A=b", "PATH=/usr/bin:/bin", "MARK=" + t.Name()}, Output: out})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Kill()
		_ = p.Close()
	})
	return p, out.Name()
}

func waitFor(t *testing.T, p Process) Exit {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	e, err := p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestAProcessRunsInASessionOfItsOwnWithNothingInherited(t *testing.T) {
	t.Setenv("SECRET_OF_THE_DAEMON", "x")
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], 0); err != nil { // as of a shell that ran us: every child has it
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(pipe[0]); _ = unix.Close(pipe[1]) }()
	p, out := startSh(t, `for f in /proc/$$/fd/*; do [ ! -p $f ] || echo a pipe; done; pwd; env | grep -v '^_=\|^PWD=\|^OLDPWD=\|^SHLVL=' | sort; cut -d' ' -f6 /proc/$$/stat; exit 5`)
	if e := waitFor(t, p); e.Code != 5 || e.Signal != "" || e.Unknown {
		t.Errorf("exit: %+v", e)
	}
	b, _ := os.ReadFile(out)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	want := "/|A=b|MARK=" + t.Name() + "|PATH=/usr/bin:/bin"
	if got := strings.Join(lines[:len(lines)-1], "|"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if sid := lines[len(lines)-1]; sid == "" || sid == "0" {
		t.Errorf("session %q", sid)
	}
}

func TestTheSignalThatEndedAProcessIsTold(t *testing.T) {
	p, _ := startSh(t, "exec sleep 1000")
	if err := p.RequestStop(); err != nil {
		t.Fatal(err)
	}
	if e := waitFor(t, p); e.Signal != "terminated" || e.Code != -1 || e.String() != "was ended by a signal: terminated" {
		t.Errorf("exit: %+v", e)
	}
	if err := errors.Join(p.RequestStop(), p.Kill()); err != nil {
		t.Errorf("signalling what is gone: %v", err)
	}
}

func TestWaitingEndsWithItsContextAndCanBeTakenUpAgain(t *testing.T) {
	p, _ := startSh(t, "exec sleep 1000")
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := p.Wait(ctx); !errors.Is(err, why) {
		t.Errorf("Wait ended with %v", err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if e := waitFor(t, p); e.Signal != "killed" {
		t.Errorf("exit: %+v", e)
	}
}

func TestAdoptTakesOnlyTheVerySameProcess(t *testing.T) {
	p, _ := startSh(t, "exec sleep 1000")
	id := p.ID()
	if id.Start == 0 || id.Boot == "" || id.Exe == "" {
		t.Fatalf("identity: %+v", id)
	}
	for name, change := range map[string]func(*ProcessID){
		"another start": func(id *ProcessID) { id.Start++ },
		"another boot":  func(id *ProcessID) { id.Boot = "x" },
		"another space": func(id *ProcessID) { id.Namespace = "pid:[1]" },
		"no such pid":   func(id *ProcessID) { id.PID = 1 << 22 },
		"no pid":        func(id *ProcessID) { id.PID = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			other := id
			change(&other)
			if got, err := NewProcesses().Adopt(other); !errs.Is(err, errs.NotFound) {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
	q, err := NewProcesses().Adopt(id) // although sh has become sleep since
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if err := q.Kill(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, q)
	if got, err := NewProcesses().Adopt(id); !errs.Is(err, errs.NotFound) {
		t.Errorf("after its end: %v, %v", got, err)
	}
}

func TestAProcessIsFoundByItsEnvironment(t *testing.T) {
	p, _ := startSh(t, "exec sleep 1000")
	ids, err := NewProcesses().FindByEnv("MARK", t.Name())
	if err != nil || len(ids) != 1 || ids[0].PID != p.ID().PID {
		t.Errorf("found %+v, %v; want pid %d", ids, err, p.ID().PID)
	}
	if ids, err := NewProcesses().FindByEnv("MARK", t.Name()+"x"); err != nil || len(ids) != 0 {
		t.Errorf("found %+v, %v", ids, err)
	}
}

func TestStartTellsWhyItFails(t *testing.T) {
	_, err := NewProcesses().Start(Command{Argv: []string{"/nonexistent/program"}})
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nonexistent/program") {
		t.Errorf("got %v", err)
	}
}

func TestTheStartTimeIsReadWhateverTheProgramIsCalled(t *testing.T) {
	state, start, err := parseStat("12 (a) b (c) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0 18446744073709551615")
	if state != "S" || start != 4711 || err != nil {
		t.Errorf("got %q, %d, %v", state, start, err)
	}
	for _, bad := range []string{"", "12 no parentheses", "12 (short) S 1"} {
		if _, _, err := parseStat(bad); err == nil {
			t.Errorf("parseStat(%q) is fine", bad)
		}
	}
}
