package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/wait"
)

// What docs/how-to/etcd.md says of a member whose disk has changed something.
func TestAMemberWithOtherDataIsFoundAndSnapshotsCanBeTaken(t *testing.T) {
	c := &trio{dir: t.TempDir(), port: freePort(t), subnet: 5, compared: 200 * time.Millisecond}
	c.start(t, []int{0, 1, 2}, nowhere)
	c.put(t, 2, "/a") // so that it is in its database
	all, err := c.client(t, 0).MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bad := uint64(0)
	for _, m := range all.Members {
		if m.Name == trioNames[2] {
			bad = m.ID
		}
	}
	c.stop(t)
	spoil(t, filepath.Join(paths.Paths{Data: filepath.Join(c.dir, "2")}.Etcd(), "member", "snap", "db"))
	c.start(t, []int{0, 1, 2}, nowhere)
	c.put(t, 0, "/b") // each takes writes, and nobody knows
	cl := c.client(t, 0)
	got, err := cl.Get(t.Context(), "/b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Compact(t.Context(), got.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	err = wait.Until(ctx, 50*time.Millisecond, "the alarm", func(ctx context.Context) error {
		told, err := cl.AlarmList(ctx)
		if err == nil && (len(told.Alarms) != 1 || told.Alarms[0].Alarm != etcdserverpb.AlarmType_CORRUPT || told.Alarms[0].MemberID != bad) {
			err = fmt.Errorf("alarms are %v, want one of %x", told.Alarms, bad)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Put(t.Context(), "/c", "v"); !errors.Is(err, rpctypes.ErrCorrupt) {
		t.Errorf("it takes a write: %v", err)
	}
	if got, err := cl.Get(t.Context(), "/b"); err != nil || len(got.Kvs) != 1 {
		t.Errorf("it cannot be read: %v, %v", got, err)
	}
	r, err := cl.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if n, err := io.Copy(io.Discard, r); err != nil || n == 0 {
		t.Errorf("a snapshot of %d bytes, %v", n, err)
	}
}

// spoil changes the last byte of what was written last, which is its value's.
func spoil(t *testing.T, file string) {
	t.Helper()
	db, err := bolt.Open(file, 0o600, &bolt.Options{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bolt.Tx) error {
		keys := tx.Bucket(schema.Key.Name())
		k, v := keys.Cursor().Last()
		if len(v) == 0 {
			return errors.New("nothing was written")
		}
		other := append([]byte{}, v...)
		other[len(other)-1]++
		return keys.Put(append([]byte{}, k...), other)
	})
	if err != nil {
		t.Fatal(err)
	}
}
