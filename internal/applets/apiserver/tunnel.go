package apiserver

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/x509"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/egressselector"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/pkg/auth/nodeidentifier"

	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/tunnel"
)

// tunnels let this server reach nodes and pods through connections that nodes keep open to it, see package tunnel. What
// has no tunnel is connected to directly: a server's own node, other servers, and what is no node's.
type tunnels struct {
	server    *tunnel.Server
	stateFile string
	// byPods: pods have addresses of a network of the user's own, which nodes' pod CIDRs say nothing about.
	byPods  bool
	direct  utilnet.DialFunc
	changed chan struct{}
	dials   *metrics.CounterVec

	// Known once the configuration is built, and not changed afterwards.
	own   netip.Addr // this server's address
	nodes corelisters.NodeLister
	pods  corelisters.PodLister
}

// newTunnels is nil where no tunnels are wanted.
func newTunnels() (*tunnels, error) {
	file := os.Getenv(components.EnvTunnels)
	if file == "" {
		return nil, nil
	}
	t := &tunnels{
		stateFile: file, byPods: os.Getenv(components.EnvTunnelPods) != "", changed: make(chan struct{}, 1),
		// As upstream does without an egress selector.
		direct: http.DefaultTransport.(*http.Transport).DialContext,
		dials: metrics.NewCounterVec(&metrics.CounterOpts{
			Namespace: "k1s", Subsystem: "tunnel", Name: "dials_total", StabilityLevel: metrics.ALPHA,
			Help: "Connections from this API server to nodes, pods and services, by way (tunnel, direct) and result (ok, failed).",
		}, []string{"way", "result"}),
	}
	var err error
	t.server, err = tunnel.NewServer(tunnel.ServerOptions{Log: slog.With("component", "tunnel"), Changed: func() {
		select {
		case t.changed <- struct{}{}:
		default:
		}
	}})
	if err != nil {
		return nil, err
	}
	nodes := metrics.NewGaugeFunc(&metrics.GaugeOpts{
		Namespace: "k1s", Subsystem: "tunnel", Name: "nodes", StabilityLevel: metrics.ALPHA, Help: "Nodes with a tunnel to this API server.",
	}, func() float64 { return float64(len(t.server.Nodes())) })
	// Where several servers run in one process, which is in tests only, the first one's are shown.
	if err := errors.Join(legacyregistry.Register(t.dials), legacyregistry.Registerer().Register(nodes)); err != nil {
		slog.Debug("metrics of tunnels are shown already", "err", err)
	}
	return t, nil
}

// selector makes the API server connect to nodes, pods and services through tunnels.
func (t *tunnels) selector() *egressselector.EgressSelector {
	return egressselector.NewEgressSelectorWithMap(map[egressselector.EgressType]utilnet.DialFunc{egressselector.Cluster: t.dial})
}

// learnFrom takes nodes and pods from what the API server watches anyway, for its node authorizer.
func (t *tunnels) learnFrom(c *genericapiserver.Config, f informers.SharedInformerFactory) {
	if own, ok := netip.AddrFromSlice(c.PublicAddress); ok {
		t.own = own.Unmap()
	}
	t.nodes, t.pods = f.Core().V1().Nodes().Lister(), f.Core().V1().Pods().Lister()
}

// serve answers nodes that open tunnels. They are known by their certificates alone, and hold a connection for as long as they run, so
// they go past the API server's handlers.
func (t *tunnels) serve(config *app.Config) error {
	ca := config.KubeAPIs.ControlPlane.ClusterAuthenticationInfo.ClientCA
	if ca == nil {
		return errors.New("tunnels need the CA of client certificates: --client-ca-file")
	}
	who := x509.NewDynamic(ca.VerifyOptions, x509.CommonNameUserConversion)
	c := &config.Aggregator.GenericConfig.Config
	build := c.BuildHandlerChainFunc
	c.BuildHandlerChainFunc = func(apis http.Handler, c *genericapiserver.Config) http.Handler {
		return t.accept(build(apis, c), who)
	}
	return nil
}

func (t *tunnels) accept(next http.Handler, who authenticator.Request) http.Handler {
	identify := nodeidentifier.NewDefaultNodeIdentifier()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != tunnel.Path {
			next.ServeHTTP(w, r)
			return
		}
		resp, ok, err := who.AuthenticateRequest(r)
		if err != nil || !ok {
			w.Header().Set("Connection", "close")
			http.Error(w, "tunnels are opened by nodes, with their certificates", http.StatusUnauthorized)
			return
		}
		node, ok := identify.NodeIdentity(resp.User)
		if !ok || node == "" {
			slog.Warn("a tunnel was refused", "user", resp.User.GetName(), "from", r.RemoteAddr)
			w.Header().Set("Connection", "close")
			http.Error(w, "tunnels are opened by nodes only", http.StatusForbidden)
			return
		}
		t.server.Accept(w, r, node, r.TLS.PeerCertificates[0].NotAfter)
	})
}

// dial connects through the tunnel of the node a target is on, and directly where there is none, or the node does not see
// the target as its own. What a node tells of its own kubelet and pods is final.
func (t *tunnels) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	node := t.nodeOf(addr)
	if node == "" || !t.server.Has(node) {
		return t.directly(ctx, network, addr)
	}
	c, err := t.server.Dial(ctx, node, addr)
	if err == nil {
		t.dials.WithLabelValues("tunnel", "ok").Inc()
		return c, nil
	}
	if errors.Is(err, tunnel.ErrNoTunnel) {
		return t.directly(ctx, network, addr)
	}
	t.dials.WithLabelValues("tunnel", "failed").Inc()
	var final *tunnel.TargetError
	if errors.As(err, &final) || ctx.Err() != nil {
		return nil, err
	}
	c, direct := t.directly(ctx, network, addr)
	if direct != nil {
		return nil, fmt.Errorf("%w; directly: %w", err, direct)
	}
	return c, nil
}

func (t *tunnels) directly(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := t.direct(ctx, network, addr)
	result := "ok"
	if err != nil {
		result = "failed"
	}
	t.dials.WithLabelValues("direct", result).Inc()
	return c, err
}

// nodeOf is the node a target is on, "" for none that could have a tunnel.
func (t *tunnels) nodeOf(addr string) string {
	if !t.server.Any() {
		return "" // not even looked for: as on every cluster of one
	}
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return "" // a name: of something outside the cluster
	}
	nodes, err := t.nodes.List(labels.Everything())
	if err != nil {
		return "" // a cache cannot fail
	}
	return nodeOf(netip.AddrPortFrom(to.Addr().Unmap(), to.Port()), nodes, t.allPods, t.byPods)
}

func (t *tunnels) allPods() []*corev1.Pod {
	pods, err := t.pods.List(labels.Everything())
	if err != nil {
		return nil
	}
	return pods
}

// nodeOf decides which node a target is on. What counts first is what nodes cannot say of themselves: the networks of
// their pods. An address that two claim is nobody's, and so is a port of a node that is neither its kubelet's nor one a pod names.
func nodeOf(to netip.AddrPort, nodes []*corev1.Node, pods func() []*corev1.Pod, byPods bool) string {
	a := to.Addr()
	var found claim
	if byPods {
		for _, p := range pods() {
			if !p.Spec.HostNetwork && p.Spec.NodeName != "" && !ended(p) && hasAddr(p, a) {
				found.by(p.Spec.NodeName)
			}
		}
		if found.any {
			return found.node
		}
	}
	for _, n := range nodes {
		if slices.ContainsFunc(n.Spec.PodCIDRs, func(cidr string) bool {
			p, err := netip.ParsePrefix(cidr)
			return err == nil && p.Contains(a)
		}) {
			found.by(n.Name)
		}
	}
	if found.any {
		return found.node
	}
	var kubelet int32
	for _, n := range nodes {
		for _, own := range n.Status.Addresses {
			if ip, err := netip.ParseAddr(own.Address); err == nil && ip.Unmap() == a {
				found.by(n.Name)
				kubelet = n.Status.DaemonEndpoints.KubeletEndpoint.Port
				break
			}
		}
	}
	if found.node == "" || int32(to.Port()) == kubelet {
		return found.node
	}
	for _, p := range pods() {
		if p.Spec.HostNetwork && p.Spec.NodeName == found.node && names(p, int32(to.Port())) {
			return found.node
		}
	}
	return ""
}

// claim is what is known of whose an address is.
type claim struct {
	node string
	any  bool
}

func (c *claim) by(node string) {
	switch {
	case !c.any:
		*c = claim{node, true}
	case c.node != node:
		c.node = ""
	}
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func hasAddr(p *corev1.Pod, a netip.Addr) bool {
	return slices.ContainsFunc(p.Status.PodIPs, func(ip corev1.PodIP) bool {
		own, err := netip.ParseAddr(ip.IP)
		return err == nil && own.Unmap() == a
	})
}

// names tells whether a container of a pod names a port.
func names(p *corev1.Pod, port int32) bool {
	in := func(c corev1.Container) bool {
		return slices.ContainsFunc(c.Ports, func(cp corev1.ContainerPort) bool { return cp.ContainerPort == port })
	}
	return slices.ContainsFunc(p.Spec.Containers, in) || slices.ContainsFunc(p.Spec.InitContainers, in)
}

// How nodes are looked after that are Ready and have no tunnel.
const (
	lookEvery = 30 * time.Second
	lookAgain = 5 * time.Minute // at one that answers without
	lookLimit = 3 * time.Second
	lookWidth = 8
	misses    = 2 // in a row; a node that is started anew opens its tunnel between them
)

// watch tells, in the state file, which nodes have tunnels and which cannot be reached at all, until ctx ends.
func (t *tunnels) watch(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	seen := map[string]*sight{}
	last := "{}" // nothing to tell: a start has no time for files
	if _, err := os.Stat(t.stateFile); err == nil {
		last = "" // an earlier server's
	}
	for {
		t.look(ctx, seen)
		if ctx.Err() != nil {
			return
		}
		b, err := json.Marshal(t.state(seen))
		if err == nil && string(b) != last {
			if err = durable.WriteFile(t.stateFile, append(b, '\n'), 0o600); err == nil {
				last = string(b)
			}
		}
		if err != nil {
			slog.Error("which nodes have tunnels cannot be told", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-t.changed:
		}
	}
}

// sight is what is known of a node without a tunnel.
type sight struct {
	at     time.Time
	failed int // in a row
	reason string
}

// look tries nodes that are Ready and have no tunnel.
func (t *tunnels) look(ctx context.Context, seen map[string]*sight) {
	nodes, err := t.nodes.List(labels.Everything())
	if err != nil {
		return // a cache cannot fail
	}
	try := map[string]string{}
	for _, n := range nodes {
		if at := kubeletOf(n); at != "" && ready(n) && !t.server.Has(n.Name) && !t.isOwn(n) {
			try[n.Name] = at
		}
	}
	for name := range seen {
		if try[name] == "" {
			delete(seen, name)
		}
	}
	var wg sync.WaitGroup
	width := make(chan struct{}, lookWidth)
	for name, at := range try {
		s := seen[name]
		if s == nil {
			s = &sight{}
			seen[name] = s
		}
		pause := lookAgain
		if s.failed > 0 || s.at.IsZero() {
			pause = lookEvery / 2
		}
		if time.Since(s.at) < pause {
			continue
		}
		wg.Go(func() {
			width <- struct{}{}
			defer func() { <-width }()
			err := t.answers(ctx, at)
			s.at = time.Now()
			if err == nil {
				s.failed, s.reason = 0, ""
				return
			}
			s.failed++
			s.reason = err.Error()
		})
	}
	wg.Wait()
}

// answers connects to a kubelet, with TLS because a kubelet writes down who connects and says nothing.
func (t *tunnels) answers(ctx context.Context, at string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, lookLimit, fmt.Errorf("%s does not answer within %s", at, lookLimit))
	defer cancel()
	c, err := t.direct(ctx, "tcp", at)
	if err == nil {
		defer c.Close()
		// #nosec G402: nothing is told or asked, only whether somebody is there.
		err = tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}).HandshakeContext(ctx)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return err
}

func (t *tunnels) state(seen map[string]*sight) control.Tunnels {
	var out control.Tunnels
	for _, n := range t.server.Nodes() {
		out.Nodes = append(out.Nodes, control.TunnelNode{Name: n.Name, From: n.From, Since: n.Since.UTC().Truncate(time.Second)})
	}
	for name, s := range seen {
		if s.failed >= misses {
			out.Unreachable = append(out.Unreachable, control.UnreachableNode{Name: name, Reason: s.reason})
		}
	}
	slices.SortFunc(out.Unreachable, func(a, b control.UnreachableNode) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (t *tunnels) isOwn(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool {
		ip, err := netip.ParseAddr(a.Address)
		return err == nil && ip.Unmap() == t.own
	})
}

// kubeletOf is where the API server finds a kubelet, "" where it does not yet know.
func kubeletOf(n *corev1.Node) string {
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP && n.Status.DaemonEndpoints.KubeletEndpoint.Port != 0 {
			return net.JoinHostPort(a.Address, strconv.Itoa(int(n.Status.DaemonEndpoints.KubeletEndpoint.Port)))
		}
	}
	return ""
}

func ready(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}
