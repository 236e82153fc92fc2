//go:build system

package system

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// askAgain is the pause between two looks at something that is not Kubernetes.
const askAgain = 50 * time.Millisecond

func TestEverythingIsBackAfterAReboot(t *testing.T) {
	t.Parallel()
	args := withImages(t)
	port := freePort(t)
	c := created(t, "reboot", append(args, "--publish", fmt.Sprintf("%d:%d", port, frontNodePort))...)
	c.ports = map[int]int{frontNodePort: port}
	s := survives(t, c)

	inTurn(t, "in good order", func(t *testing.T) {
		if all := c.processes(t); !slices.Contains(all, c.running(t).PID) || !slices.Contains(all, s.podProcess(t, "client").pid) {
			t.Fatalf("the daemon or a pod is not among the processes of the cluster: %v", all)
		}
		if err := k1s(within(t, limit), "cluster", "stop", c.name).error(); err != nil {
			t.Fatal(err)
		}
		if left := c.processes(t); len(left) > 0 {
			t.Errorf("processes after the stop: %v", left)
		}
		if r := k1s(within(t, limit), "cluster", "ls"); !strings.Contains(r.out, "stopped") {
			t.Errorf("k1s cluster ls: %v", r)
		}
		k1s(within(t, limit), "cluster", "exec", c.name, "--", "true").wants(t, 3, "does not run", "k1s cluster start")
		c.starts(t)
		s.works(t)
	})
	inTurn(t, "after a power cut", func(t *testing.T) {
		eventually(t, limit, "every process to be dead", func(context.Context) error {
			left := c.processes(t)
			for _, pid := range left {
				kill(t, pid)
			}
			if len(left) > 0 {
				return errors.New("there were some just now")
			}
			return nil
		})
		c.starts(t)
		s.works(t)
	})
	inTurn(t, "pods are started once, not again and again", func(t *testing.T) {
		s.rolledOut(t, "deployment/web", "statefulset/store")
		out := s.kubectl(t, "get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}")
		for n := range strings.FieldsSeq(out) {
			if count, err := strconv.Atoi(n); err != nil || count > 4 {
				t.Errorf("restart counts after two reboots: %s", out)
			}
		}
	})
}
