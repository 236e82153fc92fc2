package scheduler

import (
	"context"
	"testing"
	"testing/synctest"

	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/scheduler/framework"
)

func TestPodsLeaveTheQueueOnlyWhileThisSchedulerLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		l := newLead(leaderelection.LeaderElectionConfig{})
		queue := make(chan *framework.QueuedPodInfo, 8)
		next := l.gate(ctx, func(klog.Logger) (*framework.QueuedPodInfo, error) { return <-queue, nil }, func(p *framework.QueuedPodInfo) { queue <- p })
		out := make(chan *framework.QueuedPodInfo, 8)
		go func() {
			for {
				p, err := next(klog.Background())
				switch {
				case ctx.Err() != nil:
					close(out)
					return
				case err != nil:
					t.Error(err)
				case p != nil:
					out <- p
				}
			}
		}()
		scheduled := func(want int, when string) {
			t.Helper()
			synctest.Wait()
			if len(out) != want {
				t.Errorf("%s: %d pods are scheduled, want %d", when, len(out), want)
			}
		}
		queue <- &framework.QueuedPodInfo{}
		scheduled(0, "standing by")
		l.begin(ctx)
		scheduled(1, "leading")
		// It waits at the queue when the lease is lost: what comes then is not its to place.
		l.stop()
		queue <- &framework.QueuedPodInfo{}
		scheduled(1, "after the lease was lost")
		if len(queue) != 1 {
			t.Errorf("%d pods are in the queue, want the one that came", len(queue))
		}
		lost, cancel := context.WithCancel(ctx)
		cancel()
		l.begin(lost) // a callback that comes too late
		scheduled(1, "after a late callback")
		l.stop() // it never led
		l.begin(ctx)
		scheduled(2, "leading again")
		l.stop()
		stop()
		synctest.Wait()
		queue <- nil // it is closed with the scheduler
		synctest.Wait()
		if len(out) != 2 {
			t.Errorf("%d pods are scheduled at the end", len(out))
		}
	})
}
