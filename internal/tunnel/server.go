package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// Server is a server's end of the tunnels of its nodes.
type Server struct {
	o         ServerOptions
	transport *http2.Transport
	ctx       context.Context // ends with Close
	cancel    context.CancelFunc
	streams   sync.WaitGroup
	buffers   buffers

	mu     sync.Mutex // guards what follows
	nodes  map[string][]*session
	closed bool
}

// ServerOptions are what a Server is made with.
type ServerOptions struct {
	// Changed is called when a node got its first tunnel or lost its last one; it must not block.
	Changed func()
	Log     *slog.Logger
}

// session is one tunnel.
type session struct {
	node   string
	remote string
	since  time.Time
	conn   *ended
	cc     *http2.ClientConn
	slots  chan struct{} // a place for every stream
}

// NewServer makes one without tunnels.
func NewServer(o ServerOptions) (*Server, error) {
	if o.Changed == nil {
		o.Changed = func() {}
	}
	// Its settings are those of a net/http Transport that is never used otherwise.
	t, err := http2.ConfigureTransports(&http.Transport{
		DisableCompression: true,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream: streamWindow, MaxReceiveBufferPerConnection: connWindow, MaxReadFrameSize: frameSize,
			SendPingTimeout: pingAfter, PingTimeout: pingLimit, WriteByteTimeout: pingAfter + pingLimit,
		},
		MaxResponseHeaderBytes: 4 << 10,
	})
	if err != nil {
		return nil, fmt.Errorf("preparing tunnels: %w", err)
	}
	s := &Server{o: o, transport: t, nodes: map[string][]*session{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Close ends all tunnels, and what goes through them.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	var all []*session
	for _, sessions := range s.nodes {
		all = append(all, sessions...)
	}
	s.mu.Unlock()
	s.cancel()
	for _, e := range all {
		_ = e.conn.Close()
	}
	s.streams.Wait()
}

// Accept makes a tunnel of a request of a node at Path, and returns when the tunnel has ended. The caller has made sure
// that it is the node, which it may be until then.
func (s *Server) Accept(w http.ResponseWriter, r *http.Request, node string, until time.Time) {
	if r.Method != http.MethodGet || r.ProtoMajor != 1 || !strings.EqualFold(r.Header.Get("Upgrade"), protocol) {
		w.Header().Set("Upgrade", protocol)
		w.Header().Set("Connection", "Upgrade")
		http.Error(w, "this is where nodes open tunnels, with "+protocol, http.StatusUpgradeRequired)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "tunnels cannot be opened here", http.StatusInternalServerError)
		return
	}
	if err := s.serve(conn, buffered.Reader.Buffered(), node, until); err != nil {
		s.o.Log.Warn("no tunnel to a node", "node", node, "from", conn.RemoteAddr(), "err", err)
	}
}

func (s *Server) serve(raw net.Conn, early int, node string, until time.Time) error {
	e := &session{node: node, remote: raw.RemoteAddr().String(), since: time.Now(), slots: make(chan struct{}, maxStreams)}
	e.conn = &ended{Conn: raw, r: raw, done: make(chan struct{})}
	defer e.conn.Close()
	if early > 0 {
		return errors.New("it went on before it was answered")
	}
	err := raw.SetDeadline(time.Now().Add(handshakeLimit))
	if err == nil {
		_, err = io.WriteString(raw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+protocol+"\r\n\r\n")
	}
	if err == nil {
		err = raw.SetDeadline(time.Time{})
	}
	if err == nil {
		e.cc, err = s.transport.NewClientConn(e.conn)
	}
	if err != nil {
		return err
	}
	first, err := s.add(e)
	if err != nil {
		return err
	}
	if first {
		s.o.Log.Info("tunnel to a node is open", "node", node, "from", e.remote)
		s.o.Changed()
	}
	expired := time.NewTimer(time.Until(until))
	defer expired.Stop()
	why := "the node ended it"
	select {
	case <-e.conn.done:
	case <-s.ctx.Done():
		why = "the server stops"
	case <-expired.C:
		why = "the node's certificate has ended"
	}
	_ = e.cc.Close()
	if last := s.remove(e); last {
		s.o.Log.Info("tunnel to a node has ended", "node", node, "after", time.Since(e.since).Round(time.Second), "why", why)
		s.o.Changed()
	}
	return nil
}

// add takes a tunnel into use, and ends the oldest one where there are too many.
func (s *Server) add(e *session) (first bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false, errors.New("the server stops")
	}
	all := s.nodes[e.node]
	if len(all) >= maxTunnels {
		_ = all[0].conn.Close() // it removes itself
	}
	s.nodes[e.node] = append(slices.Clone(all), e)
	return len(all) == 0, nil
}

func (s *Server) remove(e *session) (last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(s.nodes[e.node]), func(o *session) bool { return o == e })
	if len(left) == 0 {
		delete(s.nodes, e.node)
		return true
	}
	s.nodes[e.node] = left
	return false
}

// NodeState is a node as its tunnels are.
type NodeState struct {
	Name    string
	From    string // of the newest tunnel: the other end's address
	Since   time.Time
	Tunnels int
	Streams int
}

// Nodes are those with a tunnel, by name.
func (s *Server) Nodes() []NodeState {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]NodeState, 0, len(s.nodes))
	for name, sessions := range s.nodes {
		n := NodeState{Name: name, Tunnels: len(sessions)}
		for _, e := range sessions {
			n.From, n.Since, n.Streams = e.remote, e.since, n.Streams+len(e.slots)
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b NodeState) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Any tells whether there is a tunnel at all.
func (s *Server) Any() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.nodes) > 0
}

// Has tells whether a node has a tunnel.
func (s *Server) Has(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.nodes[node]) > 0
}

// pick takes a place in the newest tunnel of a node that has one.
func (s *Server) pick(node string, not *session) (*session, error) {
	s.mu.Lock()
	all := s.nodes[node]
	s.mu.Unlock()
	err := ErrNoTunnel
	for _, e := range slices.Backward(all) {
		if e == not || !e.cc.CanTakeNewRequest() {
			continue
		}
		select {
		case e.slots <- struct{}{}:
			return e, nil
		default:
			err = fmt.Errorf("%d connections go through the tunnel to node %s: that is as many as can", maxStreams, node)
		}
	}
	return nil, err
}

// Dial asks a node for a connection to an address and port. It bears deadlines, and half of it can be closed (CloseWrite). Errors are
// ErrNoTunnel, *RefusedError, *TargetError, or what happened to the tunnel.
func (s *Server) Dial(ctx context.Context, node, addr string) (net.Conn, error) {
	e, err := s.pick(node, nil)
	if err != nil {
		return nil, err
	}
	c, err := s.open(ctx, e, addr)
	var refused *RefusedError
	var unreachable *TargetError
	if err == nil || ctx.Err() != nil || errors.As(err, &refused) || errors.As(err, &unreachable) {
		return c, err
	}
	// The tunnel is not what it was; another one may have taken its place.
	other, none := s.pick(node, e)
	if none != nil {
		return nil, err
	}
	return s.open(ctx, other, addr)
}

// errOpen is why a stream is given up that a node does not open.
var errOpen = fmt.Errorf("the node does not answer within %s", openLimit)

func (s *Server) open(ctx context.Context, e *session, addr string) (net.Conn, error) {
	// The stream lives on after ctx.
	sctx, cancel := context.WithCancelCause(s.ctx)
	given := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	late := time.AfterFunc(openLimit, func() { cancel(errOpen) })
	c := newStream(e.conn.LocalAddr(), addr, cancel)
	req := (&http.Request{Method: http.MethodConnect, URL: &url.URL{Host: addr}, Host: addr, Header: http.Header{}, Body: c.up.body()}).WithContext(sctx)
	resp, err := e.cc.RoundTrip(req)
	kept := given()
	kept = late.Stop() && kept
	if err == nil && !kept { // given up in the last moment
		_ = resp.Body.Close()
		err = context.Cause(sctx)
	}
	if err == nil && resp.StatusCode != http.StatusOK {
		err = refusal(e.node, addr, resp)
		_ = resp.Body.Close()
	}
	if err != nil {
		if cause := context.Cause(sctx); cause != nil {
			err = cause
		}
		c.abort()
		cancel(nil)
		<-e.slots
		return nil, err
	}
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.streams.Add(1)
	}
	s.mu.Unlock()
	if closed {
		_ = resp.Body.Close()
		c.abort()
		cancel(nil)
		<-e.slots
		return nil, errors.New("the server stops")
	}
	context.AfterFunc(sctx, c.abort) // what waits to be read, too
	go func() {
		defer s.streams.Done()
		c.receive(resp.Body, &s.buffers)
		cancel(nil)
		<-e.slots
	}()
	return c, nil
}

func refusal(node, addr string, resp *http.Response) error {
	text := message(resp.Body)
	switch resp.StatusCode {
	case http.StatusForbidden:
		return &RefusedError{node, addr, text}
	case http.StatusBadGateway:
		return &TargetError{node, addr, text}
	}
	return fmt.Errorf("node %s answers %s %s", node, resp.Status, text)
}

// discard is for what net/http would say about connections that end, which they do.
func discard() *log.Logger { return log.New(io.Discard, "", 0) }
