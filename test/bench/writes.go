package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// store is a datastore whose writes are measured, on a node without add-ons.
type store struct {
	kind, name string
	settings   []string
}

var (
	storeSQLite   = store{kind: k1s, name: "SQLite"}
	storeEtcd     = store{kind: k1s, name: "etcd", settings: []string{"datastore: {endpoint: etcd}"}}
	storeBaseline = store{kind: baseline, name: "SQLite"}
)

// stores are those to be measured.
func (b *bench) stores() []store {
	if b.o.baseline {
		return []store{storeSQLite, storeEtcd, storeBaseline}
	}
	return []store{storeSQLite, storeEtcd}
}

// writerCounts are how many write at the same time.
var writerCounts = []int{1, 8, 32}

const (
	// writesSettle is between the node being Ready and the first write.
	writesSettle = 5 * time.Second
	// writesWarm is how long writers write before it counts.
	writesWarm = time.Second
	// writesLate is how much longer than they should all writers may take.
	writesLate = 20 * time.Second
	// watched is how many single writes are waited for at a watch, with a pause in between, all within watchLimit.
	watched    = 100
	watchPause = 20 * time.Millisecond
	watchLimit = time.Minute
)

// What samples of writes are called, behind the store and the number of writers.
const (
	writesRate  = "a second"
	writesTook  = "latency"
	watchedTook = "watch"
)

func (s store) sample(writers int, what string) string {
	return fmt.Sprintf("%s writes %s, %d writers, %s", s.kind, s.name, writers, what)
}

func (s store) watchSample() string {
	return fmt.Sprintf("%s writes %s, %s", s.kind, s.name, watchedTook)
}

// configMaps is where ConfigMaps of the default namespace are.
const configMaps = "/api/v1/namespaces/default/configmaps"

// padding makes a ConfigMap about 200 bytes of JSON.
var padding = strings.Repeat("k1s ", 20)

func configMap(name string, i int) map[string]any {
	return map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name},
		"data": map[string]string{"i": fmt.Sprint(i), "padding": padding},
	}
}

// writes measures a store: how many writes a second it takes, how long each takes, and when a watch sees it.
func (b *bench) writes(ctx context.Context, s store) (err error) {
	b.say("writes: %s, %s", s.kind, s.name)
	n, err := b.main.newNode(ctx, s.kind, "bench-writes", append([]string{withoutAddons}, s.settings...)...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.keepLogs(n, "writes-"+s.kind+"-"+s.name), n.remove(ctx)) }()
	if _, err := n.start(ctx, "writes", goal{node: true}, b.o.patience); err != nil {
		return err
	}
	if !sleep(ctx, writesSettle) {
		return context.Cause(ctx)
	}
	a, err := n.api()
	if err != nil {
		return err
	}
	defer a.close()
	for _, writers := range writerCounts {
		took, err := writeLoad(ctx, a, writers, writesWarm, b.o.writing)
		if err != nil {
			return fmt.Errorf("%d writers: %w", writers, err)
		}
		b.Samples[s.sample(writers, writesRate)] = numbers{float64(len(took)) / b.o.writing.Seconds()}
		b.Samples[s.sample(writers, writesTook)] = took.spread(mostSamples)
	}
	took, err := watchLatency(ctx, a, watched)
	b.Samples[s.watchSample()] = took
	return err
}

// writeLoad has so many writers write their own ConfigMap again and again, each when the write before was answered. It
// returns how long those took that were answered in the window after the warm-up, in seconds.
func writeLoad(ctx context.Context, a *api, writers int, warm, window time.Duration) (numbers, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, warm+window+writesLate, errors.New("the writers did not end"))
	defer cancel()
	took := make([]numbers, writers)
	from := time.Now().Add(warm)
	to := from.Add(window)
	all, ctx := errgroup.WithContext(ctx)
	for w := range writers {
		all.Go(func() error {
			name := fmt.Sprintf("bench-writer-%d", w)
			if err := a.do(ctx, http.MethodPost, configMaps, configMap(name, -writers), nil); err != nil && !answered(err, http.StatusConflict) {
				return err
			}
			// The API server does not write what has not changed, so every write has another number.
			for i := writers * 1_000_000; ; i++ {
				began := time.Now()
				if !began.Before(to) {
					return nil
				}
				if err := a.do(ctx, http.MethodPut, configMaps+"/"+name, configMap(name, i), nil); err != nil {
					return err
				}
				if ended := time.Now(); !ended.Before(from) && ended.Before(to) {
					took[w] = append(took[w], ended.Sub(began).Seconds())
				}
			}
		})
	}
	err := all.Wait()
	var out numbers
	for _, t := range took {
		out = append(out, t...)
	}
	return out, err
}

// watchLatency writes one ConfigMap after the other and takes the time from sending the request to the event at a
// watch, in seconds.
func watchLatency(ctx context.Context, a *api, count int) (numbers, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, watchLimit, fmt.Errorf("%d writes were not seen in %s", count, watchLimit))
	type event struct {
		name string
		at   time.Time
	}
	events, ended := make(chan event), make(chan error, 1)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() {
		ended <- a.watchOnce(ctx, configMaps+"?watch=1", func(_ string, o object) error {
			select {
			case events <- event{o.Metadata.Name, time.Now()}:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	})
	// The watch must be read while the answer is waited for: the event may be there first.
	write := func(name string) (time.Duration, error) {
		answer := make(chan error, 1)
		began := time.Now()
		watching.Go(func() { answer <- a.do(ctx, http.MethodPost, configMaps, configMap(name, 0), nil) })
		var seen time.Duration
		for answer != nil || seen == 0 {
			select {
			case e := <-events:
				if e.name == name {
					seen = e.at.Sub(began)
				}
			case err := <-answer:
				if err != nil {
					return 0, err
				}
				answer = nil
			case err := <-ended:
				return 0, fmt.Errorf("the watch ended: %w", err)
			case <-ctx.Done():
				return 0, context.Cause(ctx)
			}
		}
		return seen, nil
	}
	// The first only tells that the watch is open: it may see it as something that was there before.
	if _, err := write("bench-watched"); err != nil {
		return nil, err
	}
	var out numbers
	for i := range count {
		if !sleep(ctx, watchPause) {
			return out, context.Cause(ctx)
		}
		took, err := write(fmt.Sprintf("bench-watched-%d", i))
		if err != nil {
			return out, err
		}
		out = append(out, took.Seconds())
	}
	return out, nil
}

// writesTable shows how the stores write.
func (r *results) writesTable(w *strings.Builder) {
	found := false
	cell := func(s store, name, unit string, q, factor float64) string {
		n := numbers(r.Samples[name]).times(factor)
		if len(n) == 0 {
			return "–"
		}
		found = true
		return figure(n.quantile(q)) + unit
	}
	lines := &strings.Builder{}
	line := func(title, unit string, q, factor float64, name func(store) string) {
		fmt.Fprintf(lines, "| %s |", title)
		for _, s := range []store{storeSQLite, storeEtcd, storeBaseline} {
			fmt.Fprintf(lines, " %s |", cell(s, name(s), unit, q, factor))
		}
		mine, plain := numbers(r.Samples[name(storeSQLite)]).quantile(q), numbers(r.Samples[name(storeBaseline)]).quantile(q)
		fmt.Fprintf(lines, " %s |\n", ratio(plain, mine))
	}
	for _, n := range writerCounts {
		title := fmt.Sprintf("%d writers", n)
		if n == 1 {
			title = "1 writer"
		}
		line(title+", writes a second", "", 0.5, 1, func(s store) string { return s.sample(n, writesRate) })
		line("… latency, median", " ms", 0.5, 1000, func(s store) string { return s.sample(n, writesTook) })
		line("… p99", " ms", 0.99, 1000, func(s store) string { return s.sample(n, writesTook) })
	}
	line("request to the event at a watch, median", " ms", 0.5, 1000, store.watchSample)
	line("… p99", " ms", 0.99, 1000, store.watchSample)
	if found {
		fmt.Fprintf(w, "\n| writes | SQLite | etcd | baseline, SQLite without waiting for the disk | SQLite, of the baseline's |\n|---|---|---|---|---|\n%s", lines)
	}
}
