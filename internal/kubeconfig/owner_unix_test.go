//go:build unix

package kubeconfig

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
)

func ownerOf(t *testing.T, path string) (uid, gid uint32) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	sys := st.Sys().(*syscall.Stat_t)
	return sys.Uid, sys.Gid
}

func TestALockThatAKilledK1sHasLeftIsTakenOver(t *testing.T) {
	path := write(t, foreign)
	name := path + ".lock"
	if err := os.WriteFile(name, []byte(lockMark), 0o600); err != nil { // and no process holds it
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("no patience"))
	if _, err := Merge(ctx, []string{path}, ours, MergeOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the lock is left: %v", err)
	}

	unlock, err := lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(ctx, path); err == nil || !strings.Contains(err.Error(), "held by another program: no patience") {
		t.Errorf("one that is held: %v", err)
	}
	if err := unlock(); err != nil {
		t.Error(err)
	}
}
