package netns

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k1s.io/k1s/internal/cluster"
)

// plain dials on this machine itself: the forwarder does not care where its sockets are.
func plain(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, to.String())
}

func testForwarder(t *testing.T, dial dialFunc) *forwarder {
	before := runtime.NumGoroutine()
	f := newForwarder(dial, slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		f.close()
		for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				buf := make([]byte, 1<<16)
				t.Errorf("goroutines are left:\n%s", buf[:runtime.Stack(buf, true)])
				return
			}
		}
	})
	return f
}

func local(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// backend accepts connections and hands each to serve, until the test ends.
func backend(t *testing.T, serve func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func dial(t *testing.T, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp4", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

func TestTheEndOfOneDirectionIsPassedOnByItself(t *testing.T) {
	// The backend answers only when it has seen the end of the request, as `kubectl exec` with input does.
	to := backend(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		fmt.Fprintf(c, "got %d", len(b))
	})
	f := testForwarder(t, plain)
	at := local(t)
	if err := f.set([]forward{{Proto: "tcp", Listen: at, Targets: []netip.AddrPort{to}}}); err != nil {
		t.Fatal(err)
	}
	c := dial(t, at)
	sent := bytes.Repeat([]byte("x"), 3<<20)
	if _, err := c.Write(sent); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if want := fmt.Sprintf("got %d", len(sent)); err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestATargetThatDoesNotAnswerIsSkipped(t *testing.T) {
	to := backend(t, func(c *net.TCPConn) { fmt.Fprint(c, "hello") })
	dead := local(t)
	f := testForwarder(t, plain)
	at := local(t)
	if err := f.set([]forward{{Proto: "tcp", Listen: at, Targets: []netip.AddrPort{dead, to}}}); err != nil {
		t.Fatal(err)
	}
	for range 4 { // every start of the turn
		if b, err := io.ReadAll(dial(t, at)); err != nil || string(b) != "hello" {
			t.Errorf("got %q, %v", b, err)
		}
	}
}

// A server that is cut off from the others takes connections, and says that it is not ready.
func TestTheAPIIsNotAskedOfAServerThatIsCutOff(t *testing.T) {
	var cutOff [2]atomic.Bool
	var targets []netip.AddrPort
	for i := range cutOff {
		s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if cutOff[i].Load() {
				w.WriteHeader(http.StatusInternalServerError)
			}
			fmt.Fprint(w, i)
		}))
		t.Cleanup(s.Close)
		targets = append(targets, netip.MustParseAddrPort(s.Listener.Addr().String()))
	}
	f := testForwarder(t, plain)
	at := local(t)
	if err := f.set([]forward{{Proto: "tcp", Listen: at, Targets: targets, API: true}}); err != nil {
		t.Fatal(err)
	}
	asks := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	for _, off := range []int{0, 1} {
		cutOff[off].Store(true)
		cutOff[1-off].Store(false)
		var got string
		for end := time.Now().Add(time.Minute); got != fmt.Sprint(1-off); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("while server %d is cut off %q answers", off, got)
			}
			r, err := asks.Get("https://" + at.String() + "/version")
			if err != nil { // what leads to a server that is not well any more is ended
				continue
			}
			b, err := io.ReadAll(r.Body)
			if errors.Join(err, r.Body.Close()) == nil {
				got = string(b)
			}
		}
		for range 4 {
			if r, err := asks.Get("https://" + at.String() + "/version"); err != nil || r.StatusCode != http.StatusOK || r.Body.Close() != nil {
				t.Errorf("with server %d cut off: %v, %v", off, r, err)
			}
		}
	}
}

func TestWithoutATargetAConnectionIsReset(t *testing.T) {
	for _, api := range []bool{false, true} {
		testReset(t, api)
	}
}

func testReset(t *testing.T, api bool) {
	t.Helper()
	f := testForwarder(t, plain)
	at := local(t)
	if err := f.set([]forward{{Proto: "tcp", Listen: at, Targets: []netip.AddrPort{local(t)}, API: api}}); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp4", at.String())
	if err != nil {
		return // it was reset so soon
	}
	defer c.Close()
	if b, err := io.ReadAll(c); err == nil {
		t.Errorf("got %q and an orderly end, want a reset", b)
	}
}

func TestChangingThePortsKeepsWhatStays(t *testing.T) {
	to := backend(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	f := testForwarder(t, plain)
	stays, goes := local(t), local(t)
	targets := []netip.AddrPort{to}
	if err := f.set([]forward{{Proto: "tcp", Listen: stays, Targets: targets}, {Proto: "tcp", Listen: goes, Targets: targets}}); err != nil {
		t.Fatal(err)
	}
	echo := func(c *net.TCPConn) error {
		if _, err := c.Write([]byte("a")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	a, b := dial(t, stays), dial(t, goes)
	if err := errors.Join(echo(a), echo(b)); err != nil {
		t.Fatal(err)
	}
	if err := f.set([]forward{{Proto: "tcp", Listen: stays, Targets: targets}}); err != nil {
		t.Fatal(err)
	}
	if err := echo(a); err != nil {
		t.Errorf("a connection through a port that stays was cut: %v", err)
	}
	if err := echo(b); err == nil {
		t.Error("a connection through a port that is gone still works")
	}
	if _, err := net.Dial("tcp4", goes.String()); err == nil {
		t.Error("the port is still open")
	}
}

func TestAPortInUseDoesNotKeepTheOthersClosed(t *testing.T) {
	to := backend(t, func(c *net.TCPConn) { fmt.Fprint(c, "hello") })
	f := testForwarder(t, plain)
	at := local(t)
	if err := f.set([]forward{{Proto: "tcp", Listen: to, Targets: nil}, {Proto: "tcp", Listen: at, Targets: []netip.AddrPort{to}}}); err == nil {
		t.Error("opening a port in use: got no error")
	}
	if b, err := io.ReadAll(dial(t, at)); err != nil || string(b) != "hello" {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestUDPClientsGetTheirOwnAnswers(t *testing.T) {
	back, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1500)
		for {
			n, from, err := back.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = back.WriteTo(append([]byte("re: "), b[:n]...), from)
		}
	}()
	t.Cleanup(func() { back.Close(); <-done })
	f := testForwarder(t, plain)
	at := local(t)
	to := back.LocalAddr().(*net.UDPAddr).AddrPort()
	if err := f.set([]forward{{Proto: "udp", Listen: at, Targets: []netip.AddrPort{to}}}); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		c, err := net.Dial("udp4", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 1500)
		for range 2 {
			if _, err := fmt.Fprintf(c, "client %d", i); err != nil {
				t.Fatal(err)
			}
			n, err := c.Read(b)
			if want := fmt.Sprintf("re: client %d", i); err != nil || string(b[:n]) != want {
				t.Fatalf("got %q, %v, want %q", b[:n], err, want)
			}
		}
	}
}

func TestASilentUDPClientIsForgotten(t *testing.T) {
	conns := make(chan net.Conn, 8)
	f := testForwarder(t, func(context.Context, string, netip.AddrPort) (net.Conn, error) {
		inside, outside := net.Pipe()
		conns <- outside
		return inside, nil
	})
	f.idle = time.Millisecond
	at := local(t)
	if err := f.set([]forward{{Proto: "udp", Listen: at, Targets: []netip.AddrPort{at}}}); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("udp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	back := <-conns
	b := make([]byte, 8)
	if n, err := back.Read(b); err != nil || string(b[:n]) != "x" {
		t.Fatalf("got %q, %v", b[:n], err)
	}
	// The end of the session closes its connection.
	if _, err := back.Read(b); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want the end", err)
	}
}

func TestPortsOfAClusterLeadToItsNodes(t *testing.T) {
	s := cluster.Spec{
		Name: "a", APIPort: 16443, Publish: []cluster.Publish{{HostPort: 53, NodePort: 30053, Proto: "udp"}},
		Nodes: []cluster.NodeSpec{{Role: cluster.Server}, {Role: cluster.Agent, Index: 1}},
	}
	addr := netip.MustParseAddrPort
	want := []forward{
		{Proto: "tcp", Listen: addr("127.0.0.1:16443"), Targets: []netip.AddrPort{addr("10.88.0.10:6443")}, API: true},
		{Proto: "udp", Listen: addr("127.0.0.1:53"), Targets: []netip.AddrPort{addr("10.88.0.10:30053"), addr("10.88.0.31:30053")}},
	}
	got := forwards(s)
	if !slices.EqualFunc(got, want, func(a, b forward) bool {
		return a.Proto == b.Proto && a.Listen == b.Listen && a.API == b.API && slices.Equal(a.Targets, b.Targets)
	}) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
