package kine

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"k1s.io/k1s/internal/errs"
)

const params = "?_journal_mode=WAL&_busy_timeout=1000&_synchronous=FULL&_txlock=immediate"

func TestServesUntilAskedToStopAndKeepsWhatWasWritten(t *testing.T) {
	dir := t.TempDir()
	args := []string{"--listen=unix://" + filepath.Join(dir, "run", "kine.sock"), "--endpoint=sqlite://" + filepath.Join(dir, "state.db") + params}
	client := func(t *testing.T) *clientv3.Client {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + filepath.Join(dir, "run", "kine.sock")}, DialTimeout: 30 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	during := func(t *testing.T, f func(*clientv3.Client)) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Run(ctx, args) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		}()
		c := client(t)
		defer c.Close()
		f(c)
	}
	during(t, func(c *clientv3.Client) {
		status, err := c.Status(t.Context(), c.Endpoints()[0])
		if err != nil {
			t.Fatal(err)
		}
		if status.Version != "3.4.0" {
			t.Errorf("it announces etcd %s", status.Version)
		}
		tx, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision("/a"), "=", 0)).Then(clientv3.OpPut("/a", "1")).Commit()
		if err != nil || !tx.Succeeded {
			t.Fatalf("writing: %v, %v", tx, err)
		}
	})
	during(t, func(c *clientv3.Client) {
		r, err := c.Get(t.Context(), "/a")
		if err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != "1" {
			t.Errorf("reading after a restart: %v, %v", r, err)
		}
	})
}

func TestSaysInOneLineWhyADatabaseCannotBeUsed(t *testing.T) {
	dir := t.TempDir()
	full := filepath.Join(dir, "data.db")
	db, err := sql.Open(driverName, full)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("CREATE TABLE t (a TEXT); CREATE INDEX i ON t (a)"); err != nil {
		t.Fatal(err)
	}
	for range 200 {
		if _, err := db.Exec("INSERT INTO t VALUES (hex(randomblob(500)))"); err != nil {
			t.Fatal(err)
		}
	}
	db.Close()
	data, err := os.ReadFile(full)
	if err != nil {
		t.Fatal(err)
	}
	for i := 5 * 4096; i < 10*4096; i++ {
		data[i] = 0xa5
	}
	for _, c := range []struct {
		name, path string
		prepare    func(path string) error
		want       string
	}{
		{"not a database", "junk.db", func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("junk", 1000)), 0o600) }, "is corrupt: file is not a database"},
		{"damaged pages", "half.db", func(p string) error { return os.WriteFile(p, data, 0o600) }, "is corrupt: "},
		{"no directory", "no/such.db", func(string) error { return nil }, "no such file or directory"},
		{"a directory", "dir.db", func(p string) error { return os.Mkdir(p, 0o700) }, "is a directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, c.path)
			if err := c.prepare(path); err != nil {
				t.Fatal(err)
			}
			err := Run(t.Context(), []string{"--listen=unix://" + filepath.Join(dir, "k.sock"), "--endpoint=sqlite://" + path + params})
			if err == nil {
				t.Fatal("it was accepted")
			}
			text := err.Error()
			if !strings.HasPrefix(text, "database file "+path+" ") || !strings.Contains(text, c.want) || strings.Contains(text, "\n") {
				t.Errorf("got %q, want one line about %s with %q", text, path, c.want)
			}
			if hint, _ := errs.HintOf(err); hint == "" {
				t.Error("it does not say what to do")
			}
			if code := errs.KindOf(err).ExitCode(); code != 1 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

func TestAFullDiskIsSaidWithWhatToDo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := sql.Open(driverName, path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1) // it is the connection that has the limit
	if _, err := db.Exec("CREATE TABLE t (a TEXT); PRAGMA max_page_count = 8"); err != nil {
		t.Fatal(err)
	}
	for i := 0; err == nil && i < 100; i++ {
		_, err = db.Exec("INSERT INTO t VALUES (hex(randomblob(1000)))") // SQLite says the same of a disk
	}
	if err == nil {
		t.Fatal("it has not become full")
	}
	got := explain(path, err)
	if text := got.Error(); !strings.HasPrefix(text, "database file "+path+" cannot be written, the disk is full: ") || strings.Contains(text, "\n") {
		t.Errorf("got %q", text)
	}
	if hint, _ := errs.HintOf(got); hint != "make room on the file system that holds "+path {
		t.Errorf("the hint is %q", hint)
	}
}

func TestTheDatabaseIsUsedAsTheDSNSays(t *testing.T) {
	db, err := sql.Open(driverName, filepath.Join(t.TempDir(), "s.db")+params)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var journal, synchronous string
	if err := db.QueryRow("PRAGMA journal_mode").Scan(&journal); err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRow("PRAGMA synchronous").Scan(&synchronous); err != nil {
		t.Fatal(err)
	}
	if journal != "wal" || synchronous != "2" { // 2 is FULL
		t.Errorf("journal mode %s, synchronous %s", journal, synchronous)
	}
}

func TestRefusesWrongArguments(t *testing.T) {
	for _, args := range [][]string{
		{},
		{"--listen=unix:///x"},
		{"--listen=unix:///x", "--endpoint=sqlite:///x", "more"},
		{"--listen=unix:///x", "--endpoint=sqlite:///x", "--notify-interval=1ns"},
		{"--nosuch"},
	} {
		if err := Run(t.Context(), args); !errs.Is(err, errs.Usage) {
			t.Errorf("%q: %v, want a usage error", args, err)
		}
	}
}
