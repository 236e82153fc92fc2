//go:build system

package system

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/backup"
	"k1s.io/k1s/internal/backup/dump"
	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/restore"
)

// A backup of a running cluster is restored in the place of what has become of it since, in another datastore, and on a machine with nothing on it.
func TestABackupBringsTheClusterBack(t *testing.T) {
	t.Parallel()
	c := created(t, "backup")
	c.running(t)
	const passphrase = "four words that nobody guesses"
	with := func(stdin string, args ...string) result {
		t.Helper()
		return c.k1sWith(within(t, limit), stdin, append([]string{"cluster", "exec", c.name, "--", "k1s", "backup"}, args...)...)
	}
	a := c.api(t)
	put := func(name, value string) (uid string, revision int) {
		t.Helper()
		o, _, err := a.do(t.Context(), http.MethodPost, counterPath, configMap(name, value))
		if err != nil {
			t.Fatal(err)
		}
		if revision, err = strconv.Atoi(o.Metadata.ResourceVersion); err != nil {
			t.Fatal(err)
		}
		return o.Metadata.UID, revision
	}
	uid, _ := put("kept", "then")
	token, err := control.NewClient(c.where().ControlSocket).CreateToken(t.Context(), control.TokenRequest{Role: "agent", Description: "of before"})
	if err != nil {
		t.Fatal(err)
	}
	c.put(t, []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: from-manifest, namespace: default}\n"), "/var/lib/k1s/manifests/mine.yaml")

	made := with(passphrase+"\n", "create", "--passphrase-file", "-", "--keep", "1", "-o", "json")
	made.wants(t, 0)
	var b struct {
		File     string          `json:"file"`
		Manifest backup.Manifest `json:"manifest"`
	}
	if err := json.Unmarshal([]byte(made.out), &b); err != nil || b.Manifest.Store.Engine != "sqlite" || b.Manifest.Store.Keys < 50 || !b.Manifest.Has("manifests/mine.yaml") {
		t.Fatalf("%v, %v", err, made)
	}
	on := c.disk(strings.TrimPrefix(b.File, "/"))
	if st, err := os.Stat(on); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if left, err := filepath.Glob(c.disk("var/lib/k1s/backup-making-*")); err != nil || len(left) > 0 {
		t.Errorf("%q is left, %v", left, err)
	}
	with("", "verify", b.File).wants(t, 1, "is encrypted", "--passphrase-file")
	with("four words that somebody guesses\n", "verify", b.File, "--passphrase-file", "-").wants(t, 1, "passphrase is wrong")
	with(passphrase, "verify", b.File, "--passphrase-file", "-").wants(t, 0)
	with(passphrase, "restore", b.File, "--passphrase-file", "-", "--yes").wants(t, 1, "already running", "k1s stop")

	if _, _, err := a.do(t.Context(), http.MethodDelete, counterPath+"/kept", nil); err != nil {
		t.Fatal(err)
	}
	_, seen := put("since", "1")
	kill(t, c.where().PID) // the node's first process would take the cluster for stopped
	c.in(within(t, limit), "k1s", "stop").wants(t, 0, "stopped")

	inTurn(t, "in the place of what is there, in another datastore", func(t *testing.T) {
		plan := with(passphrase, "restore", b.File, "--passphrase-file", "-", "--to", "etcd", "--dry-run")
		plan.wants(t, 0)
		if !strings.Contains(plan.out, "is put aside") || !strings.Contains(plan.out, "to:       etcd") {
			t.Errorf("the plan: %v", plan)
		}
		with(passphrase, "restore", b.File, "--passphrase-file", "-", "--to", "etcd", "--yes").wants(t, 0)
		c.starts(t)
		a = c.api(t)
		if o, _, err := a.do(t.Context(), http.MethodGet, counterPath+"/kept", nil); err != nil || o.Metadata.UID != uid || o.Data["n"] != "then" {
			t.Errorf("what was deleted since: %+v, %v", o, err)
		}
		if _, code, err := a.do(t.Context(), http.MethodGet, counterPath+"/since", nil); code != http.StatusNotFound {
			t.Errorf("what was made since: %d, %v", code, err)
		}
		if _, now := put("later", "1"); now <= seen {
			t.Errorf("time goes back: %d after %d", now, seen)
		}
		var d control.Datastore
		if r := c.in(within(t, limit), "k1s", "datastore", "-o", "json"); json.Unmarshal([]byte(r.out), &d) != nil || d.Engine != "etcd" {
			t.Errorf("the datastore: %v", r)
		}
		if aside, err := filepath.Glob(c.disk("var/lib/k1s/before-restore-*/db/state.db")); err != nil || len(aside) != 1 {
			t.Errorf("put aside: %q, %v", aside, err)
		}
	})
	inTurn(t, "on a machine with nothing on it", func(t *testing.T) {
		m := newBare(t)
		key := filepath.Join(t.TempDir(), "passphrase")
		if err := os.WriteFile(key, []byte(passphrase+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		m.k1s(within(t, limit), "backup", "restore", on, "--passphrase-file", key, "--to", "sqlite", "--alone", "--yes").wants(t, 0) // the first one may be in reach
		m.server(t)
		m.runs(t)
		all, err := control.NewClient(m.dir + "/run/k1s.sock").Tokens(t.Context())
		if err != nil || len(all) != 1 || !strings.Contains(token.Text, all[0].ID) || all[0].Description != "of before" {
			t.Errorf("its tokens: %+v, %v", all, err)
		}
		ours, err := os.ReadFile(m.data() + "/pki/ca.crt")
		theirs, terr := os.ReadFile(c.disk("var/lib/k1s/pki/ca.crt"))
		if err != nil || terr != nil || string(ours) != string(theirs) {
			t.Errorf("it is another cluster: %v, %v", err, terr)
		}
	})
}

// stopped is a machine with what a server of ours leaves when it stops: keys, and a database with so many objects.
func stopped(t *testing.T, objects int) *bare {
	t.Helper()
	m := newBare(t)
	p := paths.Paths{Data: m.data(), Run: m.dir + "/run", Config: m.dir + "/etc"}
	_, err := pki.Ensure(t.Context(), pki.Request{Paths: p, NodeName: "bare", NodeIP: netip.MustParseAddr(bareAddress), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), NoWorker: true})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "dump"))
	if err != nil {
		t.Fatal(err)
	}
	w := dump.NewWriter(f)
	for i := range objects {
		if err := w.Add(dump.Record{Key: fmt.Sprintf("/registry/configmaps/default/%06d", i), Value: bytes.Repeat([]byte{byte(i)}, 500)}); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := w.Close(1000)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	in := component.Input{Config: config.Default(), Paths: p, Facts: component.Facts{NodeName: "bare", NodeIP: netip.MustParseAddr(bareAddress)}}
	target, _, err := components.Private(in, "target")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(p.Moving(""), 0o700), os.MkdirAll(p.DB(), 0o700)); err != nil {
		t.Fatal(err)
	}
	job, err := json.Marshal(migration.Job{Mode: migration.Load, ID: "test", Root: "/registry", Target: target, File: f.Name(), Summary: sum, At: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(within(t, limit), kube(t), "datastore-copy")
	input, err := cmd.StdinPipe() // its end would end the program
	if err != nil {
		t.Fatal(err)
	}
	defer input.Close()
	out := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fprintf(input, "%s\n", job)
	if err = errors.Join(err, cmd.Wait()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return m
}

// contents of the datastore in an archive, and what kind it was.
func contents(t *testing.T, file string) (map[string]string, string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a, err := backup.Open(f, backup.Key{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	out := map[string]string{}
	for {
		p, r, err := a.Next()
		if errors.Is(err, io.EOF) {
			return out, a.Manifest.Store.Engine
		}
		if err != nil {
			t.Fatal(err)
		}
		if p.Name != backup.Datastore {
			continue
		}
		d, err := dump.NewReader(r)
		for err == nil {
			var one dump.Record
			if one, err = d.Next(); err == nil {
				out[one.Key] = string(one.Value)
			}
		}
		if !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
}

// No API server runs in this one: what is restored is looked at by the next backup.
func TestABackupOfAStoppedServerGoesRoundTheDatastores(t *testing.T) {
	t.Parallel()
	const objects = 300
	m := stopped(t, objects)
	// made backs up m, and returns what is in it.
	made := func(name string) (string, map[string]string, string) {
		t.Helper()
		m.k1s(within(t, limit), "backup", "create", "--dir", m.dir+"/backups", "--name", name).wants(t, 0)
		file := m.dir + "/backups/" + name + ".tar.zst"
		all, engine := contents(t, file)
		return file, all, engine
	}
	first, want, engine := made("first")
	if len(want) != objects || engine != "sqlite" {
		t.Fatalf("%d objects in %s", len(want), engine)
	}
	m.k1s(within(t, limit), "backup", "restore", first, "--to", "etcd", "--yes").wants(t, 0)
	second, got, engine := made("second")
	if !maps.Equal(got, want) || engine != "etcd" {
		t.Errorf("%d objects in %s", len(got), engine)
	}
	// Killed while it makes the new state, and while that takes its place.
	runtime.LockOSThread() // as in end
	defer runtime.UnlockOSThread()
	for i, phase := range []restore.Phase{restore.Staging, restore.Switching} {
		cmd := m.command(within(t, limit), "backup", "restore", second, "--to", "sqlite", "--yes")
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(limit - 10*time.Second); ; time.Sleep(100 * time.Microsecond) {
			b, err := os.ReadFile(m.data() + "/restore.json")
			s, uerr := restore.Unmarshal[backup.Origin](b)
			if err == nil && uerr == nil && s.From.Name == "second" && (s.Phase == phase || s.Phase == restore.Done && phase != restore.Staging) {
				break
			}
			if time.Now().After(deadline) {
				_ = cmd.Process.Kill()
				_ = cmd.Wait() // killed
				t.Fatalf("it does not come to %s: %s\n%s", phase, b, said.String())
			}
		}
		_ = cmd.Process.Kill() // it may have been faster
		_ = cmd.Wait()
		_, got, engine := made(fmt.Sprintf("killed-%d", i))
		if !maps.Equal(got, want) || phase == restore.Staging && engine != "etcd" || phase == restore.Switching && engine != "sqlite" {
			t.Errorf("killed while %s: %d objects in %s", phase, len(got), engine)
		}
		if left, err := filepath.Glob(m.data() + "/restoring-*"); err != nil || len(left) > 0 {
			t.Errorf("%q is left, %v", left, err)
		}
	}
	aside, err := filepath.Glob(m.data() + "/before-restore-*")
	if err != nil || len(aside) != 2 {
		t.Errorf("put aside: %q, %v", aside, err)
	}
}
