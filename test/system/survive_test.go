//go:build system && faults

package system

import (
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
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/rotation"
)

// process is the pid of the process a component is in.
func (m member) process(t *testing.T, component string) int {
	t.Helper()
	s, err := m.status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := componentOf(s, component)
	if err != nil || c.PID <= 1 {
		t.Fatalf("%s on %s: %+v %v", component, m.node, c, err)
	}
	return c.PID
}

// comes starts a node that was killed and waits until it runs.
func (m member) comes(t *testing.T) {
	t.Helper()
	m.must(t, m.nodeCommand(t, "start", patience))
	m.untilState(t, control.Running)
}

// background runs something while something else happens; its result is there when wait returns.
func background(fn func() result) (wait func() result) {
	var r result
	var done sync.WaitGroup
	done.Go(func() { r = fn() })
	return func() result { done.Wait(); return r }
}

// TestNoWriteIsLost does to three servers and an agent what machines do to them, one thing after the other, while clients at every
// server read and change registers. It takes a quarter of an hour, and is not part of the system tests: make faults.
func TestNoWriteIsLost(t *testing.T) {
	c := created(t, "faults", withImages(t, "--servers", "3", "--agents", "1")...)
	servers := []member{{c, "server-0"}, {c, "server-1"}, {c, "server-2"}}
	agent := member{c, "agent-0"}
	app := everywhere{c.namespace(t, "everywhere")}
	app.apply(t, "everywhere.yaml")
	r := c.registers(t, servers)
	everybody := []string{"server-0", "server-1", "server-2", balanced}
	r.goOn(t, "before", everybody...)
	check := sync.OnceFunc(func() { r.check(t) })
	defer check()
	nothing := func() {}
	running := func() {
		for _, s := range servers {
			s.untilState(t, control.Running)
		}
	}

	t.Run("a partition cuts the leader of etcd off", func(t *testing.T) {
		l, others := leader(t, servers)
		r.fault(t, "the leader is cut off", others, func() { c.net(t, "cut", l.node) }, func() { c.net(t, "heal") })
		running()
	})
	t.Run("a partition cuts a follower off", func(t *testing.T) {
		_, others := leader(t, servers)
		f := others[0]
		well := slices.DeleteFunc(slices.Clone(servers), func(m member) bool { return m.node == f.node })
		r.fault(t, "a follower is cut off", well, func() { c.net(t, "cut", f.node) }, func() { c.net(t, "heal") })
		running()
	})
	t.Run("a follower does not see the leader, and both see the third", func(t *testing.T) {
		l, others := leader(t, servers)
		f := others[0]
		r.fault(t, "a follower and the leader do not see each other", []member{l, others[1]}, func() { c.net(t, "cut", l.node, f.node) }, func() { c.net(t, "heal") })
		running()
	})
	t.Run("servers are far away from each other", func(t *testing.T) {
		r.fault(t, "servers are 50 ms away from each other", servers, func() {
			for _, s := range servers {
				c.net(t, "delay", s.node, "50ms", "--jitter", "10ms")
			}
		}, func() { c.net(t, "heal") })
		running()
	})
	t.Run("a partition cuts an agent off", func(t *testing.T) {
		before := app.uids(t)
		r.fault(t, "the agent is cut off", servers, func() { c.net(t, "cut", agent.node) }, func() { c.net(t, "heal") })
		agent.untilState(t, control.Running)
		app.reach(t, 4)
		if after := app.uids(t); after != before {
			t.Errorf("pods were started anew: before\n%s\nafter\n%s", before, after)
		}
	})
	t.Run("a daemon is killed", func(t *testing.T) {
		l, _ := leader(t, servers)
		s, err := l.status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.fault(t, "the leader's daemon is killed", servers, func() { kill(t, s.PID) }, nothing)
		now := l.untilState(t, control.Running)
		if now.PID == s.PID || pids(now)["etcd"] != pids(s)["etcd"] {
			t.Errorf("the daemon %d is %d, its components were %v and are %v", s.PID, now.PID, pids(s), pids(now))
		}
	})
	t.Run("every process of a server is killed, one after the other", func(t *testing.T) {
		l, others := leader(t, servers)
		for _, comp := range []string{"containerd", "kubelet", "kube-apiserver"} {
			well := servers
			if comp == "kube-apiserver" { // and with it etcd
				well = others
			}
			r.fault(t, "the leader's "+comp+" is killed", well, func() { kill(t, l.process(t, comp)) }, nothing)
			running()
		}
		app.reach(t, 4)
	})
	t.Run("the leader is frozen, and goes on later", func(t *testing.T) {
		l, others := leader(t, servers)
		pid := l.process(t, "etcd")
		awake := func() { _ = unix.Kill(pid, unix.SIGCONT) }
		t.Cleanup(awake)
		r.fault(t, "the leader is frozen", others, func() {
			if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		}, awake)
		running()
	})
	t.Run("the leader's machine dies", func(t *testing.T) {
		l, others := leader(t, servers)
		r.fault(t, "the leader's machine is dead", others, func() { l.dies(t) }, func() { l.comes(t) })
		running()
		app.reach(t, 4)
	})
	t.Run("the leader's machine dies while a snapshot is taken", func(t *testing.T) {
		l, others := leader(t, servers)
		saved := background(func() result { return l.in(within(t, limit), "k1s", "etcd", "snapshot", "save") })
		r.fault(t, "the leader's machine is dead, which was taking a snapshot", others, func() { l.dies(t); saved() }, func() { l.comes(t) })
		running()
		l.in(within(t, limit), "k1s", "etcd", "snapshot", "save").wants(t, 0)
		found, err := filepath.Glob(l.disk("var/lib/k1s/snapshots/*"))
		if err != nil {
			t.Fatal(err)
		}
		if r := l.in(within(t, limit), "k1s", "etcd", "snapshot", "ls"); r.code != 0 || strings.Contains(r.out, "damaged") {
			t.Errorf("snapshots, of %v: %v", found, r)
		}
	})
	t.Run("every member of etcd is defragmented", func(t *testing.T) { defragments(t, c, r, servers) })
	four := append(slices.Clone(servers), member{c, "server-3"})
	t.Run("a machine dies while it joins, and the leader's while it leaves", func(t *testing.T) {
		s := four[3]
		added := background(func() result {
			return c.k1s(within(t, limit), "cluster", "node", "add", c.name, "--server", "--wait", "0s")
		})
		eventually(t, limit, "a fourth member", func(ctx context.Context) error {
			e, err := servers[0].client().Etcd(ctx)
			if err == nil && len(e.Members) != 4 {
				err = fmt.Errorf("there are %v", e.Members)
			}
			return err
		})
		added().wants(t, 0)
		r.fault(t, "a machine is dead that was joining", servers, func() { s.dies(t) }, func() { s.comes(t) })
		c.serverAddresses(t, "10.88.0.10", "10.88.0.11", "10.88.0.12", "10.88.0.13")
		l, others := leader(t, servers)
		removed := background(func() result {
			return others[0].in(within(t, limit), "k1s", "node", "remove", s.node, "--yes")
		})
		// Three of four are left, or two of three, or both while one of them leaves: there is a majority all the time.
		r.fault(t, "the leader's machine is dead, while another one leaves", others, func() { l.dies(t); t.Log(removed()) }, func() { l.comes(t) })
		eventually(t, limit, "the fourth server to be out", func(ctx context.Context) error {
			if r := others[0].in(ctx, "k1s", "node", "remove", s.node, "--yes"); r.code != 0 && !strings.Contains(r.err, "there is no node") {
				return r.error()
			}
			if m := etcdMembers(t, servers); len(m) != 3 {
				return fmt.Errorf("there are %v", m)
			}
			return nil
		})
		s.nodeCommand(t, "delete", "--yes").wants(t, 0, s.node+" is deleted")
		c.serverAddresses(t, "10.88.0.10", "10.88.0.11", "10.88.0.12")
		running()
	})
	t.Run("a server's disk is full", func(t *testing.T) { fullDisk(t, c, r, servers) })
	t.Run("one of three comes back with another address", func(t *testing.T) {
		s := servers[1]
		moved := strings.ReplaceAll(`set -e
k1s stop
ip addr del 10.88.0.11/24 dev LINK
ip addr add 10.88.0.77/24 dev LINK
ip route replace default via 10.88.0.1
K1S_NODE_IP=10.88.0.77 setsid k1s server </dev/null >>/var/log/moved.log 2>&1 &`, "LINK", "eth0")
		r.fault(t, "one of three moves", []member{servers[0], servers[2]}, func() { s.in(within(t, limit), "sh", "-c", moved).wants(t, 0) }, func() { s.untilState(t, control.Running) })
		c.serverAddresses(t, "10.88.0.10", "10.88.0.12", "10.88.0.77")
		knows(t, servers, "https://10.88.0.77:2380")
		app.reach(t, 4)
	})
	t.Run("all come back with other addresses, after a stop", func(t *testing.T) {
		// And again, which is when etcd has older addresses in its log.
		for _, subnet := range []string{"10.99.1.", "10.99.2."} {
			if err := c.k1s(within(t, limit), "cluster", "stop", c.name).error(); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if err := errors.Join(c.k1s(within(t, limit), "cluster", "start", c.name, "--subnet", subnet+"0/24", patience).error(), c.find(t.Context())); err != nil {
				t.Fatal(err)
			}
			r.find(t)
			r.goOn(t, "at "+subnet, slices.Collect(maps.Keys(r.watches))...)
			t.Logf("MEASURED all servers have moved: they acknowledge writes %.1fs after the start", time.Since(began).Seconds())
			running()
			c.serverAddresses(t, subnet+"10", subnet+"11", subnet+"12")
			knows(t, servers, "https://"+subnet+"10:2380", "https://"+subnet+"11:2380", "https://"+subnet+"12:2380")
			app.reach(t, 4)
		}
	})
	t.Run("the cluster goes over to another k1s, node by node", func(t *testing.T) { allGoOver(t, r, servers, agent, app) })
	// The last one: the clients have certificates of the old CA.
	t.Run("the CA is replaced on all servers", func(t *testing.T) { caOfAll(t, r, check, servers, agent, app) })
}

// allGoOver upgrades three servers and an agent under load. The daemon that leads is killed while another server goes over, and the agent cannot go
// over until its program can be replaced; then another server leads.
func allGoOver(t *testing.T, r *registers, servers []member, agent member, app everywhere) {
	const next = "/var/tmp/k1s-cluster"
	c, leads := agent.Cluster, servers[1]
	_, wanted := successor(t, leads.disk("var/tmp/k1s-cluster"))
	ownPrograms(t, c, servers...)
	r.find(t)
	r.goOn(t, "before the upgrade", "server-0", "server-1", "server-2", balanced)

	from, unknown := r.now(), r.unknowns()
	commanded := background(func() result {
		return leads.in(within(t, 4*limit), "k1s", "upgrade", "--cluster", "--file", next, "--yes", "--timeout=4m", "--drain-timeout=2m")
	})
	eventually(t, 2*limit, "the leader to have gone over, and another server to begin", func(ctx context.Context) error {
		u, err := servers[2].upgraded(ctx)
		if err != nil {
			return err
		}
		if got := steps(u); got["server-1"] != "upgraded" || got["server-0"] == "waiting" {
			return fmt.Errorf("they are %v, %v", got, u.Waits)
		}
		return nil
	})
	leads.runsPayload(t, wanted)
	was, err := leads.status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kill(t, was.PID)
	commanded().wants(t, 1, "the upgrade of the cluster has halted", "agent-0", "is a mount of its own")
	for _, s := range servers {
		s.runsPayload(t, wanted)
	}
	r.log(t, "three servers go over to another k1s", []string{balanced}, from, r.now(), r.unknowns()-unknown)
	nothingLeft(t, c, "")
	r.find(t)
	r.goOn(t, "after three servers went over", "server-0", "server-1", "server-2", balanced)

	ownPrograms(t, c, agent)
	servers[2].in(within(t, 3*limit), "k1s", "upgrade", "resume").wants(t, 0, "agent-0 upgraded")
	agent.runsPayload(t, wanted)
	nothingLeft(t, c, "", append([]member{agent}, servers...)...)
	app.reach(t, 4)
	for _, s := range servers {
		s.untilState(t, control.Running)
	}
}

// rotates is how far the replacement of the CA is, as one of the servers says.
func (m member) rotates(ctx context.Context) (control.Rotation, error) {
	r := m.in(ctx, "k1s", "certs", "rotate-ca", "--status", "-o", "json")
	var out control.Rotation
	if err := r.error(); err != nil {
		return out, err
	}
	return out, json.Unmarshal([]byte(r.out), &out)
}

// replaceLimit is for six control planes that start one after the other.
const replaceLimit = 3 * limit

// caOfAll replaces the CA of several servers under load; the daemon of one is killed while another one goes over. With check the load ends: its
// clients are of the old CA, which is trusted by nobody in the end.
func caOfAll(t *testing.T, r *registers, check func(), servers []member, agent member, app everywhere) {
	first := servers[0].trusts(t)
	before := app.uids(t)
	last := servers[2]
	for _, m := range servers {
		m.in(within(t, limit), "cp", "/etc/k1s/admin.kubeconfig", "/run/old.kubeconfig").wants(t, 0)
	}
	at := func(stage rotation.Stage) {
		t.Helper()
		for _, m := range servers {
			eventually(t, limit, m.node+" to say that all are in "+string(stage), func(ctx context.Context) error {
				now, err := m.rotates(ctx)
				if err == nil && (now.State.Stage != stage || len(now.Behind) > 0 || len(now.Servers) != len(servers)) {
					err = fmt.Errorf("%s; behind are %v; it waits for %q %s", now.State, now.Behind, now.Waits, now.Note)
				}
				return err
			})
		}
	}
	began := time.Now()
	// One of three is away at a time, so the clients at the cluster's port go on all the time, and the others' do again and again.
	r.fault(t, "the CA is replaced", nil, func() {
		eventually(t, limit, "all servers to be in order", func(ctx context.Context) error {
			return servers[0].in(ctx, "k1s", "certs", "rotate-ca", "--dry-run").error()
		})
		ctx := within(t, replaceLimit)
		asked := background(func() result { return servers[0].in(ctx, "k1s", "certs", "rotate-ca", "--yes") })
		eventually(t, limit, "the first server to trust the new CA", func(context.Context) error {
			if got := servers[0].trusts(t); len(got) != 2 {
				return fmt.Errorf("trusted are %v", got)
			}
			return nil
		})
		s, err := last.status(within(t, limit))
		if err != nil {
			t.Fatal(err)
		}
		kill(t, s.PID)
		asked().wants(t, 0)
	}, func() {})
	at(rotation.Overlapping)
	t.Logf("MEASURED three servers sign with the new CA %.1fs after they were asked", time.Since(began).Seconds())
	for _, m := range append(slices.Clone(servers), agent) {
		if got := m.trusts(t); len(got) != 2 || got[1] != first[0] {
			t.Errorf("%s trusts %v, the first CA is %v", m.node, got, first)
		}
	}
	if after := app.uids(t); after != before {
		t.Errorf("pods were started anew: before\n%s\nafter\n%s", before, after)
	}
	check()

	ctx := within(t, replaceLimit)
	ended := background(func() result {
		return servers[1].in(ctx, "k1s", "certs", "rotate-ca", "--finish", "--drop-tokens", "--yes")
	})
	eventually(t, limit, "the old CA to be on its way out", func(ctx context.Context) error {
		now, err := last.rotates(ctx)
		if err == nil && !now.State.Hurry {
			err = fmt.Errorf("%s", now.State)
		}
		return err
	})
	// Who would have read the new CA again by now does it when it starts.
	for _, m := range append(slices.Clone(servers), agent) {
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
	tenMinutesPass(t, servers[1])
	t.Log(ended())
	for _, m := range servers {
		eventually(t, replaceLimit, m.node+" to be at the end", func(ctx context.Context) error {
			now, err := m.rotates(ctx)
			_, left := os.Stat(m.disk("var/lib/k1s/pki/rotation"))
			if err == nil && (now.State.Active() || now.State.Ended.IsZero() || !errors.Is(left, fs.ErrNotExist)) {
				err = fmt.Errorf("%s; behind are %v; it waits for %q %s", now.State, now.Behind, now.Waits, now.Note)
			}
			return err
		})
		m.untilState(t, control.Running)
	}
	second := servers[0].trusts(t)
	if len(second) != 1 || second[0] == first[0] {
		t.Errorf("trusted are %v, the first CA is %v", second, first)
	}
	for _, m := range append(slices.Clone(servers), agent) {
		if got := m.trusts(t); !slices.Equal(got, second) {
			t.Errorf("%s trusts %v, want %v", m.node, got, second)
		}
	}
	for _, m := range servers {
		for _, f := range []string{"front-proxy-ca.crt", "etcd/ca.crt", "sa.pub"} {
			b, err := os.ReadFile(m.disk("var/lib/k1s/pki/" + f))
			if err != nil || strings.Count(string(b), "-----BEGIN") != 1 {
				t.Errorf("%s has more than the new one in %s, or nothing: %s, %v", m.node, f, b, err)
			}
		}
		if got := m.in(within(t, limit), "k1s", "kubectl", "--kubeconfig", "/run/old.kubeconfig", "get", "nodes"); got.code == 0 {
			t.Errorf("%s accepts a kubeconfig of the old CA", m.node)
		}
		for _, f := range clusterKeys { // they have come by another way
			if key := decoded(t, m.disk("var/lib/k1s/pki/"+f)); servers[0].inEtcd(t, string(key)) {
				t.Errorf("etcd has %s of %s", f, m.node)
			}
		}
	}
	knows(t, servers)
	app.reach(t, 4)
}

// tenMinutesPass, as far as the servers agree about them: running programs have learned of the new CA by then.
func tenMinutesPass(t *testing.T, m member) {
	t.Helper()
	eventually(t, limit, "the time to be over that running programs have", func(ctx context.Context) error {
		got := m.in(ctx, "k1s", "kubectl", "-n", "kube-system", "get", "configmap", "k1s-rotation", "-o", "jsonpath={.data.record}")
		if err := got.error(); err != nil {
			return err
		}
		rec, err := rotation.UnmarshalRecord([]byte(got.out))
		if err != nil || rec.State.Stage != rotation.Overlapping {
			return err
		}
		if rec.Joint && time.Since(rec.State.Since) < rotation.Settle || time.Since(rec.BehindAt) < rotation.Settle {
			rec.Serial, rec.BehindAt, rec.State.Since = rec.Serial+1, time.Time{}, rec.State.Since.Add(-rotation.Settle)
			patch, err := json.Marshal(map[string]any{"data": map[string]string{"record": string(rec.Marshal())}})
			if err == nil {
				err = m.in(ctx, "k1s", "kubectl", "-n", "kube-system", "patch", "configmap", "k1s-rotation", "--type", "merge", "-p", string(patch)).error()
			}
			if err != nil {
				return err
			}
		}
		return fmt.Errorf("they are in %s", rec.State.Stage)
	})
}

// knows waits until etcd's state has these addresses.
func knows(t *testing.T, servers []member, want ...string) {
	t.Helper()
	eventually(t, limit, fmt.Sprintf("etcd to know %v", want), func(ctx context.Context) error {
		var have []string
		for _, m := range etcdMembers(t, servers) {
			have = append(have, m.PeerURLs...)
			if !m.Healthy {
				return fmt.Errorf("%s: %s", m.Name, m.Problem)
			}
		}
		for _, w := range want {
			if !slices.Contains(have, w) {
				return fmt.Errorf("it knows %v", have)
			}
		}
		return nil
	})
}

// fullDisk adds a server on a small file system, fills that, and makes room again.
func fullDisk(t *testing.T, c *Cluster, r *registers, servers []member) {
	s := member{c, "server-4"}
	var next int
	for _, n := range c.describe(t).Spec.Nodes {
		if n.Role == cluster.Server {
			next = max(next, n.Index+1)
		}
	}
	next = max(next, c.describe(t).Spec.NextServer)
	s.node = cluster.NodeName(cluster.Server, next)
	disk := s.disk("var")
	if err := os.MkdirAll(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1g,mode=0755"); err != nil {
		t.Fatal(err)
	}
	mounted := true
	unmount := func() {
		if mounted {
			mounted = false
			if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(unmount)
	c.k1s(within(t, limit), "cluster", "node", "add", c.name, "--server", patience).wants(t, 0, s.node+" is there")
	filler := filepath.Join(disk, "filler")
	fill := func() {
		f, err := os.OpenFile(filler, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for block := make([]byte, 1<<20); ; {
			if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
				return
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	r.fault(t, "a server's disk is full", servers, func() {
		fill()
		// What has its file open may go on for a while. It cannot start.
		kill(t, s.process(t, "etcd"))
		eventually(t, limit, s.node+" to say that its disk is full", func(ctx context.Context) error {
			fill()
			st, err := s.status(ctx)
			if err == nil && !slices.ContainsFunc(st.Problems, func(p health.Problem) bool {
				return p.Code == health.EtcdDiskLow && p.Severity == health.Error
			}) {
				err = fmt.Errorf("its problems are %v", st.Problems)
			}
			return err
		})
	}, func() {
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		s.untilState(t, control.Running)
	})
	eventually(t, limit, "all members of etcd to be well", func(ctx context.Context) error {
		m := etcdMembers(t, servers)
		if i := slices.IndexFunc(m, func(m etcdcare.Member) bool { return !m.Healthy || m.Learner }); i >= 0 || len(m) != 4 {
			return fmt.Errorf("they are %+v", m)
		}
		return nil
	})
	servers[0].in(within(t, limit), "k1s", "node", "remove", s.node, "--yes").wants(t, 0)
	s.must(t, s.nodeCommand(t, "stop"))
	unmount()
	s.nodeCommand(t, "delete", "--yes").wants(t, 0, s.node+" is deleted")
}
