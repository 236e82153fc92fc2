// Package balancer is an agent's way to its cluster's servers: a listener on loopback whose connections go to one of
// them that is well. It passes bytes and sees no plain text; which servers there are and whether one is well it is told.
// Used by the applet of the same name, and for the API of local clusters.
package balancer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"
)

// Options are what a Balancer is made with.
type Options struct {
	// Check asks a server, host:port, once whether it is well.
	Check func(ctx context.Context, server string) error
	// Every is how often servers are checked; 0 is 5 seconds.
	Every time.Duration
	// Dial connects to a server; nil is plain TCP.
	Dial func(ctx context.Context, server string) (net.Conn, error)
	Log  *slog.Logger
}

const (
	defaultEvery = 5 * time.Second
	checkLimit   = 3 * time.Second
	dialLimit    = 3 * time.Second
	// strikes are how many checks have to fail, one after the other, before a server counts as sick: then its connections
	// are ended, if there is one that is well.
	strikes = 2
)

// Balancer forwards connections. Everything it does ends with the ctx of Run.
type Balancer struct {
	o Options

	mu      sync.Mutex // guards what follows
	servers []*server  // in the order in which they are tried
	wake    chan struct{}
}

type server struct {
	addr   string
	rank   int // of the list: learned servers before those that are only a way to find them
	failed int // checks in a row
	// refused: a connection could not be made since the last check. It is tried after the others until then.
	refused bool
	// gone: it is in no list any more, and stays for the connections it has.
	gone  bool
	known bool
	note  string
	conns map[*connection]struct{}
}

type connection struct{ client, server net.Conn }

func (c *connection) end() {
	// Whoever copies between them notices, and closes them for good.
	_ = c.client.Close()
	_ = c.server.Close()
}

// New makes a balancer without servers.
func New(o Options) *Balancer {
	if o.Every == 0 {
		o.Every = defaultEvery
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, server string) (net.Conn, error) {
			// A server that vanishes says nothing; then the kernel finds out.
			alive := net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}
			return (&net.Dialer{Timeout: dialLimit, KeepAliveConfig: alive}).DialContext(ctx, "tcp", server)
		}
	}
	return &Balancer{o: o, wake: make(chan struct{}, 1)}
}

// Set says which servers there are: all of a list before those of the next one are tried. Within a list, a balancer
// keeps to an order of its own, by chance, so that a cluster's agents spread over its servers. Connections to servers that
// are in no list any more go on until the server is sick.
func (b *Balancer) Set(lists ...[]string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := map[string]*server{}
	for _, s := range b.servers {
		old[s.addr] = s
	}
	var now []*server
	for rank, list := range lists {
		for _, addr := range list {
			if slices.ContainsFunc(now, func(s *server) bool { return s.addr == addr }) {
				continue
			}
			s, ok := old[addr]
			if !ok {
				s = &server{addr: addr, conns: map[*connection]struct{}{}}
			}
			s.rank, s.gone = rank, false
			delete(old, addr)
			if ok {
				now = append(now, s)
				continue
			}
			now = slices.Insert(now, rand.IntN(len(now)+1), s)
		}
	}
	slices.SortStableFunc(now, func(x, y *server) int { return x.rank - y.rank })
	for _, s := range old {
		if len(s.conns) > 0 {
			s.gone = true
			now = append(now, s)
		}
	}
	b.servers = now
	b.again()
}

// Server is one as it is.
type Server struct {
	Addr string `json:"addr"`
	// Healthy tells that the last checks found it well; it is not known before the first.
	Healthy bool   `json:"healthy"`
	Note    string `json:"note,omitempty"`
	// Connections are those that go through it now.
	Connections int `json:"connections"`
}

// Servers tells how they are, in the order in which they are tried.
func (b *Balancer) Servers() []Server {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Server, 0, len(b.servers))
	for _, s := range b.order() {
		if s.gone {
			continue
		}
		out = append(out, Server{Addr: s.addr, Healthy: s.known && s.failed == 0, Note: s.note, Connections: len(s.conns)})
	}
	return out
}

// order is the one in which servers are tried: those that have not failed, list by list and those that were found well
// first; then the others. The caller holds mu.
func (b *Balancer) order() []*server {
	unknown := func(s *server) int {
		if s.known {
			return 0
		}
		return 1
	}
	bad := func(s *server) int {
		switch {
		case s.failed > 0:
			return min(s.failed, strikes) + 1
		case s.refused:
			return 1
		}
		return 0
	}
	out := slices.Clone(b.servers)
	slices.SortStableFunc(out, func(x, y *server) int {
		return cmp.Or(bad(x)-bad(y), x.rank-y.rank, unknown(x)-unknown(y))
	})
	return out
}

// Run forwards what l accepts until ctx ends, and closes l. It returns nil then, and when all it has begun has ended.
func (b *Balancer) Run(ctx context.Context, l net.Listener) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { b.watch(ctx) })
	ended := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer ended()
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accepting connections for the servers: %w", err)
		case err != nil:
			b.o.Log.Warn("a connection was not accepted", "err", err)
			select { // out of file descriptors, most likely
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		wg.Go(func() { b.forward(ctx, c) })
	}
}

// forward serves one connection.
func (b *Balancer) forward(ctx context.Context, client net.Conn) {
	defer client.Close()
	s, upstream := b.connect(ctx)
	if upstream == nil {
		if t, ok := client.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // a reset says "refused" more clearly than an orderly end
		}
		return // the client tries again by itself
	}
	defer upstream.Close()
	c := &connection{client, upstream}
	b.mu.Lock()
	there := slices.Contains(b.servers, s)
	if there {
		s.conns[c] = struct{}{}
	}
	b.mu.Unlock()
	if !there {
		return
	}
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(s.conns, c)
		if s.gone && len(s.conns) == 0 {
			b.servers = slices.DeleteFunc(slices.Clone(b.servers), func(o *server) bool { return o == s })
		}
	}()
	ended := context.AfterFunc(ctx, c.end)
	defer ended()
	copied := make(chan struct{})
	go func() {
		pass(upstream, client)
		close(copied)
	}()
	pass(client, upstream)
	<-copied
}

// pass copies until one side ends, and tells the other one.
func pass(to, from net.Conn) {
	_, err := io.Copy(to, from) // splices: no byte comes to us
	if w, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		_ = w.CloseWrite()
		return
	}
	_ = to.Close()
	_ = from.Close()
}

// connect finds a server that takes a connection.
func (b *Balancer) connect(ctx context.Context) (*server, net.Conn) {
	b.mu.Lock()
	order := b.order()
	b.mu.Unlock()
	for _, s := range order {
		if s.gone {
			continue
		}
		dctx, cancel := context.WithTimeout(ctx, dialLimit)
		c, err := b.o.Dial(dctx, s.addr)
		cancel()
		if err == nil {
			return s, c
		}
		if ctx.Err() != nil {
			return nil, nil
		}
		b.refuse(s, err)
	}
	return nil, nil
}

// refuse notes that a connection could not be made. That may be a matter of this machine, so it ends nothing; a check tells.
func (b *Balancer) refuse(s *server, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.refused = true; s.failed == 0 {
		s.note = err.Error()
	}
	b.again()
}

// again makes watch check now. The caller holds mu.
func (b *Balancer) again() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// result notes what a check has found out. Connections end when a server becomes sick and another one is well; where there
// is nowhere else to go they stay, because ending them would only add to what ails it.
func (b *Balancer) result(s *server, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	was := s.known && s.failed == 0
	first := !s.known
	s.known, s.refused = true, false
	if err == nil {
		if !was {
			b.o.Log.Info("server is well", "server", s.addr)
		}
		s.failed, s.note = 0, ""
		return
	}
	s.failed++
	s.note = err.Error()
	if was || first {
		b.o.Log.Warn("server does not answer", "server", s.addr, "err", err)
	}
	if s.failed < strikes || !slices.ContainsFunc(b.servers, func(o *server) bool { return o.known && o.failed == 0 && !o.gone }) {
		return
	}
	for c := range s.conns {
		c.end()
	}
}

// watch checks the servers, all at once, and again when there are others.
func (b *Balancer) watch(ctx context.Context) {
	tick := time.NewTicker(b.o.Every)
	defer tick.Stop()
	for {
		b.mu.Lock()
		all := slices.Clone(b.servers)
		b.mu.Unlock()
		var wg sync.WaitGroup
		for _, s := range all {
			wg.Go(func() {
				cctx, cancel := context.WithTimeoutCause(ctx, checkLimit, fmt.Errorf("no answer within %s", checkLimit))
				defer cancel()
				err := b.o.Check(cctx, s.addr)
				if ctx.Err() == nil {
					b.result(s, err)
				}
			})
		}
		wg.Wait()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-b.wake:
		}
	}
}
