package tunnel

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// cable is a connection that can be cut: then nothing arrives, and nobody is told.
type cable struct {
	net.Conn
	cut *atomic.Bool
}

func (c cable) Write(b []byte) (int, error) {
	if c.cut.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// bubble is a server and a node whose time is the test's. The node's certificates are valid for life.
type bubble struct {
	server    *Server
	node      *Node
	cut       atomic.Bool
	connected atomic.Int32
}

func newBubble(t *testing.T, life time.Duration) *bubble {
	t.Helper()
	b := &bubble{}
	var err error
	if b.server, err = NewServer(ServerOptions{Log: quiet()}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	b.node = NewNode(NodeOptions{
		Log:   quiet(),
		Allow: func(context.Context, netip.AddrPort) error { return nil },
		Connect: func(context.Context, string) (Connection, error) {
			if b.cut.Load() {
				return Connection{}, errors.New("the cable is cut")
			}
			b.connected.Add(1)
			now := time.Now()
			near, far := net.Pipe()
			wg.Go(func() {
				if _, err := http.ReadRequest(bufio.NewReader(far)); err != nil {
					t.Error(err)
				}
				if err := b.server.serve(cable{far, &b.cut}, 0, theNode, now.Add(life)); err != nil {
					t.Error(err)
				}
			})
			return Connection{cable{near, &b.cut}, now, now.Add(life)}, nil
		},
		Dial: func(context.Context, netip.AddrPort) (net.Conn, error) {
			near, far := net.Pipe()
			wg.Go(func() {
				defer far.Close()
				_, _ = io.Copy(far, far)
			})
			return near, nil
		},
	})
	b.node.Set([]string{"10.0.0.1:6443"}, "")
	wg.Go(func() { b.node.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		b.server.Close()
		wg.Wait()
	})
	synctest.Wait()
	return b
}

func (b *bubble) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := b.server.Dial(t.Context(), theNode, "10.42.1.5:80")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func answers(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping" {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestAPeerThatVanishesIsNoticedAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 30*24*time.Hour)
		time.Sleep(time.Hour) // quiet: pings keep it
		synctest.Wait()
		if n := b.connected.Load(); n != 1 || !b.server.Has(theNode) {
			t.Fatalf("after an hour of silence there have been %d connections", n)
		}
		c := b.dial(t)
		answers(t, c)
		b.cut.Store(true)
		time.Sleep(pingAfter + pingLimit + time.Second)
		synctest.Wait()
		if b.server.Has(theNode) {
			t.Error("the server has not noticed")
		}
		if s := b.node.Servers(); s[0].Connected || s[0].Note == "" {
			t.Errorf("the node has not noticed: %+v", s)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("what went through the tunnel: %v", err)
		}
		_ = c.Close()
		time.Sleep(time.Hour)
		b.cut.Store(false)
		time.Sleep(longestPause + time.Second)
		synctest.Wait()
		c = b.dial(t)
		answers(t, c)
		_ = c.Close()
	})
}

func TestATunnelIsReplacedBeforeItsCertificateEndsAndNothingBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, time.Hour)
		old := b.dial(t)
		answers(t, old)
		time.Sleep(50 * time.Minute)
		synctest.Wait()
		if n := b.server.Nodes(); len(n) != 1 || n[0].Tunnels != 2 || b.connected.Load() != 2 {
			t.Fatalf("%+v after %d connections", n, b.connected.Load())
		}
		answers(t, old)
		c := b.dial(t)
		answers(t, c)
		_ = old.Close()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := b.server.Nodes(); n[0].Tunnels != 1 {
			t.Errorf("the old tunnel has nothing to carry any more, and is there: %+v", n)
		}
		time.Sleep(15 * time.Minute) // the first certificate has ended
		synctest.Wait()
		answers(t, c)
		_ = c.Close()
	})
}

func TestTheServerEndsATunnelWithItsCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := NewServer(ServerOptions{Log: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		near, far := net.Pipe()
		done := make(chan error, 1)
		go func() {
			_, err := http.ReadRequest(bufio.NewReader(far))
			done <- errors.Join(err, s.serve(far, 0, theNode, time.Now().Add(time.Minute)))
		}()
		e, err := upgrade(near)
		if err != nil {
			t.Fatal(err)
		}
		n := &served{node: NewNode(NodeOptions{Log: quiet()}), conn: e, done: make(chan struct{}), retired: make(chan struct{})}
		go n.run(t.Context())
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if !s.Has(theNode) {
			t.Error("there is no tunnel")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s.Has(theNode) {
			t.Error("the tunnel outlives its certificate")
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		<-n.done
		s.Close()
	})
}
