package platform

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/wait"
)

// realCgroups are those of this machine. They need root, so they are asked for with K1S_TEST_ROOT=1, and
// are used anyway where they can be.
func realCgroups(t *testing.T) *Cgroups {
	t.Helper()
	c, err := DetectCgroups()
	if err != nil || os.Geteuid() != 0 {
		if os.Getenv("K1S_TEST_ROOT") != "" {
			t.Fatalf("asked for, but cannot run: root %v, %v", os.Geteuid() == 0, err)
		}
		t.Skip("needs root and cgroups")
	}
	return c
}

// onlyUnified is the version 2 hierarchy of a hybrid machine used as if there were no other: it has no
// controllers, but births, moves, kills and removals are the kernel's own.
func onlyUnified(t *testing.T) *Cgroups {
	c := realCgroups(t)
	if c.Version == 1 && !c.Hybrid {
		t.Skip("no version 2 hierarchy")
	}
	return &Cgroups{Version: 2, Hierarchies: map[string]string{"": c.Hierarchies[""]}, Own: map[string]string{"": c.Own[""]}, fs: c.fs}
}

func TestCgroupsOfThisMachine(t *testing.T)  { tryCgroups(t, realCgroups(t)) }
func TestVersion2OfThisMachine(t *testing.T) { tryCgroups(t, onlyUnified(t)) }

func tryCgroups(t *testing.T, c *Cgroups) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	name := fmt.Sprintf("/k1s-test-%d", os.Getpid())
	root, err := c.Prepare(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := root.KillAll(ctx); err != nil {
			t.Error(err)
		}
		if err := root.Remove(ctx); err != nil {
			t.Error(err)
		}
	}()
	unit, err := c.Ensure(name, "unit")
	if err != nil {
		t.Fatal(err)
	}
	// It forks only when it has been moved, which version 1 cannot do at birth.
	moved := filepath.Join(t.TempDir(), "moved")
	script := "while [ ! -e " + moved + " ]; do sleep 0.01; done; sleep 1000 & sleep 1000 & wait"
	p, err := NewProcesses().Start(Command{Argv: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}, Cgroup: unit})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	defer p.Kill()
	if err := unit.Add(p.ID().PID); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(moved, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var pids []int
	err = wait.Until(ctx, 5*time.Millisecond, "it to fork", func(context.Context) error {
		if pids, err = unit.Procs(); len(pids) < 3 {
			return fmt.Errorf("processes %v, %v", pids, err)
		}
		return nil
	})
	if err != nil || !slices.Contains(pids, p.ID().PID) {
		t.Errorf("processes %v, %v; want %d among them", pids, err, p.ID().PID)
	}
	own, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.ID().PID))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(own)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for controller := range strings.SplitSeq(f[1], ",") {
			if _, ok := c.Hierarchies[controller]; ok && !strings.HasSuffix(f[2], name+"/unit") {
				t.Errorf("hierarchy %q: it is in %s", controller, f[2])
			}
		}
	}
	if s, err := unit.Stats(); err != nil || s.ProcessesInside < 3 {
		t.Errorf("stats: %+v, %v", s, err)
	}
	if err := root.Remove(ctx); err == nil {
		t.Error("it was removed with processes in it")
	}
	if err := root.KillAll(ctx); err != nil {
		t.Fatal(err)
	}
	if e, err := p.Wait(ctx); err != nil || e.Signal != "killed" {
		t.Errorf("exit %+v, %v", e, err)
	}
	if err := root.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	if out, _ := exec.Command("find", "/sys/fs/cgroup", "-name", strings.TrimPrefix(name, "/")).Output(); len(out) > 0 {
		t.Errorf("left: %s", out)
	}
}
