package daemon

import (
	"testing"

	"k1s.io/k1s/internal/health"
)

func TestWhatTheStartHasPutRightIsNoProblemOfTheRunningNode(t *testing.T) {
	found := []health.Problem{
		health.New(health.IPForwarding, "IPv4 packets are not forwarded yet"),
		health.New(health.CgroupV1, "cgroup version 1 is in use"),
		health.New(health.IPForwarding, "IPv4 packets are not forwarded, and /proc/sys is read-only").As(health.Error),
		health.New(health.DiskLow, "1000 MB are free at /d, 2048 MB are recommended"), // that is said of every moment, see watchDisk
	}
	left := stillTrue(found)
	if len(left) != 2 || left[0].Code != health.CgroupV1 || left[1].Severity != health.Error {
		t.Errorf("left %+v", left)
	}
	if len(found) != 4 || found[0].Code != health.IPForwarding {
		t.Errorf("what was found is now %+v", found)
	}
}
