//go:build unix

package durable

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A component that is not root reads its key again when that was renewed.
func TestWhatIsReplacedStaysOfWhomItWas(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("K1S_TEST_ROOT") != "" {
			t.Fatal("asked for, but this is not root")
		}
		t.Skipf("needs root, and this is user %d: only root gives files away", os.Geteuid())
	}
	for _, c := range []struct {
		dir, of    int // of the directory: its mode, and whose it is
		uid, gid   int
		mode, want os.FileMode
		roots      bool // it becomes
	}{
		{0o755, 0, 0, 0, 0o640, 0o600, true}, // root's group is no component
		{0o755, 0, 61104, 61104, 0o600, 0o600, false},
		{0o711, 0, 0, 61100, 0o640, 0o640, false},
		{0o755, 0, 0, 61100, 0o664, 0o640, false},
		// Whoever has put it there is not given what root writes.
		{0o777, 0, 61104, 61104, 0o600, 0o600, true},
		{0o775, 0, 0, 61100, 0o640, 0o600, true},
		{0o700, 61104, 61104, 61104, 0o600, 0o600, true},
	} {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, c.uid, c.gid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Chmod(filepath.Dir(path), os.FileMode(c.dir)), os.Chown(filepath.Dir(path), c.of, c.of)); err != nil {
			t.Fatal(err)
		}
		if err := WriteFile(path, []byte("new"), 0o600); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		sys, uid, gid := st.Sys().(*syscall.Stat_t), c.uid, c.gid
		if c.roots {
			uid, gid = 0, 0
		}
		if int(sys.Uid) != uid || int(sys.Gid) != gid || st.Mode().Perm() != c.want {
			t.Errorf("in a directory of %d, %o: %d:%d %o became %d:%d %o, want mode %o", c.of, c.dir, c.uid, c.gid, c.mode, sys.Uid, sys.Gid, st.Mode().Perm(), c.want)
		}
	}
}
