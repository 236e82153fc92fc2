// Package scheduler is upstream's kube-scheduler as an applet.
package scheduler

import (
	"context"
	"fmt"

	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	"k8s.io/kubernetes/pkg/scheduler/framework"

	"k1s.io/k1s/internal/applets/kubeglobals"
)

// Run takes upstream's flags.
//
// With leader election upstream ends the whole process when it stops leading, also after a request to stop. Here it
// only pauses: a scheduler that does not lead keeps its caches warm and takes no pod from its queue.
func Run(ctx context.Context, args []string) error {
	opts := options.NewOptions()
	err := kubeglobals.Setup(func() error {
		return kubeglobals.Parse(kubeglobals.Component{
			Name:     "kube-scheduler",
			Flags:    opts.Flags,
			Registry: opts.ComponentGlobalsRegistry,
			Logs:     opts.Logs,
			Gate:     opts.ComponentGlobalsRegistry.FeatureGateFor(basecompatibility.DefaultKubeComponent),
		}, args)
	})
	if err != nil {
		return err
	}
	cc, sched, err := app.Setup(ctx, opts)
	if err != nil {
		return fmt.Errorf("setting up the scheduler: %w", err)
	}
	if elect := cc.LeaderElection; elect != nil {
		cc.LeaderElection, cc.ComponentConfig.LeaderElection.LeaderElect = nil, false
		l := newLead(*elect)
		sched.NextPod = l.gate(ctx, sched.NextPod, func(p *framework.QueuedPodInfo) {
			sched.SchedulingQueue.Done(p.Pod.UID)
			sched.SchedulingQueue.Add(ctx, p.Pod)
		})
		done := make(chan error, 1)
		go func() { done <- l.run(ctx) }()
		defer func() { <-done }() // it gives the lease back
	}
	// Upstream's Run knows no orderly end: it always returns an error.
	if err := app.Run(ctx, cc, sched); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}
