package platform

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ListenersOn returns who listens on these ports in our network namespace. Looking for the owners costs
// a walk over all processes, so it is only done when there is a listener.
func ListenersOn(ports ...uint16) ([]Listener, error) {
	var found []socket
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		b, err := os.ReadFile(table)
		if errors.Is(err, fs.ErrNotExist) { // IPv6 may be off
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading who listens: %w", err)
		}
		for _, s := range parseListeners(string(b)) {
			if slices.Contains(ports, s.port) {
				found = append(found, s)
			}
		}
	}
	if len(found) == 0 {
		return nil, nil
	}
	owners := socketOwners(found)
	var out []Listener
	for _, s := range found {
		l := Listener{Port: s.port, Addr: s.addr, PID: owners[s.inode]}
		if l.PID != 0 {
			l.Process = processName(l.PID)
		}
		out = append(out, l)
	}
	return out, nil
}

// socketOwners finds a process that holds each socket, by inode. Of several (a parent and the children
// that inherited it) it is the one with the lowest pid.
func socketOwners(sockets []socket) map[string]int {
	wanted := map[string]string{}
	for _, s := range sockets {
		wanted["socket:["+s.inode+"]"] = s.inode
	}
	owners := map[string]int{}
	for _, pid := range allPIDs() {
		dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // gone, or not ours to see
		}
		for _, fd := range fds {
			to, err := os.Readlink(filepath.Join(dir, fd.Name()))
			if err != nil {
				continue
			}
			if inode, ok := wanted[to]; ok && owners[inode] == 0 {
				owners[inode] = pid
			}
		}
		if len(owners) == len(wanted) {
			break
		}
	}
	return owners
}

// allPIDs are the processes we can see, in ascending order.
func allPIDs() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

func processName(pid int) string {
	return strings.TrimSpace(readString(filepath.Join("/proc", strconv.Itoa(pid), "comm")))
}
