package kine

import (
	"bytes"
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// lines is a log that may be read while it is written.
type lines struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Kine tells of a request that failed with all that is in it, which may be Secrets.
func TestWhatCannotBeWrittenIsNotInTheLog(t *testing.T) {
	var log lines
	logrus.SetOutput(&log)
	defer logrus.SetOutput(os.Stderr)
	dir := t.TempDir()
	path, socket := filepath.Join(dir, "state.db"), "unix://"+filepath.Join(dir, "kine.sock")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, []string{"--listen=" + socket, "--endpoint=sqlite://" + path + strings.Replace(params, "1000", "10", 1)})
	}()
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
	write := func(key, value string) error {
		_, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, value)).Commit()
		return err
	}
	if err := write("/first", "x"); err != nil {
		t.Fatal(err)
	}
	got, err := c.Get(t.Context(), "/first")
	if err != nil || len(got.Kvs) != 1 {
		t.Fatal(got, err)
	}
	first := got.Kvs[0].ModRevision
	// Somebody else writes, and does not end.
	db, err := sql.Open(driverName, path+params)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if err := write("/registry/secrets/a", `a "quoted\" swordfish > : `+"\n\x00\xff"+`hunter2`); err == nil {
		t.Fatal("it was written beside another transaction")
	}
	if _, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision("/first"), "=", first)).
		Then(clientv3.OpPut("/first", "y")).Else(clientv3.OpGet("/first")).Commit(); err == nil || !strings.Contains(err.Error(), errRefused.Error()) {
		t.Errorf("a change beside another transaction: %v", err)
	}
	said := log.String()
	if !strings.Contains(said, "error in txn") || !strings.Contains(said, "/registry/secrets/a") || !strings.Contains(said, "locked") {
		t.Errorf("the log does not tell what failed: %q", said)
	}
	for _, secret := range []string{"quoted", "swordfish", "hunter2"} {
		if strings.Contains(said, secret) {
			t.Errorf("the log tells %q: %q", secret, said)
		}
	}
}
