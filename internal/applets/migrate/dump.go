package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"k1s.io/k1s/internal/applets/etcd"
	"k1s.io/k1s/internal/applets/kine"
	"k1s.io/k1s/internal/backup/dump"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/migration"
)

// dumpTries is how often a dump is begun: the revision at which it reads may be compacted while it does.
const dumpTries = 5

// errMoved says that the revision is not there any more, or not whole.
var errMoved = errors.New("the datastore forgot the revision while it was read")

// ownKeys are below what k1s itself keeps in a datastore. They say something about the datastore they are in, not about the cluster: whose
// it is, how far a move is, who tends its etcd.
const ownKeys = "/k1s.io/"

// private are keys that no dump has. Early ones had some.
func private(key string) bool { return key == health || strings.HasPrefix(key, ownKeys) }

// dump writes the source to a file.
func (c *copier) dump(ctx context.Context) error {
	s := c.Live
	if len(s.Endpoints) == 0 {
		s = c.Source
	}
	if err := c.open(ctx, &c.source, "present", s, 0); err != nil {
		return err
	}
	var sum dump.Summary
	var err error
	for range dumpTries {
		if sum, err = c.dumpOnce(ctx); !errors.Is(err, errMoved) {
			break
		}
	}
	if err = errors.Join(err, c.source.close()); err != nil {
		return errors.Join(fmt.Errorf("reading the datastore: %w", err), discard(c.File))
	}
	c.source = nil
	return c.tell(migration.Event{Dumped: &sum})
}

func discard(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (c *copier) dumpOnce(ctx context.Context) (sum dump.Summary, err error) {
	f, err := os.OpenFile(c.File, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, revision, err := c.source.count(ctx, c.Root)
	if err != nil {
		return sum, err
	}
	w, told, left := dump.NewWriter(f), time.Now(), map[int64]int64{}
	err = c.source.readAt(ctx, c.Root, revision, func(key string, value []byte, lease int64) (err error) {
		if private(key) {
			return nil
		}
		if lease != 0 {
			if _, known := left[lease]; !known {
				if left[lease], err = c.source.left(ctx, lease); err != nil {
					return err
				}
			}
		}
		if now := time.Now(); now.Sub(told) > time.Second {
			told = now
			if err := c.progress("reading", 0, 0); err != nil {
				return err
			}
		}
		return w.Add(dump.Record{Key: key, Value: value, Lease: uint64(lease), TTL: uint64(max(left[lease], 0))})
	})
	if err != nil {
		return sum, err
	}
	if sum, err = w.Close(revision); err != nil {
		return sum, err
	}
	return sum, f.Sync()
}

// readAt goes through all keys below root as they were at a revision, in their order, and makes sure that none is missing.
func (s *store) readAt(ctx context.Context, root string, revision int64, each func(key string, value []byte, lease int64) error) error {
	ask := func(from string, options ...clientv3.OpOption) (*clientv3.GetResponse, error) {
		asked, cancel := context.WithTimeoutCause(ctx, answer, fmt.Errorf("no answer within %s", answer))
		defer cancel()
		r, err := s.client.Get(asked, from, append(options, clientv3.WithRange(clientv3.GetPrefixRangeEnd(root+"/")), clientv3.WithRev(revision))...)
		if err != nil && strings.Contains(err.Error(), "has been compacted") {
			err = errMoved
		}
		return r, err
	}
	var n int64
	for from := root + "/"; ; {
		r, err := ask(from, clientv3.WithLimit(pageKeys))
		if err != nil {
			return err
		}
		for _, kv := range r.Kvs {
			if err := each(string(kv.Key), kv.Value, kv.Lease); err != nil {
				return err
			}
			n++
		}
		if !r.More || len(r.Kvs) == 0 {
			break
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
	// A database that goes away in the middle of an answer may end kine's list early, without an error; and NATS keeps only
	// the last few values of a key.
	r, err := ask(root+"/", clientv3.WithCountOnly())
	if err == nil && r.Count != n {
		err = fmt.Errorf("%w: it gave %d keys below %s, and says that it has %d", errMoved, n, root, r.Count)
	}
	return err
}

// load writes a dump to the target.
func (c *copier) load(ctx context.Context) error {
	if err := c.open(ctx, &c.target, "new", c.Target, 0); err != nil {
		return err
	}
	if err := c.ours(ctx, false); err != nil {
		return err
	}
	known, _, err := c.target.read(ctx, c.Root, nil)
	if err != nil {
		return fmt.Errorf("reading the new datastore: %w", err)
	}
	mark, markRevision, err := c.target.mark(ctx, c.Root)
	if err != nil {
		return err
	}
	switch {
	case mark == c.ID:
	case migration.HalfRestored(mark):
		return errs.Hint(errs.New(errs.Exists, "half of another backup is in the datastore to restore to (its key %s is %q)", migration.MarkKey(c.Root), mark),
			"restore that one, where it was begun, or empty the datastore, /k1s.io included")
	case len(known) > 0:
		return errs.Hint(errs.New(errs.Exists, "the datastore to restore to is not empty: it has %d keys below %s", len(known), c.Root),
			"name an empty one, or restore to this machine, with --to etcd or --to sqlite; nothing is deleted in a database of others")
	}
	if mark != c.ID { // a load that goes on has done so, and nobody has written since
		// While it is empty: it is far, and with something in them not all datastores get there.
		to, err := c.past()
		if err != nil {
			return err
		}
		if err := c.advance(ctx, to); err != nil {
			return err
		}
	}
	// Before anything else is written: who else thinks that it is his has to see it.
	if err := c.ours(ctx, true); err != nil {
		return err
	}
	if mark != c.ID {
		if err := c.target.setMark(ctx, c.Root, c.ID, markRevision); err != nil {
			return err
		}
	}
	want, err := c.loadAll(ctx, known)
	if err != nil {
		return err
	}
	// What somebody wrote who took the half that was there for a cluster.
	for key, e := range known {
		if _, there := want[key]; !there {
			if err := c.target.remove(ctx, key, e.Revision); err != nil {
				return fmt.Errorf("deleting %s: %w", key, err)
			}
		}
	}
	if err := c.progress("comparing", 0, int64(len(want))); err != nil {
		return err
	}
	got, now, err := c.target.read(ctx, c.Root, nil)
	if err != nil {
		return fmt.Errorf("reading the new datastore: %w", err)
	}
	r, err := migration.Verify(migration.Compare(c.Root, want, got))
	if err != nil {
		return err
	}
	r.SourceRevision, r.TargetRevision = c.Summary.Revision, now
	// It may have been left for another one once.
	if err := c.target.unfence(ctx, c.Root, ""); err != nil {
		return fmt.Errorf("taking the new datastore into use: %w", err)
	}
	// From here on it may be used: nobody may take it for his own half of a load.
	if _, at, merr := c.target.mark(ctx, c.Root); merr != nil {
		return merr
	} else if err := c.target.remove(ctx, migration.MarkKey(c.Root), at); err != nil {
		return fmt.Errorf("taking the mark out of the new datastore: %w", err)
	}
	err = c.target.close()
	if c.target = nil; err != nil {
		return fmt.Errorf("closing the new datastore: %w", err)
	}
	return c.tell(migration.Event{Result: &r})
}

// byWriting is how far an etcd of others is brought forward at most: a revision each write.
const byWriting = 100_000

// past is a revision that nobody has seen a later one of.
func (c *copier) past() (int64, error) {
	var old int64
	for file, revision := range map[string]func(string) (int64, error){c.OldEtcd: etcd.Revision, c.OldSQLite: kine.Revision} {
		if file == "" {
			continue
		}
		last, err := revision(file)
		if err != nil {
			if err := c.tell(migration.Event{Warning: fmt.Sprintf("a datastore that is replaced cannot be read: %v", err)}); err != nil {
				return 0, err
			}
		}
		old = max(old, last)
	}
	to := etcdcare.Target(c.Summary.Revision, old, time.Since(c.At))
	if most := max(c.Summary.Revision, old) + byWriting; c.Target.Kine == nil && c.Target.Etcd == "" && to > most {
		to = most
		return to, c.tell(migration.Event{Warning: fmt.Sprintf("an etcd of others can be brought forward by writing only, so revisions begin behind %d: end whatever watched this cluster after the backup was made, and is not part of it", to)})
	}
	return to, nil
}

// loadAll writes every record, and returns what the target has to have. known is what an earlier attempt has left.
func (c *copier) loadAll(ctx context.Context, known migration.Contents) (_ migration.Contents, err error) {
	f, err := os.Open(c.File)
	if err != nil {
		return nil, err
	}
	defer f.Close() // it is only read
	d, err := dump.NewReader(f)
	if err != nil {
		return nil, err
	}
	want := migration.Contents{}
	work := make(chan dump.Record)
	var writers sync.WaitGroup
	writing, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	for range parallel {
		writers.Go(func() {
			for r := range work {
				if err := c.loadOne(writing, r, known[r.Key].Revision); err != nil {
					stop(fmt.Errorf("writing %s: %w", r.Key, err))
					for range work { // what is on its way
					}
					return
				}
			}
		})
	}
	told := time.Now()
	for {
		r, rerr := d.Next()
		if errors.Is(rerr, io.EOF) {
			break
		}
		if rerr != nil {
			err = rerr
			break
		}
		if strings.HasPrefix(r.Key, ownKeys) {
			continue // of an early dump
		}
		if r.Lease > math.MaxInt64 || r.TTL > math.MaxInt64 || !strings.HasPrefix(r.Key, c.Root+"/") || private(r.Key) {
			err = errs.New(errs.Invalid, "the dump of the datastore has the key %.100q, which no cluster has", r.Key)
			break
		}
		want[r.Key] = migration.NewEntry(r.Value, r.Lease != 0, 0)
		if now := time.Now(); now.Sub(told) > time.Second {
			told = now
			if err = c.progress("writing", int64(len(want)), c.Summary.Keys); err != nil {
				break
			}
		}
		select {
		case work <- r:
			continue
		case <-writing.Done():
		}
		break
	}
	close(work)
	writers.Wait()
	if cause := context.Cause(writing); cause != nil {
		return nil, cause
	}
	if err == nil && d.Summary() != c.Summary {
		err = errs.New(errs.Invalid, "the dump of the datastore is not the one that was checked")
	}
	return want, err
}

func (c *copier) loadOne(ctx context.Context, r dump.Record, seen int64) error {
	lease, gone, err := c.leases.of(ctx, c.target, int64(r.Lease), func(context.Context, int64) (int64, error) { return int64(r.TTL), nil })
	if err != nil || gone {
		return err
	}
	_, err = c.target.write(ctx, r.Key, r.Value, seen, lease)
	return err
}
