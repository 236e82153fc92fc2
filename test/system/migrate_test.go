//go:build system

package system

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/migration"
)

// api is a client of a node's API server, with the administrator's certificate.
type api struct {
	http *http.Client
	base string
}

func (c *Cluster) api(t *testing.T) *api {
	t.Helper()
	return administratorOf(t, c.disk("etc/admin.kubeconfig"), c.network(t))
}

// administratorOf is the client of a node, from inside of its network.
func administratorOf(t *testing.T, file string, in network) *api {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var k struct {
		Clusters []struct {
			Cluster struct {
				CA string `yaml:"certificate-authority-data"`
			} `yaml:"cluster"`
		} `yaml:"clusters"`
		Users []struct {
			User struct {
				Cert string `yaml:"client-certificate-data"`
				Key  string `yaml:"client-key-data"`
			} `yaml:"user"`
		} `yaml:"users"`
	}
	if err := yaml.Unmarshal(raw, &k); err != nil || len(k.Clusters) == 0 || len(k.Users) == 0 {
		t.Fatalf("the administrator's kubeconfig: %v", err)
	}
	plain := func(s string) []byte {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	pair, err := tls.X509KeyPair(plain(k.Users[0].User.Cert), plain(k.Users[0].User.Key))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(plain(k.Clusters[0].Cluster.CA))
	transport := &http.Transport{
		DialContext:         in.dial,
		TLSClientConfig:     &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
		MaxIdleConnsPerHost: 32,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &api{&http.Client{Transport: transport, Timeout: 20 * time.Second}, "https://127.0.0.1:6443"}
}

// object is what these tests read of one.
type object struct {
	Metadata struct {
		Name            string `json:"name"`
		UID             string `json:"uid"`
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
	Data map[string]string `json:"data"`
}

// do asks, and an error of it means that the answer is not known.
func (a *api) do(ctx context.Context, method, path string, body any) (object, int, error) {
	var o object
	raw, err := json.Marshal(body)
	if err != nil {
		return o, 0, err
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, bytes.NewReader(raw))
	if err != nil {
		return o, 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.http.Do(req)
	if err != nil {
		return o, 0, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		return o, resp.StatusCode, errors.Join(err, fmt.Errorf("%s %s: %s: %.200s", method, path, resp.Status, answer))
	}
	return o, resp.StatusCode, json.Unmarshal(answer, &o)
}

// raw reads an answer as it comes, for as long as it does.
func (a *api) raw(ctx context.Context, path string, read func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+path, nil)
	if err != nil {
		return err
	}
	client := *a.http
	client.Timeout = 0
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return read(resp.Body)
}

const counterPath = "/api/v1/namespaces/default/configmaps"

func configMap(name, value string) map[string]any {
	return map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name}, "data": map[string]string{"n": value}}
}

// counters are ConfigMaps that count up, each by a writer of its own.
type counters struct {
	t   *testing.T
	api *api

	mu       sync.Mutex     // guards what follows
	acked    []int          // the last value of each that was acknowledged
	revision []int          // and where
	writes   map[int]change // all that were acknowledged, by revision
	back     []string       // revisions that went backwards
	refused  int
	longest  time.Duration // between two acknowledged writes of one writer
}

const (
	writers = 4
	// pace is the pause after each write. Eighty writes a second are on their way whenever something is moved or
	// killed; as many as the API can take would be most of what all tests together use of the processors.
	pace = 50 * time.Millisecond
)

func (c *Cluster) counts(t *testing.T) (_ *counters, stop func()) {
	t.Helper()
	n := newCounters(t, c.api(t))
	return n, n.start()
}

const counterPrefix = "counter-"

func counterName(i int) string { return counterPrefix + strconv.Itoa(i) }

func newCounters(t *testing.T, a *api) *counters {
	t.Helper()
	n := &counters{t: t, api: a, acked: make([]int, writers), revision: make([]int, writers), writes: map[int]change{}}
	for i := range writers {
		eventually(t, limit, "a counter to be made", func(ctx context.Context) error {
			_, code, err := n.api.do(ctx, http.MethodPost, counterPath, configMap(counterName(i), "0"))
			if code == http.StatusConflict { // the answer to the one before was lost
				err = nil
			}
			return err
		})
	}
	return n
}

func (n *counters) start() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for i := range writers {
		all.Go(func() { n.write(ctx, i) })
	}
	stopped := sync.OnceFunc(func() { cancel(); all.Wait() })
	n.t.Cleanup(stopped)
	return stopped
}

// write changes what it has seen, so that a request of which nothing is known cannot overtake a later one.
func (n *counters) write(ctx context.Context, i int) {
	name, last := counterName(i), time.Now()
	path := counterPath + "/" + name
	seen, value := "", 0
	for ctx.Err() == nil {
		var o object
		var err error
		if seen == "" {
			if o, _, err = n.api.do(ctx, http.MethodGet, path, nil); err == nil {
				seen = o.Metadata.ResourceVersion
				if value, err = strconv.Atoi(o.Data["n"]); err == nil {
					n.mu.Lock()
					if value < n.acked[i] {
						n.back = append(n.back, fmt.Sprintf("%s is %d, and %d was acknowledged", name, value, n.acked[i]))
					}
					n.mu.Unlock()
				}
			}
		} else {
			next := configMap(name, strconv.Itoa(value+1))
			next["metadata"].(map[string]any)["resourceVersion"] = seen
			if o, _, err = n.api.do(ctx, http.MethodPut, path, next); err == nil {
				value++
				seen = o.Metadata.ResourceVersion
				rev, bad := strconv.Atoi(seen)
				n.mu.Lock()
				if bad != nil || rev <= n.revision[i] {
					n.back = append(n.back, fmt.Sprintf("%s=%d has revision %q after %d", name, value, seen, n.revision[i]))
				}
				if was, ok := n.writes[rev]; ok {
					n.back = append(n.back, fmt.Sprintf("%s=%d is acknowledged at revision %d, as was %v", name, value, rev, was))
				}
				n.acked[i], n.revision[i], n.writes[rev] = value, rev, change{name, strconv.Itoa(value)}
				n.longest = max(n.longest, time.Since(last))
				last = time.Now()
				n.mu.Unlock()
			}
		}
		if err != nil && ctx.Err() == nil {
			seen = ""
			n.mu.Lock()
			n.refused++
			n.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(pace):
		}
	}
}

// check finds every acknowledged write, or a later one, and that time has not gone back.
func (n *counters) check(t *testing.T) {
	t.Helper()
	n.mu.Lock()
	acked, revision := append([]int(nil), n.acked...), append([]int(nil), n.revision...)
	if len(n.back) > 0 {
		t.Errorf("time went back: %q", n.back)
	}
	t.Logf("acknowledged %v, refused or unknown %d, longest pause %s", acked, n.refused, n.longest.Round(time.Millisecond))
	n.longest = 0
	n.mu.Unlock()
	for i := range writers {
		var o object
		eventually(t, limit, "a counter to be read", func(ctx context.Context) (err error) {
			o, _, err = n.api.do(ctx, http.MethodGet, fmt.Sprintf("%s/counter-%d", counterPath, i), nil)
			return err
		})
		value, err := strconv.Atoi(o.Data["n"])
		rev, err2 := strconv.Atoi(o.Metadata.ResourceVersion)
		if err != nil || err2 != nil || value < acked[i] || rev < revision[i] {
			t.Errorf("counter-%d is %q at %s, and %d at %d was acknowledged", i, o.Data["n"], o.Metadata.ResourceVersion, acked[i], revision[i])
		}
	}
}

// datastore asks the node's daemon.
func (c *Cluster) datastore(ctx context.Context) (control.Datastore, error) {
	return control.NewClient(c.where().ControlSocket).Datastore(ctx)
}

// migrates runs a move to its end.
func (c *Cluster) migrates(t *testing.T, args ...string) migration.State {
	t.Helper()
	r := c.in(within(t, 2*limit), append([]string{"k1s", "datastore"}, append(args, "-o", "json")...)...)
	if err := r.error(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, r.err)
	}
	var s migration.State
	if err := json.Unmarshal([]byte(r.out), &s); err != nil {
		t.Fatalf("%v: %s", err, r.out)
	}
	if s.Phase != migration.Done || s.Result == nil || s.Result.Keys < 100 || s.Result.TargetRevision <= s.Result.SourceRevision {
		t.Fatalf("k1s datastore %s: %+v", strings.Join(args, " "), s)
	}
	for _, row := range s.Result.Rows {
		if s.Kind == migration.Migrate && !row.Equal() {
			t.Errorf("%s differs: %+v", row.Prefix, row)
		}
	}
	t.Logf("%s to %s: %d keys, %d KiB, %d late, revisions %d → %d, in %s, the control plane was away for %.2fs", s.From, s.To, s.Result.Keys, s.Result.Bytes>>10, s.Result.Late,
		s.Result.SourceRevision, s.Result.TargetRevision, s.Ended.Sub(s.Since), s.PausedS)
	c.running(t)
	return s
}

// database makes what the node may migrate to, and returns the arguments that say so.
func (c *Cluster) database(t *testing.T, name string, start func(*testing.T, network) *database, port string) (*database, []string) {
	t.Helper()
	db := start(t, c.network(t))
	db.start(t, port)
	args := []string{"migrate", "--to-file", "/etc/k1s/db/" + name + "-url"}
	c.put(t, []byte(db.dsn(databasePassword)+"\n"), "/etc/k1s/db/"+name+"-url")
	c.in(within(t, limit), "chmod", "600", "/etc/k1s/db/"+name+"-url").wants(t, 0)
	for flag, f := range map[string]string{"--ca-file": "ca.crt", "--cert-file": "client.crt", "--key-file": "client.key"} {
		raw, err := os.ReadFile(db.path(f))
		if err != nil {
			t.Fatal(err)
		}
		c.put(t, raw, "/etc/k1s/db/"+name+"-"+f)
		args = append(args, flag, "/etc/k1s/db/"+name+"-"+f)
	}
	return db, args
}

// watched is told of all counters through everything that happens to the cluster, as an informer is. check, called when the writers have
// ended, wants it to have been told of every write that was acknowledged.
func (n *counters) watched(t *testing.T) (check func()) {
	t.Helper()
	w := &watcher{api: n.api, path: counterPath, prefix: counterPrefix}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { w.run(ctx) })
	stop := sync.OnceFunc(func() { cancel(); done.Wait() })
	t.Cleanup(stop)
	return func() {
		t.Helper()
		n.mu.Lock()
		acked := maps.Clone(n.writes)
		n.mu.Unlock()
		if len(acked) == 0 {
			t.Fatal("no write was acknowledged")
		}
		if err := w.until(within(t, limit), slices.Max(slices.Collect(maps.Keys(acked)))); err != nil {
			t.Error(err)
		}
		stop()
		checkWatchers(t, acked, map[string]*watcher{"this machine": w})
	}
}

func TestTheStateMovesBetweenAllDatastoresUnderWrites(t *testing.T) {
	t.Parallel()
	c := created(t, "move")
	c.running(t)
	n, stop := c.counts(t)
	wasTold := n.watched(t)
	c.storesAndWatches(t)
	c.settled(t)
	before := c.containers(t)
	uid := c.kubectl(t, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")
	moved := func(s migration.State) {
		t.Helper()
		n.check(t)
		c.hasKept(t)
		if got := c.kubectl(t, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"); got != uid {
			t.Errorf("kube-system was %s and is %s", uid, got)
		}
		eventually(t, limit, "k1s datastore to tell where the state is", func(ctx context.Context) error {
			d, err := c.datastore(ctx) // what the API server does not tell in time is left out
			if err == nil && (d.Identity != s.To.Identity || d.Revision <= s.Result.SourceRevision || d.Bytes == 0) {
				err = fmt.Errorf("%s at revision %d, %d bytes", d.Identity, d.Revision, d.Bytes)
			}
			return err
		})
	}

	_, toPostgres := c.database(t, "pg", postgres, "5432")
	plan := c.in(within(t, limit), append([]string{"k1s", "datastore"}, append(toPostgres, "--dry-run")...)...)
	if plan.failure != nil || !strings.Contains(plan.out, "127.0.0.1:5432") || !strings.Contains(plan.out, " keys, ") {
		t.Errorf("the plan: %v", plan)
	}
	moved(c.migrates(t, toPostgres...))
	c.hidesPasswords(t)
	moved(c.migrates(t, "migrate", "--to", "etcd"))
	c.in(within(t, limit), "k1s", "datastore", "migrate", "--to", "sqlite").wants(t, 1, "not empty", "--replace")
	n.check(t)
	moved(c.migrates(t, "migrate", "--to", "sqlite", "--replace", "--yes"))
	for _, v := range []struct {
		name, port string
		start      func(*testing.T, network) *database
	}{{"mysql", "3306", mariadb}, {"nats", "4222", natsServer}, {"etcd", "12379", etcdServer}} {
		_, args := c.database(t, v.name, v.start, v.port)
		moved(c.migrates(t, args...))
	}
	// What is configured is what the next start uses, also without a daemon that knows.
	was := c.running(t)
	kill(t, was.PID)
	c.otherDaemon(t, was)
	n.check(t)

	// Back to NATS, without what was written since.
	stop()
	n.check(t)
	wasTold()
	c.kubectl(t, "create", "configmap", "since", "-n", "kept")
	r := c.in(within(t, limit), "k1s", "datastore", "rollback", "--dry-run")
	if r.failure != nil || !strings.Contains(r.out, "/registry/configmaps") || !strings.Contains(r.out, "nats://") {
		t.Errorf("what a rollback would lose: %v", r)
	}
	c.in(within(t, limit), "k1s", "datastore", "rollback").wants(t, 2, "--yes")
	last := n.revision[0]
	c.migrates(t, "rollback", "--yes")
	c.hasKept(t)
	if r := c.try(within(t, limit), "get", "configmap", "since", "-n", "kept"); r.failure == nil {
		t.Error("what was written after the migration is there after the rollback")
	}
	var o object
	eventually(t, limit, "a write after the rollback", func(ctx context.Context) (err error) {
		o, _, err = n.api.do(ctx, http.MethodPut, counterPath+"/counter-0", configMap("counter-0", "1"))
		return err
	})
	if rev, err := strconv.Atoi(o.Metadata.ResourceVersion); err != nil || rev <= last {
		t.Errorf("after the rollback a write has revision %s; before it was %d", o.Metadata.ResourceVersion, last)
	}
	if after := c.containers(t); after != before {
		t.Errorf("containers before:\n%s\nand after:\n%s", before, after)
	}
}

// hidesPasswords looks where a password could be seen; the drop-in and what keeps the way back may have it, for root.
func (c *Cluster) hidesPasswords(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{{"datastore"}, {"datastore", "-o", "json"}, {"config", "print"}, {"status", "-o", "json"}, {"logs", "kine"}} {
		if r := c.in(within(t, limit), append([]string{"k1s"}, args...)...); strings.Contains(r.out+r.err, databasePassword) {
			t.Errorf("k1s %s tells the password", strings.Join(args, " "))
		}
	}
	found := c.in(within(t, limit), "sh", "-c", "grep -rlsF --exclude-dir=payload --exclude-dir=containerd "+databasePassword+" /var/lib/k1s /run/k1s /etc/k1s || true")
	for file := range strings.FieldsSeq(found.out) {
		if mode := strings.TrimSpace(c.in(within(t, limit), "stat", "-c", "%a", file).out); mode != "600" || strings.HasSuffix(file, ".log") {
			t.Errorf("the password is in %s, which has mode %s", file, mode)
		}
	}
}

// during waits until a move is in one of the phases.
func (c *Cluster) during(t *testing.T, phases ...migration.Phase) {
	t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		d, err := c.datastore(t.Context())
		if err != nil || d.Move == nil {
			continue
		}
		for _, p := range phases {
			if d.Move.Phase == p {
				return
			}
		}
		if !d.Move.Active() {
			t.Fatalf("the move was over before it was %s: %+v", phases, d.Move)
		}
	}
	t.Fatalf("the move was never %s", phases)
}

func TestAMoveThatIsKilledLeavesTheClusterWhereItWas(t *testing.T) {
	t.Parallel()
	c := created(t, "movekill")
	c.running(t)
	n, _ := c.counts(t)
	// Enough that copying takes a while.
	var filling sync.WaitGroup
	for w := range 8 {
		filling.Go(func() {
			for i := range 250 {
				if _, _, err := n.api.do(t.Context(), http.MethodPost, counterPath, configMap(fmt.Sprintf("fill-%d-%d", w, i), strings.Repeat("x", 1000))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	filling.Wait()
	db, toPostgres := c.database(t, "pg", postgres, "5432")
	begin := func() {
		t.Helper()
		client := control.NewClient(c.where().ControlSocket)
		r := control.DatastoreRequest{Action: migration.Migrate}
		for i, a := range toPostgres {
			switch a {
			case "--to-file":
				r.EndpointFile = toPostgres[i+1]
			case "--ca-file":
				r.CAFile = toPostgres[i+1]
			case "--cert-file":
				r.CertFile = toPostgres[i+1]
			case "--key-file":
				r.KeyFile = toPostgres[i+1]
			}
		}
		if _, err := client.MoveDatastore(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	still := func(words string) {
		t.Helper()
		eventually(t, limit, "the move to have failed", func(ctx context.Context) error {
			d, err := c.datastore(ctx)
			if err == nil && (d.Move == nil || d.Move.Phase != migration.Failed) {
				err = fmt.Errorf("it is %+v", d.Move)
			}
			return err
		})
		c.running(t)
		d, err := c.datastore(t.Context())
		if err != nil || d.Engine != "sqlite" || !strings.Contains(d.Move.Error, words) {
			t.Errorf("%+v, %+v, %v", d, d.Move, err)
		}
		n.check(t)
	}
	pid := func() int {
		t.Helper()
		st, err := c.status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st.PID
	}
	recovers := func() {
		t.Helper()
		db.start(t, "5432")
		eventually(t, limit, "the database to have recovered", func(ctx context.Context) error {
			return c.in(ctx, append([]string{"k1s", "datastore"}, append(toPostgres, "--dry-run")...)...).error()
		})
	}
	// killedWhile kills the daemon in one of the phases: it is held still to see that it is in it.
	killedWhile := func(was int, phases ...migration.Phase) {
		t.Helper()
		c.during(t, phases...)
		if err := unix.Kill(was, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(c.disk("var/lib/k1s/datastore/migration.json"))
		s, uerr := migration.Unmarshal(b)
		kill(t, was)
		if err := errors.Join(err, uerr); err != nil || !slices.Contains(phases, s.Phase) {
			t.Fatalf("it was %s when it was killed, not %s: %v", s.Phase, phases, err)
		}
		eventually(t, limit, "another daemon", func(ctx context.Context) error {
			now, err := c.status(ctx)
			if err == nil && now.PID == was {
				err = errors.New("it is still the old one")
			}
			return err
		})
	}

	inTurn(t, "the daemon, while it copies", func(t *testing.T) {
		was := pid()
		begin()
		killedWhile(was, migration.Copying)
		still("k1s ended while it was copying")
	})
	inTurn(t, "the database, while it copies", func(t *testing.T) {
		begin()
		c.during(t, migration.Copying)
		db.kill(t)
		still("")
		recovers()
	})
	inTurn(t, "the daemon, while the API is stopped", func(t *testing.T) {
		was := pid()
		begin()
		killedWhile(was, migration.Pausing, migration.Finishing)
		still("k1s ended while it was")
	})
	inTurn(t, "the database, while the API is stopped", func(t *testing.T) {
		begin()
		c.during(t, migration.Finishing)
		db.kill(t)
		still("")
		recovers()
	})
	inTurn(t, "the next attempt", func(t *testing.T) {
		s := c.migrates(t, toPostgres...)
		if s.To.Engine != "PostgreSQL" {
			t.Errorf("it went to %s", s.To)
		}
		n.check(t)
	})
	inTurn(t, "the daemon, after the configuration was changed", func(t *testing.T) {
		was := pid()
		if _, err := control.NewClient(c.where().ControlSocket).MoveDatastore(t.Context(), control.DatastoreRequest{Action: migration.Migrate, Endpoint: "etcd"}); err != nil {
			t.Fatal(err)
		}
		killedWhile(was, migration.Starting)
		eventually(t, limit, "the move to be done", func(ctx context.Context) error {
			d, err := c.datastore(ctx)
			if err == nil && (d.Move == nil || d.Move.Phase != migration.Done || d.Engine != "etcd") {
				err = fmt.Errorf("it is %+v", d.Move)
			}
			return err
		})
		c.running(t)
		n.check(t)
	})
	inTurn(t, "the control plane, while it copies", func(t *testing.T) {
		st := c.running(t)
		if _, err := control.NewClient(c.where().ControlSocket).MoveDatastore(t.Context(), control.DatastoreRequest{Action: migration.Migrate, Endpoint: "sqlite", Replace: true}); err != nil {
			t.Fatal(err)
		}
		c.during(t, migration.Copying)
		for _, p := range st.Components {
			if p.Name == "kube-apiserver" {
				kill(t, p.PID)
			}
		}
		// Whether it gets over that depends on how far it was.
		eventually(t, limit, "the move to have ended", func(ctx context.Context) error {
			d, err := c.datastore(ctx)
			if err == nil && (d.Move.Active() || d.Move.Phase == migration.Failed && d.Engine != "etcd" || d.Move.Phase == migration.Done && d.Engine != "sqlite") {
				err = fmt.Errorf("it is %+v", d.Move)
			}
			return err
		})
		c.running(t)
		n.check(t)
	})
}

// kill ends all processes of the server at once, as a power cut.
func (d *database) kill(t *testing.T) {
	t.Helper()
	pid := d.cmd.Process.Pid
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Error(err)
	}
	var all []process
	for child := range strings.FieldsSeq(string(children)) {
		if n, err := strconv.Atoi(child); err == nil {
			all = append(all, processOf(n))
		}
	}
	if err := d.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = d.cmd.Wait()
	d.cmd = nil
	eventually(t, limit, "the server's processes to be gone, as they do without it", func(context.Context) error {
		for _, p := range all {
			if p.alive() {
				return fmt.Errorf("%d runs", p.pid)
			}
		}
		return nil
	})
}
