//go:build system

package system

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/health"
)

// awayFor is how long a database is away. It is no limit: longer does not matter, shorter shows less.
const awayFor = time.Minute

// Every datastore gets the same test: the node waits for it, says what is wrong, keeps everything in it, and
// gets over its absence.
func TestANodeKeepsItsStateInADatabaseOfOthers(t *testing.T) {
	t.Parallel()
	for name, v := range map[string]struct {
		port  string
		start func(*testing.T, network) *database
	}{
		"postgresql": {"5432", postgres},
		"mariadb":    {"3306", mariadb},
		"nats":       {"4222", natsServer},
		"etcd":       {"12379", etcdServer},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := created(t, "ds"+name[:2])
			c.running(t)
			in := c.network(t)
			kill(t, c.where().PID) // the node's first process would take the cluster for stopped
			c.in(within(t, limit), "k1s", "stop", "--pods").wants(t, 0, "stopped")

			db := v.start(t, in)
			for _, f := range []string{"ca.crt", "client.crt", "client.key"} {
				raw, err := os.ReadFile(db.path(f))
				if err != nil {
					t.Fatal(err)
				}
				c.put(t, raw, "/etc/k1s/db/"+f)
			}
			c.named(t, db.dsn("wr0ngpassword"))

			stop := c.serves(t)
			c.says(t, health.DatabaseAway)
			if r := c.in(within(t, limit), "k1s", "status"); !strings.Contains(r.out, "does not answer") || !strings.Contains(r.out, string(health.DatabaseAway)) {
				t.Errorf("k1s status: %v", r)
			}
			db.start(t, v.port)
			if name != "etcd" {
				c.says(t, health.DatabaseRefuses)
				c.hidesPassword(t, "wr0ngpassword")
				stop()
				if db.guest != "" {
					c.named(t, db.guest)
					stop = c.serves(t)
					c.says(t, health.DatabaseRefuses)
					stop()
				}
				c.named(t, db.dsn(databasePassword))
				stop = c.serves(t)
			}
			c.runsWithout(t, health.DatabaseAway, health.DatabaseRefuses)

			c.storesAndWatches(t)
			c.hidesPassword(t, databasePassword)

			stop() // pods run on
			stop = c.serves(t)
			c.running(t)
			c.hasKept(t)

			c.settled(t)
			before := c.containers(t)
			db.stop(t)
			c.says(t, health.DatabaseAway)
			time.Sleep(awayFor)
			db.start(t, v.port)
			c.runsWithout(t, health.DatabaseAway, health.DatabaseRefuses)
			c.hasKept(t)
			if after := c.containers(t); after != before {
				t.Errorf("containers before:\n%s\nand after:\n%s", before, after)
			}
			st, err := c.status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range st.Components {
				if p.Restarts > 0 {
					t.Errorf("%s was restarted %d times: %s", p.Name, p.Restarts, p.LastExit)
				}
			}
			c.in(within(t, limit), "k1s", "backup", "create", "--name", "kept").wants(t, 0)
			c.in(within(t, limit), "k1s", "backup", "verify", keptBackup).wants(t, 0)
			switch name { // of those that can be brought forward without writing
			case "postgresql":
				c.goesRound(t, name, stop, func() string { return strings.TrimSuffix(db.dsn(databasePassword), "k1s") + "another" })
			case "nats":
				c.goesRound(t, name, stop, func() string {
					db.stop(t)
					if err := os.RemoveAll(db.path("data")); err != nil {
						t.Fatal(err)
					}
					db.start(t, v.port)
					return db.dsn(databasePassword)
				})
			}
		})
	}
}

const keptBackup = "/var/lib/k1s/backups/kept.tar.zst"

// goesRound restores a backup of what storesAndWatches has stored, which was made of a database of others, into SQLite and then into an empty
// database, whose URL empty gives. stop stops the node's daemon.
func (c *Cluster) goesRound(t *testing.T, engine string, stop func(), empty func() string) {
	t.Helper()
	back := func(engine string, target ...string) {
		t.Helper()
		stop()
		c.in(within(t, limit), append([]string{"k1s", "backup", "restore", keptBackup, "--yes"}, target...)...).wants(t, 0)
		stop = c.serves(t)
		c.running(t)
		c.hasKept(t)
		if d, err := control.NewClient(c.where().ControlSocket).Datastore(t.Context()); err != nil || !strings.EqualFold(d.Engine, engine) {
			t.Errorf("the state is in %s: %v", d.Engine, err)
		}
	}
	c.kubectl(t, "delete", "configmap", "one", "-n", "kept")
	stop()
	c.in(within(t, limit), "k1s", "backup", "restore", keptBackup, "--yes").wants(t, 1, "the datastore to restore to is not empty")
	back("sqlite", "--to", "sqlite")
	c.kubectl(t, "delete", "configmap", "one", "-n", "kept")
	stop()
	c.put(t, []byte(empty()+"\n"), "/etc/k1s/another")
	c.in(within(t, limit), "chmod", "600", "/etc/k1s/another").wants(t, 0)
	back(engine, "--to-file", "/etc/k1s/another", "--ca-file", "/etc/k1s/db/ca.crt", "--cert-file", "/etc/k1s/db/client.crt", "--key-file", "/etc/k1s/db/client.key")
}

// named configures the database with a URL in a file.
func (c *Cluster) named(t *testing.T, dsn string) {
	t.Helper()
	c.put(t, []byte(dsn+"\n"), "/etc/k1s/datastore")
	c.in(within(t, limit), "chmod", "600", "/etc/k1s/datastore").wants(t, 0)
	c.put(t, []byte(`apiVersion: k1s.io/v1alpha1
kind: Config
spec:
  datastore:
    endpoint: null
    endpointFile: /etc/k1s/datastore
    caFile: /etc/k1s/db/ca.crt
    certFile: /etc/k1s/db/client.crt
    keyFile: /etc/k1s/db/client.key
`), "/etc/k1s/config.d/90-datastore.yaml")
}

// serves starts the node's daemon, with more in its environment; it ends when the returned function is called, and with the test.
func (c *Cluster) serves(t *testing.T, environ ...string) (stop func()) {
	t.Helper()
	ended := make(chan result, 1)
	go func() {
		ended <- c.in(context.Background(), append(append([]string{"env"}, environ...), "k1s", "server")...)
	}()
	done := false
	stop = func() {
		if done {
			return
		}
		done = true
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		stopped := c.in(ctx, "k1s", "stop")
		select {
		case r := <-ended:
			if err := errors.Join(stopped.error(), r.error()); err != nil {
				t.Errorf("stopping: %v", err)
			}
			if t.Failed() {
				t.Log(lastLines(r.err, 30))
			}
		case <-ctx.Done():
			t.Errorf("the server does not end: %v", stopped)
		}
	}
	t.Cleanup(stop)
	eventually(t, limit, "the daemon to answer", func(ctx context.Context) error {
		_, err := c.status(ctx)
		return err
	})
	return stop
}

// says waits until a problem is shown, with a remedy.
func (c *Cluster) says(t *testing.T, code health.Code) {
	t.Helper()
	eventually(t, limit, string(code)+" to be reported", func(ctx context.Context) error {
		st, err := c.status(ctx)
		if err != nil {
			return err
		}
		for _, p := range st.Problems {
			if p.Code == code && p.Remedy != "" {
				return nil
			}
		}
		return fmt.Errorf("problems: %+v", st.Problems)
	})
}

// runsWithout waits until the node runs and none of the problems is left.
func (c *Cluster) runsWithout(t *testing.T, codes ...health.Code) {
	t.Helper()
	c.running(t)
	eventually(t, limit, "the problems to be gone", func(ctx context.Context) error {
		st, err := c.status(ctx)
		if err != nil {
			return err
		}
		if st.State != control.Running {
			return fmt.Errorf("it is %s", st.State)
		}
		for _, p := range st.Problems {
			for _, code := range codes {
				if p.Code == code {
					return errors.New(p.String())
				}
			}
		}
		return nil
	})
}

const things = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {kind: Thing, plural: things, singular: thing}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

// storesAndWatches does what a datastore is for.
func (c *Cluster) storesAndWatches(t *testing.T) {
	t.Helper()
	c.kubectl(t, "create", "namespace", "kept")
	c.kubectl(t, "create", "configmap", "one", "-n", "kept", "--from-literal=word=first")
	changed := make(chan result, 1)
	ctx := within(t, limit)
	go func() {
		changed <- c.try(ctx, "wait", "-n", "kept", "--for=jsonpath={.data.word}=second", "configmap/one", "--timeout=4m")
	}()
	c.kubectl(t, "patch", "configmap", "one", "-n", "kept", "-p", `{"data":{"word":"second"}}`)
	if r := <-changed; r.failure != nil {
		t.Errorf("a watch did not tell of the change: %v", r.error())
	}
	apply := func(manifest string) {
		if err := c.k1sWith(within(t, limit), manifest, "cluster", "kubectl", c.name, "--", "apply", "-f", "-").error(); err != nil {
			t.Fatal(err)
		}
	}
	apply(things)
	// kubectl wait gives up at once on a definition that has no conditions yet.
	c.untilOutput(t, limit, "things to be a kind", is("True"), "get", "crd", "things.example.com", "-o", `jsonpath={.status.conditions[?(@.type=="Established")].status}`)
	eventually(t, limit, "a thing to be accepted", func(ctx context.Context) error {
		return c.k1sWith(ctx, "apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: red, namespace: kept}\ncolor: red\n",
			"cluster", "kubectl", c.name, "--", "apply", "-f", "-").error()
	})
	// Many objects, some of them deleted again, and a large one.
	var many strings.Builder
	for i := range 100 {
		fmt.Fprintf(&many, "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: many-%02d, namespace: kept, labels: {part: 'm%d'}}\ndata: {v: %q}\n", i, i%2, strings.Repeat("x", i*10))
	}
	apply(many.String())
	c.kubectl(t, "delete", "configmap", "-n", "kept", "-l", "part=m1")
	apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: large, namespace: kept}\ndata: {v: " + strings.Repeat("y", 200_000) + "}\n")
	c.hasKept(t)
}

// hasKept checks what storesAndWatches stored.
func (c *Cluster) hasKept(t *testing.T) {
	t.Helper()
	for want, args := range map[string]string{
		"second":                  "get configmap one -n kept -o jsonpath={.data.word}",
		"red":                     "get thing red -n kept -o jsonpath={.color}",
		strings.Repeat("m0 ", 50): "get configmaps -n kept -l part -o jsonpath={range.items[*]}{.metadata.labels.part}{'_'}{end}",
	} {
		if got := strings.ReplaceAll(c.kubectl(t, strings.Fields(args)...), "_", " "); got != want {
			t.Errorf("kubectl %s: %q, want %q", args, got, want)
		}
	}
	if got := c.kubectl(t, "get", "configmap", "large", "-n", "kept", "-o", "jsonpath={.data.v}"); len(got) != 200_000 {
		t.Errorf("the large one has %d bytes", len(got))
	}
}

// hidesPassword looks for a password where others could see it.
func (c *Cluster) hidesPassword(t *testing.T, password string) {
	t.Helper()
	for _, args := range [][]string{{"config", "print"}, {"config", "print", "-o", "json"}, {"status"}, {"status", "-o", "json"}, {"server", "--dry-run"}, {"logs", "kine"}} {
		if r := c.in(within(t, limit), append([]string{"k1s"}, args...)...); strings.Contains(r.out+r.err, password) {
			t.Errorf("k1s %s tells the password", strings.Join(args, " "))
		}
	}
	for _, pid := range c.processes(t) {
		for _, what := range []string{"cmdline", "environ"} {
			if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, what)); err == nil && strings.Contains(string(raw), password) {
				t.Errorf("the %s of process %d has the password", what, pid)
			}
		}
	}
	found := c.in(within(t, limit), "sh", "-c", "grep -rlsF --exclude-dir=payload --exclude-dir=containerd "+password+" /var/lib/k1s /run/k1s /etc/k1s || true")
	for file := range strings.FieldsSeq(found.out) {
		if base := filepath.Base(file); base != "datastore" {
			t.Errorf("the password is in %s", file)
		}
		if mode := strings.TrimSpace(c.in(within(t, limit), "stat", "-c", "%a", file).out); mode != "600" {
			t.Errorf("%s has mode %s", file, mode)
		}
	}
}
