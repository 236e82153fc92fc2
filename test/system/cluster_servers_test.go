//go:build system

package system

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/health"
)

// anyServer is a client of whichever server answers at the cluster's port on this machine.
func (c *Cluster) anyServer(t *testing.T) *api {
	t.Helper()
	a := c.api(t)
	st := c.describe(t)
	transport := a.http.Transport.(*http.Transport).Clone()
	transport.DialContext = (&net.Dialer{Timeout: 5 * time.Second}).DialContext
	t.Cleanup(transport.CloseIdleConnections)
	return &api{&http.Client{Transport: transport, Timeout: 15 * time.Second}, fmt.Sprintf("https://127.0.0.1:%d", st.Spec.APIPort)}
}

func (c *Cluster) describe(t *testing.T) cluster.Status {
	t.Helper()
	var all []cluster.Status
	r := c.k1s(within(t, limit), "cluster", "ls", "-o", "json")
	if err := errors.Join(r.error(), json.Unmarshal([]byte(r.out), &all)); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(s cluster.Status) bool { return s.Spec.Name == c.name })
	if i < 0 {
		t.Fatalf("there is no %s:\n%s", c.name, r.out)
	}
	return all[i]
}

// network is that of the node as it runs now.
func (m member) network(t *testing.T) network {
	t.Helper()
	nodes := m.describe(t).Nodes
	i := slices.IndexFunc(nodes, func(n cluster.Node) bool { return n.Name == m.node })
	if i < 0 || nodes[i].PID <= 1 {
		t.Fatalf("%s does not run: %+v", m.node, nodes)
	}
	return networkOf(t, nodes[i].PID)
}

// dies kills everything on the node at once, as a power cut does.
func (m member) dies(t *testing.T) {
	t.Helper()
	nodes := m.describe(t).Nodes
	i := slices.IndexFunc(nodes, func(n cluster.Node) bool { return n.Name == m.node })
	if i < 0 || nodes[i].PID <= 1 {
		t.Fatalf("%s does not run: %+v", m.node, nodes)
	}
	first := processOf(nodes[i].PID)
	eventually(t, limit, m.node+" to be dead", func(context.Context) error {
		left := m.processesOf(t, m.node)
		for _, pid := range left { // what was being forked is killed next time
			kill(t, pid)
		}
		if first.alive() || len(left) > 0 {
			return fmt.Errorf("there are %v", left)
		}
		return nil
	})
}

// podsInside waits until all pods of a node, of which there are some, have addresses of the Node's own. A pod keeps its address, so one that
// has another is found whenever this looks.
func (c *Cluster) podsInside(t *testing.T, node string) {
	t.Helper()
	eventually(t, limit, "the pods of "+node+" to have addresses of its own", func(ctx context.Context) error {
		own := c.try(ctx, "get", "node", node, "-o", "jsonpath={.spec.podCIDR}")
		pods := c.try(ctx, "get", "pods", "-A", "--field-selector", "status.phase!=Failed,status.phase!=Succeeded,spec.nodeName="+node, "-o", `jsonpath={range .items[*]}{.metadata.name},{.spec.hostNetwork},{.status.podIP}{"\n"}{end}`)
		if err := errors.Join(own.error(), pods.error()); err != nil {
			return err
		}
		network, err := netip.ParsePrefix(own.out)
		if err != nil {
			return fmt.Errorf("its network is %q: %w", own.out, err)
		}
		inside := 0
		for line := range strings.Lines(pods.out) {
			f := strings.Split(strings.TrimSpace(line), ",")
			if len(f) != 3 || f[1] == "true" {
				continue
			}
			ip, err := netip.ParseAddr(f[2])
			if err != nil || !network.Contains(ip) {
				return fmt.Errorf("%s has the address %q, not one of %s", f[0], f[2], network)
			}
			inside++
		}
		if inside == 0 {
			return errors.New("it has no pods")
		}
		return nil
	})
}

// serverAddresses waits until the cluster knows of these servers and no others.
func (c *Cluster) serverAddresses(t *testing.T, want ...string) {
	t.Helper()
	eventually(t, limit, fmt.Sprintf("the servers to be %v", want), func(ctx context.Context) error {
		r := c.try(ctx, "get", "endpointslices", "kubernetes", "-o", "jsonpath={.endpoints[*].addresses[*]}")
		got := strings.Fields(r.out)
		slices.Sort(got)
		if r.code != 0 || !slices.Equal(got, want) {
			return fmt.Errorf("they are %v: %v", got, r.error())
		}
		return nil
	})
}

// joinsAgain starts a server that was removed with a token of another one, which is at ip.
func (m member) joinsAgain(t *testing.T, at member, ip string) {
	t.Helper()
	created := at.in(within(t, limit), "k1s", "token", "create", "--role", "server")
	m.must(t, created)
	m.writeFile(t, "token", created.out, 0o600)
	m.writeFile(t, "config.d/join.yaml", "apiVersion: k1s.io/v1alpha1\nkind: Config\nspec:\n  join: {server: 'https://"+ip+":6443', tokenFile: /etc/k1s/token}\n", 0o644)
	m.must(t, m.nodeCommand(t, "start", patience))
	m.untilState(t, control.Running)
}

// startsAnew kills an agent's daemon and its way to the servers, and waits until both run again.
func startsAnew(t *testing.T, agent member) {
	t.Helper()
	var was control.Status
	var balancer control.Component
	eventually(t, limit, "the daemon of "+agent.node+" to answer", func(ctx context.Context) (err error) {
		if was, err = agent.status(ctx); err == nil {
			balancer, err = componentOf(was, "balancer")
		}
		return err
	})
	ended := processOf(balancer.PID)
	kill(t, was.PID)
	kill(t, balancer.PID)
	eventually(t, limit, "another daemon on "+agent.node+", and another way to the servers", func(ctx context.Context) error {
		now, err := agent.status(ctx)
		if err != nil {
			return err
		}
		b, err := componentOf(now, "balancer")
		if err == nil && (now.PID == was.PID || ended.alive() || b.State != "ready") {
			err = fmt.Errorf("daemon %d, was %d; the balancer is %s %s", now.PID, was.PID, b.State, b.Note)
		}
		return err
	})
}

func TestServersJoinAndOneMayDie(t *testing.T) {
	t.Parallel()
	// With an audit log, so that it can be seen that nothing of what is handed over is in it.
	c := created(t, "servers", withImages(t, "--agents", "1", "--set", "spec.audit.enabled=true")...)
	servers, agent := []member{{c, "server-0"}, {c, "server-1"}, {c, "server-2"}}, member{c, "agent-0"}
	app := everywhere{c.namespace(t, "everywhere")}
	app.apply(t, "everywhere.yaml")
	n := newCounters(t, c.anyServer(t))
	stop := n.start()
	wasTold := n.watched(t)
	goesOn := func(what string) {
		t.Helper()
		n.mu.Lock()
		before := slices.Clone(n.acked)
		n.mu.Unlock()
		eventually(t, limit, "writes to be acknowledged "+what, func(context.Context) error {
			n.mu.Lock()
			defer n.mu.Unlock()
			for i, v := range n.acked {
				if v < before[i]+20 {
					return fmt.Errorf("counter-%d is at %d, was at %d", i, v, before[i])
				}
			}
			return nil
		})
		n.check(t)
	}

	inTurn(t, "two join under writes, and the state moves from SQLite to etcd", func(t *testing.T) {
		goesOn("with one")
		if d, err := servers[0].client().Datastore(within(t, limit)); err != nil || d.Engine != "sqlite" {
			t.Errorf("the state is in %s: %v", d.Engine, err)
		}
		for _, s := range servers[1:] {
			c.k1s(within(t, limit), "cluster", "node", "add", c.name, "--server", patience).wants(t, 0, "node "+s.node+" is there")
			goesOn("with " + s.node)
		}
		if d, err := servers[0].client().Datastore(within(t, limit)); err != nil || d.Engine != "etcd" {
			t.Errorf("the state is in %s: %v", d.Engine, err)
		}
	})
	inTurn(t, "each is a whole server", func(t *testing.T) {
		c.serverAddresses(t, "10.88.0.10", "10.88.0.11", "10.88.0.12")
		for _, s := range servers {
			s.untilState(t, control.Running)
			eventually(t, limit, "etcd to answer the API server of "+s.node, func(ctx context.Context) error {
				return s.in(ctx, "k1s", "kubectl", "get", "--raw", "/readyz/etcd").error()
			})
			if st, err := os.Stat(s.disk("var/lib/k1s/pki/ca.key")); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("the CA's key on %s: %v %v", s.node, st, err)
			}
		}
		for _, f := range clusterKeys {
			if string(decoded(t, servers[0].disk("var/lib/k1s/pki/"+f))) != string(decoded(t, servers[2].disk("var/lib/k1s/pki/"+f))) {
				t.Errorf("%s differs", f)
			}
		}
		app.reach(t, 4)
	})
	inTurn(t, "nothing that is handed over is kept in the clear", func(t *testing.T) { nothingInTheClear(t, servers) })
	inTurn(t, "a server with other settings, and one of another version, is refused", func(t *testing.T) {
		s := servers[1]
		token := s.in(within(t, limit), "k1s", "token", "create", "--role", "server")
		s.must(t, token)
		kubernetes := strings.TrimSpace(c.kubectl(t, "get", "node", s.node, "-o", "jsonpath={.status.nodeInfo.kubeletVersion}"))
		newer := otherMinor(t, kubernetes)
		const other = "var/tmp/k1s-other"
		ofAnotherVersion(t, agent.disk(other), kubernetes, newer)
		if says := agent.in(within(t, limit), "/"+other, "version"); !strings.Contains(says.out, "Kubernetes "+newer) {
			t.Errorf("what is to be of another version says %v", says)
		}
		// joins starts a server beside the agent.
		joins := func(program string, environ ...string) result {
			return c.k1sWith(within(t, limit), token.out, "cluster", "exec", c.name, agent.node, "--", "sh", "-c",
				beside("K1S_ROLE=server K1S_NODE_NAME=server-9 K1S_NODE_IP=10.88.0.99 K1S_SERVER=https://10.88.0.11:6443 "+strings.Join(environ, " ")+" "+program+" server"))
		}
		joins("k1s", "K1S_NETWORK_SERVICE_CIDR=10.44.0.0/16", "K1S_CLUSTER_DOMAIN=example.org").wants(t, 2,
			`spec.network.serviceCIDR is "10.44.0.0/16" here and "10.43.0.0/16" in the cluster`, `spec.cluster.domain is "example.org" here and "cluster.local" in the cluster`)
		joins("/"+other, "K1S_PAYLOAD=/opt/k1s/k1s").wants(t, 1, "this machine has Kubernetes "+newer+" and the cluster's servers "+kubernetes+"; a server joins with the same minor version", "use the k1s the servers have")
		// They were refused before they were given the keys, so nothing is kept of them and there is nothing to remove.
		s.in(within(t, limit), "k1s", "kubectl", "get", "secret", "-n", "kube-system", "k1s-node-server-9").wants(t, 1, "not found")
		if all := etcdMembers(t, servers); len(all) != 3 {
			t.Errorf("members of etcd: %+v", all)
		}
		// Nor is an agent let in whose kubelet is newer than the API server.
		forAgents := s.in(within(t, limit), "k1s", "token", "create")
		s.must(t, forAgents)
		c.k1sWith(within(t, limit), forAgents.out, "cluster", "exec", c.name, agent.node, "--", "sh", "-c",
			beside("K1S_NODE_NAME=agent-9 K1S_NODE_IP=10.88.0.99 K1S_SERVER=https://10.88.0.11:6443 K1S_PAYLOAD=/opt/k1s/k1s /"+other+" agent")).
			wants(t, 1, "this machine has Kubernetes "+newer+", which is newer than the servers' "+kubernetes, "upgrade the servers first")
		if out := c.kubectl(t, "get", "secrets", "-n", "kube-system", "-o", "name"); strings.Contains(out, "agent-9") || strings.Contains(out, "server-9") {
			t.Errorf("the cluster knows who was refused:\n%s", out)
		}
		goesOn("after that")
	})
	// Those of the third: in what comes next either of the others is dead, and comes back to it with new connections.
	inTurn(t, "certificates of etcd are renewed while it runs", func(t *testing.T) { renewsThoseOfEtcd(t, servers[2], "10.88.0.12:2380") })
	inTurn(t, "one dies, whoever leads", func(t *testing.T) {
		goesOn("before")
		members := func() map[string]uint64 {
			ids := map[string]uint64{}
			for _, m := range etcdMembers(t, servers) {
				ids[m.Name] = m.ID
			}
			return ids
		}
		for _, s := range servers[:2] {
			before := members()
			s.dies(t)
			goesOn("without " + s.node)
			if s == servers[0] { // at which the agent has joined: only what it has kept leads it to the others
				startsAnew(t, agent)
			}
			app.served(t, agent)
			if s.node == "server-1" { // one that joined needs its token no more, and whatever is in its place does not matter
				if err := os.WriteFile(s.disk("etc/token"), []byte("no token\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if s == servers[0] { // two of three are there, and one of two would be left
				at := servers[1]
				eventually(t, limit, "a removal to be known as one that is refused", func(ctx context.Context) error {
					plan := at.in(ctx, "k1s", "node", "remove", "server-2", "--dry-run")
					if plan.code != 0 || !strings.Contains(plan.out, "would be refused now: of 2 members 2 would have to be there, and away are server-0") {
						return fmt.Errorf("the plan is %q %v", plan.out, plan.error())
					}
					return nil
				})
				at.in(within(t, limit), "k1s", "node", "remove", "server-2", "--yes").wants(t, 1, "server-2 is not removed from etcd")
				eventually(t, limit, "the refused removal to have left nothing", func(ctx context.Context) error {
					r := c.try(ctx, "-n", "kube-system", "get", "secret", "k1s-node-server-2", "-o", "jsonpath={.data.leaving}")
					if r.code != 0 || r.out != "" {
						return fmt.Errorf("it leaves since %q %v", r.out, r.error())
					}
					return nil
				})
				goesOn("after a removal that was refused")
			}
			s.must(t, s.nodeCommand(t, "start", patience))
			s.untilState(t, control.Running)
			goesOn("with " + s.node + " again")
			if now := members(); !maps.Equal(now, before) {
				t.Errorf("members of etcd are %v, were %v", now, before)
			}
		}
		app.reach(t, 4)
	})
	inTurn(t, "Secrets are encrypted on all of them, also on one that was dead", func(t *testing.T) {
		encrypts(t, c, servers[1], servers[0], servers[2])
		goesOn("after it")
	})
	inTurn(t, "one that is removed learns of it and comes back with a token", func(t *testing.T) {
		// The first one: it was never let in, and knows its cluster by heart.
		s := servers[0]
		s.in(within(t, limit), "k1s", "node", "remove", "server-0", "--yes").wants(t, 2, "is this server itself")
		servers[1].in(within(t, limit), "k1s", "node", "remove", "server-0", "--yes").wants(t, 0, "server-0 is removed")
		goesOn("with one removed")
		eventually(t, limit, "server-0 to know that it was removed", func(ctx context.Context) error {
			st, err := s.status(ctx)
			if err == nil && !slices.ContainsFunc(st.Problems, func(p health.Problem) bool { return p.Code == health.ServerRemoved }) {
				err = fmt.Errorf("its problems are %v", st.Problems)
			}
			return err
		})
		if put, err := filepath.Glob(s.disk("var/lib/k1s/etcd-removed-*")); err != nil || len(put) != 1 {
			t.Errorf("its data is not put aside: %v, %v", put, err)
		}
		s.must(t, s.nodeCommand(t, "stop"))
		s.nodeCommand(t, "start", patience).wants(t, 1, "was removed from its cluster")
		s.joinsAgain(t, servers[1], "10.88.0.11")
		c.serverAddresses(t, "10.88.0.10", "10.88.0.11", "10.88.0.12")
		c.podsInside(t, "server-0")
		goesOn("with three again")
	})
	inTurn(t, "Secrets are in the clear again on all of them", func(t *testing.T) {
		decrypts(t, c, servers[1], servers[2], servers[0])
		goesOn("after it")
	})
	inTurn(t, "one that is gone for long is removed by itself, and comes back with a token", func(t *testing.T) {
		s, stay := servers[2], servers[:2]
		// As a server leaves it that dies while it removes a node.
		const cut = "k1s-node-agent-9"
		c.kubectl(t, "-n", "kube-system", "create", "secret", "generic", cut, "--type=k1s.io/node", "--from-literal=role=agent", "--from-literal=identity=d2hvIGl0IGlz", "--from-literal=ip=10.88.0.99",
			"--from-literal=since=2026-01-01T00:00:00Z", "--from-literal=until=2027-01-01T00:00:00Z", "--from-literal=leaving=2026-01-02T00:00:00Z")
		c.kubectl(t, "-n", "kube-system", "label", "secret", cut, "k1s.io/type=node")
		for _, m := range stay { // whoever leads goes by its own configuration, which a daemon reads at its start
			m.writeFile(t, "config.d/gone.yaml", "apiVersion: k1s.io/v1alpha1\nkind: Config\nspec:\n  etcd: {removeDeadAfter: 1m}\n", 0o644)
			was := m.untilState(t, control.Running)
			kill(t, was.PID)
			eventually(t, limit, "another daemon on "+m.node, func(ctx context.Context) error {
				now, err := m.status(ctx)
				if err == nil && (now.PID == was.PID || now.State != control.Running) {
					err = fmt.Errorf("pid %d, was %d; it is %s", now.PID, was.PID, now.State)
				}
				return err
			})
		}
		s.dies(t)
		goesOn("without " + s.node)
		told := false
		// It counts from when the one that leads has looked first, and anew after an election; and for the last minute of it the Node must
		// not have been Ready, which it is until the others have missed it for most of a minute.
		eventually(t, limit, s.node+" to be removed", func(ctx context.Context) error {
			for _, m := range stay {
				if st, err := m.status(ctx); err == nil {
					told = told || slices.ContainsFunc(st.Problems, func(p health.Problem) bool {
						return p.Code == health.EtcdMemberAway && strings.Contains(p.Text, s.node+" has not been seen for") && strings.Contains(p.Text, "it will be removed in")
					})
				}
			}
			if m := etcdMembers(t, stay); len(m) != 2 {
				return fmt.Errorf("the members are %+v", m)
			}
			r := c.try(ctx, "get", "nodes", "-o", "name")
			if r.code != 0 || strings.Contains(r.out, s.node) {
				return fmt.Errorf("there are %s %v", r.out, r.error())
			}
			return nil
		})
		if !told {
			t.Error("it was not told before that it would be removed")
		}
		eventually(t, limit, "an event to tell of it", func(ctx context.Context) error {
			r := c.try(ctx, "get", "events", "-n", "default", "--field-selector", "reason=ServerRemoved", "-o", "jsonpath={.items[*].involvedObject.name}")
			if r.code != 0 || strings.TrimSpace(r.out) != s.node {
				return fmt.Errorf("there are %q %v", r.out, r.error())
			}
			return nil
		})
		eventually(t, limit, "what was cut off to be finished", func(ctx context.Context) error {
			r := c.try(ctx, "-n", "kube-system", "get", "secret", cut, "--ignore-not-found", "-o", "name")
			if r.code != 0 || r.out != "" {
				return fmt.Errorf("there is %q %v", r.out, r.error())
			}
			return nil
		})
		c.serverAddresses(t, "10.88.0.10", "10.88.0.11")
		goesOn("with one removed by itself")
		// It was off when that happened.
		if r := s.nodeCommand(t, "start", "--wait", "1s"); r.code == 0 {
			t.Errorf("%s starts as if nothing had happened: %v", s.node, r)
		}
		eventually(t, limit, s.node+" to know that it was removed", func(ctx context.Context) error {
			shows, err := s.shows(ctx, health.ServerRemoved)
			if err == nil && !shows {
				err = errors.New("it does not say so")
			}
			return err
		})
		if put, err := filepath.Glob(s.disk("var/lib/k1s/etcd-removed-*")); err != nil || len(put) != 1 {
			t.Errorf("its data is not put aside: %v, %v", put, err)
		}
		s.must(t, s.nodeCommand(t, "stop"))
		s.joinsAgain(t, servers[1], "10.88.0.11")
		c.serverAddresses(t, "10.88.0.10", "10.88.0.11", "10.88.0.12")
		goesOn("with all three")
	})
	inTurn(t, "two of them leave, the leader first, and another one comes", func(t *testing.T) {
		l, _ := leader(t, servers)
		second, stays := servers[0], servers[1] // the agent has joined at the first one, which is to be gone
		switch l.node {
		case servers[0].node:
			second = servers[2]
		case servers[1].node:
			stays = servers[2]
		}
		for _, s := range []member{l, second} {
			s.nodeCommand(t, "delete", "--yes").wants(t, 0, s.node+" is deleted")
			goesOn("after " + s.node + " has left")
			if now, _ := leader(t, servers); now.node == s.node {
				t.Errorf("%s still leads", s.node)
			}
		}
		stays.nodeCommand(t, "delete", "--yes").wants(t, 4, "the only server")
		c.k1s(within(t, limit), "cluster", "node", "add", c.name, "--server", patience).wants(t, 0, "node server-3 is there")
		c.serverAddresses(t, strings.Replace(stays.node, "server-", "10.88.0.1", 1), "10.88.0.13")
		goesOn("with another server")
		app.reach(t, 3)
	})
	inTurn(t, "a reset leaves first", func(t *testing.T) {
		s := member{c, "server-3"}
		if r := s.in(within(t, limit), "k1s", "reset", "--dry-run"); r.code != 0 || !strings.Contains(r.out, "leave the other servers") {
			t.Errorf("the plan: %v", r)
		}
		// One of two: writes wait while it is off. While it does not run it cannot tell the others, and keeps everything; while it starts they are told as soon as they can be.
		s.in(within(t, limit), "k1s", "stop").wants(t, 0, "stopped")
		s.in(within(t, limit), "sh", "-c", resetHere).wants(t, 3, "cannot tell the others", "nothing was removed")
		if _, err := os.Stat(s.disk("var/lib/k1s/pki/ca.key")); err != nil {
			t.Errorf("after a reset that was refused: %v", err)
		}
		s.nodeCommand(t, "start", "--wait", "1s")
		s.in(within(t, limit), "sh", "-c", resetHere).wants(t, 0)
		goesOn("after server-3 was reset")
		eventually(t, limit, "server-3 to be forgotten", func(ctx context.Context) error {
			r := c.try(ctx, "get", "nodes", "-o", "name")
			if r.code != 0 || strings.Contains(r.out, "server-3") {
				return fmt.Errorf("there are %s %v", r.out, r.error())
			}
			return nil
		})
	})
	member{c, "server-3"}.nodeCommand(t, "delete", "--yes").wants(t, 0, "server-3 is deleted")
	stop()
	n.check(t)
	wasTold()
	inTurn(t, "all stop and start", func(t *testing.T) {
		if err := c.k1s(within(t, limit), "cluster", "stop", c.name).error(); err != nil {
			t.Fatal(err)
		}
		if err := c.k1s(within(t, limit), "cluster", "start", c.name, patience).error(); err != nil {
			t.Fatal(err)
		}
		n.check(t)
		app.reach(t, 2)
	})
}
