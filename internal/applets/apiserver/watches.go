package apiserver

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/time/rate"
)

// A watch is opened at once, unless many were opened for the same kind of object just before.
const (
	watchesAtOnce    = 10
	watchesPerSecond = 4
)

// watches opens the watches of one kind of object. While etcd has no leader it ends each watch as soon as it is opened, and for 30 seconds
// upstream opens the next one at once (cacher.go, MaxInternalErrorRetryDuration): for 65 kinds of objects that was measured to be 2,000
// watches a second, each a line in the log, in the process that is to elect a leader.
type watches struct {
	clientv3.Watcher
	pace *rate.Limiter
}

func newWatches(w clientv3.Watcher) watches {
	return watches{w, rate.NewLimiter(watchesPerSecond, watchesAtOnce)}
}

// Watch implements clientv3.Watcher.
func (w watches) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	turn := w.pace.Reserve()
	if wait := turn.Delay(); wait > 0 {
		select {
		case <-ctx.Done(): // and so does the watch
			turn.Cancel()
		case <-time.After(wait):
		}
	}
	return w.Watcher.Watch(ctx, key, opts...)
}
