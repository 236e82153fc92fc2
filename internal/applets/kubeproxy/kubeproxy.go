// Package kubeproxy is upstream's kube-proxy as an applet.
package kubeproxy

import (
	"context"
	goflag "flag"
	"fmt"
	"os"

	"github.com/spf13/pflag"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/component-base/version/verflag"
	"k8s.io/kubernetes/cmd/kube-proxy/app"
	"sigs.k8s.io/yaml"

	"k1s.io/k1s/internal/applets/kubeglobals"
	"k1s.io/k1s/internal/errs"
)

// Run takes upstream's flags. Its rules stay in place when it ends. It fails when its configuration file
// is changed while it runs, as upstream does, so that it is started anew.
func Run(ctx context.Context, args []string) error {
	opts := app.NewOptions()
	err := kubeglobals.Setup(func() error {
		set := pflag.NewFlagSet("kube-proxy", pflag.ContinueOnError)
		set.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
		verflag.AddFlags(set)
		opts.AddFlags(set)
		set.AddGoFlagSet(goflag.CommandLine) // --boot-id-file, --machine-id-file
		if err := kubeglobals.ParseFlags(set, args); err != nil {
			return err
		}
		if err := opts.Complete(set); err != nil {
			return errs.New(errs.Invalid, "reading the configuration: %w", err)
		}
		logs, err := logging(set, opts.ConfigFile)
		if err != nil {
			return err
		}
		if err := kubeglobals.Logging(logs, utilfeature.DefaultFeatureGate); err != nil {
			return err
		}
		cliflag.PrintFlags(set)
		utilfeature.DefaultMutableFeatureGate.AddMetrics()
		return opts.Validate()
	})
	if err != nil {
		return err
	}
	// Upstream's Run does not return when ctx ends, only its parts do. The goroutine that is left over
	// ends with the process, which is about to happen: an applet runs once.
	failed := make(chan error, 1)
	go func() { failed <- opts.Run(ctx) }()
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// logging is the logging part of the configuration file with the command line on top. Upstream keeps
// the one it has read to itself.
func logging(set *pflag.FlagSet, file string) (*logsapi.LoggingConfiguration, error) {
	config := struct {
		Logging *logsapi.LoggingConfiguration `json:"logging"`
	}{logsapi.NewLoggingConfiguration()}
	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading %q: %w", file, err)
		}
		if err := yaml.Unmarshal(text, &config); err != nil {
			return nil, errs.New(errs.Invalid, "reading %q: %w", file, err)
		}
	}
	var line pflag.FlagSet
	logsapi.AddFlags(config.Logging, &line)
	var err error
	line.VisitAll(func(f *pflag.Flag) {
		if given := set.Lookup(f.Name); given != nil && given.Changed && err == nil {
			err = f.Value.Set(given.Value.String())
		}
	})
	return config.Logging, err
}
