//go:build system

package system

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/wait"
)

// watcher follows the ConfigMaps at a path whose names begin with a prefix as an informer does: a list, a watch from there that goes
// on where it was when it breaks off, and another list only when the server says that this revision is gone.
type watcher struct {
	api          *api
	path, prefix string

	mu       sync.Mutex // guards what follows
	chapters []*chapter
	wrong    []string // what cannot be, told at once
}

// chapter is a list, and what the watches told that follow it.
type chapter struct {
	from   int            // the revision of the list
	listed map[string]int // what it has, by name, and the revision of each
	last   int
	events map[int]change // by revision
}

// run follows until ctx ends.
func (w *watcher) run(ctx context.Context) {
	var now *chapter
	for ctx.Err() == nil {
		if now == nil {
			now = w.list(ctx)
		}
		if now != nil && w.follow(ctx, now) {
			now = nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(registerPace):
		}
	}
}

// list begins a chapter; it is nil where the server did not answer.
func (w *watcher) list(ctx context.Context) *chapter {
	var list struct {
		object
		Items []object `json:"items"`
	}
	err := w.api.raw(ctx, w.path, func(b io.Reader) error { return json.NewDecoder(b).Decode(&list) })
	from, bad := strconv.Atoi(list.Metadata.ResourceVersion)
	if errors.Join(err, bad) != nil {
		return nil
	}
	c := &chapter{from: from, last: from, listed: map[string]int{}, events: map[int]change{}}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.chapters); n > 0 && from < w.chapters[n-1].last {
		w.wrong = append(w.wrong, fmt.Sprintf("a list is of revision %d after an event of %d", from, w.chapters[n-1].last))
	}
	for _, o := range list.Items {
		if !strings.HasPrefix(o.Metadata.Name, w.prefix) { // every namespace has a ConfigMap of its own
			continue
		}
		rev, err := strconv.Atoi(o.Metadata.ResourceVersion)
		if err != nil || rev > from {
			w.wrong = append(w.wrong, fmt.Sprintf("a list of revision %d has %s of revision %q", from, o.Metadata.Name, o.Metadata.ResourceVersion))
		}
		c.listed[o.Metadata.Name] = rev
	}
	w.chapters = append(w.chapters, c)
	return c
}

// follow tells in the end whether a list is needed.
func (w *watcher) follow(ctx context.Context, now *chapter) (gone bool) {
	err := w.api.raw(ctx, fmt.Sprintf("%s?watch=true&resourceVersion=%d", w.path, w.reached()), func(b io.Reader) error {
		for dec := json.NewDecoder(b); ; {
			var e struct {
				Type   string `json:"type"`
				Object struct {
					object
					Code int `json:"code"` // of an error
				} `json:"object"`
			}
			if err := dec.Decode(&e); err != nil {
				return err
			}
			if e.Type == "ERROR" {
				gone = e.Object.Code == http.StatusGone
				return errors.New("the watch ends")
			}
			w.told(now, e.Object.Metadata.ResourceVersion, change{e.Object.Metadata.Name, e.Object.Data["n"]})
		}
	})
	return gone || err != nil && strings.HasPrefix(err.Error(), "410 ")
}

func (w *watcher) told(now *chapter, revision string, what change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !strings.HasPrefix(what.name, w.prefix) {
		return
	}
	rev, err := strconv.Atoi(revision)
	if err != nil || rev <= now.last {
		w.wrong = append(w.wrong, fmt.Sprintf("a watch tells of %v at revision %q after %d", what, revision, now.last))
		return
	}
	now.last = rev
	now.events[rev] = what
}

// reached is the revision up to which it has been told of everything; 0 before the first list.
func (w *watcher) reached() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.chapters) == 0 {
		return 0
	}
	return w.chapters[len(w.chapters)-1].last
}

// until waits until it has been told of a revision.
func (w *watcher) until(ctx context.Context, revision int) error {
	return wait.Until(ctx, 100*time.Millisecond, fmt.Sprintf("the watch to tell of revision %d", revision), func(context.Context) error {
		if at := w.reached(); at < revision {
			return fmt.Errorf("it is at %d", at)
		}
		return nil
	})
}

// untold is what watchers should have been told, and were not, or otherwise: each change that was acknowledged, or that another one was
// told of, in the time a chapter tells about, and in its list the latest of before. acked is by revision, watchers by where they are.
func untold(acked map[int]change, watchers map[string]*watcher) []string {
	var out []string
	all := maps.Clone(acked)
	for at, w := range watchers {
		for _, c := range w.chapters {
			for rev, e := range c.events {
				if was, ok := all[rev]; ok && was != e {
					out = append(out, fmt.Sprintf("revision %d is %v, and the watch at %s tells of %v", rev, was, at, e))
				}
				all[rev] = e
			}
		}
	}
	revisions := slices.Sorted(maps.Keys(all))
	const enough = 3 // of each chapter
	for at, w := range watchers {
		for _, c := range w.chapters {
			missing := 0
			for _, rev := range revisions {
				_, told := c.events[rev]
				switch {
				case missing == enough:
				case rev <= c.from && c.listed[all[rev].name] < rev:
					missing++
					out = append(out, fmt.Sprintf("the list of revision %d at %s has %s of revision %d, and not %v of %d", c.from, at, all[rev].name, c.listed[all[rev].name], all[rev], rev))
				case rev > c.from && rev < c.last && !told:
					missing++
					out = append(out, fmt.Sprintf("the watch at %s does not tell of %v, revision %d, between %d and %d", at, all[rev], rev, c.from, c.last))
				}
			}
		}
	}
	return out
}

// checkWatchers looks at what watchers were told that have ended.
func checkWatchers(t *testing.T, acked map[int]change, watchers map[string]*watcher) {
	t.Helper()
	for at, w := range watchers {
		for _, wrong := range w.wrong {
			t.Errorf("at %s: %s", at, wrong)
		}
		for i, c := range w.chapters {
			if i > 0 {
				t.Logf("the watch at %s began anew at revision %d, after %d", at, c.from, w.chapters[i-1].last)
			}
		}
	}
	for _, problem := range untold(acked, watchers) {
		t.Error(problem)
	}
}
