// Package controllermanager is upstream's kube-controller-manager as an applet.
package controllermanager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/options"

	"k1s.io/k1s/internal/applets/kubeglobals"
)

// Run takes upstream's flags.
//
// With leader election upstream ends the whole process when it stops leading. With the feature gate
// ControllerManagerReleaseLeaderElectionLockOnExit it returns instead, while its controllers may still be ending; the error
// makes the process end in good order, because nothing else ends controllers that hang.
func Run(ctx context.Context, args []string) error {
	s, err := options.NewKubeControllerManagerOptions()
	if err != nil {
		return fmt.Errorf("making default options: %w", err)
	}
	known, off, aliases := app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases()
	err = kubeglobals.Setup(func() error {
		sets := s.Flags(known, off, aliases)
		s.ParsedFlags = &sets
		return kubeglobals.Parse(kubeglobals.Component{
			Name:     "kube-controller-manager",
			Flags:    &sets,
			Registry: s.ComponentGlobalsRegistry,
			Logs:     s.Logs,
			Gate:     s.ComponentGlobalsRegistry.FeatureGateFor(basecompatibility.DefaultKubeComponent),
		}, args)
	})
	if err != nil {
		return err
	}
	// Not ctx: its end would cut off the event broadcaster before the controllers have stopped.
	c, err := s.Config(context.WithoutCancel(ctx), known, off, aliases)
	if err != nil {
		return fmt.Errorf("setting up the controller manager: %w", err)
	}
	c.Kubeconfig.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return patient{ctx: ctx, next: next, log: slog.Default()}
	})
	err = app.Run(ctx, c.Complete())
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil:
		return errors.New("the lease is lost: the API did not renew it in time, and another server may lead now")
	}
	return err
}
