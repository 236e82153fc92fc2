// Package kubeglobals lets several Kubernetes components share one process. Upstream keeps feature
// gates, component versions, logging and a few defaults in package variables, which is fine for a
// program that is one component; here whoever sets them up holds a lock, and what can exist only once
// (verbosity, log format) is decided by the first. It is used by the applets that run upstream's
// components and by nobody else.
package kubeglobals

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/component-base/cli/globalflag"
	"k8s.io/component-base/compatibility"
	"k8s.io/component-base/featuregate"
	"k8s.io/component-base/logs"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/component-base/version/verflag"
	"k8s.io/klog/v2"

	"k1s.io/k1s/internal/errs"
)

// mu guards upstream's package variables while a component sets itself up.
var mu sync.Mutex

var initLogs = sync.OnceFunc(func() {
	// A second component finds logging set up already; upstream's default is to fail then.
	logsapi.ReapplyHandling = logsapi.ReapplyHandlingIgnoreUnchanged
	logs.InitLogs()
	// Components use deprecated APIs knowingly; upstream's programs silence these warnings, too.
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
})

// Setup runs f, a component's parsing and setting of global state, while no other component does so.
func Setup(f func() error) error {
	mu.Lock()
	defer mu.Unlock()
	initLogs()
	return f()
}

// Component is what Parse needs to know of a component with upstream's usual structure.
type Component struct {
	Name     string
	Flags    *cliflag.NamedFlagSets
	Registry compatibility.ComponentGlobalsRegistry
	Logs     *logsapi.LoggingConfiguration
	Gate     featuregate.FeatureGate
}

// Parse reads args into the component's options and puts feature gates, versions and logging into
// force. Call it inside Setup. The error is of kind errs.Usage when the arguments are wrong.
func Parse(c Component, args []string) error {
	global := c.Flags.FlagSet("global")
	verflag.AddFlags(global)
	globalflag.AddGlobalFlags(global, c.Name, logs.SkipLoggingConfigurationFlags())
	fs := pflag.NewFlagSet(c.Name, pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	for _, set := range c.Flags.FlagSets {
		fs.AddFlagSet(set)
	}
	if err := ParseFlags(fs, args); err != nil {
		return err
	}
	if err := c.Registry.Set(); err != nil {
		return fmt.Errorf("setting feature gates and versions: %w", err)
	}
	if err := Logging(c.Logs, c.Gate); err != nil {
		return err
	}
	cliflag.PrintFlags(fs)
	if g, ok := c.Gate.(featuregate.MutableFeatureGate); ok {
		g.AddMetrics()
	}
	c.Registry.AddMetrics()
	return nil
}

// ParseFlags parses args, serves --help and --version as upstream's programs do (they end the
// process), and refuses arguments that are not flags.
func ParseFlags(fs *pflag.FlagSet, args []string) error {
	fs.Usage = func() { fmt.Fprintf(os.Stdout, "Usage of %s:\n%s", fs.Name(), fs.FlagUsagesWrapped(2)) }
	if err := fs.Parse(args); errors.Is(err, pflag.ErrHelp) {
		os.Exit(0)
	} else if err != nil {
		return errs.As(errs.Usage, err)
	}
	verflag.PrintAndExitIfRequested()
	if fs.NArg() > 0 {
		return errs.New(errs.Usage, "unexpected argument %q: only flags are allowed", fs.Arg(0))
	}
	return nil
}

var loggingSet bool // guarded by mu

// Logging puts c into force if it is the first, otherwise it is checked and has no effect: verbosity
// and format belong to the process. Call it inside Setup.
func Logging(c *logsapi.LoggingConfiguration, gate featuregate.FeatureGate) error {
	if loggingSet {
		if problems := logsapi.Validate(c, gate, nil); len(problems) > 0 {
			return errs.As(errs.Usage, problems.ToAggregate())
		}
		if err := logsapi.ValidateAndApply(c, gate); err != nil {
			klog.InfoS("Logging settings differ from those of the component that was started first in this process and have no effect")
		}
		return nil
	}
	if err := logsapi.ValidateAndApply(c, gate); err != nil {
		return errs.As(errs.Usage, err)
	}
	loggingSet = true
	return nil
}
