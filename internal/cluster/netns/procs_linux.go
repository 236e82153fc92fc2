package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// procRecord identifies a process beyond its pid, which may be another's by now.
type procRecord struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks after boot, field 22 of /proc/<pid>/stat
	Boot  string `json:"boot"`
}

var bootID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})

// stat returns a process's state letter and start time.
func stat(pid int) (state byte, start uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The name in parentheses may hold anything, so count from the last one.
	i := strings.LastIndexByte(string(b), ')')
	if i < 0 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: no command in %q", pid, b)
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 20 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: too short", pid)
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return f[0][0], start, err
}

func recordOf(pid int) (procRecord, error) {
	_, start, err := stat(pid)
	return procRecord{PID: pid, Start: start, Boot: bootID()}, err
}

// alive tells whether it still runs. A zombie does not.
func (p procRecord) alive() bool {
	if p.PID <= 0 || p.Boot != bootID() {
		return false
	}
	state, start, err := stat(p.PID)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

// signal sends sig if it is still the same process.
func (p procRecord) signal(sig unix.Signal) error {
	if p.PID <= 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		return fmt.Errorf("opening process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.alive() { // checked after opening: the descriptor cannot change its process any more
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("sending %s to process %d: %w", unix.SignalName(sig), p.PID, err)
	}
	return nil
}

// reap collects it in case it is a child of ours, as it is when the process that created the cluster is
// still there; otherwise that is somebody else's job.
func (p procRecord) reap() {
	if p.PID > 0 {
		_, _ = unix.Wait4(p.PID, nil, unix.WNOHANG, nil)
	}
}

// waitGone waits until it no longer runs, at most as long as given, and tells whether that is so.
func (p procRecord) waitGone(limit time.Duration) bool {
	for deadline := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		p.reap()
		if !p.alive() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

func readProc(path string) (procRecord, error) {
	var p procRecord
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		return p, fmt.Errorf("reading process record %s: %w", path, err)
	}
	return p, nil
}

// pids lists all processes of this machine.
func pids() ([]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	var out []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			out = append(out, pid)
		}
	}
	return out, err
}

// inNamespaces lists the processes that live in one of the given namespaces, by their id ("net:[402…]").
func inNamespaces(ids map[string]bool) ([]int, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	all, err := pids()
	var out []int
	for _, pid := range all {
		for _, kind := range []string{"net", "mnt", "uts"} {
			id, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
			if err == nil && ids[id] && pid != os.Getpid() {
				out = append(out, pid)
				break
			}
		}
	}
	return out, err
}

func commandOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(b) == 0 {
		return "?"
	}
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
}
