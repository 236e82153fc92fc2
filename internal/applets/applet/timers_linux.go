package applet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// relax gives all threads of this process but the runtime's monitor a timer slack.
func relax(slack time.Duration) error {
	all, err := threads()
	if err != nil {
		return err
	}
	text, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return fmt.Errorf("reading how threads are counted: %w", err)
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("reading how threads are counted: %w", err)
	}
	but := monitor(os.Getpid(), all, limit)
	for _, thread := range all {
		if thread == but {
			continue
		}
		// With prctl every thread would have to do it for itself. A thread has this file only outside of task/.
		err := os.WriteFile(slackOf(thread), strconv.AppendInt(nil, slack.Nanoseconds(), 10), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // it has ended meanwhile
			return fmt.Errorf("giving a thread a timer slack of %s: %w", slack, err)
		}
	}
	return nil
}

func slackOf(thread int) string {
	return filepath.Join("/proc", strconv.Itoa(thread), "timerslack_ns")
}

// threads are the IDs of this process' threads.
func threads() ([]int, error) {
	entries, err := os.ReadDir("/proc/self/task")
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
