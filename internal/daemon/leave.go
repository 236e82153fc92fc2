package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdapi"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/step"
)

// leavePatience is how long leaving waits for this server's own API, which is asked who the others are: it may be starting, or without its datastore
// while that is moved.
const leavePatience = 2 * time.Minute

// Leave implements control.Backend.
func (d *Daemon) Leave(ctx context.Context) error {
	if d.o.Config.Spec.ControlPlane() {
		starting, cancel := context.WithTimeout(ctx, leavePatience)
		defer cancel()
		if err := d.sup.Await(starting, "kube-apiserver", component.Ready); err != nil {
			return fmt.Errorf("leaving the cluster: finding the other servers: %w", err)
		}
	}
	in, api, err := d.server()
	if err != nil || !in.Several {
		return err
	}
	all, err := api.Servers(ctx)
	if err != nil {
		return fmt.Errorf("leaving the cluster: finding the other servers: %w", err)
	}
	own := net.JoinHostPort(in.Facts.NodeIP.String(), strconv.Itoa(in.Config.Spec.API.Port))
	others := slices.DeleteFunc(all, func(s string) bool { return s == own })
	name := in.Facts.NodeName
	if len(others) > 0 { // from here on they go on with it if this one dies
		if err := markLeaving(ctx, api, name, "", true); err != nil && !errs.Is(err, errs.NotFound) {
			return fmt.Errorf("leaving the cluster: keeping there that this server leaves: %w", err)
		}
	}
	if components.UsesEtcd(in) {
		left, err := d.leaveEtcd(ctx, in)
		if err != nil && len(others) > 0 { // where it is none any more this cannot be done, and the others go on
			d.stays(ctx, api, name, "")
		}
		if err != nil || !left && len(others) == 0 {
			return err
		}
	}
	if len(others) == 0 {
		return nil // nobody else is there who would have to know
	}
	// Its own API has no datastore any more.
	failed := make([]error, 0, len(others))
	for _, server := range others {
		if err = forget(ctx, in, server); err == nil {
			d.log.Info("this server has left its cluster")
			return nil
		}
		failed = append(failed, fmt.Errorf("%s: %w", server, err))
	}
	return errs.Hint(fmt.Errorf("this server is no member any more, but its node is still known: %w", errors.Join(failed...)), "on another server: k1s node remove %s", in.Facts.NodeName)
}

// leaveEtcd takes this server's member out of etcd; false says that it is the only one.
func (d *Daemon) leaveEtcd(ctx context.Context, in component.Input) (bool, error) {
	c, err := etcdClient(in)
	if err != nil {
		return false, err
	}
	defer c.Close()
	all, err := c.AgreedMembers(ctx)
	if err != nil {
		return false, fmt.Errorf("leaving the cluster: %w", err)
	}
	if len(all) < 2 {
		return false, nil
	}
	st, err := c.Status(ctx)
	if err != nil {
		return false, fmt.Errorf("leaving the cluster: %w", err)
	}
	if st.Leader == st.ID {
		// Or nobody leads for an election.
		if err := handOver(ctx, c, st.ID, all); err != nil {
			return false, fmt.Errorf("leaving the cluster: %w", err)
		}
	}
	_, err = d.removeMember(ctx, in, leaver{Binding: join.Binding{Node: in.Facts.NodeName, IP: in.Facts.NodeIP}})
	if errors.Is(err, etcdapi.ErrStopped) {
		err = nil // that is what stopped it
	}
	return true, err
}

// handOver lets another member lead, one that answers.
func handOver(ctx context.Context, c *etcdapi.Client, self uint64, all []etcdapi.Member) error {
	var failed []error
	for _, m := range all {
		if m.ID == self || m.IsLearner {
			continue
		}
		err := c.MoveLeader(ctx, m.ID)
		if err == nil {
			return nil
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...) // none for a cluster of one and learners
}

// forget lets another server forget this one's node.
func forget(ctx context.Context, in component.Input, server string) error {
	api, err := serverClient(in, server)
	if err != nil {
		return err
	}
	defer api.Close()
	name := in.Facts.NodeName
	if err := api.DeleteNode(ctx, name, ""); err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	// Last: while it is there others know that they have to go on.
	if err := api.DeleteSecret(ctx, systemNamespace, nodePrefix+name, ""); err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	return nil
}

// leaveSteps is what a server of several does before it is reset: a member that is gone without a word counts against the
// majority of those that stay. Where they cannot be told nothing is removed, since with the keys and the data that could not be made good any more;
// force goes on.
func leaveSteps(o Options, force bool) []step.Step {
	s, err := readPeers(o.Paths)
	if err == nil && (!s.Several || s.Removed) {
		return nil
	}
	return []step.Step{{Name: "leave the other servers of the cluster", Required: true, Do: func(ctx context.Context) error {
		err := control.NewClient(o.Paths.ControlSocket()).Leave(ctx)
		if err == nil || force {
			return nil
		}
		if errs.Is(err, errs.NotRunning) {
			err = errs.New(errs.NotRunning, "this server does not run, and cannot tell the others that it goes: %w", err)
		}
		return errs.Hint(fmt.Errorf("%w; nothing was removed", err), "start it and run k1s reset again; or run k1s node remove on another server, and here: k1s reset --force")
	}}}
}
