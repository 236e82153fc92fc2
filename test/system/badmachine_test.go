//go:build system

package system

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/wait"
)

// Each of these ends the server before anything is started, with an exit code, a sentence and a remedy.

func TestAPortInUseIsNamedWithItsOwner(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	b.prepare = "busybox httpd -p 6443 -h /"
	b.fails(t).wants(t, 1, "error: ", "6443", "busybox", "hint:  ")
}

func TestAnAddressRangeOfTheMachineIsNotTaken(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	b.fails(t, "--network-pod-cidr", "10.88.0.0/16").wants(t, 2, "error: ", "10.88.0.0/16", bareAddress, "hint:  ")
	b.fails(t, "--network-pod-cidr", "10.43.0.0/16").wants(t, 2, "error: ", "podCIDR", "serviceCIDR")
	b.fails(t, "--network-service-cidr", "10.43.0.0").wants(t, 2, "error: ", "serviceCIDR")
	// A network that only the machine knows of is in the way of a worker.
	b.prepare = "ip address add 10.42.7.1/24 dev eth0"
	r := b.k1s(within(t, limit), "check")
	r.wants(t, 4, "error: this machine cannot be a node as it is")
	if !strings.Contains(r.out, "10.42.7.0/24") || !strings.Contains(r.out, "cidr-overlap") || !strings.Contains(r.out, "spec.network.podCIDR") {
		t.Errorf("k1s check says:\n%s", r.out)
	}
}

func TestAReadOnlyDataDirectoryIsSaidSo(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	b.ownPayload = true
	b.prepare = "mount --bind $DIR/data $DIR/data; mount -o remount,ro,bind $DIR/data"
	b.fails(t).wants(t, 1, "error: ", b.data(), "hint:  ", "read-only", "k1s check")
}

func TestAFullDiskIsSaidSoAndNothingIsHalfUnpacked(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	b.ownPayload = true
	// The file system ends with the machine, so the machine itself tells what is on it.
	b.prepare = "mount -t tmpfs -o size=20m tmpfs $DIR/data"
	b.fails(t).wants(t, 1, "error: ", b.data(), "hint:  ", "free some space")
	b.program, b.prepare = "/bin/sh", b.prepare+"; "+the.program+" server --no-worker 2>/dev/null || true"
	r := b.k1s(t.Context(), "-c", "ls -A $DIR/data/payload")
	for entry := range strings.FieldsSeq(r.out) {
		if entry != ".lock" && entry != "current" {
			t.Errorf("left in the payload directory: %s", entry)
		}
	}
	b.program = the.program
}

func TestTooLittleSpaceIsSaidBeforeTheNodeStarts(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	b.ownPayload = true
	b.prepare = "mount -t tmpfs -o size=600m tmpfs $DIR/data"
	b.fails(t).wants(t, 1, "error: ", "MB are free at "+b.data(), "hint:  ")
}

func TestAKernelThatIsTooOldIsSaidBeforeAnythingIsMade(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	setarch, err := exec.LookPath("setarch")
	if err != nil {
		t.Skipf("setarch, of util-linux, is not installed: %v", err)
	}
	k1s := func(args ...string) result {
		b.program = setarch // which makes the kernel call itself 2.6 for the program it starts
		defer func() { b.program = the.program }()
		return b.k1s(within(t, limit), append([]string{"--uname-2.6", the.program}, args...)...)
	}
	r := k1s("check")
	r.wants(t, 4, "error: this machine cannot be a node as it is")
	if !strings.Contains(r.out, "kernel-too-old") || !strings.Contains(r.out, "the kernel is 2.6.") || !strings.Contains(r.out, "boot a kernel") {
		t.Fatalf("k1s check says:\n%s", r.out) // and a worker would start here
	}
	k1s("server").wants(t, 1, "error: ", "the kernel is 2.6.", "5.13 or newer is needed", "boot a kernel of version 5.13 or newer", "hint:  ")
	for _, name := range []string{b.data() + "/pki", b.data() + "/db", b.data() + "/containerd", b.dir + "/kubelet"} {
		if _, err := os.Stat(name); err == nil {
			t.Errorf("%s was made", name)
		}
	}
}

func TestAnUnknownSettingIsNamedWithItsLine(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	b.configured(t, "api:\n  prot: 6444")
	b.fails(t).wants(t, 2, "error: ", "config.yaml:5:5: spec.api: unknown field \"prot\"", "did you mean \"port\"")
	if out := b.files(t); out != "" {
		t.Errorf("files were made:\n%s", out)
	}
}

// A cluster whose node cannot start tells why, and the reason is not a time-out.
func TestAClusterWithAWrongSettingIsToldAtOnce(t *testing.T) {
	root(t)
	t.Parallel()
	c := newCluster("wrong")
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("apiVersion: k1s.io/v1alpha1\nkind: Config\nspec:\n  api:\n    prot: 6444\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	r := c.create(t.Context(), "--config", file)
	if r.code != 2 && r.code != 1 || !strings.Contains(r.err, "unknown field") || !strings.Contains(r.err, "prot") {
		t.Errorf("%v", r)
	}
}

func TestADirectoryForClustersWithTooLongAPathIsToldAtOnce(t *testing.T) {
	root(t)
	t.Parallel()
	dir := filepath.Join(the.dir, strings.Repeat("long", 20))
	env := append(the.environ(), "K1S_CLUSTERS_DIR="+dir)
	r := command(within(t, limit), env, "", the.program, "cluster", "create", the.name("long"))
	r.wants(t, 2, "error: ", "control socket would be too long", dir, "hint:  ", "K1S_CLUSTERS_DIR")
	if _, err := os.Stat(dir); err == nil {
		t.Error("directories were made")
	}
}

// smallCgroup is a cgroup with so much memory, which goes with the test: its directory, its name and the file of
// its limit.
func smallCgroup(t *testing.T, base, memory string) (dir, cgroup, limitFile string) {
	t.Helper()
	all, err := platform.DetectCgroups()
	if err != nil {
		t.Fatal(err)
	}
	controller, name := "memory", "memory.limit_in_bytes"
	if all.Version == 2 {
		controller, name = "", "memory.max"
	}
	mount, ok := all.Hierarchies[controller]
	if !ok {
		t.Skip("there is no memory controller here")
	}
	cgroup = "/" + the.name(base)
	dir = mount + cgroup
	limitFile = dir + "/" + name
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// What was in it may be on its way out.
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		err := wait.Until(ctx, askAgain, "the cgroup to be empty", func(context.Context) error { return os.Remove(dir) })
		if err != nil {
			t.Error(err)
		}
	})
	if _, err := os.Stat(limitFile); err != nil {
		t.Skipf("the memory controller is not switched on for %s", dir)
	}
	if err := os.WriteFile(limitFile, []byte(memory), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir, cgroup, limitFile
}

func TestTooLittleMemoryIsToldWithWhatLimitsIt(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	small, cgroup, limitFile := smallCgroup(t, "small", "300M")
	join := "echo 0 > " + small + "/cgroup.procs"
	for what, prepare := range map[string]string{
		"of k1s itself":          join,
		"of what the node is in": "export K1S_CGROUP_ROOT=" + cgroup + "/node",
	} {
		t.Run(what, func(t *testing.T) {
			b.prepare = prepare
			r := b.k1s(within(t, limit), "check")
			r.wants(t, 4, "error: this machine cannot be a node as it is")
			text := "300 MB of memory may be used, 400 MB are needed (limited by the cgroup " + small + ")"
			if !strings.Contains(r.out, "error:   "+text+" (memory-low)") || !strings.Contains(r.out, "raise the limit in "+limitFile) {
				t.Errorf("k1s check says:\n%s", r.out)
			}
			b.fails(t).wants(t, 1, "error: "+text, "hint:  raise the limit in "+limitFile)
			if _, err := os.Stat(b.data() + "/pki"); err == nil {
				t.Error("certificates were made")
			}
		})
	}
	t.Run("little is told, and enough", func(t *testing.T) {
		if err := os.WriteFile(limitFile, []byte("500M"), 0o644); err != nil {
			t.Fatal(err)
		}
		b.prepare = join
		if r := b.k1s(within(t, limit), "check", "--no-worker"); r.code != 0 || !strings.Contains(r.out, "warning: 500 MB of memory may be used, 768 MB are recommended") {
			t.Errorf("k1s check: %v", r)
		}
	})
}
