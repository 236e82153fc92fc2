package kine

import (
	"context"
	"testing"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
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

func (b *busyBackend) Count(context.Context, string, string, int64) (int64, int64, error) {
	b.revision++
	return b.revision, 7, nil
}

func TestAPageNamesTheRevisionItIsOf(t *testing.T) {
	b := &busyBackend{someBackend: someBackend{revision: 5}, found: []*server.KeyValue{{Key: "/a"}, {Key: "/b"}}}
	page, err := server.New(lists{b}, "http", time.Minute, "3.4.0").Range(t.Context(), &etcdserverpb.RangeRequest{Key: []byte("/"), RangeEnd: []byte("0"), Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	if page.Header.Revision != 6 || len(page.Kvs) != 1 || !page.More || page.Count != 7 {
		t.Errorf("got %+v; want one of 7 objects at 6", page)
	}
	if at, n, err := (lists{b}).Count(t.Context(), "/", "0", 0); at != b.revision || n != 7 || err != nil {
		t.Errorf("counting now: %d at %d, %v; want 7 at %d", n, at, err, b.revision)
	}
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
