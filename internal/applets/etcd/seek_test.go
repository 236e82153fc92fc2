package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/features"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
)

// trio is a cluster of three members, each at a loopback address of its own.
type trio struct {
	dir    string
	port   int
	subnet int // they are at 127.0.SUBNET.1 to 3
	keys   pki.Bundle
	// compared is how often the members' data is, 0 for never.
	compared time.Duration
	cancel   context.CancelFunc
	ended    []chan error
}

var trioNames = []string{"server-0", "server-1-0123abcd", "server-2-89abcdef"}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (c *trio) ip(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 0, byte(c.subnet), byte(i + 1)})
}

func (c *trio) peerURL(i int) string {
	return fmt.Sprintf("https://%s", netAddr(c.ip(i), strconv.Itoa(c.port)))
}

func (c *trio) clientSocket(i int) string {
	return "unix://" + filepath.Join(c.dir, strconv.Itoa(i)+".sock")
}

// start starts some of them where the trio is now, with what each is told about the others.
func (c *trio) start(t *testing.T, which []int, look func(i int) seeker) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c.cancel, c.ended = cancel, nil
	parse := func(raw string) []url.URL {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		return []url.URL{*u}
	}
	var all []string
	for i, n := range trioNames {
		all = append(all, n+"="+c.peerURL(i))
	}
	for _, i := range which {
		p := paths.Paths{Data: filepath.Join(c.dir, strconv.Itoa(i))}
		if c.keys != nil {
			if err := c.keys.Install(ctx, p); err != nil {
				t.Fatal(err)
			}
		}
		node := etcdcare.NodeOf(trioNames[i])
		_, err := pki.Ensure(ctx, pki.Request{Paths: p, NodeName: node, NodeIP: c.ip(i), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), Etcd: true})
		if err != nil {
			t.Fatal(err)
		}
		if c.keys == nil {
			if c.keys, err = pki.ReadBundle(p); err != nil {
				t.Fatal(err)
			}
		}
		cfg := embed.NewConfig()
		cfg.Name, cfg.Dir, cfg.LogLevel = trioNames[i], p.Etcd(), "fatal"
		cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = parse(c.peerURL(i)), parse(c.peerURL(i))
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = parse(c.clientSocket(i)), parse("http://127.0.0.1:1")
		cfg.InitialCluster = strings.Join(all, ",")
		cfg.TickMs, cfg.ElectionMs = 100, 1000
		cfg.PeerTLSInfo = transport.TLSInfo{
			CertFile: pki.CertFile(p, pki.EtcdPeer), KeyFile: pki.KeyFile(p, pki.EtcdPeer), TrustedCAFile: pki.CertFile(p, pki.EtcdCA), ClientCertAuth: true,
		}
		if c.compared != 0 {
			cfg.CompactHashCheckTime = c.compared
			if err := cfg.ServerFeatureGate.(interface{ Set(string) error }).Set(string(features.CompactHashCheck) + "=true"); err != nil {
				t.Fatal(err)
			}
		}
		done := make(chan error, 1)
		c.ended = append(c.ended, done)
		go func() { done <- serve(ctx, cfg, look(i)) }()
	}
	t.Cleanup(func() { c.stop(t) })
}

func (c *trio) stop(t *testing.T) {
	t.Helper()
	c.cancel()
	for _, d := range c.ended {
		if err := <-d; err != nil {
			t.Error(err)
		}
	}
	c.ended = nil
}

func (c *trio) client(t *testing.T, i int) *clientv3.Client {
	t.Helper()
	cl, err := clientv3.New(clientv3.Config{Endpoints: []string{c.clientSocket(i)}, DialOptions: []grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1, MaxDelay: 100 * time.Millisecond}}),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	return cl
}

// put writes through one of them; that takes a majority, and that it is connected with the one that leads.
func (c *trio) put(t *testing.T, i int, key string) {
	t.Helper()
	if err := put(t.Context(), c.client(t, i), key); err != nil {
		t.Fatal(err)
	}
}

func put(ctx context.Context, cl *clientv3.Client, key string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		_, err := cl.Put(ctx, key, "v")
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("writing %s: %w", key, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// settle has each write through itself, and then say where it is, as servers do, none of which waits for another.
func (c *trio) settle(t *testing.T, which []int) {
	t.Helper()
	failed := make([]error, len(trioNames))
	var all sync.WaitGroup
	for _, i := range which {
		cl := c.client(t, i)
		all.Go(func() {
			if failed[i] = put(t.Context(), cl, fmt.Sprintf("/after/%d", i)); failed[i] == nil {
				failed[i] = c.move(t.Context(), cl, i)
			}
		})
	}
	all.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Fatal(err)
	}
}

func TestAMemberThatNeverFoundTheOthersEnds(t *testing.T) {
	c := &trio{dir: t.TempDir(), port: freePort(t), subnet: 4}
	c.start(t, []int{1}, nowhere)
	time.Sleep(time.Second) // it waits for the others
	c.cancel()
	select {
	case err := <-c.ended[0]:
		c.ended = nil
		if err != nil {
			t.Error(err)
		}
	case <-time.After(2 * time.Minute):
		c.ended = nil // it will not come
		t.Fatal("it does not end")
	}
}

// nowhere is who knows nobody but by the address in the state.
func nowhere(int) seeker {
	return seeker{lookup: func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }}
}

// byTheFirst is that the two others were told where the first is.
func byTheFirst(c *trio) func(i int) seeker {
	return func(i int) seeker {
		s := nowhere(i)
		if i > 0 {
			s.hosts = []string{c.ip(0).String()}
		}
		return s
	}
}

func TestMembersThatHaveAllMovedFindEachOther(t *testing.T) {
	for name, tc := range map[string]struct {
		come []int
		look func(*trio) func(i int) seeker
		lead bool // one of those leads of whom nobody was told but by the state
	}{
		"by the names of their nodes": {come: []int{0, 1, 2}, look: func(c *trio) func(int) seeker {
			return func(int) seeker {
				return seeker{lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
					i, err := strconv.Atoi(strings.TrimPrefix(host, "server-"))
					if err != nil {
						return nil, err
					}
					return []netip.Addr{c.ip((i + 1) % 3), c.ip(i)}, nil // the first is another member
				}}
			}
		}},
		"two of the three, by their names": {come: []int{1, 2}, look: func(c *trio) func(int) seeker {
			return func(int) seeker {
				return seeker{lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
					i, err := strconv.Atoi(strings.TrimPrefix(host, "server-"))
					return []netip.Addr{c.ip(i)}, err
				}}
			}
		}},
		"by one that both others were told of":                    {come: []int{0, 1, 2}, look: byTheFirst},
		"by one that both others were told of, one of them leads": {come: []int{0, 1, 2}, look: byTheFirst, lead: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := &trio{dir: t.TempDir(), port: freePort(t), subnet: 1}
			c.start(t, []int{0, 1, 2}, nowhere)
			c.put(t, 0, "/before")
			c.put(t, 2, "/before/2")
			c.stop(t)
			for _, subnet := range []int{2, 3} { // the second time etcd repeats the changes of the first
				c.subnet = subnet
				c.start(t, tc.come, tc.look(c))
				if tc.lead {
					c.whoWasNotTold(t)
				}
				c.settle(t, tc.come)
				cl := c.client(t, tc.come[0])
				got, err := cl.Get(t.Context(), "/before", clientv3.WithPrefix())
				if err != nil || len(got.Kvs) != 2 {
					t.Fatalf("what was there before: %v, %v", got, err)
				}
				all, err := cl.MemberList(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range all.Members {
					if i := slices.Index(trioNames, m.Name); slices.Contains(tc.come, i) && !slices.Equal(m.PeerURLs, []string{c.peerURL(i)}) {
						t.Errorf("%s is known at %v", m.Name, m.PeerURLs)
					}
				}
				c.stop(t)
			}
			// And where everybody is where he is known to be nobody has to look.
			c.start(t, tc.come, nowhere)
			c.put(t, tc.come[1], "/last")
			c.stop(t)
		})
	}
}

// whoWasNotTold has one of the two lead that were told of the first only, before anybody has said where he is.
func (c *trio) whoWasNotTold(t *testing.T) {
	t.Helper()
	c.put(t, 0, "/led")
	cl := c.client(t, 0)
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		s, err := cl.Status(t.Context(), c.clientSocket(0))
		if err == nil && s.Leader != 0 && s.Leader != s.Header.MemberId {
			return
		}
		if all, lerr := cl.MemberList(t.Context()); err == nil && lerr == nil && s.Leader != 0 {
			i := slices.IndexFunc(all.Members, func(m *etcdserverpb.Member) bool { return m.Name == trioNames[1] })
			_, err = cl.MoveLeader(t.Context(), all.Members[i].ID) // it may not be connected yet
		}
		if time.Now().After(end) {
			t.Fatal("the first leads still: ", err)
		}
	}
}

// move says where one of them is, again until it is heard: etcd leaves out a change of members while another one is on its way, and the one
// who asks waits for nothing.
func (c *trio) move(ctx context.Context, cl *clientv3.Client, i int) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	try := func() error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		all, err := cl.MemberList(ctx)
		if err != nil {
			return err
		}
		for _, m := range all.Members {
			if m.Name == trioNames[i] {
				_, err = cl.MemberUpdate(ctx, m.ID, []string{c.peerURL(i)})
			}
		}
		return err
	}
	for {
		err := try()
		if err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}
