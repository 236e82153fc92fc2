package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"

	"k1s.io/k1s/internal/errs"
)

// Client asks a node through its control socket.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient does not connect yet.
func NewClient(socket string) *Client {
	var d net.Dialer
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}}
}

// Status asks for everything. An error of kind errs.NotRunning means that no daemon answers.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	body, err := c.do(ctx, http.MethodGet, "/v1/status", nil)
	if err != nil {
		return s, err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(&s); err != nil {
		return s, fmt.Errorf("reading the node's status: %w", err)
	}
	return s, nil
}

// Logs copies a component's log to w.
func (c *Client) Logs(ctx context.Context, component string, o LogOptions, w io.Writer) error {
	q := url.Values{"follow": {strconv.FormatBool(o.Follow)}, "lines": {strconv.Itoa(o.Lines)}}
	body, err := c.do(ctx, http.MethodGet, "/v1/logs/"+url.PathEscape(component)+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(w, body)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Stop asks the node to end; it returns when the node has begun to.
func (c *Client) Stop(ctx context.Context, r StopRequest) error { return c.post(ctx, "/v1/stop", r) }

// Restart restarts the unit of a component.
func (c *Client) Restart(ctx context.Context, component string) error {
	return c.post(ctx, "/v1/restart/"+url.PathEscape(component), struct{}{})
}

// Upgrade hands the node over to another program; how far it is tells daemon.LastUpgrade, also while nothing answers.
func (c *Client) Upgrade(ctx context.Context, r UpgradeRequest) (Upgrade, error) {
	return call[Upgrade](ctx, c, http.MethodPost, "/v1/upgrade", r)
}

// ClusterUpgrade tells how far the upgrade of the cluster is.
func (c *Client) ClusterUpgrade(ctx context.Context) (ClusterUpgrade, error) {
	return call[ClusterUpgrade](ctx, c, http.MethodGet, "/v1/upgrade/cluster", nil)
}

// UpgradeCluster begins one, or says how it goes on; how far it is tells ClusterUpgrade.
func (c *Client) UpgradeCluster(ctx context.Context, r ClusterUpgradeRequest) (ClusterUpgrade, error) {
	return call[ClusterUpgrade](ctx, c, http.MethodPost, "/v1/upgrade/cluster", r)
}

// Leave takes the server out of a cluster of several.
func (c *Client) Leave(ctx context.Context) error { return c.post(ctx, "/v1/leave", struct{}{}) }

// Renew issues certificates anew.
func (c *Client) Renew(ctx context.Context, r RenewRequest) (Renewed, error) {
	return call[Renewed](ctx, c, http.MethodPost, "/v1/certificates/renew", r)
}

// Rotation tells how far the replacement of the cluster's authorities is.
func (c *Client) Rotation(ctx context.Context) (Rotation, error) {
	return call[Rotation](ctx, c, http.MethodGet, "/v1/certificates/rotation", nil)
}

// RotateCA begins to replace them; how far it is tells Rotation.
func (c *Client) RotateCA(ctx context.Context, r RotateRequest) (Rotation, error) {
	return call[Rotation](ctx, c, http.MethodPost, "/v1/certificates/rotation", r)
}

// Encryption tells how Secrets are kept.
func (c *Client) Encryption(ctx context.Context) (Encryption, error) {
	return call[Encryption](ctx, c, http.MethodGet, "/v1/encryption", nil)
}

// ChangeEncryption begins a change; how far it is tells Encryption.
func (c *Client) ChangeEncryption(ctx context.Context, r EncryptionRequest) (Encryption, error) {
	return call[Encryption](ctx, c, http.MethodPost, "/v1/encryption", r)
}

// Tokens lists the tokens with which machines can join.
func (c *Client) Tokens(ctx context.Context) ([]Token, error) {
	return call[[]Token](ctx, c, http.MethodGet, "/v1/tokens", nil)
}

// CreateToken makes one; its text is in the answer and is kept nowhere.
func (c *Client) CreateToken(ctx context.Context, r TokenRequest) (NewToken, error) {
	return call[NewToken](ctx, c, http.MethodPost, "/v1/tokens", r)
}

// RevokeToken ends a token. Nodes that joined with it stay.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	return c.remove(ctx, "/v1/tokens/", id)
}

// NodeRemoval tells what RemoveNode would do.
func (c *Client) NodeRemoval(ctx context.Context, name string) (NodeRemoval, error) {
	return call[NodeRemoval](ctx, c, http.MethodGet, "/v1/nodes/"+url.PathEscape(name)+"/removal", nil)
}

// RemoveNode takes another node out of the cluster, and frees its name.
func (c *Client) RemoveNode(ctx context.Context, name string) error {
	return c.remove(ctx, "/v1/nodes/", name)
}

func (c *Client) remove(ctx context.Context, path, name string) error {
	body, err := c.do(ctx, http.MethodDelete, path+url.PathEscape(name), nil)
	if err != nil {
		return err
	}
	return body.Close()
}

// call sends a request, nil for none, and reads the answer.
func call[T any](ctx context.Context, c *Client, method, path string, request any) (T, error) {
	var (
		out T
		b   []byte
		err error
	)
	if request != nil {
		if b, err = json.Marshal(request); err != nil {
			return out, err
		}
	}
	body, err := c.do(ctx, method, path, b)
	if err != nil {
		return out, err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(&out); err != nil {
		return out, fmt.Errorf("reading the node's answer: %w", err)
	}
	return out, nil
}

// Datastore tells where the state is.
func (c *Client) Datastore(ctx context.Context) (Datastore, error) {
	return c.datastore(ctx, http.MethodGet, nil)
}

// MoveDatastore begins a move; how far it is tells Datastore.
func (c *Client) MoveDatastore(ctx context.Context, r DatastoreRequest) (Datastore, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return Datastore{}, err
	}
	return c.datastore(ctx, http.MethodPost, b)
}

func (c *Client) datastore(ctx context.Context, method string, request []byte) (Datastore, error) {
	var out Datastore
	body, err := c.do(ctx, method, "/v1/datastore", request)
	if err != nil {
		return out, err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(&out); err != nil {
		return out, fmt.Errorf("reading the node's answer: %w", err)
	}
	return out, nil
}

// Etcd tells of the embedded etcd.
func (c *Client) Etcd(ctx context.Context) (Etcd, error) {
	return call[Etcd](ctx, c, http.MethodGet, "/v1/etcd", nil)
}

// DefragmentEtcd returns when it is done.
func (c *Client) DefragmentEtcd(ctx context.Context) (EtcdDefragmented, error) {
	return call[EtcdDefragmented](ctx, c, http.MethodPost, "/v1/etcd/defragment", struct{}{})
}

// SaveSnapshot returns when it is at all its places. With an error in its Problem some of them may have it.
func (c *Client) SaveSnapshot(ctx context.Context, r SnapshotRequest) (Snapshots, error) {
	return call[Snapshots](ctx, c, http.MethodPost, "/v1/etcd/snapshots", r)
}

// Snapshots lists those there are.
func (c *Client) Snapshots(ctx context.Context) (Snapshots, error) {
	return call[Snapshots](ctx, c, http.MethodGet, "/v1/etcd/snapshots", nil)
}

// RemoveSnapshots answers with what was removed, or would be.
func (c *Client) RemoveSnapshots(ctx context.Context, r RemoveSnapshotsRequest) (Snapshots, error) {
	return call[Snapshots](ctx, c, http.MethodPost, "/v1/etcd/snapshots/remove", r)
}

// CollectBackup gathers the whole state in a directory of this machine, which the caller removes.
func (c *Client) CollectBackup(ctx context.Context, r BackupRequest) (Collected, error) {
	return call[Collected](ctx, c, http.MethodPost, "/v1/backup", r)
}

// RestoreSnapshot begins a restore; how far it is tells Etcd.
func (c *Client) RestoreSnapshot(ctx context.Context, r RestoreRequest) (Restored, error) {
	return call[Restored](ctx, c, http.MethodPost, "/v1/etcd/restore", r)
}

func (c *Client) post(ctx context.Context, path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	body, err := c.do(ctx, http.MethodPost, path, b)
	if err != nil {
		return err
	}
	return body.Close()
}

func (c *Client) do(ctx context.Context, method, path string, body []byte) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://k1s"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.dialError(err)
	}
	if resp.StatusCode < 300 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var e errs.Wire
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&e); err != nil || e.Err() == nil {
		return nil, fmt.Errorf("the node answers %s to %s %s", resp.Status, method, path)
	}
	return nil, e.Err()
}

func (c *Client) dialError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return errs.Hint(errs.New(errs.NotRunning, "k1s is not running (nothing answers at %s)", c.socket), "run: k1s server")
	case errors.Is(err, fs.ErrPermission):
		return errs.Hint(fmt.Errorf("asking k1s at %s: permission denied", c.socket), "run it as root")
	default:
		return fmt.Errorf("asking k1s at %s: %w", c.socket, err)
	}
}
