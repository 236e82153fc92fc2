package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	claiming "k1s.io/k1s/internal/applets/claim"
	ownership "k1s.io/k1s/internal/claim"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/migration"
)

const (
	claimEvery  = 2 * time.Second  // while the database does not answer
	claimAnswer = 10 * time.Second // it may take
)

// claimDatabase makes a database of others this cluster's before anything is written to it, and tells the daemon whose it is.
// It waits for one that is away. With one that is somebody else's it goes no further: it returns when ctx ends.
func claimDatabase(ctx context.Context, o options.CompletedOptions) error {
	file := os.Getenv(components.EnvClaim)
	if file == "" {
		return nil
	}
	ca, err := os.ReadFile(o.Authentication.ClientCert.ClientCA)
	if err != nil {
		return fmt.Errorf("reading the cluster's CA: %w", err)
	}
	// The daemon knows what the cluster had before; it is missing where there was nothing.
	had, err := os.ReadFile(os.Getenv(components.EnvClaimHad))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the CAs the cluster had: %w", err)
	}
	ours, err := ownership.Of(ca, had, os.Getenv(components.EnvClaimNode), time.Now())
	if err != nil {
		return err
	}
	for said := ""; ; {
		report, err := claimOnce(ctx, o, ours)
		if err == nil {
			report.Of = os.Getenv(components.EnvClaimOf)
			raw, err := json.Marshal(report)
			if err != nil {
				return err
			}
			if !report.Ours {
				slog.Error("the database is another cluster's")
			}
			return tell(ctx, file, raw, report.Ours)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if report.Half != "" || report.Left != "" {
			report.Of = os.Getenv(components.EnvClaimOf)
			if err := tellWaiting(file, report); err != nil {
				return err
			}
		}
		if text := err.Error(); text != said {
			said = text
			slog.Warn("the database is not used yet", "err", err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(claimEvery):
		}
	}
}

// tell tells the daemon, once that the database is ours. Else until ctx ends: a daemon that starts again does not believe what
// was told to the one before.
func tell(ctx context.Context, file string, report []byte, ours bool) error {
	for {
		if _, err := os.Stat(file); ours || err != nil {
			if err := durable.WriteFile(file, report, 0o600); err != nil {
				return fmt.Errorf("telling whose the database is: %w", err)
			}
		}
		if ours {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(claimEvery):
		}
	}
}

// tellWaiting tells the daemon why nothing is served. It is asked again and again, so that every daemon is told.
func tellWaiting(file string, report ownership.Report) error {
	raw, err := json.Marshal(report)
	if err != nil {
		return err
	}
	if told, err := os.ReadFile(file); err == nil && bytes.Equal(told, raw) {
		return nil
	}
	if err := durable.WriteFile(file, raw, 0o600); err != nil {
		return fmt.Errorf("telling why nothing is served from the database: %w", err)
	}
	return nil
}

func claimOnce(ctx context.Context, o options.CompletedOptions, ours ownership.Ours) (ownership.Report, error) {
	c, err := newETCD3Client(o.Etcd.StorageConfig.Transport)
	if err != nil {
		return ownership.Report{}, err
	}
	defer c.Close()
	asked, cancel := context.WithTimeoutCause(ctx, claimAnswer, fmt.Errorf("no answer within %s", claimAnswer))
	defer cancel()
	return claimIn(asked, c.KV, o.Etcd.StorageConfig.Prefix, ours)
}

// claimIn claims a database that has all of a cluster in it, or nothing. One with half of a backup is this cluster's too, and must not be
// served: what belongs to objects that are still to come would be deleted. Nor must one that was left for another one: what is written
// there is lost.
func claimIn(ctx context.Context, kv clientv3.KV, root string, ours ownership.Ours) (ownership.Report, error) {
	switch mark, err := kv.Get(ctx, migration.MarkKey(root)); {
	case claiming.Refused(err): // then nobody could write it either
	case err != nil:
		return ownership.Report{}, err
	case len(mark.Kvs) > 0 && migration.HalfRestored(string(mark.Kvs[0].Value)):
		return ownership.Report{Half: migration.MarkKey(root)}, errs.New(errs.Failure, "half of a backup is in the database (its key %s): stop k1s, and run the same k1s backup restore again; or empty the database, /k1s.io included", migration.MarkKey(root))
	}
	switch left, err := kv.Get(ctx, migration.FenceKey(root)); {
	case claiming.Refused(err):
	case err != nil:
		return ownership.Report{}, err
	case len(left.Kvs) > 0:
		var foreign *ownership.Foreign
		if errors.As(claiming.Look(ctx, kv, root, ours), &foreign) { // where its state has gone is nothing to another cluster
			return ownership.Report{Foreign: &foreign.By}, nil
		}
		var f migration.Fence
		if err := json.Unmarshal(left.Kvs[0].Value, &f); err != nil || f.To == "" {
			f.To = "another datastore"
		}
		return ownership.Report{Left: f.To}, errs.New(errs.Failure, "the cluster's state has moved from this database to %s (its key %s), or is on its way there", f.To, migration.FenceKey(root))
	}
	is, err := claiming.Make(ctx, kv, root, ours)
	var foreign *ownership.Foreign
	switch {
	case errors.As(err, &foreign):
		return ownership.Report{Foreign: &foreign.By}, nil
	case claiming.Refused(err):
		slog.Warn("the database does not let us tell whose it is, so nothing keeps another cluster out of it", "key", ownership.Key(root), "err", err)
		return ownership.Report{Ours: true}, nil
	case err != nil:
		return ownership.Report{}, err
	}
	slog.Info("the database is this cluster's", "founder", is.Server, "since", is.Since)
	return ownership.Report{Ours: true}, nil
}
