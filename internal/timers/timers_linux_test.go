package timers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"k1s.io/k1s/internal/wait"
)

func TestEveryThreadButTheMonitorGetsTheSlack(t *testing.T) {
	const want = 3 * time.Millisecond
	before := slacks(t)
	was, err := slack()
	if err != nil {
		t.Fatal(err)
	}
	if err := relax(self(), want); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := relax(self(), was); err != nil {
			t.Error(err)
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

// slacks are those of all threads. Who may not change those of others may not read them either.
func slacks(t *testing.T) map[int]string {
	t.Helper()
	all, err := threads(self())
	if err != nil {
		t.Fatal(err)
	}
	out := map[int]string{}
	for _, thread := range all {
		text, err := os.ReadFile(slackOf(thread))
		if errors.Is(err, fs.ErrPermission) {
			t.Skipf("this needs CAP_SYS_NICE: %v", err)
		}
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
	const want = 7 * time.Millisecond
	before := slacks(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Timers{Slack: want}.Follow(ctx) }()
	limit, late := context.WithTimeout(t.Context(), time.Minute)
	defer late()
	err := wait.Until(limit, time.Millisecond, "every thread but the monitor to have the slack", func(context.Context) error {
		others := 0
		for thread, slack := range slacks(t) {
			if _, there := before[thread]; there && slack != strconv.FormatInt(want.Nanoseconds(), 10) {
				others++
			}
		}
		if others != 1 {
			return fmt.Errorf("%d threads do not have it", others)
		}
		return nil
	})
	cancel()
	if err := errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	after := slacks(t)
	for thread, slack := range before {
		if now, there := after[thread]; there && now != slack {
			t.Errorf("thread %d had %s ns and now has %s", thread, slack, now)
		}
	}
}

func TestWithoutASlackNothingIsChanged(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	before := slacks(t)
	if err := (Timers{}).Follow(ctx); err != nil {
		t.Error(err)
	}
	after := slacks(t)
	for thread, slack := range before {
		if now, there := after[thread]; there && now != slack {
			t.Errorf("thread %d had %s ns and now has %s", thread, slack, now)
		}
	}
}

// The process that is given a slack is this test binary run again.
func TestMain(m *testing.M) {
	if os.Getenv("TEST_CHILD") != "" {
		fmt.Println("here")
		if _, err := os.Stdin.Read(make([]byte, 1)); err != nil && !errors.Is(err, io.EOF) {
			panic(err)
		}
		return
	}
	os.Exit(m.Run())
}

func TestAnotherProcessIsGivenTheSlackForAsLongAsItIsThere(t *testing.T) {
	slacks(t) // skips where the right is missing
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "TEST_CHILD=1")
	end, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	runs, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := runs.Read(make([]byte, 1)); err != nil { // before that it may have no monitor
		t.Error(err)
	}
	pid := child.Process.Pid
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- Default.give(ctx, pid, time.Millisecond, time.Millisecond) }()
	want := strconv.FormatInt(Default.Slack.Nanoseconds(), 10)
	err = wait.Until(ctx, time.Millisecond, "every thread of the process but the monitor to have the slack", func(context.Context) error {
		all, err := threads(pid)
		if err != nil {
			return err
		}
		others := 0
		for _, thread := range all {
			if text, err := os.ReadFile(slackOf(thread)); err == nil && strings.TrimSpace(string(text)) != want {
				others++
			}
		}
		if len(all) < 3 || others != 1 {
			return fmt.Errorf("%d of %d threads do not have it", others, len(all))
		}
		return nil
	})
	if err := errors.Join(err, end.Close(), child.Wait()); err != nil {
		t.Error(err)
	}
	if all, err := threads(pid); err != nil || len(all) != 0 {
		t.Errorf("after its end it has the threads %v, %v", all, err)
	}
	if err := relax(pid, Default.Slack); err != nil {
		t.Errorf("a process that is gone: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
