//go:build system

package system

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"k1s.io/k1s/internal/cluster"
)

// registers are values in ConfigMaps that clients at every server read and change at once, each change a compare-and-swap by
// resourceVersion. What every client did, and when, is kept, so that in the end it can be checked that there is one order of
// all of it: no answer was wrong, no acknowledged change is lost, and nobody was told of something old. Beside that a
// watcher at every server is told of all changes.
type registers struct {
	t     *testing.T // of all the time they are there
	c     *Cluster
	api   *api // whose credentials all have
	path  string
	begin time.Time
	// watchers stops the watchers, clients the clients; both return when they have ended.
	clients, watchers func()

	mu       sync.Mutex // guards what follows
	networks map[string]network
	ops      []porcupine.Operation
	acked    map[int]change      // acknowledged writes, by resourceVersion
	times    []ack               // in the order in which they came
	unknown  map[string]int      // writes of which nothing is known, by client
	watches  map[string]*watcher // by server
	wrong    []string            // what cannot be, told at once
	refused  []refusal
}

// change is what a ConfigMap was given, and ack when a client had its answer.
type (
	change struct{ name, value string }
	ack    struct {
		client string
		at     time.Duration
	}
)

// refusal is a request that was not answered with what was asked for.
type refusal struct {
	ack
	why string
}

const (
	registerCount = 4
	// registerPace is the pause of a client after each read and the write that follows from it. Some sixty requests a
	// second are on their way whenever something is done to the cluster.
	registerPace = 50 * time.Millisecond
	// registerPatience is how long a client waits for an answer. It is longer than an election, and shorter than the seven
	// seconds after which etcd gives up a write: clients that wait no longer than that would never meet one that is
	// applied after they have gone.
	registerPatience = 5 * time.Second
	// balanced is the client at the cluster's port on this machine, which leads to whichever server answers.
	balanced = "any"
)

// registerInput and registerOutput are an operation, as porcupine sees it.
type registerInput struct {
	register string
	write    bool
	old, new string
}

type registerOutput struct {
	value  string // read
	result string // of a write: applied, conflict, unknown
}

const (
	applied  = "applied"
	conflict = "conflict"
	unknown  = "unknown"
)

// registerModel is one register. Values are never written twice, so a value stands for the resourceVersion it was read at.
var registerModel = porcupine.Model{
	Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
		by := map[string][]porcupine.Operation{}
		for _, o := range all {
			r := o.Input.(registerInput).register
			by[r] = append(by[r], o)
		}
		return slices.Collect(maps.Values(by))
	},
	Init: func() any { return "0" },
	Step: func(state, input, output any) (bool, any) {
		in, out := input.(registerInput), output.(registerOutput)
		switch {
		case !in.write:
			return out.value == state, state
		case out.result == applied:
			return in.old == state, in.new
		case out.result == conflict:
			return in.old != state, state
		case in.old == state: // it may be applied now, or at the end of all times, where it changes nothing for anybody
			return true, in.new
		}
		return true, state
	},
	DescribeOperation: func(input, output any) string {
		in, out := input.(registerInput), output.(registerOutput)
		if !in.write {
			return fmt.Sprintf("%s is %s", in.register, out.value)
		}
		return fmt.Sprintf("%s from %s to %s: %s", in.register, in.old, in.new, out.result)
	},
}

// registers makes them and starts the clients: one at each of the servers, in that server's network, and two at the cluster's port.
func (c *Cluster) registers(t *testing.T, servers []member) *registers {
	t.Helper()
	ns := "registers"
	c.namespace(t, ns)
	if err := c.find(t.Context()); err != nil { // its first node may have been started again
		t.Fatal(err)
	}
	r := &registers{
		t: t, c: c, api: c.api(t), path: "/api/v1/namespaces/" + ns + "/configmaps", begin: time.Now(), networks: map[string]network{},
		acked: map[int]change{}, unknown: map[string]int{}, watches: map[string]*watcher{},
	}
	for i := range registerCount {
		if _, _, err := r.api.do(t.Context(), http.MethodPost, r.path, configMap(registerName(i), "0")); err != nil {
			t.Fatal(err)
		}
	}
	r.find(t)
	clients, stopClients := context.WithCancel(t.Context())
	watchers, stopWatchers := context.WithCancel(t.Context())
	var some, others sync.WaitGroup
	start := func(name string, a *api) {
		some.Go(func() { r.use(clients, name, a) })
	}
	for _, s := range servers {
		a := r.at(t, s.node)
		start(s.node, a)
		w := &watcher{api: a, path: r.path, prefix: "register-"}
		r.watches[s.node] = w
		others.Go(func() { w.run(watchers) })
	}
	anywhere := c.anyServer(t)
	anywhere.http.Timeout = registerPatience
	start(balanced, anywhere)
	start(balanced+" 2", anywhere)
	r.clients = sync.OnceFunc(func() { stopClients(); some.Wait() })
	r.watchers = sync.OnceFunc(func() { stopWatchers(); others.Wait() })
	t.Cleanup(func() { r.clients(); r.watchers() })
	return r
}

func registerName(i int) string { return "register-" + strconv.Itoa(i) }

// find learns where the nodes' networks are; those of nodes that were started again are others.
func (r *registers) find(t *testing.T) {
	t.Helper()
	for _, n := range r.c.describe(t).Nodes {
		if n.State != cluster.Running || n.PID <= 1 {
			continue
		}
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.PID))
		if err != nil {
			t.Fatal(err)
		}
		r.t.Cleanup(func() { f.Close() })
		r.mu.Lock()
		r.networks[n.Name] = network{f}
		r.mu.Unlock()
	}
}

// at is a client of a server, from within its network: it reaches it also when nobody else does.
func (r *registers) at(t *testing.T, server string) *api {
	transport := r.api.http.Transport.(*http.Transport).Clone()
	transport.DialContext = func(ctx context.Context, proto, address string) (net.Conn, error) {
		r.mu.Lock()
		n, ok := r.networks[server]
		r.mu.Unlock()
		if !ok {
			return nil, &net.OpError{Op: "dial", Err: fmt.Errorf("%s does not run", server)}
		}
		return n.dial(ctx, proto, address)
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &api{&http.Client{Transport: transport, Timeout: registerPatience}, r.api.base}
}

func (r *registers) now() time.Duration { return time.Since(r.begin) }

// use is one client: it reads a register, and every other time it changes what it has read.
func (r *registers) use(ctx context.Context, client string, a *api) {
	for n := 0; ctx.Err() == nil; n++ {
		name := registerName(rand.IntN(registerCount))
		if seen, ok := r.read(ctx, client, a, name); ok && n%2 == 0 {
			r.write(ctx, client, a, name, seen, fmt.Sprintf("%s/%d", client, n))
		}
		select {
		case <-ctx.Done():
		case <-time.After(registerPace):
		}
	}
}

func (r *registers) read(ctx context.Context, client string, a *api, name string) (object, bool) {
	call := r.now()
	o, _, err := a.do(ctx, http.MethodGet, r.path+"/"+name, nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil { // it has seen nothing
		r.refused = append(r.refused, refusal{ack{client, r.now()}, err.Error()})
		return o, false
	}
	r.ops = append(r.ops, porcupine.Operation{
		Input: registerInput{register: name}, Output: registerOutput{value: o.Data["n"]}, Call: int64(call), Return: int64(r.now()), Metadata: client,
	})
	return o, true
}

func (r *registers) write(ctx context.Context, client string, a *api, name string, seen object, value string) {
	next := configMap(name, value)
	next["metadata"].(map[string]any)["resourceVersion"] = seen.Metadata.ResourceVersion
	call := r.now()
	o, code, err := a.do(ctx, http.MethodPut, r.path+"/"+name, next)
	op := porcupine.Operation{
		Input: registerInput{register: name, write: true, old: seen.Data["n"], new: value}, Call: int64(call), Return: int64(r.now()), Metadata: client,
	}
	var dial *net.OpError
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && code != http.StatusConflict {
		r.refused = append(r.refused, refusal{ack{client, time.Duration(op.Return)}, err.Error()})
	}
	switch {
	case err == nil:
		op.Output = registerOutput{result: applied}
		rev, bad := strconv.Atoi(o.Metadata.ResourceVersion)
		if was, ok := r.acked[rev]; bad != nil || ok {
			r.wrong = append(r.wrong, fmt.Sprintf("%s=%s is acknowledged at revision %q, as was %v", name, value, o.Metadata.ResourceVersion, was))
		}
		r.acked[rev] = change{name, value}
		r.times = append(r.times, ack{client, time.Duration(op.Return)})
	case code == http.StatusConflict:
		op.Output = registerOutput{result: conflict}
	case errors.As(err, &dial) && dial.Op == "dial":
		return // nobody has got it
	default:
		op.Output, op.Return = registerOutput{result: unknown}, math.MaxInt64
		r.unknown[client]++
	}
	r.ops = append(r.ops, op)
}

// goOn waits until each of the clients has had some more writes acknowledged.
func (r *registers) goOn(t *testing.T, when string, clients ...string) {
	t.Helper()
	since := r.now()
	eventually(t, limit, "writes to be acknowledged "+when, func(context.Context) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		have := map[string]int{}
		for _, a := range slices.Backward(r.times) {
			if a.at < since {
				break
			}
			have[a.client]++
		}
		for _, c := range clients {
			if have[c] < 10 {
				return fmt.Errorf("of the client at %s there are %d", c, have[c])
			}
		}
		return nil
	})
}

// fault does something to the cluster, while the clients at the servers in well, and those at the cluster's port, have to go on, and mends
// it again, after which all have to. It logs what was measured: for how long nobody had a write acknowledged, and who waited longest.
func (r *registers) fault(t *testing.T, what string, well []member, do, mend func()) {
	t.Helper()
	clients := []string{balanced, balanced + " 2"}
	for _, m := range well {
		clients = append(clients, m.node)
	}
	from := r.now()
	unknown := r.unknowns()
	do()
	r.goOn(t, "while "+what, clients...)
	until := r.now()
	r.log(t, what, clients, from, until, r.unknowns()-unknown)
	mend()
	r.find(t)
	r.goOn(t, "after "+what, slices.Collect(maps.Keys(r.watches))...)
	r.log(t, "after "+what, append(slices.Collect(maps.Keys(r.watches)), clients[:2]...), until, r.now(), 0)
}

func (r *registers) unknowns() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, u := range r.unknown {
		n += u
	}
	return n
}

// refusedIn are the requests that were not answered with what was asked for, in a time.
func (r *registers) refusedIn(from, until time.Duration) []refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.refused), func(f refusal) bool { return f.at < from || f.at > until })
}

// log tells of the pauses in a time: between two writes of anybody, and of one client.
func (r *registers) log(t *testing.T, what string, clients []string, from, until time.Duration, unknown int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	last, count, longest, slowest, who := from, 0, time.Duration(0), time.Duration(0), ""
	own := map[string]time.Duration{}
	for _, a := range r.times {
		if a.at < from || a.at > until {
			continue
		}
		count++
		longest = max(longest, a.at-last)
		last = a.at
		if slices.Contains(clients, a.client) {
			before, ok := own[a.client]
			if !ok {
				before = from
			}
			if p := a.at - before; p > slowest {
				slowest, who = p, a.client
			}
			own[a.client] = a.at
		}
	}
	t.Logf("MEASURED %s: no write of anybody for %.2fs, of one client (%s) for %.2fs; in %.1fs %d were acknowledged, %d are unknown",
		what, longest.Seconds(), who, slowest.Seconds(), (until - from).Seconds(), count, unknown)
	for i, f := range r.refused {
		if f.client == who && f.at >= from && f.at <= until && (i == len(r.refused)-1 || i%4 == 0) {
			t.Logf("  %s at %.1fs: %.300s", f.client, (f.at - from).Seconds(), f.why)
		}
	}
}

// check ends the clients and looks at everything that was kept.
func (r *registers) check(t *testing.T) {
	t.Helper()
	r.clients()
	r.mu.Lock()
	newest := slices.Max(slices.Collect(maps.Keys(r.acked)))
	r.mu.Unlock()
	for server, w := range r.watches {
		if err := w.until(within(t, limit), newest); err != nil {
			t.Errorf("at %s: %v", server, err)
		}
	}
	r.watchers()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.wrong {
		t.Error(w)
	}
	checkWatchers(t, r.acked, r.watches)
	began := time.Now()
	result, info := porcupine.CheckOperationsVerbose(registerModel, r.ops, 2*time.Minute)
	t.Logf("%d operations are %s, found in %s; %d acknowledged writes, unknown %v", len(r.ops), result, time.Since(began).Round(time.Millisecond), len(r.acked), r.unknown)
	if result == porcupine.Ok {
		return
	}
	t.Errorf("the history is not one of registers: %s", result)
	for _, partition := range info.PartialLinearizationsOperations() {
		longest := slices.MaxFunc(partition, func(a, b []porcupine.Operation) int { return len(a) - len(b) })
		t.Logf("the longest order that fits has %d operations, the last of them are:", len(longest))
		for _, o := range longest[max(0, len(longest)-20):] {
			t.Logf("  %v %s (%s to %s)", o.Metadata, registerModel.DescribeOperation(o.Input, o.Output), time.Duration(o.Call), time.Duration(o.Return))
		}
	}
}
