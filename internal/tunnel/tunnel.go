// Package tunnel lets servers of a cluster reach nodes they cannot connect to. A node keeps a connection open to the API
// port of every server; the server asks on it for connections to the node's kubelet and pods, each a stream of its own.
// Server is the servers' end and Node the other one; which node a target is on, who may be a node, and what becomes of
// targets without a tunnel is for those who use them: the applets kube-apiserver and balancer. docs/adr/0024-tunnel.md
// says why it is so.
//
// The connection begins as an HTTP/1.1 request that is upgraded (RFC 9110, section 7.8). After that it is HTTP/2
// (RFC 9113) with the roles exchanged: the server sends CONNECT requests, and the node answers them.
package tunnel

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

const (
	// Path is where servers accept tunnels, on the API's port.
	Path = "/k1s/v1/tunnel"
	// protocol is the name of what the connection is upgraded to. Its number is that of the conversation.
	protocol = "k1s-tunnel/1"
)

// Bounds of a tunnel. A stream costs each end two goroutines and their buffers, and what has been received and not been
// read: at most a window.
const (
	// maxStreams a server opens on one tunnel at a time. Nodes take a few more, because a stream that was given up counts there
	// until that is known.
	maxStreams     = 1000
	nodeMaxStreams = 1100
	// maxTunnels of one node to one server: it has two for a moment when it renews one, and for as long as it knows the
	// server by two addresses.
	maxTunnels   = 4
	streamWindow = 512 << 10
	// connWindow is as large as it can be, so that it is the streams' windows that count: with less, streams that nobody reads
	// would hold up the others.
	connWindow = 1 << 30
	frameSize  = 32 << 10
	bufferSize = 32 << 10
	// maxMessage bounds what one end says about an error.
	maxMessage = 1 << 10
)

// Times. A peer that is gone is noticed within pingAfter and pingLimit.
const (
	pingAfter      = 10 * time.Second
	pingLimit      = 5 * time.Second
	handshakeLimit = 10 * time.Second
	dialLimit      = 10 * time.Second          // of a node, to its kubelet or a pod
	openLimit      = dialLimit + 2*time.Second // of a server, for all of it
	lingerLimit    = 5 * time.Second           // from closing a stream until it is given up
	renewAt        = 0.8                       // of its certificate's life a node makes a tunnel anew
	renewAgain     = time.Hour                 // where its certificate has not been renewed by then
	shortest       = 30 * time.Second          // after a tunnel that lasted for less, pauses go on growing
	firstPause     = 100 * time.Millisecond    // after the first failure; doubled each time
	longestPause   = 15 * time.Second
	strikes        = 2 // failures in a row after which a server counts as not reached by its own address
)

// ErrNoTunnel says that a node has no tunnel to this server.
var ErrNoTunnel = errors.New("there is no tunnel to the node")

// RefusedError says that a node would not connect to a target, because it is not its own.
type RefusedError struct{ Node, Target, Reason string }

func (e *RefusedError) Error() string {
	return "node " + e.Node + " does not connect to " + e.Target + " for a server: " + e.Reason
}

// TargetError says that a node could not connect to a target.
type TargetError struct{ Node, Target, Reason string }

func (e *TargetError) Error() string {
	return "connecting to " + e.Target + " on node " + e.Node + ": " + e.Reason
}

// buffers are for copying, and used again: connections are often short.
type buffers struct{ pool sync.Pool }

// copy copies until from ends, through the buffer whatever to and from could do otherwise.
func (b *buffers) copy(to io.Writer, from io.Reader) error {
	buf, ok := b.pool.Get().(*[bufferSize]byte)
	if !ok {
		buf = new([bufferSize]byte)
	}
	defer b.pool.Put(buf)
	_, err := io.CopyBuffer(writer{to}, reader{from}, buf[:])
	return err
}

// target reads what a server asks for: an address and a port. Names are nobody's here.
func target(authority string) (netip.AddrPort, error) {
	to, err := netip.ParseAddrPort(authority)
	if err != nil || to.Port() == 0 || to.Addr().Zone() != "" {
		return netip.AddrPort{}, errors.New("it is not an address and a port")
	}
	return netip.AddrPortFrom(to.Addr().Unmap(), to.Port()), nil
}

// message reads a short text somebody sent, and keeps it on one line.
func message(r io.Reader) string {
	b, _ := io.ReadAll(io.LimitReader(r, maxMessage)) // what arrived is what there is
	return strings.Join(strings.Fields(strings.ToValidUTF8(string(b), "?")), " ")
}

// ended is a connection that tells when it is closed, by whomever.
type ended struct {
	net.Conn
	r    io.Reader // has what was read from the connection before
	once sync.Once
	done chan struct{}
}

func (e *ended) Read(b []byte) (int, error) { return e.r.Read(b) }

// Close does not take leave with a TLS alert: a peer that does not read would hold it up, and HTTP/2 has its own end.
func (e *ended) Close() error {
	e.once.Do(func() { close(e.done) })
	if t, ok := e.Conn.(*tls.Conn); ok {
		return t.NetConn().Close()
	}
	return e.Conn.Close()
}

// writer and reader keep io.Copy from using other ways that allocate buffers of their own.
type (
	writer struct{ io.Writer }
	reader struct{ io.Reader }
)
