//go:build system

package system

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The check at the end of a run is worth something only if it would see what is left.
func TestWhatIsLeftOnTheMachineIsSeen(t *testing.T) {
	root(t)
	dir := t.TempDir()
	mark := filepath.Base(filepath.Dir(dir))
	marks := []string{mark}
	before, err := look(marks)
	if err != nil {
		t.Fatal(err)
	}
	left := exec.Command("sleep", "600")
	left.Env = []string{"MARK=" + mark}
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = left.Process.Kill()
		_ = left.Wait() // killed
	})
	cgroup := "/sys/fs/cgroup/" + firstController(t) + mark
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(cgroup); err != nil {
			t.Error(err)
		}
	})
	if err := mountTmpfs(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmount(dir); err != nil {
			t.Error(err)
		}
	})
	after, err := look(marks)
	if err != nil {
		t.Fatal(err)
	}
	seen := strings.Join(before.added(after), "\n")
	for _, want := range []string{"process ", "sleep 600", "cgroup " + cgroup, "mount " + dir} {
		if !strings.Contains(seen, want) {
			t.Errorf("%q is not among what is seen:\n%s", want, seen)
		}
	}
}

// firstController is a directory of a hierarchy in which a cgroup can be made, "" for cgroup v2.
func firstController(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.procs"); err == nil {
		return ""
	}
	return "pids/"
}
