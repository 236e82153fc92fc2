// Package scheduler is upstream's kube-scheduler as an applet.
package scheduler

import (
	"context"
	"fmt"

	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	"k1s.io/k1s/internal/applets/kubeglobals"
)

// Run takes upstream's flags.
//
// With leader election upstream ends the whole process when it stops leading, also after a request to
// stop; run it with --leader-elect=false where it shares a process.
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
	// Upstream's Run knows no orderly end: it always returns an error.
	if err := app.Run(ctx, cc, sched); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}
