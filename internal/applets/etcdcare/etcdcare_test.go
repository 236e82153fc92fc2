package etcdcare

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdapi"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
)

// member is an etcd that runs in here.
type member struct {
	*clientv3.Client
	e        *embed.Etcd
	endpoint string
	dir      string
	stop     func() // as often as one likes
}

// quota of those that have none of their own.
const quota = 64 << 20

// freeAddress is one that nobody listens at just now.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

// starts a single member in a directory, which may hold data.
func starts(t *testing.T, dir string, quota int64) *member {
	t.Helper()
	m := begins(t, dir, quota, "node", "http://127.0.0.1:0", "http://127.0.0.1:2380", "node=http://127.0.0.1:2380")
	m.ready(t)
	return m
}

// startsThree starts the three members of a cluster.
func startsThree(t *testing.T) (all []*member) {
	t.Helper()
	peers := map[string]string{}
	var cluster []string
	for _, name := range []string{"a", "b", "c"} {
		peers[name] = freeAddress(t)
		cluster = append(cluster, name+"="+peers[name])
	}
	for _, name := range []string{"a", "b", "c"} {
		all = append(all, begins(t, t.TempDir(), quota, name, peers[name], peers[name], strings.Join(cluster, ",")))
	}
	for _, m := range all {
		m.ready(t)
	}
	return all
}

func begins(t *testing.T, dir string, quota int64, name, listen, peer, cluster string, over ...map[string]any) *member {
	t.Helper()
	endpoint := freeAddress(t)
	conf := map[string]any{
		"name": name, "data-dir": dir, "listen-client-urls": endpoint, "advertise-client-urls": endpoint, "listen-peer-urls": listen,
		"initial-advertise-peer-urls": peer, "initial-cluster": cluster, "heartbeat-interval": 10, "election-timeout": 100,
		"log-level": "fatal", "quota-backend-bytes": quota,
	}
	for _, o := range over {
		maps.Copy(conf, o)
	}
	text, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "etcd.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := embed.ConfigFromFile(file)
	if err != nil {
		t.Fatal(err)
	}
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(e.Close)
	t.Cleanup(stop)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return &member{Client: client, e: e, endpoint: endpoint, dir: dir, stop: stop}
}

func (m *member) ready(t *testing.T) {
	t.Helper()
	select {
	case <-m.e.Server.ReadyNotify():
	case err := <-m.e.Err():
		t.Fatal(err)
	case <-time.After(time.Minute):
		t.Fatal("etcd is not ready")
	}
}

func (m *member) api() *etcdapi.Client { return etcdapi.New(m.endpoint, nil) }

func (m *member) put(t *testing.T, key, value string) int64 {
	t.Helper()
	r, err := m.Put(t.Context(), key, value)
	if err != nil {
		t.Fatal(err)
	}
	return r.Header.Revision
}

func (m *member) get(t *testing.T, key string) string {
	t.Helper()
	r, err := m.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Kvs) == 0 {
		return ""
	}
	return string(r.Kvs[0].Value)
}

// asks lets the applet do a job as the daemon would.
func asks(t *testing.T, j etcdcare.Job) (etcdcare.Answer, error) {
	t.Helper()
	line, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	in, input := io.Pipe()
	defer input.Close()
	go func() { _, _ = input.Write(append(line, '\n')) }()
	var out strings.Builder
	if err := run(t.Context(), in, &out); err != nil {
		return etcdcare.Answer{}, err
	}
	var a etcdcare.Answer
	if err := json.Unmarshal([]byte(out.String()), &a); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	if a.Error != nil {
		return a, a.Error.Err()
	}
	return a, nil
}

func saving(m *member, dir, name string) etcdcare.Job {
	return etcdcare.Job{
		Do: etcdcare.Save, Dir: dir, Etcd: etcdcare.Etcd{Endpoint: m.endpoint},
		Snapshot: etcdcare.Snapshot{Name: name, Kind: etcdcare.Manual, Node: "node", CA: "pin", K1s: "v0", Kubernetes: "v1.36.3"},
	}
}

// saves takes a snapshot, which must succeed.
func saves(t *testing.T, m *member, dir, name string) etcdcare.Entry {
	t.Helper()
	a, err := asks(t, saving(m, dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Entries) != 1 {
		t.Fatalf("%+v", a)
	}
	return a.Entries[0]
}

// lists tells the states of what is in a directory, by name.
func lists(t *testing.T, j etcdcare.Job) map[string]etcdcare.Entry {
	t.Helper()
	j.Do = etcdcare.List
	a, err := asks(t, j)
	if err != nil || len(a.Warnings) > 0 {
		t.Fatal(err, a.Warnings)
	}
	out := map[string]etcdcare.Entry{}
	for _, e := range a.Entries {
		out[e.Name] = e
	}
	return out
}

func TestASnapshotTellsWhatItIs(t *testing.T) {
	m, dir := starts(t, t.TempDir(), quota), filepath.Join(t.TempDir(), "snapshots")
	m.put(t, "/registry/a", "1")
	rev := m.put(t, "/registry/a", "2")
	e := saves(t, m, dir, "one")
	if e.State != etcdcare.Complete || e.Revision != rev || e.Keys == 0 || e.CA != "pin" || e.Etcd == "" || e.ClusterID == "" || e.SHA256 == "" || time.Since(e.At) > time.Minute {
		t.Errorf("%+v", e)
	}
	for _, f := range []string{"one.db", "one.json"} {
		if st, err := os.Stat(filepath.Join(dir, f)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st, err)
		}
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st, err)
	}
	listed := lists(t, etcdcare.Job{Dir: dir})
	if len(listed) != 1 || listed["one"].State != etcdcare.Complete || listed["one"].SHA256 != e.SHA256 || listed["one"].Bytes != e.Bytes {
		t.Errorf("%+v", listed)
	}
	if _, err := asks(t, saving(m, dir, "one")); !errs.Is(err, errs.Exists) {
		t.Errorf("the same name again: %v", err)
	}
	for _, name := range []string{"", "../x", "a/b", "x.db", ".hidden"} {
		if _, err := asks(t, saving(m, dir, name)); !errs.Is(err, errs.Usage) {
			t.Errorf("the name %q: %v", name, err)
		}
	}
}

func TestWhatCannotBeUsedIsNamedAndRefused(t *testing.T) {
	m, dir := starts(t, t.TempDir(), quota), t.TempDir()
	for i := range 100 {
		m.put(t, fmt.Sprintf("/registry/%d", i), strings.Repeat("x", 1000))
	}
	saves(t, m, dir, "good")
	whole, err := os.ReadFile(filepath.Join(dir, "good.db"))
	if err != nil {
		t.Fatal(err)
	}
	meta, err := os.ReadFile(filepath.Join(dir, "good.json"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, db, meta []byte) {
		t.Helper()
		if db != nil {
			if err := os.WriteFile(filepath.Join(dir, name), db, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if meta != nil {
			if err := os.WriteFile(filepath.Join(dir, cutEnds(name)+".json"), meta, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	flipped := append([]byte(nil), whole...)
	flipped[len(flipped)/2] ^= 1
	write("flipped.db", flipped, meta)
	write("cut.db", whole[:len(whole)/2], meta)
	write("empty.db", []byte{}, meta)
	write("bare.db", whole, nil)
	write("part.db.part", whole[:100], nil)
	write("lost.db", nil, []byte(strings.Replace(string(meta), `"good"`, `"lost"`, 1)))
	write("config.db", nil, []byte(`{"name":"of somebody else"}`)) // is not listed
	write("nonsense.db", whole, []byte("{"))
	other := append([]byte(nil), whole[:len(whole)-32-512]...) // whole for itself, and another one than was written
	write("other.db", append(other, make([]byte, 0)...), meta)
	want := map[string]etcdcare.State{
		"good": etcdcare.Complete, "flipped": etcdcare.Corrupt, "cut": etcdcare.Corrupt, "empty": etcdcare.Corrupt, "bare": etcdcare.Bare,
		"part": etcdcare.Unfinished, "lost": etcdcare.Unfinished, "nonsense": etcdcare.Corrupt, "other": etcdcare.Corrupt,
	}
	listed := lists(t, etcdcare.Job{Dir: dir})
	if len(listed) != len(want) {
		t.Errorf("%d are listed", len(listed))
	}
	for name, state := range want {
		e := listed[name]
		if e.State != state || (e.Problem == "") != (state == etcdcare.Complete) {
			t.Errorf("%s is %q: %s", name, e.State, e.Problem)
		}
		staged := filepath.Join(t.TempDir(), "etcd")
		_, err := asks(t, etcdcare.Job{Do: etcdcare.Stage, Dir: dir, Where: []string{e.Where}, Staged: staged, Member: "node", Peer: "http://127.0.0.1:2380"})
		usable := state == etcdcare.Complete || state == etcdcare.Bare
		if usable != (err == nil) {
			t.Errorf("restoring %s: %v", name, err)
		}
		if !usable && exists(staged) {
			t.Errorf("restoring %s leaves a data directory", name)
		}
	}
	// All that belongs to one goes.
	if _, err := asks(t, etcdcare.Job{Do: etcdcare.Remove, Where: []string{listed["part"].Where, listed["lost"].Where, listed["good"].Where}}); err != nil {
		t.Fatal(err)
	}
	for name := range lists(t, etcdcare.Job{Dir: dir}) {
		if name == "part" || name == "lost" || name == "good" {
			t.Errorf("%s is still there", name)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// restores makes a data directory from a snapshot, in the place of another.
func restores(t *testing.T, where, old string, j etcdcare.Job) (dir string, target int64) {
	t.Helper()
	staged := filepath.Join(t.TempDir(), "etcd-restoring-1")
	j.Do, j.Where, j.Staged, j.Member, j.Peer = etcdcare.Stage, []string{where}, staged, "node", "http://127.0.0.1:2380"
	a, err := asks(t, j)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Entries) != 1 || a.Entries[0].Revision == 0 {
		t.Errorf("%+v", a)
	}
	a, err = asks(t, etcdcare.Job{Do: etcdcare.Advance, Staged: staged, Old: old, Snapshot: a.Entries[0].Snapshot})
	if err != nil {
		t.Fatal(err)
	}
	return staged, a.Revision
}

func TestARestoreGoesOnBehindEveryRevisionAndEndsWatches(t *testing.T) {
	m, dir := starts(t, t.TempDir(), quota), t.TempDir()
	m.put(t, "/registry/a", "before")
	e := saves(t, m, dir, "one")
	m.put(t, "/registry/a", "after")
	last := m.put(t, "/registry/b", "new")
	m.stop()

	restored, target := restores(t, e.Where, m.dir, etcdcare.Job{Dir: dir})
	if target <= last {
		t.Errorf("it begins behind %d, and %d was seen", target, last)
	}
	n := starts(t, restored, quota)
	if a, b := n.get(t, "/registry/a"), n.get(t, "/registry/b"); a != "before" || b != "" {
		t.Errorf("it has a=%q b=%q", a, b)
	}
	for _, from := range []int64{e.Revision, last, last + 1} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		var got error
		for r := range n.Watch(ctx, "/registry/", clientv3.WithPrefix(), clientv3.WithRev(from)) {
			if got = r.Err(); got != nil {
				break
			}
			t.Errorf("a watch from %d tells of %+v", from, r.Events)
		}
		cancel()
		if !errors.Is(got, rpctypes.ErrCompacted) {
			t.Errorf("a watch from %d ends with %v", from, got)
		}
	}
	if rev := n.put(t, "/registry/a", "again"); rev <= target {
		t.Errorf("the next revision is %d, after %d", rev, target)
	}
	s, err := n.api().Status(t.Context())
	if err != nil || fmt.Sprintf("%x", s.ClusterID) == e.ClusterID {
		t.Errorf("a member of before would be let in: %x, %v", s.ClusterID, err)
	}
	// The data of before is restored as a snapshot is, and time goes on.
	n.stop()
	back, further := restores(t, m.dir, restored, etcdcare.Job{})
	o := starts(t, back, quota)
	if a := o.get(t, "/registry/a"); a != "after" || further <= target {
		t.Errorf("it has a=%q, behind %d", a, further)
	}
}

func TestDamagedDataIsReplaced(t *testing.T) {
	m, dir := starts(t, t.TempDir(), quota), t.TempDir()
	m.put(t, "/registry/a", "1")
	e := saves(t, m, dir, "one")
	m.stop()
	for what, damage := range map[string]func(file string) error{
		"zeros": func(file string) error { return os.WriteFile(file, make([]byte, 1<<20), 0o600) },
		"half":  func(file string) error { return os.Truncate(file, 9000) },
		"none":  os.Remove,
	} {
		if err := damage(database(m.dir)); err != nil {
			t.Fatal(err)
		}
		restored, target := restores(t, e.Where, m.dir, etcdcare.Job{Dir: dir})
		if target < e.Revision+1_000_000 {
			t.Errorf("%s: it begins behind %d, and nobody knows what was seen", what, target)
		}
		n := starts(t, restored, quota)
		if a := n.get(t, "/registry/a"); a != "1" {
			t.Errorf("%s: it has %q", what, a)
		}
		n.stop()
	}
}

func TestTheLightClientSeesAndSteersEtcd(t *testing.T) {
	m := starts(t, t.TempDir(), quota)
	rev := m.put(t, "/a", "1")
	c := m.api()
	t.Cleanup(c.Close)
	s, err := c.Status(t.Context())
	if err != nil || s.ID == 0 || s.Leader != s.ID || s.Revision != rev || s.Bytes == 0 || s.InUse == 0 || s.Quota != quota || s.Version == "" || s.Index == 0 || s.Applied == 0 || len(s.Alarms()) != 0 {
		t.Fatalf("%+v, %v", s, err)
	}
	members, err := c.Members(t.Context())
	if err != nil || len(members) != 1 || members[0].ID != s.ID || members[0].Name != "node" || members[0].IsLearner || len(members[0].PeerURLs) != 1 {
		t.Errorf("%+v, %v", members, err)
	}
	unlock, err := c.Lock(t.Context(), "/lock", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Lock(t.Context(), "/lock", time.Minute); !errs.Is(err, errs.Exists) {
		t.Errorf("a second one has the lock too: %v", err)
	}
	if err := unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if unlock, err = c.Lock(t.Context(), "/lock", time.Minute); err != nil {
		t.Errorf("it is not given back: %v", err)
	} else if err := unlock(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.MoveLeader(t.Context(), 7); err == nil {
		t.Error("a member that is not there leads")
	}
	if skew, err := c.Alive(t.Context(), m.endpoint); err != nil || skew.Abs() > time.Minute {
		t.Error(err)
	}
	if _, err := c.Alive(t.Context(), "http://127.0.0.1:1"); err == nil {
		t.Error("nobody answers")
	}
}

// facts are what the daemon would decide by.
func facts(t *testing.T, c *etcdapi.Client, compacted int64) etcdcare.Facts {
	t.Helper()
	f := etcdcare.Facts{Now: time.Now(), Compacted: compacted}
	if _, err := c.Facts(t.Context(), &f); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestEtcdAsItIsOnANode(t *testing.T) {
	// Client certificates are asked for, and the gateway calls etcd with the server's.
	in := component.Input{Config: config.Default(), Paths: paths.Paths{Data: t.TempDir(), Run: t.TempDir()}, Facts: component.Facts{NodeName: "node", NodeIP: netip.MustParseAddr("127.0.0.1")}}
	if _, err := pki.Ensure(t.Context(), pki.Request{Paths: in.Paths, NodeName: "node", NodeIP: in.Facts.NodeIP, Etcd: true}); err != nil {
		t.Fatal(err)
	}
	e := components.EtcdClient(in)
	e.Endpoint = strings.Replace(freeAddress(t), "http:", "https:", 1)
	m := begins(t, t.TempDir(), quota, "node", "http://127.0.0.1:0", "http://127.0.0.1:2380", "node=http://127.0.0.1:2380", map[string]any{
		"listen-client-urls": e.Endpoint, "advertise-client-urls": e.Endpoint,
		"client-transport-security": map[string]any{
			"cert-file": in.Paths.PKI("etcd", "server.crt"), "key-file": in.Paths.PKI("etcd", "server.key"), "trusted-ca-file": e.CAFile, "client-cert-auth": true,
		},
	})
	m.ready(t)
	pair, err := tls.LoadX509KeyPair(e.CertFile, e.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(e.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(raw)
	c := etcdapi.New(e.Endpoint, &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
	t.Cleanup(c.Close)
	if f := facts(t, c, 0); f.Leader != f.ID || len(f.Members) != 1 || !f.Members[0].Healthy {
		t.Errorf("%+v", f)
	}
	if err := c.Defragment(t.Context()); err != nil {
		t.Error(err)
	}
	stranger := etcdapi.New(e.Endpoint, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12})
	t.Cleanup(stranger.Close)
	if _, err := stranger.Status(t.Context()); err == nil {
		t.Error("it answers somebody without a certificate")
	}
	j := saving(m, t.TempDir(), "one")
	j.Etcd = e
	if a, err := asks(t, j); err != nil || len(a.Entries) != 1 {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestThreeMembersTakeTurns(t *testing.T) {
	all := startsThree(t)
	all[0].put(t, "/a", "1")
	// Of each, as if much could be given back.
	look := func(m *member) etcdcare.Facts {
		f := facts(t, m.api(), 0)
		f.Bytes, f.InUse = 40<<20, 10<<20 // of a quota of 64
		f.Quota, f.Writes = 44<<20, 0
		return f
	}
	leads := 0
	for _, m := range all {
		f := look(m)
		healthy := 0
		for _, o := range f.Members {
			if o.Healthy && !o.Learner {
				healthy++
			}
			if o.Leader != (o.ID == f.Leader) || o.Self != (o.ID == f.ID) || o.Name == "" {
				t.Errorf("%+v", o)
			}
		}
		if healthy != 3 || f.Leader == 0 || len(etcdcare.Problems(f)) > 0 {
			t.Fatalf("%+v", f)
		}
		deed, why := etcdcare.Next(f)
		if f.Leader == f.ID {
			leads++
			if deed != etcdcare.MoveLeader {
				t.Fatalf("the leader is to %q: %s", deed, why)
			}
			if err := m.api().StepDown(t.Context(), f); err != nil {
				t.Fatal(err)
			}
			if f = look(m); f.Leader == f.ID || f.Leader == 0 {
				t.Fatalf("it still leads: %+v", f)
			}
			deed, why = etcdcare.Next(f)
		}
		if deed != etcdcare.Defragment {
			t.Fatalf("a follower is to %q: %s", deed, why)
		}
		unlock, err := m.api().Lock(t.Context(), "/lock", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.api().Defragment(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := all[0].api().Lock(t.Context(), "/lock", time.Minute); !errs.Is(err, errs.Exists) {
			t.Errorf("another one may do it at the same time: %v", err)
		}
		if err := unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		if v := m.get(t, "/a"); v != "1" {
			t.Errorf("it has %q", v)
		}
	}
	if leads == 0 {
		t.Error("none of them led")
	}
	// One that is away is needed by nobody, but the others are.
	all[2].stop()
	for _, m := range all[:2] {
		f := look(m)
		if deed, why := etcdcare.Next(f); deed != etcdcare.Nothing || f.Leader != 0 && !strings.Contains(why, "member c does not answer") {
			t.Errorf("beside a member that is away: %q, %s", deed, why)
		}
	}
	// Without a majority it still tells about itself.
	all[1].stop()
	f := look(all[0])
	for deadline := time.Now().Add(30 * time.Second); f.Leader != 0 && time.Now().Before(deadline); f = look(all[0]) {
		time.Sleep(20 * time.Millisecond)
	}
	if p := etcdcare.Problems(f); len(p) != 1 || p[0].Code != health.EtcdNoLeader || !strings.Contains(p[0].Text, "b does not answer; c does not answer") {
		t.Errorf("%v", p)
	}
}

func TestAFullEtcdTakesWritesAgain(t *testing.T) {
	m := starts(t, t.TempDir(), 16<<20)
	c := m.api()
	value := strings.Repeat("x", 256<<10)
	var full error
	for range 200 {
		if _, full = m.Put(t.Context(), "/a", value); full != nil {
			break
		}
	}
	if !errors.Is(full, rpctypes.ErrNoSpace) {
		t.Fatalf("it is not full: %v", full)
	}
	var done []etcdcare.Deed
	compacted := int64(0)
	for range 6 {
		f := facts(t, c, compacted)
		deed, why := etcdcare.Next(f)
		t.Logf("%d of %d bytes, %d in use: %q, %s", f.Bytes, f.Quota, f.InUse, deed, why)
		if deed == etcdcare.Nothing {
			break
		}
		done = append(done, deed)
		var err error
		switch deed {
		case etcdcare.Compact:
			compacted, err = f.Revision, c.Compact(t.Context(), f.Revision)
		case etcdcare.Defragment:
			err = c.Defragment(t.Context())
		case etcdcare.Disarm:
			err = c.Disarm(t.Context(), f.ID, string(etcdcare.NoSpace))
		default:
			t.Fatalf("it wants to %s", deed)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if want := []etcdcare.Deed{etcdcare.Compact, etcdcare.Defragment, etcdcare.Disarm}; fmt.Sprint(done) != fmt.Sprint(want) {
		t.Errorf("done: %q", done)
	}
	m.put(t, "/a", "again")
	if f := facts(t, c, 0); len(f.Alarms) != 0 || f.Bytes > 8<<20 {
		t.Errorf("%+v", f)
	}
}

func TestAJobIsNeeded(t *testing.T) {
	for _, in := range []string{"", "nonsense\n"} {
		if err := run(t.Context(), strings.NewReader(in), io.Discard); err == nil {
			t.Errorf("%q is accepted", in)
		}
	}
	if _, err := asks(t, etcdcare.Job{Do: "dance"}); !errs.Is(err, errs.Usage) {
		t.Errorf("%v", err)
	}
}

func TestEtcdThatDoesNotAnswerLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	j := saving(&member{endpoint: "http://127.0.0.1:1"}, dir, "one")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // shorter than it would wait
	defer cancel()
	if _, err := do(ctx, j); err == nil {
		t.Error("there is a snapshot of nothing")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}
