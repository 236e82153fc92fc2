package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// snapshot is what is on this machine that k1s could have made.
type snapshot []string

// minus is what s has and other has not.
func (s snapshot) minus(other snapshot) []string {
	had := map[string]bool{}
	for _, thing := range other {
		had[thing] = true
	}
	return slices.DeleteFunc(slices.Clone(s), func(thing string) bool { return had[thing] })
}

// elsewhere are directories in which others write all the time, or once a day, as Debian's timers do when the clock is set.
var elsewhere = []string{
	"/proc", "/sys", "/dev", "/tmp", "/checks", home, "/var/log/journal", "/var/lib/systemd", "/var/tmp", "/run/systemd", "/run/udev",
	"/run/log", "/run/dbus", "/run/utmp", "/var/lib/dbus", "/run/user", "/var/backups", "/var/cache/apt", "/var/lib/apt",
}

// ours are names of cgroups and units that only a node has; systemd's own come and go.
var ours = []string{"k1s", "kubepods", "cri-containerd"}

// look makes one. Loaded kernel modules stay, as they do with everybody.
func look(ctx context.Context) (snapshot, error) {
	var s snapshot
	err := filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // gone meanwhile
		}
		if slices.Contains(elsewhere, path) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		s = append(s, "file "+path)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() && slices.ContainsFunc(ours, func(o string) bool { return strings.Contains(path, o) }) && !strings.Contains(path, "k1s.service") {
			s = append(s, "cgroup "+path)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	// What is set per link goes with the link, and net.ipv4.vs comes with a module (ip_vs); numbers that only count
	// are no settings, and some the kernel makes of the pages that are free when it boots.
	settings := `cd /proc/sys; for f in $(find net/ipv4 net/core net/netfilter net/bridge vm kernel fs/inotify user -type f 2>/dev/null |
grep -vE '/conf/|/neigh/|/ipv4/vs/|random|/(tcp|udp)_mem$|user_reserve_kbytes$|ns_last_pid|pty/nr|seccomp/|/inet_peer|/bpf_|sched_domain|cad_pid|stat_refresh|compact_memory|drop_caches|nf_conntrack_count|/nf_log'); do echo "$f = $(cat $f 2>/dev/null | tr '\n\t' '  ')"; done`
	for kind, script := range map[string]string{
		"mount":   `cut -d' ' -f5 /proc/self/mountinfo | grep -vE '^/(run/(systemd|credentials|user)|proc/sys/fs/binfmt_misc|dev|tmp)'`,
		"link":    `ls /sys/class/net`,
		"route":   `ip route show table all | grep -v 'dev lo'`,
		"rule":    `ip rule`,
		"unit":    `systemctl list-units --all --plain --no-legend '*k1s*' '*kubepods*' '*cri-containerd*' | cut -d' ' -f1 | grep -v '^k1s.service'  || true`,
		"process": `for p in $(grep -lsaE '[/](var/lib|run)/k1s/' /proc/[0-9]*/cmdline); do tr '\0' ' ' < $p; echo; done`,
		"setting": settings,
	} {
		out, err := sh(ctx, script)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			s = append(s, kind+" "+strings.TrimSpace(line))
		}
	}
	slices.Sort(s)
	return slices.Compact(s), nil
}
