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
	page, err := server.New(lists{Backend: b}, "http", time.Minute, "3.4.0").Range(t.Context(), &etcdserverpb.RangeRequest{Key: []byte("/"), RangeEnd: []byte("0"), Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	if page.Header.Revision != 6 || len(page.Kvs) != 1 || !page.More || page.Count != 7 {
		t.Errorf("got %+v; want one of 7 objects at 6", page)
	}
	if at, n, err := (lists{Backend: b}).Count(t.Context(), "/", "0", 0); at != b.revision || n != 7 || err != nil {
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
		at, found, err := lists{Backend: b}.List(t.Context(), "/", "0", 0, c.revision, false)
		if at != c.want || len(found) != len(c.found) || err != nil {
			t.Errorf("%s: got %d objects at %d, %v; want %d at %d", name, len(found), at, err, len(c.found), c.want)
		}
	}
}

// historian answers as of any revision, and for the present one names that after the search, as kine's backend of NATS does.
type historian struct {
	someBackend
	history map[int64][]*server.KeyValue
}

func (h *historian) List(_ context.Context, _, _ string, _, revision int64, _ bool) (int64, []*server.KeyValue, error) {
	if revision != 0 {
		return revision, h.history[revision], nil
	}
	found := h.history[h.revision]
	h.revision++ // somebody writes while the values are fetched
	return h.revision, found, nil
}

func TestAListOfNATSIsThatOfTheRevisionItNames(t *testing.T) {
	h := &historian{someBackend: someBackend{revision: 5}, history: map[int64][]*server.KeyValue{
		5: {{Key: "/a", ModRevision: 3}}, 6: {{Key: "/a", ModRevision: 6}},
	}}
	for asOf, want := range map[bool]int64{true: 5, false: 6} { // kine's own names a revision at which /a is another
		h.revision = 5
		at, found, err := lists{Backend: h, asOf: asOf}.List(t.Context(), "/", "0", 0, 0, false)
		if err != nil || at != want || len(found) != 1 || found[0].ModRevision != 3 {
			t.Errorf("as of a revision %t: %v at %d, %v; want revision %d", asOf, found, at, err, want)
		}
	}
}
