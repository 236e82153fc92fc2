package kine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/testenv"
)

// What a disk that is full means for what is written, for what was, and for the next start.
func TestAFullDiskRefusesWritesUntilThereIsRoom(t *testing.T) {
	testenv.Root(t)
	disk, run := t.TempDir(), t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path, socket := filepath.Join(disk, "state.db"), "unix://"+filepath.Join(run, "kine.sock")
	args := []string{"--listen=" + socket, "--endpoint=sqlite://" + path + params}
	serve := func(f func(*clientv3.Client)) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Run(ctx, args) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		}()
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{socket}, DialTimeout: 30 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		f(c)
	}
	value := strings.Repeat("0123456789abcdef", 1<<12) // 64 KiB
	var acknowledged []string
	var revision int64
	write := func(c *clientv3.Client, i int) error {
		key := fmt.Sprintf("/kept/%d", i)
		tx, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, key+value)).Commit()
		if err == nil && !tx.Succeeded {
			err = errors.New("it was there before")
		}
		if err == nil {
			acknowledged = append(acknowledged, key)
		}
		return err
	}
	kept := func(c *clientv3.Client) {
		t.Helper()
		for _, key := range acknowledged {
			r, err := c.Get(t.Context(), key)
			if err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != key+value {
				t.Fatalf("%s, which was acknowledged: %v", key, err)
			}
		}
	}
	filler := filepath.Join(disk, "filler")
	fill := func() {
		f, err := os.Create(filler)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 1<<16))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	room := func() {
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
	}

	serve(func(c *clientv3.Client) {
		if err := write(c, 0); err != nil {
			t.Fatal(err)
		}
		// The last thousand revisions are never compacted; this makes more.
		for i, last := 0, int64(0); i < 1200; i++ {
			tx, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision("/often"), "=", last)).
				Then(clientv3.OpPut("/often", strings.Repeat("x", 512))).Else(clientv3.OpGet("/often")).Commit()
			if err != nil || !tx.Succeeded {
				t.Fatalf("%d, last %d: %.300v, %v", i, last, tx, err)
			}
			last = tx.Header.Revision
			revision = last
		}
		fill()
		var err error
		for i := 1; err == nil && i < 200; i++ {
			err = write(c, i)
		}
		if err == nil || !strings.Contains(err.Error(), "disk") {
			t.Fatalf("after %d writes: %v", len(acknowledged), err)
		}
		t.Logf("after %d writes: %v", len(acknowledged), err)
		kept(c)
		// A compaction that cannot be committed is fatal to kine, see endRequest. One that has room for all it does may succeed.
		_, err = c.Compact(t.Context(), revision)
		t.Logf("compacting says: %v", err)
		kept(c)
		room()
		if err := write(c, 1000); err != nil {
			t.Errorf("when there is room again: %v", err)
		}
		kept(c)
	})
	serve(func(c *clientv3.Client) {
		kept(c)
		if err := write(c, 2000); err != nil {
			t.Errorf("after the next start: %v", err)
		}
	})
}
