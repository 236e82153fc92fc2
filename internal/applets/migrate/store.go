package migrate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"k1s.io/k1s/internal/applets/etcd"
	"k1s.io/k1s/internal/applets/kine"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/migration"
)

const (
	pageKeys = 200
	parallel = 8                // writes at a time
	answer   = 30 * time.Second // within which a datastore has to answer one question
	opening  = 2 * time.Minute  // within which one of ours has to serve: a large one is read first
)

// store is a datastore and a client of it. A nil store is closed.
type store struct {
	migration.Store
	client *clientv3.Client
	stop   context.CancelFunc
	ended  chan error // of what we run, which has ended when it is told
}

// open runs what has to be run and connects. minRevision is for one that we run.
func open(ctx context.Context, s migration.Store, minRevision int64) (_ *store, err error) {
	o := &store{Store: s}
	if err := o.serve(ctx, minRevision); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = o.close() // for the same reason, most often
		}
	}()
	var conf *tls.Config
	if s.CAFile != "" || s.CertFile != "" {
		info := transport.TLSInfo{TrustedCAFile: s.CAFile, CertFile: s.CertFile, KeyFile: s.KeyFile}
		if conf, err = info.ClientConfig(); err != nil {
			return nil, err
		}
	}
	o.client, err = clientv3.New(clientv3.Config{Endpoints: s.Endpoints, TLS: conf, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 2, MaxDelay: time.Second}}), // ours is just starting
	}})
	if err != nil {
		return nil, err
	}
	return o, o.answers(ctx)
}

// serve starts a kine or an etcd, for us alone.
func (s *store) serve(ctx context.Context, minRevision int64) error {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.ended = make(chan error, 1)
	switch {
	case s.Kine != nil:
		args := append([]string{"--listen=" + s.Endpoints[0], "--once", fmt.Sprintf("--min-revision=%d", minRevision)}, s.Kine...)
		go func() { s.ended <- kine.Run(running, args) }()
	case s.Etcd != "":
		if minRevision > 0 {
			if err := etcd.Advance(s.EtcdDir, minRevision); err != nil {
				stop()
				return err
			}
		}
		go func() { s.ended <- etcd.Run(running, []string{"--config-file=" + s.Etcd}) }()
	default:
		s.ended <- nil
	}
	s.stop = stop
	return nil
}

// answers waits for the first answer, or for the end of what should give it.
func (s *store) answers(ctx context.Context) error {
	limit := opening
	if s.Kine == nil && s.Etcd == "" {
		limit = answer
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
	defer cancel()
	got := make(chan error, 1)
	go func() { // ends with ctx
		for {
			one, cancel := context.WithTimeout(ctx, 5*time.Second)
			_, err := s.client.Get(one, "/")
			cancel()
			if err == nil || ctx.Err() != nil {
				got <- errors.Join(err, context.Cause(ctx))
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	if s.Kine == nil && s.Etcd == "" {
		return <-got
	}
	select {
	case err := <-got:
		return err
	case err := <-s.ended:
		s.ended <- err // for close
		cancel()
		<-got
		if err == nil {
			err = errors.New("it ended")
		}
		return err
	}
}

// close ends the client and what we run, and waits for it.
func (s *store) close() error {
	if s == nil || s.stop == nil {
		return nil
	}
	var err error
	if s.client != nil {
		err = s.client.Close()
	}
	s.stop()
	s.stop = nil
	if e := <-s.ended; e != nil && !errors.Is(e, context.Canceled) {
		err = errors.Join(err, e)
	}
	if s.Kine != nil || s.Etcd != "" { // a socket in the way of the next
		for _, e := range s.Endpoints {
			_ = os.Remove(strings.TrimPrefix(e, "unix://"))
		}
	}
	return err
}

// health is a key that kine writes into each of its datastores for itself.
const health = "/registry/health"

// fillKey is written only for the revisions that takes.
const fillKey = "/k1s.io/revision"

// read goes through all keys below root in pages, in their order, each as it is when its page is read. Without each
// it returns the contents. The revision is one that they had all been written by.
func (s *store) read(ctx context.Context, root string, each func(key string, value []byte, lease, rev int64) error) (migration.Contents, int64, error) {
	contents := migration.Contents{}
	if each == nil {
		each = func(key string, value []byte, lease, rev int64) error {
			contents[key] = migration.NewEntry(value, lease != 0, rev)
			return nil
		}
	}
	var revision int64
	end := clientv3.GetPrefixRangeEnd(root + "/")
	for from := root + "/"; ; {
		asked, cancel := context.WithTimeoutCause(ctx, answer, fmt.Errorf("no answer within %s", answer))
		r, err := s.client.Get(asked, from, clientv3.WithRange(end), clientv3.WithLimit(pageKeys))
		cancel()
		if err != nil {
			return nil, 0, err
		}
		revision = max(revision, r.Header.Revision)
		for _, kv := range r.Kvs {
			if key := string(kv.Key); key != health {
				if err := each(key, kv.Value, kv.Lease, kv.ModRevision); err != nil {
					return nil, 0, err
				}
			}
		}
		if !r.More || len(r.Kvs) == 0 {
			return contents, revision, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

// size counts the keys below root, as the datastore does; what kine adds is not counted.
func (s *store) size(ctx context.Context, root string) (revision, keys int64, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answer, fmt.Errorf("no answer within %s", answer))
	defer cancel()
	r, err := s.client.Get(ctx, root+"/", clientv3.WithRange(clientv3.GetPrefixRangeEnd(root+"/")), clientv3.WithCountOnly())
	if err != nil {
		return 0, 0, err
	}
	keys = r.Count
	if strings.HasPrefix(health, root+"/") {
		h, err := s.client.Get(ctx, health)
		if err != nil {
			return 0, 0, err
		}
		keys -= int64(len(h.Kvs))
	}
	return r.Header.Revision, keys, nil
}

// count is size the other way round.
func (s *store) count(ctx context.Context, root string) (keys, revision int64, err error) {
	revision, keys, err = s.size(ctx, root)
	return keys, revision, err
}

// mark is the id of the migration that the target belongs to, and its revision; "" for none.
func (s *store) mark(ctx context.Context, root string) (string, int64, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answer, fmt.Errorf("no answer within %s", answer))
	defer cancel()
	r, err := s.client.Get(ctx, migration.MarkKey(root))
	if err != nil || len(r.Kvs) == 0 {
		return "", 0, err
	}
	return string(r.Kvs[0].Value), r.Kvs[0].ModRevision, nil
}

// write creates a key, or changes it where its revision is still seen.
func (s *store) write(ctx context.Context, key string, value []byte, seen, lease int64) (int64, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answer, fmt.Errorf("no answer within %s", answer))
	defer cancel()
	var options []clientv3.OpOption
	if lease != 0 {
		options = append(options, clientv3.WithLease(clientv3.LeaseID(lease)))
	}
	rev, done, err := s.swap(ctx, key, value, seen, options)
	if err == nil && !done {
		return s.writeOver(ctx, key, value, options)
	}
	return rev, err
}

// writeOver is write where the target has another revision: a lease ended, or somebody else writes there.
func (s *store) writeOver(ctx context.Context, key string, value []byte, options []clientv3.OpOption) (int64, error) {
	got, err := s.client.Get(ctx, key)
	if err != nil {
		return 0, err
	}
	var seen int64
	for _, kv := range got.Kvs {
		seen = kv.ModRevision
	}
	rev, done, err := s.swap(ctx, key, value, seen, options)
	if err == nil && !done {
		err = errs.New(errs.Failure, "somebody else writes to the new datastore")
	}
	return rev, err
}

// swap creates a key where seen is 0, and else changes it, if its revision is still that; done tells so. These are the forms kine knows.
func (s *store) swap(ctx context.Context, key string, value []byte, seen int64, options []clientv3.OpOption) (revision int64, done bool, err error) {
	txn := s.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", seen)).Then(clientv3.OpPut(key, string(value), options...))
	if seen != 0 {
		txn = txn.Else(clientv3.OpGet(key))
	}
	r, err := txn.Commit()
	if err != nil || !r.Succeeded {
		return 0, false, err
	}
	return r.Header.Revision, true, nil
}

// setMark writes the id where nobody has since seen, which is 0 for none.
func (s *store) setMark(ctx context.Context, root, id string, seen int64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answer, fmt.Errorf("no answer within %s", answer))
	defer cancel()
	_, done, err := s.swap(ctx, migration.MarkKey(root), []byte(id), seen, nil)
	if err == nil && !done {
		err = errs.New(errs.Exists, "somebody else has begun to write to it")
	}
	if err != nil {
		return fmt.Errorf("marking the new datastore: %w", err)
	}
	return nil
}

func (s *store) remove(ctx context.Context, key string, seen int64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answer, fmt.Errorf("no answer within %s", answer))
	defer cancel()
	for range 2 {
		r, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", seen)).Then(clientv3.OpDelete(key)).Else(clientv3.OpGet(key)).Commit()
		if err != nil || r.Succeeded {
			return err
		}
		found := r.Responses[0].GetResponseRange()
		if found == nil || len(found.Kvs) == 0 {
			return nil // its lease ended
		}
		seen = found.Kvs[0].ModRevision
	}
	return errs.New(errs.Failure, "somebody else writes to the new datastore")
}

// writers of revisions at a time: etcd puts what comes together into one write of its log.
const fillers = 64

// compactEvery keeps what is written for the revisions alone from piling up.
const compactEvery = 100_000

// writeUntil writes until a revision is reached: that is all an etcd of others allows.
func (s *store) writeUntil(ctx context.Context, to int64, progress func(int64) error) error {
	var at atomic.Int64
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	n := fillers
	if s.ThroughKine {
		n = 1
	}
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			for at.Load() < to && ctx.Err() == nil {
				rev, err := s.fill(ctx)
				if err != nil {
					stop(err)
					return
				}
				for {
					was := at.Load()
					if rev <= was || at.CompareAndSwap(was, rev) {
						break
					}
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	compacted := int64(0)
	for {
		select {
		case <-done:
			if err := context.Cause(ctx); err != nil {
				return fmt.Errorf("writing until revision %d: %w", to, err)
			}
			if !s.ThroughKine {
				return s.compact(ctx, at.Load()-1)
			}
			return nil
		case <-tick.C:
		}
		now := at.Load()
		if err := progress(now); err != nil {
			stop(err)
		}
		if !s.ThroughKine && now-compacted > compactEvery {
			compacted = now
			if err := s.compact(ctx, now-1); err != nil {
				stop(err)
			}
		}
	}
}

// compact forgets what was before a revision, unless it is forgotten already.
func (s *store) compact(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answer, fmt.Errorf("no answer within %s", answer))
	defer cancel()
	_, err := s.client.Compact(ctx, revision)
	if err != nil && strings.Contains(err.Error(), "has been compacted") {
		return nil
	}
	return err
}

// fill makes one revision.
func (s *store) fill(ctx context.Context) (int64, error) {
	if s.ThroughKine {
		got, err := s.client.Get(ctx, fillKey)
		if err != nil {
			return 0, err
		}
		var seen int64
		for _, kv := range got.Kvs {
			seen = kv.ModRevision
		}
		return s.write(ctx, fillKey, nil, seen, 0)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answer, fmt.Errorf("no answer within %s", answer))
	defer cancel()
	r, err := s.client.Put(ctx, fillKey, "")
	if err != nil {
		return 0, err
	}
	return r.Header.Revision, nil
}

// leases are those of the target by those of the source.
type leases struct {
	mu   sync.Mutex // guards what follows
	made map[int64]*lease
}

type lease struct {
	id    int64
	keys  int
	gone  bool
	until time.Time // it is used for more keys
}

// As upstream shares leases: etcd deletes all keys of one at once, and a key may go this share of its time too early.
const (
	keysOfLease = 1000
	sharedFor   = 20 // a twentieth
)

// left is the time that is left of a lease, in seconds. Kine's leases are the whole time, because it does not tell how much is
// left: it begins anew, as at each start of kine.
func (s *store) left(ctx context.Context, id int64) (int64, error) {
	if s.ThroughKine {
		return id, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answer, fmt.Errorf("no answer within %s", answer))
	defer cancel()
	left, err := s.client.TimeToLive(ctx, clientv3.LeaseID(id))
	if err != nil {
		return 0, fmt.Errorf("asking for the time a lease has left: %w", err)
	}
	return left.TTL, nil
}

// of is the target's lease for a key that has the given one in the source, with the time that is left of it; 0 is none.
// gone tells that no time is left.
func (l *leases) of(ctx context.Context, to *store, id int64, left func(context.Context, int64) (int64, error)) (_ int64, gone bool, err error) {
	if id == 0 {
		return 0, false, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if have := l.made[id]; have != nil && have.keys < keysOfLease && (have.gone || time.Now().Before(have.until)) {
		have.keys++
		return have.id, have.gone, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answer, fmt.Errorf("no answer within %s", answer))
	defer cancel()
	ttl, err := left(ctx, id)
	if err != nil {
		return 0, false, err
	}
	made := &lease{keys: 1, gone: ttl <= 0, until: time.Now().Add(time.Duration(ttl) * time.Second / sharedFor)}
	if !made.gone {
		granted, err := to.client.Grant(ctx, ttl)
		if err != nil {
			return 0, false, fmt.Errorf("making a lease of %ds: %w", ttl, err)
		}
		made.id = int64(granted.ID)
	}
	if l.made == nil {
		l.made = map[int64]*lease{}
	}
	l.made[id] = made
	return made.id, made.gone, nil
}
