//go:build system

package system

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestARollingUpdateAndItsRollbackFailNoRequest(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "rolling")
	s.apply(t, "rolling.yaml")
	s.rolledOut(t, "deployment/rolling")
	url := fmt.Sprintf("http://127.0.0.1:%d/", s.ports[rollingNodePort])
	eventually(t, limit, "the first answer", func(ctx context.Context) error { _, _, err := get(ctx, url); return err })

	ask := load(t, url)
	ask.until(t, "version 1", 20)
	s.kubectl(t, "set", "env", "deployment/rolling", "VERSION=2")
	s.rolledOut(t, "deployment/rolling")
	ask.until(t, "version 2 alone", 20)
	s.kubectl(t, "rollout", "undo", "deployment/rolling")
	s.rolledOut(t, "deployment/rolling")
	ask.until(t, "version 1 again", 20)
	total, failed, versions := ask.stop()
	if len(failed) > 0 {
		t.Errorf("%d of %d requests failed, e.g. %s", len(failed), total, failed[0])
	}
	if !slices.Equal(versions, []string{"1", "2", "1"}) {
		// While both are there they take turns; those are told apart by what until saw.
		t.Errorf("versions answered in the end of each phase %q, want 1 2 1", versions)
	}
	t.Logf("%d requests, none failed", total)
}

// loader asks again and again, each time over a new connection.
type loader struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex // guards what follows
	total    int
	failed   []string
	last     string // version of the last answer
	same     int    // how many answers in a row had it
	versions []string
}

// load starts a bounded load: two at a time, with a pause after each answer.
func load(t *testing.T, url string) *loader {
	ctx, cancel := context.WithCancel(context.Background())
	l := &loader{cancel: cancel, done: make(chan struct{})}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			pause := time.NewTicker(20 * time.Millisecond)
			defer pause.Stop()
			for ctx.Err() == nil {
				code, body, err := get(ctx, url)
				if ctx.Err() == nil {
					l.answered(code, body, err)
				}
				select {
				case <-ctx.Done():
				case <-pause.C:
				}
			}
		})
	}
	go func() { wg.Wait(); close(l.done) }()
	t.Cleanup(func() { l.stop() })
	return l
}

func (l *loader) answered(code int, body string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total++
	_, version, ok := strings.Cut(body, " ")
	if err != nil || code != http.StatusOK || !ok {
		l.failed = append(l.failed, fmt.Sprintf("request %d: %d %q %v", l.total, code, body, err))
		return
	}
	if version != l.last {
		l.last, l.same = version, 0
	}
	l.same++
}

// until waits until the last n answers all had the same version, and notes which.
func (l *loader) until(t *testing.T, what string, n int) {
	t.Helper()
	l.mu.Lock()
	l.same = 0
	l.mu.Unlock()
	eventually(t, limit, what, func(context.Context) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.same < n {
			return fmt.Errorf("%d answers in a row of version %s, %d failed", l.same, l.last, len(l.failed))
		}
		l.versions = append(l.versions, l.last)
		return nil
	})
}

func (l *loader) stop() (total int, failed, versions []string) {
	l.cancel()
	<-l.done
	return l.total, l.failed, l.versions
}
