//go:build system

package system

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/health"
)

// kineProcess is kine beside a database, without a node.
type kineProcess struct {
	db  *database
	cmd *exec.Cmd
}

func (d *database) kine(t *testing.T, program, dsn string) *kineProcess {
	t.Helper()
	file := d.write(t, "dsn", dsn+"\n")
	_ = os.Remove(d.path("status"))
	k := &kineProcess{db: d, cmd: exec.Command(program, "kine", "--listen=unix://"+d.path("kine.sock"), "--endpoint-file="+file,
		"--status-file="+d.path("status"), "--ca-file="+d.path("ca.crt"), "--cert-file="+d.path("client.crt"), "--key-file="+d.path("client.key"))}
	log, err := os.OpenFile(d.path("kine.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	k.cmd.Stdout, k.cmd.Stderr = log, log
	if err := d.in.start(k.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.stop(t) })
	return k
}

func (k *kineProcess) stop(t *testing.T) {
	t.Helper()
	if k.cmd == nil {
		return
	}
	_ = k.cmd.Process.Signal(unix.SIGTERM)
	late := time.AfterFunc(limit, func() { _ = k.cmd.Process.Kill() })
	defer late.Stop()
	_ = k.cmd.Wait()
	k.cmd = nil
}

// says waits until kine reports exactly this problem; "" for none.
func (k *kineProcess) says(t *testing.T, code health.Code, words string) {
	t.Helper()
	eventually(t, limit, fmt.Sprintf("kine to report %q", code), func(context.Context) error {
		raw, err := os.ReadFile(k.db.path("status"))
		if err != nil {
			return err
		}
		var report struct{ Problems []health.Problem }
		if err := json.Unmarshal(raw, &report); err != nil {
			return err
		}
		if code == "" && len(report.Problems) == 0 {
			return nil
		}
		if len(report.Problems) == 1 && report.Problems[0].Code == code && strings.Contains(report.Problems[0].Text, words) && report.Problems[0].Remedy != "" {
			return nil
		}
		return fmt.Errorf("it says %s", raw)
	})
}

func (k *kineProcess) client(t *testing.T) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + k.db.path("kine.sock")}, DialTimeout: limit})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestKineWaitsForADatabaseSaysWhatIsWrongAndGetsOverItsAbsence(t *testing.T) {
	t.Parallel()
	root(t)
	for name, v := range map[string]struct {
		port  string
		start func(*testing.T, network) *database
	}{"postgresql": {"5432", postgres}, "mariadb": {"3306", mariadb}, "nats": {"4222", natsServer}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			program, in := kube(t), newNetwork(t)
			in.run(t, "ip link set lo up")
			db := v.start(t, in)
			k := db.kine(t, program, db.dsn("wr0ngpassword"))
			k.says(t, health.DatabaseAway, "does not answer")
			db.start(t, v.port)
			k.says(t, health.DatabaseRefuses, "does not let this user in")
			k.stop(t)
			if db.guest != "" {
				k = db.kine(t, program, db.guest)
				k.says(t, health.DatabaseRefuses, "does not let this user make tables")
				k.stop(t)
			}

			k = db.kine(t, program, db.dsn(databasePassword))
			k.says(t, "", "")
			c := k.client(t)
			w := c.Watch(t.Context(), "/kept/", clientv3.WithPrefix())
			create := func(key string) {
				t.Helper()
				eventually(t, limit, key+" to be written", func(ctx context.Context) error {
					r, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, "value of "+key)).Else(clientv3.OpGet(key)).Commit()
					if err == nil && !r.Succeeded && len(r.Responses[0].GetResponseRange().Kvs) == 0 {
						err = fmt.Errorf("refused: %v", r)
					}
					return err
				})
			}
			told := func(key string) {
				t.Helper()
				for {
					select {
					case r := <-w:
						if err := r.Err(); err != nil {
							t.Fatal(err)
						}
						for _, e := range r.Events {
							if string(e.Kv.Key) == key {
								return
							}
						}
					case <-time.After(limit):
						t.Fatalf("the watch does not tell of %s", key)
					}
				}
			}
			create("/kept/1")
			told("/kept/1")

			db.stop(t)
			k.says(t, health.DatabaseAway, "does not answer")
			db.start(t, v.port)
			k.says(t, "", "")
			create("/kept/2")
			told("/kept/2")
			pid := k.cmd.Process.Pid
			if !processOf(pid).alive() {
				t.Error("kine ended when the database was away")
			}
			for _, what := range []string{"cmdline", "environ"} {
				if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, what)); err != nil || strings.Contains(string(raw), databasePassword) {
					t.Errorf("the password is in its %s, %v", what, err)
				}
			}
			k.stop(t)

			k = db.kine(t, program, db.dsn(databasePassword))
			k.says(t, "", "")
			got, err := k.client(t).Get(within(t, limit), "/kept/", clientv3.WithPrefix())
			if err != nil || len(got.Kvs) != 2 || string(got.Kvs[0].Value) != "value of /kept/1" {
				t.Errorf("after a restart: %v, %v", got, err)
			}
			k.stop(t)
			for _, file := range []string{"kine.log", "status"} {
				raw, err := os.ReadFile(db.path(file))
				if err != nil || strings.Contains(string(raw), databasePassword) || strings.Contains(string(raw), "wr0ngpassword") {
					t.Errorf("the password is in %s, %v", file, err)
				}
			}
		})
	}
}
