package etcdapi

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
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
	f.ID, f.Leader, f.Term, f.Learner = s.ID, s.Leader, s.Term, s.Learner
	f.Bytes, f.InUse, f.Quota, f.Revision = s.Bytes, s.InUse, s.Quota, s.Revision
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
			e.Name, e.Problem, e.Unstarted = fmt.Sprintf("%x", m.ID), "it has not started yet", true
		default:
			asked.Go(func() { e.Skew, e.Problem = c.answers(ctx, m.PeerURLs); e.Healthy = e.Problem == "" })
		}
	}
	asked.Wait()
	if slices.ContainsFunc(out, func(m etcdcare.Member) bool { return !m.Healthy && !m.Unstarted }) {
		linked, received, err := c.linked(ctx, s.ID)
		for i := range out {
			silent := !out[i].Healthy && !out[i].Unstarted
			out[i].Unsure = silent && err != nil
			if silent {
				out[i].Received = received[out[i].ID]
			}
			out[i].Linked = silent && (err != nil || linked[out[i].ID])
		}
	}
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

// Of server/etcdserver/api/rafthttp/metrics.go and peer_status.go, v3.6: activePeers is 1 for each member that this one is connected with. A connection that
// the other one has opened makes it 1, and every try of this one to open its own that fails makes it 0 again: of a member that cannot
// be reached, and reaches this one, it says nothing. What comes from it is in receivedBytes.
const (
	activePeers   = "etcd_network_active_peers{"
	receivedBytes = "etcd_network_peer_received_bytes_total{"
)

// linked are the members that this one, whose ID is self, is connected with, and how many bytes have come from each, from its metrics.
func (c *Client) linked(ctx context.Context, self uint64) (linked map[uint64]bool, received map[uint64]uint64, err error) {
	if c.Metrics == "" {
		return nil, nil, errors.New("where its metrics are is not known")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, aliveTime, fmt.Errorf("no answer within %s", aliveTime))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Metrics, nil)
	if err != nil {
		return nil, nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, nil, errors.New(resp.Status)
	}
	return readLinked(resp.Body, self)
}

// readLinked reads Prometheus' text format: NAME{Local="HEX",Remote="HEX"} 1, and NAME{From="HEX"} 1.2e+06.
func readLinked(r io.Reader, self uint64) (linked map[uint64]bool, received map[uint64]uint64, err error) {
	linked, received = map[uint64]bool{}, map[uint64]uint64{}
	lines := bufio.NewScanner(io.LimitReader(r, answerLimit))
	for lines.Scan() {
		active, isActive := strings.CutPrefix(lines.Text(), activePeers)
		bytes, isBytes := strings.CutPrefix(lines.Text(), receivedBytes)
		if !isActive && !isBytes {
			continue
		}
		labels, value, ok := strings.Cut(active, "} ")
		var local, remote uint64
		var n float64
		if isActive {
			if ok {
				_, err = fmt.Sscanf(labels, `Local="%x",Remote="%x"`, &local, &remote)
			}
		} else if labels, value, ok = strings.Cut(bytes, "} "); ok {
			if _, err = fmt.Sscanf(labels, `From="%x"`, &remote); err == nil {
				n, err = strconv.ParseFloat(value, 64)
			}
		}
		switch {
		case !ok || err != nil:
			return nil, nil, fmt.Errorf("etcd's metrics have a line that cannot be read: %s", lines.Text())
		case isBytes:
			received[remote] = uint64(n)
		case local == self:
			linked[remote] = value != "0"
		}
	}
	return linked, received, lines.Err()
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
