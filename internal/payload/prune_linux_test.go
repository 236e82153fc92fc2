package payload

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"k1s.io/k1s/internal/errs"
)

func TestPruneKeepsWhatIsCurrentWantedOrRunning(t *testing.T) {
	p, root := open(t, makePayload(t, nil)), t.TempDir()
	unpack(t, p, root)
	const running, wanted, old, foreign = "11111111111111111111111111111111", "22222222222222222222222222222222",
		"33333333333333333333333333333333", "mine"
	for _, id := range []string{running, wanted, old, foreign} {
		if err := os.MkdirAll(filepath.Join(root, id, "cni"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// A program of an old payload that runs; it is started through another name, as in a pod.
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	prog := filepath.Join(root, running, "cni", "program")
	if err := os.WriteFile(prog, self, 0o755); err != nil {
		t.Fatal(err)
	}
	alias := filepath.Join(root, "alias")
	if err := os.Link(prog, alias); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(alias)
	cmd.Env = append(os.Environ(), "UNPACK_WAIT=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}

	removed, err := Prune(t.Context(), root, wanted)
	if err != nil || !reflect.DeepEqual(removed, []string{old}) {
		t.Errorf("removed %v, %v; want only %s", removed, err, old)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	removed, err = Prune(t.Context(), root, wanted)
	if err != nil || !reflect.DeepEqual(removed, []string{running}) {
		t.Errorf("after its program ended, removed %v, %v; want %s", removed, err, running)
	}
	for _, id := range []string{p.ID, wanted, foreign} {
		if _, err := os.Stat(filepath.Join(root, id)); err != nil {
			t.Errorf("should have been kept: %v", err)
		}
	}
}

// Clusters on one machine share what is unpacked: one with another version comes up while this one has not started anything yet.
func TestPruneKeepsWhatIsHeld(t *testing.T) {
	p, root := open(t, makePayload(t, nil)), t.TempDir()
	first, second := unpack(t, p, root), unpack(t, p, root)
	defer second.Release()
	const other = "11111111111111111111111111111111"
	if err := errors.Join(os.Mkdir(filepath.Join(root, other), 0o755), os.Remove(filepath.Join(root, current)), os.Symlink(other, filepath.Join(root, current))); err != nil {
		t.Fatal(err)
	}
	for _, holders := range []int{2, 1} {
		if removed, err := Prune(t.Context(), root); err != nil || removed != nil {
			t.Errorf("held by %d: removed %v, %v", holders, removed, err)
		}
		first.Release()
	}
	second.Release()
	if removed, err := Prune(t.Context(), root); err != nil || !reflect.DeepEqual(removed, []string{p.ID}) {
		t.Errorf("held by nobody: removed %v, %v; want %s", removed, err, p.ID)
	}
}

func TestPruneOfNothingIsNoError(t *testing.T) {
	if removed, err := Prune(t.Context(), filepath.Join(t.TempDir(), "absent")); err != nil || removed != nil {
		t.Errorf("%v, %v", removed, err)
	}
}

// A real file system of 16 KiB that fills up, and then is read-only. Mounting needs root.
func TestAFullAndAReadOnlyFileSystem(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	root := t.TempDir()
	if err := syscall.Mount("tmpfs", root, "tmpfs", 0, "size=16k"); err != nil {
		t.Skipf("mounting is not possible here: %v", err)
	}
	defer func() {
		if err := syscall.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	}()
	p := open(t, makePayload(t, nil))
	_, err := Unpack(t.Context(), p, root, 0)
	if hint, _ := errs.HintOf(err); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(hint, "1 MB") {
		t.Errorf("full: %v, hint %q", err, hint)
	}
	if left := leftIn(t, root); len(left) > 0 {
		t.Errorf("full: left %v", left)
	}
	if err := syscall.Mount("", root, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	_, err = Unpack(t.Context(), p, root, 0)
	if hint, _ := errs.HintOf(err); !errors.Is(err, syscall.EROFS) || hint == "" {
		t.Errorf("read-only: %v, hint %q", err, hint)
	}
}
