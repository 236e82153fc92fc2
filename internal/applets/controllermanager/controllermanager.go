// Package controllermanager is upstream's kube-controller-manager as an applet.
package controllermanager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"syscall"
	"time"

	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/component-base/configz"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/config"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/options"

	"k1s.io/k1s/internal/applets/kubeglobals"
	"k1s.io/k1s/internal/wait"
)

// Run takes upstream's flags.
//
// With leader election upstream ends the whole process when it stops leading. With the feature gate
// ControllerManagerReleaseLeaderElectionLockOnExit it returns instead, and here it starts anew then: it shares its
// process with the API server, which has nothing to do with who leads.
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
	configure := func() (*config.Config, error) { return s.Config(context.WithoutCancel(ctx), known, off, aliases) }
	c, err := configure()
	for err == nil {
		err = runOnce(ctx, c)
		if err != nil || ctx.Err() != nil {
			break
		}
		slog.Warn("the lease is lost: the controllers stop here, and stand by", "component", "kube-controller-manager")
		c, err = again(ctx, s, configure)
	}
	switch {
	case ctx.Err() != nil:
		return nil
	case c == nil:
		return fmt.Errorf("setting up the controller manager: %w", err)
	}
	return err
}

// runOnce returns nil when the lease was lost or ctx has ended, and then nothing of it serves any more.
func runOnce(ctx context.Context, c *config.Config) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	return app.Run(ctx, c.Complete())
}

// portLimit is how long the port of a run that has ended may stay taken.
const portLimit = 10 * time.Second

// again is the configuration for another run in the same process.
func again(ctx context.Context, s *options.KubeControllerManagerOptions, configure func() (*config.Config, error)) (*config.Config, error) {
	configz.Delete(app.ConfigzName)
	ctx, cancel := context.WithTimeout(ctx, portLimit)
	defer cancel()
	serving := s.SecureServing
	addr := net.JoinHostPort(serving.BindAddress.String(), strconv.Itoa(serving.BindPort))
	err := wait.Until(ctx, 50*time.Millisecond, "the port of the run before to be free", func(ctx context.Context) error {
		var l net.ListenConfig
		var err error
		serving.Listener, err = l.Listen(ctx, "tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			return err
		}
		return wait.Permanent(err)
	})
	if err != nil {
		return nil, err
	}
	return configure()
}
