package daemon

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/paths"
)

func TestADiskThatFillsUpIsAProblemUntilThereIsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &Daemon{o: Options{Paths: paths.Paths{Data: "/data"}}, log: slog.New(slog.DiscardHandler), board: health.NewBoard(time.Now)}
		full := health.New(health.DiskLow, "0 MB are free at /data, 500 MB are needed").As(health.Error)
		var found []health.Problem
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go d.watchDisk(ctx, func(dir string) []health.Problem {
			if dir != "/data" {
				t.Errorf("looked at %s", dir)
			}
			return found
		})
		synctest.Wait()
		if p := d.board.List(); len(p) != 0 {
			t.Errorf("at the start: %v", p)
		}
		found = []health.Problem{full}
		time.Sleep(diskEvery)
		synctest.Wait()
		if p := d.board.List(); len(p) != 1 || p[0].Code != health.DiskLow || p[0].Severity != health.Error || p[0].Remedy == "" {
			t.Errorf("when it is full: %v", p)
		}
		found = nil
		time.Sleep(diskEvery)
		synctest.Wait()
		if p := d.board.List(); len(p) != 0 {
			t.Errorf("when there is room again: %v", p)
		}
	})
}
