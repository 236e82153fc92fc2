//go:build system

package system

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// Addresses of the outside, from the ranges set apart for documentation.
const (
	worldServer = "198.51.100.10"
	worldDNS    = "198.51.100.53"
	worldName   = "www.outside.example."
	worldLink   = "192.0.2.1" // of the router the host is connected to
	hostLink    = "192.0.2.2" // of the host itself
)

// world is all there is outside of a host: a router with a web server and a name server, on the other end of
// the host's only link, and what has been seen on that link.
type world struct {
	network
	mu      sync.Mutex // guards what follows
	packets int
	strange []string // packets that are not between the host and the world
}

// newWorld makes one, and connects the host.
func newWorld(t *testing.T, h *host) *world {
	t.Helper()
	w := &world{network: newNetwork(t)}
	w.run(t,
		"ip link set lo up",
		"ip address add "+worldServer+"/32 dev lo && ip address add "+worldDNS+"/32 dev lo",
		fmt.Sprintf("ip link add world type veth peer name uplink netns %d", h.pid),
		"ip address add "+worldLink+"/24 dev world && ip link set dev world up")
	w.watch(t)
	h.run(t, "ip address add "+hostLink+"/24 dev uplink && ip link set dev uplink up && ip route add default via "+worldLink)
	w.serveHTTP(t)
	w.serveDNS(t)
	return w
}

// serveHTTP answers with the address it was asked from.
func (w *world) serveHTTP(t *testing.T) {
	t.Helper()
	l := w.listen(t, worldServer+":80")
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(rw, "hello %s", from)
	})}
	done := make(chan struct{})
	go func() { _ = srv.Serve(l); close(done) }()
	t.Cleanup(func() { srv.Close(); <-done })
}

// serveDNS knows one name, over UDP and TCP.
func (w *world) serveDNS(t *testing.T) {
	t.Helper()
	c := w.listenPacket(t, worldDNS+":53")
	l := w.listen(t, worldDNS+":53")
	var all sync.WaitGroup
	all.Go(func() {
		b := make([]byte, 4096)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if answer, err := answerDNS(b[:n]); err == nil {
				_, _ = c.WriteTo(answer, from)
			}
		}
	})
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				var size uint16
				for binary.Read(conn, binary.BigEndian, &size) == nil {
					b := make([]byte, size)
					if _, err := io.ReadFull(conn, b); err != nil {
						return
					}
					answer, err := answerDNS(b)
					if err != nil {
						return
					}
					_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
				}
			})
		}
	})
	t.Cleanup(func() { c.Close(); l.Close(); all.Wait() })
}

func answerDNS(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil, errors.New("no question")
	}
	q := m.Questions[0]
	out := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: m.ID, Response: true, RecursionDesired: m.RecursionDesired, RecursionAvailable: true},
		Questions: m.Questions,
	}
	switch {
	case q.Name.String() != worldName:
		out.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		out.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
			Body:   &dnsmessage.AResource{A: netip.MustParseAddr(worldServer).As4()},
		}}
	}
	return out.Pack()
}

// watch looks at every packet on the link until the test ends.
func (w *world) watch(t *testing.T) {
	t.Helper()
	var link *os.File
	err := w.do(func() error {
		all := int(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL)))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
		if err != nil {
			return fmt.Errorf("watching the link: %w", err)
		}
		link = os.NewFile(uintptr(fd), "link")
		i, err := net.InterfaceByName("world")
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: i.Index})
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 64<<10)
		for {
			n, err := link.Read(b)
			if err != nil {
				return
			}
			w.saw(b[:n])
		}
	}()
	t.Cleanup(func() { link.Close(); <-done })
}

// ours are the addresses that may be on the link.
var ours = []netip.Addr{
	netip.MustParseAddr(worldServer), netip.MustParseAddr(worldDNS), netip.MustParseAddr(worldLink), netip.MustParseAddr(hostLink),
}

func (w *world) saw(frame []byte) {
	if len(frame) < 14 {
		return
	}
	var between []netip.Addr
	switch kind, b := binary.BigEndian.Uint16(frame[12:]), frame[14:]; {
	case kind == unix.ETH_P_IP && len(b) >= 20:
		between = []netip.Addr{netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))}
	case kind == unix.ETH_P_ARP && len(b) >= 28:
		between = []netip.Addr{netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))}
	default:
		return // the kernel's own IPv6
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.packets++
	if slices.ContainsFunc(between, func(a netip.Addr) bool { return !slices.Contains(ours, a) }) && len(w.strange) < 20 {
		w.strange = append(w.strange, fmt.Sprint(between))
	}
}

// seen tells how many packets were on the link, and which should not have been.
func (w *world) seen() (int, []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.packets, slices.Clone(w.strange)
}
