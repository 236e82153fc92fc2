package kine

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestAnEmptyDatabaseBeginsAfterARevision(t *testing.T) {
	const passed = 1_000_000
	c := store(t, "--min-revision=1000000")
	w := c.Watch(t.Context(), "/a", clientv3.WithPrefix())
	if got := put(t, c, "/a", "1", 0); got <= passed || got > passed+10 {
		t.Errorf("the first write has revision %d", got)
	}
	events(t, w, 1)
	r := next(t, c.Watch(t.Context(), "/a", clientv3.WithRev(passed-1)))
	if !errors.Is(r.Err(), rpctypes.ErrCompacted) {
		t.Errorf("watching from what was passed over: %v", r.Err())
	}
}

func TestADatabaseWithContentPassesOverRevisions(t *testing.T) {
	socket, file := "--listen=unix://"+filepath.Join(t.TempDir(), "s"), "--endpoint=sqlite://"+filepath.Join(t.TempDir(), "state.db")+params
	run := func(do func(c *clientv3.Client), args ...string) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Run(ctx, append([]string{socket, file}, args...)) }()
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{socket[len("--listen="):]}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Get(t.Context(), "/"); err != nil {
			t.Error(err)
		}
		do(c)
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	var kept int64
	run(func(c *clientv3.Client) { kept = put(t, c, "/kept", "as it was", 0) })
	for range 2 { // the second time it is there already
		run(func(c *clientv3.Client) {
			r, err := c.Get(t.Context(), "/kept")
			if err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != "as it was" || r.Kvs[0].ModRevision != kept {
				t.Errorf("%v, %v", r, err)
			}
			if r.Header.Revision < 5000 || r.Header.Revision > 5001 {
				t.Errorf("the revision is %d", r.Header.Revision)
			}
			if r := next(t, c.Watch(t.Context(), "/kept", clientv3.WithRev(kept))); !errors.Is(r.Err(), rpctypes.ErrCompacted) {
				t.Errorf("a watch from before goes on: %v", r.Err())
			}
		}, "--min-revision=5000")
	}
	run(func(c *clientv3.Client) {
		w := c.Watch(t.Context(), "/", clientv3.WithPrefix())
		if got := put(t, c, "/kept", "changed", kept); got <= 5000 {
			t.Errorf("the next write has revision %d", got)
		}
		events(t, w, 1)
	})
}
