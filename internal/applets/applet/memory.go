package applet

import (
	"context"
	"fmt"
	"runtime/debug"
	"strconv"
	"time"

	"k1s.io/k1s/internal/errs"
)

// Environment variables that override a Memory schedule. "off" in either leaves the collector alone.
const (
	EnvGOGCStart = "K1S_GOGC_START"
	EnvGOGC      = "K1S_GOGC"
)

// Memory is the garbage collector's schedule of a process: generous while it starts, when nearly
// everything allocated is kept and collecting is wasted work, and tight afterwards, when the heap is
// small and hardly grows. The zero value leaves the collector as it is.
type Memory struct {
	// Start is GOGC until the process is ready, in percent; 0 leaves it alone.
	Start int
	// Then is GOGC from ready on, in percent; 0 leaves it alone. With it the garbage of the start is
	// handed back to the system, which the runtime would do only over many minutes.
	Then int
	// Settle is how long after ready memory that only the start needed is handed back, garbage and
	// code: work goes on for a moment. After Settle times settledAgain it is done once more, for what starts
	// on a server that has just become ready. 0 keeps all of it.
	Settle time.Duration
}

// DefaultMemory is the measured best for Kubernetes' servers.
var DefaultMemory = Memory{Start: 400, Then: 50, Settle: 5 * time.Second}

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
	return m, nil
}

// String describes the schedule for a log line.
func (m Memory) String() string {
	if m == (Memory{}) {
		return "as the runtime does"
	}
	return fmt.Sprintf("GOGC %d, %d once ready", m.Start, m.Then)
}

const settledAgain = 6

// Begin puts the first part into force; call it as early as possible.
func (m Memory) Begin() {
	if m.Start > 0 {
		debug.SetGCPercent(m.Start)
	}
}

// Ready puts the second part into force. It blocks until everything is settled, or until ctx ends. The error says
// what could not be handed back; nothing is broken by it.
func (m Memory) Ready(ctx context.Context) error {
	if m.Then > 0 {
		debug.SetGCPercent(m.Then)
	}
	if m.Settle <= 0 {
		return nil
	}
	for _, after := range []time.Duration{m.Settle, m.Settle * (settledAgain - 1)} {
		t := time.NewTimer(after)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
		if m.Then > 0 {
			debug.FreeOSMemory()
		}
		if err := dropText(); err != nil {
			return err
		}
	}
	return nil
}
