//go:build linux

// Package egress is a cluster's way to the outside: a network stack in user space that sits at a tap device
// on the cluster's bridge, ends every TCP and UDP connection nodes and pods open to the outside, and opens it
// again as an ordinary socket of this machine. So nothing of the machine's network has to be changed, and no
// packet with an address of the cluster ever leaves. Names are asked of the machine's own resolver.
//
// It is not a router: nothing comes in, ICMP other than to the gateway itself goes nowhere, and addresses that
// mean something else here than outside (see refused) are not dialled. An applet of k1s-kube, started by a
// cluster's switch.
package egress

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"k1s.io/k1s/internal/errs"
)

// Bounds.
const (
	maxPending  = 1024             // TCP connections being opened at once
	maxUDP      = 4096             // UDP flows at once; packets of further ones are dropped
	udpIdle     = 60 * time.Second // a UDP flow that is silent for so long is forgotten
	dialTimeout = 10 * time.Second
	nic         = 1
	dnsPort     = 53
)

// Options are what the applet is told.
type Options struct {
	// TapFD is an open tap device on the cluster's bridge.
	TapFD int
	MTU   int
	// Gateway is the stack's own address with the length of the cluster's subnet.
	Gateway netip.Prefix
	// Deny are further destinations that are not for the outside: pods and services.
	Deny []netip.Prefix
	// Resolver is the name server that answers what is asked of the gateway; zero is that of resolv.conf.
	Resolver netip.AddrPort
	Log      *slog.Logger
}

// Run is the applet: egress --tap-fd 3 --gateway 10.88.0.2/24 --deny 10.42.0.0/16,10.43.0.0/16.
func Run(ctx context.Context, args []string) error {
	o := Options{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	fs := flag.NewFlagSet("egress", flag.ContinueOnError)
	fs.IntVar(&o.TapFD, "tap-fd", 3, "file descriptor of the tap device")
	fs.IntVar(&o.MTU, "mtu", 1500, "its MTU")
	gateway := fs.String("gateway", "", "own address with prefix length")
	deny := fs.String("deny", "", "destinations that are refused, separated by commas")
	resolver := fs.String("resolver", "", "name server as address:port")
	if err := fs.Parse(args); err != nil {
		return errs.As(errs.Usage, err)
	}
	var err error
	if o.Gateway, err = netip.ParsePrefix(*gateway); err != nil {
		return errs.New(errs.Usage, "--gateway: %w", err)
	}
	if *resolver != "" {
		if o.Resolver, err = netip.ParseAddrPort(*resolver); err != nil {
			return errs.New(errs.Usage, "--resolver: %w", err)
		}
	}
	for p := range strings.SplitSeq(*deny, ",") {
		if p == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(p)
		if err != nil {
			return errs.New(errs.Usage, "--deny: %w", err)
		}
		o.Deny = append(o.Deny, prefix)
	}
	return Serve(ctx, o)
}

// Serve carries traffic until ctx ends.
func Serve(ctx context.Context, o Options) error {
	ep, err := fdbased.New(&fdbased.Options{
		FDs: []int{o.TapFD}, MTU: uint32(o.MTU), EthernetHeader: true,
		// A locally administered address made from the IP address: stable, so that neighbours stay valid.
		Address: linkAddress(o.Gateway.Addr()),
	})
	if err != nil {
		return fmt.Errorf("using the cluster's tap device: %w", err)
	}
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	defer func() {
		s.Close()
		s.Wait()
	}()
	if err := configure(s, ep, o.Gateway); err != nil {
		return err
	}
	e := &egress{
		o: o, stack: s, flows: make(chan struct{}, maxUDP),
		refuse: refused(o.Gateway, o.Deny),
	}
	e.ctx = ctx
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s, 0, maxPending, e.tcp).HandlePacket)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(s, e.udp).HandlePacket)
	o.Log.Info("carrying traffic to the outside", "gateway", o.Gateway, "refused", e.refuse)
	<-ctx.Done()
	e.all.Wait()
	return nil
}

func configure(s *stack.Stack, ep stack.LinkEndpoint, gateway netip.Prefix) error {
	if err := s.CreateNIC(nic, ep); err != nil {
		return fmt.Errorf("attaching to the cluster's network: %s", err)
	}
	addr := tcpip.ProtocolAddress{
		Protocol:          ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(gateway.Addr().As4()), PrefixLen: gateway.Bits()},
	}
	if err := s.AddProtocolAddress(nic, addr, stack.AddressProperties{}); err != nil {
		return fmt.Errorf("taking the address %s: %s", gateway, err)
	}
	// Packets to any address are for us, and we answer in the name of any address.
	if err := s.SetPromiscuousMode(nic, true); err != nil {
		return fmt.Errorf("accepting packets to the outside: %s", err)
	}
	if err := s.SetSpoofing(nic, true); err != nil {
		return fmt.Errorf("answering for the outside: %s", err)
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}})
	sack := tcpip.TCPSACKEnabled(true)
	if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, &sack); err != nil {
		return fmt.Errorf("setting up TCP: %s", err)
	}
	return nil
}

func linkAddress(a netip.Addr) tcpip.LinkAddress {
	b := a.As4()
	return tcpip.LinkAddress([]byte{0x02, 0x6b, b[0], b[1], b[2], b[3]})
}

// refused are the destinations that are not dialled: those that mean something else on this machine than in
// the cluster (loopback, link-local with the metadata services of clouds, the cluster's own networks), and
// those that are no single host.
func refused(gateway netip.Prefix, deny []netip.Prefix) []netip.Prefix {
	out := []netip.Prefix{gateway.Masked()}
	for _, p := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"} {
		out = append(out, netip.MustParsePrefix(p))
	}
	return append(out, deny...)
}

// egress carries connections.
type egress struct {
	o      Options
	stack  *stack.Stack
	refuse []netip.Prefix
	flows  chan struct{} // a slot for every UDP flow
	ctx    context.Context
	all    sync.WaitGroup // the goroutines of connections
}

// target is where a connection that was opened to an address inside leads outside.
func (e *egress) target(to netip.AddrPort) (netip.AddrPort, error) {
	if to.Addr() == e.o.Gateway.Addr() && to.Port() == dnsPort {
		return e.resolver()
	}
	if i := slices.IndexFunc(e.refuse, func(p netip.Prefix) bool { return p.Contains(to.Addr()) }); i >= 0 {
		return netip.AddrPort{}, fmt.Errorf("%s is not outside (%s)", to, e.refuse[i])
	}
	return to, nil
}

// resolver is asked for every question anew: laptops change networks.
func (e *egress) resolver() (netip.AddrPort, error) {
	if e.o.Resolver.IsValid() {
		return e.o.Resolver, nil
	}
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("finding this machine's name server: %w", err)
	}
	return firstResolver(string(b))
}

func firstResolver(resolvConf string) (netip.AddrPort, error) {
	for line := range strings.Lines(resolvConf) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			return netip.AddrPortFrom(a, dnsPort), nil
		}
	}
	return netip.AddrPort{}, errors.New("this machine has no name server in /etc/resolv.conf")
}

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(a.As4()), port)
}

// tcp is called for every connection that is opened, in a goroutine of the stack. The connection is accepted
// only when the outside has accepted it, so that "refused" is seen inside.
func (e *egress) tcp(r *tcp.ForwarderRequest) {
	id := r.ID()
	to, err := e.target(addrPort(id.LocalAddress, id.LocalPort))
	if err != nil {
		e.o.Log.Debug("connection refused", "err", err)
		r.Complete(true)
		return
	}
	d := net.Dialer{Timeout: dialTimeout}
	out, err := d.DialContext(e.ctx, "tcp", to.String())
	if err != nil {
		e.o.Log.Debug("connection failed", "to", to, "err", err)
		r.Complete(true)
		return
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		e.o.Log.Debug("accepting failed", "to", to, "err", terr)
		r.Complete(true)
		out.Close()
		return
	}
	r.Complete(false)
	ep.SocketOptions().SetKeepAlive(true)
	e.all.Go(func() { relay(e.ctx, gonet.NewTCPConn(&wq, ep), out) })
}

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// relay copies both ways until both directions have ended, or ctx.
func relay(ctx context.Context, in *gonet.TCPConn, out net.Conn) {
	defer in.Close()
	defer out.Close()
	stop := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
	defer stop()
	var both sync.WaitGroup
	half := func(to, from net.Conn) {
		if _, err := io.Copy(to, from); err != nil {
			in.Close()
			out.Close()
			return
		}
		if c, ok := to.(halfCloser); ok {
			_ = c.CloseWrite()
		}
	}
	both.Go(func() { half(out, in) })
	both.Go(func() { half(in, out) })
	both.Wait()
}

// udp is called for the first packet of every flow.
func (e *egress) udp(r *udp.ForwarderRequest) {
	id := r.ID()
	to, err := e.target(addrPort(id.LocalAddress, id.LocalPort))
	if err != nil {
		e.o.Log.Debug("packet refused", "err", err)
		return
	}
	select {
	case e.flows <- struct{}{}:
	default:
		return // as a network that is full
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		<-e.flows
		return
	}
	in := gonet.NewUDPConn(&wq, ep)
	e.all.Go(func() {
		defer func() { <-e.flows }()
		defer in.Close()
		out, err := net.Dial("udp", to.String())
		if err != nil {
			return
		}
		defer out.Close()
		exchange(e.ctx, in, out, udpIdle)
	})
}

// exchange carries packets both ways until neither way has seen one for idle, or ctx ends.
func exchange(ctx context.Context, in, out net.Conn, idle time.Duration) {
	stop := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
	defer stop()
	quiet := time.AfterFunc(idle, func() { in.Close(); out.Close() })
	defer quiet.Stop()
	var both sync.WaitGroup
	carry := func(to, from net.Conn) {
		b := make([]byte, 64<<10)
		for {
			n, err := from.Read(b)
			if err != nil {
				// Refused by the other side, or closed. The flow begins anew with the next packet.
				in.Close()
				out.Close()
				return
			}
			quiet.Reset(idle)
			_, _ = to.Write(b[:n])
		}
	}
	both.Go(func() { carry(out, in) })
	both.Go(func() { carry(in, out) })
	both.Wait()
}
