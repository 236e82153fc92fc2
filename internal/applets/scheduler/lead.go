package scheduler

import (
	"context"
	"fmt"
	"sync"

	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/scheduler/framework"
)

// nextPod blocks until there is a pod to schedule; nil says that the queue is closed.
type nextPod = func(klog.Logger) (*framework.QueuedPodInfo, error)

// lead is whether this scheduler is the one that acts.
type lead struct {
	config leaderelection.LeaderElectionConfig

	mu sync.Mutex // guards on
	// on is closed while this one leads.
	on chan struct{}
}

func newLead(c leaderelection.LeaderElectionConfig) *lead {
	return &lead{config: c, on: make(chan struct{})}
}

// run competes for the lease until ctx ends, and gives it back then.
func (l *lead) run(ctx context.Context) error {
	l.config.ReleaseOnCancel = true
	l.config.Callbacks = leaderelection.LeaderCallbacks{
		// It is called in a goroutine of its own, maybe after the lease is lost; then ctx has ended before l.stop.
		OnStartedLeading: l.begin,
		OnStoppedLeading: l.stop,
	}
	for ctx.Err() == nil {
		le, err := leaderelection.NewLeaderElector(l.config)
		if err != nil {
			return fmt.Errorf("preparing the election: %w", err)
		}
		le.Run(ctx) // until the lease is lost or ctx ends
	}
	return nil
}

func (l *lead) begin(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() == nil {
		close(l.on)
	}
}

func (l *lead) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.on:
		l.on = make(chan struct{})
	default: // it never led
	}
}

func (l *lead) leading() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.on
}

// gate lets pods out of the queue only while this scheduler leads. One that was waited for when the lease was lost goes back
// into the queue: what is out of it makes the queue remember every event until it comes back.
func (l *lead) gate(ctx context.Context, next nextPod, back func(*framework.QueuedPodInfo)) nextPod {
	return func(logger klog.Logger) (*framework.QueuedPodInfo, error) {
		if !arrives(ctx, l.leading()) {
			return nil, nil
		}
		pod, err := next(logger)
		if pod == nil || err != nil {
			return nil, err
		}
		select {
		case <-l.leading():
			return pod, nil
		default:
			back(pod)
			return nil, nil // asked again at once
		}
	}
}

func arrives(ctx context.Context, c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	case <-ctx.Done():
		return false
	}
}
