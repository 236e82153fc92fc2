// Package etcd is an embedded etcd member as an applet.
package etcd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"k1s.io/k1s/internal/errs"
)

// Run serves as configured by --config-file FILE, in etcd's own format, until ctx ends. On a clean stop
// a leader hands over first. A member that the others have removed makes the file of --removed-file, and ends. Members that
// have moved are looked for by their nodes' names and at each --seek HOST.
func Run(ctx context.Context, args []string) error {
	set := flag.NewFlagSet("etcd", flag.ContinueOnError)
	set.SetOutput(io.Discard) // errors are returned
	file := set.String("config-file", "", "configuration `file`")
	removedFile := set.String("removed-file", "", "`file` to make when the others have removed this member")
	look := seeker{lookup: lookupHost}
	set.Func("seek", "a `host` at which a server is", func(host string) error { look.hosts = append(look.hosts, host); return nil })
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
	err = serve(ctx, cfg, look)
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

// lostAfter is how long a member that has copied the cluster's state for the first time may take to become ready.
const lostAfter = 500 * time.Millisecond

// errLost says that a member has to be started again.
var errLost = errors.New("the member's first message was lost")

func serve(ctx context.Context, cfg *embed.Config, look seeker) error {
	// A member that joins tells the others of itself and serves nobody before they have agreed. What it says while it learns
	// who they are is lost with the connections it has until then, and etcd says it again after seven seconds only
	// (etcdserver.EtcdServer.publishV3, rafthttp.Transport.AddRemote, v3.6). Started again it knows them from the beginning.
	_, err := os.Stat(filepath.Join(cfg.Dir, "member", "wal"))
	fresh := errors.Is(err, os.ErrNotExist) && cfg.ClusterState == embed.ClusterStateFlagExisting
	err = serveOnce(ctx, cfg, look, fresh)
	if errors.Is(err, errLost) {
		err = serveOnce(ctx, cfg, look, false)
	}
	return err
}

// copied is closed when a member has the state of the others, and some time has gone by.
func copied(ctx context.Context, e *embed.Etcd) <-chan struct{} {
	c := make(chan struct{})
	go func() {
		defer close(c)
		tick := time.NewTicker(lostAfter / 10)
		defer tick.Stop()
		for left := 10; left > 0 && ctx.Err() == nil; {
			select {
			case <-ctx.Done():
			case <-tick.C:
				if e.Server.AppliedIndex() > 0 {
					left--
				}
			}
		}
	}()
	return c
}

// serveOnce returns errLost for a fresh member that does not become ready though it has what it needs.
func serveOnce(ctx context.Context, cfg *embed.Config, look seeker, fresh bool) error {
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("starting etcd: %w", err)
	}
	ended := false
	defer func() {
		if !ended { // a server that has stopped would only keep us waiting for its clients, which wait for it
			e.Close()
		}
	}()
	seeking, found := context.WithCancel(ctx)
	var seekers sync.WaitGroup
	seekers.Go(func() { look.run(seeking, e) })
	defer func() { found(); seekers.Wait() }()
	var lost <-chan struct{}
	if fresh {
		starting, started := context.WithCancel(ctx)
		lost = copied(starting, e)
		defer func() { started(); <-lost }()
	}
	select {
	case <-e.Server.ReadyNotify():
	case <-lost:
		e.Server.HardStop() // Close alone waits until it is ready
		if ctx.Err() != nil {
			return nil
		}
		return errLost
	case <-e.Server.StopNotify(): // before it was ready, e.g. it has been removed from the cluster
		ended = true
		return fmt.Errorf("etcd stopped while it was starting: see the lines above")
	case err := <-e.Err():
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
		e.Server.HardStop() // as above: without a majority it never is
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.Err():
		return fmt.Errorf("serving: %w", err)
	case <-e.Server.StopNotify():
		ended = true
		return fmt.Errorf("etcd stopped by itself: it was removed from the cluster, or its disk failed; see the lines above")
	}
}
