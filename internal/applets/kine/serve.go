package kine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"os"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/server"
	"github.com/k3s-io/kine/pkg/util"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
)

// graceful is how long calls may take to end when asked to stop.
const graceful = 2 * time.Second

// serve opens the database and serves the etcd API until ctx ends; then all calls have ended and the
// database is closed. It is here instead of kine's package endpoint because that links every driver
// there is: one of them brings a storage engine and an S3 client, 3 MB of code in the one program.
// Limits and keep-alive are etcd's own, as there.
func serve(ctx context.Context, s settings) error {
	var closed sync.WaitGroup
	defer closed.Wait()
	// Once open, the database outlives ctx until the last call has ended; until then kine may try for ever.
	opened, closeDatabase := context.WithCancel(context.WithoutCancel(ctx))
	defer closeDatabase()
	outlives := context.AfterFunc(ctx, closeDatabase)
	backend, err := s.open(ctx, opened, &closed)
	if err != nil {
		return err
	}
	if !outlives() {
		return context.Cause(ctx)
	}

	listener, scheme, err := listen(ctx, s.listen, s.groupMayConnect)
	if err != nil {
		return err
	}
	g := grpc.NewServer(
		grpc.UnaryInterceptor(endRequest),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: embed.DefaultGRPCKeepAliveMinTime}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: embed.DefaultGRPCKeepAliveInterval, Timeout: embed.DefaultGRPCKeepAliveTimeout}),
		grpc.MaxConcurrentStreams(embed.DefaultMaxConcurrentStreams),
		grpc.MaxRecvMsgSize(int(embed.DefaultMaxRequestBytes)+512<<10), // etcd's allowance for what is around a request
		grpc.MaxSendMsgSize(math.MaxInt32))
	served := backend
	if s.Scheme == "sqlite" { // databases of others have deadlocks, after which it is right to try again
		served = honest{backend}
	}
	register(g, server.New(lists{Backend: served, asOf: s.Scheme == "nats"}, scheme, s.notifyInterval, s.version))
	watches := newWatchServer(backend, s.Scheme != "nats", slog.Default())
	etcdserverpb.RegisterWatchServer(g, watches)

	var notifying sync.WaitGroup
	defer notifying.Wait()
	notified, stopNotifying := context.WithCancel(ctx)
	defer stopNotifying()
	notifying.Go(func() { watches.notify(notified, s.notifyInterval) })

	if s.endpointFile != "" {
		notifying.Go(func() { s.watchDatabase(notified, backend) })
	}

	done := make(chan error, 1)
	go func() { done <- g.Serve(listener) }()
	select {
	case err := <-done:
		return fmt.Errorf("serving at %s: %w", s.listen, err)
	case <-ctx.Done():
	}
	late := time.AfterFunc(graceful, g.Stop)
	defer late.Stop()
	g.GracefulStop()
	return <-done
}

// open opens and prepares the database, which is closed when lasting ends and closed is done.
func (s *settings) open(ctx, lasting context.Context, closed *sync.WaitGroup) (server.Backend, error) {
	if s.endpointFile != "" {
		return s.openDatabase(ctx, lasting, closed)
	}
	_, backend, err := drivers.New(lasting, closed, &s.Config)
	if err != nil {
		return nil, s.explain(fmt.Errorf("opening the database: %w", err))
	}
	if backend == nil {
		return nil, errors.New("opening the database: the DSN names another server of the etcd API, which needs no kine")
	}
	if err := s.advance(ctx); err != nil {
		return nil, s.explain(err)
	}
	if err := backend.Start(lasting); err != nil {
		return nil, s.explain(fmt.Errorf("preparing the database: %w", err))
	}
	return backend, nil
}

// register is kine's own, without the Watch service and without reflection, which nobody asks a socket of ours for.
func register(g *grpc.Server, b *server.KVServerBridge) {
	etcdserverpb.RegisterKVServer(g, b)
	etcdserverpb.RegisterLeaseServer(g, b)
	etcdserverpb.RegisterClusterServer(g, b)
	etcdserverpb.RegisterMaintenanceServer(g, b)
	healthy := health.NewServer()
	healthy.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(g, healthy)
}

// explain says what an error means for an SQLite file.
func (s settings) explain(err error) error {
	if s.Scheme != "sqlite" {
		return err
	}
	return explain(file(s.DataSourceName), err)
}

// listen opens a unix socket for the owner alone, or with group for the group of its directory too, in place of what a crash left, or a TCP port. The
// scheme is what clients are told.
func listen(ctx context.Context, url string, group bool) (l net.Listener, scheme string, err error) {
	network, address := util.SchemeAndAddress(url)
	if network != "unix" {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		return l, "http", err
	}
	if err := os.Remove(address); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, "", fmt.Errorf("removing an old socket: %w", err)
	}
	if l, err = (&net.ListenConfig{}).Listen(ctx, "unix", address); err != nil {
		return nil, "", err
	}
	mode := fs.FileMode(0o600)
	if group {
		mode = 0o660
	}
	if err := os.Chmod(address, mode); err != nil {
		return nil, "", errors.Join(err, l.Close())
	}
	return l, "unix", nil
}
