// Package etcd is an embedded etcd member as an applet.
package etcd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"k1s.io/k1s/internal/errs"
)

// Run serves as configured by --config-file FILE, in etcd's own format, until ctx ends. On a clean stop
// a leader hands over first. A member that the others have removed makes the file of --removed-file, and ends.
func Run(ctx context.Context, args []string) error {
	set := flag.NewFlagSet("etcd", flag.ContinueOnError)
	set.SetOutput(io.Discard) // errors are returned
	file := set.String("config-file", "", "configuration `file`")
	removedFile := set.String("removed-file", "", "`file` to make when the others have removed this member")
	if err := set.Parse(args); err != nil {
		return errs.As(errs.Usage, err)
	}
	if *file == "" || set.NArg() > 0 {
		return errs.New(errs.Usage, "etcd takes flags only, and --config-file FILE has to be one")
	}
	cfg, err := embed.ConfigFromFile(*file)
	if err != nil {
		return errs.New(errs.Invalid, "loading etcd's configuration %q: %w", *file, err)
	}
	// Only its log tells why a member ends: whether others have removed it, or its disk has failed.
	var removed atomic.Bool
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(cfg.GetLogger().WithOptions(zap.Hooks(func(e zapcore.Entry) error {
		if e.Message == saysRemoved {
			removed.Store(true)
		}
		return nil
	})))
	err = serve(ctx, cfg)
	if removed.Load() && ctx.Err() == nil {
		err = errs.New(errs.Denied, "this member was removed from the cluster by the others")
		if *removedFile != "" {
			err = errors.Join(err, os.WriteFile(*removedFile, nil, 0o600))
		}
	}
	return err
}

// saysRemoved is what a member logs that the others have removed (etcdserver.EtcdServer.run, v3.6).
const saysRemoved = "data-dir used by this member must be removed"

func serve(ctx context.Context, cfg *embed.Config) error {
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("starting etcd: %w", err)
	}
	defer e.Close()
	select {
	case <-e.Server.ReadyNotify():
	case <-e.Server.StopNotify(): // before it was ready, e.g. it has been removed from the cluster
		return fmt.Errorf("etcd stopped while it was starting: see the lines above")
	case err := <-e.Err():
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.Err():
		return fmt.Errorf("serving: %w", err)
	case <-e.Server.StopNotify():
		return fmt.Errorf("etcd stopped by itself: it was removed from the cluster, or its disk failed; see the lines above")
	}
}
