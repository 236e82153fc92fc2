package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/image"
	"k1s.io/k1s/internal/kubeconfig"
	"k1s.io/k1s/internal/wait"
)

// Manager is what users do with clusters, the same for every provider.
type Manager struct {
	Provider Provider
	// Ready asks a node once whether it is ready for work. The error says what is missing, in words that fit
	// behind "waiting for": "the node to be Ready: container runtime is starting".
	Ready func(ctx context.Context, n Node) error
	// Token asks a server once for a token with which nodes of a role join its cluster. Only clusters of several nodes
	// need it.
	Token func(ctx context.Context, n Node, role Role) (string, error)
	// Forget takes a node that is gone out of the cluster, through a server; nil leaves it there.
	Forget func(ctx context.Context, server Node, name string) error
	// Images asks a node once which of its bundles are imported. Only LoadImages needs it.
	Images func(ctx context.Context, n Node) ([]image.Bundle, error)
	// Kubeconfigs are the user's kubeconfig files as kubeconfig.Files lists them.
	Kubeconfigs []string
	// KeepContext leaves the current context of the user's kubeconfig when one is added.
	KeepContext bool
	// Progress may be nil.
	Progress Progress
}

// Progress is told what happens during long work, in order, by one goroutine.
type Progress interface {
	// Step begins something, e.g. "starting node server-0"; what was begun before is done.
	Step(what string)
	// Waiting says why the current step is not done yet. It may be called often with the same reason.
	Waiting(reason string)
	// Done ends the last step.
	Done()
}

type noProgress struct{}

func (noProgress) Step(string)    {}
func (noProgress) Waiting(string) {}
func (noProgress) Done()          {}

func (m Manager) progress() Progress {
	if m.Progress == nil {
		return noProgress{}
	}
	return m.Progress
}

// Context is the kubeconfig context of a cluster.
func Context(name string) string {
	if name == DefaultName {
		return name
	}
	return "k1s-" + name
}

// CreateOptions are what Create is asked for.
type CreateOptions struct {
	Spec  Spec
	Nodes []NodeSpec // servers first; their Cluster is filled in
	// Wait is how long to wait until the nodes are ready; 0 is not at all.
	Wait time.Duration
	// NoKubeconfig leaves the user's kubeconfig alone.
	NoKubeconfig bool
	// Keep leaves what was made when the creation fails, for a look at it.
	Keep bool
}

// Check finds what is wrong with a creation before anything is made.
func (m Manager) Check(ctx context.Context, o CreateOptions) error {
	if err := ValidateSpec(o.Spec); err != nil {
		return err
	}
	f, err := m.Provider.Features(ctx)
	if err != nil {
		return err
	}
	if o.Spec.Egress && !f.Egress {
		return errs.New(errs.Unsupported, "this machine cannot give a cluster a way to the outside")
	}
	if err := ValidateFor(o.Spec, o.Nodes); err != nil {
		return err
	}
	for _, n := range o.Nodes {
		if err := ValidateNode(n); err != nil {
			return err
		}
		if err := checkBundles(n.Bundles); err != nil {
			return err
		}
	}
	st, err := m.Provider.Describe(ctx, o.Spec.Name)
	switch {
	case errs.Is(err, errs.NotFound):
		if p, ok := m.Provider.(Preflight); ok {
			return p.Preflight(ctx, o.Spec, o.Nodes)
		}
		return nil
	case err != nil:
		return err
	}
	do := "delete"
	if st.State == Stopped {
		do = "start"
	}
	return errs.Hint(errs.New(errs.Exists, "there is a cluster %q already (%s)", o.Spec.Name, st.State),
		"run: k1s cluster %s %s, or choose another name", do, o.Spec.Name)
}

// checkBundles finds what is wrong with image bundles. Nodes know them by their names, so two cannot have the same.
func checkBundles(files []string) error {
	names := map[string]string{}
	for _, b := range files {
		if st, err := os.Stat(b); err != nil {
			return errs.New(errs.Invalid, "image bundle: %w", err)
		} else if !st.Mode().IsRegular() {
			return errs.New(errs.Invalid, "image bundle %s is no file", b)
		}
		name := filepath.Base(b)
		if other, ok := names[name]; ok && other != b {
			return errs.Hint(errs.New(errs.Invalid, "image bundles %s and %s have the same name", other, b), "rename one")
		}
		names[name] = b
	}
	return nil
}

// cleanUpLimit bounds taking back a creation that failed; it is not cut short by a second interrupt.
const cleanUpLimit = time.Minute

// Create makes a cluster and waits until it is ready. What a failed or interrupted creation made is deleted
// again, except when the nodes run and only did not become ready in time: then their logs are what tells why.
func (m Manager) Create(ctx context.Context, o CreateOptions) (st Status, err error) {
	if err := m.Check(ctx, o); err != nil {
		return Status{}, err
	}
	name, p := o.Spec.Name, m.progress()
	o.Spec.Creation = rand.Text()
	waiting, others := false, false
	defer func() {
		p.Done()
		interrupted := errors.Is(ctx.Err(), context.Canceled)
		if err == nil || o.Keep || others || waiting && !interrupted {
			return
		}
		p.Step("taking back what was made of cluster " + name)
		cctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), cleanUpLimit, errors.New("it took more than a minute"))
		defer cancel()
		switch derr := m.remove(cctx, name); {
		case derr != nil:
			err = errs.Hint(errors.Join(err, derr), "run: k1s cluster delete %s", name)
		case interrupted: // where it stood matters to nobody, and its logs are gone
			err = errs.New(errs.Interrupted, "interrupted; nothing is left of cluster %s", name)
		}
		p.Done()
	}()
	p.Step("creating the network of cluster " + name)
	spec, err := m.Provider.Prepare(ctx, o.Spec)
	if err != nil {
		// Somebody else was faster: what is there is theirs.
		others = errs.Is(err, errs.Exists)
		return Status{}, err
	}
	tokens := map[Role]string{}
	for _, n := range o.Nodes {
		n.Cluster = name
		if n.Joins() && tokens[n.Role] == "" {
			waiting = true // for a server that runs
			if tokens[n.Role], err = m.token(ctx, name, n.Role, cmp.Or(o.Wait, tokenLimit)); err != nil {
				return Status{}, err
			}
			waiting = false
		}
		if n.Joins() {
			n.Token = tokens[n.Role]
		}
		p.Step("starting node " + n.Name())
		if _, err := m.Provider.Create(ctx, n); err != nil {
			return Status{}, err
		}
	}
	waiting = true
	return m.settle(ctx, spec, o.Wait, o.NoKubeconfig)
}

// token gets what lets nodes of a role join, as soon as a server can give it.
func (m Manager) token(ctx context.Context, name string, role Role, limit time.Duration) (string, error) {
	if m.Token == nil {
		return "", errs.New(errs.Unsupported, "cluster %s cannot have more nodes: nobody can make a token", name)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not there within %s", limit))
	defer cancel()
	n, err := m.server(ctx, name)
	if err != nil {
		return "", err
	}
	m.progress().Step("waiting for the API of cluster " + name)
	var token string
	err = wait.Until(ctx, askPause, "the API of cluster "+name, func(ctx context.Context) error {
		token, err = m.Token(ctx, n, role)
		if err == nil {
			return nil
		}
		if st, derr := m.Provider.Describe(ctx, name); derr == nil {
			for _, d := range st.Nodes {
				if d.Name == n.Name && d.State != Running {
					return wait.Permanent(fmt.Errorf("node %s is %s: %s", n.Name, d.State, cmp.Or(d.Note, "it was stopped")))
				}
			}
		}
		m.progress().Waiting(err.Error())
		return err
	})
	return token, errs.WithLog(err, n.Log)
}

// server is a server of a cluster to ask, the first that runs.
func (m Manager) server(ctx context.Context, name string) (Node, error) {
	st, err := m.Provider.Describe(ctx, name)
	if err != nil {
		return Node{}, err
	}
	first := -1
	for i, n := range st.Nodes {
		if n.Role == Server && (first < 0 || n.State == Running && st.Nodes[first].State != Running) {
			first = i // one that runs, if there is one
		}
	}
	if first < 0 {
		return Node{}, errs.New(errs.NotFound, "cluster %q has no server", name)
	}
	return st.Nodes[first], nil
}

// settle waits for nodes that were started and hands out the kubeconfig.
func (m Manager) settle(ctx context.Context, spec Spec, limit time.Duration, noKubeconfig bool) (Status, error) {
	if err := m.await(ctx, spec.Name, limit); err != nil {
		return Status{}, err
	}
	if err := m.kubeconfig(ctx, spec, noKubeconfig); err != nil {
		return Status{}, err
	}
	return m.Provider.Describe(ctx, spec.Name)
}

// Pauses between questions to a node, and how long its kubeconfig may take when nobody waits for more.
const (
	askPause        = 50 * time.Millisecond
	kubeconfigLimit = 30 * time.Second
	tokenLimit      = 2 * time.Minute
)

// await waits until nodes are ready: those named, or all.
func (m Manager) await(ctx context.Context, name string, limit time.Duration, only ...string) error {
	if limit <= 0 || m.Ready == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not ready within %s", limit))
	defer cancel()
	st, err := m.Provider.Describe(ctx, name)
	if err != nil {
		return err
	}
	p := m.progress()
	for _, n := range st.Nodes {
		if len(only) > 0 && !slices.Contains(only, n.Name) {
			continue
		}
		p.Step("waiting for node " + n.Name)
		err := wait.Until(ctx, askPause, "node "+n.Name+" of cluster "+name, func(ctx context.Context) error {
			err := m.Ready(ctx, n)
			if err == nil {
				return nil
			}
			now, derr := m.Provider.Describe(ctx, name)
			if derr == nil {
				for _, d := range now.Nodes {
					switch {
					case d.Name != n.Name:
					case d.State != Running:
						return wait.Permanent(fmt.Errorf("it is %s: %s", d.State, cmp.Or(d.Note, "it was stopped")))
					case d.Note != "":
						err = errors.New(d.Note)
					}
				}
			}
			if ctx.Err() == nil {
				p.Waiting(err.Error())
			}
			return err
		})
		if err != nil {
			return errs.Hint(errs.WithLog(err, n.Log), "look at the log, wait longer with --wait, or run: k1s cluster delete %s", name)
		}
	}
	return nil
}

// kubeconfig takes the administrator's kubeconfig from the first server, writes it with the address that is
// right on this machine, and adds it to the user's.
func (m Manager) kubeconfig(ctx context.Context, spec Spec, leaveUsers bool) error {
	c, err := m.Kubeconfig(ctx, spec.Name)
	if err != nil {
		return err
	}
	if f, ok := m.Provider.(Files); ok {
		if file := f.KubeconfigFile(spec.Name); file != "" {
			if err := kubeconfig.WriteFile(file, c); err != nil {
				return fmt.Errorf("writing the kubeconfig of cluster %s: %w", spec.Name, err)
			}
		}
	}
	if leaveUsers || len(m.Kubeconfigs) == 0 {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(m.Kubeconfigs[0]), 0o700); err != nil {
		return err
	}
	if _, err := kubeconfig.Merge(ctx, m.Kubeconfigs, c, kubeconfig.MergeOptions{SetCurrent: !m.KeepContext}); err != nil {
		return errs.Hint(fmt.Errorf("the cluster is there, but its context cannot be added to the kubeconfig: %w", err),
			"run: k1s cluster kubeconfig %s > FILE", spec.Name)
	}
	return nil
}

// Kubeconfig is the administrator's kubeconfig of a cluster, for use on this machine. It waits a moment for
// one that is just being made.
func (m Manager) Kubeconfig(ctx context.Context, name string) (kubeconfig.Config, error) {
	st, err := m.Provider.Describe(ctx, name)
	if err != nil {
		return kubeconfig.Config{}, err
	}
	n, err := m.server(ctx, name)
	if err != nil {
		return kubeconfig.Config{}, err
	}
	if n.State == Running {
		m.progress().Step("waiting for the kubeconfig of cluster " + name)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, kubeconfigLimit, errors.New("there is none yet"))
	defer cancel()
	var c kubeconfig.Config
	err = wait.Until(ctx, askPause, "the kubeconfig of cluster "+name, func(context.Context) error {
		var err error
		c, err = kubeconfig.Load(n.Kubeconfig)
		if err != nil && (n.State != Running || !errors.Is(err, fs.ErrNotExist)) {
			return wait.Permanent(err)
		}
		return err
	})
	if err != nil {
		return c, errs.WithLog(err, n.Log)
	}
	c.Name = Context(name)
	c.Server = fmt.Sprintf("https://127.0.0.1:%d", st.Spec.APIPort)
	return c, nil
}

// AddNodes makes a running cluster have more nodes of a role, and waits until they are ready. args are added to those that
// nodes of the role have in this cluster.
func (m Manager) AddNodes(ctx context.Context, name string, role Role, count int, limit time.Duration, args ...string) ([]Node, error) {
	defer m.progress().Done()
	st, err := m.Provider.Describe(ctx, name)
	if err != nil {
		return nil, Missing(err)
	}
	if !slices.ContainsFunc(st.Nodes, func(n Node) bool { return n.Role == Server && n.State == Running }) {
		return nil, errs.Hint(errs.New(errs.NotRunning, "no server of cluster %q runs: nothing can join it", name), "run: k1s cluster start %s", name)
	}
	like, free := st.Spec.Template(role), st.Spec.NextAgent
	if role == Server {
		free = max(st.Spec.NextServer, 1)
	}
	like.Args = slices.Concat(like.Args, args)
	token, err := m.token(ctx, name, role, cmp.Or(limit, tokenLimit))
	if err != nil {
		return nil, err
	}
	var added []string
	for i := range count {
		n := like
		n.Index, n.Token = free+i, token
		if err := ValidateNode(n); err != nil {
			return nil, err
		}
		m.progress().Step("starting node " + n.Name())
		if _, err := m.Provider.Create(ctx, n); err != nil {
			return nil, err
		}
		added = append(added, n.Name())
	}
	if err := m.await(ctx, name, limit, added...); err != nil {
		return nil, err
	}
	if st, err = m.Provider.Describe(ctx, name); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(st.Nodes, func(n Node) bool { return !slices.Contains(added, n.Name) }), nil
}

// node finds a node of a cluster.
func (m Manager) node(ctx context.Context, cluster, name string) (Status, NodeSpec, error) {
	st, err := m.Provider.Describe(ctx, cluster)
	if err != nil {
		return st, NodeSpec{}, Missing(err)
	}
	i := slices.IndexFunc(st.Spec.Nodes, func(n NodeSpec) bool { return n.Name() == name })
	if i < 0 {
		var have []string
		for _, n := range st.Spec.Nodes {
			have = append(have, n.Name())
		}
		return st, NodeSpec{}, errs.New(errs.NotFound, "cluster %q has no node %q; it has %s", cluster, name, strings.Join(have, ", "))
	}
	return st, st.Spec.Nodes[i], nil
}

// StopNode ends a node with its pods and keeps its data.
func (m Manager) StopNode(ctx context.Context, cluster, name string) error {
	defer m.progress().Done()
	if _, _, err := m.node(ctx, cluster, name); err != nil {
		return err
	}
	m.progress().Step("stopping node " + name)
	return m.Provider.Stop(ctx, cluster, name)
}

// StartNode starts a node that was stopped.
func (m Manager) StartNode(ctx context.Context, cluster, name string, limit time.Duration) error {
	defer m.progress().Done()
	_, n, err := m.node(ctx, cluster, name)
	if err != nil {
		return err
	}
	m.progress().Step("starting node " + name)
	if _, err := m.Provider.Create(ctx, n); err != nil {
		return err
	}
	return m.await(ctx, cluster, limit, name)
}

// DeleteNode removes a node with all its data, and takes it out of the cluster. A server leaves first, through another one:
// a member of the datastore that is gone counts against the majority of those that are left.
func (m Manager) DeleteNode(ctx context.Context, cluster, name string) error {
	defer m.progress().Done()
	d, err := m.deletable(ctx, cluster, name)
	if err != nil {
		return err
	}
	if d.leaves {
		m.progress().Step("taking server " + name + " out of the cluster")
		if m.Forget != nil {
			if err := m.Forget(ctx, *d.other, name); err != nil && !errs.Is(err, errs.NotFound) {
				return err
			}
		}
	}
	m.progress().Step("deleting node " + name)
	if err := m.Provider.Delete(ctx, cluster, name); err != nil {
		return err
	}
	if m.Forget == nil || d.other == nil || d.leaves {
		return nil // its name stays taken; it is not given to another node
	}
	if err := m.Forget(ctx, *d.other, name); err != nil && !errs.Is(err, errs.NotFound) {
		return errs.Hint(fmt.Errorf("the node is gone, but not out of the cluster: %w", err), "run: k1s cluster exec %s -- k1s node remove %s --yes", cluster, name)
	}
	return nil
}

// DeleteNodePlan is what DeleteNode would do, a line each.
func (m Manager) DeleteNodePlan(ctx context.Context, cluster, name string) ([]string, error) {
	d, err := m.deletable(ctx, cluster, name)
	if err != nil {
		return nil, err
	}
	switch {
	case d.leaves:
		return []string{fmt.Sprintf("take server %s out of the cluster, through %s", name, d.other.Name), endNode(name)}, nil
	case d.other == nil:
		return []string{endNode(name), "leave its name in the cluster, because no server runs that could forget it"}, nil
	}
	return []string{endNode(name), fmt.Sprintf("take it out of the cluster, through %s", d.other.Name)}, nil
}

// departure is how a node goes.
type departure struct {
	other  *Node // a running server that can forget it; nil without one
	leaves bool  // it has to leave before it is deleted, as servers do
}

// deletable refuses what DeleteNode cannot delete.
func (m Manager) deletable(ctx context.Context, cluster, name string) (departure, error) {
	st, n, err := m.node(ctx, cluster, name)
	if err != nil {
		return departure{}, err
	}
	d := departure{leaves: n.Role == Server}
	if i := slices.IndexFunc(st.Nodes, func(o Node) bool { return o.Role == Server && o.State == Running && o.Name != name }); i >= 0 {
		d.other = &st.Nodes[i]
	}
	switch {
	case d.leaves && !slices.ContainsFunc(st.Spec.Nodes, func(o NodeSpec) bool { return o.Role == Server && o.Name() != name }):
		return d, errs.Hint(errs.New(errs.Unsupported, "%s is the only server of cluster %q", name, cluster), "to delete the cluster: k1s cluster delete %s", cluster)
	case d.leaves && d.other == nil:
		return d, errs.Hint(errs.New(errs.NotRunning, "no other server of cluster %q runs, and %s cannot leave without one", cluster, name), "run: k1s cluster start %s", cluster)
	}
	return d, nil
}

// Start starts a stopped cluster and mends a broken one.
func (m Manager) Start(ctx context.Context, name string, limit time.Duration, noKubeconfig bool) (Status, error) {
	return m.StartAt(ctx, name, netip.Prefix{}, limit, noKubeconfig)
}

// StartAt starts a stopped cluster with other addresses for its nodes, unless subnet is the zero value.
func (m Manager) StartAt(ctx context.Context, name string, subnet netip.Prefix, limit time.Duration, noKubeconfig bool) (Status, error) {
	defer m.progress().Done()
	st, err := m.Provider.Describe(ctx, name)
	if err != nil {
		return st, Missing(err)
	}
	if subnet.IsValid() && subnet != st.Spec.Subnet {
		if err := movable(st, subnet); err != nil {
			return st, err
		}
		st.Spec.Subnet = subnet
	}
	if len(st.Spec.Nodes) == 0 {
		return st, errs.Hint(fmt.Errorf("cluster %q cannot be started: %s", name, st.Note), "run: k1s cluster delete %s", name)
	}
	m.progress().Step("starting the network of cluster " + name)
	spec, err := m.Provider.Prepare(ctx, st.Spec)
	if err != nil {
		return st, err
	}
	for _, n := range st.Spec.Nodes {
		m.progress().Step("starting node " + n.Name())
		if _, err := m.Provider.Create(ctx, n); err != nil {
			return st, err
		}
	}
	return m.settle(ctx, spec, limit, noKubeconfig)
}

// movable tells whether a cluster can be started with other addresses.
func movable(st Status, subnet netip.Prefix) error {
	if err := ValidateSubnet(subnet); err != nil {
		return err
	}
	for _, p := range st.Spec.Private {
		if p.Overlaps(subnet) {
			return errs.New(errs.Invalid, "network %s of cluster %s overlaps with %s, which is to join its nodes", p, st.Spec.Name, subnet)
		}
	}
	if st.State != Stopped || st.Note != "" {
		return errs.Hint(errs.New(errs.Exists, "cluster %q is %s: its nodes keep their addresses %s", st.Spec.Name, st.State, st.Spec.Subnet), "run: k1s cluster stop %s", st.Spec.Name)
	}
	return nil
}

// Stop ends a cluster's nodes and keeps their data.
func (m Manager) Stop(ctx context.Context, name string) error {
	defer m.progress().Done()
	if _, err := m.Provider.Describe(ctx, name); err != nil {
		return Missing(err)
	}
	m.progress().Step("stopping cluster " + name)
	return m.Provider.Stop(ctx, name, "")
}

// Delete removes a cluster and its kubeconfig context, whatever is left of both. It is no error when there is
// nothing.
func (m Manager) Delete(ctx context.Context, name string) error {
	defer m.progress().Done()
	m.progress().Step("deleting cluster " + name)
	return m.remove(ctx, name)
}

func (m Manager) remove(ctx context.Context, name string) error {
	err := m.Provider.Delete(ctx, name, "")
	if len(m.Kubeconfigs) > 0 {
		if _, kerr := kubeconfig.Remove(ctx, m.Kubeconfigs, Context(name)); kerr != nil {
			err = errors.Join(err, fmt.Errorf("removing context %s from the kubeconfig: %w", Context(name), kerr))
		}
	}
	return err
}

// List tells how all clusters are.
func (m Manager) List(ctx context.Context) ([]Status, error) {
	names, err := m.Provider.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Status, 0, len(names))
	for _, n := range names {
		st, err := m.Provider.Describe(ctx, n)
		if errs.Is(err, errs.NotFound) {
			continue // deleted while we looked
		}
		if err != nil {
			return nil, err
		}
		out = append(out, st)
	}
	return out, nil
}

// Missing adds to what a provider says about a cluster that is not there how to find out which are.
func Missing(err error) error {
	if errs.Is(err, errs.NotFound) {
		return errs.Hint(err, "run: k1s cluster ls")
	}
	return err
}
