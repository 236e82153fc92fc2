package kine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// compactKey is where the API server keeps the revision it has compacted to. Kine uses that row itself and keeps the
// API server's value in another one, compactRow.
const (
	compactKey = "compact_rev_key"
	compactRow = "compact_rev_key_apiserver"
)

// betweenProgress is how often a stream that asks for progress all the time gets it, as in etcd.
const betweenProgress = 100 * time.Millisecond

// watchServer is the etcd API's Watch service on a kine backend, in place of kine's own. An API server opens
// a stream for each kind of object, and kine's wakes up ten times a second for every one of them to look
// whether progress was asked for: by calculation 580 times a second, for 58 watches. Here one
// timer serves all streams and a request for progress is what starts work on it.
//
// See https://etcd.io/docs/v3.6/learning/api/#watch-api for what is asked of such a service.
type watchServer struct {
	backend server.Backend
	// asks tells that the backend can be asked what there is after a revision, see since.
	asks bool
	log  *slog.Logger
	ids  atomic.Int64 // of watches; unique over all streams

	mu      sync.Mutex // guards streams
	streams map[*stream]struct{}
}

func newWatchServer(backend server.Backend, asks bool, log *slog.Logger) *watchServer {
	return &watchServer{backend: backend, asks: asks, log: log, streams: map[*stream]struct{}{}}
}

// notify tells every watch that wants to know how far it is, until ctx ends.
func (s *watchServer) notify(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		streams := make([]*stream, 0, len(s.streams))
		for st := range s.streams {
			streams = append(streams, st)
		}
		s.mu.Unlock()
		if len(streams) == 0 {
			continue
		}
		revision, err := s.synced(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.log.Error("watchers not told how far they are", "err", err)
			continue
		}
		for _, st := range streams {
			st.tell(ctx, revision)
		}
	}
}

// synced returns the revision of the database once its events are on their way to the watches: kine has read them, and some of its
// goroutines pass them on. Whether a watch has had them, see through.
func (s *watchServer) synced(ctx context.Context) (int64, error) {
	revision, err := s.backend.CurrentRevision(ctx)
	if err != nil {
		return 0, fmt.Errorf("reading the revision: %w", err)
	}
	handed := make(chan struct{})
	go func() { // outlives ctx when the database does not come back: kine has no way to stop it
		s.backend.WaitForSyncTo(revision)
		close(handed)
	}()
	select {
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-handed:
		return revision, nil
	}
}

// compacted says that what happened after a revision is not known any more.
type compacted struct{ now, to int64 }

func (compacted) Error() string { return server.ErrCompacted.Error() }

// since is what has happened in a range after a revision, as it stands in the database, whatever has been handed to whom. The error is
// compacted where that is not all there anymore.
func (s *watchServer) since(ctx context.Context, key, end string, revision int64) ([]*server.Event, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerFor, fmt.Errorf("no answer within %s", answerFor))
	defer cancel()
	looking, stop := context.WithCancel(ctx)
	found := s.backend.Watch(looking, key, end, revision+1) // it has looked when it returns
	stop()                                                  // so nothing follows what it has found but the end
	if found.CompactRevision != 0 {
		return nil, compacted{found.CurrentRevision, found.CompactRevision}
	}
	var all []*server.Event
	for open := true; open; {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case batch, ok := <-found.Events:
			all, open = append(all, batch...), ok
		case err := <-found.Errorc:
			return nil, err
		}
	}
	// One that has failed ends as one does that has found nothing.
	select {
	case err := <-found.Errorc:
		return nil, err
	default:
		return all, context.Cause(ctx)
	}
}

// Watch serves one stream until the client goes away.
func (s *watchServer) Watch(ws etcdserverpb.Watch_WatchServer) error {
	st := &stream{watchServer: s, ws: ws, asked: make(chan struct{}, 1), watches: map[int64]*watch{}}
	s.mu.Lock()
	s.streams[st] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.streams, st)
		s.mu.Unlock()
		st.end()
	}()
	for {
		m, err := ws.Recv()
		switch {
		case err != nil:
			return err
		case m.GetCreateRequest() != nil:
			st.create(ws.Context(), m.GetCreateRequest())
		case m.GetCancelRequest() != nil:
			st.cancel(m.GetCancelRequest().WatchId, 0, 0, nil)
		case m.GetProgressRequest() != nil:
			st.progress(ws.Context())
		}
	}
}

// stream is one call of Watch with its watches.
type stream struct {
	*watchServer
	work sync.WaitGroup // of all goroutines of the stream

	asked     chan struct{} // holds one while progress is wanted
	answering sync.Once     // starts what answers to asked

	mu      sync.Mutex // guards watches
	watches map[int64]*watch

	sending sync.Mutex // guards ws.Send, which must not be called twice at a time, and the revisions
	ws      etcdserverpb.Watch_WatchServer
	sent    int64 // the highest one of an event
	told    int64 // the highest one that all watches were said to have
}

// watch is what a client asked to be told.
type watch struct {
	id         int64
	key, end   string
	from       int64              // first revision wanted
	stop       context.CancelFunc // ends it
	wantsTicks bool               // progress without asking
	// ticks hands over a revision the database has reached. Only a watch that has nothing to send takes it.
	ticks chan int64
	// delivered is the revision of the last event that was sent, complete one up to which there is none besides.
	delivered, complete atomic.Int64
}

// through tells whether the client has all events of w up to a revision. An API server that is told so too early answers with lists as of
// that revision which lack what is on its way to it yet, and whoever goes on from such a list never hears of it. A watch of which that
// cannot be found out any more ends: its client reads everything again.
func (st *stream) through(ctx context.Context, w *watch, revision int64) bool {
	after := max(w.delivered.Load(), w.complete.Load())
	if !st.asks || after >= revision {
		return true
	}
	events, err := st.since(ctx, w.key, w.end, after)
	var gone compacted
	switch {
	case errors.As(err, &gone):
		st.log.Warn("a watch ends: what happened since its client was told last is compacted", "key", w.key, "after", after, "compacted", gone.to)
		st.cancel(w.id, gone.now, gone.to, gone)
		return false
	case err != nil:
		if ctx.Err() == nil {
			st.log.Warn("not known how far a watch is", "key", w.key, "after", after, "err", err)
		}
		return false
	}
	for _, e := range events {
		if r := e.KV.ModRevision; r <= revision && r > w.delivered.Load() {
			return false
		}
	}
	w.complete.Store(revision)
	return true
}

// send tells the client, unless r says how far it is and it has been told of something newer meanwhile: a client
// would go back to there after a broken connection. Nor can r say the newer revision, for what one watch has seen
// may be on its way to another yet.
func (st *stream) send(r *etcdserverpb.WatchResponse) error {
	st.sending.Lock()
	defer st.sending.Unlock()
	revision := r.Header.Revision
	switch {
	case r.Created || r.Canceled:
	case len(r.Events) > 0:
		st.sent = max(st.sent, revision)
	case revision < st.told:
		return nil
	case r.WatchId == clientv3.InvalidWatchID:
		if revision < st.sent {
			return nil
		}
		st.told = revision
	}
	return st.ws.Send(r)
}

func (st *stream) create(ctx context.Context, r *etcdserverpb.WatchCreateRequest) {
	switch {
	case r.WatchId != clientv3.AutoWatchID:
		st.refuse(ctx, server.ErrInvalidWatch)
		return
	case r.StartRevision < 0:
		st.refuse(ctx, server.ErrCompacted)
		return
	}
	ctx, stop := context.WithCancel(ctx)
	w := &watch{
		id: st.ids.Add(1), key: string(r.Key), end: string(r.RangeEnd), from: r.StartRevision,
		stop: stop, wantsTicks: r.ProgressNotify, ticks: make(chan int64),
	}
	if w.key == compactKey {
		w.key = compactRow
	}
	var now int64 // where a client that did not say goes on after a broken connection

	if w.from == 0 { // from now on; what is on its way to the watches yet is older
		var err error
		if now, err = st.backend.CurrentRevision(ctx); err != nil {
			stop()
			st.refuse(ctx, server.ErrGRPCUnhealthy)
			return
		}
		w.from = now + 1
	}
	w.complete.Store(w.from - 1)
	st.mu.Lock()
	st.watches[w.id] = w
	st.mu.Unlock()
	st.work.Go(func() { st.run(ctx, w, now) })
}

// refuse answers also without a revision: a client that hears nothing waits for ever.
func (st *stream) refuse(ctx context.Context, reason error) {
	revision, err := st.backend.CurrentRevision(ctx)
	if err != nil {
		st.log.Warn("watch refused without a revision", "err", err)
	}
	st.said(st.send(&etcdserverpb.WatchResponse{
		Header: header(revision), WatchId: clientv3.InvalidWatchID, Created: true, Canceled: true, CancelReason: reason.Error(),
	}))
}

// run tells w's events until it is cancelled or the backend gives up on it.
func (st *stream) run(ctx context.Context, w *watch, now int64) {
	if err := st.send(&etcdserverpb.WatchResponse{Header: header(now), Created: true, WatchId: w.id}); err != nil {
		st.cancel(w.id, 0, 0, err)
		return
	}
	found := st.backend.Watch(ctx, w.key, w.end, w.from)
	// A watch that has not begun has no events to wait for: some backends never close their channel.
	if found.CompactRevision != 0 {
		st.cancel(w.id, found.CurrentRevision, found.CompactRevision, server.ErrCompacted)
		return
	}
	select {
	case err := <-found.Errorc:
		st.cancel(w.id, 0, 0, err)
		return
	default:
	}
	var reached int64
	for open := true; open; {
		var events []*server.Event
		var revision int64
		select {
		// Until it is closed, for what fills it would be stuck otherwise.
		case batch, ok := <-found.Events:
			for ; ok && len(batch) > 0; batch, ok = more(found.Events) {
				events = w.wanted(events, batch)
			}
			open = ok
			if len(events) > 0 {
				revision = events[len(events)-1].KV.ModRevision
			}
		case tick := <-w.ticks:
			if tick >= reached {
				revision = tick
			}
		}
		if revision == 0 || ctx.Err() != nil { // nothing follows its end
			continue
		}
		reached = revision
		if err := st.send(&etcdserverpb.WatchResponse{Header: header(revision), WatchId: w.id, Events: toEvents(events)}); err != nil {
			st.cancel(w.id, 0, 0, err)
		} else if len(events) > 0 {
			w.delivered.Store(revision)
		}
	}
	var err error
	select {
	case err = <-found.Errorc:
	default: // the client was too slow, or went away
	}
	st.cancel(w.id, 0, 0, err)
}

// wanted appends what of batch is not too old. The batch itself is shared with other watches.
func (w *watch) wanted(to, batch []*server.Event) []*server.Event {
	for _, e := range batch {
		if e.KV.ModRevision >= w.from {
			to = append(to, e)
		}
	}
	return to
}

// more is the next batch, if one is there already; ok is false when there will be none.
func more(from <-chan []*server.Event) (batch []*server.Event, ok bool) {
	select {
	case batch, ok = <-from:
		return batch, ok
	default:
		return nil, true
	}
}

// cancel ends a watch and tells the client, once.
func (st *stream) cancel(id, revision, compacted int64, reason error) {
	st.mu.Lock()
	w := st.watches[id]
	delete(st.watches, id)
	st.mu.Unlock()
	if w == nil {
		return
	}
	w.stop()
	r := &etcdserverpb.WatchResponse{Header: header(revision), WatchId: id, Canceled: true, CompactRevision: compacted}
	if reason != nil {
		r.CancelReason = reason.Error()
	}
	st.said(st.send(r))
}

// said notes that a client was not told.
func (st *stream) said(err error) {
	if err != nil && !clientv3.IsConnCanceled(err) && !errors.Is(err, context.Canceled) {
		st.log.Debug("watcher not told", "err", err)
	}
}

// tell hands the revision to all watches that want it unasked and have had everything up to it.
func (st *stream) tell(ctx context.Context, revision int64) {
	for _, w := range st.all() {
		if st.through(ctx, w, revision) && w.wantsTicks {
			select {
			case w.ticks <- revision:
			default:
			}
		}
	}
}

// all are the stream's watches.
func (st *stream) all() []*watch {
	st.mu.Lock()
	defer st.mu.Unlock()
	return slices.Collect(maps.Values(st.watches))
}

// progress answers a request for progress, soon and once for all requests until then.
func (st *stream) progress(ctx context.Context) {
	st.answering.Do(func() { st.work.Go(func() { st.answer(ctx) }) })
	select {
	case st.asked <- struct{}{}:
	default:
	}
}

// answer tells the stream how far all its watches are, whenever that was asked. When one of them has something
// to send yet there is no answer, as in etcd: the client asks again.
func (st *stream) answer(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-st.asked:
		}
		revision, err := st.synced(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			st.log.Error("no answer to a request for progress", "err", err)
		} else if st.idle() && !slices.ContainsFunc(st.all(), func(w *watch) bool { return !st.through(ctx, w, revision) }) {
			st.said(st.send(&etcdserverpb.WatchResponse{Header: header(revision), WatchId: clientv3.InvalidWatchID}))
		}
		t := time.NewTimer(betweenProgress)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// idle says whether no watch has anything to send.
func (st *stream) idle() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, w := range st.watches {
		select {
		case w.ticks <- 0: // taken only by one that waits
		default:
			return false
		}
	}
	return true
}

// end stops the watches and waits for everything the stream does.
func (st *stream) end() {
	st.mu.Lock()
	for id, w := range st.watches {
		w.stop()
		delete(st.watches, id)
	}
	st.mu.Unlock()
	st.work.Wait()
}

func header(revision int64) *etcdserverpb.ResponseHeader {
	return &etcdserverpb.ResponseHeader{Revision: revision}
}

func toEvents(events []*server.Event) []*mvccpb.Event {
	out := make([]*mvccpb.Event, 0, len(events))
	for _, e := range events {
		event := &mvccpb.Event{Kv: toKV(e.KV)}
		if !e.Create {
			event.PrevKv = toKV(e.PrevKV)
		}
		if e.Delete {
			event.Type = mvccpb.DELETE
		}
		out = append(out, event)
	}
	return out
}

func toKV(kv *server.KeyValue) *mvccpb.KeyValue {
	if kv == nil {
		return nil
	}
	out := &mvccpb.KeyValue{
		Key: []byte(kv.Key), Value: kv.Value, Version: kv.Version, Lease: kv.Lease,
		CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision,
	}
	if kv.Key == compactRow {
		out.Key = []byte(compactKey)
		out.Version, out.Value = server.DecodeVersion(kv.Value)
	}
	return out
}
