// Package timers lets the kernel gather the timers of Kubernetes' servers. The groups of applets use it for their own process, and the runner
// for a process that is not root and may not do that itself. It knows neither.
package timers

import (
	"context"
	"time"
)

// Timers lets the kernel gather the timers of a process that has started: it may wake a thread later than the thread
// asked, if then it wakes for several reasons at once. Kubernetes' servers have hundreds of timers that
// fire every half or whole second, each at its own moment. The zero value changes nothing.
//
// The kernel knows this as a thread's timer slack (prctl(2), PR_SET_TIMERSLACK), which is inherited by new threads
// and by child processes: it is not for a process that starts containers. That of another thread may be changed by who
// has CAP_SYS_NICE only (proc_pid_timerslack_ns(5)), also within one process.
type Timers struct {
	// Slack is how much later than asked a thread may be woken; what it waits for from others wakes it at once.
	Slack time.Duration
}

// Default is for Kubernetes' servers, nothing in which is more precise than tenths of a second.
var Default = Timers{Slack: 5 * time.Millisecond}

// relaxNewThreads is how often it is looked whether there are new threads: those started by a thread that is left out
// do not inherit anything.
const relaxNewThreads = 30 * time.Second

// Follow puts the slack into force in this process until ctx ends, and then gives the threads that of before. The error says why it
// could not, and is fs.ErrPermission where the right is missing; nothing is broken by it.
func (t Timers) Follow(ctx context.Context) error {
	if t.Slack <= 0 {
		return nil
	}
	before, err := slack()
	if err != nil {
		return err
	}
	for {
		if err := relax(self(), t.Slack); err != nil {
			return err
		}
		if !sleep(ctx, relaxNewThreads) {
			return relax(self(), before)
		}
	}
}

// afterStart is how long another process is left alone: precision may make its start shorter, and a monitor that is not there yet would inherit
// the slack.
const afterStart = 10 * time.Second

// Give puts the slack into force in another Go program's process, when it has started, until ctx ends or the process
// does. It stays as it is then. The error says why it could not.
func (t Timers) Give(ctx context.Context, pid int) error {
	return t.give(ctx, pid, afterStart, relaxNewThreads)
}

func (t Timers) give(ctx context.Context, pid int, pause, every time.Duration) error {
	if t.Slack <= 0 {
		return nil
	}
	for ; sleep(ctx, pause); pause = every {
		if err := relax(pid, t.Slack); err != nil {
			return err
		}
	}
	return nil
}

// sleep tells that ctx has not ended meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// monitor is which of a Go program's threads is the runtime's monitor: it hands on the work of threads that
// block in the kernel, and sleeps 20 µs at a time while it has reason to. It is the first thread the
// runtime starts, and the kernel counts threads upwards, from the beginning again after limit. It is 0 where there
// is no thread besides the first, process.
func monitor(process int, threads []int, limit int) int {
	first, distance := 0, limit
	for _, thread := range threads {
		d := thread - process
		if d < 0 {
			d += limit
		}
		if d > 0 && d < distance {
			first, distance = thread, d
		}
	}
	return first
}
