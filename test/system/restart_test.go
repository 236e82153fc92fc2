//go:build system

package system

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/control"
)

// One process a component, so that each can be killed by itself.
func TestEveryKilledComponentComesBackAndPodsDoNotNotice(t *testing.T) {
	t.Parallel()
	c := created(t, "kill", withImages(t, "--set", "spec.isolation=component", "--set", "spec.audit.enabled=true", "--set", "spec.secrets.encryption=secretbox")...)
	c.separates(t, true, "component")
	s := survives(t, c)
	c.settled(t)
	before := c.containers(t)
	st := c.running(t)
	if units := distinct(st, func(c control.Component) string { return c.Unit }); len(units) != len(st.Components) {
		t.Fatalf("%d components in the processes %q", len(st.Components), units)
	}
	c.runsAs(t, separateUsers)
	for _, name := range distinct(st, func(c control.Component) string { return c.Name }) {
		t.Run(name, func(t *testing.T) {
			c.killed(t, c.running(t), name)
		})
	}
	c.running(t)
	s.works(t)
	if after := c.containers(t); after != before {
		t.Errorf("containers before:\n%s\nand after:\n%s", before, after)
	}
	inTurn(t, "users", func(t *testing.T) { c.keepsUsersApart(t, s) })
}

// killed kills a component and waits until it is back in a new process, the restart counted and explained.
func (c *Cluster) killed(t *testing.T, st control.Status, name string) {
	t.Helper()
	old, err := componentOf(st, name)
	if err != nil {
		t.Fatal(err)
	}
	kill(t, old.PID)
	eventually(t, limit, name+" to come back", func(ctx context.Context) error {
		st, err := c.status(ctx)
		if err != nil {
			return err
		}
		now, err := componentOf(st, name)
		if err == nil && (now.State != "ready" || now.PID == old.PID || now.Restarts <= old.Restarts) {
			err = fmt.Errorf("it is %s (%s) in process %d (was %d), restarts %d (were %d)", now.State, now.Note, now.PID, old.PID, now.Restarts, old.Restarts)
		}
		// Only a parent learns how a process ended; a daemon that adopted it is none.
		// One that ended a second time tells of that.
		if err == nil && now.Restarts < old.Restarts+2 && !strings.Contains(now.LastExit, "kill") && !strings.Contains(now.LastExit, "started by an earlier daemon") {
			err = fmt.Errorf("its last exit is said to be %q", now.LastExit)
		}
		return err
	})
}

func distinct(st control.Status, key func(control.Component) string) []string {
	var out []string
	for _, c := range st.Components {
		out = append(out, key(c))
	}
	slices.Sort(out)
	return slices.Compact(out)
}
