package tunnel

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"
)

// benchmarked is a server with a tunnel to a node, TLS as between real ones.
func benchmarked(b *testing.B, target func(net.Conn)) (s *Server, addr string) {
	b.Helper()
	s, err := NewServer(ServerOptions{Log: quiet()})
	if err != nil {
		b.Fatal(err)
	}
	h := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.Accept(w, r, theNode, time.Now().Add(time.Hour))
	}))
	conf := h.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	conf.NextProtos, conf.ServerName = []string{"http/1.1"}, "example.com"
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				target(c)
				_ = c.Close()
			}()
		}
	}()
	n := NewNode(NodeOptions{Log: quiet(), Allow: func(context.Context, netip.AddrPort) error { return nil }, Connect: func(ctx context.Context, server string) (Connection, error) {
		c, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", server)
		return Connection{c, time.Now(), time.Now().Add(time.Hour)}, err
	}})
	n.Set([]string{h.Listener.Addr().String()}, "")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.Run(ctx)
	}()
	b.Cleanup(func() {
		_ = l.Close()
		cancel()
		<-done
		s.Close()
		h.Close()
	})
	for !s.Has(theNode) {
		time.Sleep(time.Millisecond)
	}
	return s, l.Addr().String()
}

func BenchmarkReceiving(b *testing.B) {
	s, addr := benchmarked(b, func(c net.Conn) { _, _ = io.Copy(c, zeros{}) })
	for name, dial := range map[string]func() (net.Conn, error){
		"tunnel": func() (net.Conn, error) { return s.Dial(b.Context(), theNode, addr) },
		"direct": func() (net.Conn, error) { return net.Dial("tcp", addr) },
	} {
		b.Run(name, func(b *testing.B) {
			c, err := dial()
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			buf := make([]byte, 32<<10)
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkConnecting(b *testing.B) {
	s, addr := benchmarked(b, echo)
	for name, dial := range map[string]func() (net.Conn, error){
		"tunnel": func() (net.Conn, error) { return s.Dial(b.Context(), theNode, addr) },
		"direct": func() (net.Conn, error) { return net.Dial("tcp", addr) },
	} {
		b.Run(name, func(b *testing.B) {
			buf := make([]byte, 1)
			for b.Loop() {
				c, err := dial()
				if err != nil {
					b.Fatal(err)
				}
				if _, err := c.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Fatal(err)
				}
				_ = c.Close()
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
