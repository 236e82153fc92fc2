// Package delayline holds packets for a while: what goes into a Line comes out later, in the same order. It is not about
// where packets come from and go to. Used by the switch of local clusters for delayed links.
package delayline

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Room bounds the bytes that several lines hold together.
type Room struct{ free atomic.Int64 }

// NewRoom has room for so many bytes.
func NewRoom(bytes int64) *Room {
	r := &Room{}
	r.free.Store(bytes)
	return r
}

func (r *Room) take(n int) bool {
	if r.free.Add(-int64(n)) >= 0 {
		return true
	}
	r.give(n)
	return false
}

func (r *Room) give(n int) { r.free.Add(int64(n)) }

// overhead of a packet that is held, so that many small ones are not free.
const overhead = 64

// Line is one direction of a delayed link. Make one with New; its methods may be called by several goroutines.
type Line struct {
	delay, jitter time.Duration
	room          *Room
	send          func(packet []byte) error
	lost          atomic.Uint64
	filled        chan struct{} // holds one: there is something in queue that Run may not have seen

	mu    sync.Mutex // guards what follows
	queue []held     // in the order they came and leave
}

type held struct {
	due    time.Time
	packet []byte
}

// New makes a line that sends each packet delay after it came, earlier or later by up to jitter, and never before one
// that came earlier. What finds no room is lost, as what cannot be sent.
func New(delay, jitter time.Duration, room *Room, send func(packet []byte) error) *Line {
	return &Line{delay: delay, jitter: min(jitter, delay), room: room, send: send, filled: make(chan struct{}, 1)}
}

// Put takes a packet over.
func (l *Line) Put(packet []byte) {
	if !l.room.take(len(packet) + overhead) {
		l.lost.Add(1)
		return
	}
	l.mu.Lock()
	due := time.Now().Add(l.delay)
	if l.jitter > 0 {
		due = due.Add(rand.N(2*l.jitter+1) - l.jitter)
	}
	if n := len(l.queue); n > 0 && due.Before(l.queue[n-1].due) {
		due = l.queue[n-1].due
	}
	l.queue = append(l.queue, held{due, packet})
	l.mu.Unlock()
	select {
	case l.filled <- struct{}{}:
	default:
	}
}

// Run sends what was put until ctx ends. What is held then is gone. It is called once.
func (l *Line) Run(ctx context.Context) {
	defer l.clear()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		packet, wait, ok := l.next()
		switch {
		case !ok:
			select {
			case <-ctx.Done():
				return
			case <-l.filled:
			}
		case wait > 0:
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
		default:
			err := l.send(packet)
			l.room.give(len(packet) + overhead)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				l.lost.Add(1)
			}
		}
	}
}

// next is the packet that is due, or how long it will be until one is; not ok when there is none.
func (l *Line) next() (packet []byte, wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return nil, 0, false
	}
	if wait := time.Until(l.queue[0].due); wait > 0 {
		return nil, wait, true
	}
	packet = l.queue[0].packet
	l.queue[0] = held{}
	if l.queue = l.queue[1:]; len(l.queue) == 0 {
		l.queue = nil // not to grow along an array that is never used again
	}
	return packet, 0, true
}

func (l *Line) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.queue {
		l.room.give(len(h.packet) + overhead)
	}
	l.queue = nil
}

// Lost counts the packets that found no room or could not be sent.
func (l *Line) Lost() uint64 { return l.lost.Load() }
