package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Sections that can be chosen with -only.
var sections = []string{"cold", "work", "warm", "first", "server", "isolation", "cluster", "servers", "writes", "network", "policies", "idle"}

// results are everything that was measured; with -json they are kept as they are.
type results struct {
	Machine   machine              `json:"machine"`
	Version   string               `json:"version"`
	Began     time.Time            `json:"began"`
	Took      string               `json:"took"`
	Runs      int                  `json:"runs"`
	Settle    string               `json:"settle"`
	Window    string               `json:"window"`
	FileBytes int64                `json:"fileBytes"`
	Starts    []start              `json:"starts"`
	Idle      []idle               `json:"idle"`
	Samples   map[string][]float64 `json:"samples"` // by kind and name, in seconds unless the name says otherwise
	Failures  []string             `json:"failures,omitempty"`
}

// bench measures and keeps.
type bench struct {
	o        options
	self     string
	main     sandbox
	deadline time.Time
	results
}

// What starts are called in the results.
const (
	whatCold   = "cold"
	whatWarm   = "warm"
	whatFirst  = "first"
	whatServer = "server"
)

var withoutAddons = "disable: [coredns, metrics-server, local-path]"

func newBench(o options) (*bench, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding our own program: %w", err)
	}
	st, err := os.Stat(o.program)
	if err != nil {
		return nil, err
	}
	// Nodes run as root from there, and its name must not change what `go run` does.
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the directory to measure in: %w", err)
	}
	b := &bench{o: o, self: self, deadline: time.Now().Add(o.limit)}
	b.main = b.sandbox("main")
	b.results = results{
		Machine: thisMachine(), Began: time.Now(), Runs: o.runs, FileBytes: st.Size(),
		Settle: o.settle.String(), Window: o.window.String(), Samples: map[string][]float64{},
	}
	return b, nil
}

func (b *bench) sandbox(name string) sandbox {
	return sandbox{dir: filepath.Join(b.o.dir, name), program: b.o.program, self: b.self}
}

// close removes everything, also after an interrupt.
func (b *bench) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	entries, err := os.ReadDir(b.o.dir)
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, b.sandbox(e.Name()).removeAll(ctx))
		}
	}
	return errors.Join(err, os.Remove(b.o.dir))
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.0fs  %s\n", time.Since(b.Began).Seconds(), fmt.Sprintf(format, args...))
}

// fail keeps what went wrong and goes on: one start that failed spoils no other number.
func (b *bench) fail(what string, err error) {
	if err == nil {
		return
	}
	b.Failures = append(b.Failures, what+": "+err.Error())
	b.say("%s failed: %v", what, err)
}

// more tells whether there is time for something that takes about d.
func (b *bench) more(ctx context.Context, what string, d time.Duration) bool {
	if ctx.Err() != nil {
		return false
	}
	if time.Until(b.deadline) < d {
		b.Failures = append(b.Failures, what+": no time left for it")
		return false
	}
	return true
}

// kinds are what is compared, in another order each run.
func (b *bench) kinds(run int) []string {
	switch {
	case !b.o.baseline:
		return []string{k1s}
	case run%2 == 0:
		return []string{k1s, baseline}
	default:
		return []string{baseline, k1s}
	}
}

// measure measures everything that was asked for. Its error is one that keeps anything from being measured.
func (b *bench) measure(ctx context.Context) error {
	defer func() { b.Took = time.Since(b.Began).Round(time.Second).String() }()
	if err := b.main.hold(ctx); err != nil {
		return err
	}
	if err := b.warmUp(ctx); err != nil {
		return err
	}
	if b.o.wants("cold") || b.o.wants("work") || b.o.wants("warm") {
		for run := range b.o.runs {
			for _, kind := range b.kinds(run) {
				if b.more(ctx, kind+" cold start", time.Minute) {
					b.fail(kind, b.life(ctx, kind, run))
				}
			}
		}
	}
	for run := range b.o.runs {
		if b.o.wants("first") && b.more(ctx, "first start", time.Minute) {
			b.fail("first start", b.first(ctx, run))
		}
		if b.o.wants("server") && b.more(ctx, "server", 30*time.Second) {
			b.fail("server", b.single(ctx, b.main, k1s, whatServer, goal{}, "noWorker: true"))
		}
	}
	if b.o.wants("isolation") {
		for range min(b.o.runs, 3) {
			for _, mode := range isolations {
				if b.more(ctx, "isolation "+mode, 30*time.Second) {
					b.fail("isolation "+mode, b.single(ctx, b.main, k1s, "isolation "+mode, goal{node: true}, "isolation: "+mode, withoutAddons))
				}
			}
		}
	}
	if b.o.wants("cluster") {
		for range min(b.o.runs, 3) {
			if b.more(ctx, "cluster of five", time.Minute) {
				b.fail("cluster of five", b.five(ctx))
			}
		}
	}
	if b.o.wants("servers") {
		for range min(b.o.runs, 3) {
			if b.more(ctx, "cluster of three servers", 3*time.Minute) {
				b.fail("cluster of three servers", b.servers(ctx))
			}
		}
	}
	if b.o.wants("writes") {
		for _, s := range b.stores() {
			if what := "writes, " + s.kind + " with " + s.name; b.more(ctx, what, 90*time.Second) {
				b.fail(what, b.writes(ctx, s))
			}
		}
	}
	if b.o.wants("network") {
		for _, backend := range backends {
			if b.more(ctx, "network with "+backend, time.Minute) {
				b.fail("network with "+backend, b.network(ctx, backend))
			}
		}
	}
	if b.o.wants("policies") && b.more(ctx, "policies", 2*time.Minute) {
		b.fail("policies", b.policies(ctx))
	}
	if b.o.wants("idle") && b.more(ctx, "idle", b.o.settle+b.o.window+time.Minute) {
		b.fail("idle", b.idle(ctx))
	}
	return ctx.Err()
}

var isolations = []string{"grouped", "component", "none"}

// warmUp unpacks the payload where all later nodes find it.
func (b *bench) warmUp(ctx context.Context) error {
	b.say("unpacking the payload")
	n, err := b.main.newNode(ctx, k1s, "bench-warmup")
	if err != nil {
		return err
	}
	_, err = n.start(ctx, "warm-up", goal{node: true}, 0)
	return errors.Join(err, n.remove(ctx))
}

// life is a node from its first start over work to its second start.
func (b *bench) life(ctx context.Context, kind string, run int) (err error) {
	n, err := b.main.newNode(ctx, kind, "bench-"+kind)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.keepLogs(n, fmt.Sprintf("%s-%d", kind, run)), n.remove(ctx)) }()
	s, err := n.start(ctx, whatCold, goal{node: true, dns: true, pod: true}, b.o.patience)
	if err != nil {
		return err
	}
	b.keep(s)
	if run == 0 && b.o.wants("work") {
		b.fail(kind+" work", b.work(ctx, n))
	}
	if !b.o.wants("warm") {
		return nil
	}
	if err := n.rest(ctx); err != nil {
		return err
	}
	s, err = n.start(ctx, whatWarm, goal{node: true, again: true}, b.o.patience)
	if err != nil {
		return err
	}
	b.keep(s)
	return nil
}

// rest stops the node for as long as it takes to tell what it reports afterwards from what it did before: a node's
// heartbeat has whole seconds.
func (n *node) rest(ctx context.Context) error {
	if err := n.stop(ctx); err != nil {
		return err
	}
	if !sleep(ctx, 1100*time.Millisecond) {
		return context.Cause(ctx)
	}
	return nil
}

func (b *bench) keepLogs(n *node, name string) error {
	if b.o.logs == "" || n.made.Kubeconfig == "" {
		return nil
	}
	return n.keepLogs(filepath.Join(b.o.logs, name))
}

func (b *bench) keep(s start) {
	b.Starts = append(b.Starts, s)
	b.say("%s %s: port %.2fs readyz %.2fs Ready %.2fs DNS %.2fs pod %.2fs; CPU to Ready %.2fs; others used %.1f cores", s.Kind, s.What,
		s.At[mPort], s.At[mReadyz], s.At[mReady], s.At[mDNS], s.At[mRunning], s.CPU[mReady], s.Foreign)
}

// work takes what a running node is asked for.
func (b *bench) work(ctx context.Context, n *node) error {
	if !sleep(ctx, 5*time.Second) { // until the add-ons run
		return context.Cause(ctx)
	}
	pods, err := podLatency(ctx, n, b.o.pods)
	b.Samples[n.kind+" pod"] = pods
	if err != nil {
		return err
	}
	lists, err := listAfterWrite(ctx, n, b.o.lists)
	b.Samples[n.kind+" list"] = lists
	if err != nil || n.kind != k1s {
		return err
	}
	for _, command := range []string{"version", "status"} {
		took, err := commandLatency(ctx, n, b.o.program, b.o.commands, command)
		if err != nil {
			return err
		}
		b.Samples[n.kind+" "+command] = took
	}
	return nil
}

// first is the first run ever: in a directory without an unpacked payload.
func (b *bench) first(ctx context.Context, run int) error {
	box := b.sandbox(fmt.Sprintf("first-%d", run))
	err := b.single(ctx, box, k1s, whatFirst, goal{node: true})
	return errors.Join(err, box.removeAll(context.WithoutCancel(ctx)))
}

// single is one cold start.
func (b *bench) single(ctx context.Context, box sandbox, kind, what string, g goal, settings ...string) (err error) {
	n, err := box.newNode(ctx, kind, "bench-"+kind, settings...)
	if err != nil {
		return err
	}
	defer func() {
		name := fmt.Sprintf("%s-%d", strings.ReplaceAll(what, " ", "-"), len(b.Starts))
		err = errors.Join(err, b.keepLogs(n, name), n.remove(ctx))
	}()
	s, err := n.start(ctx, what, g, b.o.patience)
	if err != nil {
		return err
	}
	b.keep(s)
	return nil
}

// What idle nodes are called.
const (
	idleBare = "without add-ons"
	idleFull = "with add-ons"
)

// idle measures idle nodes.
func (b *bench) idle(ctx context.Context) error {
	cases := []idleCase{{k1s, idleBare, []string{withoutAddons}}, {k1s, idleFull, nil}}
	if b.o.baseline {
		cases = append(cases, idleCase{baseline, idleBare, []string{withoutAddons}}, idleCase{baseline, idleFull, nil})
	}
	if b.o.wants("isolation") {
		for _, mode := range isolations {
			if mode != "grouped" { // that is the first case
				cases = append(cases, idleCase{k1s, "isolation " + mode, []string{"isolation: " + mode, withoutAddons}})
			}
		}
	}
	// Two at a time: side by side they have the same neighbours, and more would use up inotify instances.
	for i := 0; i < len(cases); i += 2 {
		batch := cases[i:min(i+2, len(cases))]
		if !b.more(ctx, "idle "+batch[0].what, b.o.settle+b.o.window+time.Minute) {
			return nil
		}
		if err := b.idleBatch(ctx, i, batch); err != nil {
			return err
		}
	}
	return nil
}

// idleCase is one idle node.
type idleCase struct {
	kind, what string
	settings   []string
}

func (b *bench) idleBatch(ctx context.Context, first int, cases []idleCase) (err error) {
	var nodes []*node
	var whats []string
	defer func() {
		for _, n := range nodes {
			err = errors.Join(err, b.keepLogs(n, n.name), n.remove(ctx))
		}
		for i := range cases {
			err = errors.Join(err, b.sandbox(fmt.Sprintf("idle-%d", first+i)).removeAll(context.WithoutCancel(ctx)))
		}
	}()
	for i, c := range cases {
		b.say("starting an idle node: %s %s", c.kind, c.what)
		box := b.sandbox(fmt.Sprintf("idle-%d", first+i))
		if err := b.main.copyPayload(box); err != nil {
			return err
		}
		n, err := box.newNode(ctx, c.kind, fmt.Sprintf("bench-idle-%d", first+i), c.settings...)
		if err != nil {
			return err
		}
		nodes, whats = append(nodes, n), append(whats, c.what)
		// The first start reads the copied programs from end to end to verify them, which no other start does, and so
		// makes big pieces of them again. What is measured is the node of a machine that has booted since.
		up := goal{node: true, dns: !slices.Contains(c.settings, withoutAddons)}
		if _, err := n.start(ctx, "idle", up, 0); err != nil {
			return err
		}
		if err := n.rest(ctx); err != nil {
			return err
		}
		if err := forget(box.provider(k1s).Payloads()); err != nil {
			return err
		}
		up.again = true
		if _, err := n.start(ctx, "idle", up, 0); err != nil {
			return err
		}
	}
	b.say("idle: %s to settle, %s to measure", b.o.settle, b.o.window)
	measured, err := measureIdle(ctx, nodes, whats, b.o.settle, b.o.window)
	b.Idle = append(b.Idle, measured...)
	return err
}

// copyPayload gives another sandbox its own copy of the unpacked payload.
func (s sandbox) copyPayload(to sandbox) error {
	from := s.provider(k1s).Payloads()
	dir := to.provider(k1s).Payloads()
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		return fmt.Errorf("copying the payload: %w", err)
	}
	return forget(dir)
}

// forget makes the files below dir be read from the disk when they are next used, as after a boot. A file that was
// just written lies in memory in pieces of 2 MB on newer kernels, and each piece that is touched counts as used.
func forget(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := errors.Join(f.Sync(), forgetFile(f)); err != nil {
			return fmt.Errorf("taking %s out of memory: %w", path, err)
		}
		return nil
	})
}
