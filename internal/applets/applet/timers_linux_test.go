package applet

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestEveryThreadButTheMonitorGetsTheSlack(t *testing.T) {
	const want = 3 * time.Millisecond
	before := slacks(t)
	err := relax(want)
	if errors.Is(err, fs.ErrPermission) {
		t.Skipf("this needs CAP_SYS_NICE: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for thread, slack := range before {
			_ = os.WriteFile(slackOf(thread), []byte(slack), 0)
		}
	}()
	other := 0
	for thread, slack := range slacks(t) {
		was, there := before[thread]
		if !there || slack == strconv.FormatInt(want.Nanoseconds(), 10) {
			continue
		}
		other++
		if slack != was || !naps(t, thread) {
			t.Errorf("thread %d was left out with %s ns, had %s before, and is not the monitor", thread, slack, was)
		}
	}
	if other != 1 {
		t.Errorf("%d threads were left out, want the monitor alone", other)
	}
}

// naps says whether a thread sleeps by the clock again and again while there is work, which of all a Go
// program's threads only the monitor does.
func naps(t *testing.T, thread int) bool {
	t.Helper()
	var stop atomic.Bool
	done := make(chan struct{})
	go func() { // keeps a processor busy, so that the monitor has something to watch
		defer close(done)
		for !stop.Load() {
		}
	}()
	defer func() { stop.Store(true); <-done }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for seen := 0; ctx.Err() == nil; {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(thread) + "/syscall")
		if err != nil {
			t.Fatal(err)
		}
		if number, _, _ := strings.Cut(string(text), " "); number == strconv.Itoa(syscall.SYS_NANOSLEEP) {
			if seen++; seen == 20 {
				return true
			}
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

func slacks(t *testing.T) map[int]string {
	t.Helper()
	all, err := threads()
	if err != nil {
		t.Fatal(err)
	}
	out := map[int]string{}
	for _, thread := range all {
		text, err := os.ReadFile(slackOf(thread))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if err == nil {
			out[thread] = strings.TrimSpace(string(text))
		}
	}
	return out
}

func TestTheSlackIsThereUntilItsOwnerEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, timers := range []Timers{{}, {Slack: 50 * time.Microsecond}} { // nothing, and what every process begins with
		err := timers.Follow(ctx)
		if errors.Is(err, fs.ErrPermission) {
			t.Skipf("this needs CAP_SYS_NICE: %v", err)
		}
		if err != nil {
			t.Errorf("%+v: %v", timers, err)
		}
	}
}
