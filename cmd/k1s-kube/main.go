// Command k1s-kube is the payload program that carries Kubernetes: one program for all its parts, each
// an applet that is picked by the name the program was started under, or by its first argument.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"k1s.io/k1s/internal/applets/addonmanager"
	"k1s.io/k1s/internal/applets/apiserver"
	"k1s.io/k1s/internal/applets/applet"
	"k1s.io/k1s/internal/applets/balancer"
	"k1s.io/k1s/internal/applets/containerd"
	"k1s.io/k1s/internal/applets/controllermanager"
	"k1s.io/k1s/internal/applets/crictl"
	"k1s.io/k1s/internal/applets/ctr"
	"k1s.io/k1s/internal/applets/egress"
	"k1s.io/k1s/internal/applets/etcd"
	"k1s.io/k1s/internal/applets/etcdcare"
	"k1s.io/k1s/internal/applets/flannel"
	"k1s.io/k1s/internal/applets/group"
	"k1s.io/k1s/internal/applets/images"
	"k1s.io/k1s/internal/applets/kine"
	"k1s.io/k1s/internal/applets/kubectl"
	"k1s.io/k1s/internal/applets/kubelet"
	"k1s.io/k1s/internal/applets/kubeproxy"
	"k1s.io/k1s/internal/applets/migrate"
	"k1s.io/k1s/internal/applets/networkpolicy"
	"k1s.io/k1s/internal/applets/scheduler"
	"k1s.io/k1s/internal/applets/stoppods"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/probe"
	"k1s.io/k1s/internal/timers"
)

func applets() applet.Table {
	return applet.Table{
		"addon-manager":           {Run: addonmanager.Run},
		"balancer":                {Run: balancer.Run},
		"containerd":              {Run: containerd.Run},
		"crictl":                  {Run: crictl.Run, Tool: true},
		"ctr":                     {Run: ctr.Run, Tool: true},
		"datastore-copy":          {Run: migrate.Run},
		"egress":                  {Run: egress.Run},
		"etcd":                    {Run: etcd.Run},
		"etcd-care":               {Run: etcdcare.Run},
		"flannel":                 {Run: flannel.Run},
		"images":                  {Run: images.Run},
		"kine":                    {Run: kine.Run},
		"kube-apiserver":          {Run: apiserver.Run},
		"kube-controller-manager": {Run: controllermanager.Run},
		"kube-proxy":              {Run: kubeproxy.Run},
		"kube-scheduler":          {Run: scheduler.Run},
		"kubectl":                 {Run: kubectl.Run, Tool: true},
		"kubelet":                 {Run: kubelet.Run},
		"network-policy":          {Run: networkpolicy.Run},
		"stop-pods":               {Run: stoppods.Run},
	}
}

func main() {
	code := errs.Report(os.Stderr, run())
	klog.Flush()
	os.Exit(code)
}

func run() error {
	table := applets()
	memory, err := applet.DefaultMemory.FromEnv(os.Getenv)
	if err != nil {
		return err
	}
	table["group"] = applet.Applet{Run: group.Runner{
		Table:  applets(),
		Check:  probe.Check,
		Memory: memory,
		Timers: timers.Default,
		Log:    slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}.Main}

	name, args, err := table.Find(os.Args)
	if err != nil {
		return err
	}
	// Upstream takes its name in user agents and usage texts from here.
	os.Args = append([]string{name}, args...)

	a := table[name]
	if a.Tool {
		return named(name, a.Run(context.Background(), args))
	}
	ctx, stop := untilSignal(context.Background())
	defer stop()
	if name != "group" {
		memory.Begin()
		// Nobody tells a single applet when it is ready; starts have been over by then in all measurements.
		late := time.AfterFunc(lateReady, func() {
			go memory.Follow(ctx)
			if err := memory.Release(ctx); err != nil {
				slog.Warn("keeping memory of the start", "err", err)
			}
		})
		defer late.Stop()
	}
	err = a.Run(ctx, args)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil // it was asked to stop
	}
	return named(name, err)
}

// lateReady is when a single applet counts as started.
const lateReady = 5 * time.Second

// untilSignal returns a context that ends with the first signal asking the process to end. The second
// one ends the process at once. This is the only place that handles these signals.
func untilSignal(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() { // ends with the process
		<-signals
		cancel()
		s := <-signals
		fmt.Fprintf(os.Stderr, "error: ended at once by a second signal (%v)\n", s)
		os.Exit(errs.Interrupted.ExitCode())
	}()
	return ctx, cancel
}

func named(applet string, err error) error {
	if err == nil || applet == "group" { // a group names its members
		return err
	}
	return fmt.Errorf("%s: %w", applet, err)
}
