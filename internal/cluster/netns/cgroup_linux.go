package netns

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// hierarchy is one cgroup file system: each controller of cgroup v1 has its own, v2 is one.
type hierarchy struct {
	mount string
	v2    bool
}

// hierarchies are those mounted below /sys/fs/cgroup, the name=systemd one of v1 too: whatever can hold
// our processes is needed to find them again.
func hierarchies() ([]hierarchy, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []hierarchy
	for sc := bufio.NewScanner(f); sc.Scan(); {
		w := strings.Fields(sc.Text())
		if len(w) < 3 || !strings.HasPrefix(w[1], "/sys/fs/cgroup") || (w[2] != "cgroup" && w[2] != "cgroup2") {
			continue
		}
		h := hierarchy{mount: w[1], v2: w[2] == "cgroup2"}
		if !slices.Contains(out, h) {
			out = append(out, h)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no cgroup file system is mounted below /sys/fs/cgroup")
	}
	return out, nil
}

// makeCgroup makes path in every hierarchy.
func makeCgroup(path string) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		dir := h.mount
		for elem := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
			parent := dir
			dir = filepath.Join(dir, elem)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("making cgroup: %w", err)
			}
			// A new v1 cpuset is empty and takes no process until it has CPUs and memory nodes.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				if h.v2 {
					continue
				}
				have, err := os.ReadFile(filepath.Join(dir, file))
				if err != nil || strings.TrimSpace(string(have)) != "" {
					continue
				}
				from, err := os.ReadFile(filepath.Join(parent, file))
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, file), from, 0o644)
				}
				if err != nil {
					return fmt.Errorf("setting up cpuset %s: %w", dir, err)
				}
			}
		}
		if h.v2 {
			delegate(h.mount, path)
		}
	}
	return nil
}

// delegate hands all controllers down to path's parent, as far as the machine lets us: with systemd, some
// are its own. What a node then lacks its own checks will name.
func delegate(mount, path string) {
	b, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers"))
	if err != nil {
		return
	}
	dir := mount
	elems := strings.Split(strings.Trim(path, "/"), "/")
	for _, elem := range elems[:len(elems)-1] {
		for c := range strings.FieldsSeq(string(b)) {
			_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644)
		}
		dir = filepath.Join(dir, elem)
	}
}

// joinCgroup moves a process into path in every hierarchy.
func joinCgroup(path string, pid int) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		file := filepath.Join(h.mount, path, "cgroup.procs")
		if err := os.WriteFile(file, []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return fmt.Errorf("moving process %d: %w", pid, err)
		}
	}
	return nil
}

// cgroupDirs lists path and everything below it in every hierarchy, children before parents.
func cgroupDirs(path string) ([]string, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, h := range hs {
		err := filepath.WalkDir(filepath.Join(h.mount, path), func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) { // also one that went while we looked
				return nil
			}
			if err == nil && d.IsDir() {
				out = append(out, p)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("listing cgroups: %w", err)
		}
	}
	slices.Reverse(out)
	return out, nil
}

// cgroupPIDs lists the processes in path and below.
func cgroupPIDs(path string) ([]int, error) {
	dirs, err := cgroupDirs(path)
	var out []int
	for _, d := range dirs {
		b, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		if err != nil {
			continue // removed meanwhile
		}
		for f := range strings.FieldsSeq(string(b)) {
			// 0 is a process of another pid namespace: it dies with its parent, which is one of ours.
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
				out = append(out, pid)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), err
}

// thaw lets frozen (paused) processes of cgroup v1 go on: nothing else, not even a kill, reaches them.
func thaw(path string) {
	dirs, _ := cgroupDirs(path)
	for _, d := range dirs {
		if file := filepath.Join(d, "freezer.state"); fileExists(file) {
			_ = os.WriteFile(file, []byte("THAWED"), 0o644)
		}
	}
}

func fileExists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// removeCgroups removes path and everything below; processes must have left. A cgroup stays busy for a
// moment after its last process died, so the caller tries again.
func removeCgroups(path string) error {
	dirs, err := cgroupDirs(path)
	if err != nil {
		return err
	}
	var all []error
	for _, d := range dirs {
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
			all = append(all, fmt.Errorf("removing cgroup %s: %w", d, err))
		}
	}
	return errors.Join(all...)
}

// removeEmptyCgroup removes a parent that other clusters may still use, and what is above it, and tells whether
// all of it is gone everywhere.
func removeEmptyCgroup(path string) (gone bool) {
	hs, err := hierarchies()
	if err != nil {
		return false
	}
	for ; path != "/" && path != "."; path = filepath.Dir(path) {
		gone = true
		for _, h := range hs {
			err := unix.Rmdir(filepath.Join(h.mount, path))
			gone = gone && (err == nil || errors.Is(err, unix.ENOENT))
		}
	}
	return gone
}
