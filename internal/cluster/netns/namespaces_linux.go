package netns

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// nsKinds are the namespaces a node has, in the order they are entered: the mount namespace last, because
// with it the pins are out of sight.
var nsKinds = []string{"net", "uts", "mnt"}

// onThread runs fn on an operating system thread of its own that ends with fn, so fn may move it into any
// namespace.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread
		if !isMainThread() {
			done <- fn()
			return
		}
		// The main thread cannot end, and what /proc says about the process is what it is in. It is held here
		// so that the other goroutine gets another one.
		done <- onThread(fn)
		runtime.UnlockOSThread()
	}()
	return <-done
}

func isMainThread() bool { return unix.Gettid() == unix.Getpid() }

// makeNamespaces makes new namespaces of the given kinds, lets setup furnish them from inside, and pins
// them as <owner>.<kind>. Nothing is left when it fails.
//
// The kernel only pins a mount namespace inside one with a smaller id. Up to Linux 6.17 a newer namespace has
// a larger id; since then every CPU gives out ids of a range of its own (seen on 6.18, November 2026), so that
// outside of the initial mount namespace (in a container, in WSL2) the CPU decides. One of them gives out
// larger ones: the one our own came from.
func makeNamespaces(l layout, owner string, flags int, kinds []string, setup func() error) error {
	if err := makePinDir(l.pins()); err != nil {
		return err
	}
	err := makeNamespacesOn(nil, l, owner, flags, kinds, setup)
	var cpus unix.CPUSet
	if !errors.Is(err, errNotPinned) || unix.SchedGetaffinity(0, &cpus) != nil {
		return err
	}
	for cpu := range len(cpus) * 64 {
		if !cpus.IsSet(cpu) {
			continue
		}
		var one unix.CPUSet
		one.Set(cpu)
		if err = makeNamespacesOn(&one, l, owner, flags, kinds, setup); !errors.Is(err, errNotPinned) {
			return err
		}
	}
	return err
}

// errNotPinned is what the kernel says to a pin it does not allow here.
var errNotPinned = unix.EINVAL

// makeNamespacesOn is makeNamespaces on certain CPUs; nil is any.
func makeNamespacesOn(cpus *unix.CPUSet, l layout, owner string, flags int, kinds []string, setup func() error) error {
	furnished, pinned := make(chan int, 1), make(chan error, 1)
	done := make(chan error, 1)
	go func() {
		done <- onThread(func() error {
			defer close(furnished)
			if cpus != nil {
				if err := unix.SchedSetaffinity(0, cpus); err != nil {
					return fmt.Errorf("choosing a CPU to make namespaces on: %w", err)
				}
			}
			if err := unix.Unshare(flags); err != nil {
				return fmt.Errorf("making namespaces for %s: %w", owner, err)
			}
			if err := setup(); err != nil {
				return err
			}
			furnished <- unix.Gettid()
			return <-pinned
		})
	}()
	tid, ok := <-furnished
	if ok {
		pinned <- pinAll(l, owner, tid, kinds)
	}
	return <-done
}

func pinAll(l layout, owner string, tid int, kinds []string) error {
	for _, kind := range kinds {
		from := fmt.Sprintf("/proc/%d/task/%d/ns/%s", os.Getpid(), tid, kind)
		to := l.pin(owner, kind)
		err := os.WriteFile(to, nil, 0o600)
		if err == nil {
			err = unix.Mount(from, to, "", unix.MS_BIND, "")
		}
		if err != nil {
			return errors.Join(fmt.Errorf("pinning the %s namespace of %s: %w", kind, owner, err), unpin(l, owner))
		}
	}
	return nil
}

// makePinDir makes the directory namespaces are pinned in a mount of its own that shares nothing with other
// mount namespaces: the kernel refuses to pin a mount namespace where it could propagate into itself.
func makePinDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	ms, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	if slices.Contains(ms, dir) {
		return nil
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("making a place for namespaces at %s: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return errors.Join(fmt.Errorf("making %s private: %w", dir, err), unix.Unmount(dir, unix.MNT_DETACH))
	}
	return nil
}

// isPinned tells whether the namespaces of owner are there. After a reboot the files may be, the
// namespaces are not.
func isPinned(l layout, owner string, kinds []string) bool {
	for _, kind := range kinds {
		var st unix.Statfs_t
		if unix.Statfs(l.pin(owner, kind), &st) != nil || int64(st.Type) != unix.NSFS_MAGIC {
			return false
		}
	}
	return true
}

// unpin lets the namespaces of owner go; they vanish with their last process.
func unpin(l layout, owner string) error {
	files, err := filepath.Glob(filepath.Join(l.pins(), owner+".*"))
	var all []error
	for _, f := range files {
		if err := unix.Unmount(f, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			all = append(all, fmt.Errorf("unpinning %s: %w", f, err))
			continue
		}
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = append(all, err)
		}
	}
	return errors.Join(append(all, err)...)
}

// nsIDs returns the ids ("net:[4026532241]") of owner's pinned namespaces; owner "*" means everybody's.
func nsIDs(l layout, owner string) map[string]bool {
	files, _ := filepath.Glob(filepath.Join(l.pins(), owner+".*"))
	ids := map[string]bool{}
	for _, f := range files {
		var sf unix.Statfs_t
		var st unix.Stat_t
		if unix.Statfs(f, &sf) == nil && int64(sf.Type) == unix.NSFS_MAGIC && unix.Stat(f, &st) == nil {
			ids[fmt.Sprintf("%s:[%d]", strings.TrimPrefix(filepath.Ext(f), "."), st.Ino)] = true
		}
	}
	return ids
}

// enter moves the current thread, which must be one of onThread, into pinned namespaces.
func enter(l layout, owner string, kinds []string) error {
	// All are opened first: behind the mount namespace the pins are out of sight.
	fds := make([]int, len(kinds))
	for i, kind := range kinds {
		fd, err := unix.Open(l.pin(owner, kind), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening the %s namespace of %s: %w", kind, owner, err)
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	for i, kind := range kinds {
		if kind == "mnt" {
			// A thread shares its root and working directory with the others until told otherwise.
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("preparing to enter %s: %w", owner, err)
			}
		}
		if err := unix.Setns(fds[i], 0); err != nil {
			return fmt.Errorf("entering the %s namespace of %s: %w", kind, owner, err)
		}
	}
	return nil
}

// mountsBelow lists the mount points at and below dir, deepest first.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		w := strings.Fields(sc.Text())
		if len(w) < 5 {
			continue
		}
		at := unescapeMount(w[4])
		if at == dir || strings.HasPrefix(at, dir+"/") {
			out = append(out, at)
		}
	}
	slices.Reverse(out)
	return out, sc.Err()
}

var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

// unmountBelow unmounts everything at and below dir.
func unmountBelow(dir string) error {
	ms, err := mountsBelow(dir)
	all := []error{err}
	for _, m := range ms {
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			all = append(all, fmt.Errorf("unmounting %s: %w", m, err))
		}
	}
	return errors.Join(all...)
}
