package apiserver

import (
	apiextensionsapiserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/util/webhook"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/controlplane"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"
	generatedopenapi "k8s.io/kubernetes/pkg/generated/openapi"
)

// newConfig is upstream's app.NewConfig with a way to nodes, pods and services of our own, which everything in it has to
// know from the beginning. Upstream has a file for that, which leads through a socket even to what is next door. A
// file the user names is left to upstream.
func newConfig(opts options.CompletedOptions, t *tunnels) (*app.Config, error) {
	if t == nil {
		return app.NewConfig(opts)
	}
	generic, versioned, storage, err := controlplaneapiserver.BuildGenericConfig(
		opts.CompletedOptions,
		[]*runtime.Scheme{legacyscheme.Scheme, apiextensionsapiserver.Scheme, aggregatorscheme.Scheme},
		controlplane.DefaultAPIResourceConfigSource(),
		generatedopenapi.GetOpenAPIDefinitions,
	)
	if err != nil {
		return nil, err
	}
	if generic.EgressSelector == nil {
		generic.EgressSelector = t.selector()
	}
	t.learnFrom(generic, versioned)
	kube, services, plugins, err := app.CreateKubeAPIServerConfig(opts, generic, versioned, storage)
	if err != nil {
		return nil, err
	}
	cp := kube.ControlPlane
	hooks := webhook.NewDefaultAuthenticationInfoResolverWrapper(cp.ProxyTransport, cp.Generic.EgressSelector, cp.Generic.LoopbackClientConfig, cp.Generic.TracerProvider)
	extensions, err := controlplaneapiserver.CreateAPIExtensionsConfig(*cp.Generic, cp.VersionedInformers, plugins, opts.CompletedOptions, opts.MasterCount, services, hooks)
	if err != nil {
		return nil, err
	}
	aggregator, err := controlplaneapiserver.CreateAggregatorConfig(*cp.Generic, opts.CompletedOptions, cp.VersionedInformers, services, cp.ProxyTransport, cp.PeerProxy, plugins)
	if err != nil {
		return nil, err
	}
	return &app.Config{Options: opts, Aggregator: aggregator, KubeAPIs: kube, ApiExtensions: extensions}, nil
}
