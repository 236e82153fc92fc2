//go:build system

package system

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/payload"
	"k1s.io/k1s/internal/upgrade"
)

// The node gets its program in a directory of its own, as on a machine: the one it was made with is a mount.
const ownProgram = `set -e
mkdir /var/tmp/programs
cp /var/tmp/k1s-next /var/tmp/programs/k1s
umount --lazy /opt/k1s/k1s
umount --lazy /opt/k1s/k1s
mount --bind /var/tmp/programs /opt/k1s
`

// upgradesInPlace upgrades a node that runs /var/tmp/k1s-next, mounted over the k1s under test.
func upgradesInPlace(t *testing.T, c *Cluster, s survivor) {
	const first, next, broken = "/var/tmp/k1s-first", "/var/tmp/k1s-next", "/var/tmp/k1s-broken"
	upgrades := func(file string, flags ...string) []string {
		return append([]string{"k1s", "upgrade", "--file", file, "--timeout=4m"}, flags...)
	}
	program, err := os.ReadFile(the.program)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.disk("var/tmp/k1s-first"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := payload.Open(the.program)
	if err != nil {
		t.Fatal(err)
	}
	own := s.own(c.containers(t))
	same := func(what, file, as string) {
		t.Helper()
		if err := c.in(within(t, limit), "cmp", file, as).error(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	recorded := func() (upgrade.State, error) {
		b, err := os.ReadFile(c.disk("var/lib/k1s/upgrade.json"))
		if err != nil {
			return upgrade.State{}, err
		}
		return upgrade.Unmarshal(b)
	}

	c.in(within(t, limit), upgrades(next, "--dry-run")...).wants(t, 4, "is a mount of its own", "hint:  ", "k1s cluster create --image")
	if err := c.in(within(t, limit), "sh", "-c", ownProgram).error(); err != nil {
		t.Fatal(err)
	}
	c.in(within(t, limit), "k1s", "stop").wants(t, 0, "stopped")
	c.starts(t)

	was := c.running(t)
	c.in(within(t, 2*limit), upgrades(first, "--yes")...).wants(t, 0, "upgraded to k1s "+was.Version, "/opt/k1s/k1s.old")
	now := c.running(t)
	if now.PID != was.PID || now.Payload != p.ID || was.Payload == p.ID || now.Since.Equal(was.Since) {
		t.Errorf("process %d with payload %s runs the node, and before it was %d with %s", now.PID, now.Payload, was.PID, was.Payload)
	}
	if now := s.own(c.containers(t)); now != own {
		t.Errorf("containers before:\n%s\nand after:\n%s", own, now)
	}
	s.works(t)
	same("the new one is not in its place", "/opt/k1s/k1s", first)
	same("the old one is not kept", "/opt/k1s/k1s.old", next)
	if r := c.in(within(t, limit), "k1s", "upgrade", "--status"); r.code != 0 || len(r.out) < 4 || r.out[:4] != "done" {
		t.Errorf("the status is %d %q", r.code, r.out)
	}
	c.in(within(t, limit), upgrades(first, "--yes")...).wants(t, 0, "already")

	// One that does not get so far as to touch anything.
	brokenSuccessor(t, c.disk("var/tmp/k1s-broken"))
	was = c.running(t)
	c.in(within(t, 2*limit), upgrades(broken, "--yes")...).wants(t, 1, "error: cannot upgrade to k1s "+was.Version, "damaged", "runs the node again")
	now = c.running(t)
	if now.PID != was.PID || now.Payload != p.ID || !maps.Equal(pids(now), pids(was)) {
		t.Errorf("the node was disturbed: %d %v, now %d %v", was.PID, pids(was), now.PID, pids(now))
	}
	if !slices.ContainsFunc(now.Problems, func(p health.Problem) bool { return p.Code == health.UpgradeFailed }) {
		t.Errorf("nobody is told: %v", now.Problems)
	}
	same("another one is in its place", "/opt/k1s/k1s", first)
	if err := c.in(within(t, limit), "test", "!", "-e", "/opt/k1s/k1s.new").error(); err != nil {
		t.Error(err)
	}

	// All of it is killed while another one is tried.
	was = c.running(t)
	commanded := make(chan result, 1)
	go func() { commanded <- c.in(within(t, 2*limit), upgrades(next, "--yes")...) }()
	eventually(t, limit, "another k1s to be tried", func(context.Context) error {
		r, err := recorded()
		if err == nil && r.Phase != upgrade.Trying {
			err = fmt.Errorf("it is %s", r.Phase)
		}
		return err
	})
	kill(t, was.PID)
	now = c.otherDaemonOf(t, was, p.ID)
	(<-commanded).wants(t, 1, "error: cannot upgrade to k1s "+was.Version, "stopped or killed while it was trying")
	same("another one is in its place", "/opt/k1s/k1s", first)
	if r, err := recorded(); err != nil || r.Phase != upgrade.Failed {
		t.Errorf("the record says %+v, %v", r, err)
	}
	if now := s.own(c.containers(t)); now != own {
		t.Errorf("containers before:\n%s\nand after:\n%s", own, now)
	}
	s.works(t)
}

// otherDaemonOf waits until another daemon runs the node, of a payload.
func (c *Cluster) otherDaemonOf(t *testing.T, was control.Status, id string) control.Status {
	t.Helper()
	var now control.Status
	eventually(t, limit, "another daemon", func(ctx context.Context) (err error) {
		now, err = c.status(ctx)
		switch {
		case err != nil:
		case now.PID == was.PID || now.State != control.Running || now.Payload != id || now.Upgrade != nil:
			err = fmt.Errorf("process %d is %s with payload %s: %s", now.PID, now.State, now.Payload, notReady(now))
		}
		return err
	})
	return now
}
