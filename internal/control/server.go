package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"k1s.io/k1s/internal/errs"
)

// Backend is the node the server speaks for. Implementations must be safe for concurrent use.
type Backend interface {
	Status(ctx context.Context) Status
	// Logs writes a component's log to w; with Follow it goes on until ctx ends.
	Logs(ctx context.Context, component string, o LogOptions, w io.Writer) error
	// Stop asks the node to end and returns when it has begun to.
	Stop(ctx context.Context, r StopRequest) error
	// Restart ends the unit of a component; the supervisor brings it back.
	Restart(ctx context.Context, component string) error
	// Upgrade hands the node over to another program, and returns when that has begun, or with DryRun answers with what it would do.
	Upgrade(ctx context.Context, r UpgradeRequest) (Upgrade, error)
	// ClusterUpgrade tells how far the upgrade of the cluster is.
	ClusterUpgrade(ctx context.Context) (ClusterUpgrade, error)
	// UpgradeCluster begins one, or says how it goes on, and returns at once, or with DryRun answers with what it would do.
	UpgradeCluster(ctx context.Context, r ClusterUpgradeRequest) (ClusterUpgrade, error)
	// Renew issues certificates anew while everything runs.
	Renew(ctx context.Context, r RenewRequest) (Renewed, error)
	// Rotation tells how far the replacement of the cluster's authorities is.
	Rotation(ctx context.Context) (Rotation, error)
	// RotateCA begins to replace them, or ends it sooner, and returns at once.
	RotateCA(ctx context.Context, r RotateRequest) (Rotation, error)
	// Encryption tells how Secrets are kept.
	Encryption(ctx context.Context) (Encryption, error)
	// ChangeEncryption begins a change, or finds that it is on its way or done, and returns at once.
	ChangeEncryption(ctx context.Context, r EncryptionRequest) (Encryption, error)
	// Tokens lists the tokens with which machines can join, the oldest first.
	Tokens(ctx context.Context) ([]Token, error)
	CreateToken(ctx context.Context, r TokenRequest) (NewToken, error)
	RevokeToken(ctx context.Context, id string) error
	// NodeRemoval tells what RemoveNode would do.
	NodeRemoval(ctx context.Context, name string) (NodeRemoval, error)
	// Leave takes this server out of a cluster of several; it is of no use to anybody afterwards.
	Leave(ctx context.Context) error
	// RemoveNode takes another node out of the cluster, and frees its name.
	RemoveNode(ctx context.Context, name string) error
	// Datastore tells where the state is.
	Datastore(ctx context.Context) (Datastore, error)
	// MoveDatastore begins a move and returns at once, or with DryRun answers with what it would do.
	MoveDatastore(ctx context.Context, r DatastoreRequest) (Datastore, error)
	// Etcd tells of the embedded etcd.
	Etcd(ctx context.Context) (Etcd, error)
	// DefragmentEtcd defragments this server's member, and returns when that is done.
	DefragmentEtcd(ctx context.Context) (EtcdDefragmented, error)
	// SaveSnapshot takes one, and returns when it is at all its places.
	SaveSnapshot(ctx context.Context, r SnapshotRequest) (Snapshots, error)
	Snapshots(ctx context.Context) (Snapshots, error)
	// RemoveSnapshots answers with what it has removed, or with DryRun would remove.
	RemoveSnapshots(ctx context.Context, r RemoveSnapshotsRequest) (Snapshots, error)
	// RestoreSnapshot begins a restore and returns at once, or with DryRun answers with what it would do.
	RestoreSnapshot(ctx context.Context, r RestoreRequest) (Restored, error)
	// CollectBackup gathers the whole state, and returns when it is there.
	CollectBackup(ctx context.Context, r BackupRequest) (Collected, error)
}

// Serve answers on the unix socket until ctx ends. A socket left by a dead daemon is replaced; the
// caller holds the daemon's lock, so there is no living one.
func Serve(ctx context.Context, log *slog.Logger, socket string, b Backend) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return fmt.Errorf("making the directory of the control socket: %w", err)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing a stale control socket: %w", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("opening the control socket: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("restricting the control socket: %w", err), l.Close())
	}
	srv := &http.Server{
		Handler:           Handler(log, b),
		ReadHeaderTimeout: 5 * time.Second,
		// Followed logs end when the node does.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serving the control socket: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		err = srv.Close()
		<-done
		return err
	}
	<-done
	return nil
}

// Handler is the API without its socket.
func Handler(log *slog.Logger, b Backend) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		reply(w, b.Status(r.Context()))
	})
	mux.HandleFunc("GET /v1/logs/{component}", func(w http.ResponseWriter, r *http.Request) {
		o := LogOptions{Follow: r.URL.Query().Get("follow") == "true"}
		if n := r.URL.Query().Get("lines"); n != "" {
			lines, err := strconv.Atoi(n)
			if err != nil || lines < 0 {
				refuse(w, errs.New(errs.Usage, "lines is %q, not a number", n))
				return
			}
			o.Lines = lines
		}
		out := &flushWriter{w: w}
		if err := b.Logs(r.Context(), r.PathValue("component"), o, out); err != nil && r.Context().Err() == nil {
			if !out.wrote {
				refuse(w, err)
				return
			}
			log.Warn("log stream broke off", "component", r.PathValue("component"), "err", err)
		}
	})
	mux.HandleFunc("POST /v1/stop", func(w http.ResponseWriter, r *http.Request) {
		var req StopRequest
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&req); err != nil {
			refuse(w, errs.New(errs.Usage, "reading the stop request: %w", err))
			return
		}
		if err := b.Stop(r.Context(), req); err != nil {
			refuse(w, err)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("POST /v1/restart/{component}", func(w http.ResponseWriter, r *http.Request) {
		if err := b.Restart(r.Context(), r.PathValue("component")); err != nil {
			refuse(w, err)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("POST /v1/leave", func(w http.ResponseWriter, r *http.Request) {
		if err := b.Leave(r.Context()); err != nil {
			refuse(w, err)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("POST /v1/certificates/renew", func(w http.ResponseWriter, r *http.Request) {
		var req RenewRequest
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&req); err != nil {
			refuse(w, errs.New(errs.Usage, "reading the request to renew certificates: %w", err))
			return
		}
		renewed, err := b.Renew(r.Context(), req)
		if err != nil {
			refuse(w, err)
			return
		}
		reply(w, renewed)
	})
	mux.HandleFunc("GET /v1/encryption", func(w http.ResponseWriter, r *http.Request) {
		e, err := b.Encryption(r.Context())
		if err != nil {
			refuse(w, err)
			return
		}
		reply(w, e)
	})
	mux.HandleFunc("POST /v1/encryption", func(w http.ResponseWriter, r *http.Request) {
		var req EncryptionRequest
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&req); err != nil {
			refuse(w, errs.New(errs.Usage, "reading the request to change encryption: %w", err))
			return
		}
		e, err := b.ChangeEncryption(r.Context(), req)
		if err != nil {
			refuse(w, err)
			return
		}
		reply(w, e)
	})
	mux.HandleFunc("GET /v1/tokens", func(w http.ResponseWriter, r *http.Request) {
		all, err := b.Tokens(r.Context())
		if err != nil {
			refuse(w, err)
			return
		}
		reply(w, all)
	})
	mux.HandleFunc("POST /v1/tokens", func(w http.ResponseWriter, r *http.Request) {
		var req TokenRequest
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&req); err != nil {
			refuse(w, errs.New(errs.Usage, "reading the request to create a token: %w", err))
			return
		}
		t, err := b.CreateToken(r.Context(), req)
		if err != nil {
			refuse(w, err)
			return
		}
		reply(w, t)
	})
	remove := func(what func(context.Context, string) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if err := what(r.Context(), r.PathValue("name")); err != nil {
				refuse(w, err)
				return
			}
			w.WriteHeader(http.StatusNoContent)
		}
	}
	mux.HandleFunc("DELETE /v1/tokens/{name}", remove(b.RevokeToken))
	mux.HandleFunc("DELETE /v1/nodes/{name}", remove(b.RemoveNode))
	mux.HandleFunc("GET /v1/nodes/{name}/removal", func(w http.ResponseWriter, r *http.Request) {
		plan, err := b.NodeRemoval(r.Context(), r.PathValue("name"))
		if err != nil {
			refuse(w, err)
			return
		}
		reply(w, plan)
	})
	mux.HandleFunc("GET /v1/datastore", func(w http.ResponseWriter, r *http.Request) {
		s, err := b.Datastore(r.Context())
		if err != nil {
			refuse(w, err)
			return
		}
		reply(w, s)
	})
	mux.HandleFunc("POST /v1/datastore", func(w http.ResponseWriter, r *http.Request) {
		var req DatastoreRequest
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&req); err != nil {
			refuse(w, errs.New(errs.Usage, "the request to move the datastore cannot be read")) // the error may quote it
			return
		}
		s, err := b.MoveDatastore(r.Context(), req)
		if err != nil {
			refuse(w, err)
			return
		}
		reply(w, s)
	})
	handle(mux, "POST /v1/upgrade", b.Upgrade)
	handle(mux, "GET /v1/upgrade/cluster", func(ctx context.Context, _ struct{}) (ClusterUpgrade, error) { return b.ClusterUpgrade(ctx) })
	handle(mux, "POST /v1/upgrade/cluster", b.UpgradeCluster)
	handle(mux, "GET /v1/certificates/rotation", func(ctx context.Context, _ struct{}) (Rotation, error) { return b.Rotation(ctx) })
	handle(mux, "POST /v1/certificates/rotation", b.RotateCA)
	handle(mux, "GET /v1/etcd", func(ctx context.Context, _ struct{}) (Etcd, error) { return b.Etcd(ctx) })
	handle(mux, "POST /v1/etcd/defragment", func(ctx context.Context, _ struct{}) (EtcdDefragmented, error) { return b.DefragmentEtcd(ctx) })
	handle(mux, "GET /v1/etcd/snapshots", func(ctx context.Context, _ struct{}) (Snapshots, error) { return b.Snapshots(ctx) })
	handle(mux, "POST /v1/etcd/snapshots", b.SaveSnapshot)
	handle(mux, "POST /v1/etcd/snapshots/remove", b.RemoveSnapshots)
	handle(mux, "POST /v1/etcd/restore", b.RestoreSnapshot)
	handle(mux, "POST /v1/backup", b.CollectBackup)
	return mux
}

// handle answers a request that is JSON, or nothing with GET.
func handle[Q, A any](mux *http.ServeMux, pattern string, answer func(context.Context, Q) (A, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var q Q
		if r.Method != http.MethodGet {
			if err := json.NewDecoder(io.LimitReader(r.Body, 1<<16)).Decode(&q); err != nil {
				refuse(w, errs.New(errs.Usage, "reading the request to %s: %w", r.URL.Path, err))
				return
			}
		}
		a, err := answer(r.Context(), q)
		if err != nil {
			refuse(w, err)
			return
		}
		reply(w, a)
	})
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// The status line is out: a client that went away is all that can fail here.
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	switch errs.KindOf(err) {
	case errs.NotFound:
		code = http.StatusNotFound
	case errs.Usage, errs.Invalid:
		code = http.StatusBadRequest
	case errs.Unsupported:
		code = http.StatusNotImplemented
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(errs.ToWire(err))
}

// flushWriter sends every write at once: a followed log is read by a person.
type flushWriter struct {
	w     http.ResponseWriter
	wrote bool
}

func (f *flushWriter) Write(p []byte) (int, error) {
	f.wrote = true
	n, err := f.w.Write(p)
	if err == nil {
		err = http.NewResponseController(f.w).Flush()
	}
	return n, err
}
