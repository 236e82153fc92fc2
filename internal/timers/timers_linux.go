package timers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// slack is the timer slack of the process' first thread, from which all others had it when the process began.
func slack() (time.Duration, error) {
	text, err := os.ReadFile(slackOf(os.Getpid()))
	if err != nil {
		return 0, fmt.Errorf("reading the timer slack: %w", err)
	}
	ns, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading the timer slack: %w", err)
	}
	return time.Duration(ns), nil
}

// relax gives all threads of a process but the runtime's monitor a timer slack, also those that were started by one
// that did not have it yet. A process that has ended has none.
func relax(pid int, slack time.Duration) error {
	text, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return fmt.Errorf("reading how threads are counted: %w", err)
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("reading how threads are counted: %w", err)
	}
	for done := map[int]bool{}; ; {
		all, err := threads(pid)
		if err != nil {
			return err
		}
		fresh := false
		but := monitor(pid, all, limit)
		for _, thread := range all {
			if thread == but || done[thread] {
				continue
			}
			done[thread], fresh = true, true
			// With prctl every thread would have to do it for itself. A thread has this file only outside of task/.
			err := os.WriteFile(slackOf(thread), strconv.AppendInt(nil, slack.Nanoseconds(), 10), 0)
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESRCH) { // it has ended meanwhile
				return fmt.Errorf("giving a thread a timer slack of %s: %w", slack, err)
			}
		}
		if !fresh {
			return nil
		}
	}
}

func slackOf(thread int) string {
	return filepath.Join("/proc", strconv.Itoa(thread), "timerslack_ns")
}

func self() int { return os.Getpid() }

// threads are the IDs of a process' threads.
func threads(pid int) ([]int, error) {
	entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing threads: %w", err)
	}
	all := make([]int, 0, len(entries))
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("listing threads: %w", err)
		}
		all = append(all, id)
	}
	return all, nil
}
