package netns

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
)

// root is what a node's root file system is made of.
type root struct {
	layout   layout
	node     string
	program  string // on the machine; appears as programInNode
	hostname string
	hosts    string // /etc/hosts
	resolv   string // /etc/resolv.conf
	volumes  []cluster.Volume
}

// programDirs hold the machine's programs, which nodes may run and not change. Where one of them is a symbolic
// link (bin -> usr/bin) so it is in the node.
var programDirs = []string{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix", "gnu"}

// etcFiles are what programs need of /etc: users, libraries, certificates, time zone. A node does not get the names of protocols and services: many
// machines have none.
var etcFiles = []string{
	"passwd", "group", "nsswitch.conf", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ssl", "pki", "ca-certificates",
	"localtime", "os-release", "alternatives", "static",
}

// privateSysctls are settings of the whole machine that a kubelet insists on changing. A node gets files of
// its own in their place, which say what the kubelet wants to read.
var privateSysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// prepareRoot makes the node's directories on the machine; they are its persistent part.
func prepareRoot(l layout, node string) error {
	for _, d := range []string{
		"lib/k1s/payload", "lib/kubelet", "log/pods", "log/containers", "tmp", "cache",
	} {
		if err := os.MkdirAll(filepath.Join(l.nodeVar(node), d), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{l.nodeEtc(node), l.nodeRun(node), l.payload(), filepath.Dir(l.log(node))} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	for link, to := range map[string]string{"run": "/run", "lock": "/run/lock"} {
		if err := os.Symlink(to, filepath.Join(l.nodeVar(node), link)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	id := filepath.Join(l.node(node), "machine-id")
	if fileExists(id) {
		return nil
	}
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return err
	}
	return os.WriteFile(id, []byte(hex.EncodeToString(b)+"\n"), 0o444)
}

// enter builds the node's root and makes it the root of this thread's new mount namespace. What the machine
// unmounts later is unmounted here too; nothing that happens here reaches the machine.
func (r root) enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("separating the node's mounts from the machine's: %w", err)
	}
	at := r.layout.nodeRun(r.node) // any directory will do as the place: it is mounted elsewhere too
	b := builder{at: at}
	// The sources below this directory must be held before it is covered.
	run, err := unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("opening %s: %w", at, err)
	}
	defer unix.Close(run)
	b.mount("tmpfs", "", "tmpfs", unix.MS_NOSUID, "mode=755,size=64m")
	for _, d := range []string{"etc/k1s", "home", "mnt", "opt/k1s", "srv"} {
		b.dir(d, 0o755)
	}
	b.dir("root", 0o700)
	for _, d := range programDirs {
		b.same("/"+d, true)
	}
	b.bind(r.program, strings.TrimPrefix(programInNode, "/"), true)

	b.dir("run", 0o755)
	b.try("mounting run", func() error {
		return unix.MoveMount(run, "", unix.AT_FDCWD, filepath.Join(at, "run"), unix.MOVE_MOUNT_F_EMPTY_PATH)
	})
	b.dir("var", 0o755)
	b.bind(r.layout.nodeVar(r.node), "var", false)
	b.bind(r.layout.payload(), strings.TrimPrefix(payloadInNode, "/"), false)
	b.mount("tmpfs", "tmp", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
	b.bind("/dev", "dev", false)
	if st, err := os.Lstat("/dev/shm"); err == nil && st.IsDir() {
		b.mount("tmpfs", "dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
	}
	b.sys()
	b.bind("/proc", "proc", false)
	b.bareProc()
	b.sysctls()

	for _, f := range etcFiles {
		b.same("/etc/"+f, true)
	}
	b.bind(r.layout.nodeEtc(r.node), "etc/k1s", false)
	b.bind(filepath.Join(r.layout.node(r.node), "machine-id"), "etc/machine-id", true)
	b.file("etc/hostname", r.hostname+"\n")
	b.file("etc/hosts", r.hosts)
	b.file("etc/resolv.conf", r.resolv)
	b.try("mounting mounts", func() error { return os.Symlink("/proc/self/mounts", filepath.Join(at, "etc/mtab")) })
	for _, v := range r.volumes { // of the machine, whose root this thread still has
		b.bind(v.Host, strings.TrimPrefix(v.Node, "/"), v.ReadOnly)
	}
	if b.err != nil {
		return b.err
	}
	return pivot(at)
}

// pivot makes at the root and drops the machine's.
func pivot(at string) error {
	if err := unix.Chdir(at); err != nil {
		return fmt.Errorf("entering the node's root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("changing to the node's root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leaving the machine's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	// Pods see what the node mounts into their volumes later, and the kubelet what pods mount.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("sharing the node's mounts with its pods: %w", err)
	}
	return nil
}

// builder furnishes a root file system at a directory. After the first error it does nothing.
type builder struct {
	at  string
	err error
}

func (b *builder) try(what string, fn func() error) {
	if b.err != nil {
		return
	}
	if err := fn(); err != nil {
		b.err = fmt.Errorf("building the node's root: %s: %w", what, err)
	}
}

func (b *builder) dir(name string, mode fs.FileMode) {
	b.try("making "+name, func() error { return os.MkdirAll(filepath.Join(b.at, name), mode) })
}

func (b *builder) file(name, content string) {
	b.try("writing "+name, func() error { return os.WriteFile(filepath.Join(b.at, name), []byte(content), 0o644) })
}

func (b *builder) mount(source, name, fstype string, flags uintptr, data string) {
	to := filepath.Join(b.at, name)
	b.try("mounting "+fstype+" at /"+name, func() error {
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		return unix.Mount(source, to, fstype, flags, data)
	})
}

// bind mounts a directory or file of the machine with all that is mounted below it.
func (b *builder) bind(source, name string, readOnly bool) {
	to := filepath.Join(b.at, name)
	b.try("mounting "+source, func() error {
		st, err := os.Stat(source)
		switch {
		case err != nil:
			return err
		case st.IsDir():
			err = os.MkdirAll(to, 0o755)
		case !fileExists(to):
			if err = os.MkdirAll(filepath.Dir(to), 0o755); err == nil {
				err = os.WriteFile(to, nil, 0o644)
			}
		}
		if err != nil {
			return err
		}
		if err := unix.Mount(source, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return err
		}
		if !readOnly {
			return nil
		}
		return unix.MountSetattr(unix.AT_FDCWD, to, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	})
}

// same gives the node what the machine has at a path: a symbolic link, a directory or file, or nothing.
func (b *builder) same(path string, readOnly bool) {
	st, err := os.Lstat(path)
	if err != nil {
		return
	}
	if st.Mode()&fs.ModeSymlink == 0 {
		b.bind(path, strings.TrimPrefix(path, "/"), readOnly)
		return
	}
	b.try("linking "+path, func() error {
		to, err := os.Readlink(path)
		if err != nil {
			return err
		}
		return os.Symlink(to, filepath.Join(b.at, path))
	})
}

// sys mounts a fresh sysfs, whose /sys/class/net shows this network namespace's links and not the
// machine's, and puts back what else is mounted below the machine's.
func (b *builder) sys() {
	b.mount("sysfs", "sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	mounts, err := mountsBelow("/sys")
	b.try("listing mounts", func() error { return err })
	for _, m := range []string{"/sys/fs/cgroup", "/sys/fs/bpf", "/sys/kernel/security"} {
		for _, have := range mounts {
			if have == m {
				b.bind(m, strings.TrimPrefix(m, "/"), false)
				break
			}
		}
	}
}

// bareProc mounts a second procfs out of the way. In a user namespace, as a pod with hostUsers: false has one,
// the kernel allows a new procfs only where one can be seen already that nothing covers, and sysctls covers parts
// of the first.
func (b *builder) bareProc() {
	const at = "opt/k1s/proc"
	b.dir(at, 0o555)
	if b.err != nil {
		return
	}
	// Where even this is not allowed, we are in a container ourselves and such pods cannot be had.
	_ = unix.Mount("proc", filepath.Join(b.at, at), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

func (b *builder) sysctls() {
	b.mount("tmpfs", "opt/k1s/sysctl", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=64k")
	for name, value := range privateSysctls {
		real := filepath.Join(b.at, "proc/sys", name)
		if b.err != nil || !fileExists(real) {
			continue
		}
		private := "opt/k1s/sysctl/" + strings.ReplaceAll(name, "/", ".")
		b.file(private, value+"\n")
		b.try("covering /proc/sys/"+name, func() error {
			return unix.Mount(filepath.Join(b.at, private), real, "", unix.MS_BIND, "")
		})
	}
}
