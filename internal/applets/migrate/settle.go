package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	claiming "k1s.io/k1s/internal/applets/claim"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/migration"
)

// tries bounds how often another server may be faster.
const tries = 10

// settle lets several servers agree about a move, and takes the fence of an attempt that was given up out of the source.
func (c *copier) settle(ctx context.Context) error {
	var now migration.Register
	if len(c.Target.Endpoints) > 0 {
		if err := c.open(ctx, &c.target, "new", c.Target, 0); err != nil {
			return err
		}
		var err error
		if now, err = c.target.decide(ctx, c.Root, c.Attempt, c.Want); err != nil {
			return fmt.Errorf("finding out what the servers have agreed about: %w", err)
		}
		if err := c.target.close(); err != nil {
			return err
		}
		c.target = nil
	}
	// Only after it is decided: whoever finds no fence serves.
	if c.Fence != nil && (len(c.Target.Endpoints) == 0 || now.Of(c.Attempt) == migration.Back) {
		if err := c.open(ctx, &c.source, "old", c.Source, 0); err != nil {
			return err
		}
		if err := c.source.unfence(ctx, c.Root, c.Fence.Attempt); err != nil {
			return fmt.Errorf("taking the old datastore into use again: %w", err)
		}
		if err := c.source.close(); err != nil {
			return err
		}
		c.source = nil
	}
	return c.tell(migration.Event{Settled: &now})
}

// decide is what the servers have agreed about, after this one has said what it wants.
func (s *store) decide(ctx context.Context, root, attempt string, want migration.Decision) (migration.Register, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answer, fmt.Errorf("no answer within %s", answer))
	defer cancel()
	key := migration.RegisterKey(root)
	for range tries {
		got, err := s.client.Get(ctx, key)
		if err != nil {
			return migration.Register{}, err
		}
		var now migration.Register
		var seen int64
		for _, kv := range got.Kvs {
			seen = kv.ModRevision
			if err := json.Unmarshal(kv.Value, &now); err != nil {
				return now, errs.New(errs.Invalid, "%s cannot be read: %w", key, err)
			}
		}
		next, write := now.Decide(attempt, want)
		if !write {
			return now, nil
		}
		raw, err := json.Marshal(next)
		if err != nil {
			return now, err
		}
		_, done, err := s.swap(ctx, key, raw, seen, nil)
		if err != nil {
			return now, err
		}
		if done {
			return next, nil
		}
	}
	return migration.Register{}, errors.New("another server is faster all the time")
}

// leave puts the fence into the source, before the last of it is read.
func (c *copier) leave(ctx context.Context) error {
	if c.Fence == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answer, fmt.Errorf("no answer within %s", answer))
	defer cancel()
	f := *c.Fence
	f.Since = time.Now().UTC().Truncate(time.Second)
	// An etcd whose user may write below the root only cannot be fenced, as it cannot be marked.
	if _, err := c.source.writeOver(ctx, migration.FenceKey(c.Root), f.Marshal(), nil); err != nil && !claiming.Refused(err) {
		return fmt.Errorf("keeping other servers out of the old datastore: %w", err)
	}
	return nil
}

// unfence takes a fence out, if it is that of an attempt; "" is any.
func (s *store) unfence(ctx context.Context, root, attempt string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answer, fmt.Errorf("no answer within %s", answer))
	defer cancel()
	key := migration.FenceKey(root)
	got, err := s.client.Get(ctx, key)
	if claiming.Refused(err) {
		return nil
	}
	if err != nil || len(got.Kvs) == 0 {
		return err
	}
	var f migration.Fence
	if err := json.Unmarshal(got.Kvs[0].Value, &f); attempt != "" && (err != nil || f.Attempt != attempt) {
		return nil
	}
	return s.remove(ctx, key, got.Kvs[0].ModRevision)
}
