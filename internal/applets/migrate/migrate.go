// Package migrate is the program that copies the contents of a datastore into another one, as an applet. Both sides
// speak etcd's protocol, kine's datastores through a kine that runs in here, for nobody else. What is to be done comes
// from the daemon, see package migration.
package migrate

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	claiming "k1s.io/k1s/internal/applets/claim"
	"k1s.io/k1s/internal/claim"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/migration"
)

// Run does one Job of standard input. It takes no arguments.
func Run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		return errs.New(errs.Usage, "datastore-copy takes no arguments: its job comes from standard input")
	}
	return run(ctx, os.Stdin, os.Stdout)
}

var errNoInput = errors.New("k1s ended, or gave up")

func run(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	if !lines.Scan() {
		return errs.New(errs.Usage, "there is no job on standard input")
	}
	var job migration.Job
	if err := json.Unmarshal(lines.Bytes(), &job); err != nil {
		return errs.New(errs.Usage, "reading the job: %w", err)
	}
	finish := make(chan struct{})
	go func() { // ends with its input, which is that of the process
		for told := false; lines.Scan(); {
			if lines.Text() == migration.Finish && !told {
				told = true
				close(finish)
			}
		}
		cancel(errNoInput)
	}()
	c := &copier{Job: job, finish: finish, out: json.NewEncoder(out)}
	defer c.closeAll()
	err := c.run(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil && errors.Is(cause, errNoInput) {
		return cause
	}
	return err
}

type copier struct {
	migration.Job
	finish <-chan struct{}

	mu  sync.Mutex // guards out
	out *json.Encoder

	live, source, target *store
	known                migration.Contents // of the target
	leases               leases
}

func (c *copier) tell(e migration.Event) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Encode(e)
}

func (c *copier) progress(doing string, done, all int64) error {
	return c.tell(migration.Event{Progress: &migration.Progress{Doing: doing, Done: done, All: all}})
}

func (c *copier) closeAll() {
	for _, s := range []*store{c.live, c.source, c.target} {
		_ = s.close()
	}
}

func (c *copier) run(ctx context.Context) error {
	switch c.Mode {
	case migration.Look:
		return c.look(ctx)
	case migration.Copy:
		return c.copy(ctx)
	case migration.Differ:
		return c.differ(ctx)
	case migration.Pass:
		return c.pass(ctx)
	case migration.Settle:
		return c.settle(ctx)
	case migration.Dump:
		return c.dump(ctx)
	case migration.Load:
		return c.load(ctx)
	}
	return errs.New(errs.Usage, "there is no mode %q", c.Mode)
}

func (c *copier) open(ctx context.Context, into **store, what string, s migration.Store, minRevision int64) (err error) {
	if *into, err = open(ctx, s, minRevision); err != nil {
		return fmt.Errorf("opening the %s datastore: %w", what, err)
	}
	return nil
}

func (c *copier) look(ctx context.Context) error {
	if err := c.open(ctx, &c.live, "present", c.Live, 0); err != nil {
		return err
	}
	var seen migration.Seen
	contents, rev, err := c.live.read(ctx, c.Root, nil)
	if err != nil {
		return fmt.Errorf("reading the present datastore: %w", err)
	}
	seen.Keys, seen.Revision = int64(len(contents)), rev
	for key, e := range contents {
		seen.Bytes += int64(len(key) + e.Size)
	}
	if len(c.Target.Endpoints) == 0 { // it is not there yet
		return c.tell(migration.Event{Seen: &seen})
	}
	if err := c.open(ctx, &c.target, "new", c.Target, 0); err != nil {
		return err
	}
	if err := c.ours(ctx, false); err != nil {
		return err
	}
	if seen.TargetKeys, seen.TargetRevision, err = c.target.count(ctx, c.Root); err != nil {
		return fmt.Errorf("looking into the new datastore: %w", err)
	}
	mark, _, err := c.target.mark(ctx, c.Root)
	if err != nil {
		return err
	}
	seen.Resumes = c.ID != "" && mark == c.ID
	return c.tell(migration.Event{Seen: &seen})
}

// ours finds out whose the target is, and takes one that is nobody's.
func (c *copier) ours(ctx context.Context, take bool) error {
	if len(c.CA) == 0 {
		return nil
	}
	is, err := claim.Of(c.CA, c.Had, c.Node, time.Now())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answer, fmt.Errorf("no answer within %s", answer))
	defer cancel()
	if take && !c.Replace {
		_, err = claiming.Make(ctx, c.target.client, c.Root, is)
	} else {
		err = claiming.Look(ctx, c.target.client, c.Root, is)
	}
	var foreign *claim.Foreign
	switch {
	case errors.As(err, &foreign) && foreign.By.Server == "" && c.Replace:
		return nil // what is there is to be overwritten; it says of nobody that it is his
	case errors.As(err, &foreign):
		return errs.Hint(errs.New(errs.Exists, "the new datastore cannot be used: %w", foreign), "name another one, or empty that one with its own tools")
	case claiming.Refused(err):
		return nil
	case err != nil:
		return fmt.Errorf("finding out whose the new datastore is: %w", err)
	}
	return nil
}

// headroom is how far ahead of the source the target begins, so that it is ahead at the end too. At the end it is made
// sure; this saves doing so while the API is away.
const headroom = 10_000

// few changes are left to the time while the API is away.
const (
	few    = 50
	rounds = 5
)

func (c *copier) copy(ctx context.Context) error {
	if err := c.open(ctx, &c.live, "present", c.Live, 0); err != nil {
		return err
	}
	if err := c.open(ctx, &c.target, "new", c.Target, 0); err != nil {
		return err
	}
	// Before it is read: what is another cluster's is not overwritten, whatever the user says.
	err := c.ours(ctx, true)
	if err != nil {
		return err
	}
	if c.known, _, err = c.target.read(ctx, c.Root, nil); err != nil {
		return fmt.Errorf("reading the new datastore: %w", err)
	}
	mark, markRevision, err := c.target.mark(ctx, c.Root)
	if err != nil {
		return err
	}
	if len(c.known) > 0 && mark != c.ID && !c.Replace {
		return errs.Hint(errs.New(errs.Exists, "the new datastore is not empty: it has %d keys below %s", len(c.known), c.Root),
			"name an empty one, or overwrite what is in it with --replace")
	}
	_, revision, err := c.live.count(ctx, c.Root)
	if err != nil {
		return err
	}
	if mark != c.ID {
		if _, err := c.target.write(ctx, migration.MarkKey(c.Root), []byte(c.ID), markRevision, 0); err != nil {
			return fmt.Errorf("marking the new datastore: %w", err)
		}
	}
	// One database can be reached by many names.
	if here, at, err := c.live.mark(ctx, c.Root); err != nil {
		return err
	} else if here == c.ID {
		return errors.Join(errs.New(errs.Invalid, "the new datastore is the present one, reached in another way"), c.live.remove(ctx, migration.MarkKey(c.Root), at))
	}
	if err := c.advance(ctx, revision+headroom); err != nil {
		return err
	}
	if err := c.tell(migration.Event{Marked: true}); err != nil {
		return err
	}
	for range rounds {
		n, err := c.round(ctx, c.live, false)
		if err != nil {
			return err
		}
		if n <= few {
			break
		}
	}
	if err := errors.Join(c.live.close(), c.tell(migration.Event{CaughtUp: true})); err != nil {
		return err
	}
	c.live = nil
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.finish:
	}
	if err := c.open(ctx, &c.source, "old", c.Source, 0); err != nil {
		return err
	}
	if err := c.leave(ctx); err != nil {
		return err
	}
	n, err := c.round(ctx, c.source, true)
	if err != nil {
		return err
	}
	return c.compare(ctx, n)
}

// advance makes the next revision of the target greater than the given one.
func (c *copier) advance(ctx context.Context, to int64) error {
	_, now, err := c.target.count(ctx, c.Root)
	if err != nil || now >= to {
		return err
	}
	if err := c.progress("advancing the new datastore to the revision of the present one", now, to); err != nil {
		return err
	}
	if c.Target.Kine == nil && c.Target.Etcd == "" {
		return c.target.writeUntil(ctx, to, func(at int64) error {
			return c.progress("advancing the new datastore to the revision of the present one, by writing", at, to)
		})
	}
	// One that we run can be told so while it does not.
	if err := c.target.close(); err != nil {
		return err
	}
	return c.open(ctx, &c.target, "new", c.Target, to)
}

// round makes the target have what the source has, and tells how many keys that changed. With final the source stands
// still: what it does not have is deleted in the target, and what was read is counted.
func (c *copier) round(ctx context.Context, from *store, final bool) (int, error) {
	_, all, err := from.size(ctx, c.Root)
	if err != nil {
		return 0, fmt.Errorf("counting the keys of the datastore: %w", err)
	}
	type change struct {
		key   string
		value []byte
		lease int64
	}
	work := make(chan change)
	var changed int
	var writers sync.WaitGroup
	writing, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var mu sync.Mutex // guards known while it is written
	known := func(key string) (migration.Entry, bool) {
		mu.Lock()
		defer mu.Unlock()
		e, ok := c.known[key]
		return e, ok
	}
	for range parallel {
		writers.Go(func() {
			for w := range work {
				was, _ := known(w.key)
				lease, gone, err := c.leases.of(writing, c.target, w.lease, from.left)
				if err == nil && !gone {
					var rev int64
					if rev, err = c.target.write(writing, w.key, w.value, was.Revision, lease); err == nil {
						mu.Lock()
						c.known[w.key] = migration.NewEntry(w.value, w.lease != 0, rev)
						mu.Unlock()
					}
				}
				if err != nil {
					stop(fmt.Errorf("copying %s: %w", w.key, err))
					for range work { // what is on its way
					}
					return
				}
			}
		})
	}
	source := migration.Contents{}
	told := time.Now()
	_, _, err = from.read(writing, c.Root, func(key string, value []byte, lease, rev int64) error {
		e := migration.NewEntry(value, lease != 0, rev)
		source[key] = e
		if time.Since(told) > time.Second {
			told = time.Now()
			if err := c.progress("copying", int64(len(source)), all); err != nil {
				return err
			}
		}
		if was, there := known(key); there && was.Sum == e.Sum && was.Leased == e.Leased {
			return nil
		}
		changed++
		select {
		case work <- change{key, value, lease}:
			return nil
		case <-writing.Done():
			return context.Cause(writing)
		}
	})
	close(work)
	writers.Wait()
	if cause := context.Cause(writing); cause != nil && ctx.Err() == nil {
		return changed, cause
	}
	if err != nil {
		return changed, fmt.Errorf("reading the datastore: %w", err)
	}
	if !final {
		return changed, nil
	}
	// A database that goes away in the middle of an answer may end kine's list early, without an error.
	if _, all, err = from.size(ctx, c.Root); err != nil {
		return changed, fmt.Errorf("counting the keys of the old datastore: %w", err)
	}
	if unleased(source) > all || int64(len(source)) < all {
		return changed, errs.New(errs.Failure, "the old datastore gave %d keys, and says that it has %d", len(source), all)
	}
	for key, e := range c.known {
		if _, there := source[key]; !there {
			if err := c.target.remove(ctx, key, e.Revision); err != nil {
				return changed, fmt.Errorf("deleting %s: %w", key, err)
			}
			delete(c.known, key)
			changed++
		}
	}
	c.known = source // what the target has to have
	return changed, nil
}

// unleased counts what does not go by itself.
func unleased(all migration.Contents) (n int64) {
	for _, e := range all {
		if !e.Leased {
			n++
		}
	}
	return n
}

// compare reads the target again and ends with the result.
func (c *copier) compare(ctx context.Context, late int) error {
	if err := c.progress("comparing", 0, int64(len(c.known))); err != nil {
		return err
	}
	_, last, err := c.source.count(ctx, c.Root)
	if err != nil {
		return err
	}
	contents, now, err := c.target.read(ctx, c.Root, nil)
	if err != nil {
		return fmt.Errorf("reading the new datastore: %w", err)
	}
	r, err := migration.Verify(migration.Compare(c.Root, c.known, contents))
	if err != nil {
		return err
	}
	if now <= last {
		if err := c.target.writeUntil(ctx, last+1, func(int64) error { return nil }); err != nil {
			return err
		}
		now = last + 1
	}
	r.Late, r.SourceRevision, r.TargetRevision = late, last, now
	return c.end(ctx, r)
}

// end closes both sides, so that what they hold is on their disks, before it tells the result. A target that was left once is not left any
// more.
func (c *copier) end(ctx context.Context, r migration.Result) error {
	if err := c.target.unfence(ctx, c.Root, ""); err != nil {
		return fmt.Errorf("taking the new datastore into use: %w", err)
	}
	err := errors.Join(c.source.close(), c.target.close())
	c.source, c.target = nil, nil
	if err != nil {
		return fmt.Errorf("closing the datastores: %w", err)
	}
	return c.tell(migration.Event{Result: &r})
}

// differ compares what is with what the datastore of before was left with.
func (c *copier) differ(ctx context.Context) error {
	if err := c.open(ctx, &c.live, "present", c.Live, 0); err != nil {
		return err
	}
	now, last, err := c.live.read(ctx, c.Root, nil)
	if err != nil {
		return fmt.Errorf("reading the present datastore: %w", err)
	}
	if err := c.open(ctx, &c.target, "old", c.Target, 0); err != nil {
		return err
	}
	before, rev, err := c.target.read(ctx, c.Root, nil)
	if err != nil {
		return fmt.Errorf("reading the old datastore: %w", err)
	}
	r, _ := migration.Verify(migration.Compare(c.Root, now, before)) // that they differ is what is asked
	r.SourceRevision, r.TargetRevision = last, rev
	return c.tell(migration.Event{Result: &r})
}

// pass is differ while nobody uses either, and then goes past the present revision.
func (c *copier) pass(ctx context.Context) error {
	if err := c.open(ctx, &c.source, "present", c.Source, 0); err != nil {
		return err
	}
	if err := c.open(ctx, &c.target, "old", c.Target, 0); err != nil {
		return err
	}
	if err := c.leave(ctx); err != nil {
		return err
	}
	now, last, err := c.source.read(ctx, c.Root, nil)
	if err != nil {
		return fmt.Errorf("reading the present datastore: %w", err)
	}
	before, _, err := c.target.read(ctx, c.Root, nil)
	if err != nil {
		return fmt.Errorf("reading the old datastore: %w", err)
	}
	if err := c.advance(ctx, last+1); err != nil {
		return err
	}
	_, rev, err := c.target.count(ctx, c.Root)
	if err != nil {
		return err
	}
	r, _ := migration.Verify(migration.Compare(c.Root, now, before))
	r.SourceRevision, r.TargetRevision = last, rev
	return c.end(ctx, r)
}
