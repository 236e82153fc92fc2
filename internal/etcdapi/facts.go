package etcdapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/wait"
)

const (
	leaderTime = 10 * time.Second // within which another member has to lead
	aliveTime  = 2 * time.Second  // within which another member has to answer
)

// Facts fills in what etcd knows.
func (c *Client) Facts(ctx context.Context, f *etcdcare.Facts) (Status, error) {
	s, err := c.Status(ctx)
	if err != nil {
		return s, err
	}
	f.ID, f.Leader, f.Learner, f.Bytes, f.InUse, f.Quota, f.Revision = s.ID, s.Leader, s.Learner, s.Bytes, s.InUse, s.Quota, s.Revision
	f.Alarms = map[uint64]etcdcare.Alarm{}
	for id, all := range s.Alarms() {
		for _, a := range all {
			if f.Alarms[id] != etcdcare.Corruption {
				f.Alarms[id] = etcdcare.Alarm(a)
			}
		}
	}
	f.Members, err = c.members(ctx, s)
	return s, err
}

// members are all there are. Others are asked at the port that members use among themselves: that of their clients may be for
// their own machine only.
func (c *Client) members(ctx context.Context, s Status) ([]etcdcare.Member, error) {
	all, err := c.Members(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]etcdcare.Member, len(all))
	var asked sync.WaitGroup
	for i, m := range all {
		e := &out[i]
		*e = etcdcare.Member{ID: m.ID, Name: m.Name, Self: m.ID == s.ID, Learner: m.IsLearner, Leader: m.ID == s.Leader, PeerURLs: m.PeerURLs, Healthy: m.ID == s.ID}
		switch {
		case e.Self:
		case e.Name == "": // it has been added and has not started
			e.Name, e.Problem = fmt.Sprintf("%x", m.ID), "it has not started yet"
		default:
			asked.Go(func() { e.Skew, e.Problem = c.answers(ctx, m.PeerURLs); e.Healthy = e.Problem == "" })
		}
	}
	asked.Wait()
	slices.SortFunc(out, func(a, b etcdcare.Member) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// answers tells how far a member's clock is ahead, if it answers at any of its addresses, and why not.
func (c *Client) answers(ctx context.Context, peerURLs []string) (skew time.Duration, problem string) {
	ctx, cancel := context.WithTimeoutCause(ctx, aliveTime, fmt.Errorf("no answer within %s", aliveTime))
	defer cancel()
	problem = "it has no address"
	for _, u := range peerURLs {
		skew, err := c.Alive(ctx, u)
		if err == nil {
			return skew, ""
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		problem = err.Error()
	}
	return 0, problem
}

// StepDown lets another member lead, and returns when one does.
func (c *Client) StepDown(ctx context.Context, f etcdcare.Facts) error {
	to := etcdcare.Successor(f.Members)
	if to == 0 {
		return errors.New("there is no other member that could lead")
	}
	if err := c.MoveLeader(ctx, to); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, leaderTime, fmt.Errorf("not within %s", leaderTime))
	defer cancel()
	return wait.Until(ctx, 100*time.Millisecond, "another member to lead etcd", func(ctx context.Context) error {
		s, err := c.Status(ctx)
		if err == nil && (s.Leader == f.ID || s.Leader == 0) {
			err = errors.New("it is not known to be one")
		}
		return err
	})
}
