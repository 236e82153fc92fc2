//go:build system && faults

package system

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/payload"
)

// asOnAMachine gives nodes their program in a directory of its own: the one they were made with is a mount, which cannot be replaced.
const asOnAMachine = `set -e
mkdir /var/tmp/programs
cp /opt/k1s/k1s /var/tmp/programs/k1s
umount --lazy /opt/k1s/k1s
mount --bind /var/tmp/programs /opt/k1s
`

func ownPrograms(t *testing.T, c *Cluster, nodes ...member) {
	t.Helper()
	for _, m := range nodes {
		m.must(t, m.in(within(t, limit), "sh", "-c", asOnAMachine))
		m.in(within(t, limit), "k1s", "stop").wants(t, 0, "stopped")
		c.starts(t)
		m.untilState(t, control.Running)
	}
}

// upgraded is how far the upgrade of the cluster is, as a server tells it.
func (m member) upgraded(ctx context.Context) (control.ClusterUpgrade, error) {
	var u control.ClusterUpgrade
	r := m.in(ctx, "k1s", "upgrade", "status", "-o", "json")
	if err := r.error(); err != nil {
		return u, err
	}
	return u, json.Unmarshal([]byte(r.out), &u)
}

// steps of the nodes by their names.
func steps(u control.ClusterUpgrade) map[string]string {
	out := map[string]string{}
	for _, n := range u.Nodes {
		out[n.Name] = n.Step
	}
	return out
}

// runsPayload waits until a node runs what carries a payload, and is well.
func (m member) runsPayload(t *testing.T, id string) {
	t.Helper()
	eventually(t, limit, m.node+" to run the payload "+id, func(ctx context.Context) error {
		s, err := m.status(ctx)
		if err == nil && (s.Payload != id || s.State != control.Running || s.Upgrade != nil) {
			err = fmt.Errorf("it runs %s and is %s: %s", s.Payload, s.State, notReady(s))
		}
		return err
	})
}

// nothingLeft waits until nodes are as they were before an upgrade of the cluster, but for those that a person has cordoned.
func nothingLeft(t *testing.T, c *Cluster, cordoned string, nodes ...member) {
	t.Helper()
	eventually(t, limit, "nothing of the upgrade to be left on nodes", func(ctx context.Context) error {
		r := c.try(ctx, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.unschedulable} {.metadata.annotations}{"\n"}{end}`)
		if err := r.error(); err != nil {
			return err
		}
		for line := range strings.Lines(r.out) {
			f := strings.Fields(line)
			if strings.Contains(line, "k1s.io/upgrade") || (len(f) > 1 && f[1] == "true") != (len(f) > 0 && f[0] == cordoned) {
				return errors.New(line)
			}
		}
		for _, m := range nodes {
			if _, err := os.Stat(m.disk("var/lib/k1s/programs")); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("the program is still on %s: %v", m.node, err)
			}
		}
		return nil
	})
}

// TestAClusterGoesOverToAnotherK1s upgrades a server and two agents, of which the first cannot go over at first. What runs on them works
// afterwards. It is not part of the system tests: make faults.
func TestAClusterGoesOverToAnotherK1s(t *testing.T) {
	c := created(t, "goesover", withImages(t, "--agents", "2")...)
	server, agents := member{c, "server-0"}, []member{{c, "agent-0"}, {c, "agent-1"}}
	app := everywhere{c.namespace(t, "everywhere")}
	app.apply(t, "everywhere.yaml")
	app.reach(t, 3)

	const next = "/var/tmp/k1s-cluster"
	id, wanted := successor(t, c.disk("var/tmp/k1s-cluster"))
	server.in(within(t, limit), "k1s", "upgrade", "--cluster", "--file", next, "--dry-run").wants(t, 4, "is a mount of its own")
	ownPrograms(t, c, server, agents[1])
	agents[0].in(within(t, limit), "k1s", "upgrade", "--cluster", "--file", next, "--dry-run").wants(t, 4, "is an agent")
	plan := server.in(within(t, limit), "k1s", "upgrade", "--cluster", "--file", next, "--dry-run", "--parallel", "2")
	if plan.wants(t, 0); !strings.Contains(plan.out, "then agents, 2 at a time: agent-0, agent-1") {
		t.Errorf("the plan is\n%s", plan.out)
	}
	c.kubectl(t, "cordon", "agent-1")

	upgrade := server.in(within(t, 3*limit), "k1s", "upgrade", "--cluster", "--file", next, "--yes", "--timeout=4m", "--drain-timeout=2m")
	upgrade.wants(t, 1, "the upgrade of the cluster has halted", "agent-0", "is a mount of its own", "k1s upgrade resume")
	server.runsPayload(t, wanted)
	for _, a := range agents {
		a.runsPayload(t, id)
	}
	nothingLeft(t, c, "agent-1")
	eventually(t, limit, "the server to tell that the upgrade has halted", func(ctx context.Context) error {
		s, err := c.status(ctx)
		if err == nil && !slices.ContainsFunc(s.Problems, func(p health.Problem) bool { return p.Code == health.UpgradeHalted }) {
			err = fmt.Errorf("it tells %v", s.Problems)
		}
		return err
	})
	u, err := server.upgraded(within(t, limit))
	if got := steps(u); err != nil || u.Stage != "halted" || got["server-0"] != "upgraded" || got["agent-0"] != "failed" || got["agent-1"] != "waiting" {
		t.Errorf("%+v, %v", u, err)
	}

	ownPrograms(t, c, agents[0])
	resumed := server.in(within(t, 3*limit), "k1s", "upgrade", "resume")
	if resumed.wants(t, 0, "agent-1 upgraded"); !strings.HasPrefix(resumed.out, "The cluster was upgraded to ") {
		t.Errorf("it says %q", resumed.out)
	}
	for _, m := range append([]member{server}, agents...) {
		m.runsPayload(t, wanted)
		for file, want := range map[string]string{"var/tmp/programs/k1s": wanted, "var/tmp/programs/k1s.old": id} {
			if p, err := payload.Open(m.disk(file)); err != nil || p.ID != want {
				t.Errorf("%s of %s does not carry %s: %v", file, m.node, want, err)
			}
		}
	}
	nothingLeft(t, c, "agent-1", append([]member{server}, agents...)...)
	c.kubectl(t, "uncordon", "agent-1")
	app.reach(t, 3)
	server.in(within(t, limit), "k1s", "upgrade", "resume").wants(t, 1, "there is no upgrade of the cluster that has halted")
}
