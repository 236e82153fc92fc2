package durable

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
)

func TestAFileIsReplacedWithTheGivenMode(t *testing.T) {
	t.Run("for good", func(t *testing.T) { replaces(t, WriteFile) })
	t.Run("until the next start", func(t *testing.T) { replaces(t, Replace) })
}

func replaces(t *testing.T, write func(string, []byte, os.FileMode) error) {
	path := filepath.Join(t.TempDir(), "f")
	for i, mode := range []os.FileMode{0o600, 0o644} {
		want := strconv.Itoa(i)
		if err := write(path, []byte(want), mode); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Fatalf("got %q, %v; want %q", got, err, want)
		}
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != mode {
			t.Fatalf("mode %v, %v; want %v", st.Mode(), err, mode)
		}
	}
}

func TestAFailedWriteLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "taken")
	if err := os.MkdirAll(filepath.Join(path, "child"), 0o755); err != nil { // a directory cannot be renamed over
		t.Fatal(err)
	}
	for _, write := range []func(string, []byte, os.FileMode) error{WriteFile, Replace} {
		if err := write(path, []byte("x"), 0o600); err == nil {
			t.Fatal("replaced a directory by a file")
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("left behind: %v, %v", entries, err)
	}
}

func TestLockLetsOneInAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var wg sync.WaitGroup
	inside, worst := 0, 0 // guarded by the lock under test; the race detector sees it if it is none
	var mu sync.Mutex
	for range 8 {
		wg.Go(func() {
			unlock, err := Lock(t.Context(), path)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			inside++
			worst = max(worst, inside)
			mu.Unlock()
			mu.Lock()
			inside--
			mu.Unlock()
			unlock()
		})
	}
	wg.Wait()
	if worst != 1 {
		t.Fatalf("%d held the lock at once", worst)
	}
}

func TestWaitingForALockEndsWithTheContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := Lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := Lock(ctx, path); !errors.Is(err, why) {
		t.Fatalf("got %v", err)
	}
	unlock()
	again, err := Lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	again()
}
