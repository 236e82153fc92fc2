//go:build system

package system

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
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

	inTurn(t, "a killed process of several components comes back", func(t *testing.T) {
		was := c.running(t)
		log := c.followsLog(t, "containerd")
		c.killed(t, was, "containerd")
		log.until(t, "--- k1s starts containerd ") // which is said of the next process
		for _, name := range []string{"kubelet", "kube-apiserver"} {
			c.killed(t, c.running(t), name)
		}
		c.running(t)
		s.works(t)
		c.sameContainers(t, before)
	})
	inTurn(t, "a killed daemon is replaced by one that adopts what runs", func(t *testing.T) {
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
	inTurn(t, "an upgraded k1s does not restart containers", func(t *testing.T) {
		was := c.running(t)
		id, next := successor(t, c.disk("var/tmp/k1s-next"))
		// Replacing the file, as a package manager does: another inode under the same name.
		if err := c.in(within(t, limit), "mount", "--bind", "/var/tmp/k1s-next", "/opt/k1s/k1s").error(); err != nil {
			t.Fatal(err)
		}
		c.in(within(t, limit), "k1s", "stop").wants(t, 0, "stopped")
		c.starts(t)
		if now := c.otherDaemon(t, was); was.Payload != id || now.Payload != next {
			t.Errorf("the payload was %s and is %s, want %s and %s", was.Payload, now.Payload, id, next)
		}
		s.works(t)
		if then, now := s.own(before), s.own(c.containers(t)); then != now {
			t.Errorf("containers before:\n%s\nand after:\n%s", then, now)
		}
		// The shims of those containers still run from where they were started.
		for _, file := range []string{next + "/" + addition, id + "/containerd-shim-runc-v2"} {
			if err := c.in(within(t, limit), "test", "-f", "/var/lib/k1s/payload/"+file).error(); err != nil {
				t.Error(err)
			}
		}
		// What k1s brings itself goes with it.
		system := space{c, "kube-system"}
		system.untilOutput(t, limit, "CoreDNS to be of the new payload", is(next), "get", "deployment", "coredns", "-o", `jsonpath={.spec.template.metadata.annotations.k1s\.io/payload}`)
		system.rolledOut(t, "deployment/coredns")
	})
	inTurn(t, "k1s upgrade goes over to another k1s, and back from one that does not work", func(t *testing.T) { upgradesInPlace(t, c, s) })
	inTurn(t, "a second daemon is refused", func(t *testing.T) {
		was := c.running(t)
		c.in(within(t, limit), "k1s", "server").wants(t, 1, "already running", fmt.Sprint(was.PID), "hint:  ", "k1s status")
		if now := c.running(t); now.PID != was.PID || !maps.Equal(pids(was), pids(now)) {
			t.Errorf("the node was disturbed: %v, now %v", pids(was), pids(now))
		}
	})
	inTurn(t, "stop leaves the pods, stop --pods ends them", func(t *testing.T) {
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

// followed is a log that `k1s logs --follow` shows.
type followed struct{ lines *bufio.Scanner }

// followsLog begins to follow a component's log, and returns when the last line of what is in it has been shown.
func (c *Cluster) followsLog(t *testing.T, component string) followed {
	t.Helper()
	env := append(the.environ(), "K1S_RUN_DIR="+filepath.Dir(c.where().ControlSocket))
	_, lines := converseWith(t, env, "logs", "--follow", "--lines=1", component)
	lines.Buffer(nil, 1<<20) // containerd has long ones
	f := followed{lines}
	f.until(t, "")
	return f
}

// until reads on until there is a line that begins so.
func (f followed) until(t *testing.T, prefix string) {
	t.Helper()
	for f.lines.Scan() {
		if strings.HasPrefix(f.lines.Text(), prefix) {
			return
		}
	}
	t.Fatalf("no line that begins with %q has come: %v", prefix, f.lines.Err())
}

// sameContainers checks that nobody restarted a container.
func (c *Cluster) sameContainers(t *testing.T, before string) {
	t.Helper()
	if after := c.containers(t); after != before {
		t.Errorf("containers before:\n%s\nand after:\n%s", before, after)
	}
}

// own is what is said there of the namespace's containers.
func (s space) own(containers string) string {
	var out strings.Builder
	for line := range strings.Lines(containers) {
		if strings.HasPrefix(line, s.ns+"/") {
			out.WriteString(line)
		}
	}
	return out.String()
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
