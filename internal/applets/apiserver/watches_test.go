package apiserver

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// leaderless ends every watch as soon as it is opened.
type leaderless struct {
	clientv3.Watcher
	opened int
}

func (l *leaderless) Watch(context.Context, string, ...clientv3.OpOption) clientv3.WatchChan {
	l.opened++
	c := make(chan clientv3.WatchResponse)
	close(c)
	return c
}

func TestWatchesThatEndAtOnceAreNotOpenedInALoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &leaderless{}
		w := newWatches(l)
		began := time.Now()
		for range watchesAtOnce { // those of an API server that starts, or of a short election
			for range w.Watch(t.Context(), "/registry/pods/") {
			}
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("the first watches waited for %s", waited)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		for ctx.Err() == nil {
			for range w.Watch(ctx, "/registry/pods/") {
			}
			if l.opened > 1000 {
				break
			}
		}
		if want := watchesAtOnce + 30*watchesPerSecond; l.opened < want-1 || l.opened > want+1 {
			t.Errorf("%d watches were opened in 30 s, want %d", l.opened, want)
		}
	})
}
