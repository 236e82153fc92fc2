//go:build system

package system

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	_ "github.com/mattn/go-sqlite3"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/wait"
)

// changeLimit bounds a change of keys: the API server looks for new ones every few seconds, up to three times.
const changeLimit = limit

// stored is a Secret as the database has it now.
func (c *Cluster) stored(t *testing.T, ns, name string) []byte {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+c.disk("var/lib/k1s/db/state.db")+"?mode=ro&_busy_timeout=10000")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var value []byte
	row := db.QueryRowContext(within(t, limit), "SELECT value FROM kine WHERE name = ? AND deleted = 0 ORDER BY id DESC LIMIT 1", "/registry/secrets/"+ns+"/"+name)
	if err := row.Scan(&value); err != nil {
		t.Fatalf("looking for the Secret %s/%s in the database: %v", ns, name, err)
	}
	return value
}

// writtenWith checks that a Secret stands in the database behind a key's name, or in the clear without one.
func (s space) writtenWith(t *testing.T, name, value string, key control.EncryptionKey) {
	t.Helper()
	got := s.stored(t, s.ns, name)
	prefix := "k8s:enc:" + key.Provider + ":v1:" + key.Name + ":"
	switch {
	case key.Name == "" && !bytes.Contains(got, []byte(value)):
		t.Errorf("%s is not in the clear: %.60q", name, got)
	case key.Name != "" && (!bytes.HasPrefix(got, []byte(prefix)) || bytes.Contains(got, []byte(value))):
		t.Errorf("%s begins with %.60q, want %q and nothing readable", name, got, prefix)
	}
}

// inFiles tells whether the database's files have bytes anywhere, also where nothing refers to them.
func (c *Cluster) inFiles(t *testing.T, value string) bool {
	t.Helper()
	files, err := filepath.Glob(c.disk("var/lib/k1s/db/*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no database: %v", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(value)) {
			return true
		}
	}
	return false
}

// encryption asks the node.
func (c *Cluster) encryption(t *testing.T) control.Encryption {
	t.Helper()
	r := c.in(within(t, limit), "k1s", "encryption", "-o", "json")
	if err := r.error(); err != nil {
		t.Fatal(err)
	}
	var e control.Encryption
	if err := json.Unmarshal([]byte(r.out), &e); err != nil {
		t.Fatalf("%v: %s", err, r.out)
	}
	return e
}

// changes runs a change to its end and returns what is then.
func (c *Cluster) changes(t *testing.T, action string, args ...string) control.Encryption {
	t.Helper()
	r := c.in(within(t, changeLimit), append([]string{"k1s", "encryption", action}, args...)...)
	if err := r.error(); err != nil {
		t.Fatal(err)
	}
	t.Logf("k1s encryption %s:\n%s%s", action, r.err, r.out)
	e := c.encryption(t)
	if e.Change != nil || e.Checked == nil || e.Checked.Objects == 0 || e.Checked.Key != e.Keys[0].Name {
		t.Errorf("after %s: %+v, checked %+v", action, e, e.Checked)
	}
	return e
}

// traffic writes and reads Secrets until it is stopped, and tells what failed.
func (s space) traffic(t *testing.T) (stop func() (int, []string)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex // guards what follows
	n, failed := 0, []string(nil)
	var all sync.WaitGroup
	do := func(args ...string) {
		r := s.try(ctx, args...)
		mu.Lock()
		defer mu.Unlock()
		if n++; r.failure != nil && ctx.Err() == nil {
			failed = append(failed, r.error().Error())
		}
	}
	all.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			name := fmt.Sprintf("traffic-%d", i)
			do("create", "secret", "generic", name, "--from-literal=k=v")
			do("get", "secret", name)
			do("patch", "secret", name, "-p", `{"stringData":{"k":"w"}}`)
			do("get", "secrets")
		}
	})
	return func() (int, []string) {
		cancel()
		all.Wait()
		return n, failed
	}
}

func TestSecretsAreEncryptedWhileTheNodeRuns(t *testing.T) {
	t.Parallel()
	c := created(t, "encrypt")
	s := c.namespace(t, "encrypt")
	secret := func(name, value string) { s.kubectl(t, "create", "secret", "generic", name, "--from-literal=k="+value) }
	readable := func(t *testing.T, name, value string) {
		t.Helper()
		if got := s.kubectl(t, "get", "secret", name, "-o", "go-template={{.data.k | base64decode}}"); got != value {
			t.Errorf("%s holds %q, want %q", name, got, value)
		}
	}
	was := c.running(t)
	untouched := func(t *testing.T) {
		t.Helper()
		if now := c.running(t); !maps.Equal(pids(was), pids(now)) {
			t.Errorf("something was restarted: %v, now %v", pids(was), pids(now))
		}
	}
	secret("before", "plain-before")
	if e := c.encryption(t); e.Enabled || len(e.Keys) != 1 || e.Keys[0].Provider != "identity" {
		t.Errorf("before anybody asks: %+v", e)
	}
	s.writtenWith(t, "before", "plain-before", control.EncryptionKey{})

	var first control.EncryptionKey
	inTurn(t, "enabled, old and new Secrets are written with the key", func(t *testing.T) {
		e := c.changes(t, "enable")
		if first = e.Keys[0]; first.Provider != "secretbox" || !e.Enabled {
			t.Errorf("enabled: %+v", e)
		}
		secret("after", "never-in-the-clear")
		s.writtenWith(t, "before", "plain-before", first)
		s.writtenWith(t, "after", "never-in-the-clear", first)
		if c.inFiles(t, "never-in-the-clear") {
			t.Error("a Secret made after enabling is in the files of the database in the clear")
		}
		c.in(within(t, limit), "k1s", "encryption", "enable").wants(t, 0, "nothing is to be changed")
		readable(t, "before", "plain-before")
		untouched(t)
	})
	inTurn(t, "rotated under traffic with the daemon killed, no request fails", func(t *testing.T) {
		stop := s.traffic(t)
		ctx, interrupt := context.WithCancel(within(t, changeLimit))
		defer interrupt()
		asked := make(chan result, 1)
		go func() { asked <- c.in(ctx, "k1s", "encryption", "rotate") }()
		// The stage lasts seconds: the daemon is asked, without a program to start for it.
		err := wait.Until(within(t, changeLimit), askAgain, "the old key to be read only", func(ctx context.Context) error {
			e, err := control.NewClient(c.where().ControlSocket).Encryption(ctx)
			if err == nil && (e.Change == nil || e.Change.Stage != "switching") {
				err = fmt.Errorf("the change is %+v", e.Change)
			}
			if err == nil || len(asked) == 0 {
				return err
			}
			return wait.Permanent(fmt.Errorf("the rotation was over before: %v", <-asked))
		})
		if err != nil {
			t.Fatal(err)
		}
		before := c.running(t)
		kill(t, before.PID)
		c.otherDaemon(t, before)
		interrupt()
		<-asked
		e := c.changes(t, "rotate")
		if e.Keys[0].Name == first.Name || len(e.Keys) != 2 || e.Keys[1].Provider != "identity" {
			t.Errorf("rotated: %+v", e.Keys)
		}
		n, failed := stop()
		t.Logf("%d requests", n)
		if len(failed) > 0 || n == 0 {
			t.Errorf("%d of %d requests failed: %.2000s", len(failed), n, strings.Join(failed, "\n"))
		}
		s.writtenWith(t, "before", "plain-before", e.Keys[0])
		s.writtenWith(t, "after", "never-in-the-clear", e.Keys[0])
		readable(t, "after", "never-in-the-clear")
		untouched(t)
		raw, err := os.ReadFile(c.disk("var/lib/k1s/encryption/config.json"))
		if err != nil || strings.Contains(string(raw), first.Name) {
			t.Errorf("the old key is still in use, or: %v", err)
		}
	})
	inTurn(t, "keys are told to nobody", func(t *testing.T) {
		var kept struct {
			State struct {
				Key struct{ Secret string }
			}
		}
		raw, err := os.ReadFile(c.disk("var/lib/k1s/encryption/keys.json"))
		if err != nil || json.Unmarshal(raw, &kept) != nil || len(kept.State.Key.Secret) < 40 {
			t.Fatalf("no key in the file: %v", err)
		}
		c.tellsNobody(t, kept.State.Key.Secret)
	})
	inTurn(t, "a damaged key file keeps the node from starting, and works again when it is put back", func(t *testing.T) {
		file := c.disk("var/lib/k1s/encryption/keys.json")
		whole, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, whole[:len(whole)/2], 0o600); err != nil {
			t.Fatal(err)
		}
		eventually(t, limit, "the problem to be shown", func(ctx context.Context) error {
			st, err := c.status(ctx)
			if err == nil && !strings.Contains(fmt.Sprint(st.Problems), "encryption-keys") {
				err = fmt.Errorf("problems: %v", st.Problems)
			}
			return err
		})
		c.stopped(t)
		r := c.k1s(within(t, limit), "cluster", "start", c.name, "--wait", "20s")
		if r.code == 0 {
			t.Errorf("it starts: %v", r)
		}
		t.Logf("%s", r.err)
		if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, whole[:len(whole)/2]) {
			t.Errorf("the file was replaced: %v", err)
		}
		if err := os.WriteFile(file, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		_ = c.k1s(within(t, limit), "cluster", "stop", c.name)
		c.starts(t)
		readable(t, "after", "never-in-the-clear")
	})
	inTurn(t, "disabled, Secrets are in the clear and the key is gone", func(t *testing.T) {
		e := c.changes(t, "disable")
		if e.Enabled || len(e.Keys) != 1 {
			t.Errorf("disabled: %+v", e)
		}
		s.writtenWith(t, "before", "plain-before", control.EncryptionKey{})
		readable(t, "after", "never-in-the-clear")
	})
}

func TestSecretsAreEncryptedFromTheFirstStartAndLostKeysAreTold(t *testing.T) {
	t.Parallel()
	c := created(t, "encrypted", "--set", "spec.secrets.encryption=aescbc")
	s := c.namespace(t, "encrypted")
	s.kubectl(t, "create", "secret", "generic", "x", "--from-literal=k=from-the-first-start")
	e := c.encryption(t)
	if !e.Enabled || e.Change != nil || e.Keys[0].Provider != "aescbc" {
		t.Errorf("encryption: %+v", e)
	}
	s.writtenWith(t, "x", "from-the-first-start", e.Keys[0])
	if c.inFiles(t, "from-the-first-start") {
		t.Error("the Secret is in the files of the database in the clear")
	}
	c.in(within(t, limit), "k1s", "encryption", "disable").wants(t, 2, "spec.secrets.encryption", "hint:  ")

	c.stopped(t)
	dir := c.disk("var/lib/k1s/encryption")
	if err := os.Rename(dir, dir+".lost"); err != nil {
		t.Fatal(err)
	}
	_ = c.k1s(within(t, limit), "cluster", "start", c.name, "--wait", "20s")
	if err := c.find(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, limit, "Secrets that cannot be read to be told", func(ctx context.Context) error {
		st, err := c.status(ctx)
		if err == nil && !strings.Contains(fmt.Sprint(st.Problems), "secrets-unreadable") {
			err = fmt.Errorf("problems: %v", st.Problems)
		}
		return err
	})
	if lost := c.encryption(t); lost.Enabled || lost.Change != nil {
		t.Errorf("it has made new keys: %+v", lost)
	}
	_ = c.k1s(within(t, limit), "cluster", "stop", c.name)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+".lost", dir); err != nil {
		t.Fatal(err)
	}
	c.starts(t)
	if got := s.kubectl(t, "get", "secret", "x", "-o", "go-template={{.data.k | base64decode}}"); got != "from-the-first-start" {
		t.Errorf("it holds %q", got)
	}
}
