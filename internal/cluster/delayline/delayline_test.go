package delayline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// sent is what came out of a line, and when, counted from the start.
type sent struct {
	start time.Time
	mu    sync.Mutex // guards what follows
	names []string
	at    []time.Duration
}

func (s *sent) send(p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names, s.at = append(s.names, strings.TrimRight(string(p), " ")), append(s.at, time.Since(s.start))
	return nil
}

// run lets a line of these properties work in time that does not pass by itself.
func run(t *testing.T, delay, jitter time.Duration, room *Room, do func(l *Line, s *sent)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &sent{start: time.Now()}
		l := New(delay, jitter, room, s.send)
		ctx, stop := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() { l.Run(ctx) })
		do(l, s)
		stop()
		done.Wait()
	})
}

func TestPacketsComeOutLaterAndInOrder(t *testing.T) {
	run(t, 50*time.Millisecond, 0, NewRoom(1<<20), func(l *Line, s *sent) {
		l.Put([]byte("a"))
		l.Put([]byte("b"))
		time.Sleep(20 * time.Millisecond)
		l.Put([]byte("c"))
		time.Sleep(time.Second)
		l.Put([]byte("d")) // after there was nothing
		time.Sleep(time.Second)
		const ms = time.Millisecond
		if want := []time.Duration{50 * ms, 50 * ms, 70 * ms, 1070 * ms}; strings.Join(s.names, "") != "abcd" || !slices.Equal(s.at, want) {
			t.Errorf("%v at %v, want abcd at %v", s.names, s.at, want)
		}
	})
}

func TestJitterKeepsItsBoundsAndTheOrder(t *testing.T) {
	const count, every = 1000, 10 * time.Millisecond
	run(t, 50*time.Millisecond, 30*time.Millisecond, NewRoom(1<<20), func(l *Line, s *sent) {
		for i := range count {
			l.Put(fmt.Append(nil, i))
			time.Sleep(every)
		}
		time.Sleep(time.Second)
		if len(s.names) != count {
			t.Fatalf("%d of %d came out", len(s.names), count)
		}
		different := map[time.Duration]bool{}
		for i := range count {
			late := s.at[i] - time.Duration(i)*every
			different[late] = true
			if s.names[i] != fmt.Sprint(i) || late < 20*time.Millisecond || late > 80*time.Millisecond {
				t.Fatalf("packet %d: %s came out, after %s", i, s.names[i], late)
			}
		}
		if len(different) < 2 {
			t.Errorf("all were delayed by %v", different)
		}
	})
}

func TestAJitterLargerThanTheDelayDoesNotSendBackInTime(t *testing.T) {
	run(t, time.Millisecond, time.Hour, NewRoom(1<<20), func(l *Line, s *sent) {
		for range 100 {
			l.Put([]byte("x"))
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if len(s.names) != 100 {
			t.Errorf("%d of 100 came out", len(s.names))
		}
	})
}

func TestWhatFindsNoRoomIsLostAndCounted(t *testing.T) {
	packet := func(name string) []byte { return fmt.Appendf(nil, "%-100s", name) }
	room := NewRoom(3 * (100 + overhead))
	run(t, 50*time.Millisecond, 0, room, func(l *Line, s *sent) {
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			l.Put(packet(name))
		}
		time.Sleep(time.Second)
		l.Put(packet("f")) // there is room again
		time.Sleep(time.Second)
		if got := strings.Join(s.names, ""); got != "abcf" || l.Lost() != 2 {
			t.Errorf("%q came out, %d are lost", got, l.Lost())
		}
		l.Put(packet("g")) // held when the line ends
	})
	if free := room.free.Load(); free != 3*(100+overhead) {
		t.Errorf("%d bytes are free after the end", free)
	}
}

func TestWhatCannotBeSentIsLostAndTheNextOneIsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		l := New(time.Millisecond, 0, NewRoom(1<<20), func(p []byte) error {
			if string(p) == "bad" {
				return errors.New("too long")
			}
			got = append(got, string(p))
			return nil
		})
		ctx, stop := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() { l.Run(ctx) })
		for _, p := range []string{"a", "bad", "b"} {
			l.Put([]byte(p))
		}
		time.Sleep(time.Second)
		stop()
		done.Wait()
		if !slices.Equal(got, []string{"a", "b"}) || l.Lost() != 1 {
			t.Errorf("%v came out, %d are lost", got, l.Lost())
		}
	})
}
