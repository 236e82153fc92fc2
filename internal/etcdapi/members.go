package etcdapi

import (
	"context"
	"errors"
	"fmt"
	"strconv"
)

// Errors of changing members that say something about what was asked, not about etcd.
var (
	// ErrNotReady: the learner has not caught up.
	ErrNotReady = errors.New("the member has not caught up with the leader yet")
	// ErrTooManyLearners: another one has to get its vote first.
	ErrTooManyLearners = errors.New("another member is joining")
	// ErrNoMember: there is no such member.
	ErrNoMember = errors.New("there is no such member")
	// ErrNotLearner: it has a vote already.
	ErrNotLearner = errors.New("the member has a vote already")
	// ErrStopped: the member that was asked has stopped before it could answer.
	ErrStopped = errors.New("the member has stopped")
	// ErrUnsafe: the cluster would have no majority of members that are there, or has had it for a moment only.
	ErrUnsafe = errors.New("too few members are connected for a change of members")
)

// what etcd says (go.etcd.io/etcd/api/v3/v3rpc/rpctypes, v3.6), and what it means.
var told = map[string]error{
	"etcdserver: can only promote a learner member which is in sync with leader": ErrNotReady,
	"etcdserver: too many learner members in cluster":                            ErrTooManyLearners,
	"etcdserver: member not found":                                               ErrNoMember,
	"etcdserver: can only promote a learner member":                              ErrNotLearner,
	"etcdserver: re-configuration failed due to not enough started members":      ErrUnsafe,
	"etcdserver: server stopped":                                                 ErrStopped,
	"etcdserver: unhealthy cluster":                                              ErrUnsafe,
}

func changed(what string, err error) error {
	if err == nil {
		return nil
	}
	if known, ok := told[err.Error()]; ok {
		err = known
	}
	return fmt.Errorf("%s: %w", what, err)
}

// agreed is call for what a majority has to agree about. etcd leaves out a change of members while another one is on its way, and then
// never answers who asked for it (raft: "ignoring conf change"; EtcdServer.configure in server/etcdserver/server.go waits for as long as it
// is asked): after changeTime nobody knows whether it was done, and whoever wanted it looks and asks again.
func (c *Client) agreed(ctx context.Context, path string, request, into any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.changeTime, fmt.Errorf("no answer within %s", c.changeTime))
	defer cancel()
	err := c.call(ctx, path, request, into)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", err, context.Cause(ctx))
	}
	return err
}

// AgreedMembers are those that a majority agrees about just now.
func (c *Client) AgreedMembers(ctx context.Context) ([]Member, error) {
	var r struct {
		Members []Member `json:"members"`
	}
	err := c.agreed(ctx, "/v3/cluster/member/list", map[string]any{"linearizable": true}, &r)
	return r.Members, changed("asking etcd for its members", err)
}

// AddLearner adds a member that copies and does not vote, and returns all there are then.
func (c *Client) AddLearner(ctx context.Context, peerURL string) (Member, []Member, error) {
	var r struct {
		Member  Member   `json:"member"`
		Members []Member `json:"members"`
	}
	err := c.agreed(ctx, "/v3/cluster/member/add", map[string]any{"peerURLs": []string{peerURL}, "isLearner": true}, &r)
	return r.Member, r.Members, changed("adding a member to etcd", err)
}

// Promote gives a learner its vote.
func (c *Client) Promote(ctx context.Context, id uint64) error {
	return changed("giving a member of etcd its vote", c.agreed(ctx, "/v3/cluster/member/promote", byID(id), nil))
}

// Remove takes a member out of the cluster for good.
func (c *Client) Remove(ctx context.Context, id uint64) error {
	return changed("removing a member from etcd", c.agreed(ctx, "/v3/cluster/member/remove", byID(id), nil))
}

// SetPeerURL changes where a member is reached by the others.
func (c *Client) SetPeerURL(ctx context.Context, id uint64, peerURL string) error {
	request := byID(id)
	request["peerURLs"] = []string{peerURL}
	return changed("changing the address of a member of etcd", c.agreed(ctx, "/v3/cluster/member/update", request, nil))
}

func byID(id uint64) map[string]any { return map[string]any{"ID": strconv.FormatUint(id, 10)} }
