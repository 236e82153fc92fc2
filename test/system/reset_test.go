//go:build system

package system

import (
	"strings"
	"testing"
)

// resetHere resets a node from within. Whoever resets a machine is not in one of the cgroups that are removed.
const resetHere = "for f in $(find /sys/fs/cgroup -maxdepth 2 -name cgroup.procs); do echo $$ > $f 2>/dev/null || true; done; exec k1s reset --yes"

// A node with everything on it, and then nothing.
func TestResetLeavesNothingOfANode(t *testing.T) {
	t.Parallel()
	c := created(t, "reset", withImages(t)...)
	survives(t, c)
	inspect := func() string {
		r := c.in(within(t, limit), "sh", "-c", `
			ls -A /var/lib/k1s /var/lib/kubelet /var/log/pods /var/log/containers /run/k1s /var/lib/cni /run/flannel 2>/dev/null | sed 's/^/file /'
			ls -A /etc/k1s | sed 's,^,file /etc/k1s/,'
			ls /sys/class/net | sed 's/^/link /'
			grep -E ' /(var/lib|run)/' /proc/self/mountinfo | cut -d ' ' -f 5 | sed 's/^/mount /'
			! command -v nft >/dev/null || nft list tables
			grep -v Iface /proc/net/route | cut -f 1,2 | sed 's/^/route /'
			for d in /sys/fs/cgroup/*"$K1S_CGROUP_ROOT"/* /sys/fs/cgroup"$K1S_CGROUP_ROOT"/*; do [ ! -d $d ] || echo cgroup $d; done | grep -v '/\(init\|exec\)$'
			true`)
		if err := r.error(); err != nil {
			t.Fatal(err)
		}
		return r.out
	}
	full := inspect()
	for _, want := range []string{"kube-proxy", "link veth", "mount /var/lib/kubelet/pods", "file db", "kubepods"} {
		if !strings.Contains(full, want) {
			t.Fatalf("a node at work has no %q, so this test looks at the wrong things:\n%s", want, full)
		}
	}
	if r := c.in(within(t, limit), "k1s", "reset", "--dry-run"); r.failure != nil || !strings.Contains(r.out, "/var/lib/k1s") {
		t.Errorf("the plan: %v", r)
	}
	c.in(within(t, limit), "k1s", "reset").wants(t, 2, "--yes")

	c.setGone()
	c.in(within(t, limit), "sh", "-c", resetHere).wants(t, 0)
	left := inspect()
	for line := range strings.Lines(left) {
		line = strings.TrimSpace(line)
		switch {
		case line == "link lo" || line == "link eth0" || strings.HasPrefix(line, "route eth0"):
		case line == "file /etc/k1s/config.yaml": // the user's
		default:
			t.Errorf("left: %s", line)
		}
	}

	// And again, where there is nothing.
	c.in(within(t, limit), "sh", "-c", resetHere).wants(t, 0)
}
