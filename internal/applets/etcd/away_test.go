package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/etcdapi"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/wait"
)

// gateway is a client of one of them as the daemon's is, over a port that leads to its socket.
func (c *trio) gateway(t *testing.T, i int) *etcdapi.Client {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	open.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			open.Go(func() {
				defer from.Close()
				to, err := net.Dial("unix", strings.TrimPrefix(c.clientSocket(i), "unix://"))
				if err != nil {
					return // it is not there
				}
				open.Go(func() { _, _ = io.Copy(to, from); to.Close() })
				_, _ = io.Copy(from, to)
			})
		}
	})
	p := paths.Paths{Data: filepath.Join(c.dir, strconv.Itoa(i))}
	pair, err := tls.LoadX509KeyPair(pki.CertFile(p, pki.EtcdPeer), pki.KeyFile(p, pki.EtcdPeer))
	if err != nil {
		t.Fatal(err)
	}
	roots, err := pki.Pool(pki.CertFile(p, pki.EtcdCA))
	if err != nil {
		t.Fatal(err)
	}
	e := etcdapi.New("http://"+l.Addr().String(), &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{pair}})
	e.Metrics = "http://" + l.Addr().String() + "/metrics"
	t.Cleanup(func() { e.Close(); l.Close(); open.Wait() })
	return e
}

// leader is the one of them that leads, as it sees the members when they are as wanted.
func (c *trio) leader(t *testing.T, of []*etcdapi.Client, wanted func(etcdcare.Facts) error) (*etcdapi.Client, etcdcare.Facts) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Minute, errors.New("it took too long"))
	defer cancel()
	var found *etcdapi.Client
	var facts etcdcare.Facts
	err := wait.Until(ctx, 100*time.Millisecond, "a leader that sees the members so", func(ctx context.Context) error {
		last := errors.New("nobody leads")
		for _, e := range of {
			var f etcdcare.Facts
			if _, err := e.Facts(ctx, &f); err != nil {
				last = err
				continue
			}
			if f.Leader != f.ID {
				continue
			}
			if last = wanted(f); last == nil {
				found, facts = e, f
				return nil
			}
		}
		return last
	})
	if err != nil {
		t.Fatal(err)
	}
	return found, facts
}

func named(f etcdcare.Facts, name string) etcdcare.Member {
	for _, m := range f.Members {
		if m.Name == name {
			return m
		}
	}
	return etcdcare.Member{}
}

func TestOneThatIsGoneIsRemovedByWhoLeadsAndLearnsOfIt(t *testing.T) {
	t.Parallel()
	c := &trio{dir: t.TempDir(), port: freePort(t), subnet: 5}
	c.start(t, []int{0, 1}, nowhere)
	third := &trio{dir: c.dir, port: c.port, subnet: c.subnet, keys: c.keys}
	third.start(t, []int{2}, nowhere)
	c.put(t, 0, "/before")
	gone := trioNames[2]
	both := []*etcdapi.Client{c.gateway(t, 0), c.gateway(t, 1)}
	ended, end := third.ended[0], third.cancel
	third.ended = nil
	end()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	e, f := c.leader(t, both, func(f etcdcare.Facts) error {
		switch m := named(f, gone); {
		case m.ID == 0 || len(f.Members) != 3:
			return errors.New("not all members are known")
		case m.Healthy || m.Linked:
			return errors.New("one that is off is seen")
		case !named(f, trioNames[0]).Healthy || !named(f, trioNames[1]).Healthy:
			return errors.New("one that is there is not seen")
		}
		return nil
	})
	id := named(f, gone).ID

	// A day goes by in looks that all find the same.
	const after = 24 * time.Hour
	var sight etcdcare.Sight
	at := time.Duration(0)
	for ; at < after; at += 10 * time.Second {
		if d := sight.Departs(f, after, ""); d.ID != id || d.In <= 0 {
			t.Fatalf("after %s: %+v", at, d)
		}
		sight = sight.Look(at, f)
	}
	sight = sight.Look(at, f)
	if d := sight.Departs(f, after, ""); d.ID != id || d.In > 0 {
		t.Fatalf("after %s: %+v", at, d)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("it took too long"))
	defer cancel()
	// etcd wants those that stay to have been connected for a while.
	err := wait.Until(ctx, 500*time.Millisecond, gone+" to be removed", func(ctx context.Context) error {
		err := e.Remove(ctx, id)
		if err != nil && !errors.Is(err, etcdapi.ErrUnsafe) {
			return wait.Permanent(err)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	c.put(t, 1, "/after")
	if _, f = c.leader(t, both, func(f etcdcare.Facts) error {
		if len(f.Members) != 2 {
			return errors.New("it is still known")
		}
		return nil
	}); named(f, gone).ID != 0 {
		t.Errorf("the members are %+v", f.Members)
	}

	// With what it had it is not let in.
	third.start(t, []int{2}, nowhere)
	ended, end = third.ended[0], third.cancel
	third.ended = nil
	defer end()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("it ended as if it had been asked to")
		}
	case <-time.After(2 * time.Minute):
		t.Error("it goes on as if nothing had happened")
		end()
		<-ended
	}

	// And of two that are left nobody removes the other one: there is no majority without it.
	for i := range f.Members {
		f.Members[i].Healthy = f.Members[i].Self
	}
	for range 10_000 {
		at += 10 * time.Second
		sight = sight.Look(at, f)
	}
	if d := sight.Departs(f, after, ""); d.ID != 0 || d.Why == "" {
		t.Errorf("of two one is removed: %+v", d)
	}
}
