//go:build system

package system

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/restore"
)

// revisions follows all ConfigMaps of a namespace as an informer does, and notes when time goes back.
type revisions struct {
	last, begun int // the latest revision, and how often everything was read
	back        []string
}

// follows runs until the returned function is called, which first lets it come to a revision and to so many readings of everything.
func (c *Cluster) follows(t *testing.T, path string) (stop func(last, begun int) revisions) {
	t.Helper()
	a := c.api(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan revisions, 1)
	var seen, lists atomic.Int64 // what r has, for others
	go func() {
		var r revisions
		note := func(what, revision string) {
			n, err := strconv.Atoi(revision)
			defer func() { seen.Store(int64(r.last)) }()
			if err != nil || n < r.last {
				r.back = append(r.back, fmt.Sprintf("%s tells of %q after %d", what, revision, r.last))
			}
			r.last = max(r.last, n)
		}
		for ctx.Err() == nil {
			var list object
			if err := a.raw(ctx, path, func(body io.Reader) error { return json.NewDecoder(body).Decode(&list) }); err != nil {
				time.Sleep(20 * time.Millisecond)
				continue
			}
			r.begun++
			lists.Add(1)
			note("a list", list.Metadata.ResourceVersion)
			for err := error(nil); err == nil && ctx.Err() == nil; {
				err = a.raw(ctx, path+"?watch=true&resourceVersion="+strconv.Itoa(r.last), func(body io.Reader) error {
					for dec := json.NewDecoder(body); ; {
						var e struct {
							Type   string `json:"type"`
							Object object `json:"object"`
						}
						if err := dec.Decode(&e); err != nil {
							// A watch that ends is begun again where it was, as informers do.
							time.Sleep(20 * time.Millisecond)
							return nil
						}
						if e.Type == "ERROR" {
							return errors.New("begin anew")
						}
						note("a watch", e.Object.Metadata.ResourceVersion)
					}
				})
				if err != nil && !strings.Contains(err.Error(), "begin anew") && !strings.Contains(err.Error(), "410") {
					time.Sleep(20 * time.Millisecond)
					err = nil // the API is away
				}
			}
		}
		done <- r
	}()
	return func(last, begun int) revisions {
		t.Helper()
		eventually(t, limit, "the watcher to see all of it", func(context.Context) error {
			if int(seen.Load()) <= last || int(lists.Load()) < begun {
				return fmt.Errorf("it is at %d after %d lists", seen.Load(), lists.Load())
			}
			return nil
		})
		cancel()
		r := <-done
		if len(r.back) > 0 {
			t.Errorf("time went back: %q", r.back)
		}
		return r
	}
}

func (c *Cluster) etcd(ctx context.Context) (control.Etcd, error) {
	return control.NewClient(c.where().ControlSocket).Etcd(ctx)
}

// restored is how far the last restore came, as the disk has it.
func (c *Cluster) restored() (etcdcare.Restore, error) {
	b, err := os.ReadFile(c.disk("var/lib/k1s/datastore/etcd-restore.json"))
	if err != nil {
		return etcdcare.Restore{}, err
	}
	return restore.Unmarshal[etcdcare.Entry](b)
}

// killedWhile begins a restore and kills the daemon when it is in one of the phases.
func (c *Cluster) killedWhile(t *testing.T, snapshot string, phases ...restore.Phase) {
	t.Helper()
	was := c.running(t)
	begun, err := control.NewClient(c.where().ControlSocket).RestoreSnapshot(t.Context(), control.RestoreRequest{Snapshot: snapshot})
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		r, err := c.restored()
		if err == nil && r.ID == begun.Restore.ID {
			hit := false
			for _, p := range phases {
				hit = hit || r.Phase == p
			}
			if hit {
				kill(t, was.PID)
				t.Logf("killed while it was %s", r.Phase)
				break
			}
			if !r.Active() {
				t.Fatalf("it is over: %+v", r)
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not come to %v: %+v, %v", phases, r, err)
		}
	}
	c.otherDaemon(t, was)
}

func TestTheEmbeddedEtcdIsLookedAfter(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "config.yaml") // not flags: they are not known while nothing runs
	text := "apiVersion: k1s.io/v1alpha1\nkind: Config\nspec: {datastore: {endpoint: etcd}, etcd: {quota: 32, snapshots: {schedule: '* * * * *', keep: 1}}}\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := created(t, "etcd", "--config", config)
	c.running(t)
	a := c.api(t)
	put := func(name, value string) int {
		t.Helper()
		o, code, err := a.do(t.Context(), http.MethodPost, counterPath, configMap(name, value))
		if code == http.StatusConflict {
			o, _, err = a.do(t.Context(), http.MethodPut, counterPath+"/"+name, configMap(name, value))
		}
		if err != nil {
			t.Fatal(err)
		}
		revision, err := strconv.Atoi(o.Metadata.ResourceVersion)
		if err != nil {
			t.Fatal(err)
		}
		return revision
	}
	// has checks what the cluster has, "" for nothing.
	has := func(name, want string) {
		t.Helper()
		o, code, err := a.do(t.Context(), http.MethodGet, counterPath+"/"+name, nil)
		if code == http.StatusNotFound {
			err = nil
		}
		if err != nil || o.Data["n"] != want {
			t.Errorf("%s is %q, want %q: %v", name, o.Data["n"], want, err)
		}
	}
	c.settled(t)
	before := c.containers(t)
	put("value", "then")
	client := control.NewClient(c.where().ControlSocket)
	token, err := client.CreateToken(t.Context(), control.TokenRequest{Role: "agent", Description: "of before"})
	if err != nil {
		t.Fatal(err)
	}
	saved := c.in(within(t, limit), "k1s", "etcd", "snapshot", "save", "then", "-o", "json")
	var s control.Snapshots
	if err := json.Unmarshal([]byte(saved.out), &s); err != nil || len(s.Snapshots) != 1 || s.Snapshots[0].State != etcdcare.Complete || s.Snapshots[0].CA == "" {
		t.Fatalf("%v, %v", err, saved)
	}
	put("value", "now")
	c.in(within(t, limit), "k1s", "token", "revoke", token.ID).wants(t, 0, "revoked")
	seen := put("since", "1")
	unfollow := c.follows(t, counterPath)

	inTurn(t, "killed before the data has changed its place, nothing is done", func(t *testing.T) {
		c.killedWhile(t, "then", restore.Pausing, restore.Finishing)
		if r, err := c.restored(); err != nil || r.Phase != restore.Failed {
			t.Errorf("%+v, %v", r, err)
		}
		has("value", "now")
		has("since", "1")
		seen = max(seen, put("since", "2"))
	})
	inTurn(t, "a restore while it runs", func(t *testing.T) {
		plan := c.in(within(t, limit), "k1s", "etcd", "snapshot", "restore", "then", "--dry-run")
		plan.wants(t, 0)
		if !strings.Contains(plan.out, "is put aside") {
			t.Errorf("the plan: %v", plan)
		}
		c.in(within(t, limit), "k1s", "etcd", "snapshot", "restore", "then").wants(t, 2, "--yes")
		r := c.in(within(t, limit), "k1s", "etcd", "snapshot", "restore", "then", "--yes")
		if r.failure != nil || !strings.Contains(r.out, "The state is that of then") {
			t.Fatalf("%v", r)
		}
		c.running(t)
		has("value", "then")
		has("since", "")
		// No snapshot needs the token that was good when it was taken. But what is revoked is part of the state.
		if all, err := client.Tokens(t.Context()); err != nil || len(all) != 1 || all[0].ID != token.ID {
			t.Errorf("its tokens: %+v, %v", all, err)
		}
		c.in(within(t, limit), "k1s", "token", "revoke", token.ID).wants(t, 0, "revoked")
		if now := put("after", "1"); now <= seen {
			t.Errorf("revision %d after %d", now, seen)
		} else {
			seen = now
		}
		var e control.Etcd
		eventually(t, limit, "etcd to tell of itself", func(ctx context.Context) error {
			var err error
			if e, err = c.etcd(ctx); err == nil && e.Problem != "" {
				err = errors.New(e.Problem)
			}
			return err
		})
		if e.Restore == nil || e.Restore.Phase != restore.Done || len(e.Members) != 1 || !e.Members[0].Leader || !e.Members[0].Healthy || e.Lag > 100 {
			t.Fatalf("%+v", e)
		}
		t.Logf("the API paused for %.2fs", e.Restore.PausedS)
		if after := c.containers(t); after != before {
			t.Errorf("containers before:\n%s\nand after:\n%s", before, after)
		}
	})
	between := 0
	inTurn(t, "killed after that, it is done at the next start", func(t *testing.T) {
		between = seen
		r, err := c.restored()
		if err != nil {
			t.Fatal(err)
		}
		c.killedWhile(t, r.Archive, restore.Switching, restore.Starting) // what was put aside comes back
		eventually(t, limit, "the restore to be done", func(context.Context) error {
			r, err := c.restored()
			if err == nil && r.Phase != restore.Done {
				err = fmt.Errorf("it is %+v", r)
			}
			return err
		})
		has("value", "now")
		has("since", "2")
		has("after", "")
		if now := put("after", "2"); now <= seen {
			t.Errorf("revision %d after %d", now, seen)
		} else {
			seen = now
		}
	})
	inTurn(t, "the watcher was told to begin anew, and never saw time go back", func(t *testing.T) {
		t.Logf("%+v", unfollow(between, 3))
	})
	inTurn(t, "an etcd that is full takes writes again by itself", func(t *testing.T) {
		full := false
		for i := range 200 {
			_, _, err := a.do(t.Context(), http.MethodPut, counterPath+"/value", configMap("value", strings.Repeat(strconv.Itoa(i%10), 700_000)))
			if full = err != nil && strings.Contains(err.Error(), "space exceeded"); full {
				break
			}
			if err != nil {
				t.Log(err) // a slow answer: it goes on
			}
		}
		if !full {
			t.Fatal("it does not become full")
		}
		eventually(t, limit, "writes to be taken", func(ctx context.Context) error {
			_, _, err := a.do(ctx, http.MethodPut, counterPath+"/value", configMap("value", "small"))
			return err
		})
		eventually(t, limit, "etcd to have room", func(ctx context.Context) error {
			e, err := c.etcd(ctx)
			if err == nil && (e.Problem != "" || len(e.Alarms) > 0 || e.Defragmented == nil || e.Bytes > e.Quota/2) {
				err = fmt.Errorf("%+v", e)
			}
			return err
		})
		eventually(t, limit, "the problem to be over", func(ctx context.Context) error {
			st, err := c.status(ctx)
			for _, p := range st.Problems {
				if strings.HasPrefix(string(p.Code), "etcd-") {
					err = errors.Join(err, errors.New(p.String()))
				}
			}
			return err
		})
		c.in(within(t, limit), "k1s", "etcd", "defrag").wants(t, 0)
	})
	inTurn(t, "a restore while nothing runs", func(t *testing.T) {
		c.in(within(t, limit), "k1s", "stop").wants(t, 0, "stopped")
		r := c.in(within(t, limit), "k1s", "etcd", "snapshot", "restore", "/var/lib/k1s/snapshots/then.db", "--yes")
		if r.failure != nil || !strings.Contains(r.out, "The state is that of then") {
			t.Fatalf("%v", r)
		}
		c.starts(t)
		has("value", "then")
		if now := put("after", "3"); now <= seen {
			t.Errorf("revision %d after %d", now, seen)
		}
	})
	inTurn(t, "one by schedule is there, and one only", func(t *testing.T) {
		eventually(t, limit, "one snapshot by schedule", func(ctx context.Context) error {
			s, err := control.NewClient(c.where().ControlSocket).Snapshots(ctx)
			complete, others := 0, 0
			for _, e := range s.Snapshots {
				switch {
				case e.Kind == etcdcare.Scheduled && e.State == etcdcare.Complete:
					complete++
				case e.Kind != etcdcare.Archived && e.Name != "then":
					others++ // one that is being written
				}
			}
			if err == nil && (complete != 1 || others != 0) {
				err = fmt.Errorf("there are %+v", s.Snapshots)
			}
			return err
		})
	})
	inTurn(t, "snapshots go to S3", func(t *testing.T) { snapshotsInS3(t, c, put, has) })
}
