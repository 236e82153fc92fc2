package applet

import (
	"context"
	"time"
)

// Timers lets the kernel gather the timers of a process that has started: it may wake a thread later than the thread
// asked, if then it wakes for several reasons at once. Kubernetes' servers have hundreds of timers that
// fire every half or whole second, each at its own moment. The zero value changes nothing.
//
// The kernel knows this as a thread's timer slack (prctl(2), PR_SET_TIMERSLACK), which is inherited by new threads
// and by child processes: it is not for a process that starts containers.
type Timers struct {
	// Slack is how much later than asked a thread may be woken; what it waits for from others wakes it at once.
	Slack time.Duration
}

// DefaultTimers is for Kubernetes' servers, nothing in which is more precise than tenths of a second.
var DefaultTimers = Timers{Slack: 5 * time.Millisecond}

// relaxNewThreads is how often it is looked whether there are new threads: those started by a thread that is left out
// do not inherit anything.
const relaxNewThreads = 30 * time.Second

// Follow puts the slack into force until ctx ends, and then gives the threads that of before. The error says why it
// could not; nothing is broken by it.
func (t Timers) Follow(ctx context.Context) error {
	if t.Slack <= 0 {
		return nil
	}
	before, err := slack()
	if err != nil {
		return err
	}
	for {
		if err := relax(t.Slack); err != nil {
			return err
		}
		if !sleep(ctx, relaxNewThreads) {
			return relax(before)
		}
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
