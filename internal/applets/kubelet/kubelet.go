// Package kubelet is upstream's kubelet as an applet. Upstream's command installs a process-wide
// signal handler and cannot be stopped otherwise, so this is its flag and configuration handling
// (command line over drop-ins over file over defaults) in front of upstream's exported Run.
package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"

	"github.com/spf13/pflag"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric/noop"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/component-base/featuregate"
	"k8s.io/klog/v2"
	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
	"k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	kubeletconfigv1beta1 "k8s.io/kubernetes/pkg/kubelet/apis/config/v1beta1"
	"k8s.io/kubernetes/pkg/kubelet/apis/config/validation"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
	"k8s.io/kubernetes/pkg/kubelet/kubeletconfig/configfiles"
	utilfs "k8s.io/kubernetes/pkg/util/filesystem"

	"k1s.io/k1s/internal/applets/certmetrics"
	"k1s.io/k1s/internal/applets/kubeglobals"
	"k1s.io/k1s/internal/errs"
)

// Run takes upstream's flags. It returns soon after ctx has ended; pods go on running.
//
// Upstream ends the whole process when one of its servers cannot listen or a manager cannot start.
func Run(ctx context.Context, args []string) error {
	// As upstream's program: these metrics are not used and would only grow.
	otel.SetMeterProvider(noop.NewMeterProvider())

	var server *options.KubeletServer
	err := kubeglobals.Setup(func() (err error) {
		server, err = configure(ctx, args)
		return err
	})
	if err != nil {
		return err
	}
	certmetrics.Show(server.TLSCertFile)
	deps, err := app.UnsecuredDependencies(ctx, server, utilfeature.DefaultFeatureGate)
	if err != nil {
		return fmt.Errorf("constructing dependencies: %w", err)
	}
	if err := app.Run(ctx, server, deps, utilfeature.DefaultFeatureGate); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

func configure(ctx context.Context, args []string) (*options.KubeletServer, error) {
	flags := options.NewKubeletFlags()
	config, err := options.NewKubeletConfiguration()
	if err != nil {
		return nil, fmt.Errorf("making the default configuration: %w", err)
	}
	set := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	set.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	flags.AddFlags(set)
	options.AddKubeletConfigFlags(set, config)
	options.AddGlobalFlags(set)
	if err := kubeglobals.ParseFlags(set, args); err != nil {
		return nil, err
	}
	if err := setGates(config.FeatureGates); err != nil {
		return nil, err
	}
	if err := options.ValidateKubeletFlags(flags); err != nil {
		return nil, errs.As(errs.Usage, err)
	}
	if flags.KubeletConfigFile != "" {
		if config, err = load(ctx, flags.KubeletConfigFile); err != nil {
			return nil, err
		}
	}
	if dir := flags.KubeletDropinConfigDirectory; dir != "" {
		if err := dropIns(config, dir); err != nil {
			return nil, err
		}
	}
	if flags.KubeletConfigFile != "" || flags.KubeletDropinConfigDirectory != "" {
		if err := reapply(config, args); err != nil {
			return nil, err
		}
		if err := setGates(config.FeatureGates); err != nil {
			return nil, err
		}
	}
	if err := kubeglobals.Logging(&config.Logging, utilfeature.DefaultFeatureGate); err != nil {
		return nil, err
	}
	cliflag.PrintFlags(set)
	if err := validation.ValidateKubeletConfiguration(config, utilfeature.DefaultFeatureGate); err != nil {
		return nil, errs.New(errs.Invalid, "kubelet configuration %q: %w", flags.KubeletConfigFile, err)
	}
	utilfeature.DefaultMutableFeatureGate.AddMetrics()
	return &options.KubeletServer{KubeletFlags: *flags, KubeletConfiguration: *config}, nil
}

func setGates(gates map[string]bool) error {
	var gate featuregate.MutableFeatureGate = utilfeature.DefaultMutableFeatureGate
	if err := gate.SetFromMap(gates); err != nil {
		return errs.New(errs.Invalid, "setting feature gates: %w", err)
	}
	return nil
}

// load reads a configuration file into a configuration with upstream's defaults.
func load(ctx context.Context, file string) (*kubeletconfig.KubeletConfiguration, error) {
	loader, err := newLoader(file)
	if err != nil {
		return nil, err
	}
	config, err := loader.Load(ctx)
	if err != nil {
		return nil, errs.New(errs.Invalid, "loading kubelet configuration %q: %w", file, err)
	}
	// These depend on the operating system, so the API's own defaults lack them.
	switch {
	case config.EvictionHard == nil:
		config.EvictionHard = maps.Clone(eviction.DefaultEvictionHard)
	case config.MergeDefaultEvictionSettings:
		merged := maps.Clone(eviction.DefaultEvictionHard)
		maps.Copy(merged, config.EvictionHard)
		config.EvictionHard = merged
	}
	return config, nil
}

func newLoader(file string) (configfiles.Loader, error) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return nil, fmt.Errorf("finding %q: %w", file, err)
	}
	return configfiles.NewFsLoader(&utilfs.DefaultFs{}, abs)
}

// dropIns merges all *.conf files below dir into config, in lexical order.
func dropIns(config *kubeletconfig.KubeletConfiguration, dir string) error {
	kind := kubeletv1beta1.SchemeGroupVersion.WithKind("KubeletConfiguration")
	var versioned kubeletv1beta1.KubeletConfiguration
	if err := kubeletconfigv1beta1.Convert_config_KubeletConfiguration_To_v1beta1_KubeletConfiguration(config, &versioned, nil); err != nil {
		return err
	}
	merged, err := json.Marshal(versioned)
	if err != nil {
		return err
	}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Ext(path) != ".conf" {
			return err
		}
		loader, err := newLoader(path)
		if err != nil {
			return err
		}
		patch, gvk, err := loader.LoadIntoJSON()
		if err != nil {
			return fmt.Errorf("loading %q: %w", path, err)
		}
		if gvk == nil || *gvk != kind {
			return fmt.Errorf("%q: apiVersion and kind must be %s, %s", path, kind.GroupVersion(), kind.Kind)
		}
		merged, err = jsonpatch.MergePatch(merged, patch)
		return err
	})
	if err != nil {
		return errs.New(errs.Invalid, "reading kubelet drop-ins in %q: %w", dir, err)
	}
	versioned = kubeletv1beta1.KubeletConfiguration{}
	if err := json.Unmarshal(merged, &versioned); err != nil {
		return errs.New(errs.Invalid, "reading the merged kubelet configuration: %w", err)
	}
	kubeletconfigv1beta1.SetDefaults_KubeletConfiguration(&versioned)
	return kubeletconfigv1beta1.Convert_v1beta1_KubeletConfiguration_To_config_KubeletConfiguration(&versioned, config, nil)
}

// reapply lets the command line win over what came from files.
func reapply(config *kubeletconfig.KubeletConfiguration, args []string) error {
	// Flags that are not part of the configuration have been applied already; some add up when set twice.
	done := pflag.NewFlagSet("", pflag.ContinueOnError)
	done.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	options.AddGlobalFlags(done)
	set := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	set.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	set.SetOutput(io.Discard) // deprecation warnings have been printed
	done.VisitAll(func(f *pflag.Flag) { set.VarP(cliflag.NoOp{}, f.Name, f.Shorthand, f.Usage) })
	options.NewKubeletFlags().AddFlags(set)
	options.AddKubeletConfigFlags(set, config)

	fromFile := maps.Clone(config.FeatureGates)
	if err := set.Parse(args); err != nil {
		return errs.As(errs.Usage, err)
	}
	// A gate flag replaces the whole map.
	for gate, on := range fromFile {
		if _, ok := config.FeatureGates[gate]; !ok {
			config.FeatureGates[gate] = on
		}
	}
	klog.V(5).InfoS("Kubelet configuration", "configuration", klog.Format(config))
	return nil
}
