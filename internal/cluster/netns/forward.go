package netns

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k1s.io/k1s/internal/balancer"
	"k1s.io/k1s/internal/cluster"
)

// forward is one port of this machine and where in the cluster it leads.
type forward struct {
	Proto   string // tcp or udp
	Listen  netip.AddrPort
	Targets []netip.AddrPort // tried in turn, each new connection beginning with the next
	// Outside turns it round: it listens inside the cluster and leads to this HOST:PORT, as this machine reaches it.
	Outside string
	// API tells that the targets are API servers: one that is well is taken, and tried again with another one where it is none.
	API bool
}

// network is the name package net has for it.
func (w forward) network() string {
	if w.Listen.Addr().Is4() {
		return w.Proto + "4"
	}
	return w.Proto + "6"
}

// forwards computes what a cluster's spec asks for. Pure.
func forwards(s cluster.Spec) []forward {
	local := netip.MustParseAddr("127.0.0.1")
	at := func(port uint16, on cluster.Selector) []netip.AddrPort {
		var out []netip.AddrPort
		for _, n := range s.Nodes {
			if on.Matches(n.Role, n.Index) {
				out = append(out, netip.AddrPortFrom(cluster.NodeAddr(s.Subnet, n.Role, n.Index), port))
			}
		}
		return out
	}
	out := []forward{{Proto: "tcp", Listen: netip.AddrPortFrom(local, s.APIPort), Targets: at(cluster.APIPortInNode, "servers"), API: true}}
	for _, p := range s.Publish {
		out = append(out, forward{Proto: p.Proto, Listen: p.Listen(), Targets: at(p.NodePort, p.On)})
	}
	for _, r := range s.Reach {
		out = append(out, forward{Proto: "tcp", Listen: netip.AddrPortFrom(cluster.BridgeAddr(s.Subnet), r.Port), Outside: r.String()})
	}
	return out
}

// here are the forwards that listen on this machine.
func here(all []forward) []forward {
	return slices.DeleteFunc(slices.Clone(all), func(w forward) bool { return w.Outside != "" })
}

// dialFunc opens a connection inside the cluster.
type dialFunc func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)

// Bounds of one forwarded port.
const (
	maxConns    = 4096             // TCP connections at once; further ones wait in the listener's queue
	maxSessions = 1024             // UDP clients at once; packets of further ones are dropped
	udpIdle     = 60 * time.Second // a UDP client that is silent for so long, both ways, is forgotten
	dialTimeout = 5 * time.Second  // per target
)

var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 6}

// forwarder serves forwards; the set can be changed while it runs.
type forwarder struct {
	dial dialFunc
	// listenInside opens a TCP socket in the cluster; nil where nothing is to be reached from there.
	listenInside func(ctx context.Context, at netip.AddrPort) (net.Listener, error)
	log          *slog.Logger
	idle         time.Duration // of UDP sessions

	mu    sync.Mutex // guards what follows
	ports map[portKey]*port
	held  map[portKey]any // sockets somebody has opened for us: a net.Listener or a *net.UDPConn each
}

type portKey struct {
	proto   string
	listen  netip.AddrPort
	outside string
}

func (w forward) key() portKey { return portKey{w.Proto, w.Listen, w.Outside} }

// port is one listening socket. Its targets may change; what is connected stays so.
type port struct {
	targets atomic.Pointer[[]netip.AddrPort]
	outside string // forward.Outside
	next    atomic.Uint32
	api     *balancer.Balancer // of API servers; nil for what else there is
	stop    context.CancelFunc
	done    chan struct{}
}

func newForwarder(dial dialFunc, log *slog.Logger) *forwarder {
	return &forwarder{dial: dial, log: log, idle: udpIdle, ports: map[portKey]*port{}}
}

// set makes want what is forwarded: new ports are opened, unwanted ones closed with their connections. When
// a port cannot be opened the others still are, and the errors are joined.
func (f *forwarder) set(want []forward) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	keep := map[portKey]bool{}
	for _, w := range want {
		keep[w.key()] = true
	}
	for k, p := range f.ports {
		if !keep[k] {
			p.stop()
			<-p.done
			delete(f.ports, k)
		}
	}
	var all []error
	for _, w := range want {
		k := w.key()
		p := f.ports[k]
		if p == nil {
			var err error
			if p, err = f.open(w); err != nil {
				all = append(all, err)
				continue
			}
			f.ports[k] = p
		}
		p.lead(w.Targets)
	}
	return errors.Join(all...)
}

// lead says where a port leads from now on.
func (p *port) lead(to []netip.AddrPort) {
	p.targets.Store(&to)
	if p.api == nil {
		return
	}
	servers := make([]string, 0, len(to))
	for _, t := range to {
		servers = append(servers, t.String())
	}
	p.api.Set(servers)
}

// close ends everything and waits for it.
func (f *forwarder) close() { _ = f.set(nil) }

// open listens and serves until the port is stopped.
func (f *forwarder) open(w forward) (*port, error) {
	ctx, cancel := context.WithCancel(context.Background())
	p := &port{outside: w.Outside, stop: cancel, done: make(chan struct{})}
	p.targets.Store(&w.Targets)
	var serve func()
	switch {
	case w.Outside != "":
		if f.listenInside == nil {
			cancel()
			return nil, errors.ErrUnsupported
		}
		l, err := f.listenInside(ctx, w.Listen)
		if err != nil {
			cancel()
			return nil, err
		}
		serve = func() { f.serveTCP(ctx, p, l) }
	case w.Proto == "udp":
		l, ok := f.take(w).(*net.UDPConn)
		if !ok {
			var err error
			if l, err = net.ListenUDP(w.network(), net.UDPAddrFromAddrPort(w.Listen)); err != nil {
				cancel()
				return nil, err
			}
		}
		serve = func() { f.serveUDP(ctx, p, l) }
	default:
		l, ok := f.take(w).(net.Listener)
		if !ok {
			var lc net.ListenConfig
			var err error
			if l, err = lc.Listen(ctx, w.network(), w.Listen.String()); err != nil {
				cancel()
				return nil, err
			}
		}
		serve = func() { f.serveTCP(ctx, p, l) }
		if w.API {
			serve = f.toServers(ctx, p, l)
		}
	}
	go func() {
		defer close(p.done)
		serve()
	}()
	return p, nil
}

// take hands out the socket that was opened for a forward, once; nil without one. The caller holds mu.
func (f *forwarder) take(w forward) any {
	k := w.key()
	s := f.held[k]
	delete(f.held, k)
	return s
}

// connect dials the targets in turn until one answers.
func (f *forwarder) connect(ctx context.Context, p *port, network string) (net.Conn, error) {
	if p.outside != "" {
		return (&net.Dialer{Timeout: dialTimeout, KeepAliveConfig: keepAlive}).DialContext(ctx, "tcp", p.outside)
	}
	targets := *p.targets.Load()
	if len(targets) == 0 {
		return nil, errors.New("no node to forward to")
	}
	first := int(p.next.Add(1)-1) % len(targets)
	var all []error
	for i := range targets {
		dctx, cancel := context.WithTimeout(ctx, dialTimeout)
		c, err := f.dial(dctx, network, targets[(first+i)%len(targets)])
		cancel()
		if err == nil {
			return c, nil
		}
		all = append(all, err)
	}
	return nil, errors.Join(all...)
}

func (f *forwarder) serveTCP(ctx context.Context, p *port, l net.Listener) {
	var conns sync.WaitGroup
	defer conns.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	slots := make(chan struct{}, maxConns)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		c, err := l.Accept()
		if err != nil {
			<-slots
			if ctx.Err() != nil {
				return
			}
			// Out of file descriptors, most likely: connections that end give some back.
			f.log.Warn("accepting a connection failed", "listen", l.Addr(), "err", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return
			}
			continue
		}
		conns.Go(func() {
			defer func() { <-slots }()
			defer c.Close()
			if t, ok := c.(*net.TCPConn); ok {
				_ = t.SetKeepAliveConfig(keepAlive)
			}
			to, err := f.connect(ctx, p, "tcp4")
			if err != nil {
				f.log.Debug("nothing answers in the cluster", "listen", l.Addr(), "err", err)
				if t, ok := c.(*net.TCPConn); ok {
					_ = t.SetLinger(0) // a reset says "refused" more clearly than an orderly end
				}
				return
			}
			defer to.Close()
			relay(ctx, c, to)
		})
	}
}

// toServers makes p one of API servers, and returns what serves it. One that is cut off from the others takes connections, and answers nothing
// through them: so it is asked, where there is another one, whether it is ready.
func (f *forwarder) toServers(ctx context.Context, p *port, l net.Listener) (serve func()) {
	dial := func(ctx context.Context, to string) (net.Conn, error) {
		at, err := netip.ParseAddrPort(to)
		if err != nil {
			return nil, err
		}
		return f.dial(ctx, "tcp4", at)
	}
	asks := &http.Client{Transport: &http.Transport{
		DialContext:         func(ctx context.Context, _, to string) (net.Conn, error) { return dial(ctx, to) },
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, //nolint:gosec // it is told nothing, and whoever goes through it looks
		MaxIdleConnsPerHost: 1,
	}}
	ready := balancer.Ready(asks)
	check := func(ctx context.Context, server string) error {
		if len(*p.targets.Load()) < 2 {
			return nil
		}
		return ready(ctx, server)
	}
	p.api = balancer.New(balancer.Options{Check: check, Dial: dial, Log: f.log})
	return func() {
		defer asks.CloseIdleConnections()
		if err := p.api.Run(ctx, l); err != nil {
			f.log.Error("the API is not forwarded any more", "err", err)
		}
	}
}

// relay copies both ways until both have ended, passing on the end of each direction by itself, or until
// ctx ends.
func relay(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	defer stop()
	var both sync.WaitGroup
	half := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		if w, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
			_ = w.CloseWrite()
		} else {
			// The connection is broken, so the other direction has no use either.
			a.Close()
			b.Close()
		}
	}
	both.Go(func() { half(b, a) })
	both.Go(func() { half(a, b) })
	both.Wait()
}

// session is one UDP client.
type session struct {
	conn net.Conn
	last atomic.Int64 // unix nanoseconds of the last packet, either way
}

func (f *forwarder) serveUDP(ctx context.Context, p *port, l *net.UDPConn) {
	var (
		mu       sync.Mutex // guards sessions
		sessions = map[netip.AddrPort]*session{}
		readers  sync.WaitGroup
	)
	defer readers.Wait()
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		for _, s := range sessions {
			s.conn.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()

	buf := make([]byte, 64<<10)
	for {
		n, from, err := l.ReadFromUDPAddrPort(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error of an earlier reply
		}
		mu.Lock()
		s := sessions[from]
		full := len(sessions) >= maxSessions
		mu.Unlock()
		if s == nil {
			if full {
				continue
			}
			conn, err := f.connect(ctx, p, "udp4")
			if err != nil {
				continue // as a network that loses the packet
			}
			s = &session{conn: conn}
			s.last.Store(time.Now().UnixNano())
			mu.Lock()
			sessions[from] = s
			mu.Unlock()
			readers.Go(func() {
				f.replies(l, from, s)
				mu.Lock()
				delete(sessions, from)
				mu.Unlock()
				s.conn.Close()
			})
		}
		s.last.Store(time.Now().UnixNano())
		_, _ = s.conn.Write(buf[:n])
	}
}

// replies carries packets back to one client until it has been silent for too long.
func (f *forwarder) replies(l *net.UDPConn, to netip.AddrPort, s *session) {
	buf := make([]byte, 64<<10)
	for {
		_ = s.conn.SetReadDeadline(time.Unix(0, s.last.Load()).Add(f.idle))
		n, err := s.conn.Read(buf)
		var ne net.Error
		switch {
		case err == nil:
			s.last.Store(time.Now().UnixNano())
			if _, err := l.WriteToUDPAddrPort(buf[:n], to); errors.Is(err, net.ErrClosed) {
				return
			}
		case errors.As(err, &ne) && ne.Timeout():
			if time.Since(time.Unix(0, s.last.Load())) >= f.idle {
				return
			}
		case errors.Is(err, net.ErrClosed):
			return
		default:
			// The node refused a packet; the client may try again, the session only ends by silence.
			if time.Since(time.Unix(0, s.last.Load())) >= f.idle {
				return
			}
		}
	}
}
