package balancer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/wait"
)

// server1 answers every line with its name and the line. It can be well or not, and away.
type server1 struct {
	name string
	l    net.Listener
	wg   sync.WaitGroup

	mu    sync.Mutex
	sick  bool
	conns map[net.Conn]struct{}
}

func listen(t *testing.T, name, addr string) *server1 {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &server1{name: name, l: l, conns: map[net.Conn]struct{}{}}
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[c] = struct{}{}
			s.mu.Unlock()
			s.wg.Go(func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					line, err := r.ReadString('\n')
					if err != nil {
						if line == "" && errors.Is(err, io.EOF) {
							fmt.Fprintf(c, "%s: end\n", name) // the other half is still open
						}
						return
					}
					fmt.Fprintf(c, "%s: %s", name, line)
				}
			})
		}
	})
	t.Cleanup(s.kill)
	return s
}

// kill is the end of the server and of its connections, as when its process is killed.
func (s *server1) kill() {
	_ = s.l.Close()
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *server1) addr() string { return s.l.Addr().String() }

func (s *server1) setSick(sick bool) {
	s.mu.Lock()
	s.sick = sick
	s.mu.Unlock()
}

// rig is a balancer before some servers.
type rig struct {
	*Balancer
	addr    string
	servers []*server1
}

func newRig(t *testing.T, names ...string) *rig {
	t.Helper()
	r := &rig{}
	for _, n := range names {
		r.servers = append(r.servers, listen(t, n, "127.0.0.1:0"))
	}
	r.Balancer = New(Options{Every: 5 * time.Millisecond, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Check: func(ctx context.Context, addr string) error {
		for _, s := range r.servers {
			if s.addr() == addr {
				s.mu.Lock()
				defer s.mu.Unlock()
				if s.sick {
					return errors.New("it is sick")
				}
			}
		}
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err
	}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the balancer ended with %v", err)
		}
	})
	return r
}

func (r *rig) addrs() []string {
	var out []string
	for _, s := range r.servers {
		out = append(out, s.addr())
	}
	return out
}

// client is one connection through the balancer.
type client struct {
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, addr string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &client{c, bufio.NewReader(c)}
}

// ask returns the name of the server that answered.
func (c *client) ask() (string, error) {
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := fmt.Fprintln(c, "hello"); err != nil {
		return "", err
	}
	line, err := c.r.ReadString('\n')
	name, _, _ := strings.Cut(line, ":")
	return name, err
}

// connected is a rig that uses its servers, a connection through it, and the name of the server that answers there.
func connected(t *testing.T, names ...string) (r *rig, c *client, name string) {
	t.Helper()
	r = newRig(t, names...)
	r.Set(r.addrs())
	c = dial(t, r.addr)
	name, err := c.ask()
	if err != nil {
		t.Fatal(err)
	}
	return r, c, name
}

func until(t *testing.T, what string, fn func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := wait.Until(ctx, time.Millisecond, what, func(context.Context) error { return fn() }); err != nil {
		t.Fatal(err)
	}
}

func TestConnectionsGoToAServerThatIsWellAndStayThere(t *testing.T) {
	r := newRig(t, "a", "b")
	r.servers[0].setSick(true)
	r.Set(r.addrs())
	until(t, "both to be checked", func() error {
		if s := r.Servers(); !s[0].Healthy || s[1].Healthy || s[1].Note != "it is sick" || s[0].Addr != r.servers[1].addr() {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	c := dial(t, r.addr)
	for range 3 {
		if name, err := c.ask(); err != nil || name != "b" {
			t.Fatalf("answered by %q, %v", name, err)
		}
	}
	r.servers[0].setSick(false)
	until(t, "a to be well again", func() error {
		for _, s := range r.Servers() {
			if !s.Healthy {
				return fmt.Errorf("%+v", s)
			}
		}
		return nil
	})
	if name, err := c.ask(); err != nil || name != "b" {
		t.Errorf("a connection was moved: %q, %v", name, err)
	}
}

func TestConnectionsToAServerThatIsNotWellEndSoThatClientsLeaveIt(t *testing.T) {
	r, c, name := connected(t, "a", "b")
	// Its process hangs: connections stay open, nothing is answered.
	for _, s := range r.servers {
		if s.name == name {
			s.setSick(true)
		}
	}
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the connection goes on: %v", err)
	}
	if again, err := dial(t, r.addr).ask(); err != nil || again == name {
		t.Errorf("the next one went to %q, %v", again, err)
	}
}

func TestTheOnlyServerKeepsItsConnectionsHoweverSickItIs(t *testing.T) {
	r, c, _ := connected(t, "a")
	r.servers[0].setSick(true)
	until(t, "the server to be sick for a while", func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if n := r.Balancer.servers[0].failed; n < 5*strikes {
			return fmt.Errorf("%d checks failed", n)
		}
		return nil
	})
	if name, err := c.ask(); err != nil || name != "a" {
		t.Errorf("%q, %v", name, err)
	}
}

func TestAConnectionThatCannotBeMadeEndsNoOthers(t *testing.T) {
	r, c, name := connected(t, "a", "b")
	r.mu.Lock()
	var s *server
	for _, o := range r.Balancer.servers {
		if len(o.conns) > 0 {
			s = o
		}
	}
	r.mu.Unlock()
	for range 5 * strikes {
		r.refuse(s, errors.New("too many open files"))
	}
	if again, err := c.ask(); err != nil || again != name {
		t.Errorf("%q, %v", again, err)
	}
}

func TestAServerThatWasKilledIsReplacedByTheNextAndUsedAgainWhenItIsBack(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	r.Set(r.addrs())
	for _, dead := range []int{0, 1} {
		r.servers[dead].kill()
		for range 5 {
			if name, err := dial(t, r.addr).ask(); err != nil || name == r.servers[dead].name {
				t.Fatalf("with %s dead: %q, %v", r.servers[dead].name, name, err)
			}
		}
	}
	r.servers[2].kill()
	if name, err := dial(t, r.addr).ask(); err == nil {
		t.Errorf("with all dead: answered by %q", name)
	}
	back := listen(t, "b2", r.servers[1].addr())
	until(t, "the server that is back", func() error {
		name, err := dial(t, r.addr).ask()
		if err == nil && name != back.name {
			err = fmt.Errorf("answered by %q", name)
		}
		return err
	})
}

func TestServersThatAreNoLongerThereGetNoConnections(t *testing.T) {
	r := newRig(t, "a", "b", "lb")
	r.Set(r.addrs()[:1], r.addrs()[2:])
	c := dial(t, r.addr)
	if name, err := c.ask(); err != nil || name != "a" {
		t.Fatalf("%q, %v", name, err)
	}
	r.Set(r.addrs()[1:2], r.addrs()[2:])
	if name, err := c.ask(); err != nil || name != "a" {
		t.Errorf("a connection to a server that left the list was not let end by itself: %q, %v", name, err)
	}
	if s := r.Servers(); len(s) != 2 {
		t.Errorf("servers %+v", s)
	}
	if name, err := dial(t, r.addr).ask(); err != nil || name != "b" {
		t.Errorf("%q, %v", name, err)
	}
	r.servers[0].setSick(true)
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection to a sick server that is in no list goes on: %v", err)
	}
	// The last resort is one, and stays: it is in the second list.
	r.servers[1].kill()
	if name, err := dial(t, r.addr).ask(); err != nil || name != "lb" {
		t.Errorf("%q, %v", name, err)
	}
}

func TestHalfClosedConnectionsAreCarriedToTheirEnd(t *testing.T) {
	r, c, _ := connected(t, "a")
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(c.r)
	if err != nil || string(rest) != "a: end\n" {
		t.Errorf("%q, %v", rest, err)
	}
	until(t, "the connection to be forgotten", func() error {
		if n := r.Servers()[0].Connections; n != 0 {
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})
}

func TestAgentsSpreadOverTheirServers(t *testing.T) {
	first := map[string]int{}
	for range 200 {
		b := New(Options{})
		b.Set([]string{"a:1", "b:1", "c:1"}, []string{"a:1", "z:1"})
		s := b.Servers()
		first[s[0].Addr]++
		if len(s) != 4 || s[3].Addr != "z:1" {
			t.Fatalf("%+v", s)
		}
	}
	if len(first) != 3 {
		t.Errorf("first were %v", first)
	}
}
