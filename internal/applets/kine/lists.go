package kine

import (
	"context"
	"fmt"

	"github.com/k3s-io/kine/pkg/server"
)

// lists is a backend whose LISTs are true at the revision they name. Kine reads the revision of an empty one after it
// has found nothing, and that of a page when it counts, afterwards, what is left: what is written in between is in
// neither the LIST nor a watch that begins after it.
type lists struct {
	server.Backend
	// asOf is for a backend that can answer as of the present revision, and reads the revision of every LIST after what is in it: kine's
	// of NATS finds the keys in its index, fetches the values one by one, and then tells how far the index is by now.
	asOf bool
}

// List answers as the backend does. An empty one names the revision from before the search: a watch from there on
// tells everything else.
func (l lists) List(ctx context.Context, key, end string, limit, revision int64, keysOnly bool) (int64, []*server.KeyValue, error) {
	if revision != 0 {
		return l.Backend.List(ctx, key, end, limit, revision, keysOnly)
	}
	before, err := l.CurrentRevision(ctx)
	if err != nil {
		return 0, nil, fmt.Errorf("reading the revision: %w", err)
	}
	if l.asOf && before > 0 {
		return l.Backend.List(ctx, key, end, limit, before, keysOnly)
	}
	at, found, err := l.Backend.List(ctx, key, end, limit, revision, keysOnly)
	if err == nil && len(found) == 0 {
		at = min(at, before)
	}
	return at, found, err
}

// Count answers as the backend does. Of a given revision it names that one, not the present: kine takes it for the
// revision of the page before.
func (l lists) Count(ctx context.Context, key, end string, revision int64) (int64, int64, error) {
	at, n, err := l.Backend.Count(ctx, key, end, revision)
	if err == nil && revision != 0 {
		at = min(at, revision)
	}
	return at, n, err
}
