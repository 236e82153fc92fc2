package addonmanager

import (
	"context"
	"log/slog"
	"time"

	"github.com/fsnotify/fsnotify"
)

// watcher tells when something in the directories may have changed.
type watcher struct {
	log  *slog.Logger
	fs   *fsnotify.Watcher // nil where the system does not tell; then the scans have to do
	dirs []string
	last time.Time // of the last scan
}

func newWatcher(log *slog.Logger, dirs ...string) *watcher {
	w := &watcher{log: log, dirs: dirs}
	var err error
	if w.fs, err = fsnotify.NewWatcher(); err != nil {
		log.Warn("directories cannot be watched, they are read every minute instead", "err", err)
		w.fs = nil
	}
	w.follow(nil)
	return w
}

// follow watches further directories; those watched already, files and what is not there are no problem.
func (w *watcher) follow(dirs []string) {
	w.last = time.Now()
	if w.fs == nil {
		return
	}
	for _, d := range append(dirs, w.dirs...) {
		_ = w.fs.Add(d) // the scan every minute finds what is not watched
	}
}

// wait returns after the given time, or soon after something has changed. It tells whether a scan is due.
func (w *watcher) wait(ctx context.Context, d time.Duration) (scan bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	var events chan fsnotify.Event
	var failures chan error
	if w.fs != nil {
		events, failures = w.fs.Events, w.fs.Errors
	}
	for {
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
			return scan || time.Since(w.last) >= scanEvery
		case err := <-failures:
			w.log.Debug("watching failed for a moment", "err", err)
			scan = true
			t.Reset(debounce)
		case e := <-events:
			if e.Op == fsnotify.Chmod {
				continue
			}
			if !scan { // the first event starts the clock; a writer that never stops does not put it off
				scan = true
				t.Reset(debounce)
			}
		}
	}
}

func (w *watcher) close() {
	if w.fs != nil {
		_ = w.fs.Close()
	}
}
