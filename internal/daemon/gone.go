package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/token"
)

// awayMembers takes note of a look at the members of etcd. It returns what is to be told about those that are away, and the one
// that is to be removed now, 0 for none. stays says why the server of a member stays, whatever etcd says; it is asked at every look of the
// time in which nothing may be in the way.
func (d *Daemon) awayMembers(in component.Input, f etcdcare.Facts, stays func(id uint64) error) ([]health.Problem, uint64) {
	after := in.Config.Spec.Etcd.RemoveDeadAfter.Duration()
	d.mu.Lock()
	sight := d.upkeep.sight.Look(time.Since(d.started), f) // by the monotonic clock
	underWay, unmoved := d.underWay(), d.upkeep.unmoved
	if r := d.rolling.record; underWay == "" && r != nil && r.Moving() { // servers are away in turn
		underWay = clusterUpgrades
	}
	d.mu.Unlock()
	if underWay != "" {
		sight = sight.Barred()
	}
	what := sight.Departs(f, after, underWay)
	if what.ID != 0 && what.In <= etcdcare.Grace(after) {
		if err := stays(what.ID); err != nil {
			sight, what = sight.Barred(), etcdcare.Departure{Why: err.Error()}
		}
	}
	d.mu.Lock()
	d.upkeep.sight = sight // only who looks writes it
	d.mu.Unlock()
	gone := what.ID
	switch {
	case what.In > 0:
		gone = 0
	case gone != 0 && unmoved != "":
		what = etcdcare.Departure{Why: unmoved}
	}
	return sight.Problems(f, after, what), gone
}

// underWay is what changes the cluster just now, so that nobody is to be removed besides; "" for nothing. d.mu is held.
func (d *Daemon) underWay() string {
	switch {
	case d.stopped != nil:
		return "this server is stopping"
	case d.upgrading.Active():
		return "another k1s is being tried on it"
	case d.moving.active():
		return "the datastore is being moved"
	case d.care.restore.Active():
		return "a snapshot of etcd is being restored"
	case d.rotating.replacing():
		return "the cluster's CA is being replaced"
	case d.secrets.state.Change != nil:
		return "the encryption of Secrets is being changed"
	}
	return ""
}

// removeGone removes the server of a member that was not seen for as long as is configured, as `k1s node remove` does.
func (d *Daemon) removeGone(ctx context.Context, in component.Input, f etcdcare.Facts, id uint64) {
	err := d.tryRemoveGone(ctx, in, f, id)
	if ctx.Err() != nil {
		return
	}
	said := ""
	if err != nil {
		said = err.Error()
	}
	d.mu.Lock()
	news := said != d.upkeep.unmoved
	d.upkeep.unmoved = said
	d.mu.Unlock()
	if err != nil && news { // it is tried at every look
		d.log.Warn("a server that has not been seen for long is not removed", "member", etcdcare.MemberName(f.Members, id), "err", err)
	}
}

func (d *Daemon) tryRemoveGone(ctx context.Context, in component.Input, f etcdcare.Facts, id uint64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, goneTime, fmt.Errorf("not done within %s", goneTime))
	defer cancel()
	_, api, err := d.etcdServer()
	if err != nil {
		return err
	}
	b, err := d.findGone(ctx, in, f, id)
	if err != nil {
		return err
	}
	d.mu.Lock()
	away := d.upkeep.sight.Away(id).Round(time.Second)
	d.mu.Unlock()
	d.log.Warn("a server has not been seen for long, and is removed", "server", b.Node, "away", away, "after", in.Config.Spec.Etcd.RemoveDeadAfter)
	if err := d.removeNode(ctx, b.Node, true); err != nil {
		return err
	}
	err = api.WarnOfNode(ctx, kubeapi.NodeEvent{Node: b.Node, Reason: "ServerRemoved", At: time.Now(), Message: fmt.Sprintf(
		"%s had not been seen for %s by %s, which leads etcd, and was removed from the cluster (spec.etcd.removeDeadAfter); to join again it needs a token: k1s server --server URL --token-file FILE", b.Node, away, in.Facts.NodeName)})
	if err != nil {
		d.log.Warn("no event tells that a server was removed", "server", b.Node, "err", err)
	}
	return nil
}

// goneTime bounds removing a server that is gone.
const goneTime = time.Minute

// findGone is serverGone, by what the cluster knows now.
func (d *Daemon) findGone(ctx context.Context, in component.Input, f etcdcare.Facts, id uint64) (join.Binding, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTime, fmt.Errorf("no answer within %s", lookTime))
	defer cancel()
	store := clusterStore{api: d.client()}
	bindings, err := store.Bindings(ctx)
	if err != nil {
		return join.Binding{}, fmt.Errorf("finding out whose member it is: %w", err)
	}
	nodes, err := store.Nodes(ctx)
	if err != nil {
		return join.Binding{}, fmt.Errorf("finding out how its node is: %w", err)
	}
	return serverGone(in.Facts.NodeName, f.Members, id, bindings, nodes)
}

// serverGone is the server behind a member that is gone. The error says why it stays: the names in the cluster and the members have to be
// each other's, or somebody is joining or leaving; and a node that is Ready is there, whatever its etcd does.
func serverGone(self string, members []etcdcare.Member, id uint64, bindings []join.Binding, nodes []join.Node) (join.Binding, error) {
	var found *join.Binding
	for i, b := range bindings {
		if b.Role != token.Server {
			continue
		}
		var of []uint64
		for _, m := range members {
			if isMember(asListed(m), b, bindings) {
				of = append(of, m.ID)
			}
		}
		switch {
		case len(of) == 0:
			return join.Binding{}, errs.Hint(errs.New(errs.NotRunning, "server %s is no member of etcd: it is joining, or was not removed completely", b.Node), "if it does not come: k1s node remove %s", b.Node)
		case len(of) > 1:
			return join.Binding{}, errs.New(errs.NotRunning, "%d members of etcd can be server %s", len(of), b.Node)
		case of[0] == id:
			found = &bindings[i]
		}
	}
	switch {
	case found == nil:
		return join.Binding{}, errors.New("nobody knows whose member it is")
	case found.Node == self:
		return join.Binding{}, errors.New("it is this server's own")
	}
	for _, n := range nodes {
		if n.Name == found.Node && n.Ready {
			return join.Binding{}, errs.Hint(errs.New(errs.NotRunning, "its etcd does not answer, and node %s is Ready: the machine is there", n.Name), "look there: k1s status, k1s logs etcd")
		}
	}
	return *found, nil
}
