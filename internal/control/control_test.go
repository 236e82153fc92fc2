package control

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/backup"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/rotation"
	"k1s.io/k1s/internal/token"
	"k1s.io/k1s/internal/upgrade"
)

// node is a Backend of fixed answers.
type node struct {
	status  Status
	stopped chan StopRequest
}

func (n *node) Status(context.Context) Status { return n.status }

func (n *node) Logs(ctx context.Context, component string, o LogOptions, w io.Writer) error {
	if component != "kubelet" {
		return errs.Hint(errs.New(errs.NotFound, "there is no component %q", component), "try kubelet")
	}
	fmt.Fprintf(w, "%d lines\n", o.Lines)
	if o.Follow {
		<-ctx.Done()
	}
	return nil
}

func (n *node) Stop(_ context.Context, r StopRequest) error { n.stopped <- r; return nil }

func (n *node) Restart(_ context.Context, c string) error {
	return errs.New(errs.Unsupported, "%s cannot be restarted", c)
}

func (n *node) Upgrade(_ context.Context, r UpgradeRequest) (Upgrade, error) {
	return Upgrade{State: upgrade.State{File: r.File, Timeout: r.Timeout}, Same: r.DryRun}, nil
}

func (n *node) ClusterUpgrade(context.Context) (ClusterUpgrade, error) {
	return ClusterUpgrade{ID: "1", Stage: "halted", Nodes: []ClusterUpgradeNode{{Name: "agent-0", Step: "failed", Error: "it did not work"}}}, nil
}

func (n *node) UpgradeCluster(_ context.Context, r ClusterUpgradeRequest) (ClusterUpgrade, error) {
	if r.Action == ResumeUpgrade {
		return ClusterUpgrade{}, errs.Hint(errs.New(errs.NotRunning, "nothing has halted"), "begin")
	}
	return ClusterUpgrade{ID: r.File, Stage: "going", Drain: r.Drain, Parallel: r.Parallel}, nil
}

func (n *node) Leave(context.Context) error {
	return errs.Hint(errs.New(errs.Denied, "too few would be left"), "start the others")
}

func (n *node) Renew(_ context.Context, r RenewRequest) (Renewed, error) {
	if !r.All {
		return Renewed{}, errs.New(errs.NotRunning, "the node is starting")
	}
	return Renewed{Certificates: []Certificate{{Name: "apiserver", Reason: "asked for"}}}, nil
}

func (n *node) Rotation(context.Context) (Rotation, error) {
	return Rotation{State: rotation.State{Number: 1, Stage: rotation.Overlapping}, Behind: []string{"agent-0"}}, nil
}

func (n *node) RotateCA(_ context.Context, r RotateRequest) (Rotation, error) {
	if r.Finish {
		return Rotation{}, errs.Hint(errs.New(errs.NotFound, "no CA is being replaced"), "begin")
	}
	return Rotation{State: rotation.State{Number: 2, Stage: rotation.Trusting, Keep: r.Keep}, Warnings: []string{r.Dir}}, nil
}

func (n *node) Encryption(context.Context) (Encryption, error) {
	return Encryption{Keys: []EncryptionKey{{Provider: "identity", Writes: true}}}, nil
}

func (n *node) Tokens(context.Context) ([]Token, error) {
	return []Token{{Record: token.Record{ID: "0123456789", Role: token.Agent}}}, nil
}

func (n *node) CreateToken(_ context.Context, r TokenRequest) (NewToken, error) {
	if r.TTL < 0 {
		return NewToken{}, errs.New(errs.Usage, "a token cannot be valid for %s", r.TTL)
	}
	return NewToken{Text: "k1s1." + r.Role, Server: "https://10.0.0.1:6443"}, nil
}

func (n *node) RevokeToken(_ context.Context, id string) error {
	if id != "0123456789" {
		return errs.Hint(errs.New(errs.NotFound, "there is no token %q", id), "see: k1s token ls")
	}
	return nil
}

func (n *node) NodeRemoval(ctx context.Context, name string) (NodeRemoval, error) {
	if err := n.RemoveNode(ctx, name); err != nil {
		return NodeRemoval{}, err
	}
	return NodeRemoval{Steps: []string{"delete node " + name}}, nil
}

func (n *node) RemoveNode(_ context.Context, name string) error {
	if name != "agent-0" {
		return errs.New(errs.NotFound, "there is no node %q", name)
	}
	return nil
}

func (n *node) ChangeEncryption(_ context.Context, r EncryptionRequest) (Encryption, error) {
	if r.Action != "enable" {
		return Encryption{}, errs.Hint(errs.New(errs.Exists, "enable is not finished"), "wait")
	}
	return Encryption{Change: &EncryptionChange{Action: r.Action, Stage: "adding"}}, nil
}

func (n *node) Datastore(context.Context) (Datastore, error) {
	return Datastore{Place: migration.Place{Engine: "sqlite"}, Revision: 7}, nil
}

func (n *node) MoveDatastore(_ context.Context, r DatastoreRequest) (Datastore, error) {
	if r.Endpoint != "postgres://k1s:secret@db/k1s" {
		return Datastore{}, errs.New(errs.Invalid, "there is no such datastore")
	}
	return Datastore{Plan: &DatastorePlan{Kind: r.Action}}, nil
}

func (n *node) Etcd(context.Context) (Etcd, error) {
	return Etcd{Revision: 7, Members: []etcdcare.Member{{ID: 1<<63 + 1, Name: "a"}}}, nil
}

func (n *node) DefragmentEtcd(context.Context) (EtcdDefragmented, error) {
	return EtcdDefragmented{Before: 2, After: 1}, nil
}

func (n *node) SaveSnapshot(_ context.Context, r SnapshotRequest) (Snapshots, error) {
	w := errs.ToWire(errs.New(errs.Denied, "not in S3"))
	return Snapshots{Snapshots: []etcdcare.Entry{{Snapshot: etcdcare.Snapshot{Name: r.Name}}}, Problem: &w}, nil
}

func (n *node) Snapshots(context.Context) (Snapshots, error) {
	return Snapshots{Snapshots: []etcdcare.Entry{{State: etcdcare.Corrupt}}}, nil
}

func (n *node) RemoveSnapshots(_ context.Context, r RemoveSnapshotsRequest) (Snapshots, error) {
	if r.Keep == nil || *r.Keep != 2 {
		return Snapshots{}, errs.New(errs.NotFound, "there is no snapshot %q", r.Names)
	}
	return Snapshots{Warnings: []string{"S3 is away"}}, nil
}

func (n *node) RestoreSnapshot(_ context.Context, r RestoreRequest) (Restored, error) {
	return Restored{Plan: &RestorePlan{Archive: r.Snapshot}}, nil
}

func (n *node) CollectBackup(_ context.Context, r BackupRequest) (Collected, error) {
	return Collected{Dir: "/x", Manifest: backup.Manifest{Name: r.Name}}, nil
}

// serve runs a server on a socket that existed before, as after a crash.
func serve(t *testing.T, n *node) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "k1s.sock")
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, slog.New(slog.DiscardHandler), socket, n) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	c := NewClient(socket)
	for { // the socket is replaced and opened by another goroutine
		if _, err := c.Status(ctx); err == nil {
			return c
		} else if !errs.Is(err, errs.NotRunning) {
			t.Fatal(err)
		}
	}
}

func TestClientSeesWhatTheNodeSays(t *testing.T) {
	n := &node{status: Status{State: Running, Components: []Component{{Name: "kubelet", State: "ready"}}}, stopped: make(chan StopRequest, 1)}
	c := serve(t, n)
	s, err := c.Status(t.Context())
	if err != nil || s.State != Running || len(s.Components) != 1 || s.Components[0].Name != "kubelet" {
		t.Fatalf("status %+v, %v", s, err)
	}
	if r, err := c.Renew(t.Context(), RenewRequest{All: true}); err != nil || len(r.Certificates) != 1 || r.Certificates[0].Name != "apiserver" {
		t.Errorf("renewed %+v, %v", r, err)
	}
	if _, err := c.Renew(t.Context(), RenewRequest{}); !errs.Is(err, errs.NotRunning) {
		t.Errorf("renewing at the wrong time: %v", err)
	}
	if u, err := c.UpgradeCluster(t.Context(), ClusterUpgradeRequest{File: "/k1s", Drain: time.Minute, Parallel: 3}); err != nil || u.ID != "/k1s" || u.Drain != time.Minute || u.Parallel != 3 {
		t.Errorf("%+v, %v", u, err)
	}
	if _, err := c.UpgradeCluster(t.Context(), ClusterUpgradeRequest{Action: ResumeUpgrade}); !errs.Is(err, errs.NotRunning) {
		t.Error(err)
	}
	if u, err := c.ClusterUpgrade(t.Context()); err != nil || u.Stage != "halted" || len(u.Nodes) != 1 || u.Nodes[0].Error != "it did not work" {
		t.Errorf("%+v, %v", u, err)
	}
	if u, err := c.Upgrade(t.Context(), UpgradeRequest{File: "/k1s", Timeout: time.Minute, DryRun: true}); err != nil || u.State.File != "/k1s" || u.State.Timeout != time.Minute || !u.Same {
		t.Errorf("upgrade %+v, %v", u, err)
	}
	if e, err := c.Encryption(t.Context()); err != nil || len(e.Keys) != 1 || e.Keys[0].Provider != "identity" {
		t.Errorf("encryption %+v, %v", e, err)
	}
	if e, err := c.ChangeEncryption(t.Context(), EncryptionRequest{Action: "enable"}); err != nil || e.Change == nil || e.Change.Stage != "adding" {
		t.Errorf("enabling %+v, %v", e, err)
	}
	if all, err := c.Tokens(t.Context()); err != nil || len(all) != 1 || all[0].ID != "0123456789" || all[0].Role != token.Agent {
		t.Errorf("tokens: %+v, %v", all, err)
	}
	if n, err := c.CreateToken(t.Context(), TokenRequest{Role: "agent", TTL: time.Hour}); err != nil || n.Text != "k1s1.agent" || n.Server == "" {
		t.Errorf("created: %+v, %v", n, err)
	}
	if _, err := c.CreateToken(t.Context(), TokenRequest{TTL: -1}); !errs.Is(err, errs.Usage) {
		t.Errorf("a token that is over before it begins: %v", err)
	}
	if err := c.RevokeToken(t.Context(), "0123456789"); err != nil {
		t.Error(err)
	}
	if r, err := c.NodeRemoval(t.Context(), "agent-0"); err != nil || !slices.Equal(r.Steps, []string{"delete node agent-0"}) {
		t.Errorf("what would be done: %+v, %v", r, err)
	}
	if _, err := c.NodeRemoval(t.Context(), "agent-1"); !errs.Is(err, errs.NotFound) {
		t.Errorf("what would be done to a node that is not there: %v", err)
	}
	if err := c.RemoveNode(t.Context(), "agent-0"); err != nil {
		t.Error(err)
	}
	if err := c.RemoveNode(t.Context(), "agent-1"); !errs.Is(err, errs.NotFound) {
		t.Errorf("a node that is not there: %v", err)
	}
	if err := c.RevokeToken(t.Context(), "x/../y"); !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), `"x/../y"`) {
		t.Errorf("a token that is not there: %v", err)
	}
	if d, err := c.Datastore(t.Context()); err != nil || d.Engine != "sqlite" || d.Revision != 7 {
		t.Errorf("Datastore: %+v, %v", d, err)
	}
	if d, err := c.MoveDatastore(t.Context(), DatastoreRequest{Action: migration.Migrate, Endpoint: "postgres://k1s:secret@db/k1s"}); err != nil || d.Plan == nil || d.Plan.Kind != migration.Migrate {
		t.Errorf("MoveDatastore: %+v, %v", d, err)
	}
	if _, err := c.MoveDatastore(t.Context(), DatastoreRequest{}); !errs.Is(err, errs.Invalid) {
		t.Errorf("MoveDatastore to nowhere: %v", err)
	}
	if e, err := c.Etcd(t.Context()); err != nil || e.Revision != 7 || e.Members[0].ID != 1<<63+1 {
		t.Errorf("etcd: %+v, %v", e, err)
	}
	if e, err := c.DefragmentEtcd(t.Context()); err != nil || e.After != 1 {
		t.Errorf("defragment: %+v, %v", e, err)
	}
	if s, err := c.SaveSnapshot(t.Context(), SnapshotRequest{Name: "n"}); err != nil || s.Snapshots[0].Name != "n" || !errs.Is(s.Problem.Err(), errs.Denied) {
		t.Errorf("save: %+v, %v", s, err)
	}
	if s, err := c.Snapshots(t.Context()); err != nil || s.Snapshots[0].State != etcdcare.Corrupt {
		t.Errorf("snapshots: %+v, %v", s, err)
	}
	keep := 2
	if s, err := c.RemoveSnapshots(t.Context(), RemoveSnapshotsRequest{Prune: true, Keep: &keep}); err != nil || len(s.Warnings) != 1 {
		t.Errorf("prune: %+v, %v", s, err)
	}
	if _, err := c.RemoveSnapshots(t.Context(), RemoveSnapshotsRequest{Names: []string{"x"}}); !errs.Is(err, errs.NotFound) {
		t.Errorf("rm: %v", err)
	}
	if r, err := c.RestoreSnapshot(t.Context(), RestoreRequest{Snapshot: "/x"}); err != nil || r.Plan.Archive != "/x" {
		t.Errorf("restore: %+v, %v", r, err)
	}
	if b, err := c.CollectBackup(t.Context(), BackupRequest{Name: "n"}); err != nil || b.Dir != "/x" || b.Manifest.Name != "n" {
		t.Errorf("backup: %+v, %v", b, err)
	}
	if _, err := c.ChangeEncryption(t.Context(), EncryptionRequest{Action: "rotate"}); !errs.Is(err, errs.Exists) {
		t.Errorf("rotating meanwhile: %v", err)
	}
	if err := c.Stop(t.Context(), StopRequest{Pods: true}); err != nil {
		t.Fatal(err)
	}
	if r := <-n.stopped; !r.Pods {
		t.Error("the request to end pods was lost")
	}
}

func TestErrorsKeepKindAndHintAcrossTheSocket(t *testing.T) {
	c := serve(t, &node{})
	err := c.Logs(t.Context(), "nothing", LogOptions{}, io.Discard)
	if hint, _ := errs.HintOf(err); !errs.Is(err, errs.NotFound) || hint != "try kubelet" {
		t.Errorf("error %v, kind %d, hint %q", err, errs.KindOf(err), hint)
	}
	if err := c.Leave(t.Context()); !errs.Is(err, errs.Denied) || !strings.Contains(err.Error(), "too few would be left") {
		t.Errorf("leaving: %v", err)
	}
	if err := c.Restart(t.Context(), "kine"); !errs.Is(err, errs.Unsupported) {
		t.Errorf("error %v has kind %d", err, errs.KindOf(err))
	}
}

func TestFollowedLogsArriveBeforeTheyEnd(t *testing.T) {
	c := serve(t, &node{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got bytes.Buffer
	err := c.Logs(ctx, "kubelet", LogOptions{Lines: 7, Follow: true}, writerFunc(func(p []byte) (int, error) {
		cancel()
		return got.Write(p)
	}))
	if err == nil || got.String() != "7 lines\n" {
		t.Fatalf("got %q, %v", got.String(), err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestNoDaemonIsTold(t *testing.T) {
	_, err := NewClient(filepath.Join(t.TempDir(), "none.sock")).Status(t.Context())
	if !errs.Is(err, errs.NotRunning) || errs.KindOf(err).ExitCode() != 3 {
		t.Fatalf("error %v has kind %d", err, errs.KindOf(err))
	}
}

func TestOnlyRootMayOpenTheSocket(t *testing.T) {
	c := serve(t, &node{})
	st, err := os.Stat(c.socket)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
}
