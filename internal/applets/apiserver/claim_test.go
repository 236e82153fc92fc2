package apiserver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestThatADatabaseIsForeignIsToldToEveryDaemon(t *testing.T) {
	file := filepath.Join(t.TempDir(), "claim.json")
	told := func() bool {
		b, err := os.ReadFile(file)
		return err == nil && string(b) == "report"
	}
	synctest.Test(t, func(t *testing.T) {
		if err := tell(t.Context(), file, []byte("report"), true); err != nil || !told() {
			t.Fatalf("ours: told %v, %v", told(), err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		ended, reason := make(chan error, 1), errors.New("the node ends")
		go func() { ended <- tell(ctx, file, []byte("report"), false) }()
		for range 3 {
			// The daemon that was told is killed, and the next one does not believe it.
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * claimEvery)
			synctest.Wait()
			if !told() {
				t.Fatal("the next daemon is told nothing")
			}
		}
		cancel(reason)
		if err := <-ended; !errors.Is(err, reason) {
			t.Errorf("ended with %v", err)
		}
	})
}
