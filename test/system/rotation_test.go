//go:build system

package system

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/rotation"
)

// rotation is how far the replacement of the cluster's CA is.
func (c *Cluster) rotation(ctx context.Context) (control.Rotation, error) {
	var r control.Rotation
	out := c.in(ctx, "k1s", "certs", "rotate-ca", "--status", "-o", "json")
	if err := out.error(); err != nil {
		return r, err
	}
	return r, json.Unmarshal([]byte(out.out), &r)
}

// trusts are the pins of the CAs a node trusts, the one that signs first.
func (m member) trusts(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(m.disk("var/lib/k1s/pki/ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	return pki.PinsOf(b)
}

// settled lets the time be over that running programs have to learn of the new CA: a daemon that starts next finds that it
// signs since then.
func (m member) settled(t *testing.T) {
	t.Helper()
	file := m.disk("var/lib/k1s/pki/rotation.json")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s, err := rotation.Unmarshal(b)
	if err != nil {
		t.Fatal(err)
	}
	s.Since = s.Since.Add(-rotation.Settle)
	if err := os.WriteFile(file, s.Marshal(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// theCAIsReplaced while one agent is there and another one is off, and while the daemon is killed.
func theCAIsReplaced(t *testing.T, c *Cluster, app everywhere, there, away member) {
	server := member{c, "server-0"}
	first := server.trusts(t)
	if len(first) != 1 {
		t.Fatalf("the server trusts %v", first)
	}
	c.in(within(t, limit), "cp", "/etc/k1s/admin.kubeconfig", "/run/old.kubeconfig").wants(t, 0)
	old := func(ctx context.Context) result {
		return c.in(ctx, "k1s", "kubectl", "--kubeconfig", "/run/old.kubeconfig", "get", "nodes")
	}
	before := app.uids(t)
	away.must(t, away.nodeCommand(t, "stop"))
	// A node counts as there until it has not reported for most of a minute; without an object it does at once.
	c.kubectl(t, "delete", "node", away.node)

	s, err := server.status(within(t, limit))
	if err != nil {
		t.Fatal(err)
	}
	c.in(within(t, limit), "k1s", "certs", "rotate-ca", "--dry-run").wants(t, 0)
	if got := server.trusts(t); !slices.Equal(got, first) {
		t.Fatalf("looking has changed what is trusted: %v", got)
	}
	asked := make(chan result, 1)
	ctx := within(t, limit)
	go func() { asked <- c.in(ctx, "k1s", "certs", "rotate-ca", "--yes") }()
	eventually(t, limit, "the new CA to be trusted", func(context.Context) error {
		if got := server.trusts(t); len(got) != 2 {
			return fmt.Errorf("trusted are %v", got)
		}
		return nil
	})
	kill(t, s.PID)
	<-asked // it was interrupted, or was fast enough
	eventually(t, limit, "the new CA to sign, and the agent that is there to have certificates of it", func(ctx context.Context) error {
		r, err := c.rotation(ctx)
		if err == nil && (r.State.Stage != rotation.Overlapping || len(r.Behind) > 0) {
			err = fmt.Errorf("%s; behind are %v; it waits for %q %s", r.State, r.Behind, r.Waits, r.Note)
		}
		return err
	})
	server.untilState(t, control.Running)
	for _, m := range []member{server, there} {
		got := m.trusts(t)
		if len(got) != 2 || got[1] != first[0] {
			t.Errorf("%s trusts %v, the first CA is %v", m.node, got, first)
		}
		leaf, issuer := readCertificate(t, m.disk("var/lib/k1s/pki/kubelet-client.crt")), readCertificate(t, m.disk("var/lib/k1s/pki/ca.crt"))
		if err := leaf.CheckSignatureFrom(issuer); err != nil {
			t.Errorf("%s: the kubelet's certificate is not of the new CA: %v", m.node, err)
		}
	}
	eventually(t, limit, "a kubeconfig of before to work", func(ctx context.Context) error { return old(ctx).error() })
	after := app.uids(t)
	for _, line := range strings.Split(before, "\n") {
		if !strings.HasPrefix(line, away.node) && !strings.Contains(after, line) {
			t.Errorf("a pod was started anew: before\n%s\nafter\n%s", before, after)
		}
	}

	if s, err = server.status(within(t, limit)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan result, 1)
	ctx = within(t, limit)
	go func() { ended <- c.in(ctx, "k1s", "certs", "rotate-ca", "--finish", "--yes") }()
	eventually(t, limit, "the old CA to be on its way out", func(ctx context.Context) error {
		r, err := c.rotation(ctx)
		if err == nil && !r.State.Hurry {
			err = fmt.Errorf("%s", r.State)
		}
		return err
	})
	// Who would have read the new CA again by now does it when it starts.
	for _, m := range []member{server, there} {
		now, err := m.status(within(t, limit))
		if err != nil {
			t.Fatal(err)
		}
		for name, pid := range pids(now) {
			if (name == "kubelet" || name == "kube-proxy") && pid > 1 {
				kill(t, pid)
			}
		}
		m.untilState(t, control.Running)
	}
	server.settled(t)
	kill(t, s.PID)
	<-ended // it asks nobody any more
	eventually(t, limit, "nobody who is there to trust the old CA", func(ctx context.Context) error {
		r, err := c.rotation(ctx)
		if err == nil && (r.State.Stage != rotation.Draining || len(r.Behind) > 0) {
			err = fmt.Errorf("%s; behind are %v; it waits for %q %s", r.State, r.Behind, r.Waits, r.Note)
		}
		return err
	})
	server.untilState(t, control.Running)
	second := server.trusts(t)
	if len(second) != 1 || second[0] == first[0] {
		t.Errorf("trusted are %v, the first CA is %v", second, first)
	}
	if r := old(within(t, limit)); r.code == 0 {
		t.Error("a kubeconfig of the old CA works after it was removed")
	}
	away.must(t, away.nodeCommand(t, "start", patience))
	away.untilState(t, control.Running)
	app.reach(t, 3)
	for _, m := range []member{there, away} {
		if got := m.trusts(t); !slices.Equal(got, second) {
			t.Errorf("%s trusts %v, want %v", m.node, got, second)
		}
	}
}
