// Package addonmanager is the applet that keeps manifests applied: those of the packaged components,
// which the daemon renders into one directory, and the user's in another. It is not a general GitOps
// engine: it knows files, server-side apply and an inventory of what it applied, which is what it prunes
// by. It runs as a goroutine beside the API server or as a process of its own.
//
// Every file, and every direct sub-directory with the files in it, is a stack. For each stack:
//
//   - its content is applied when it differs from what was applied last, or when an object is missing;
//   - objects that left it are deleted, and all of them when the stack itself is gone;
//   - fields somebody else has taken over in a packaged object stay theirs, and are reported as drift; the
//     user's own files win when they change, and leave fields of others alone when they did not;
//   - a failure is reported and tried again with growing pauses, without holding up other stacks.
package addonmanager

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"k1s.io/k1s/internal/errs"
)

type options struct {
	kubeconfig  string
	packaged    string
	manifests   string
	disable     string
	statusFile  string
	leaderElect bool
}

// Run is the applet. It returns when ctx ends; what goes wrong with stacks is in the status file.
func Run(ctx context.Context, args []string) error {
	o, err := parseFlags(args)
	if err != nil {
		return err
	}
	config, err := clientConfig(o.kubeconfig)
	if err != nil {
		return err
	}
	// Whoever waits for the file means this run, not the one before.
	if err := os.Remove(o.statusFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the status of an earlier run: %w", err)
	}
	c, err := newCluster(config)
	if err != nil {
		return err
	}
	log := slog.Default().With("component", "addon-manager")
	m := newManager(o, c, log)
	if !o.leaderElect {
		return m.run(ctx)
	}
	return elect(ctx, log, config, m)
}

func parseFlags(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("addon-manager", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig to reach the API server with")
	fs.StringVar(&o.packaged, "packaged", "", "directory of packaged manifests")
	fs.StringVar(&o.manifests, "manifests", "", "directory of the user's manifests")
	fs.StringVar(&o.disable, "disable", "", "packaged stacks to treat as if they were not there, separated by commas")
	fs.StringVar(&o.statusFile, "status-file", "", "file to report in; it is there after the first pass over all stacks")
	fs.BoolVar(&o.leaderElect, "leader-elect", false, "act only while holding the lease, for several servers")
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		var b strings.Builder
		fs.SetOutput(&b)
		fs.PrintDefaults()
		return o, errs.New(errs.Usage, "usage: addon-manager FLAGS\n%s", b.String())
	case err != nil:
		return o, errs.As(errs.Usage, err)
	case fs.NArg() > 0:
		return o, errs.New(errs.Usage, "unexpected argument %q: only flags are allowed", fs.Arg(0))
	}
	for _, f := range []struct{ name, value string }{{"kubeconfig", o.kubeconfig}, {"packaged", o.packaged}, {"manifests", o.manifests}, {"status-file", o.statusFile}} {
		if f.value == "" {
			return o, errs.New(errs.Usage, "--%s is missing", f.name)
		}
	}
	return o, nil
}

func clientConfig(kubeconfig string) (*rest.Config, error) {
	c, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reading kubeconfig %q: %w", kubeconfig, err)
	}
	// One client beside the server: the server's own priority and fairness is throttle enough.
	c.QPS, c.Burst = -1, 0
	c.UserAgent = "k1s-addon-manager"
	c.Timeout = 30 * time.Second
	c.WarningHandler = rest.NoWarnings{}
	return c, nil
}
