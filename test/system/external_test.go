//go:build system

package system

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/health"
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
	c := created(t, "ext", withImages(t, "--agents", "1")...)
	first, second, agent := member{c, "server-0"}, member{c, "server-1"}, member{c, "agent-0"}
	// The database is on the machine of the agent, which nobody kills.
	nodes := c.describe(t).Nodes
	at := nodes[slices.IndexFunc(nodes, func(n cluster.Node) bool { return n.Name == agent.node })]
	db := postgresAt(t, networkOf(t, at.PID), at.Addr.String())
	db.start(t, "5432")
	app := everywhere{c.namespace(t, "everywhere")}
	app.apply(t, "everywhere.yaml")
	app.reach(t, 2)

	first.reaches(t, db, db.dsn(databasePassword))
	moved := first.in(within(t, changeLimit), "k1s", "datastore", "migrate", "--to-file", "/etc/k1s/datastore",
		"--ca-file", "/etc/k1s/db/ca.crt", "--cert-file", "/etc/k1s/db/client.crt", "--key-file", "/etc/k1s/db/client.key", "--yes")
	if err := moved.error(); err != nil {
		t.Fatal(err)
	}
	c.k1s(within(t, changeLimit), "cluster", "node", "add", c.name, "--server", patience).wants(t, 0, "node server-1 is there")
	var addrs []string
	for _, n := range c.describe(t).Nodes {
		if n.Name != agent.node {
			addrs = append(addrs, n.Addr.String())
		}
	}
	c.serverAddresses(t, addrs...)
	app.reach(t, 3)
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
	t.Run("one dies, whichever it is, and the other goes on", func(t *testing.T) {
		goesOn("with two")
		for _, s := range []member{first, second} {
			s.dies(t)
			goesOn("without " + s.node)
			s.must(t, s.nodeCommand(t, "start", patience))
			s.untilState(t, control.Running)
			goesOn("with " + s.node + " again")
		}
		app.reach(t, 3)
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
		app.reach(t, 3)
		if after := c.containers(t); after != before {
			t.Errorf("containers before:\n%s\nand after:\n%s", before, after)
		}
	})
	stop()
	n.check(t)
	t.Run("of two first servers on one database one founds a cluster", func(t *testing.T) {
		second.in(within(t, limit), "sh", "-c", resetHere).wants(t, 0)
		// On the database of the cluster that is there, it is the second.
		config := "apiVersion: k1s.io/v1alpha1\nkind: Config\nspec:\n  datastore: {endpoint: null, endpointFile: /etc/k1s/datastore, caFile: /etc/k1s/db/ca.crt, certFile: /etc/k1s/db/client.crt, keyFile: /etc/k1s/db/client.key}\n"
		alone := func(m member, dsn string) {
			m.reaches(t, db, dsn)
			m.writeFile(t, "config.d/zz-only.yaml", config+"  join: {server: '', tokenFile: ''}\n", 0o600)
		}
		alone(second, db.dsn(databasePassword))
		second.in(within(t, limit), "k1s", "server").wants(t, 1, "belongs to another cluster, which server-0 has founded", "nothing of this start is left here")
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
			go func() { ended <- end{m, m.in(within(t, 2*limit), "k1s", "server")} }()
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
