// Package etcd is an embedded etcd member as an applet.
package etcd

import (
	"context"
	"flag"
	"fmt"
	"io"

	"go.etcd.io/etcd/server/v3/embed"

	"k1s.io/k1s/internal/errs"
)

// Run serves as configured by --config-file FILE, in etcd's own format, until ctx ends. On a clean stop
// a leader hands over first.
func Run(ctx context.Context, args []string) error {
	set := flag.NewFlagSet("etcd", flag.ContinueOnError)
	set.SetOutput(io.Discard) // errors are returned
	file := set.String("config-file", "", "configuration `file`")
	if err := set.Parse(args); err != nil {
		return errs.As(errs.Usage, err)
	}
	if *file == "" || set.NArg() > 0 {
		return errs.New(errs.Usage, "etcd takes exactly one flag: --config-file FILE")
	}
	cfg, err := embed.ConfigFromFile(*file)
	if err != nil {
		return errs.New(errs.Invalid, "loading etcd's configuration %q: %w", *file, err)
	}
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
