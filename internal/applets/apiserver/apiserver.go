// Package apiserver is upstream's kube-apiserver as an applet. It differs from upstream's program in when the
// bootstrap objects are written, see bootstrap.go, when OpenAPI documents are built, see openapi.go, how many
// connections to the datastore it opens, see connections.go, how it reaches nodes and pods, see tunnel.go, and that it first finds
// out whose a database of others is, see claim.go.
package apiserver

import (
	"context"
	"fmt"
	"os"
	"sync"

	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/flagz"
	basecompatibility "k8s.io/component-base/compatibility"
	utilversion "k8s.io/component-base/version"
	"k8s.io/klog/v2"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	"k1s.io/k1s/internal/applets/certmetrics"
	"k1s.io/k1s/internal/applets/kubeglobals"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/errs"
)

// EnvUpstreamHooks, when set to anything, leaves the bootstrap objects to upstream's own hooks, OpenAPI to
// upstream's own installation, and lets every kind of object have its connection to the datastore. It is there for
// the baseline of the benchmarks only: k1s' own roles are not written then.
const EnvUpstreamHooks = "K1S_UPSTREAM_HOOKS"

// Run takes upstream's flags. It returns when the server has been drained after ctx ended.
//
// A bootstrap hook that fails for 30 seconds ends the process, as upstream does: a control plane
// without its roles is of no use.
func Run(ctx context.Context, args []string) error {
	s := options.NewServerRunOptions()
	registry := s.GenericServerRunOptions.ComponentGlobalsRegistry
	err := kubeglobals.Setup(func() error {
		lookForKeys()
		sets := s.Flags()
		s.Flagz = flagz.NamedFlagSetsReader{FlagSets: sets}
		return kubeglobals.Parse(kubeglobals.Component{
			Name:     "kube-apiserver",
			Flags:    &sets,
			Registry: registry,
			Logs:     s.Logs,
			Gate:     registry.FeatureGateFor(basecompatibility.DefaultKubeComponent),
		}, args)
	})
	if err != nil {
		return err
	}
	completed, err := s.Complete(ctx)
	if err != nil {
		return fmt.Errorf("completing options: %w", err)
	}
	if problems := completed.Validate(); len(problems) > 0 {
		return errs.As(errs.Usage, utilerrors.NewAggregate(problems))
	}
	certmetrics.Show(completed.SecureServing.ServerCert.CertKey.CertFile)
	klog.InfoS("Starting kube-apiserver", "version", utilversion.Get().GitVersion)
	if os.Getenv(EnvUpstreamHooks) == "" {
		closeConnections, err := shareConnections()
		if err != nil {
			return err
		}
		defer func() {
			if err := closeConnections(); err != nil {
				klog.ErrorS(err, "Connections to the datastore not closed")
			}
		}()
	}
	if attempt := os.Getenv(components.EnvFence); attempt != "" {
		klog.InfoS("Serving nothing: the state moves to another datastore", "attempt", attempt)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	if err := claimDatabase(ctx, completed); err != nil {
		return err
	}
	tunnels, err := newTunnels()
	if err != nil {
		return err
	}
	server, documents, err := chain(completed, documentInputs(registry), tunnels)
	if err != nil {
		return err
	}
	prepared, err := server.PrepareRun()
	if err != nil {
		return fmt.Errorf("preparing to serve: %w", err)
	}
	documents.prepared()
	if tunnels != nil {
		watching, stop := context.WithCancel(context.WithoutCancel(ctx))
		var wg sync.WaitGroup
		wg.Go(func() { tunnels.watch(watching) })
		defer func() { // after the server has been drained: what it still does may need them
			stop()
			tunnels.server.Close()
			wg.Wait()
		}()
	}
	return prepared.Run(ctx)
}

// chain builds the three chained servers with our bootstrap hooks and OpenAPI handlers in place of upstream's. The
// documents are nil when upstream's own are installed.
func chain(opts options.CompletedOptions, inputs string, tunnels *tunnels) (*aggregatorapiserver.APIAggregator, *documents, error) {
	config, err := newConfig(opts, tunnels)
	if err != nil {
		return nil, nil, fmt.Errorf("building the configuration: %w", err)
	}
	serveJoining(&config.Aggregator.GenericConfig.Config)
	if tunnels != nil {
		if err := tunnels.serve(config); err != nil {
			return nil, nil, fmt.Errorf("preparing for tunnels: %w", err)
		}
	}
	// The set is shared by all three servers. Hooks in it are dropped while upstream registers its own;
	// what is in it already was switched off for a reason (roles without the RBAC authorizer).
	disabled := config.KubeAPIs.ControlPlane.Generic.DisabledPostStartHooks
	replaced := hooks()
	upstream := os.Getenv(EnvUpstreamHooks) != ""
	if upstream {
		replaced = nil
	}
	// The other two servers have copies of this configuration and few routes; custom resources' documents
	// are added to what upstream installs in one of them.
	generic := config.KubeAPIs.ControlPlane.Generic
	generic.SkipOpenAPIInstallation = !upstream
	var documents *documents
	if !upstream {
		documents = newDocuments(generic.OpenAPIConfig, generic.OpenAPIV3Config, inputs)
	}
	for name := range replaced {
		if disabled.Has(name) {
			delete(replaced, name)
			continue
		}
		disabled.Insert(name)
	}
	complete, err := config.Complete()
	if err != nil {
		return nil, nil, fmt.Errorf("completing the configuration: %w", err)
	}
	server, err := app.CreateServerChain(complete)
	if err != nil {
		return nil, nil, fmt.Errorf("building the servers: %w", err)
	}
	if documents != nil {
		apis, ok := server.GenericAPIServer.NextDelegate().(*genericapiserver.GenericAPIServer)
		if !ok {
			return nil, nil, fmt.Errorf("installing OpenAPI handlers: behind the aggregator is a %T", server.GenericAPIServer.NextDelegate())
		}
		documents.install(apis.Handler.GoRestfulContainer.RegisteredWebServices, apis.Handler.NonGoRestfulMux)
	}
	for name, hook := range replaced {
		disabled.Delete(name)
		// Under upstream's name, so that /readyz waits for it and shows it as usual.
		if err := server.GenericAPIServer.AddPostStartHook(name, hook); err != nil {
			return nil, nil, err
		}
	}
	return server, documents, nil
}
