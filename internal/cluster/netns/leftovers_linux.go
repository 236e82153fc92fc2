package netns

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Leftovers implements cluster.Provider.
func (p *Provider) Leftovers(_ context.Context, name string) ([]string, error) {
	l := p.layout(name)
	var out []string
	procs := map[int]bool{}
	inCgroup, err := cgroupPIDs(p.cgroup(name))
	if err != nil {
		return nil, err
	}
	inside, err := inNamespaces(nsIDs(l, "*"))
	if err != nil {
		return nil, err
	}
	outside, err := p.stragglers(l)
	if err != nil {
		return nil, err
	}
	for _, pid := range slices.Concat(inCgroup, inside, outside) {
		procs[pid] = true
	}
	records, _ := filepath.Glob(l.proc("*"))
	for _, f := range records {
		if rec, err := readProc(f); err == nil && rec.alive() {
			procs[rec.PID] = true
		}
	}
	for pid := range procs {
		out = append(out, fmt.Sprintf("process %d: %s", pid, commandOf(pid)))
	}
	for _, dir := range []string{l.runDir(), l.stateDir()} {
		ms, err := mountsBelow(dir)
		if err != nil {
			return nil, err
		}
		for _, m := range ms {
			out = append(out, "mount "+m)
		}
		if fileExists(dir) {
			out = append(out, "directory "+dir)
		}
	}
	dirs, err := cgroupDirs(p.cgroup(name))
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		out = append(out, "cgroup "+d)
	}
	if f := p.clusterLockFile(name); fileExists(f) {
		out = append(out, "lock "+f)
	}
	if names, err := p.clusters(); err == nil && len(names) == 0 {
		for _, f := range []string{l.payload(), p.lockFile()} {
			if fileExists(f) {
				out = append(out, "shared file "+f)
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// stragglers finds processes in mount namespaces of the cluster's nodes by what is mounted there. It needs no
// pins and no cgroups, so it also finds what somebody moved away from both.
func (p *Provider) stragglers(l layout) ([]int, error) {
	mark, err := pathInFilesystem(filepath.Join(l.stateDir(), "nodes"))
	if err != nil || mark == "" {
		return nil, err
	}
	all, err := pids()
	var out []int
	for _, pid := range all {
		if pid == os.Getpid() {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if w := strings.Fields(line); len(w) > 4 && strings.HasPrefix(unescapeMount(w[3]), mark+"/") {
				out = append(out, pid)
				break
			}
		}
	}
	return out, err
}

// pathInFilesystem translates a path to how mount tables of other mount namespaces name what lies there: by
// the path from the root of its file system.
func pathInFilesystem(path string) (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	best, out := -1, ""
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		w := strings.Fields(sc.Text())
		if len(w) < 5 {
			continue
		}
		root, at := unescapeMount(w[3]), unescapeMount(w[4])
		rest, ok := strings.CutPrefix(path, strings.TrimSuffix(at, "/"))
		if ok && (rest == "" || rest[0] == '/') && len(at) >= best {
			best, out = len(at), filepath.Join(root, rest)
		}
	}
	return out, sc.Err()
}
