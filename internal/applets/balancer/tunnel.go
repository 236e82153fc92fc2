package balancer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"

	"k1s.io/k1s/internal/balancer"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/join"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/tunnel"
)

// nodeOptions are what is said about this node, for the servers' way to it.
type nodeOptions struct {
	name, ip, kubeletPort, podCIDR string
	// kubeconfig is the node's own, to learn of its pods; cert and key are what it opens tunnels with.
	kubeconfig, cert, key string
	stateFile             string
}

// scope reads what the node is responsible for, as far as it is known from the beginning.
func (o nodeOptions) scope() (tunnel.Scope, error) {
	var (
		s   tunnel.Scope
		bad []error
	)
	ip, err := netip.ParseAddr(o.ip)
	if err != nil {
		bad = append(bad, fmt.Errorf("--node-ip: %w", err))
	}
	s.Node = ip.Unmap()
	port, err := netip.ParseAddrPort("0.0.0.0:" + o.kubeletPort)
	if err != nil || port.Port() == 0 {
		bad = append(bad, fmt.Errorf("--kubelet-port %q is no port", o.kubeletPort))
	}
	s.Kubelet = port.Port()
	for cidr := range strings.SplitSeq(o.podCIDR, ",") {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			bad = append(bad, fmt.Errorf("--pod-cidr: %w", err))
			continue
		}
		s.Cluster = append(s.Cluster, p.Masked())
	}
	return s, errs.As(errs.Usage, errors.Join(bad...))
}

// guard decides what this node connects to for servers. It asks the API only when it has to: for the network of
// its pods when a target is one of the cluster's pods and in none that is known, and for its pods when a target is in none of its networks.
type guard struct {
	scope tunnel.Scope
	// networks and pods ask the API about this node.
	networks func(context.Context) ([]netip.Prefix, error)
	pods     func(context.Context) ([]tunnel.Pod, error)
	own      func() ([]netip.Addr, error)

	mu      sync.Mutex // guards what follows; not held while the API is asked
	known   []netip.Prefix
	knownA  time.Time
	listed  []tunnel.Pod
	listedA time.Time
}

// podsFresh is for how long a list of pods or networks counts: a server that asks for what is nobody's makes no more requests than that.
const podsFresh = 2 * time.Second

// allow tells why this node does not connect to a target; nil is that it does.
func (g *guard) allow(ctx context.Context, to netip.AddrPort) error {
	s := g.scope
	if to.Addr() == s.Node && to.Port() == s.Kubelet {
		return nil
	}
	var err error
	if s.Own, err = g.own(); err != nil {
		return fmt.Errorf("finding this machine's addresses: %w", err)
	}
	if slices.ContainsFunc(s.Cluster, func(p netip.Prefix) bool { return p.Contains(to.Addr()) }) {
		if s.Pods, err = g.podNetworks(ctx, to.Addr()); err != nil {
			return fmt.Errorf("finding the network of this node's pods: %w", err)
		}
	}
	if s.Allows(to) {
		return nil
	}
	pods, err := g.podList(ctx)
	if err != nil {
		return fmt.Errorf("finding the pods of this node: %w", err)
	}
	if s.AllowsPod(to, pods) {
		return nil
	}
	return s.Foreign(to)
}

// podNetworks are those of this node's pods. It keeps them as long as its Node is there; a Node that was deleted and made anew has others.
func (g *guard) podNetworks(ctx context.Context, to netip.Addr) ([]netip.Prefix, error) {
	g.mu.Lock()
	known, at := g.known, g.knownA
	g.mu.Unlock()
	if slices.ContainsFunc(known, func(p netip.Prefix) bool { return p.Contains(to) }) || len(known) > 0 && time.Since(at) < podsFresh {
		return known, nil
	}
	known, err := g.networks(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err == nil {
		g.known, g.knownA = known, time.Now()
	}
	return known, err
}

func (g *guard) podList(ctx context.Context) ([]tunnel.Pod, error) {
	g.mu.Lock()
	listed, at := g.listed, g.listedA
	g.mu.Unlock()
	if !at.IsZero() && time.Since(at) < podsFresh {
		return listed, nil
	}
	listed, err := g.pods(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err == nil {
		g.listed, g.listedA = listed, time.Now()
	}
	return listed, err
}

// asksAPI lets the guard learn of the node with the node's own rights.
func (g *guard) asksAPI(kubeconfig, node string) {
	client := sync.OnceValues(func() (corev1client.CoreV1Interface, error) {
		config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return nil, err
		}
		return corev1client.NewForConfig(config)
	})
	g.networks = func(ctx context.Context) ([]netip.Prefix, error) {
		c, err := client()
		if err != nil {
			return nil, err
		}
		n, err := c.Nodes().Get(ctx, node, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		var out []netip.Prefix
		for _, cidr := range n.Spec.PodCIDRs {
			p, err := netip.ParsePrefix(cidr)
			if err != nil {
				return nil, err
			}
			out = append(out, p)
		}
		return out, nil
	}
	g.pods = func(ctx context.Context) ([]tunnel.Pod, error) {
		c, err := client()
		if err != nil {
			return nil, err
		}
		list, err := c.Pods("").List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node).String(), ResourceVersion: "0"})
		if err != nil {
			return nil, err
		}
		out := make([]tunnel.Pod, 0, len(list.Items))
		for i := range list.Items {
			if p, ok := podOf(&list.Items[i]); ok {
				out = append(out, p)
			}
		}
		return out, nil
	}
}

// podOf is what matters of a pod here; one that has ended has no address any more, whatever is written.
func podOf(p *corev1.Pod) (tunnel.Pod, bool) {
	out := tunnel.Pod{HostNetwork: p.Spec.HostNetwork}
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return out, false
	}
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out.Addrs = append(out.Addrs, a.Unmap())
		}
	}
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		for _, port := range c.Ports {
			if port.ContainerPort > 0 && port.ContainerPort <= 65535 {
				out.Ports = append(out.Ports, uint16(port.ContainerPort))
			}
		}
	}
	return out, len(out.Addrs) > 0
}

// interfaces are the addresses of this machine.
func interfaces() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out, nil
}

// newNode makes the node's end of the tunnels.
func newNode(o nodeOptions, caFile string, log *slog.Logger) (*tunnel.Node, error) {
	scope, err := o.scope()
	if err != nil {
		return nil, err
	}
	g := &guard{scope: scope, own: interfaces}
	g.asksAPI(o.kubeconfig, o.name)
	return tunnel.NewNode(tunnel.NodeOptions{
		Log: log, Allow: g.allow,
		Connect: func(ctx context.Context, server string) (tunnel.Connection, error) {
			return connect(ctx, o, caFile, server)
		},
	}), nil
}

// connect opens a connection to a server as this node, with the certificate and the CA it has now.
func connect(ctx context.Context, o nodeOptions, caFile, server string) (tunnel.Connection, error) {
	ca, err := pki.Pool(caFile)
	if err != nil {
		return tunnel.Connection{}, err
	}
	cert, err := tls.LoadX509KeyPair(o.cert, o.key)
	if err != nil {
		return tunnel.Connection{}, fmt.Errorf("reading this node's certificate: %w", err)
	}
	alive := net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}
	d := tls.Dialer{NetDialer: &net.Dialer{KeepAliveConfig: alive}, Config: &tls.Config{
		RootCAs: ca, ServerName: join.ServerName, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		NextProtos: []string{"http/1.1"}, // the tunnel itself is HTTP/2, with the roles exchanged
	}}
	c, err := d.DialContext(ctx, "tcp", server)
	if err != nil {
		return tunnel.Connection{}, err
	}
	return tunnel.Connection{Conn: c, NotBefore: cert.Leaf.NotBefore, NotAfter: cert.Leaf.NotAfter}, nil
}

// tellEvery is how often the state file is compared with how things are.
const tellEvery = 5 * time.Second

// tell keeps the state file until ctx ends.
func tell(ctx context.Context, file string, n *tunnel.Node, b *balancer.Balancer, log *slog.Logger) {
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	last := ""
	for {
		text, err := json.Marshal(state(n.Servers(), b.Servers()))
		if err == nil && string(text) != last {
			if err = durable.WriteFile(file, append(text, '\n'), 0o600); err == nil {
				last = string(text)
			}
		}
		if err != nil {
			log.Error("which servers can reach this node cannot be told", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// state is what is told: for a server that cannot reach this node, also whether this node reaches it.
func state(tunnels []tunnel.ServerState, servers []balancer.Server) control.Tunnels {
	var out control.Tunnels
	for _, t := range tunnels {
		s := control.TunnelServer{Server: t.Server, Connected: t.Connected, Since: t.Since.UTC().Truncate(time.Second), Note: t.Note}
		s.Answers = slices.ContainsFunc(servers, func(b balancer.Server) bool { return b.Addr == t.Server && b.Healthy })
		out.Servers = append(out.Servers, s)
	}
	return out
}
