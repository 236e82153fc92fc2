//go:build system

package system

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"k1s.io/k1s/internal/backup"
	"k1s.io/k1s/internal/control"
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

	t.Run("in the place of what is there, in another datastore", func(t *testing.T) {
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
	t.Run("on a machine with nothing on it", func(t *testing.T) {
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
