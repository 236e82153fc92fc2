package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/cluster/netns"
)

// backends are the ways pods of different nodes reach each other.
var backends = []string{"host-gw", "vxlan"}

// Ways through a cluster of two nodes.
const (
	wayNodes  = "node to node"
	wayAcross = "pod to pod, across nodes"
	waySame   = "pod to pod, same node"
)

var ways = []string{wayNodes, wayAcross, waySame}

const (
	networkName = "bench-net"
	// networkSettle is for the add-ons to start.
	networkSettle = 10 * time.Second
	// streamFor is how long one stream sends, in writes of streamWrite bytes.
	streamFor   = 3 * time.Second
	streamWrite = 128 << 10
	// roundTrips of one byte there and back.
	roundTrips = 2000
	// trafficLimit bounds what a stream or all round trips may take beyond that.
	trafficLimit = 20 * time.Second
)

// What samples of networks are called, behind the backend and the way.
const (
	streamRate    = "Gbit/s"
	roundTripTook = "round trip"
)

func networkSample(backend, way, what string) string {
	return fmt.Sprintf("k1s network %s, %s, %s", backend, way, what)
}

// network makes a cluster of two nodes as a user would and sends through it.
func (b *bench) network(ctx context.Context, backend string) (err error) {
	quiet(ctx, b.o.patience)
	b.say("a cluster of two nodes with %s", backend)
	defer func() {
		err = errors.Join(err, b.clusterCommand(context.WithoutCancel(ctx), "delete", networkName, "--yes"))
	}()
	err = b.clusterCommand(ctx, "create", networkName, "--agents", "1", "--set", "spec.network.backend="+backend, "--no-kubeconfig")
	if err != nil {
		return err
	}
	st, err := b.main.provider(k1s).Describe(ctx, networkName)
	if err != nil {
		return err
	}
	if len(st.Nodes) != 2 {
		return fmt.Errorf("the cluster has %d nodes, not 2", len(st.Nodes))
	}
	if !sleep(ctx, networkSettle) {
		return context.Cause(ctx)
	}
	var places []place
	defer func() { leave(places...) }()
	for _, n := range st.Nodes {
		in, err := enter(n.PID)
		if err != nil {
			return err
		}
		places = append(places, place{in, n.Addr})
	}
	a, err := newAPI(st.Nodes[0].Kubeconfig, places[0].in)
	if err != nil {
		return err
	}
	defer a.close()
	for i, n := range []cluster.Node{st.Nodes[0], st.Nodes[0], st.Nodes[1]} {
		name := fmt.Sprintf("bench-net-%d", i)
		manifest, err := on(n.Name, nil, pod(name))
		if err != nil {
			return err
		}
		p, err := placePod(ctx, a, b.main.cgroupOf(networkName, n.Name), manifest, name)
		if err != nil {
			return err
		}
		places = append(places, p)
	}
	between := map[string][2]place{
		wayNodes: {places[0], places[1]}, wayAcross: {places[2], places[4]}, waySame: {places[2], places[3]},
	}
	for _, way := range ways {
		from, to := between[way][0], between[way][1]
		rate, err := stream(ctx, from, to, streamFor)
		if err != nil {
			return fmt.Errorf("%s: %w", way, err)
		}
		took, err := pingPong(ctx, from, to, roundTrips)
		if err != nil {
			return fmt.Errorf("%s: %w", way, err)
		}
		b.Samples[networkSample(backend, way, streamRate)] = numbers{rate * 8 / 1e9}
		b.Samples[networkSample(backend, way, roundTripTook)] = took.spread(mostSamples)
	}
	return nil
}

// cgroupOf is the cgroup of a node of a cluster that `k1s cluster` made in the sandbox.
func (s sandbox) cgroupOf(cluster, node string) string {
	return filepath.Join(netns.Below(s.dir).CgroupRoot, cluster, node)
}

// connect opens a connection between two places and calls serve with its far end. Both ends are closed, and serve has
// returned, when the returned function has.
func connect(ctx context.Context, from, to place, deadline time.Time, serve func(net.Conn) error) (net.Conn, func() error, error) {
	l, err := to.in.listen(ctx, to.at(0))
	if err != nil {
		return nil, nil, fmt.Errorf("listening at %s: %w", to.addr, err)
	}
	var serving sync.WaitGroup
	var failed error
	serving.Go(func() {
		far, err := l.Accept()
		if err != nil {
			failed = err
			return
		}
		defer far.Close()
		failed = errors.Join(far.SetDeadline(deadline), serve(far))
	})
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	near, err := from.in.dial(ctx, "tcp", l.Addr().String())
	if err == nil {
		err = near.SetDeadline(deadline)
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("connecting %s with %s: %w", from.addr, to.addr, err), l.Close())
		if near != nil {
			near.Close()
		}
		serving.Wait()
		return nil, nil, err
	}
	return near, func() error {
		err := near.Close()
		serving.Wait()
		return errors.Join(err, failed, l.Close())
	}, nil
}

// stream sends as much as it can over one TCP connection, and returns how many bytes arrived a second.
func stream(ctx context.Context, from, to place, window time.Duration) (float64, error) {
	var (
		arrived     int64
		first, last time.Time
	)
	near, end, err := connect(ctx, from, to, time.Now().Add(window+trafficLimit), func(far net.Conn) error {
		buffer := make([]byte, streamWrite)
		for {
			n, err := far.Read(buffer)
			if n == 0 { // the sender has closed it
				return ignoreEOF(err)
			}
			last = time.Now()
			if first.IsZero() {
				first = last // and what arrived with it took time before
				continue
			}
			arrived += int64(n)
		}
	})
	if err != nil {
		return 0, err
	}
	buffer := make([]byte, streamWrite)
	for until := time.Now().Add(window); err == nil && time.Now().Before(until) && ctx.Err() == nil; {
		_, err = near.Write(buffer)
	}
	if err := errors.Join(err, end(), ctx.Err()); err != nil {
		return 0, fmt.Errorf("sending from %s to %s: %w", from.addr, to.addr, err)
	}
	if !last.After(first) {
		return 0, fmt.Errorf("sending from %s to %s: nothing arrived", from.addr, to.addr)
	}
	return float64(arrived) / last.Sub(first).Seconds(), nil
}

// pingPong sends a byte there and back again, and returns how long each took in seconds. Go's connections have
// TCP_NODELAY.
func pingPong(ctx context.Context, from, to place, count int) (numbers, error) {
	near, end, err := connect(ctx, from, to, time.Now().Add(trafficLimit), func(far net.Conn) error {
		b := make([]byte, 1)
		for {
			if _, err := far.Read(b); err != nil {
				return ignoreEOF(err)
			}
			if _, err := far.Write(b); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return nil, err
	}
	var out numbers
	b := make([]byte, 1)
	for range count {
		began := time.Now()
		if _, err = near.Write(b); err != nil {
			break
		}
		if _, err = near.Read(b); err != nil {
			break
		}
		out = append(out, time.Since(began).Seconds())
	}
	if err := errors.Join(err, end(), ctx.Err()); err != nil {
		return out, fmt.Errorf("a byte from %s to %s and back: %w", from.addr, to.addr, err)
	}
	return out, nil
}

// networkTable shows what the network between pods costs.
func (r *results) networkTable(w *strings.Builder) {
	found := false
	lines := &strings.Builder{}
	for _, backend := range backends {
		value := func(way, what string, q float64) float64 {
			return numbers(r.Samples[networkSample(backend, way, what)]).quantile(q)
		}
		for _, way := range ways {
			rate, half := value(way, streamRate, 0.5), value(way, roundTripTook, 0.5)
			if rate == 0 {
				continue
			}
			found = true
			fmt.Fprintf(lines, "| %s, %s | %s Gbit/s | %s | %s µs | %s | %s µs |\n", backend, way, figure(rate), ratio(value(wayNodes, streamRate, 0.5), rate),
				figure(half*1e6), ratio(value(wayNodes, roundTripTook, 0.5), half), figure(value(way, roundTripTook, 0.99)*1e6))
		}
	}
	if found {
		fmt.Fprintf(w, "\n| network | one TCP stream | of node to node | a byte there and back, median | of node to node | p99 |\n|---|---|---|---|---|---|\n%s", lines)
	}
}
