package daemon

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// script is a program of a few lines.
func script(t *testing.T, lines string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "k1s")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+lines+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestAProgramThatIsTriedRunsUnderOurCommandLine(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/nowhere")
	out := filepath.Join(t.TempDir(), "out")
	t.Setenv("TRIED_OUT", out)
	p, err := startProgram(script(t, `echo "$# $1 ${NOTIFY_SOCKET-none}" > "$TRIED_OUT"; echo "error: it is broken" >&2; exit 7`))
	if err != nil {
		t.Fatal(err)
	}
	<-p.Ended()
	if e := p.Exit(); e.Clean || e.How != "ended with exit status 7" || lastError(e.Said) != "it is broken" {
		t.Errorf("%+v", e)
	}
	got, err := os.ReadFile(out)
	fields := strings.Fields(string(got))
	if err != nil || len(fields) < 2 || fields[len(fields)-1] != "none" || len(os.Args) > 1 && fields[1] != os.Args[1] {
		t.Errorf("%q, %v; our arguments are %q", got, err, os.Args[1:])
	}
	p.Kill() // does nothing any more
}

func TestAProgramThatIsTriedIsStoppedOrKilled(t *testing.T) {
	for _, c := range []struct {
		lines string
		end   func(program)
		clean bool
		how   string
	}{
		{`trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done`, program.RequestStop, true, "ended with exit status 0"},
		{`echo ready; exec sleep 1000`, program.Kill, false, "was ended by a signal (killed)"},
	} {
		ready := filepath.Join(t.TempDir(), "ready")
		if err := unix.Mkfifo(ready, 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("TRIED_READY", ready)
		p, err := startProgram(script(t, strings.Replace(c.lines, "echo ready", `echo ready > "$TRIED_READY"`, 1)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.ReadFile(ready); err != nil { // it has come so far
			t.Fatal(err)
		}
		c.end(p)
		<-p.Ended()
		if e := p.Exit(); e.Clean != c.clean || e.How != c.how {
			t.Errorf("%+v, want %+v", e, c)
		}
	}
}

func TestAFileThatIsNoProgramIsNotStarted(t *testing.T) {
	if p, err := startProgram(filepath.Join(t.TempDir(), "none")); err == nil || p != nil {
		t.Errorf("%v, %v", p, err)
	}
}

// What this process has started before is collected while a program is tried: components that are replaced meanwhile.
func TestChildrenOfBeforeAreCollected(t *testing.T) {
	before := exec.Command("/bin/true")
	if err := before.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := startProgram(script(t, `sleep 0.3`))
	if err != nil {
		t.Fatal(err)
	}
	<-p.Ended()
	if !p.Exit().Clean {
		t.Errorf("%+v", p.Exit())
	}
	if err := unix.Kill(before.Process.Pid, 0); err == nil {
		t.Errorf("process %d is still there", before.Process.Pid)
	}
	if err := before.Process.Release(); err != nil {
		t.Error(err)
	}
}
