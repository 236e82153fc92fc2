// Package containerd is upstream's containerd as an applet, with the plugins in builtins.go. It is
// always a process of its own: it sets a few process-wide things (log format, temporary directory),
// and containers must not notice when something else is restarted.
package containerd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/cmd/containerd/command"
	"github.com/containerd/containerd/v2/cmd/containerd/server"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"k1s.io/k1s/internal/errs"
)

// Run serves as configured by --config FILE until ctx ends; containers go on running. --log-level
// overrides the file's. "config default", "config dump", "--version" and "--help" are upstream's.
func Run(ctx context.Context, args []string) error {
	if len(args) > 0 && slices.Contains([]string{"config", "publish", "oci-hook", "--version", "-v", "--help", "-h"}, args[0]) {
		return command.App().RunContext(ctx, append([]string{"containerd"}, args...))
	}
	set := flag.NewFlagSet("containerd", flag.ContinueOnError)
	set.SetOutput(io.Discard) // errors are returned
	file := set.String("config", filepath.Join(defaults.DefaultConfigDir, "config.toml"), "configuration `file`")
	level := set.String("log-level", "", "trace, debug, info, warn, error")
	if err := set.Parse(args); err != nil {
		return errs.As(errs.Usage, err)
	}
	if set.NArg() > 0 {
		return errs.New(errs.Usage, "unexpected argument %q: only flags are allowed", set.Arg(0))
	}
	config, err := load(ctx, *file)
	if err != nil {
		return errs.New(errs.Invalid, "loading containerd's configuration %q: %w", *file, err)
	}
	if *level == "" {
		*level = config.Debug.Level
	}
	if *level != "" {
		if err := log.SetLevel(*level); err != nil {
			return errs.As(errs.Usage, err)
		}
	}
	format := log.OutputFormat(config.Debug.Format)
	if format == "" {
		format = log.TextFormat
	}
	if err := log.SetFormat(format); err != nil {
		return errs.As(errs.Invalid, err)
	}
	return serve(ctx, config)
}

// stopTimeout bounds an orderly stop. gRPC waits for connections that were opened but never spoken on,
// for up to two minutes; nothing in containerd needs that.
const stopTimeout = 5 * time.Second

func stop(ctx context.Context, srv *server.Server) {
	done := make(chan struct{})
	go func() { // left behind when it takes too long: the process ends
		defer close(done)
		srv.Stop()
	}()
	t := time.NewTimer(stopTimeout)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		log.G(ctx).Warnf("ending without an orderly stop after %s: a client keeps a connection open", stopTimeout)
	}
}

func load(ctx context.Context, file string) (*srvconfig.Config, error) {
	config := &srvconfig.Config{
		Version: version.ConfigVersion,
		Root:    defaults.DefaultRootDir,
		State:   defaults.DefaultStateDir,
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc": map[string]any{
				"address":               defaults.DefaultAddress,
				"max_recv_message_size": defaults.DefaultMaxRecvMsgSize,
				"max_send_message_size": defaults.DefaultMaxSendMsgSize,
			},
		},
	}
	graph := registry.Graph(func(*plugin.Registration) bool { return false })
	plugins := func() iter.Seq[plugin.Registration] { return slices.Values(graph) }
	if err := srvconfig.LoadConfigWithPlugins(ctx, file, plugins, config); err != nil {
		return nil, err
	}
	return config, nil
}

func serve(ctx context.Context, config *srvconfig.Config) error {
	began := time.Now()
	if err := server.CreateTopLevelDirectories(config); err != nil {
		return fmt.Errorf("making containerd's directories: %w", err)
	}
	// What an earlier process was about to copy when it died.
	if err := mount.SetTempMountLocation(filepath.Join(config.Root, "tmpmounts")); err != nil {
		return fmt.Errorf("making the directory for temporary mounts: %w", err)
	}
	warnings, err := mount.CleanupTempMounts(0)
	if err != nil {
		log.G(ctx).WithError(err).Error("unmounting temporary mounts")
	}
	for _, w := range warnings {
		log.G(ctx).WithError(w).Warn("unmounting temporary mounts")
	}
	log.G(ctx).WithField("version", version.Version).WithField("pid", os.Getpid()).Info("starting containerd")

	// The database of another containerd with the same root blocks New for good, so that ctx has to end
	// the wait; the process ends right afterwards.
	type made struct {
		srv *server.Server
		err error
	}
	ready := make(chan made, 1)
	go func() {
		srv, err := server.New(ctx, config)
		ready <- made{srv, err}
	}()
	var srv *server.Server
	select {
	case <-ctx.Done():
		return nil
	case m := <-ready:
		if m.err != nil {
			return fmt.Errorf("starting containerd: %w", m.err)
		}
		srv = m.srv
	}
	defer stop(ctx, srv)
	if err := srv.Start(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("serving: %w", err)
	}
	go func() { // ends with ctx at the latest: stopping releases what Wait waits for, or the process ends
		srv.Wait()
		log.G(ctx).Infof("containerd is ready after %s", time.Since(began).Round(time.Millisecond))
	}()
	<-ctx.Done()
	return nil
}
