package platform

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"k1s.io/k1s/internal/errs"
)

func TestTheLayoutIsReadFromTheMounts(t *testing.T) {
	for name, tc := range map[string]struct {
		mounts, own string
		version     int
		hybrid      bool
		hierarchies map[string]string
		ownIn       map[string]string
	}{
		"version 2": {
			mounts:  "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate",
			own:     "0::/system.slice/k1s.service",
			version: 2, hierarchies: map[string]string{"": "/sys/fs/cgroup"}, ownIn: map[string]string{"": "/system.slice/k1s.service"},
		},
		"hybrid": {
			mounts: "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
				"32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
				"35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
				"40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n" +
				"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
			own:     "9:name=systemd:/\n4:memory:/a/b\n1:cpu,cpuacct:/\n0::/",
			version: 1, hybrid: true,
			hierarchies: map[string]string{"cpu": "/sys/fs/cgroup/cpu,cpuacct", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
				"memory": "/sys/fs/cgroup/memory", "name=systemd": "/sys/fs/cgroup/systemd", "": "/sys/fs/cgroup/unified"},
			ownIn: map[string]string{"cpu": "/", "cpuacct": "/", "memory": "/a/b", "name=systemd": "/", "": "/"},
		},
		"a part of version 1, mounted in a container": {
			mounts:  "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory",
			own:     "4:memory:/docker/abc/x",
			version: 1, hierarchies: map[string]string{"memory": "/sys/fs/cgroup/memory"}, ownIn: map[string]string{"memory": "/x"},
		},
		"the first mount counts, and names may have spaces": {
			mounts: `30 23 0:26 / /my\040cgroups rw - cgroup2 cgroup2 rw` + "\n" +
				"31 23 0:26 / /somewhere/else rw - cgroup2 cgroup2 rw",
			own:     "0::/",
			version: 2, hierarchies: map[string]string{"": "/my cgroups"}, ownIn: map[string]string{"": "/"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := parseCgroups(strings.NewReader(tc.mounts), strings.NewReader(tc.own))
			if err != nil {
				t.Fatal(err)
			}
			if c.Version != tc.version || c.Hybrid != tc.hybrid || !maps.Equal(c.Hierarchies, tc.hierarchies) || !maps.Equal(c.Own, tc.ownIn) {
				t.Errorf("got %+v", c)
			}
		})
	}
	_, err := parseCgroups(strings.NewReader("30 23 0:26 / / rw - ext4 /dev/vda rw"), strings.NewReader(""))
	if !errs.Is(err, errs.Unsupported) {
		t.Errorf("without cgroups: %v", err)
	}
}

// kernel2 plays the rules of cgroup version 2: controllers come from the parent's subtree_control, and a
// cgroup other than the real root has either processes or controlled children.
type kernel2 struct {
	root     string // mount point
	realRoot bool   // the mount point is the root of the machine's hierarchy, which is exempt
	groups   map[string]*group2
}

type group2 struct {
	procs   []int
	subtree []string
}

func newKernel2(realRoot bool, procs ...int) *kernel2 {
	return &kernel2{root: "/cg", realRoot: realRoot, groups: map[string]*group2{"/cg": {procs: procs}}}
}

func (k *kernel2) controllers(dir string) []string {
	if dir == k.root {
		return []string{"cpu", "memory", "pids", "rdma"}
	}
	return k.groups[path.Dir(dir)].subtree
}

func (k *kernel2) Mkdir(dir string) error {
	if k.groups[dir] != nil {
		return fs.ErrExist
	}
	if k.groups[path.Dir(dir)] == nil {
		return fs.ErrNotExist
	}
	k.groups[dir] = &group2{}
	return nil
}

func (k *kernel2) Children(dir string) ([]string, error) {
	if k.groups[dir] == nil {
		return nil, fs.ErrNotExist
	}
	var names []string
	for g := range k.groups {
		if path.Dir(g) == dir && g != dir {
			names = append(names, path.Base(g))
		}
	}
	slices.Sort(names)
	return names, nil
}

func (k *kernel2) Rmdir(dir string) error {
	children, err := k.Children(dir)
	if err != nil {
		return err
	}
	if len(children) > 0 || len(k.groups[dir].procs) > 0 {
		return syscall.EBUSY
	}
	delete(k.groups, dir)
	return nil
}

func (k *kernel2) Read(name string) (string, error) {
	dir, file := path.Split(name)
	dir = path.Clean(dir)
	g := k.groups[dir]
	if g == nil {
		return "", fs.ErrNotExist
	}
	switch file {
	case "cgroup.controllers":
		return strings.Join(k.controllers(dir), " ") + "\n", nil
	case "cgroup.subtree_control":
		return strings.Join(g.subtree, " ") + "\n", nil
	case "cgroup.procs":
		var b strings.Builder
		for _, pid := range g.procs {
			fmt.Fprintln(&b, pid)
		}
		return b.String(), nil
	case "memory.current":
		return "4096\n", nil
	case "memory.stat":
		return "file 1\nanon 2048\nanon_thp 0\n", nil
	case "cpu.stat":
		return "usage_usec 1500\nuser_usec 1\n", nil
	}
	return "", fs.ErrNotExist
}

func (k *kernel2) Write(name, data string) error {
	dir, file := path.Split(name)
	dir = path.Clean(dir)
	g := k.groups[dir]
	if g == nil {
		return fs.ErrNotExist
	}
	switch file {
	case "cgroup.subtree_control":
		c := strings.TrimPrefix(data, "+")
		if !slices.Contains(k.controllers(dir), c) {
			return fs.ErrNotExist
		}
		if len(g.procs) > 0 && (dir != k.root || !k.realRoot) {
			return syscall.EBUSY
		}
		g.subtree = append(g.subtree, c)
		return nil
	case "cgroup.procs":
		if len(g.subtree) > 0 && (dir != k.root || !k.realRoot) {
			return syscall.EBUSY
		}
		pid, err := strconv.Atoi(data)
		if err != nil {
			return err
		}
		for _, other := range k.groups {
			other.procs = slices.DeleteFunc(other.procs, func(p int) bool { return p == pid })
		}
		g.procs = append(g.procs, pid)
		return nil
	}
	return fs.ErrNotExist
}

func version2(k *kernel2, own string) *Cgroups {
	return &Cgroups{Version: 2, Hierarchies: map[string]string{"": k.root}, Own: map[string]string{"": own}, fs: k}
}

func TestVersion2HandsControllersDownToUnits(t *testing.T) {
	k := newKernel2(true, 1, 2, 3)
	c := version2(k, "/")
	for range 2 { // idempotent
		if _, err := c.Prepare("/k1s"); err != nil {
			t.Fatal(err)
		}
	}
	g, err := c.Ensure("/k1s", "kubelet")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Add(3); err != nil {
		t.Fatal(err)
	}
	if got := k.controllers("/cg/k1s/kubelet"); !slices.Equal(got, []string{"cpu", "memory", "pids"}) {
		t.Errorf("controllers of a unit: %v", got)
	}
	if pids, err := g.Procs(); err != nil || !slices.Equal(pids, []int{3}) {
		t.Errorf("processes: %v, %v", pids, err)
	}
	if !slices.Equal(k.groups["/cg"].procs, []int{1, 2}) {
		t.Errorf("the machine's own processes were moved: %v", k.groups["/cg"].procs)
	}
	s, err := g.Stats()
	if err != nil || s.MemoryBytes != 4096 || s.AnonymousBytes != 2048 || s.CPU.Microseconds() != 1500 || s.ProcessesInside != 1 {
		t.Errorf("stats: %+v, %v", s, err)
	}
}

func TestVersion2MovesOurselvesOutOfADelegatedRoot(t *testing.T) {
	k := newKernel2(false, 10, 11) // as in a container: the mount point is a cgroup like any other
	c := version2(k, "/")
	if _, err := c.Prepare("/k1s"); err != nil {
		t.Fatal(err)
	}
	if got := k.groups["/cg/"+leaf].procs; !slices.Equal(got, []int{10, 11}) {
		t.Errorf("the leaf has %v", got)
	}
	if c.Own[""] != "/"+leaf {
		t.Errorf("we are said to be in %q", c.Own[""])
	}
	if !slices.Contains(k.groups["/cg/k1s"].subtree, "memory") {
		t.Errorf("controllers of units: %v", k.groups["/cg/k1s"].subtree)
	}
}

func TestVersion2DoesNotMoveStrangers(t *testing.T) {
	k := newKernel2(true)
	k.groups["/cg/user"] = &group2{procs: []int{77}}
	_, err := version2(k, "/elsewhere").Prepare("/user/k1s")
	if !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), "/cg/user has processes that are not ours") {
		t.Errorf("got %v", err)
	}
	if !slices.Equal(k.groups["/cg/user"].procs, []int{77}) {
		t.Error("a stranger was moved")
	}
}

func TestRemovingTakesTheTreeButNotProcesses(t *testing.T) {
	k := newKernel2(true, 1, 5)
	c := version2(k, "/")
	root, err := c.Prepare("/k1s")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b/c/d"} {
		if _, err := c.Ensure("/k1s", name); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.At("/k1s/b/c/d").Add(5); err != nil {
		t.Fatal(err)
	}
	if err := root.Remove(t.Context()); err == nil || !strings.Contains(err.Error(), "1 processes are in it, such as 5") {
		t.Errorf("with a process inside: %v", err)
	}
	if err := c.At("/").Add(5); err != nil {
		t.Fatal(err)
	}
	for range 2 { // what is not there is removed
		if err := root.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(k.groups) != 1 {
		t.Errorf("left: %v", slices.Collect(maps.Keys(k.groups)))
	}
	if err := c.At("/").Remove(t.Context()); !errs.Is(err, errs.Invalid) {
		t.Errorf("removing the root: %v", err)
	}
}

func TestWeDoNotKillOurselves(t *testing.T) {
	k := newKernel2(true, 1)
	c := version2(k, "/k1s/daemon")
	for _, p := range []string{"/", "/k1s", "/k1s/daemon"} {
		if err := c.At(p).KillAll(t.Context()); !errs.Is(err, errs.Invalid) {
			t.Errorf("KillAll(%s): %v", p, err)
		}
	}
	if err := c.At("/k1s/daem").KillAll(t.Context()); err != nil {
		t.Errorf("one that only begins like ours: %v", err)
	}
}
