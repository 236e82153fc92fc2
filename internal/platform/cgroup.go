package platform

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k1s.io/k1s/internal/errs"
)

// Cgroups is the cgroup layout of this machine as we see it. Paths of cgroups are relative to the mount
// points, begin with "/", and mean the same place in every hierarchy. See DetectCgroups.
//
// Version 1 has one hierarchy per controller, and a process has a place in each. Version 2 has one. The
// hybrid layout is version 1 with an additional, controller-less version 2 hierarchy; we count it as 1.
type Cgroups struct {
	Version int
	Hybrid  bool
	// Hierarchies are the mount points by controller: "memory", "cpu", "name=systemd" …; "" is version 2.
	Hierarchies map[string]string
	// Own is our own cgroup in each hierarchy, relative to the mount point.
	Own map[string]string

	fs cgroupFS
}

// cgroupFS is the kernel's side of cgroups, so that the rules of version 2 can be tested on a machine that
// has version 1. Removing a cgroup means its directory only: the files in it go by themselves.
type cgroupFS interface {
	Mkdir(name string) error
	Rmdir(name string) error
	Read(name string) (string, error)
	Write(name, data string) error
	Children(name string) ([]string, error)
}

// wantedControllers are enabled for our units and pods on version 2, as far as they exist.
var wantedControllers = []string{"cpu", "cpuset", "io", "memory", "pids", "hugetlb"}

// DetectCgroups reads the layout. The error is of kind errs.Unsupported when nothing is mounted.
func DetectCgroups() (*Cgroups, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("detecting cgroups: %w", err)
	}
	defer mounts.Close()
	own, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("detecting cgroups: %w", err)
	}
	defer own.Close()
	c, err := parseCgroups(mounts, own)
	if err != nil {
		return nil, fmt.Errorf("detecting cgroups: %w", err)
	}
	c.fs = osCgroupFS{}
	return c, nil
}

func parseCgroups(mountinfo, own io.Reader) (*Cgroups, error) {
	c := &Cgroups{Hierarchies: map[string]string{}, Own: map[string]string{}}
	roots := map[string]string{} // what part of the hierarchy is mounted, by controller
	sc := bufio.NewScanner(mountinfo)
	for sc.Scan() {
		// 36 35 98:0 /root /mount/point opts… - fstype source superopts
		head, tail, ok := strings.Cut(sc.Text(), " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(h) < 5 || len(t) < 3 {
			continue
		}
		var controllers []string
		switch t[0] {
		case "cgroup2":
			controllers = []string{""}
		case "cgroup":
			for opt := range strings.SplitSeq(t[2], ",") {
				if !slices.Contains(mountOptions, opt) {
					controllers = append(controllers, opt)
				}
			}
		}
		for _, name := range controllers {
			// The first mount counts: later ones are views into it, or belong to containers.
			if _, ok := c.Hierarchies[name]; !ok {
				c.Hierarchies[name] = unescapeMount(h[4])
				roots[name] = unescapeMount(h[3])
			}
		}
	}
	if err := sc.Err(); err != nil {
		return nil, err
	}
	_, unified := c.Hierarchies[""]
	switch {
	case len(c.Hierarchies) == 0:
		return nil, errs.Hint(errs.New(errs.Unsupported, "no cgroup file system is mounted"),
			"mount it: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
	case len(c.Hierarchies) == 1 && unified:
		c.Version = 2
	default:
		c.Version, c.Hybrid = 1, unified
	}
	sc = bufio.NewScanner(own)
	for sc.Scan() {
		// 4:memory,cpu:/a/b, and 0::/a/b for version 2
		f := strings.SplitN(sc.Text(), ":", 3)
		if len(f) != 3 {
			continue
		}
		for name := range strings.SplitSeq(f[1], ",") {
			if root, ok := roots[name]; ok {
				rel, inside := strings.CutPrefix(f[2], strings.TrimSuffix(root, "/"))
				if inside {
					c.Own[name] = path.Join("/", rel)
				}
			}
		}
	}
	return c, sc.Err()
}

// mountOptions are the super block options of version 1 that are no controllers.
var mountOptions = []string{"rw", "ro", "xattr", "noprefix", "clone_children", "seclabel", "cpuset_v2_mode", "favordynmods", "none"}

func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// mountPoints are the distinct hierarchies, sorted, each with one of its controllers.
func (c *Cgroups) mountPoints() []hierarchy {
	seen := map[string]bool{}
	var hs []hierarchy
	for _, name := range slices.Sorted(maps.Keys(c.Hierarchies)) {
		dir := c.Hierarchies[name]
		if !seen[dir] {
			seen[dir] = true
			hs = append(hs, hierarchy{name, dir})
		}
	}
	return hs
}

type hierarchy struct{ controller, dir string }

// At names a cgroup without touching it. p may be several elements, each may contain slashes.
func (c *Cgroups) At(p ...string) *Cgroup {
	return &Cgroup{all: c, Path: path.Join(append([]string{"/"}, p...)...)}
}

// Prepare makes root, below which everything of this node will live, and on version 2 hands the
// controllers down to it and to what is made in it. Version 2 does not allow a cgroup to have both
// processes and controlled children. Where our own cgroup is in the way, which is so when root lies below
// it (a container, or a unit with Delegate=yes), its processes are moved to a leaf next to root. It is
// idempotent.
func (c *Cgroups) Prepare(root string) (*Cgroup, error) {
	g := c.At(root)
	if err := g.make(); err != nil {
		return nil, g.explain("making", err)
	}
	if c.Version != 2 {
		return g, nil
	}
	mount := c.Hierarchies[""]
	dir := mount
	elems := strings.FieldsFunc(g.Path, func(r rune) bool { return r == '/' })
	for i := 0; ; i++ {
		if err := c.enable(dir); err != nil {
			return nil, g.explain("handing controllers down to", err)
		}
		if i == len(elems) {
			return g, nil
		}
		dir = path.Join(dir, elems[i])
	}
}

// enable hands all wanted controllers of the cgroup dir to its children.
func (c *Cgroups) enable(dir string) error {
	avail, err := c.fs.Read(path.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	enabled, err := c.fs.Read(path.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	have, on := strings.Fields(avail), strings.Fields(enabled)
	for _, name := range wantedControllers {
		if !slices.Contains(have, name) || slices.Contains(on, name) {
			continue
		}
		err := c.fs.Write(path.Join(dir, "cgroup.subtree_control"), "+"+name)
		if errors.Is(err, syscall.EBUSY) {
			if err = c.vacate(dir); err == nil {
				err = c.fs.Write(path.Join(dir, "cgroup.subtree_control"), "+"+name)
			}
		}
		if err != nil && (name == "memory" || name == "cpu" || name == "pids") {
			return fmt.Errorf("enabling controller %s in %s: %w", name, dir, err)
		}
	}
	return nil
}

// leaf is where processes go that are in the way in a cgroup that was delegated to us.
const leaf = "k1s-init"

// vacate moves all processes of our own cgroup to a leaf. Those of other people's cgroups are not ours to
// move.
func (c *Cgroups) vacate(dir string) error {
	if path.Join(c.Hierarchies[""], c.Own[""]) != dir {
		return fmt.Errorf("%s has processes that are not ours: %w", dir, syscall.EBUSY)
	}
	to := path.Join(dir, leaf)
	if err := c.fs.Mkdir(to); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// New ones may be born while the others are moved.
	for range 10 {
		pids, err := c.procs(dir)
		if err != nil || len(pids) == 0 {
			c.Own[""] = path.Join(c.Own[""], leaf)
			return err
		}
		for _, pid := range pids {
			if err := c.fs.Write(path.Join(to, "cgroup.procs"), strconv.Itoa(pid)); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("moving process %d to %s: %w", pid, to, err)
			}
		}
	}
	return fmt.Errorf("processes appear in %s as fast as they are moved away: %w", dir, syscall.EBUSY)
}

func (c *Cgroups) procs(dir string) ([]int, error) {
	s, err := c.fs.Read(path.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for f := range strings.FieldsSeq(s) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, err
		}
		if pid != 0 { // 0 is a process outside of our pid namespace
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Ensure makes the cgroup name below root. Prepare(root) must have been called once.
func (c *Cgroups) Ensure(root, name string) (*Cgroup, error) {
	g := c.At(root, name)
	if err := g.make(); err != nil {
		return nil, g.explain("making", err)
	}
	return g, nil
}

// Cgroup is one place in all hierarchies.
type Cgroup struct {
	Path string // as in "/k1s/kubelet"

	all *Cgroups
}

func (g *Cgroup) explain(what string, err error) error {
	err = fmt.Errorf("%s cgroup %s: %w", what, g.Path, err)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return errs.Hint(err, "run as root where /sys/fs/cgroup is writable; in a container this needs a cgroup namespace of its own or --privileged")
	}
	return err
}

func (g *Cgroup) dir(h hierarchy) string { return path.Join(h.dir, g.Path) }

// make makes it in every hierarchy, parents first.
func (g *Cgroup) make() error {
	for _, h := range g.all.mountPoints() {
		dir := h.dir
		for elem := range strings.FieldsFuncSeq(g.Path, func(r rune) bool { return r == '/' }) {
			parent := dir
			dir = path.Join(dir, elem)
			if err := g.all.fs.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if g.all.Version == 1 && h.dir == g.all.Hierarchies["cpuset"] {
				if err := g.all.inheritCPUs(parent, dir); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// inheritCPUs gives a new cpuset of version 1 what its parent has: it begins empty and takes no process
// until it has both.
func (c *Cgroups) inheritCPUs(parent, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		has, err := c.fs.Read(path.Join(dir, file))
		if err != nil || strings.TrimSpace(has) != "" {
			return err
		}
		give, err := c.fs.Read(path.Join(parent, file))
		if err != nil {
			return err
		}
		if err := c.fs.Write(path.Join(dir, file), strings.TrimSpace(give)); err != nil {
			return err
		}
	}
	return nil
}

// birthplace opens the directory a process can be born in; nil where the kernel cannot do that.
func (g *Cgroup) birthplace() (*os.File, error) {
	if g.all.Version != 2 {
		return nil, nil
	}
	return os.Open(path.Join(g.all.Hierarchies[""], g.Path))
}

// Add moves a process with all its threads here. Work on the hierarchies goes on after a failure.
func (g *Cgroup) Add(pid int) error {
	var failed []error
	for _, h := range g.all.mountPoints() {
		if err := g.all.fs.Write(path.Join(g.dir(h), "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			failed = append(failed, fmt.Errorf("in %s: %w", h.dir, err))
		}
	}
	if err := errors.Join(failed...); err != nil {
		return g.explain("moving process "+strconv.Itoa(pid)+" to", err)
	}
	return nil
}

// Procs lists the processes in it and below it, each once, sorted. One that is not there has none.
func (g *Cgroup) Procs() ([]int, error) {
	seen := map[int]bool{}
	for _, h := range g.all.mountPoints() {
		err := g.walk(g.dir(h), func(dir string) error {
			pids, err := g.all.procs(dir)
			for _, pid := range pids {
				seen[pid] = true
			}
			return err
		})
		if err != nil {
			return nil, g.explain("listing the processes of", err)
		}
	}
	return slices.Sorted(maps.Keys(seen)), nil
}

// walk visits dir and everything below it, children first.
func (g *Cgroup) walk(dir string, visit func(string) error) error {
	children, err := g.all.fs.Children(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := g.walk(path.Join(dir, child), visit); err != nil {
			return err
		}
	}
	return visit(dir)
}

// killPause is between two looks at what is left of a cgroup: processes need a moment to die.
const killPause = 20 * time.Millisecond

// KillAll ends every process in it and below it, frozen ones too, and returns when none is left. It
// must not be used on a cgroup we are in ourselves.
func (g *Cgroup) KillAll(ctx context.Context) error {
	if err := g.notOurs(); err != nil {
		return err
	}
	if g.all.Version == 2 {
		// One write for all where the kernel has it (5.14); the loop is for the others, and for waiting.
		_ = g.all.fs.Write(path.Join(g.all.Hierarchies[""], g.Path, "cgroup.kill"), "1")
	}
	for {
		pids, err := g.Procs()
		if err != nil || len(pids) == 0 {
			return err
		}
		var failed []error
		for _, pid := range pids {
			failed = append(failed, killPID(pid))
		}
		if err := errors.Join(failed...); err != nil {
			return g.explain("killing the processes of", err)
		}
		g.thaw()
		select {
		case <-ctx.Done():
			return fmt.Errorf("killing the processes of cgroup %s, %d are left, such as %d: %w", g.Path, len(pids), pids[0], context.Cause(ctx))
		case <-time.After(killPause):
		}
	}
}

func (g *Cgroup) notOurs() error {
	for name, own := range g.all.Own {
		if own == g.Path || strings.HasPrefix(own, strings.TrimSuffix(g.Path, "/")+"/") {
			return errs.New(errs.Invalid, "cgroup %s contains this very process (hierarchy %q): it will not be killed", g.Path, cmp.Or(name, "2"))
		}
	}
	return nil
}

// thaw lets frozen processes run into their signal. Version 2 does that by itself.
func (g *Cgroup) thaw() {
	dir, ok := g.all.Hierarchies["freezer"]
	if !ok {
		return
	}
	_ = g.walk(path.Join(dir, g.Path), func(dir string) error {
		_ = g.all.fs.Write(path.Join(dir, "freezer.state"), "THAWED")
		return nil
	})
}

// Remove removes it and everything below it. It fails while processes are in it. Removing what is not
// there is success.
func (g *Cgroup) Remove(ctx context.Context) error {
	if g.Path == "/" {
		return errs.New(errs.Invalid, "the root cgroup cannot be removed")
	}
	for {
		var failed []error
		for _, h := range g.all.mountPoints() {
			err := g.walk(g.dir(h), g.all.fs.Rmdir)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				failed = append(failed, err)
			}
		}
		err := errors.Join(failed...)
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) {
			return g.explain("removing", err)
		}
		// Busy is also what a cgroup is for a moment after its last process has ended.
		if pids, perr := g.Procs(); perr == nil && len(pids) > 0 {
			return g.explain("removing", fmt.Errorf("%d processes are in it, such as %d: %w", len(pids), pids[0], syscall.EBUSY))
		}
		select {
		case <-ctx.Done():
			return g.explain("removing", fmt.Errorf("%w: %w", context.Cause(ctx), err))
		case <-time.After(killPause):
		}
	}
}

// CgroupStats is what a cgroup and everything below it uses.
type CgroupStats struct {
	MemoryBytes     uint64        `json:"memoryBytes"`     // charged, page cache included
	AnonymousBytes  uint64        `json:"anonymousBytes"`  // memory that no file stands behind
	CPU             time.Duration `json:"cpu"`             // since it was made
	MemoryKnown     bool          `json:"memoryKnown"`     // false: no memory controller here
	ProcessesInside int           `json:"processesInside"` // in it and below
}

// Stats measures it. Controllers that are not there leave their fields zero.
func (g *Cgroup) Stats() (CgroupStats, error) {
	var s CgroupStats
	pids, err := g.Procs()
	if err != nil {
		return s, err
	}
	s.ProcessesInside = len(pids)
	number := func(controller, file, key string) (uint64, bool) {
		mount, ok := g.all.Hierarchies[controller]
		if !ok {
			return 0, false
		}
		text, err := g.all.fs.Read(path.Join(mount, g.Path, file))
		if err != nil {
			return 0, false
		}
		for line := range strings.Lines(text) {
			f := strings.Fields(line)
			if key != "" && (len(f) != 2 || f[0] != key) || len(f) == 0 {
				continue
			}
			n, err := strconv.ParseUint(f[len(f)-1], 10, 64)
			return n, err == nil
		}
		return 0, false
	}
	if g.all.Version == 2 {
		s.MemoryBytes, s.MemoryKnown = number("", "memory.current", "")
		s.AnonymousBytes, _ = number("", "memory.stat", "anon")
		usec, _ := number("", "cpu.stat", "usage_usec")
		s.CPU = time.Duration(usec) * time.Microsecond
		return s, nil
	}
	s.MemoryBytes, s.MemoryKnown = number("memory", "memory.usage_in_bytes", "")
	s.AnonymousBytes, _ = number("memory", "memory.stat", "total_rss")
	nsec, _ := number("cpuacct", "cpuacct.usage", "")
	s.CPU = time.Duration(nsec)
	return s, nil
}

// osCgroupFS is the real one.
type osCgroupFS struct{}

func (osCgroupFS) Mkdir(name string) error { return os.Mkdir(name, 0o755) }
func (osCgroupFS) Rmdir(name string) error { return os.Remove(name) }

func (osCgroupFS) Read(name string) (string, error) {
	b, err := os.ReadFile(name)
	return string(b), err
}

func (osCgroupFS) Write(name, data string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0) // never made: a missing control file is an error
	if err != nil {
		return err
	}
	_, err = f.WriteString(data)
	return errors.Join(err, f.Close())
}

func (osCgroupFS) Children(name string) ([]string, error) {
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, e.Name())
		}
	}
	return dirs, nil
}
