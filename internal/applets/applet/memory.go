package applet

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"time"

	"k1s.io/k1s/internal/errs"
)

// Environment variables that override a Memory schedule. "off" in either leaves the collector alone.
const (
	EnvGOGCStart = "K1S_GOGC_START"
	EnvGOGC      = "K1S_GOGC"
)

// Memory is the garbage collector's schedule of a process: the runtime's own way while it starts and under load, when
// a tight one would collect several times a second; tight while it idles, when the heap is small and hardly
// grows. A generous one for the start saves an eighth of its CPU time, but leaves what is kept scattered over 10 MB
// more than are ever needed again (docs/benchmarks.md).
// The zero value leaves the collector as it is.
type Memory struct {
	// Start is GOGC until the process has settled, in percent; 0 leaves it alone.
	Start int
	// Then is GOGC from settled on, in percent; 0 leaves it alone. With it the garbage of the start is
	// handed back to the system, which the runtime would do only over many minutes.
	Then int
	// Busy is GOGC in place of Then while the process works hard, in percent; 0 stays with Then.
	Busy int
	// Settle is how long after ready a process has settled: work goes on for a moment, and most of a start's is
	// after ready where controllers have everything to do then. Memory that only the start needed is handed back,
	// garbage and code. After Settle times settledAgain it is done once more, for what starts
	// on a server that has just become ready. 0 keeps all of it.
	Settle time.Duration
}

const (
	settledAgain = 6
	// look is how often the load is looked at.
	look = 10 * time.Second
	// busyCycles collections in one look are load; at most one in each of quietLooks looks is none.
	busyCycles, quietLooks = 6, 6
)

// DefaultMemory is the measured best for Kubernetes' servers.
var DefaultMemory = Memory{Start: 100, Then: 25, Busy: 100, Settle: 5 * time.Second}

// FromEnv returns m with what the environment overrides.
func (m Memory) FromEnv(getenv func(string) string) (Memory, error) {
	start, then := getenv(EnvGOGCStart), getenv(EnvGOGC)
	if start == "off" || then == "off" {
		return Memory{}, nil
	}
	for _, v := range []struct {
		name, text string
		to         *int
	}{{EnvGOGCStart, start, &m.Start}, {EnvGOGC, then, &m.Then}} {
		if v.text == "" {
			continue
		}
		n, err := strconv.Atoi(v.text)
		if err != nil || n < 1 {
			return Memory{}, errs.New(errs.Usage, "environment variable %s: %q is neither a percentage above 0 nor \"off\"", v.name, v.text)
		}
		*v.to = n
	}
	if then != "" {
		m.Busy = 0
	}
	return m, nil
}

// String describes the schedule for a log line.
func (m Memory) String() string {
	if m == (Memory{}) {
		return "as the runtime does"
	}
	return fmt.Sprintf("GOGC %d, %d when settled, %d under load", m.Start, m.Then, max(m.Then, m.Busy))
}

// Begin puts the first part into force; call it as early as possible.
func (m Memory) Begin() {
	if m.Start > 0 {
		debug.SetGCPercent(m.Start)
	}
}

// Release is called when the process is ready, and hands back memory when it has settled. It blocks until that is done,
// or until ctx ends. The error says what could not be handed back; nothing is broken by it.
func (m Memory) Release(ctx context.Context) error {
	if m.Settle <= 0 {
		return nil
	}
	var problem error
	for _, after := range []time.Duration{m.Settle, m.Settle * (settledAgain - 1)} {
		if !sleep(ctx, after) {
			return problem
		}
		if m.Then > 0 {
			debug.FreeOSMemory()
		}
		problem = errors.Join(problem, dropText())
	}
	return problem
}

// Follow is called when the process is ready. It puts the second part into force when it has settled, and then switches
// between Then and Busy as the load demands, until ctx ends.
func (m Memory) Follow(ctx context.Context) {
	if m.Then <= 0 || !sleep(ctx, m.Settle) {
		return
	}
	debug.SetGCPercent(m.Then)
	if m.Busy <= m.Then {
		return
	}
	var l load
	cycles := collections()
	for sleep(ctx, look) {
		now := collections()
		was := l.busy
		l = l.after(now - cycles)
		switch {
		case l.busy && !was:
			debug.SetGCPercent(m.Busy)
		case was && !l.busy:
			debug.SetGCPercent(m.Then)
			debug.FreeOSMemory()
			now = collections() // that was one
		}
		cycles = now
	}
}

// load is what is known of a process' work: whether it works hard, and for how many looks it has not.
type load struct {
	busy  bool
	quiet int
}

// after returns the load after a look in which the collector ran so many times.
func (l load) after(cycles uint64) load {
	switch {
	case cycles >= busyCycles:
		return load{busy: true}
	case !l.busy || cycles > 1: // busy and working yet, but no longer hard
		return load{busy: l.busy}
	case l.quiet+1 >= quietLooks:
		return load{}
	}
	return load{busy: true, quiet: l.quiet + 1}
}

// collections is how often the garbage collector has run in this process.
func collections() uint64 {
	sample := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// sleep returns false when ctx ended before.
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
