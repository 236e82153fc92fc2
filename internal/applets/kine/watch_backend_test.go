package kine

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"reflect"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// someBackend answers as a test says.
type someBackend struct {
	server.Backend

	revision int64
	problem  error // of reading the revision
	watch    func(ctx context.Context, key string) server.WatchResult
	rows     []*server.Event // in the database, whoever has been told of them
}

func (b *someBackend) CurrentRevision(context.Context) (int64, error) { return b.revision, b.problem }
func (*someBackend) WaitForSyncTo(int64)                              {}
func (b *someBackend) Watch(ctx context.Context, key, end string, from int64) server.WatchResult {
	var there []*server.Event
	for _, e := range b.rows {
		if e.KV.ModRevision >= from && e.InRange(key, end) {
			there = append(there, e)
		}
	}
	if len(there) == 0 {
		return b.watch(ctx, key)
	}
	out := make(chan []*server.Event, 1)
	out <- there
	go func() {
		<-ctx.Done()
		close(out)
	}()
	return server.WatchResult{Events: out}
}

// until is what backends do with a watch: it ends with ctx.
func until(ctx context.Context, in <-chan []*server.Event) server.WatchResult {
	out := make(chan []*server.Event)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case batch := <-in:
				out <- batch
			}
		}
	}()
	return server.WatchResult{Events: out}
}

func changed(key string, revision int64) []*server.Event {
	return []*server.Event{{Create: true, KV: &server.KeyValue{Key: key, ModRevision: revision, CreateRevision: revision}}}
}

// conversation is a stream with its client's side.
type conversation struct {
	etcdserverpb.Watch_WatchServer

	t    *testing.T
	ctx  context.Context
	asks chan *etcdserverpb.WatchRequest
	told []*etcdserverpb.WatchResponse // look after synctest.Wait
}

func (c *conversation) Context() context.Context { return c.ctx }

func (c *conversation) Send(r *etcdserverpb.WatchResponse) error {
	c.told = append(c.told, r)
	return c.ctx.Err()
}

func (c *conversation) Recv() (*etcdserverpb.WatchRequest, error) {
	select {
	case <-c.ctx.Done():
		return nil, io.EOF
	case r := <-c.asks:
		return r, nil
	}
}

func (c *conversation) watch(r *etcdserverpb.WatchCreateRequest) {
	c.asks <- &etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{CreateRequest: r}}
	synctest.Wait()
}

func (c *conversation) cancel(id int64) {
	c.asks <- &etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CancelRequest{
		CancelRequest: &etcdserverpb.WatchCancelRequest{WatchId: id}}}
	synctest.Wait()
}

func (c *conversation) progress() {
	c.asks <- &etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_ProgressRequest{
		ProgressRequest: &etcdserverpb.WatchProgressRequest{}}}
	synctest.Wait()
}

// said is what the client has been told since it was asked the last time, without who was created.
func (c *conversation) said() []string {
	synctest.Wait()
	var out []string
	for _, r := range c.told {
		switch {
		case r.Canceled:
			out = append(out, number(r.WatchId)+" cancelled: "+r.CancelReason)
		case r.Created:
		case len(r.Events) > 0:
			out = append(out, number(r.WatchId)+" "+string(r.Events[0].Kv.Key))
		default:
			out = append(out, number(r.WatchId)+" has all to "+number(r.Header.Revision))
		}
	}
	c.told = nil
	return out
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

func (c *conversation) expect(want ...string) {
	c.t.Helper()
	if got := c.said(); !reflect.DeepEqual(got, want) {
		c.t.Errorf("the client was told %q, want %q", got, want)
	}
}

// converse lets f talk to a stream on backend, and fails when the stream does not end with its client.
func converse(t *testing.T, backend server.Backend, f func(*watchServer, *conversation)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newWatchServer(backend, true, slog.New(slog.DiscardHandler))
		ctx, leave := context.WithCancel(t.Context())
		c := &conversation{t: t, ctx: ctx, asks: make(chan *etcdserverpb.WatchRequest)}
		done := make(chan error, 1)
		go func() { done <- s.Watch(c) }()
		f(s, c)
		leave()
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatal("the stream goes on without its client")
		}
	})
}

func TestAWatchIsNotSaidToHaveWhatOnlyAnotherHasSeen(t *testing.T) {
	events := map[string]chan []*server.Event{}
	backend := &someBackend{revision: 5}
	backend.watch = func(ctx context.Context, key string) server.WatchResult { return until(ctx, events[key]) }
	converse(t, backend, func(s *watchServer, c *conversation) {
		events["/a"], events["/b"] = make(chan []*server.Event), make(chan []*server.Event)
		c.watch(&etcdserverpb.WatchCreateRequest{Key: []byte("/a"), ProgressNotify: true})
		c.watch(&etcdserverpb.WatchCreateRequest{Key: []byte("/b")})
		events["/b"] <- changed("/b", 9) // 6 to 8 may be on their way to /a
		c.expect("2 /b")
		for st := range s.streams {
			st.tell(t.Context(), 5)
		}
		c.expect("1 has all to 5")
		c.progress() // the answer of 5 comes after 9 was told
		c.expect()
		events["/a"] <- changed("/a", 7)
		c.expect("1 /a")
		backend.revision = 9
		time.Sleep(betweenProgress)
		c.progress()
		c.expect("-1 has all to 9")
		for st := range s.streams {
			st.tell(t.Context(), 8)
		}
		c.expect()
	})
}

// Between kine's reading of the database and a watch there are goroutines of kine's, which a busy machine lets wait.
func TestAWatchIsNotSaidToHaveWhatIsOnItsWayToIt(t *testing.T) {
	var live chan []*server.Event
	b := &someBackend{revision: 5, watch: func(ctx context.Context, _ string) server.WatchResult { return until(ctx, live) }}
	converse(t, b, func(s *watchServer, c *conversation) {
		live = make(chan []*server.Event)
		go s.notify(c.ctx, time.Minute)
		c.watch(&etcdserverpb.WatchCreateRequest{Key: []byte("/a/"), RangeEnd: []byte("/a0"), StartRevision: 5, ProgressNotify: true})
		c.progress()
		c.expect("-1 has all to 5")
		b.rows, b.revision = changed("/a/1", 7), 8
		for range 3 {
			time.Sleep(2 * betweenProgress)
			c.progress()
		}
		time.Sleep(2 * time.Minute)
		c.expect()
		live <- b.rows
		c.expect("1 /a/1")
		c.progress()
		c.expect("-1 has all to 8")
		b.rows, b.revision = changed("/b/1", 9), 9 // of nobody's concern
		time.Sleep(time.Minute)
		c.expect("1 has all to 9")
	})
}

// A look that fails finds nothing, and ends its channel as one that has found nothing does.
func TestAWatchIsNotSaidToHaveWhatCouldNotBeLookedFor(t *testing.T) {
	looks := 0
	b := &someBackend{revision: 5, watch: func(ctx context.Context, _ string) server.WatchResult {
		if looks++; looks == 1 {
			return until(ctx, nil)
		}
		failed, none := make(chan error, 1), make(chan []*server.Event)
		failed <- server.ErrGRPCUnhealthy
		close(none)
		return server.WatchResult{Events: none, Errorc: failed}
	}}
	converse(t, b, func(_ *watchServer, c *conversation) {
		c.watch(&etcdserverpb.WatchCreateRequest{Key: []byte("/a/"), RangeEnd: []byte("/a0"), StartRevision: 5})
		for range 50 { // which of two channels that are ready is read is by chance
			c.progress()
			time.Sleep(2 * betweenProgress)
		}
		if c.expect(); looks < 50 {
			t.Errorf("it was looked %d times: then this test is wrong", looks)
		}
	})
}

// Kine's watches do not end where it could not begin to read for them.
func TestALookThatDoesNotEndKeepsNobodyFromBeingTold(t *testing.T) {
	looks := 0
	b := &someBackend{revision: 5, watch: func(ctx context.Context, key string) server.WatchResult {
		if looks++; looks == 2 {
			return server.WatchResult{Events: make(chan []*server.Event)}
		}
		return until(ctx, nil)
	}}
	converse(t, b, func(s *watchServer, c *conversation) {
		c.watch(&etcdserverpb.WatchCreateRequest{Key: []byte("/a/"), RangeEnd: []byte("/a0"), StartRevision: 5, ProgressNotify: true})
		go s.notify(c.ctx, time.Minute)
		time.Sleep(time.Minute + 2*answerFor)
		c.expect()
		time.Sleep(time.Minute)
		c.expect("1 has all to 5")
	})
}

// What was between where the client is and what there still is may have been for it: it has to read everything again, and would be told
// nothing any more otherwise.
func TestAWatchOfWhichItCannotBeKnownAnyMoreEnds(t *testing.T) {
	looks := 0
	b := &someBackend{revision: 2005, watch: func(ctx context.Context, _ string) server.WatchResult {
		if looks++; looks == 1 {
			return until(ctx, nil)
		}
		return server.WatchResult{Events: make(chan []*server.Event), CurrentRevision: 2005, CompactRevision: 1005}
	}}
	converse(t, b, func(_ *watchServer, c *conversation) {
		c.watch(&etcdserverpb.WatchCreateRequest{Key: []byte("/a/"), RangeEnd: []byte("/a0"), StartRevision: 5})
		c.progress()
		if len(c.told) == 0 || c.told[len(c.told)-1].CompactRevision != 1005 {
			t.Errorf("the client was told %v", c.told)
		}
		c.expect("1 cancelled: " + server.ErrCompacted.Error())
		time.Sleep(2 * betweenProgress)
		c.progress()
		c.expect("-1 has all to 2005") // of no watch
	})
}

// The NATS backend leaves the channel of such a watch open.
func TestACompactedWatchEndsAlsoWhenItsBackendForgetsIt(t *testing.T) {
	backend := &someBackend{watch: func(context.Context, string) server.WatchResult {
		return server.WatchResult{Events: make(chan []*server.Event), CurrentRevision: 9, CompactRevision: 5}
	}}
	converse(t, backend, func(_ *watchServer, c *conversation) {
		c.watch(&etcdserverpb.WatchCreateRequest{Key: []byte("/a"), StartRevision: 3})
		c.expect("1 cancelled: " + server.ErrCompacted.Error())
	})
}

// kine's SQL backends do so when the database fails at the very first watch.
func TestAWatchThatFailsAtOnceIsCancelledAlsoWhenItsBackendForgetsIt(t *testing.T) {
	backend := &someBackend{watch: func(context.Context, string) server.WatchResult {
		failed := make(chan error, 1)
		failed <- server.ErrGRPCUnhealthy
		return server.WatchResult{Events: make(chan []*server.Event), Errorc: failed}
	}}
	converse(t, backend, func(_ *watchServer, c *conversation) {
		c.watch(&etcdserverpb.WatchCreateRequest{Key: []byte("/a"), StartRevision: 3})
		c.expect("1 cancelled: " + server.ErrGRPCUnhealthy.Error())
	})
}

func TestAWatchIsRefusedAlsoWhenTheRevisionIsUnknown(t *testing.T) {
	backend := &someBackend{problem: errors.New("no connection")}
	converse(t, backend, func(_ *watchServer, c *conversation) {
		c.watch(&etcdserverpb.WatchCreateRequest{Key: []byte("/a")})
		c.expect("-1 cancelled: " + server.ErrGRPCUnhealthy.Error())
	})
}

func TestAWatchFromNowOnLearnsWhenThatIs(t *testing.T) {
	backend := &someBackend{revision: 5, watch: func(ctx context.Context, _ string) server.WatchResult { return until(ctx, nil) }}
	converse(t, backend, func(_ *watchServer, c *conversation) {
		c.watch(&etcdserverpb.WatchCreateRequest{Key: []byte("/a")})
		if len(c.told) != 1 || !c.told[0].Created || c.told[0].Header.Revision != 5 {
			t.Errorf("the client was told %v, want that the watch was created at 5, where it goes on after a broken connection", c.told)
		}
	})
}

func TestNothingFollowsTheEndOfAWatch(t *testing.T) {
	var ended context.Context
	var more chan []*server.Event
	backend := &someBackend{watch: func(ctx context.Context, _ string) server.WatchResult {
		ended = ctx
		return server.WatchResult{Events: more}
	}}
	converse(t, backend, func(_ *watchServer, c *conversation) {
		more = make(chan []*server.Event)
		c.watch(&etcdserverpb.WatchCreateRequest{Key: []byte("/a"), StartRevision: 3})
		c.cancel(1)
		c.expect("1 cancelled: ")
		if ended.Err() == nil {
			t.Error("the backend does not know of the end")
		}
		more <- changed("/a", 4) // was on its way
		close(more)
		c.expect()
	})
}
