package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/cluster/netns"
)

// What is measured.
const (
	k1s      = "k1s"
	baseline = "baseline"
)

// node is one node in namespaces of its own, of either kind.
type node struct {
	kind     string
	name     string // of its cluster
	provider *netns.Provider
	spec     cluster.NodeSpec
	made     cluster.Node
	in       *inside
}

// sandbox is a directory whose nodes share the unpacked payload.
type sandbox struct {
	dir     string
	program string // k1s
	self    string // this program, which is the baseline's daemon
}

// provider makes nodes of a kind.
func (s sandbox) provider(kind string) *netns.Provider {
	o := netns.Below(s.dir)
	o.CgroupRoot = "/k1s"
	o.Program, o.StopTimeout = s.program, 40*time.Second
	if kind == baseline {
		o.Program, o.NodeArgs, o.StopArgs = s.self, []string{baselineCommand}, []string{baselineStop}
	}
	return netns.New(o)
}

// hold keeps the payload of a sandbox while there is no node in it: it goes with the last cluster.
func (s sandbox) hold(ctx context.Context) error {
	p := s.provider(k1s)
	if _, err := p.Prepare(ctx, cluster.Spec{Name: holder}); err != nil {
		return err
	}
	return p.Stop(ctx, holder, "")
}

const holder = "bench-hold"

// removeAll removes the sandbox and every node in it.
func (s sandbox) removeAll(ctx context.Context) error {
	p := s.provider(k1s)
	names, err := p.Clusters(ctx)
	for _, n := range names {
		err = errors.Join(err, p.Delete(ctx, n, ""))
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// newNode prepares a cluster; config is the node's configuration file, in YAML below "spec:".
func (s sandbox) newNode(ctx context.Context, kind, name string, settings ...string) (*node, error) {
	n := &node{kind: kind, name: name, provider: s.provider(kind)}
	if _, err := n.provider.Prepare(ctx, cluster.Spec{Name: name}); err != nil {
		return nil, err
	}
	n.spec = cluster.NodeSpec{Cluster: name, Role: cluster.Server}
	if len(settings) > 0 {
		n.spec.Config = "apiVersion: k1s.io/v1alpha1\nkind: Config\nspec:\n  " + strings.Join(settings, "\n  ") + "\n"
	}
	return n, nil
}

// create starts the node's first process.
func (n *node) create(ctx context.Context) error {
	made, err := n.provider.Create(ctx, n.spec)
	if err != nil {
		return err
	}
	n.made = made
	n.in, err = enter(made.PID)
	return err
}

// leave ends our stay in its namespaces.
func (n *node) leave() {
	if n.in != nil {
		n.in.close()
		n.in = nil
	}
}

// stop ends the node with all its pods and keeps its data.
func (n *node) stop(ctx context.Context) error {
	n.leave()
	return n.provider.Stop(ctx, n.name, n.spec.Name())
}

// keepLogs copies its logs.
func (n *node) keepLogs(dir string) error {
	logs := filepath.Join(filepath.Dir(n.made.Kubeconfig), "../var/lib/k1s/log")
	if err := os.CopyFS(dir, os.DirFS(logs)); err != nil {
		return fmt.Errorf("keeping the logs: %w", err)
	}
	own, err := os.ReadFile(n.made.Log)
	return errors.Join(err, os.WriteFile(filepath.Join(dir, "daemon.log"), own, 0o644))
}

// remove deletes it. It works after ctx has ended too.
func (n *node) remove(ctx context.Context) error {
	n.leave()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := n.provider.Delete(ctx, n.name, ""); err != nil {
		return err
	}
	left, err := n.provider.Leftovers(ctx, n.name)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("cluster %s left behind: %s", n.name, strings.Join(left, ", "))
	}
	return nil
}

// cgroup is where the node and all its pods are.
func (n *node) cgroup() string { return "/k1s/" + n.name + "/" + n.spec.Name() }

// runDir is the node's /run/k1s as this machine sees it.
func (n *node) runDir() string { return filepath.Dir(n.made.ControlSocket) }

// api opens a connection to a node whose kubeconfig is there.
func (n *node) api() (*api, error) { return newAPI(n.made.Kubeconfig, n.in) }
