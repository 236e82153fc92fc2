//go:build system

package system

import (
	"bytes"
	"context"
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
)

func (m member) encryption(ctx context.Context) (control.Encryption, error) {
	r := m.in(ctx, "k1s", "encryption", "-o", "json")
	var e control.Encryption
	if err := r.error(); err != nil {
		return e, err
	}
	return e, json.Unmarshal([]byte(r.out), &e)
}

// inEtcd tells whether the files of the server's etcd have bytes anywhere.
func (m member) inEtcd(t *testing.T, value string) bool {
	t.Helper()
	found := false
	err := filepath.WalkDir(m.disk("var/lib/k1s/etcd"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		found = found || bytes.Contains(b, []byte(value))
		if errors.Is(err, fs.ErrNotExist) { // a log that was dropped
			err = nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// encrypts turns encryption on by one of several servers while another one is dead and the daemon that leads is killed.
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
