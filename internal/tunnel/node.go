package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// Node is a node's end of its tunnels: one to each server there is.
type Node struct {
	o       NodeOptions
	buffers buffers

	mu       sync.Mutex // guards what follows
	servers  []string
	fallback string
	links    map[string]*link
	wake     chan struct{}
}

// NodeOptions are what a Node is made with.
type NodeOptions struct {
	// Connect connects to a server, host:port, with TLS and as this node.
	Connect func(ctx context.Context, server string) (Connection, error)
	// Allow tells why this node does not connect to a target for a server; nil is that it does.
	Allow func(ctx context.Context, to netip.AddrPort) error
	// Dial connects to a target; nil is plain TCP.
	Dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	Log  *slog.Logger
}

// Connection is one to a server.
type Connection struct {
	net.Conn
	// NotBefore and NotAfter are those of the certificate this node has shown.
	NotBefore, NotAfter time.Time
}

// link is the way to one server. Its fields are guarded by the Node's mu.
type link struct {
	server string
	stop   context.CancelFunc
	live   map[*served]struct{} // tunnels that are open; there are two while one is made anew
	since  time.Time            // of being connected, or not
	failed int                  // tries in a row
	note   string
}

// NewNode makes one that knows no servers.
func NewNode(o NodeOptions) *Node {
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			return (&net.Dialer{Timeout: dialLimit}).DialContext(ctx, "tcp", to.String())
		}
	}
	return &Node{o: o, links: map[string]*link{}, wake: make(chan struct{}, 1)}
}

// Set says which servers there are. The fallback, "" for none, is an address that leads to one of them: it is used while
// none is known, or one cannot be reached by its own address.
func (n *Node) Set(servers []string, fallback string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.servers, n.fallback = slices.Clone(servers), fallback
	n.again()
}

// again makes Run look at what is to be. The caller holds mu.
func (n *Node) again() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// ServerState is a server as the tunnel to it is.
type ServerState struct {
	Server    string
	Connected bool
	Since     time.Time // of being so
	Note      string    // why it is not connected
	Streams   int
}

// Servers are those a tunnel is kept to, by address.
func (n *Node) Servers() []ServerState {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]ServerState, 0, len(n.links))
	for _, l := range n.links {
		s := ServerState{Server: l.server, Connected: len(l.live) > 0, Since: l.since, Note: l.note}
		for e := range l.live {
			s.Streams += e.open()
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b ServerState) int { return strings.Compare(a.Server, b.Server) })
	return out
}

// want are the servers to keep a tunnel to. The caller holds mu.
func (n *Node) want() []string {
	out := slices.Clone(n.servers)
	if n.fallback == "" || slices.Contains(out, n.fallback) {
		return out
	}
	lacking := len(out) == 0 || slices.ContainsFunc(out, func(s string) bool {
		l := n.links[s]
		return l != nil && len(l.live) == 0 && l.failed >= strikes
	})
	if lacking {
		out = append(out, n.fallback)
	}
	return out
}

// Run keeps the tunnels until ctx ends.
func (n *Node) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		n.mu.Lock()
		want := n.want()
		for server, l := range n.links {
			if !slices.Contains(want, server) {
				l.stop()
				delete(n.links, server)
			}
		}
		for _, server := range want {
			if n.links[server] != nil {
				continue
			}
			lctx, stop := context.WithCancel(ctx)
			l := &link{server: server, stop: stop, live: map[*served]struct{}{}, since: time.Now(), note: "it has not been tried yet"}
			n.links[server] = l
			wg.Go(func() {
				defer stop()
				n.keep(ctx, lctx, l)
			})
		}
		n.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-n.wake:
		}
	}
}

// keep keeps a tunnel to one server until lctx ends; what goes through it then may come to its end, until ctx ends.
func (n *Node) keep(ctx, lctx context.Context, l *link) {
	var (
		before *served // which is made anew
		pause  = firstPause
		all    sync.WaitGroup
	)
	defer all.Wait()
	for lctx.Err() == nil {
		began := time.Now()
		s, renew, err := n.connect(ctx, lctx, l.server)
		if err != nil {
			n.failed(l, err)
		} else {
			n.connected(l, s)
			if before != nil {
				before.retire()
				before = nil
			}
			all.Go(func() {
				s.run(ctx)
				n.gone(l, s)
			})
			due := time.NewTimer(renew)
			select {
			case <-s.done:
			case <-due.C:
				before = s
			case <-lctx.Done():
				s.retire()
			}
			due.Stop()
			if before != nil {
				continue
			}
		}
		if time.Since(began) >= shortest {
			pause = firstPause
		}
		select {
		case <-lctx.Done():
		case <-time.After(pause/2 + rand.N(pause/2)): // those of a site come back one by one
		}
		pause = min(2*pause, longestPause)
	}
	if before != nil {
		before.retire()
	}
}

func (n *Node) connected(l *link, s *served) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(l.live) == 0 {
		l.since = time.Now()
		n.o.Log.Info("a server can reach this node", "server", l.server)
	}
	l.live[s] = struct{}{}
	l.failed, l.note = 0, ""
	n.again()
}

func (n *Node) failed(l *link, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if l.failed++; l.failed == 1 {
		n.o.Log.Warn("a server cannot reach this node", "server", l.server, "err", err)
	}
	l.note = err.Error()
	if len(l.live) == 0 {
		n.again()
	}
}

func (n *Node) gone(l *link, s *served) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if delete(l.live, s); len(l.live) == 0 {
		l.since, l.note = time.Now(), "the connection has ended"
		n.o.Log.Info("a server's way to this node has ended", "server", l.server)
	}
	n.again()
}

// connect opens a tunnel, and tells after which time it has to be made anew.
func (n *Node) connect(ctx, lctx context.Context, server string) (*served, time.Duration, error) {
	cctx, cancel := context.WithTimeoutCause(lctx, handshakeLimit, fmt.Errorf("no answer within %s", handshakeLimit))
	defer cancel()
	c, err := n.o.Connect(cctx, server)
	if err != nil {
		if cctx.Err() != nil {
			err = context.Cause(cctx)
		}
		return nil, 0, err
	}
	given := context.AfterFunc(cctx, func() { _ = c.Close() })
	e, err := upgrade(c.Conn)
	if !given() && err == nil {
		err = context.Cause(cctx)
	}
	if err != nil {
		_ = c.Close()
		if cctx.Err() != nil {
			err = context.Cause(cctx)
		}
		return nil, 0, err
	}
	return &served{node: n, conn: e, done: make(chan struct{}), retired: make(chan struct{})}, renewal(c.NotBefore, c.NotAfter, time.Now()), nil
}

// renewal is when a tunnel is made anew, with the certificate there is then: it ends with the one it was made with.
func renewal(notBefore, notAfter, now time.Time) time.Duration {
	due := notBefore.Add(time.Duration(renewAt * float64(notAfter.Sub(notBefore)))).Sub(now)
	if due <= 0 { // it should have been renewed by now
		return renewAgain
	}
	return due
}

// upgrade begins a tunnel on a connection.
func upgrade(c net.Conn) (*ended, error) {
	if err := c.SetDeadline(time.Now().Add(handshakeLimit)); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(c, "GET "+Path+" HTTP/1.1\r\nHost: kubernetes\r\nConnection: Upgrade\r\nUpgrade: "+protocol+"\r\n\r\n"); err != nil {
		return nil, err
	}
	bounded := &io.LimitedReader{R: c, N: 64 << 10}
	r := bufio.NewReader(bounded)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodGet})
	if err != nil {
		return nil, fmt.Errorf("its answer cannot be read: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols || !strings.EqualFold(resp.Header.Get("Upgrade"), protocol) {
		return nil, fmt.Errorf("it opens no tunnel: it answers %s %s", resp.Status, message(resp.Body))
	}
	bounded.N = math.MaxInt64
	return &ended{Conn: c, r: r, done: make(chan struct{})}, c.SetDeadline(time.Time{})
}

// served is one tunnel.
type served struct {
	node    *Node
	conn    *ended
	done    chan struct{} // closed when it has ended
	once    sync.Once
	retired chan struct{} // closed when nothing new is to come through it

	handlers sync.WaitGroup
	mu       sync.Mutex // guards what follows
	over     bool
	streams  int
}

// retire lets what goes through the tunnel come to its end, and then ends it.
func (s *served) retire() { s.once.Do(func() { close(s.retired) }) }

func (s *served) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams
}

// run answers what comes through the tunnel until it ends, or ctx.
func (s *served) run(ctx context.Context) {
	defer close(s.done)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h := &http.Server{
		ErrorLog: discard(), MaxHeaderBytes: 4 << 10,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: nodeMaxStreams, MaxReceiveBufferPerStream: streamWindow, MaxReceiveBufferPerConnection: connWindow, MaxReadFrameSize: frameSize,
			SendPingTimeout: pingAfter, PingTimeout: pingLimit, WriteByteTimeout: pingAfter + pingLimit,
		},
	}
	h2 := &http2.Server{}
	if err := http2.ConfigureServer(h, h2); err != nil {
		s.node.o.Log.Error("a tunnel cannot be used", "err", err)
		_ = s.conn.Close()
		return
	}
	ended := context.AfterFunc(ctx, func() { _ = s.conn.Close() })
	defer ended()
	var retiring sync.WaitGroup
	retiring.Go(func() {
		select {
		case <-s.retired:
			_ = h.Shutdown(ctx) // it has no listeners; its HTTP/2 connections take leave
		case <-ctx.Done():
		}
	})
	h2.ServeConn(s.conn, &http2.ServeConnOpts{Context: ctx, BaseConfig: h, Handler: http.HandlerFunc(s.answer)})
	cancel()
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.handlers.Wait()
	retiring.Wait()
}

// begin counts a stream in, unless the tunnel has ended.
func (s *served) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return false
	}
	s.streams++
	s.handlers.Add(1)
	return true
}

func (s *served) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams--
	s.handlers.Done()
}

// answer connects to what a server asks for.
func (s *served) answer(w http.ResponseWriter, r *http.Request) {
	if !s.begin() {
		panic(http.ErrAbortHandler)
	}
	defer s.end()
	if r.Method != http.MethodConnect {
		http.Error(w, "only CONNECT is answered here", http.StatusMethodNotAllowed)
		return
	}
	ctx, o := r.Context(), s.node.o
	to, err := target(r.Host)
	if err == nil {
		err = o.Allow(ctx, to)
	}
	if err != nil {
		o.Log.Warn("a server asked for what it does not get", "target", shorten(r.Host), "err", err)
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	dctx, cancel := context.WithTimeoutCause(ctx, dialLimit, fmt.Errorf("no answer within %s", dialLimit))
	defer cancel()
	c, err := o.Dial(dctx, to)
	if err != nil {
		var op *net.OpError
		switch {
		case dctx.Err() != nil:
			err = context.Cause(dctx)
		case errors.As(err, &op):
			err = op.Err
		}
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer c.Close()
	ended := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer ended()
	w.WriteHeader(http.StatusOK)
	out := flusher{w, http.NewResponseController(w)}
	if err := out.Flush(); err != nil {
		return
	}
	// It ends when this function has returned: HTTP/2 ends the body then. So the tunnel waits for it.
	s.handlers.Add(1)
	go func() {
		defer s.handlers.Done()
		err := s.node.buffers.copy(c, r.Body)
		if half, ok := c.(interface{ CloseWrite() error }); ok && err == nil {
			err = half.CloseWrite()
		}
		if err != nil {
			_ = c.Close()
		}
	}()
	if err := s.node.buffers.copy(out, c); err != nil {
		panic(http.ErrAbortHandler) // the server is told that this is not the end
	}
}

// flusher sends at once what is written.
type flusher struct {
	io.Writer
	*http.ResponseController
}

func (f flusher) Write(b []byte) (int, error) {
	n, err := f.Writer.Write(b)
	if err == nil {
		err = f.Flush()
	}
	return n, err
}

// shorten keeps what somebody sends from filling logs.
func shorten(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
