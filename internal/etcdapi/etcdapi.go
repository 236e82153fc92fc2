// Package etcdapi asks an embedded etcd about itself, and steers it, through the JSON form of its API, which etcd serves at
// its clients' port beside gRPC. It is for the light program, which must not carry etcd's own client; snapshots, which are
// streams, are taken by internal/applets/etcdcare. The daemon is its user.
package etcdapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"k1s.io/k1s/internal/errs"
)

// Client of one member.
type Client struct {
	endpoint string
	http     *http.Client
	// Metrics is where the member's metrics are read, http://HOST:PORT/metrics; "" for nowhere. It is set before the first question.
	Metrics string
	// changeTime is how long a change of members may take.
	changeTime time.Duration
}

// changeTime is longer than etcd itself waits for a majority, which is 5 seconds and two elections.
const changeTime = 15 * time.Second

// New does not connect yet. endpoint is https://HOST:PORT.
func New(endpoint string, conf *tls.Config) *Client {
	return &Client{endpoint: endpoint, changeTime: changeTime, http: &http.Client{Transport: &http.Transport{TLSClientConfig: conf, IdleConnTimeout: time.Minute}}}
}

// Close ends its connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status is what a member says of itself.
type Status struct {
	ClusterID uint64
	ID        uint64
	Leader    uint64 // 0 for none
	Learner   bool
	Version   string
	// Bytes is the size of the file, InUse the part of it that is not free pages, Quota what it may grow to.
	Bytes, InUse, Quota int64
	Revision            int64
	// Index is the last entry of the log that is committed, Applied the last whose write can be read.
	Index, Applied, Term uint64
	// Errors are what it complains of, alarms among them.
	Errors []string
}

// Alarms are those among the Errors, by member, which can have several: NOSPACE, CORRUPT. Of the member 0 is one that is nobody's. Asking
// for them in another way would be a write.
func (s Status) Alarms() map[uint64][]string {
	out := map[uint64][]string{}
	for _, e := range s.Errors {
		var id uint64
		alarm := ""
		for f := range strings.FieldsSeq(e) { // the text form of its message, "memberID:1234 alarm:NOSPACE"
			if v, ok := strings.CutPrefix(f, "memberID:"); ok {
				id, _ = strconv.ParseUint(v, 10, 64)
			}
			if v, ok := strings.CutPrefix(f, "alarm:"); ok {
				alarm = v
			}
		}
		if alarm != "" && alarm != "NONE" && !slices.Contains(out[id], alarm) {
			out[id] = append(out[id], alarm)
		}
	}
	return out
}

type header struct {
	ClusterID uint64 `json:"cluster_id,string"`
	MemberID  uint64 `json:"member_id,string"`
	Revision  int64  `json:"revision,string"`
}

// Status asks.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var r struct {
		Header      header   `json:"header"`
		Version     string   `json:"version"`
		DBSize      int64    `json:"dbSize,string"`
		DBSizeInUse int64    `json:"dbSizeInUse,string"`
		DBSizeQuota int64    `json:"dbSizeQuota,string"`
		Leader      uint64   `json:"leader,string"`
		RaftIndex   uint64   `json:"raftIndex,string"`
		RaftApplied uint64   `json:"raftAppliedIndex,string"`
		RaftTerm    uint64   `json:"raftTerm,string"`
		Errors      []string `json:"errors"`
		IsLearner   bool     `json:"isLearner"`
	}
	if err := c.call(ctx, "/v3/maintenance/status", struct{}{}, &r); err != nil {
		return Status{}, fmt.Errorf("asking etcd for its state: %w", err)
	}
	return Status{
		ClusterID: r.Header.ClusterID, ID: r.Header.MemberID, Leader: r.Leader, Learner: r.IsLearner, Version: r.Version,
		Bytes: r.DBSize, InUse: r.DBSizeInUse, Quota: r.DBSizeQuota, Revision: r.Header.Revision,
		Index: r.RaftIndex, Applied: r.RaftApplied, Term: r.RaftTerm, Errors: r.Errors,
	}, nil
}

// Member is one as the cluster knows it.
type Member struct {
	ID         uint64   `json:"ID,string"`
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs"`
	IsLearner  bool     `json:"isLearner"`
}

// Members are those this member knows of, also when there is no leader.
func (c *Client) Members(ctx context.Context) ([]Member, error) {
	var r struct {
		Members []Member `json:"members"`
	}
	if err := c.call(ctx, "/v3/cluster/member/list", map[string]any{"linearizable": false}, &r); err != nil {
		return nil, fmt.Errorf("asking etcd for its members: %w", err)
	}
	return r.Members, nil
}

// Disarm takes back an alarm of a member.
func (c *Client) Disarm(ctx context.Context, member uint64, alarm string) error {
	request := map[string]any{"action": "DEACTIVATE", "memberID": strconv.FormatUint(member, 10), "alarm": alarm}
	if err := c.call(ctx, "/v3/maintenance/alarm", request, nil); err != nil {
		return fmt.Errorf("taking back etcd's alarm: %w", err)
	}
	return nil
}

// Compact forgets what was before a revision, and returns when it is forgotten.
func (c *Client) Compact(ctx context.Context, revision int64) error {
	err := c.call(ctx, "/v3/kv/compaction", map[string]any{"revision": strconv.FormatInt(revision, 10), "physical": true}, nil)
	if err != nil && !strings.Contains(err.Error(), "has been compacted") {
		return fmt.Errorf("compacting etcd: %w", err)
	}
	return nil
}

// Defragment copies what is in use into a new file. The member answers nobody until that is done.
func (c *Client) Defragment(ctx context.Context) error {
	if err := c.call(ctx, "/v3/maintenance/defragment", struct{}{}, nil); err != nil {
		return fmt.Errorf("defragmenting etcd: %w", err)
	}
	return nil
}

// MoveLeader lets another member lead; this one has to be the leader.
func (c *Client) MoveLeader(ctx context.Context, to uint64) error {
	if err := c.call(ctx, "/v3/maintenance/transfer-leadership", map[string]any{"targetID": strconv.FormatUint(to, 10)}, nil); err != nil {
		return fmt.Errorf("moving etcd's leadership: %w", err)
	}
	return nil
}

// Lock takes a key that only one can have, and returns what gives it back; without that it is free after ttl. An error of kind
// errs.Exists means that somebody else has it.
func (c *Client) Lock(ctx context.Context, key string, ttl time.Duration) (unlock func(context.Context) error, err error) {
	var lease struct {
		ID string `json:"ID"`
	}
	if err := c.call(ctx, "/v3/lease/grant", map[string]any{"TTL": strconv.Itoa(int(ttl / time.Second))}, &lease); err != nil {
		return nil, fmt.Errorf("asking etcd for a lease: %w", err)
	}
	unlock = func(ctx context.Context) error {
		return c.call(ctx, "/v3/lease/revoke", map[string]any{"ID": lease.ID}, nil)
	}
	k := base64.StdEncoding.EncodeToString([]byte(key))
	var txn struct {
		Succeeded bool `json:"succeeded"`
	}
	err = c.call(ctx, "/v3/kv/txn", map[string]any{
		"compare": []any{map[string]any{"target": "CREATE", "result": "EQUAL", "key": k, "create_revision": "0"}},
		"success": []any{map[string]any{"request_put": map[string]any{"key": k, "lease": lease.ID}}},
	}, &txn)
	if err == nil && !txn.Succeeded {
		err = errs.New(errs.Exists, "another server holds it")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("taking etcd's lock %s: %w", key, err), unlock(ctx))
	}
	return unlock, nil
}

// Alive asks a member at its peers' port whether it is there. Only that it answers is known then, and how far its clock is ahead of
// this one's, to about a second.
func (c *Client) Alive(ctx context.Context, peerURL string) (skew time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, peerURL+"/version", nil)
	if err != nil {
		return 0, err
	}
	asked := time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, errors.New(resp.Status)
	}
	took := time.Since(asked)
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil { // in whole seconds, and without it nothing is known
		skew = date.Add(time.Second / 2).Sub(asked.Add(took / 2))
	}
	return skew, nil
}

// answerLimit is more than any answer has.
const answerLimit = 4 << 20

func (c *Client) call(ctx context.Context, path string, request, into any) error {
	b, err := json.Marshal(request)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.endpoint+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, answerLimit))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		var e struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(answer, &e) == nil && e.Message != "" {
			return errors.New(e.Message)
		}
		return fmt.Errorf("%s: %.200s", resp.Status, answer)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("reading the answer to %s: %w", path, err)
	}
	return nil
}
