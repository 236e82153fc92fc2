package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/kubeapi"
	"k1s.io/k1s/internal/token"
)

// leavingKey is where the Secret of a node keeps since when it is being removed.
const leavingKey = "leaving"

// markTries bounds how often a mark is written again, which a node that renews its certificates has been faster than.
const markTries = 3

// markLeaving keeps in the cluster that a node is being removed, or takes that back. A node of which that is kept is not let in and
// gets no certificates; when whoever removes it dies, another server brings it to its end. It is first of all the steps, and its Secret
// the last thing that goes. uid is that of the Secret, "" for whichever there is; another one is an error of kind errs.NotFound.
func markLeaving(ctx context.Context, api *kubeapi.Client, node, uid string, leaves bool) error {
	for try := 1; ; try++ {
		sec, err := api.Secret(ctx, systemNamespace, nodePrefix+node)
		if err != nil {
			return err
		}
		if uid != "" && sec.Metadata.UID != uid {
			return errs.New(errs.NotFound, "%s is another machine by now", node)
		}
		if _, is := sec.Data[leavingKey]; is == leaves {
			return nil
		}
		if sec.Data == nil {
			sec.Data = map[string][]byte{}
		}
		delete(sec.Data, leavingKey)
		if leaves {
			sec.Data[leavingKey] = []byte(time.Now().UTC().Format(time.RFC3339))
		}
		if err = api.ReplaceSecret(ctx, systemNamespace, sec); !errs.Is(err, errs.Exists) || try == markTries {
			return err
		}
	}
}

// unmarkTime is how long taking a mark back may take, also when nobody waits for the removal any more.
const unmarkTime = 10 * time.Second

// stays takes the mark of a node back that could not be removed.
func (d *Daemon) stays(ctx context.Context, api *kubeapi.Client, node, uid string) {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), unmarkTime, fmt.Errorf("not done within %s", unmarkTime))
	defer cancel()
	if err := markLeaving(ctx, api, node, uid, false); err != nil && !errs.Is(err, errs.NotFound) {
		d.log.Warn("it stays kept in the cluster that a node leaves, and is tried again", "node", node, "err", err)
	}
}

// finishEvery is how often it is looked for what was cut off. What is found at two looks in a row is nobody's any more: a removal
// takes seconds, those included for which etcd is asked again.
const finishEvery = time.Minute

// watchLeaving brings removals to their end whose server has died between two steps.
func (d *Daemon) watchLeaving(ctx context.Context, api *kubeapi.Client) {
	tick := time.NewTicker(finishEvery)
	defer tick.Stop()
	seen := map[string]string{}
	for {
		if err := d.finishLeaving(ctx, api, seen); err != nil && ctx.Err() == nil {
			d.log.Warn("removals of nodes that were cut off are not finished", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// finishLeaving finishes the removals that were seen before and have not gone on; seen is what each was like. Where there is an
// embedded etcd only who leads it does that, and takes back what was kept of a server that is well and still a member: whoever began is
// gone, or has changed their mind, and nothing is lost by asking again.
func (d *Daemon) finishLeaving(ctx context.Context, api *kubeapi.Client, seen map[string]string) error {
	d.mu.Lock()
	in := d.in // the state may have moved since the start, out of an etcd or into one
	d.mu.Unlock()
	if d.unmoved() != nil || d.stopRequest() != nil {
		clear(seen)
		return nil
	}
	all, err := api.Secrets(ctx, systemNamespace, typeLabel+"=node")
	if err != nil {
		return err
	}
	before := maps.Clone(seen)
	clear(seen)
	var due []string
	for _, sec := range all {
		node := nodeOfSecret(sec.Metadata.Name)
		if _, leaves := sec.Data[leavingKey]; !leaves || node == in.Facts.NodeName && !components.UsesEtcd(in) {
			continue // one that gives itself up is no server's any more when that comes so far
		}
		if seen[node] = sec.Metadata.ResourceVersion; before[node] == seen[node] {
			due = append(due, node)
		}
	}
	if len(due) == 0 {
		return nil
	}
	if leads, err := d.leadsEtcd(ctx, in); err != nil || !leads {
		return err
	}
	var failed []error
	for _, node := range due {
		if err := d.finishOne(ctx, in, api, node); err != nil && !errs.Is(err, errs.NotFound) { // somebody else was faster
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// finishOne removes a node, unless it has been given up meanwhile, which nobody is to begin anew, or is to be.
func (d *Daemon) finishOne(ctx context.Context, in component.Input, api *kubeapi.Client, node string) error {
	sec, err := api.Secret(ctx, systemNamespace, nodePrefix+node)
	if err != nil {
		return err
	}
	if _, leaves := sec.Data[leavingKey]; !leaves {
		return nil
	}
	b, _ := bindingOf(sec) // of a damaged one what matters here is known
	well, err := d.serverWell(ctx, in, api, b)
	if err != nil {
		return fmt.Errorf("finding out how %s is, whose removal was cut off: %w", node, err)
	}
	if well != "" {
		d.log.Warn("the removal of a server was cut off, and is given up: it is still a member of etcd, and well", "node", node, "because", well)
		d.stays(ctx, api, node, sec.Metadata.UID)
		return nil
	}
	if node == in.Facts.NodeName {
		return nil
	}
	d.log.Info("the removal of a node was cut off, and is finished", "node", node)
	return d.removeNode(ctx, node, true)
}

// serverWell says how it is known that a server is well which is a member of etcd; "" of one that is not, or is none.
func (d *Daemon) serverWell(ctx context.Context, in component.Input, api *kubeapi.Client, b join.Binding) (string, error) {
	if b.Role != token.Server || !components.UsesEtcd(in) {
		return "", nil
	}
	store := clusterStore{api: api}
	bindings, err := store.Bindings(ctx)
	if err != nil {
		return "", err
	}
	c, err := d.etcd(in)
	if err != nil {
		return "", err
	}
	defer c.Close()
	var f etcdcare.Facts
	if _, err := c.Facts(ctx, &f); err != nil {
		return "", err
	}
	member := false
	for _, m := range f.Members {
		listed := asListed(m)
		if m.Unstarted {
			listed.Name = ""
		}
		if !isMember(listed, b, bindings) {
			continue
		}
		member = true
		if etcdcare.Seen(m) {
			return "its member answers, or is connected", nil
		}
	}
	if !member {
		return "", nil
	}
	nodes, err := store.Nodes(ctx)
	if err != nil {
		return "", err
	}
	if slices.ContainsFunc(nodes, func(n join.Node) bool { return n.Name == b.Node && n.Ready }) {
		return "its Node is Ready", nil
	}
	return "", nil
}

// leadsEtcd tells whether this server's member leads, or there is none.
func (d *Daemon) leadsEtcd(ctx context.Context, in component.Input) (bool, error) {
	if !components.UsesEtcd(in) {
		return true, nil
	}
	c, err := d.etcd(in)
	if err != nil {
		return false, err
	}
	defer c.Close()
	st, err := c.Status(ctx)
	return err == nil && st.Leader == st.ID, err
}
