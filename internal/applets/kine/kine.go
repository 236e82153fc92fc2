// Package kine is kine as an applet: the etcd API in front of SQLite, PostgreSQL, MySQL or NATS. It adds
// a look at an SQLite database before kine does, because kine tries an unusable one again and again.
package kine

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	_ "github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/util"

	"k1s.io/k1s/internal/errs"
)

// Run serves until ctx ends. Flags:
//
//	--listen URL                     where to serve, e.g. unix:///run/k1s/kine.sock (required)
//	--endpoint DSN                   the database, e.g. sqlite:///var/lib/k1s/db/state.db?_journal_mode=WAL
//	--endpoint-file FILE             has the DSN of a database of others instead, which may hold a password
//	--status-file FILE               for what is the matter with that database, as JSON
//	--ca-file, --cert-file, --key-file  TLS towards the database
//	--emulated-etcd-version VERSION  announced to the API server, default 3.4.0
//	--notify-interval DURATION       between unasked progress notifications per watch, default 1m
//	--max-idle, --max-open N         database connections kept and opened at most, default kine's
//	--group-may-connect              not the owner of the socket alone may connect, but its group too
//	--once                           end when a database of others cannot be opened, instead of trying again
//	--min-revision N                 the next write has a greater one, and older ones count as compacted
func Run(ctx context.Context, args []string) (err error) {
	keepContentsOut()
	panicInsteadOfExit()
	defer caught(&err)
	config, err := parse(args)
	if err != nil {
		return err
	}
	if config.endpointFile != "" {
		if err := config.readEndpoint(); err != nil {
			return err
		}
	}
	scheme, dsn := util.SchemeAndAddress(config.Endpoint)
	if scheme == "sqlite" {
		if err := checkSQLite(ctx, dsn); err != nil {
			return err
		}
	}
	if s, socket := util.SchemeAndAddress(config.listen); s == "unix" {
		if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
			return fmt.Errorf("making the directory of the socket: %w", err)
		}
	}
	return serve(ctx, config)
}

// settings are what the flags say.
type settings struct {
	drivers.Config

	listen, version          string
	notifyInterval           time.Duration
	endpointFile, statusFile string
	once                     bool
	groupMayConnect          bool
	minRevision              int64
	secrets                  []string // of the DSN, not to be seen
	where                    string   // the address in the DSN
}

func parse(args []string) (settings, error) {
	config := settings{Config: drivers.Config{
		// The API server asks for compaction every five minutes; kine's own compactor stays off. The sizes
		// are needed all the same, a batch below 100 is refused.
		CompactInterval:       0,
		CompactIntervalJitter: 0,
		CompactTimeout:        5 * time.Second,
		CompactMinRetain:      1000,
		CompactBatchSize:      1000,
		PollBatchSize:         500,
	}}
	set := flag.NewFlagSet("kine", flag.ContinueOnError)
	set.SetOutput(io.Discard) // errors are returned
	set.StringVar(&config.listen, "listen", "", "`URL` to serve at")
	set.StringVar(&config.Endpoint, "endpoint", "", "`DSN` of the database")
	set.StringVar(&config.endpointFile, "endpoint-file", "", "`file` that holds the DSN of a database of others")
	set.StringVar(&config.statusFile, "status-file", "", "`file` to report about that database in")
	backend := &config.BackendTLSConfig
	set.StringVar(&backend.CAFile, "ca-file", "", "CA of the database server")
	set.StringVar(&backend.CertFile, "cert-file", "", "client certificate for the database server")
	set.StringVar(&backend.KeyFile, "key-file", "", "its key")
	// With 3.5 or newer the API server serves consistent LISTs from its watch cache and waits for progress
	// notifications, which kine 0.16.4 delays by up to a second. With 3.4 it reads from kine, in under a
	// millisecond on small clusters. To be removed when kine notifies in time (its pull request 724).
	set.StringVar(&config.version, "emulated-etcd-version", "3.4.0", "etcd `version` to announce")
	set.DurationVar(&config.notifyInterval, "notify-interval", time.Minute, "`time` between unasked progress notifications")
	set.IntVar(&config.ConnectionPoolConfig.MaxIdle, "max-idle", 0, "idle database connections, 0 for kine's default")
	set.IntVar(&config.ConnectionPoolConfig.MaxOpen, "max-open", 0, "database connections, 0 for no limit")
	set.BoolVar(&config.groupMayConnect, "group-may-connect", false, "let the group of the socket's directory connect too")
	set.BoolVar(&config.once, "once", false, "end when a database of others cannot be opened")
	set.Int64Var(&config.minRevision, "min-revision", 0, "`revision` that is over already")
	if err := set.Parse(args); err != nil {
		return config, errs.As(errs.Usage, err)
	}
	switch {
	case set.NArg() > 0:
		return config, errs.New(errs.Usage, "unexpected argument %q: only flags are allowed", set.Arg(0))
	case config.listen == "" || (config.Endpoint == "") == (config.endpointFile == ""):
		return config, errs.New(errs.Usage, "--listen and one of --endpoint and --endpoint-file are required")
	case config.notifyInterval < time.Second: // kine draws a random share of it and panics on none
		return config, errs.New(errs.Usage, "--notify-interval %s is too short: at least 1s", config.notifyInterval)
	}
	return config, nil
}

// file is the path in an SQLite DSN.
func file(dsn string) string {
	path, _, _ := strings.Cut(strings.TrimPrefix(dsn, "file:"), "?")
	return path
}
