//go:build unix

package durable

import (
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
		t.Skip("needs root: only root gives files away")
	}
	for _, c := range []struct {
		uid, gid   int
		mode, want os.FileMode
	}{
		{0, 0, 0o640, 0o600}, // root's group is no component
		{61104, 61104, 0o600, 0o600},
		{0, 61100, 0o640, 0o640},
		{0, 61100, 0o664, 0o640},
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
		if err := WriteFile(path, []byte("new"), 0o600); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		sys := st.Sys().(*syscall.Stat_t)
		if int(sys.Uid) != c.uid || int(sys.Gid) != c.gid || st.Mode().Perm() != c.want {
			t.Errorf("%d:%d %o became %d:%d %o, want mode %o", c.uid, c.gid, c.mode, sys.Uid, sys.Gid, st.Mode().Perm(), c.want)
		}
	}
}
