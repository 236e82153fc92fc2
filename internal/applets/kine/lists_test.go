package kine

import (
	"context"
	"testing"

	"github.com/k3s-io/kine/pkg/server"
)

// busyBackend is written to while it searches: what it finds is what was there, the revision is a later one.
type busyBackend struct {
	someBackend
	found []*server.KeyValue
}

func (b *busyBackend) List(_ context.Context, _, _ string, _, revision int64, _ bool) (int64, []*server.KeyValue, error) {
	b.revision++
	if revision != 0 {
		return revision, nil, nil
	}
	return b.revision, b.found, nil
}

func TestAnEmptyListNamesARevisionBeforeWhatItMissed(t *testing.T) {
	for name, c := range map[string]struct {
		found    []*server.KeyValue
		revision int64
		want     int64
	}{
		"empty":                      {nil, 0, 5},
		"not empty, and kine's own":  {[]*server.KeyValue{{Key: "/a"}}, 0, 6},
		"empty, of a given revision": {nil, 3, 3},
	} {
		b := &busyBackend{someBackend: someBackend{revision: 5}, found: c.found}
		at, found, err := lists{b}.List(t.Context(), "/", "0", 0, c.revision, false)
		if at != c.want || len(found) != len(c.found) || err != nil {
			t.Errorf("%s: got %d objects at %d, %v; want %d at %d", name, len(found), at, err, len(c.found), c.want)
		}
	}
}
