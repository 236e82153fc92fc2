package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"k1s.io/k1s/internal/wait"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// rig is a server and a node with a tunnel between them.
type rig struct {
	server *Server
	node   *Node
	addr   string // of the server
	allow  func(context.Context, netip.AddrPort) error
	near   func(net.Conn) // answers instead of a socket, where it is set
	stop   func()
}

const theNode = "agent-0"

func newServer(t *testing.T) (*Server, *httptest.Server) {
	t.Helper()
	s, err := NewServer(ServerOptions{Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.Accept(w, r, theNode, time.Now().Add(time.Hour))
	}))
	t.Cleanup(func() {
		s.Close()
		h.Close()
	})
	return s, h
}

func plain(ctx context.Context, server string) (Connection, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", server)
	return Connection{c, time.Now(), time.Now().Add(time.Hour)}, err
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{}
	var h *httptest.Server
	r.server, h = newServer(t)
	r.addr = h.Listener.Addr().String()
	r.node = NewNode(NodeOptions{Log: quiet(), Connect: plain, Allow: func(ctx context.Context, to netip.AddrPort) error {
		if r.allow != nil {
			return r.allow(ctx, to)
		}
		return nil
	}, Dial: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		if r.near == nil {
			return (&net.Dialer{}).DialContext(ctx, "tcp", to.String())
		}
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			r.near(theirs)
		}()
		return ours, nil
	}})
	r.node.Set([]string{r.addr}, "")
	r.stop = runs(t, r.node)
	r.open(t)
	return r
}

// runs runs a node until the test ends, or what it returns is called.
func runs(t *testing.T, n *Node) func() {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.Run(ctx)
	}()
	stop := func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

func until(t *testing.T, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := wait.Until(ctx, 5*time.Millisecond, what, func(context.Context) error { return f() }); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) open(t *testing.T) {
	t.Helper()
	until(t, "the tunnel", func() error {
		if !r.server.Has(theNode) {
			return ErrNoTunnel
		}
		return nil
	})
}

func (r *rig) dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := r.server.Dial(t.Context(), theNode, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// serves runs fn for every connection to an address of its own.
func serves(t *testing.T, fn func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]struct{}{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = struct{}{}
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				fn(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

func TestAConnectionThroughTheTunnelIsLikeAnyOther(t *testing.T) {
	r := newRig(t)
	c := r.dial(t, serves(t, func(c net.Conn) {
		all, err := io.ReadAll(c) // until the other side is half closed
		if err == nil {
			fmt.Fprintf(c, "got %s", all)
		}
	}))
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("reading after the deadline: %v", err)
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != "got hello" {
		t.Errorf("%q, %v", b, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("a closed connection is written to")
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a closed connection is read from")
	}
}

func TestWhatIsWrittenBeforeClosingArrives(t *testing.T) {
	r := newRig(t)
	got := make(chan int64, 1)
	c := r.dial(t, serves(t, func(c net.Conn) {
		time.Sleep(20 * time.Millisecond) // it is slow
		n, _ := io.Copy(io.Discard, c)
		got <- n
	}))
	const size = 400 << 10 // less than a window: Write does not wait for the target
	if _, err := c.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if n := <-got; n != size {
		t.Errorf("%d bytes of %d arrived", n, size)
	}
}

func TestManyConnectionsCarryWhatTheyAreGiven(t *testing.T) {
	r := newRig(t)
	addr := serves(t, echo)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			c, err := r.server.Dial(t.Context(), theNode, addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			data := make([]byte, 2<<20+i)
			src := rand.NewChaCha8([32]byte{byte(i)})
			_, _ = src.Read(data)
			wg.Go(func() {
				for rest := data; len(rest) > 0; {
					n := min(len(rest), 1+rand.IntN(100_000))
					if _, err := c.Write(rest[:n]); err != nil {
						t.Error(err)
						return
					}
					rest = rest[n:]
				}
				if err := c.(*stream).CloseWrite(); err != nil {
					t.Error(err)
				}
			})
			b, err := io.ReadAll(c)
			if err != nil || sha256.Sum256(b) != sha256.Sum256(data) {
				t.Errorf("%d: %d bytes of %d came back, or others: %v", i, len(b), len(data), err)
			}
		})
	}
	wg.Wait()
}

func TestAReaderThatStallsHoldsUpNobodyAndIsNotBufferedFor(t *testing.T) {
	r := newRig(t)
	var sent atomic.Int64
	endless := serves(t, func(c net.Conn) {
		b := make([]byte, 64<<10)
		for {
			n, err := c.Write(b)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	addr := serves(t, echo)
	const stalled = 8
	for range stalled {
		_ = r.dial(t, endless) // and is never read
	}
	swallow := make(chan struct{})
	deaf := r.dial(t, serves(t, func(net.Conn) { <-swallow }))
	defer close(swallow)
	blocked := make(chan struct{})
	go func() { // the other direction stalls too
		defer close(blocked)
		_, _ = deaf.Write(make([]byte, 64<<20))
	}()
	// It stops when the windows and the sockets' buffers are full.
	var before int64 = -1
	until(t, "the senders to be held up", func() error {
		now := sent.Load()
		if now != before || now == 0 {
			before = now
			time.Sleep(50 * time.Millisecond)
			return fmt.Errorf("%d bytes are sent", now)
		}
		return nil
	})
	if limit := int64(stalled * (streamWindow + 12<<20)); before > limit { // Linux lets a loopback connection hold up to 10 MB
		t.Errorf("%d bytes are under way, want at most %d", before, limit)
	}
	for range 50 {
		c := r.dial(t, addr)
		if _, err := io.WriteString(c, "ping\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "ping\n" {
			t.Fatalf("%q, %v", line, err)
		}
		_ = c.Close()
	}
	if err := deaf.SetWriteDeadline(time.Now()); err != nil {
		t.Error(err)
	}
	<-blocked // a deadline ends a write that is stalled
}

func TestAFloodOfConnections(t *testing.T) {
	r := newRig(t)
	r.near = func(c net.Conn) {
		if line, err := bufio.NewReader(c).ReadString('\n'); err == nil {
			_, _ = io.WriteString(c, line)
		}
	}
	ask := func(i int) error {
		c, err := r.server.Dial(t.Context(), theNode, "10.42.1.5:80")
		if err != nil {
			return err
		}
		defer c.Close()
		want := fmt.Sprintf("%d\n", i)
		if _, err := io.WriteString(c, want); err != nil {
			return err
		}
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != want {
			return fmt.Errorf("%q, %w", line, err)
		}
		return nil
	}
	if err := ask(0); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			for i := next.Add(1); i <= 10_000; i = next.Add(1) {
				if err := ask(int(i)); err != nil {
					t.Error(i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	until(t, "all streams to be gone", func() error {
		if n := r.server.Nodes()[0].Streams; n > 0 {
			return fmt.Errorf("%d are there", n)
		}
		if n := r.node.Servers()[0].Streams; n > 0 {
			return fmt.Errorf("%d are there on the node", n)
		}
		if n := runtime.NumGoroutine(); n > before {
			return fmt.Errorf("%d goroutines are there, %d were", n, before)
		}
		return nil
	})
}

func TestConnectionsAreBounded(t *testing.T) {
	r := newRig(t)
	addr := serves(t, echo)
	var all []net.Conn
	for range maxStreams {
		all = append(all, r.dial(t, addr))
	}
	if n := r.server.Nodes()[0].Streams; n != maxStreams {
		t.Errorf("%d streams, want %d", n, maxStreams)
	}
	if _, err := r.server.Dial(t.Context(), theNode, addr); err == nil || !strings.Contains(err.Error(), "as many as can") {
		t.Errorf("one more: %v", err)
	}
	for _, c := range all {
		_ = c.Close()
	}
	until(t, "another one", func() error {
		c, err := r.server.Dial(t.Context(), theNode, addr)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
}

func TestWhatIsNotTheNodesIsRefused(t *testing.T) {
	r := newRig(t)
	addr := serves(t, func(net.Conn) { t.Error("somebody connected") })
	r.allow = func(_ context.Context, to netip.AddrPort) error {
		return fmt.Errorf("%s is not mine\r\nX-Other: line", to)
	}
	for _, to := range []string{addr, "localhost:80", "169.254.169.254:80", "kubernetes:443", "10.0.0.1:99999"} {
		_, err := r.server.Dial(t.Context(), theNode, to)
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Node != theNode || strings.ContainsAny(refused.Reason, "\r\n") {
			t.Errorf("%s: %v", to, err)
		}
	}
	if n := r.server.Nodes()[0].Streams; n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

func TestATargetThatDoesNotAnswerIsTold(t *testing.T) {
	r := newRig(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	_, err = r.server.Dial(t.Context(), theNode, addr)
	var target *TargetError
	if !errors.As(err, &target) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
	if _, err := r.server.Dial(t.Context(), "agent-9", addr); !errors.Is(err, ErrNoTunnel) {
		t.Errorf("a node without a tunnel: %v", err)
	}
	// Whoever gives up waiting takes nothing with him.
	r.allow = func(ctx context.Context, _ netip.AddrPort) error {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errors.New("enough"))
	defer cancel()
	if _, err := r.server.Dial(ctx, theNode, addr); err == nil || err.Error() != "enough" {
		t.Errorf("%v", err)
	}
	until(t, "the stream to be gone", func() error {
		if n := r.node.Servers()[0].Streams; n > 0 {
			return fmt.Errorf("%d are there", n)
		}
		return nil
	})
}

func TestATargetThatBreaksOffIsNoEnd(t *testing.T) {
	r := newRig(t)
	c := r.dial(t, serves(t, func(c net.Conn) {
		_, _ = io.WriteString(c, "half of")
		_, _ = c.Read(make([]byte, 1)) // until the half has arrived
		_ = c.(*net.TCPConn).SetLinger(0)
	}))
	b := make([]byte, 7)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(b[:1]); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(b); err == nil || err == io.EOF {
		t.Errorf("reading on: %v", err)
	}
}

func TestATunnelThatEndsIsMadeAnew(t *testing.T) {
	r := newRig(t)
	addr := serves(t, echo)
	for range 3 {
		c := r.dial(t, addr)
		since := r.server.Nodes()[0].Since
		r.server.mu.Lock()
		_ = r.server.nodes[theNode][0].conn.Close()
		r.server.mu.Unlock()
		if _, err := io.ReadAll(c); err == nil {
			t.Error("what went through the tunnel ended as if that were all")
		}
		until(t, "another tunnel", func() error {
			if n := r.server.Nodes(); len(n) != 1 || n[0].Since.Equal(since) {
				return ErrNoTunnel
			}
			return nil
		})
	}
	c := r.dial(t, addr)
	r.stop()
	if _, err := io.ReadAll(c); err == nil {
		t.Error("what went through the tunnel ended as if that were all")
	}
	until(t, "no tunnel", func() error {
		if r.server.Any() {
			return errors.New("there is one")
		}
		return nil
	})
}

func TestANodeKeepsATunnelToEveryServerThereIs(t *testing.T) {
	a, ha := newServer(t)
	b, hb := newServer(t)
	n := NewNode(NodeOptions{Log: quiet(), Connect: plain, Allow: func(context.Context, netip.AddrPort) error { return nil }})
	runs(t, n)
	addrA, addrB := ha.Listener.Addr().String(), hb.Listener.Addr().String()
	have := func(wantA, wantB bool) {
		t.Helper()
		until(t, fmt.Sprintf("tunnels %v, %v", wantA, wantB), func() error {
			if a.Any() != wantA || b.Any() != wantB {
				return fmt.Errorf("there are %v, %v", a.Any(), b.Any())
			}
			return nil
		})
	}
	n.Set(nil, addrA) // it has joined there, and knows no more
	have(true, false)
	n.Set([]string{addrA, addrB}, addrA)
	have(true, true)
	n.Set([]string{addrB}, addrA)
	have(false, true)
	// A server that cannot be reached by its own address may be behind the one the node joined at.
	n.Set([]string{addrB, "127.0.0.1:1"}, addrA)
	have(true, true)
	states := n.Servers()
	if len(states) != 3 {
		t.Fatalf("%+v", states)
	}
	for _, s := range states {
		if up := s.Server != "127.0.0.1:1"; s.Connected != up || (s.Note == "") != up {
			t.Errorf("%+v", s)
		}
	}
	n.Set([]string{addrB}, addrA)
	have(false, true)
	addr := serves(t, echo)
	if c, err := b.Dial(t.Context(), theNode, addr); err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
}

func TestANodeHasFewTunnelsToAServer(t *testing.T) {
	s, h := newServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	n := NewNode(NodeOptions{Log: quiet()})
	var all []*served
	for range maxTunnels + 3 {
		c, err := net.Dial("tcp", h.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		e, err := upgrade(c)
		if err != nil {
			t.Fatal(err)
		}
		one := &served{node: n, conn: e, done: make(chan struct{}), retired: make(chan struct{})}
		wg.Go(func() { one.run(ctx) })
		all = append(all, one)
		until(t, "the tunnel to be counted", func() error {
			if n := s.Nodes(); len(n) != 1 || n[0].From != c.LocalAddr().String() {
				return fmt.Errorf("%+v", n)
			}
			return nil
		})
	}
	for _, oldest := range all[:3] {
		<-oldest.done
	}
	until(t, "the oldest to be gone", func() error {
		if n := s.Nodes()[0].Tunnels; n != maxTunnels {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
}

func TestAServerThatStopsEndsItsTunnels(t *testing.T) {
	r := newRig(t)
	c := r.dial(t, serves(t, echo))
	// One that nobody reads from, so that what arrives waits.
	_ = r.dial(t, serves(t, func(c net.Conn) { _, _ = io.Copy(c, zeros{}) }))
	time.Sleep(20 * time.Millisecond)
	r.server.Close()
	if _, err := io.ReadAll(c); err == nil {
		t.Error("what went through the tunnel ended as if that were all")
	}
	if _, err := r.server.Dial(t.Context(), theNode, "127.0.0.1:1"); err == nil {
		t.Error("it still dials")
	}
}

func TestOnlyARequestForATunnelBecomesOne(t *testing.T) {
	s, h := newServer(t)
	addr := h.Listener.Addr().String()
	for name, tc := range map[string]struct{ request, answer string }{
		"another method":   {"POST " + Path + " HTTP/1.1\r\nHost: k\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\nContent-Length: 0\r\n\r\n", "426"},
		"no upgrade":       {"GET " + Path + " HTTP/1.1\r\nHost: k\r\n\r\n", "426"},
		"another protocol": {"GET " + Path + " HTTP/1.1\r\nHost: k\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "426"},
		"goes on too soon": {"GET " + Path + " HTTP/1.1\r\nHost: k\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\nmore", ""},
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, tc.request); err != nil {
			t.Fatal(err)
		}
		first, _ := bufio.NewReader(c).ReadString('\n')
		if !strings.Contains(first, tc.answer) || strings.Contains(first, "101") {
			t.Errorf("%s: %q", name, first)
		}
		_ = c.Close()
	}
	if s.Any() {
		t.Error("there is a tunnel")
	}
	for _, junk := range [][]byte{[]byte("SSH-2.0-OpenSSH\r\n"), make([]byte, 4096), bytes.Repeat([]byte{0xff}, 4096), {0, 0, 0, 4, 0, 0, 0, 0, 1}} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		e, err := upgrade(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Write(junk); err != nil {
			t.Fatal(err)
		}
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, e) // until the server ends it
		_ = c.Close()
		until(t, "no tunnel", func() error {
			if s.Any() {
				return errors.New("there is one")
			}
			return nil
		})
	}
}

func TestWhatIsNoServerOpensNoTunnel(t *testing.T) {
	for name, answer := range map[string]string{
		"not found":      "HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\n\r\nno such",
		"ok":             "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"another":        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"no HTTP":        "SSH-2.0-OpenSSH\r\n",
		"nothing":        "",
		"without end":    "HTTP/1.1 101 Switching Protocols\r\nX-A: " + strings.Repeat("a", 128<<10) + "\r\n\r\n",
		"junk after it":  "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n" + strings.Repeat("junk", 4096),
		"a GET after it": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			addr := serves(t, func(c net.Conn) {
				if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
					return // the test is over
				}
				asked.Add(1)
				_, _ = io.WriteString(c, answer)
			})
			n := NewNode(NodeOptions{Log: quiet(), Connect: plain, Allow: func(context.Context, netip.AddrPort) error {
				t.Error("something was asked for")
				return nil
			}})
			n.Set([]string{addr}, "")
			runs(t, n)
			until(t, "it to be tried again", func() error {
				if asked.Load() < 2 {
					return errors.New("once")
				}
				return nil
			})
		})
	}
}

// TestANodeAnswersConnectOnly asks a node as a server would not.
func TestANodeAnswersConnectOnly(t *testing.T) {
	asked := make(chan string, 1)
	addr := serves(t, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return // the test is over
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+protocol+"\r\n\r\n")
		cc, err := (&http2.Transport{AllowHTTP: true}).NewClientConn(c)
		if err != nil {
			return
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://10.0.0.1:10250/pods", nil)
		if err != nil {
			t.Error(err)
			return
		}
		resp, err := cc.RoundTrip(req)
		if err != nil {
			return
		}
		_ = resp.Body.Close()
		select {
		case asked <- resp.Status:
		default:
		}
	})
	n := NewNode(NodeOptions{Log: quiet(), Connect: plain, Allow: func(context.Context, netip.AddrPort) error {
		t.Error("something was asked for")
		return nil
	}})
	n.Set([]string{addr}, "")
	runs(t, n)
	if status := <-asked; !strings.HasPrefix(status, "405") {
		t.Errorf("got %s", status)
	}
}

func TestTunnelsAreRenewedBeforeTheirCertificatesEnd(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		before, after time.Duration
		want          time.Duration
	}{
		"new":                   {0, 30 * 24 * time.Hour, 24 * 24 * time.Hour},
		"old":                   {-20 * 24 * time.Hour, 10 * 24 * time.Hour, 4 * 24 * time.Hour},
		"should be another one": {-29 * 24 * time.Hour, 24 * time.Hour, renewAgain},
		"has ended":             {-31 * 24 * time.Hour, -24 * time.Hour, renewAgain},
	} {
		if got := renewal(now.Add(tc.before), now.Add(tc.after), now); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}
