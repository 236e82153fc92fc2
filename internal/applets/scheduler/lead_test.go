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
		next := l.gate(ctx, func(klog.Logger) (*framework.QueuedPodInfo, error) { return <-queue, nil })
		out := make(chan *framework.QueuedPodInfo, 8)
		go func() {
			for {
				p, err := next(klog.Background())
				if err != nil || p == nil {
					close(out)
					return
				}
				out <- p
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
		// The queue is closed with the scheduler.
		queue <- nil
		synctest.Wait()
		if _, open := <-out; !open {
			t.Error("pods are lost")
		}
	})
}
