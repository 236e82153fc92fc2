//go:build system

package system

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/token"
)

func (m member) encryption(ctx context.Context) (control.Encryption, error) {
	r := m.in(ctx, "k1s", "encryption", "-o", "json")
	var e control.Encryption
	if err := r.error(); err != nil {
		return e, err
	}
	return e, json.Unmarshal([]byte(r.out), &e)
}

// found tells which of the values, by what they are, the files below a directory of the node have anywhere, also where nothing refers to them.
func (m member) found(t *testing.T, dir string, values map[string]string) []string {
	t.Helper()
	root, have := m.disk(dir), map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		var b []byte
		if err == nil && d.Type().IsRegular() {
			b, err = os.ReadFile(path)
		}
		if errors.Is(err, fs.ErrNotExist) && path != root { // a log that was dropped
			return nil
		}
		for what, value := range values {
			have[what] = have[what] || bytes.Contains(b, []byte(value))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(slices.Sorted(maps.Keys(have)), func(what string) bool { return !have[what] })
}

// inEtcd tells whether the files of the server's etcd have bytes anywhere.
func (m member) inEtcd(t *testing.T, value string) bool {
	t.Helper()
	return len(m.found(t, "var/lib/k1s/etcd", map[string]string{"it": value})) > 0
}

// clusterKeys are what servers have in common, below their directories of certificates.
var clusterKeys = []string{"ca.key", "sa.key", "front-proxy-ca.key", "etcd/ca.key"}

// nothingInTheClear looks for the cluster's keys, and for the secrets of the tokens with which the others joined the first of the servers, in
// their datastores, old ones too, and their logs, where the records of these tokens are.
func nothingInTheClear(t *testing.T, servers []member) {
	created := servers[1].in(within(t, limit), "k1s", "token", "create", "--role", "server")
	servers[1].must(t, created)
	tokens := map[string]string{"one that nobody has used": created.out}
	for _, s := range servers[1:] {
		raw, err := os.ReadFile(s.disk("etc/token"))
		if err != nil {
			t.Fatal(err)
		}
		tokens["that of "+s.node] = string(raw)
	}
	records, secrets := map[string]string{}, map[string]string{"a key as PEM": "PRIVATE KEY-----"}
	for of, text := range tokens {
		parsed, err := token.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		records[of] = parsed.ID
		secrets["the token's secret, "+of] = parsed.Secret
		secrets["the token's secret as base64, "+of] = base64.StdEncoding.EncodeToString([]byte(parsed.Secret))
	}
	for _, f := range clusterKeys {
		secrets[f] = string(decoded(t, servers[0].disk("var/lib/k1s/pki/"+f)))
	}
	for _, s := range servers {
		eventually(t, limit, "the records of tokens to be in etcd on "+s.node, func(context.Context) error {
			if got := s.found(t, "var/lib/k1s/etcd", records); len(got) != len(records) {
				return fmt.Errorf("of %v there are %v", records, got)
			}
			return nil
		})
		for _, dir := range []string{"etcd", "db", "datastore", "log"} {
			dir = "var/lib/k1s/" + dir
			if _, err := os.Stat(s.disk(dir)); errors.Is(err, fs.ErrNotExist) && !strings.HasSuffix(dir, "log") {
				continue // there never was anything else than etcd
			}
			if got := s.found(t, dir, secrets); len(got) > 0 {
				t.Errorf("%s of %s has %q", dir, s.node, got)
			}
		}
	}
	// It is written behind the answers, where they were asked for.
	eventually(t, limit, "the audit log to tell of a token that was created", func(context.Context) error {
		b, err := os.ReadFile(servers[1].disk("var/lib/k1s/log/audit.log"))
		if err == nil && !bytes.Contains(b, []byte(records["one that nobody has used"])) {
			err = fmt.Errorf("it does not, in %d bytes", len(b))
		}
		return err
	})
	if got := servers[1].found(t, "var/lib/k1s/log", secrets); len(got) > 0 {
		t.Errorf("the logs of %s have %q", servers[1].node, got)
	}
}

// agreed waits until no change is on its way, and all of the servers use the same keys.
func agreed(t *testing.T, servers ...member) []control.EncryptionKey {
	t.Helper()
	var keys []control.EncryptionKey
	for i, m := range servers {
		eventually(t, changeLimit, m.node+" to have the keys of all", func(ctx context.Context) error {
			e, err := m.encryption(ctx)
			if err == nil && (e.Change != nil || len(e.Keys) == 0 || len(e.Servers) != len(servers) || e.Checked == nil ||
				slices.ContainsFunc(e.Servers, func(s control.EncryptionServer) bool { return !s.Loaded }) || i > 0 && !slices.Equal(e.Keys, keys)) {
				err = fmt.Errorf("%+v, the others have %v", e, keys)
			}
			if err == nil && i == 0 {
				keys = e.Keys
			}
			return err
		})
	}
	return keys
}

// changesOnAll runs a change of keys at the first of several servers. Nothing is restarted anywhere, and the Secrets, which hold their values
// under k, can be read at each. It returns the keys of then.
func changesOnAll(t *testing.T, action string, s space, secrets map[string]string, servers ...member) []control.EncryptionKey {
	t.Helper()
	was := map[string]map[string]process{}
	for _, m := range servers {
		was[m.node] = processesOf(m.untilState(t, control.Running))
	}
	r := servers[0].in(within(t, changeLimit), "k1s", "encryption", action)
	t.Logf("k1s encryption %s:\n%s%s", action, r.err, r.out)
	servers[0].must(t, r)
	keys := agreed(t, servers...)
	for _, m := range servers {
		for name, value := range secrets {
			eventually(t, limit, name+" to be read on "+m.node, func(ctx context.Context) error {
				r := m.in(ctx, "k1s", "kubectl", "-n", s.ns, "get", "secret", name, "-o", "go-template={{.data.k | base64decode}}")
				if r.code != 0 || r.out != value {
					return fmt.Errorf("it holds %q: %v", r.out, r)
				}
				return nil
			})
		}
		if now := processesOf(m.untilState(t, control.Running)); !maps.Equal(was[m.node], now) {
			t.Errorf("something was restarted on %s: %v, now %v", m.node, was[m.node], now)
		}
	}
	return keys
}

// decrypts turns encryption off by one of several servers.
func decrypts(t *testing.T, c *Cluster, servers ...member) {
	s := c.namespace(t, "clear")
	secret := func(name, value string) { s.kubectl(t, "create", "secret", "generic", name, "--from-literal=k="+value) }
	secret("before", "not-yet-in-the-clear")
	for _, m := range servers {
		if m.inEtcd(t, "not-yet-in-the-clear") {
			t.Errorf("a Secret made before disabling is in the clear on %s", m.node)
		}
	}
	if keys := changesOnAll(t, "disable", s, map[string]string{"before": "not-yet-in-the-clear"}, servers...); len(keys) != 1 || keys[0].Provider != "identity" {
		t.Errorf("disabled: %+v", keys)
	}
	secret("after", "in-the-clear-again")
	for _, m := range servers {
		eventually(t, limit, "Secrets to be in the clear on "+m.node, func(context.Context) error {
			if got := m.found(t, "var/lib/k1s/etcd", map[string]string{"before": "not-yet-in-the-clear", "after": "in-the-clear-again"}); len(got) != 2 {
				return fmt.Errorf("of two there are %v", got)
			}
			return nil
		})
	}
}

// encrypts turns encryption on by one of several servers while another one is dead and the daemon that leads is killed, and replaces the key
// when all are there.
func encrypts(t *testing.T, c *Cluster, leads, stays, dead member) {
	s := c.namespace(t, "keys")
	secret := func(name, value string) { s.kubectl(t, "create", "secret", "generic", name, "--from-literal=k="+value) }
	secret("before", "plain-before")
	was := map[string]control.Status{leads.node: leads.untilState(t, control.Running), stays.node: stays.untilState(t, control.Running)}
	dead.dies(t)
	ctx, interrupt := context.WithCancel(within(t, changeLimit))
	defer interrupt()
	asked := make(chan result, 1)
	go func() { asked <- leads.in(ctx, "k1s", "encryption", "enable") }()
	eventually(t, changeLimit, "the one that is dead to be waited for", func(ctx context.Context) error {
		e, err := stays.encryption(ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(e.Servers, func(s control.EncryptionServer) bool { return s.Name == dead.node })
		if e.Change == nil || e.Change.Leader != leads.node || !strings.Contains(e.Change.Note, dead.node+" does not answer") || i < 0 || e.Servers[i].Error == "" {
			return fmt.Errorf("on %s: %+v, change %+v", stays.node, e.Servers, e.Change)
		}
		if e.Change.Stage != "adding" {
			t.Errorf("without %s it goes on: %+v", dead.node, e.Change)
		}
		return nil
	})
	kill(t, was[leads.node].PID)
	eventually(t, limit, "another daemon on "+leads.node, func(ctx context.Context) error {
		now, err := leads.status(ctx)
		if err == nil && now.PID == was[leads.node].PID {
			err = errors.New("it is still the old one")
		}
		return err
	})
	interrupt()
	<-asked
	secret("meanwhile", "written-while-it-waits")
	c.k1s(within(t, limit), "cluster", "node", "start", c.name, dead.node, patience).wants(t, 0)
	// The same command at another server finds the change.
	r := stays.in(within(t, changeLimit), "k1s", "encryption", "enable")
	t.Logf("k1s encryption enable:\n%s%s", r.err, r.out)
	if err := r.error(); err != nil {
		t.Fatal(err)
	}
	secret("after", "never-in-the-clear")
	var key string
	for _, m := range []member{leads, stays, dead} {
		eventually(t, changeLimit, m.node+" to have the key", func(ctx context.Context) error {
			e, err := m.encryption(ctx)
			if err == nil && (!e.Enabled || e.Change != nil || len(e.Servers) != 3 || e.Checked == nil ||
				slices.ContainsFunc(e.Servers, func(s control.EncryptionServer) bool { return !s.Loaded })) {
				err = fmt.Errorf("%+v", e)
			}
			if err == nil && key != "" && e.Keys[0].Name != key {
				t.Errorf("%s writes with %s, not with %s", m.node, e.Keys[0].Name, key)
			}
			if err == nil {
				key = e.Keys[0].Name
			}
			return err
		})
		if m.inEtcd(t, "never-in-the-clear") {
			t.Errorf("a Secret made after enabling is in the clear on %s", m.node)
		}
		for name, value := range map[string]string{"before": "plain-before", "meanwhile": "written-while-it-waits", "after": "never-in-the-clear"} {
			if r := m.in(within(t, limit), "k1s", "kubectl", "-n", s.ns, "get", "secret", name, "-o", "go-template={{.data.k | base64decode}}"); r.out != value {
				t.Errorf("%s on %s holds %q: %v", name, m.node, r.out, r)
			}
		}
	}
	for _, m := range []member{leads, stays} {
		if now := m.untilState(t, control.Running); !maps.Equal(pids(was[m.node]), pids(now)) {
			t.Errorf("something was restarted on %s: %v, now %v", m.node, pids(was[m.node]), pids(now))
		}
	}
	keys := changesOnAll(t, "rotate", s, map[string]string{"before": "plain-before", "meanwhile": "written-while-it-waits", "after": "never-in-the-clear"}, stays, leads, dead)
	if len(keys) != 2 || keys[0].Name == key || keys[1].Provider != "identity" {
		t.Errorf("rotated from %s: %+v", key, keys)
	}
	key = keys[0].Name
	// The cluster knows the key's name, and not the key.
	var kept struct {
		State struct {
			Key struct{ Secret string }
		}
	}
	raw, err := os.ReadFile(dead.disk("var/lib/k1s/encryption/keys.json"))
	if err != nil || json.Unmarshal(raw, &kept) != nil || len(kept.State.Key.Secret) < 40 {
		t.Fatalf("no key in the file: %v", err)
	}
	if out := c.kubectl(t, "get", "secrets,configmaps", "-A", "-o", "yaml"); strings.Contains(out, kept.State.Key.Secret) || !strings.Contains(out, key) {
		t.Error("the key is in the cluster, or its name is not")
	}
	for _, m := range []member{leads, stays, dead} {
		if m.inEtcd(t, kept.State.Key.Secret) {
			t.Errorf("the key is in etcd on %s", m.node)
		}
	}
}
