//go:build system

package system

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"k1s.io/k1s/internal/platform"
)

// snapshot is what is on this machine that k1s could have made. Things others may make at the same time
// (processes, mounts, cgroups) are only in it when they bear one of our marks.
type snapshot map[string]bool

// added are the things that are in after and were not before.
func (s snapshot) added(after snapshot) []string {
	var out []string
	for thing := range after {
		if !s[thing] && !(strings.HasPrefix(thing, raised) && (othersHere() || after.limit() < s.limit())) {
			out = append(out, thing)
		}
	}
	slices.Sort(out)
	return out
}

// watched are directories in which a node that leaks out of its namespaces would leave something.
var watched = []string{
	"/etc/k1s", "/etc/cni", "/etc/cni/net.d", "/opt/cni", "/var/lib/k1s", "/run/k1s", "/var/lib/kubelet", "/var/lib/cni",
	"/var/log/pods", "/var/log/containers", "/run/containerd", "/run/flannel", "/run/netns", "/run/xtables.lock",
}

// settings of the kernel that parts of a node like to change.
var settings = []string{
	"net/ipv4/ip_forward", "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "net/netfilter/nf_conntrack_max", "fs/inotify/max_user_instances",
}

// raised is a limit that stays raised as long as anybody has a cluster on this machine. Others who had theirs before us may
// have taken it back meanwhile.
const raised = "setting fs/inotify/max_user_instances"

// limit is that setting's value; 0 when it is not known.
func (s snapshot) limit() int {
	for thing := range s {
		if value, ok := strings.CutPrefix(thing, raised+" = "); ok {
			n, _ := strconv.Atoi(value)
			return n
		}
	}
	return 0
}

// othersHere tells that somebody else has a cluster or a node on this machine.
func othersHere() bool {
	all, err := platform.DetectCgroups()
	if err != nil {
		return false
	}
	for _, mount := range all.Hierarchies {
		if _, err := os.Stat(filepath.Join(mount, "k1s")); err == nil {
			return true
		}
	}
	return false
}

// look makes a snapshot. marks are strings that only things of this run have in their paths or names.
func look(marks []string) (snapshot, error) {
	s := snapshot{}
	links, err := net.Interfaces()
	for _, l := range links {
		s["link "+l.Name] = true
	}
	err = errors.Join(err, s.firewall(), s.processes(marks), s.mounts(marks), s.cgroups(marks))
	for _, d := range watched {
		if st, lerr := os.Lstat(d); lerr != nil {
			continue
		} else if s["file "+d] = true; !st.IsDir() {
			continue
		}
		entries, rerr := os.ReadDir(d)
		err = errors.Join(err, rerr)
		for _, e := range entries {
			s["file "+filepath.Join(d, e.Name())] = true
		}
	}
	for _, m := range marks {
		if filepath.IsAbs(m) {
			if _, lerr := os.Lstat(m); lerr == nil {
				s["file "+m] = true
			}
		}
	}
	for _, f := range settings {
		if b, rerr := os.ReadFile("/proc/sys/" + f); rerr == nil {
			s["setting "+f+" = "+string(bytes.TrimSpace(b))] = true
		}
	}
	routes, rerr := os.ReadFile("/proc/net/route")
	for line := range strings.Lines(string(routes)) {
		if w := strings.Fields(line); len(w) > 7 {
			s["route "+strings.Join([]string{w[0], w[1], w[2], w[7]}, " ")] = true
		}
	}
	return s, errors.Join(err, rerr)
}

func (s snapshot) firewall() error {
	nft, err := exec.LookPath("nft")
	if err != nil {
		return nil // then nobody has looked at this machine's tables before either
	}
	out, err := exec.Command(nft, "list", "tables").Output()
	for line := range strings.Lines(string(out)) {
		s["nftables "+strings.TrimSpace(line)] = true
	}
	return err
}

// processes finds those that bear a mark in command line, environment, cgroup or mounts. The last finds
// whatever still lives in a node's root file system.
func (s snapshot) processes(marks []string) error {
	entries, err := os.ReadDir("/proc")
	for _, e := range entries {
		pid, perr := strconv.Atoi(e.Name())
		if perr != nil || pid == os.Getpid() || !processOf(pid).alive() { // what is dead waits for its parent to notice
			continue
		}
		for _, f := range []string{"cmdline", "environ", "cgroup", "mountinfo"} {
			b, rerr := os.ReadFile(filepath.Join("/proc", e.Name(), f)) // gone meanwhile, or a kernel thread
			if rerr == nil && marked(string(b), marks) && !ancestor(pid) {
				cmd, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
				s[fmt.Sprintf("process %d: %s (by its %s)", pid, bytes.ReplaceAll(cmd, []byte{0}, []byte{' '}), f)] = true
				break
			}
		}
	}
	return err
}

// ancestor tells that we descend from a process, such as the `go test` that has our directory in its
// arguments.
func ancestor(pid int) bool {
	for p := os.Getpid(); p > 1; {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
		if err != nil {
			return false
		}
		w := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if p, err = strconv.Atoi(w[1]); err != nil {
			return false
		}
		if p == pid {
			return true
		}
	}
	return false
}

func (s snapshot) mounts(marks []string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		if w := strings.Fields(line); len(w) > 4 && marked(line, marks) {
			s["mount "+w[4]] = true
		}
	}
	return err
}

func (s snapshot) cgroups(marks []string) error {
	return filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // somebody else's, gone meanwhile
		}
		if err == nil && d.IsDir() && marked(path, marks) {
			s["cgroup "+path] = true
		}
		return err
	})
}

func marked(text string, marks []string) bool {
	return slices.ContainsFunc(marks, func(m string) bool { return strings.Contains(text, m) })
}
