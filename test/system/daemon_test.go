//go:build system

package system

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/wait"
)

// One node, three processes, and everything that may happen to its daemon.
func TestPodsOutliveTheDaemon(t *testing.T) {
	t.Parallel()
	args := withImages(t)
	port := freePort(t)
	c := created(t, "daemon", append(args, "--publish", fmt.Sprintf("%d:%d", port, frontNodePort))...)
	c.ports = map[int]int{frontNodePort: port}
	s := survives(t, c)
	c.settled(t)
	before := c.containers(t)

	t.Run("a killed process of several components comes back", func(t *testing.T) {
		for _, name := range []string{"containerd", "kubelet", "kube-apiserver"} {
			c.killed(t, c.running(t), name)
		}
		c.running(t)
		s.works(t)
		c.sameContainers(t, before)
	})
	t.Run("a killed daemon is replaced by one that adopts what runs", func(t *testing.T) {
		was := c.running(t)
		kill(t, was.PID)
		now := c.otherDaemon(t, was)
		if !maps.Equal(pids(was), pids(now)) {
			t.Errorf("processes of components before: %v, after: %v", pids(was), pids(now))
		}
		s.works(t)
		c.sameContainers(t, before)
		// What it adopted it also restarts.
		c.killed(t, now, "kube-scheduler")
		c.running(t)
	})
	t.Run("an upgraded k1s does not restart containers", func(t *testing.T) {
		was := c.running(t)
		// Replacing the file, as a package manager does: another inode under the same name.
		script := "cp /opt/k1s/k1s /var/tmp/k1s-new && mount --bind /var/tmp/k1s-new /opt/k1s/k1s"
		if err := c.in(within(t, limit), "sh", "-c", script).error(); err != nil {
			t.Fatal(err)
		}
		c.in(within(t, limit), "k1s", "stop").wants(t, 0, "stopped")
		c.starts(t)
		c.otherDaemon(t, was)
		s.works(t)
		c.sameContainers(t, before)
	})
	t.Run("a second daemon is refused", func(t *testing.T) {
		was := c.running(t)
		c.in(within(t, limit), "k1s", "server").wants(t, 1, "already running", fmt.Sprint(was.PID), "hint:  ", "k1s status")
		if now := c.running(t); now.PID != was.PID || !maps.Equal(pids(was), pids(now)) {
			t.Errorf("the node was disturbed: %v, now %v", pids(was), pids(now))
		}
	})
	t.Run("stop leaves the pods, stop --pods ends them", func(t *testing.T) {
		pod := s.podProcess(t, "client")
		was := processesOf(c.running(t))
		start := "k1s cluster start " + c.name
		c.in(within(t, limit), "k1s", "stop").wants(t, 0, "stopped", start)
		c.in(within(t, limit), "k1s", "status").wants(t, 3, "error: k1s is not running", "hint:  ", start)
		// The sandbox learns of it a moment later.
		eventually(t, limit, "k1s cluster ls to say so", func(ctx context.Context) error {
			if r := c.k1s(ctx, "cluster", "ls"); !strings.Contains(r.out, "stopped") || !strings.Contains(r.out, start) {
				return fmt.Errorf("it says %v", r)
			}
			return nil
		})
		c.try(within(t, limit), "get", "nodes").wants(t, 3, "is stopped", "hint:  run: "+start)
		for name, p := range was {
			if p.alive() {
				t.Errorf("%s still runs", name)
			}
		}
		if !pod.alive() {
			t.Error("the pod has ended with it")
		}
		c.in(within(t, limit), "k1s", "stop", "--pods").wants(t, 0, "pods are ended")
		err := wait.Until(within(t, limit), askAgain, "the pod to end", func(context.Context) error {
			if pod.alive() {
				return errors.New("it still runs")
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		c.starts(t)
		s.works(t)
	})
}

// sameContainers checks that nobody restarted a container.
func (c *Cluster) sameContainers(t *testing.T, before string) {
	t.Helper()
	if after := c.containers(t); after != before {
		t.Errorf("containers before:\n%s\nand after:\n%s", before, after)
	}
}

// otherDaemon waits until another daemon runs the node.
func (c *Cluster) otherDaemon(t *testing.T, was control.Status) control.Status {
	t.Helper()
	eventually(t, limit, "another daemon", func(ctx context.Context) error {
		now, err := c.status(ctx)
		if err == nil && now.PID == was.PID {
			err = errors.New("it is still the old one")
		}
		return err
	})
	return c.running(t)
}

// starts runs `k1s cluster start`.
func (c *Cluster) starts(t *testing.T) {
	t.Helper()
	if err := c.k1s(within(t, limit), "cluster", "start", c.name, patience).error(); err != nil {
		t.Fatal(err)
	}
	if err := c.find(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.running(t)
}
