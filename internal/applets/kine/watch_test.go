package kine

import (
	"context"
	"fmt"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// store is a running kine on an empty SQLite file and a client of it.
func store(t *testing.T, args ...string) *clientv3.Client {
	t.Helper()
	dir := t.TempDir()
	socket := "unix://" + filepath.Join(dir, "kine.sock")
	args = append([]string{"--listen=" + socket, "--endpoint=sqlite://" + filepath.Join(dir, "state.db") + params}, args...)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, args) }()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{socket}, DialTimeout: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(t.Context(), "/"); err != nil { // waits until it serves
		t.Error(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return c
}

// put writes as the API server does: it creates, or changes what it has seen.
func put(t *testing.T, c *clientv3.Client, key, value string, seen int64) int64 {
	t.Helper()
	r, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", seen)).Then(clientv3.OpPut(key, value)).Else(clientv3.OpGet(key)).Commit()
	if err != nil || !r.Succeeded {
		t.Fatalf("writing %s: %v, %v", key, r, err)
	}
	return r.Header.Revision
}

func remove(t *testing.T, c *clientv3.Client, key string, seen int64) int64 {
	t.Helper()
	r, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", seen)).Then(clientv3.OpDelete(key)).Else(clientv3.OpGet(key)).Commit()
	if err != nil || !r.Succeeded {
		t.Fatalf("deleting %s: %v, %v", key, r, err)
	}
	return r.Header.Revision
}

// next is the next response, or the end of the test.
func next(t *testing.T, w clientv3.WatchChan) clientv3.WatchResponse {
	t.Helper()
	select {
	case r, ok := <-w:
		if !ok {
			t.Fatal("the watch was closed")
		}
		return r
	case <-time.After(time.Minute):
		t.Fatal("no response within a minute")
	}
	return clientv3.WatchResponse{}
}

// events reads n events in order, told as text.
func events(t *testing.T, w clientv3.WatchChan, n int) []string {
	t.Helper()
	var out []string
	for len(out) < n {
		r := next(t, w)
		if err := r.Err(); err != nil {
			t.Fatal(err)
		}
		for _, e := range r.Events {
			before := ""
			if e.PrevKv != nil {
				before = " was " + string(e.PrevKv.Value)
			}
			switch {
			case e.Type == clientv3.EventTypeDelete: // kine sends a value or none
				out = append(out, fmt.Sprintf("deleted %s%s", e.Kv.Key, before))
			case e.IsCreate():
				out = append(out, fmt.Sprintf("created %s %s%s", e.Kv.Key, e.Kv.Value, before))
			default:
				out = append(out, fmt.Sprintf("changed %s %s%s", e.Kv.Key, e.Kv.Value, before))
			}
		}
	}
	return out
}

func TestAWatchTellsWhatHappensUnderItsPrefixInOrder(t *testing.T) {
	c := store(t)
	old := put(t, c, "/a/1", "old", 0)
	w := c.Watch(t.Context(), "/a/", clientv3.WithPrefix(), clientv3.WithPrevKV())
	from := c.Watch(t.Context(), "/a/", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(old))
	if got := events(t, from, 1); !reflect.DeepEqual(got, []string{"created /a/1 old"}) {
		t.Errorf("from the revision on: %q", got)
	}
	put(t, c, "/b/1", "elsewhere", 0)
	changed := put(t, c, "/a/1", "new", old)
	put(t, c, "/a/2", "two", 0)
	remove(t, c, "/a/1", changed)
	want := []string{"changed /a/1 new was old", "created /a/2 two", "deleted /a/1 was new"}
	for name, w := range map[string]clientv3.WatchChan{"from now on": w, "from the revision on": from} {
		if got := events(t, w, 3); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestNothingIsLostBetweenAListAndItsWatchWhileOthersWrite(t *testing.T) {
	c := store(t)
	const keys = 200
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range keys {
			key := fmt.Sprintf("/n/%03d", i)
			r, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, "x")).Commit()
			if err != nil || !r.Succeeded {
				t.Errorf("writing %s: %v", key, err)
				return
			}
		}
	}()
	for range 5 {
		listed, err := c.Get(t.Context(), "/n/", clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		w := c.Watch(ctx, "/n/", clientv3.WithPrefix(), clientv3.WithRev(listed.Header.Revision+1))
		if got := events(t, w, keys-len(listed.Kvs)); len(got) != keys-len(listed.Kvs) {
			t.Errorf("%d listed and %d told, there are %d", len(listed.Kvs), len(got), keys)
		}
		cancel()
	}
	<-done
}

func TestAWatchFromACompactedRevisionSaysSo(t *testing.T) {
	c := store(t)
	first := put(t, c, "/a", "1", 0)
	last := first
	for i := range 1100 { // the last thousand are kept in any case
		last = put(t, c, "/a", fmt.Sprint(i), last)
	}
	if _, err := c.Compact(t.Context(), last-1); err != nil {
		t.Fatal(err)
	}
	r := next(t, c.Watch(t.Context(), "/a", clientv3.WithRev(first)))
	if r.Err() == nil || r.CompactRevision == 0 {
		t.Errorf("watching from revision %d of %d: %+v, %v", first, last, r, r.Err())
	}
}

func TestWhatCannotBeWatchedIsRefusedAndTheStreamGoesOn(t *testing.T) {
	c := store(t)
	ws, err := etcdserverpb.NewWatchClient(c.ActiveConnection()).Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(r *etcdserverpb.WatchCreateRequest) *etcdserverpb.WatchResponse {
		t.Helper()
		if err := ws.Send(&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{CreateRequest: r}}); err != nil {
			t.Fatal(err)
		}
		response, err := ws.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
	for name, r := range map[string]*etcdserverpb.WatchCreateRequest{
		"a revision below zero":        {Key: []byte("/a"), StartRevision: -1},
		"a number the client has made": {Key: []byte("/a"), WatchId: 7},
	} {
		if a := ask(r); !a.Canceled || !a.Created || a.WatchId != clientv3.InvalidWatchID || a.CancelReason == "" {
			t.Errorf("%s: %+v", name, a)
		}
	}
	if a := ask(&etcdserverpb.WatchCreateRequest{Key: []byte("/a")}); !a.Created || a.Canceled {
		t.Errorf("a proper watch: %+v", a)
	}
}

func TestWatchersLearnHowFarTheyAre(t *testing.T) {
	c := store(t, "--notify-interval=1s")
	unasked := c.Watch(t.Context(), "/quiet/", clientv3.WithPrefix(), clientv3.WithProgressNotify())
	revision := put(t, c, "/elsewhere", "1", 0)
	for {
		if r := next(t, unasked); r.IsProgressNotify() && r.Header.Revision >= revision {
			break
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := c.Watch(ctx, "/other/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if r := next(t, asked); !r.Created {
		t.Fatalf("instead of being created: %+v", r)
	}
	revision = put(t, c, "/elsewhere", "2", revision)
	if err := c.RequestProgress(ctx); err != nil {
		t.Fatal(err)
	}
	for {
		if r := next(t, asked); r.IsProgressNotify() && r.Header.Revision >= revision {
			break
		}
		if err := c.RequestProgress(ctx); err != nil { // what has something to send is not answered
			t.Fatal(err)
		}
	}
}

func TestACancelledWatchIsToldNothingMoreAndOthersGoOn(t *testing.T) {
	c := store(t)
	ctx, cancel := context.WithCancel(t.Context())
	gone := c.Watch(ctx, "/a/", clientv3.WithPrefix())
	stays := c.Watch(t.Context(), "/a/", clientv3.WithPrefix())
	put(t, c, "/a/1", "1", 0)
	events(t, gone, 1)
	cancel()
	for range gone { // closed by the client
	}
	put(t, c, "/a/2", "2", 0)
	if got := events(t, stays, 2); !reflect.DeepEqual(got, []string{"created /a/1 1", "created /a/2 2"}) {
		t.Errorf("%q", got)
	}
}

func TestTheCompactedRevisionOfTheAPIServerIsWatchedUnderItsOwnName(t *testing.T) {
	c := store(t)
	w := c.Watch(t.Context(), compactKey)
	r, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.Version(compactKey), "=", 0)).
		Then(clientv3.OpPut(compactKey, "7")).Else(clientv3.OpGet(compactKey)).Commit()
	if err != nil {
		t.Fatal(err)
	}
	if !r.Succeeded {
		t.Fatalf("%+v", r)
	}
	for _, e := range next(t, w).Events {
		if string(e.Kv.Key) != compactKey {
			t.Errorf("told of %s %q", e.Kv.Key, e.Kv.Value)
		}
	}
}
