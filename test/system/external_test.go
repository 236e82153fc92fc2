//go:build system

package system

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/migration"
)

// externalVar asks for the test of several servers on a database of others, which takes some minutes.
const externalVar = "K1S_TEST_EXTERNAL"

// writeFile puts a file into a node's /etc/k1s.
func (m member) writeFile(t *testing.T, name, content string, mode os.FileMode) {
	t.Helper()
	file := m.disk("etc/" + name)
	if err := os.MkdirAll(file[:strings.LastIndexByte(file, '/')], 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// reaches gives a node what it takes to reach the database.
func (m member) reaches(t *testing.T, db *database, dsn string) {
	t.Helper()
	for _, f := range []string{"ca.crt", "client.crt", "client.key"} {
		raw, err := os.ReadFile(db.path(f))
		if err != nil {
			t.Fatal(err)
		}
		m.writeFile(t, "db/"+f, string(raw), 0o600)
	}
	m.writeFile(t, "datastore", dsn+"\n", 0o600)
}

// shows tells whether a problem is shown.
func (m member) shows(ctx context.Context, code health.Code) (bool, error) {
	st, err := m.status(ctx)
	return slices.ContainsFunc(st.Problems, func(p health.Problem) bool { return p.Code == code }), err
}

func TestSeveralServersOnADatabaseOfOthers(t *testing.T) {
	if os.Getenv(externalVar) == "" {
		t.Skipf("%s is not set: it takes minutes, see make system-external", externalVar)
	}
	c := created(t, "ext", withImages(t, "--servers", "3", "--agents", "1")...)
	first, second, third, agent := member{c, "server-0"}, member{c, "server-1"}, member{c, "server-2"}, member{c, "agent-0"}
	// The database is on the machine of the agent, which nobody kills.
	nodes := c.describe(t).Nodes
	at := nodes[slices.IndexFunc(nodes, func(n cluster.Node) bool { return n.Name == agent.node })]
	db := postgresAt(t, networkOf(t, at.PID), at.Addr.String())
	db.start(t, "5432")
	app := everywhere{c.namespace(t, "everywhere")}
	app.apply(t, "everywhere.yaml")
	app.reach(t, 4)
	t.Run("three servers move from their etcd to it together", func(t *testing.T) { c.movesTogether(t, []member{first, second, third}, db) })
	var addrs []string
	for _, n := range c.describe(t).Nodes {
		if n.Name != agent.node {
			addrs = append(addrs, n.Addr.String())
		}
	}
	c.serverAddresses(t, addrs...)
	app.reach(t, 4)
	n := newCounters(t, c.anyServer(t))
	stop := n.start()
	goesOn := func(what string) {
		t.Helper()
		n.mu.Lock()
		before := slices.Clone(n.acked)
		n.mu.Unlock()
		eventually(t, limit, "writes to be acknowledged "+what, func(context.Context) error {
			n.mu.Lock()
			defer n.mu.Unlock()
			for i, v := range n.acked {
				if v < before[i]+10 {
					return fmt.Errorf("counter-%d is at %d, was at %d", i, v, before[i])
				}
			}
			return nil
		})
		n.check(t)
	}
	t.Run("one dies, whichever it is, and the others go on", func(t *testing.T) {
		goesOn("with all")
		for _, s := range []member{first, second} {
			s.dies(t)
			goesOn("without " + s.node)
			s.must(t, s.nodeCommand(t, "start", patience))
			s.untilState(t, control.Running)
			goesOn("with " + s.node + " again")
		}
		app.reach(t, 4)
	})
	t.Run("the keys of Secrets change on both", func(t *testing.T) {
		if err := second.in(within(t, changeLimit), "k1s", "encryption", "enable").error(); err != nil {
			t.Fatal(err)
		}
		var keys []string
		for _, m := range []member{first, second} {
			e, err := m.encryption(within(t, limit))
			if err != nil || len(e.Keys) == 0 {
				t.Fatalf("%+v, %v", e, err)
			}
			keys = append(keys, e.Keys[0].Name)
		}
		if keys[0] == "" || keys[0] != keys[1] {
			t.Errorf("they write with %q", keys)
		}
		goesOn("encrypted")
	})
	t.Run("the database does not answer for a minute", func(t *testing.T) {
		before := c.containers(t)
		// It keeps its connections and says nothing, which is worse than ending.
		hangs := db.processes(t)
		db.signal(t, hangs, unix.SIGSTOP)
		for _, m := range []member{first, second} {
			eventually(t, limit, "database-away on "+m.node, func(ctx context.Context) error {
				shown, err := m.shows(ctx, health.DatabaseAway)
				if err == nil && !shown {
					err = errors.New("it is not shown")
				}
				return err
			})
		}
		time.Sleep(awayFor)
		db.signal(t, hangs, unix.SIGCONT)
		for _, m := range []member{first, second} {
			m.untilState(t, control.Running)
			eventually(t, limit, "database-away to be gone on "+m.node, func(ctx context.Context) error {
				shown, err := m.shows(ctx, health.DatabaseAway)
				if err == nil && shown {
					err = errors.New("it is still shown")
				}
				return err
			})
		}
		goesOn("with the database again")
		app.reach(t, 4)
		if after := c.containers(t); after != before {
			t.Errorf("containers before:\n%s\nand after:\n%s", before, after)
		}
	})
	stop()
	n.check(t)
	t.Run("three servers go back to an etcd of theirs together", func(t *testing.T) { c.movesToEtcd(t, []member{first, second, third}) })
	app.reach(t, 4)
	t.Run("and to the database as they left it", func(t *testing.T) {
		const later = "written-in-etcd"
		c.kubectl(t, "create", "configmap", later)
		if _, err := first.client().MoveDatastore(within(t, limit), control.DatastoreRequest{Action: migration.Rollback}); err != nil {
			t.Fatal(err)
		}
		first.moved(t, migration.Done)
		for _, s := range []member{first, second, third} { // a node may be not Ready for minutes: what its kubelet has reported since is lost
			s.isIn(t, "PostgreSQL")
		}
		eventually(t, limit, "the database to have what it had", func(ctx context.Context) error {
			r := c.try(ctx, "get", "configmap", "-o", "name")
			if r.code != 0 || strings.Contains(r.out, later) || !strings.Contains(r.out, "kube-root-ca.crt") {
				return fmt.Errorf("there are %s %v", r.out, r.error())
			}
			return nil
		})
	})
	t.Run("of two first servers on one database one founds a cluster", func(t *testing.T) {
		// It may be starting with the database still.
		third.in(within(t, limit), "sh", "-c", resetHere).wants(t, 0)
		second.in(within(t, limit), "sh", "-c", resetHere).wants(t, 0)
		// On the database of the cluster that is there, it is the second.
		config := "apiVersion: k1s.io/v1alpha1\nkind: Config\nspec:\n  datastore: {endpoint: null, endpointFile: /etc/k1s/datastore, caFile: /etc/k1s/db/ca.crt, certFile: /etc/k1s/db/client.crt, keyFile: /etc/k1s/db/client.key}\n"
		alone := func(m member, dsn string) {
			m.reaches(t, db, dsn)
			m.writeFile(t, "config.d/zz-only.yaml", config, 0o600)
		}
		// The environment of this node says where its cluster is.
		founds := func(m member) result {
			return m.in(within(t, 2*limit), "env", "-u", "K1S_SERVER", "-u", "K1S_TOKEN_FILE", "k1s", "server")
		}
		alone(second, db.dsn(databasePassword))
		founds(second).wants(t, 1, "belongs to another cluster, which server-0 has founded", "nothing of this start is left here")
		if _, err := os.Stat(second.disk("var/lib/k1s/pki")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it has kept keys: %v", err)
		}
		// And two at the same moment.
		first.in(within(t, limit), "sh", "-c", resetHere+" --force").wants(t, 0)
		another := strings.TrimSuffix(db.dsn(databasePassword), "k1s") + "another"
		type end struct {
			member
			result
		}
		ended := make(chan end, 2)
		for _, m := range []member{first, second} {
			alone(m, another)
			go func() { ended <- end{m, founds(m)} }()
		}
		loser := <-ended
		loser.result.wants(t, 1, "belongs to another cluster", "nothing of this start is left here")
		if _, err := os.Stat(loser.disk("var/lib/k1s/pki")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s has kept keys: %v", loser.node, err)
		}
		winner := map[string]member{first.node: second, second.node: first}[loser.node]
		winner.untilState(t, control.Running)
		winner.in(within(t, limit), "k1s", "stop", "--pods").wants(t, 0)
		(<-ended).result.wants(t, 0)
	})
}

// movesTogether moves servers from the etcd they have to a database, under reads and writes at each of them: first the daemon of the one
// that leads is killed before they have agreed, then that of one that follows while it waits.
func (c *Cluster) movesTogether(t *testing.T, servers []member, db *database) {
	leads, follows := servers[0], servers[1]
	var all []string
	for _, s := range servers {
		all = append(all, s.node)
		s.untilState(t, control.Running)
	}
	leads.reaches(t, db, db.dsn(databasePassword))
	r := c.registers(t, servers)
	r.goOn(t, "in etcd", all...)
	isIn := func(engine string) { r.isIn(t, servers, engine) }
	begin := func() {
		t.Helper()
		_, err := leads.client().MoveDatastore(within(t, limit), control.DatastoreRequest{
			Action: migration.Migrate, EndpointFile: "/etc/k1s/datastore", CAFile: "/etc/k1s/db/ca.crt", CertFile: "/etc/k1s/db/client.crt", KeyFile: "/etc/k1s/db/client.key",
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	begin()
	leads.killedWhen(t, "var/lib/k1s/datastore/migration.json", `"phase": "fencing"`)
	leads.moved(t, migration.Failed)
	isIn("etcd")

	begin()
	follows.killedWhen(t, "var/lib/k1s/datastore/following.json", `"attempt"`)
	leads.moved(t, migration.Done)
	isIn("PostgreSQL")
	leads.verified(t)
	for _, s := range servers {
		if fs, err := filepath.Glob(s.disk("var/lib/k1s/datastore/") + "/[fg]o*.json"); err != nil || len(fs) > 0 {
			t.Errorf("left on %s: %q, %v", s.node, fs, err)
		}
		found := s.in(within(t, limit), "sh", "-c", "grep -rlsF --exclude-dir=payload --exclude-dir=containerd "+databasePassword+" /var/lib/k1s /run/k1s /etc/k1s || true")
		for file := range strings.FieldsSeq(found.out) {
			if mode := strings.TrimSpace(s.in(within(t, limit), "stat", "-c", "%a", file).out); mode != "600" || strings.HasSuffix(file, ".log") {
				t.Errorf("the password is in %s of %s, which has mode %s", file, s.node, mode)
			}
		}
	}
	r.check(t)
}

// isIn waits until a server uses a datastore.
func (m member) isIn(t *testing.T, engine string) {
	t.Helper()
	eventually(t, limit, m.node+" to be in "+engine, func(ctx context.Context) error {
		d, err := m.client().Datastore(ctx)
		if err == nil && d.Engine != engine {
			err = fmt.Errorf("it is in %s", d.Engine)
		}
		return err
	})
}

// isIn is the same for all servers, at each of which there are writes then.
func (r *registers) isIn(t *testing.T, servers []member, engine string) {
	t.Helper()
	var all []string
	for _, s := range servers {
		all = append(all, s.node)
		s.untilState(t, control.Running)
		s.isIn(t, engine)
	}
	r.goOn(t, "in "+engine, all...)
}

// moved waits until a server that leads a move is at the end of it.
func (m member) moved(t *testing.T, phase migration.Phase) {
	t.Helper()
	eventually(t, 2*limit, "the move to be "+string(phase), func(ctx context.Context) error {
		d, err := m.client().Datastore(ctx)
		if err == nil && (d.Move == nil || d.Move.Phase != phase) {
			err = fmt.Errorf("it is %+v", d.Move)
		}
		return err
	})
}

// verified looks at what a server that has led a move has compared.
func (m member) verified(t *testing.T) {
	t.Helper()
	d, err := m.client().Datastore(within(t, limit))
	if err != nil || d.Move.Result == nil || d.Move.Result.Keys < 100 || d.Move.Result.TargetRevision <= d.Move.Result.SourceRevision {
		t.Errorf("%+v, %v", d.Move, err)
		return
	}
	for _, row := range d.Move.Result.Rows {
		if !row.Equal() {
			t.Errorf("%s differs: %+v", row.Prefix, row)
		}
	}
	t.Logf("%d keys, %d late, the control plane of %s was away for %.2fs", d.Move.Result.Keys, d.Move.Result.Late, m.node, d.Move.PausedS)
}

// killedWhen kills a daemon as soon as something is there on its disk.
func (m member) killedWhen(t *testing.T, file, words string) {
	t.Helper()
	st, err := m.status(within(t, limit))
	if err != nil {
		t.Fatal(err)
	}
	p := processOf(st.PID)
	path := m.disk(file)
	eventually(t, limit, words+" in "+file+" of "+m.node, func(context.Context) error {
		b, err := os.ReadFile(path)
		if err == nil && !strings.Contains(string(b), words) {
			err = fmt.Errorf("it has %.100q", b)
		}
		return err
	})
	kill(t, st.PID)
	eventually(t, limit, "the daemon of "+m.node+" to be dead, and another one to run", func(ctx context.Context) error {
		if p.alive() {
			return errors.New("it is alive")
		}
		now, err := m.status(ctx)
		if err == nil && processOf(now.PID) == p {
			err = errors.New("it is still the old one")
		}
		return err
	})
}

// movesToEtcd lets servers that have left their etcd for a database go back, under reads and writes at each of them: the etcd is made anew, and
// the old data is given up only when somebody says so. The daemon of one that follows is killed when it has stopped, that of another one
// when it is to ask for its place. In the end the one that led dies, and the others go on.
func (c *Cluster) movesToEtcd(t *testing.T, servers []member) {
	leads := servers[0]
	r := c.registers(t, servers)
	r.isIn(t, servers, "PostgreSQL")
	if _, err := leads.client().MoveDatastore(within(t, limit), control.DatastoreRequest{Action: migration.Migrate, Endpoint: "etcd"}); err == nil || !strings.Contains(err.Error(), "there is the data of an etcd") {
		t.Fatalf("the old data would be given up: %v", err)
	}
	d, err := leads.client().MoveDatastore(within(t, limit), control.DatastoreRequest{Action: migration.Rollback})
	if err != nil || d.Move.Kind != migration.Migrate {
		t.Fatalf("%+v, %v", d.Move, err)
	}
	servers[1].killedWhen(t, "var/lib/k1s/datastore/following.json", `"attempt"`)
	servers[2].killedWhen(t, "var/lib/k1s/server.json", `"moved"`)
	leads.moved(t, migration.Done)
	r.isIn(t, servers, "etcd")
	leads.verified(t)
	eventually(t, limit, "three members that have a vote", func(context.Context) error {
		all := etcdMembers(t, servers)
		if len(all) != len(servers) || slices.ContainsFunc(all, func(m etcdcare.Member) bool { return m.Learner }) {
			return fmt.Errorf("they are %+v", all)
		}
		return nil
	})
	r.fault(t, "the server that led is dead", servers[1:], func() { leads.dies(t) }, func() {
		leads.must(t, leads.nodeCommand(t, "start", patience))
		leads.untilState(t, control.Running)
	})
	r.isIn(t, servers, "etcd")
	r.check(t)
}
