// Package etcd asks an etcd member about its cluster and changes who is in it, as far as the light program has to: over
// the JSON gateway of etcd's client port (https://etcd.io/docs/v3.6/dev-guide/api_grpc_gateway/), so that neither
// gRPC nor etcd's own client are in it. Everything that is about contents is done in the heavy program.
package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"time"

	"k1s.io/k1s/internal/errs"
)

// Client asks one member.
type Client struct {
	// URL is the member's client URL.
	URL string
	// CAFile, CertFile and KeyFile are what it is reached with; read for each question, since they are renewed.
	CAFile, CertFile, KeyFile string
}

// ID of a member or a cluster.
type ID uint64

func (i ID) String() string { return strconv.FormatUint(uint64(i), 16) }

// MarshalText writes it as etcd's gateway wants it, in decimal.
func (i ID) MarshalText() ([]byte, error) { return strconv.AppendUint(nil, uint64(i), 10), nil }

// UnmarshalText reads what MarshalText wrote.
func (i *ID) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 10, 64)
	*i = ID(n)
	return err
}

// Member of a cluster.
type Member struct {
	ID ID `json:"ID"`
	// Name is empty until the member has started for the first time.
	Name     string   `json:"name"`
	PeerURLs []string `json:"peerURLs"`
	// Learner: it copies and does not vote.
	Learner bool `json:"isLearner"`
}

// Status of the member that is asked.
type Status struct {
	Member  ID
	Leader  ID // 0: it knows of none
	Learner bool
}

// Errors of etcd that say something about what was asked, not about etcd.
var (
	// ErrNotReady: the learner has not caught up.
	ErrNotReady = errors.New("the member has not caught up with the leader yet")
	// ErrTooManyLearners: another one has to get its vote first.
	ErrTooManyLearners = errors.New("another member is joining")
	// ErrNotFound: there is no such member.
	ErrNotFound = errors.New("there is no such member")
	// ErrNotLearner: it has a vote already.
	ErrNotLearner = errors.New("the member has a vote already")
	// ErrUnsafe: the change would leave the cluster without a majority of members that are there.
	ErrUnsafe = errors.New("the cluster would lose its majority")
)

// what etcd says (go.etcd.io/etcd/api/v3/v3rpc/rpctypes), and what it means.
var told = map[string]error{
	"etcdserver: can only promote a learner member which is in sync with leader": ErrNotReady,
	"etcdserver: too many learner members in cluster":                            ErrTooManyLearners,
	"etcdserver: member not found":                                               ErrNotFound,
	"etcdserver: can only promote a learner member":                              ErrNotLearner,
	"etcdserver: re-configuration failed due to not enough started members":      ErrUnsafe,
	"etcdserver: unhealthy cluster":                                              ErrUnsafe,
}

// Members lists the cluster's, by name.
func (c Client) Members(ctx context.Context) ([]Member, error) {
	var out struct {
		Members []Member `json:"members"`
	}
	err := c.ask(ctx, "/v3/cluster/member/list", map[string]any{"linearizable": true}, &out)
	slices.SortFunc(out.Members, func(a, b Member) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	return out.Members, err
}

// AddLearner adds a member that does not vote, and returns all there are then.
func (c Client) AddLearner(ctx context.Context, peerURL string) (Member, []Member, error) {
	var out struct {
		Member  Member   `json:"member"`
		Members []Member `json:"members"`
	}
	err := c.ask(ctx, "/v3/cluster/member/add", map[string]any{"peerURLs": []string{peerURL}, "isLearner": true}, &out)
	return out.Member, out.Members, err
}

// Promote gives a learner its vote.
func (c Client) Promote(ctx context.Context, id ID) error {
	return c.ask(ctx, "/v3/cluster/member/promote", map[string]any{"ID": id}, &struct{}{})
}

// Remove takes a member out of the cluster for good.
func (c Client) Remove(ctx context.Context, id ID) error {
	return c.ask(ctx, "/v3/cluster/member/remove", map[string]any{"ID": id}, &struct{}{})
}

// SetPeerURL changes where a member is reached by the others.
func (c Client) SetPeerURL(ctx context.Context, id ID, peerURL string) error {
	return c.ask(ctx, "/v3/cluster/member/update", map[string]any{"ID": id, "peerURLs": []string{peerURL}}, &struct{}{})
}

// Status of the member that is asked.
func (c Client) Status(ctx context.Context) (Status, error) {
	var out struct {
		Header struct {
			Member ID `json:"member_id"`
		} `json:"header"`
		Leader  ID   `json:"leader"`
		Learner bool `json:"isLearner"`
	}
	err := c.ask(ctx, "/v3/maintenance/status", map[string]any{}, &out)
	return Status{Member: out.Header.Member, Leader: out.Leader, Learner: out.Learner}, err
}

// MoveLeader hands leadership over; only the leader can do it.
func (c Client) MoveLeader(ctx context.Context, to ID) error {
	return c.ask(ctx, "/v3/maintenance/transfer-leadership", map[string]any{"targetID": to}, &struct{}{})
}

// maxAnswer bounds an answer: a handful of members.
const maxAnswer = 1 << 20

func (c Client) ask(ctx context.Context, path string, question, answer any) error {
	conf, err := c.tls()
	if err != nil {
		return err
	}
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	t := &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true, ResponseHeaderTimeout: 10 * time.Second}
	defer t.CloseIdleConnections()
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return errs.As(errs.NotRunning, fmt.Errorf("asking etcd: %w", err))
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return errs.As(errs.NotRunning, fmt.Errorf("asking etcd: %w", err))
	}
	if resp.StatusCode != http.StatusOK {
		var e struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(raw, &e) != nil || e.Message == "" {
			e.Message = resp.Status
		}
		if known, ok := told[e.Message]; ok {
			return known
		}
		return errs.As(errs.NotRunning, fmt.Errorf("etcd refuses: %s", e.Message))
	}
	if err := json.Unmarshal(raw, answer); err != nil {
		return fmt.Errorf("etcd's answer to %s cannot be read: %w", path, err)
	}
	return nil
}

func (c Client) tls() (*tls.Config, error) {
	raw, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("asking etcd: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("asking etcd: %s has no certificate in it", c.CAFile)
	}
	pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("asking etcd: %w", err)
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}
