//go:build system && faults

package system

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"k1s.io/k1s/internal/control"
)

// TestServersAreRestored takes three servers back to a snapshot and then to a backup, each on another one of them: that one goes on alone, the
// agent and its pods with it, and the others come back with a token. It is not part of the system tests: make faults.
func TestServersAreRestored(t *testing.T) {
	c := created(t, "restored", withImages(t, "--servers", "3", "--agents", "1")...)
	servers, agent := []member{{c, "server-0"}, {c, "server-1"}, {c, "server-2"}}, member{c, "agent-0"}
	addrs := map[string]string{"server-0": "10.88.0.10", "server-1": "10.88.0.11", "server-2": "10.88.0.12"}
	app := everywhere{c.namespace(t, "everywhere")}
	app.apply(t, "everywhere.yaml")
	app.reach(t, 4)
	a := c.anyServer(t)
	put := func(name, value string) {
		t.Helper()
		eventually(t, limit, "a write", func(ctx context.Context) error {
			_, code, err := a.do(ctx, http.MethodPost, counterPath, configMap(name, value))
			if code == http.StatusConflict {
				_, _, err = a.do(ctx, http.MethodPut, counterPath+"/"+name, configMap(name, value))
			}
			return err
		})
	}
	has := func(name, want string) {
		t.Helper()
		eventually(t, limit, name+" to be read", func(ctx context.Context) error {
			o, _, err := a.do(ctx, http.MethodGet, counterPath+"/"+name, nil)
			if err == nil && o.Data["n"] != want {
				t.Errorf("%s is %q, want %q", name, o.Data["n"], want)
			}
			return err
		})
	}
	// own is which pod is on the agent, and how often it was started.
	own := func() string {
		t.Helper()
		return app.kubectl(t, "get", "pods", "-l", "app=everywhere", "--field-selector", "spec.nodeName="+agent.node, "-o", `jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].containerID}{"\n"}{end}`)
	}
	off := func(all []member) {
		t.Helper()
		for _, m := range all {
			m.in(within(t, limit), "k1s", "stop").wants(t, 0, "stopped")
		}
	}
	// alone checks that a server goes on as the only one.
	alone := func(at member, pod string) {
		t.Helper()
		eventually(t, limit, "etcd to have one member", func(ctx context.Context) error {
			e, err := at.client().Etcd(ctx)
			if err == nil && (e.Problem != "" || len(e.Members) != 1 || !e.Members[0].Leader || !e.Members[0].Healthy) {
				err = fmt.Errorf("%+v", e)
			}
			return err
		})
		c.serverAddresses(t, addrs[at.node])
		agent.untilState(t, control.Running)
		app.served(t, agent)
		if now := own(); now != pod {
			t.Errorf("the agent's pod was %q and is %q", pod, now)
		}
	}
	// come lets the others be servers again, which have nothing of before any more.
	come := func(at member, others []member) {
		t.Helper()
		for _, m := range others {
			m.in(within(t, limit), "sh", "-c", resetHere+" --force").wants(t, 0)
			at.in(within(t, limit), "k1s", "node", "remove", m.node, "--yes").wants(t, 0, m.node+" is removed")
		}
		for _, m := range others {
			m.joinsAgain(t, at, addrs[at.node])
		}
		c.serverAddresses(t, "10.88.0.10", "10.88.0.11", "10.88.0.12")
		eventually(t, limit, "all three to be members", func(ctx context.Context) error {
			all := etcdMembers(t, servers)
			if len(all) != 3 {
				return fmt.Errorf("there are %+v", all)
			}
			for _, m := range all {
				if m.Learner || !m.Healthy {
					return fmt.Errorf("%s: %s", m.Name, m.Problem)
				}
			}
			return nil
		})
		app.reach(t, 4)
	}
	restored := func(r result) {
		t.Helper()
		if err := r.error(); err != nil {
			t.Fatal(err)
		}
	}

	inTurn(t, "to a snapshot, by one that has joined", func(t *testing.T) {
		at, others := servers[1], []member{servers[0], servers[2]} // in this order: the provider names the first one to the last
		put("value", "then")
		at.in(within(t, limit), "k1s", "etcd", "snapshot", "save", "then").wants(t, 0)
		put("value", "now")
		refused := func(says ...string) {
			t.Helper()
			r := at.in(within(t, limit), "k1s", "etcd", "snapshot", "restore", "then", "--yes")
			r.wants(t, 1, append(says, "etcd has other members", "--alone")...)
		}
		refused("server-0", "server-2")
		has("value", "now")
		pod := own()
		off(others)
		refused() // without a majority its etcd does not say who they are
		restored(at.in(within(t, limit), "k1s", "etcd", "snapshot", "restore", "then", "--alone", "--yes"))
		at.untilState(t, control.Running)
		has("value", "then")
		alone(at, pod)
		put("after", "1")
		come(at, others)
		has("after", "1")
	})
	inTurn(t, "to a snapshot, by one that is off, while the others go on", func(t *testing.T) {
		at := servers[1]
		off([]member{at})
		r := at.in(within(t, limit), "k1s", "etcd", "snapshot", "restore", "then", "--yes")
		r.wants(t, 1, "etcd has other members", "--alone")
		at.must(t, at.nodeCommand(t, "start", patience))
		at.untilState(t, control.Running)
		has("after", "1")
		if all := etcdMembers(t, servers); len(all) != 3 {
			t.Errorf("members of etcd: %+v", all)
		}
	})
	inTurn(t, "to a backup, by the first one", func(t *testing.T) {
		at, others := servers[0], []member{servers[1], servers[2]}
		const file = "/var/lib/k1s/backups/kept.tar.zst"
		put("value", "kept")
		at.in(within(t, limit), "k1s", "backup", "create", "--name", "kept").wants(t, 0)
		put("value", "lost")
		pod := own()
		off([]member{at})
		at.in(within(t, limit), "k1s", "backup", "restore", file, "--yes").wants(t, 1, "servers of the cluster run, at 10.88.0.11:6443", "10.88.0.12:6443", "--alone")
		has("value", "lost")
		off(others)
		restored(at.in(within(t, limit), "k1s", "backup", "restore", file, "--yes"))
		at.must(t, at.nodeCommand(t, "start", patience))
		at.untilState(t, control.Running)
		has("value", "kept")
		alone(at, pod)
		put("after", "2")
		come(at, others)
		has("after", "2")
	})
}

// defragments defragments each member of etcd in turn, with enough in it that this takes a moment, while clients go on at all of them: whoever asks
// waits, and nobody is refused.
func defragments(t *testing.T, c *Cluster, r *registers, servers []member) {
	const (
		pieces = 80
		piece  = 700_000 // bytes; an object may have some more
	)
	bulk := c.namespace(t, "bulk")
	a := c.anyServer(t)
	path := "/api/v1/namespaces/" + bulk.ns + "/configmaps"
	for i := range pieces {
		eventually(t, limit, "a large object to be taken", func(ctx context.Context) error {
			_, code, err := a.do(ctx, http.MethodPost, path, configMap(fmt.Sprintf("bulk-%02d", i), strings.Repeat("x", piece)))
			if code == http.StatusConflict { // the answer before was lost
				err = nil
			}
			return err
		})
	}
	all := []string{balanced, balanced + " 2"}
	for _, s := range servers {
		all = append(all, s.node)
	}
	r.goOn(t, "with much in the database", all...)
	lead, followers := leader(t, servers)
	for _, m := range append(followers, lead) {
		from, unknown := r.now(), r.unknowns()
		m.in(within(t, limit), "k1s", "etcd", "defrag").wants(t, 0)
		until := r.now()
		r.goOn(t, "after "+m.node+" was defragmented", all...)
		r.log(t, m.node+" is defragmented", all, from, r.now(), r.unknowns()-unknown)
		e, err := m.client().Etcd(t.Context())
		if err != nil || e.Bytes < pieces*piece {
			t.Errorf("%s has %d bytes, which is less than was written: %v", m.node, e.Bytes, err)
		}
		for _, f := range r.refusedIn(from, until) {
			t.Errorf("while %s was defragmented the client at %s was refused after %.1fs: %s", m.node, f.client, (f.at - from).Seconds(), f.why)
		}
	}
}
