package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/runner"
)

// policyCounts are how many policies select the server, one after the other on the same node.
var policyCounts = []int{10, 100, 1000}

const (
	// policyChanges is how often the label is set and taken away.
	policyChanges = 20
	// policyIdle is how long the process with the network-policy component is watched doing nothing.
	policyIdle = 5 * time.Second
	// policyLimit bounds the wait for one change to be in force, policiesLimit all of it.
	policyLimit   = 2 * time.Minute
	policiesLimit = 8 * time.Minute
	// reachFor is how long a connection that may be let in is waited for: a packet that was dropped is sent again
	// after a second only, so a new connection is the quicker way to see.
	reachFor = 5 * time.Millisecond
	// missFor is how long a connection is waited for before it counts as not let in. It is not part of the time that is
	// measured, which ends when such a connection begins.
	missFor = 100 * time.Millisecond
	// reachPause is between two connections.
	reachPause = time.Millisecond

	// accessPort is open for pods with the label access=yes; lastPort and more are open for the client by the policy
	// that was created last; otherPort and more are of policies for peers that do not exist.
	accessPort = 8080
	lastPort   = 9000
	otherPort  = 20000
)

// What samples of policies are called, behind their number.
const (
	policyLast   = "last one in force"
	policyLetIn  = "let in"
	policyShut   = "shut out"
	policyChange = "CPU of a change"
	policyShare  = "idle, share of a core, before and after"
)

func policySample(count int, what string) string {
	return fmt.Sprintf("k1s policies %d, %s", count, what)
}

const policiesPath = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"

// policy lets pods with a label reach one port of the server.
func policy(name, label, value string, port int) map[string]any {
	labels := func(k, v string) map[string]any { return map[string]any{"matchLabels": map[string]string{k: v}} }
	return map[string]any{
		"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": map[string]any{"name": name},
		"spec": map[string]any{
			"podSelector": labels("role", "server"), "policyTypes": []string{"Ingress"},
			"ingress": []any{map[string]any{
				"from":  []any{map[string]any{"podSelector": labels(label, value)}},
				"ports": []any{map[string]any{"protocol": "TCP", "port": port}},
			}},
		},
	}
}

// policiesUpTo are the policies that make count of those there are already. The very first is the one for access=yes,
// the last of each call is for the client.
func policiesUpTo(there, count int) []map[string]any {
	var out []map[string]any
	for i := there; i < count; i++ {
		name := fmt.Sprintf("bench-%d", i)
		switch i {
		case 0:
			out = append(out, policy(name, "access", "yes", accessPort))
		case count - 1:
			out = append(out, policy(name, "role", "client", lastPort+count))
		default:
			out = append(out, policy(name, "peer", strconv.Itoa(i), otherPort+i))
		}
	}
	return out
}

// policies measures what a change costs where there are few and many policies.
func (b *bench) policies(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, policiesLimit, fmt.Errorf("the policies took more than %s", policiesLimit))
	defer cancel()
	b.say("network policies")
	n, err := b.main.newNode(ctx, k1s, "bench-policies", withoutAddons)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.keepLogs(n, "policies"), n.remove(ctx)) }()
	if _, err := n.start(ctx, "policies", goal{node: true}, b.o.patience); err != nil {
		return err
	}
	a, err := n.api()
	if err != nil {
		return err
	}
	defer a.close()
	pid, err := n.policyProcess()
	if err != nil {
		return err
	}
	var places []place
	defer func() { leave(places...) }()
	for _, role := range []string{"server", "client"} {
		manifest, err := on(n.spec.Name(), map[string]string{"role": role}, pod(role))
		if err != nil {
			return err
		}
		p, err := placePod(ctx, a, n.cgroup(), manifest, role)
		if err != nil {
			return err
		}
		places = append(places, p)
	}
	c := policyCase{b: b, a: a, pid: pid, server: places[0], client: places[1]}
	end, err := c.listen(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	there := 0
	for _, count := range policyCounts {
		if err := c.measure(ctx, there, count); err != nil {
			return fmt.Errorf("%d policies: %w", count, err)
		}
		there = count
	}
	return nil
}

// policyProcess is the process with the network-policy component: in grouped isolation, that of the node's components.
func (n *node) policyProcess() (int, error) {
	records, err := runner.Records(paths.Paths{Run: n.runDir()})
	if err != nil {
		return 0, err
	}
	for _, name := range []string{"network-policy", "node"} {
		for _, r := range records {
			if r.Unit == name {
				return r.Process.PID, nil
			}
		}
	}
	return 0, fmt.Errorf("no unit of %d in %s has the network policies", len(records), n.runDir())
}

// policyCase is a client and a server on one node.
type policyCase struct {
	b              *bench
	a              *api
	pid            int // of the process that enforces
	server, client place
}

// listen opens the server's ports, whose connections are closed as soon as they are there, until the returned function is called.
func (c policyCase) listen(ctx context.Context) (func() error, error) {
	var (
		all       sync.WaitGroup
		listeners []net.Listener
	)
	end := func() error {
		var err error
		for _, l := range listeners {
			err = errors.Join(err, l.Close())
		}
		all.Wait()
		return err
	}
	ports := []int{accessPort}
	for _, count := range policyCounts {
		ports = append(ports, lastPort+count)
	}
	for _, port := range ports {
		l, err := c.server.in.listen(ctx, c.server.at(uint16(port)))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("listening in the server: %w", err), end())
		}
		listeners = append(listeners, l)
		all.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				conn.Close()
			}
		})
	}
	return end, nil
}

// measure creates policies until there are so many, and then changes the client's label.
func (c policyCase) measure(ctx context.Context, there, count int) error {
	var answered time.Time
	for i, p := range policiesUpTo(there, count) {
		if err := c.a.do(ctx, http.MethodPost, policiesPath, p, nil); err != nil {
			return err
		}
		answered = time.Now()
		if there == 0 && i == 0 { // from now on nothing is open that a policy does not open
			if _, err := c.untilMissed(ctx, accessPort); err != nil {
				return err
			}
		}
	}
	at, err := c.untilReached(ctx, uint16(lastPort+count))
	if err != nil {
		return fmt.Errorf("the last policy: %w", err)
	}
	keep := func(what string, d time.Duration) {
		name := policySample(count, what)
		c.b.Samples[name] = append(c.b.Samples[name], d.Seconds())
	}
	keep(policyLast, at.Sub(answered))
	if !sleep(ctx, 2*time.Second) {
		return context.Cause(ctx)
	}
	before, err := c.idle(ctx)
	if err != nil {
		return err
	}
	cpu, err := c.cpu()
	if err != nil {
		return err
	}
	from := time.Now()
	for range policyChanges {
		if answered, err = c.label(ctx, "yes"); err != nil {
			return err
		}
		if at, err = c.untilReached(ctx, accessPort); err != nil {
			return err
		}
		keep(policyLetIn, at.Sub(answered))
		if answered, err = c.label(ctx, nil); err != nil {
			return err
		}
		if at, err = c.untilMissed(ctx, accessPort); err != nil {
			return err
		}
		keep(policyShut, at.Sub(answered))
	}
	after, err := c.cpu()
	if err != nil {
		return err
	}
	elapsed := time.Since(from).Seconds()
	later, err := c.idle(ctx)
	if err != nil {
		return err
	}
	c.b.Samples[policySample(count, policyShare)] = []float64{before, later}
	used := (after - cpu).Seconds() - min(before, later)*elapsed // many new policies may keep the process busy for a while
	c.b.Samples[policySample(count, policyChange)] = []float64{max(0, used) / (2 * policyChanges)}
	return nil
}

// idle is the share of a core that the enforcing process uses while nothing changes.
func (c policyCase) idle(ctx context.Context) (float64, error) {
	cpu, err := c.cpu()
	if err != nil {
		return 0, err
	}
	from := time.Now()
	if !sleep(ctx, policyIdle) {
		return 0, context.Cause(ctx)
	}
	after, err := c.cpu()
	return (after - cpu).Seconds() / time.Since(from).Seconds(), err
}

// label sets the client's label, or takes it away, and returns when that was answered.
func (c policyCase) label(ctx context.Context, value any) (time.Time, error) {
	patch := map[string]any{"metadata": map[string]any{"labels": map[string]any{"access": value}}}
	err := c.a.do(ctx, http.MethodPatch, podsPath+"/client", patch, nil)
	return time.Now(), err
}

// reach opens a connection from the client to the server; false when that does not work within the time given.
func (c policyCase) reach(ctx context.Context, port uint16, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := c.client.in.dial(ctx, "tcp", c.server.at(port))
	if err != nil {
		return false
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // hundreds of them would wait for their end in the client
	}
	conn.Close()
	return true
}

// untilReached returns when the first connection was let in.
func (c policyCase) untilReached(ctx context.Context, port uint16) (time.Time, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, policyLimit, fmt.Errorf("port %d was not open after %s", port, policyLimit))
	defer cancel()
	for !c.reach(ctx, port, reachFor) {
		if !sleep(ctx, reachPause) {
			return time.Time{}, context.Cause(ctx)
		}
	}
	return time.Now(), nil
}

// untilMissed returns when the first connection was begun that was not let in. The one after it must have the same
// fate: on a busy machine one alone may just be late.
func (c policyCase) untilMissed(ctx context.Context, port uint16) (time.Time, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, policyLimit, fmt.Errorf("port %d was not closed after %s", port, policyLimit))
	defer cancel()
	for {
		began, missed := time.Now(), 0
		for missed < 2 && !c.reach(ctx, port, missFor) {
			missed++
		}
		if missed == 2 && ctx.Err() == nil {
			return began, nil
		}
		if !sleep(ctx, reachPause) {
			return time.Time{}, context.Cause(ctx)
		}
	}
}

// cpu is what the enforcing process has used, the nft that it runs included.
func (c policyCase) cpu() (time.Duration, error) {
	used, ok := statCPU(text(fmt.Sprintf("/proc/%d/stat", c.pid)))
	if !ok {
		return 0, fmt.Errorf("the process with the network policies, %d, is gone", c.pid)
	}
	return used, nil
}

// statCPU is the user and system time in a /proc/PID/stat, with that of the children that were waited for.
func statCPU(stat string) (time.Duration, bool) {
	// The name, in brackets, may have spaces and brackets in it. What comes behind it begins with the third field.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	var ticks int64
	for n := 14; n <= 17; n++ { // utime, stime, cutime, cstime
		if len(fields) <= n-3 {
			return 0, false
		}
		t, err := strconv.ParseInt(fields[n-3], 10, 64)
		if err != nil {
			return 0, false
		}
		ticks += t
	}
	return time.Duration(ticks) * time.Second / userHz, true
}

// policiesTable shows what changes cost.
func (r *results) policiesTable(w *strings.Builder) {
	has := func(count int) bool { return len(r.Samples[policySample(count, policyLast)]) > 0 }
	if !slices.ContainsFunc(policyCounts, has) {
		return
	}
	fmt.Fprintf(w, "\n| network policies | the last in force | let in, median | p95 | shut out, median | p95 | CPU of a change |\n|---|---|---|---|---|---|---|\n")
	for _, count := range policyCounts {
		cell := func(what string, q float64) string {
			n := numbers(r.Samples[policySample(count, what)]).times(1000)
			if len(n) == 0 {
				return "–"
			}
			return figure(n.quantile(q)) + " ms"
		}
		fmt.Fprintf(w, "| %d | %s | %s | %s | %s | %s | %s |\n", count, cell(policyLast, 0.5), cell(policyLetIn, 0.5), cell(policyLetIn, 0.95),
			cell(policyShut, 0.5), cell(policyShut, 0.95), cell(policyChange, 0.5))
	}
}

// ignoreEOF is err, unless the other side has just ended.
func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
