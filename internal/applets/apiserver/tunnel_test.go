package apiserver

import (
	"context"
	"crypto/tls"
	stdx509 "crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-base/metrics"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/tunnel"
)

func node(name, cidr string, port int32, addrs ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if cidr != "" {
		n.Spec.PodCIDRs = []string{cidr}
	}
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: name})
	n.Status.DaemonEndpoints.KubeletEndpoint.Port = port
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	return n
}

func pod(name, node, ip string, hostNetwork bool, ports ...int32) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: corev1.PodSpec{NodeName: node, HostNetwork: hostNetwork}}
	if ip != "" {
		p.Status.PodIPs = []corev1.PodIP{{IP: ip}}
	}
	c := corev1.Container{}
	for _, port := range ports {
		c.Ports = append(c.Ports, corev1.ContainerPort{ContainerPort: port})
	}
	p.Spec.Containers = []corev1.Container{c}
	return p
}

func TestATargetIsOnTheNodeThatCannotHaveMadeItUp(t *testing.T) {
	nodes := []*corev1.Node{
		node("server-0", "10.42.0.0/24", 10250, "10.0.0.1"),
		node("agent-0", "10.42.1.0/24", 10250, "10.0.0.7"),
		node("agent-1", "10.42.2.0/24", 10250, "10.0.0.8", "fd00::8"),
		// Says that its address is that of a pod elsewhere, and that of another node.
		node("evil", "10.42.3.0/24", 10250, "10.42.1.5", "10.0.0.8"),
		node("new", "", 0),
	}
	gone := pod("gone", "agent-0", "172.30.0.9", false)
	gone.Status.Phase = corev1.PodSucceeded
	pods := []*corev1.Pod{
		pod("a", "agent-0", "172.30.0.1", false, 80), pod("b", "agent-1", "172.30.0.2", false), pod("twice", "agent-1", "172.30.0.1", false),
		pod("host", "agent-0", "10.0.0.7", true, 9443), pod("liar", "evil", "10.0.0.7", true, 9000), pod("moved", "agent-1", "10.42.1.77", false), gone,
	}
	for name, tc := range map[string]struct {
		byPods bool
		want   map[string]string
	}{
		"networks of pods are those of their nodes": {false, map[string]string{
			"10.42.1.5:443": "agent-0", "10.42.2.9:8443": "agent-1", "10.42.1.77:80": "agent-0", "10.42.9.9:80": "",
			"10.0.0.7:10250": "agent-0", "10.0.0.1:10250": "server-0", "[fd00::8]:10250": "agent-1", "10.0.0.8:10250": "",
			"10.0.0.7:9443": "agent-0", "10.0.0.7:22": "", "10.0.0.7:9000": "", "10.0.0.9:10250": "", "172.30.0.2:80": "", "203.0.113.1:443": "",
		}},
		"networks of pods are the user's": {true, map[string]string{
			"172.30.0.2:80": "agent-1", "172.30.0.1:80": "", "172.30.0.9:80": "", "10.42.1.77:80": "agent-1", "10.42.1.5:443": "agent-0", "10.0.0.7:10250": "agent-0", "10.0.0.7:9443": "agent-0",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			for to, want := range tc.want {
				if got := nodeOf(netip.MustParseAddrPort(to), nodes, func() []*corev1.Pod { return pods }, tc.byPods); got != want {
					t.Errorf("%s: %q, want %q", to, got, want)
				}
			}
		})
	}
}

// fakeTunnels knows nodes, reaches nothing directly but what is in direct, and accepts every tunnel as agent-0's.
func fakeTunnels(t *testing.T, direct map[string]bool, nodes ...*corev1.Node) *tunnels {
	t.Helper()
	f := &tunnels{
		changed: make(chan struct{}, 1), stateFile: filepath.Join(t.TempDir(), "tunnels.json"), own: netip.MustParseAddr("10.0.0.1"),
		dials: metrics.NewCounterVec(&metrics.CounterOpts{Name: "k1s_test_dials_total"}, []string{"way", "result"}),
	}
	f.direct = func(_ context.Context, _, addr string) (net.Conn, error) {
		if !direct[addr] {
			return nil, errors.New("no route to " + addr)
		}
		near, far := net.Pipe()
		_ = far.Close()
		return near, nil
	}
	var err error
	f.server, err = tunnel.NewServer(tunnel.ServerOptions{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Changed: func() {
		select {
		case f.changed <- struct{}{}:
		default:
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.server.Close)
	ni, pi := cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil), cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil)
	for _, n := range nodes {
		if err := ni.Add(n); err != nil {
			t.Fatal(err)
		}
	}
	f.nodes, f.pods = corelisters.NewNodeLister(ni), corelisters.NewPodLister(pi)
	return f
}

// opens a tunnel as agent-0, whose kubelet and pods are all at an address that echoes; refused is what it refuses.
func (t *tunnels) opens(tt *testing.T, refused string) {
	tt.Helper()
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.server.Accept(w, r, "agent-0", time.Now().Add(time.Hour))
	}))
	n := tunnel.NewNode(tunnel.NodeOptions{
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Connect: func(ctx context.Context, server string) (tunnel.Connection, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", server)
			return tunnel.Connection{Conn: c, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}, err
		},
		Allow: func(_ context.Context, to netip.AddrPort) error {
			if to.String() == refused {
				return errors.New("it is not mine")
			}
			return nil
		},
		Dial: func(_ context.Context, to netip.AddrPort) (net.Conn, error) {
			if to.Port() == 1 {
				return nil, errors.New("connection refused")
			}
			near, far := net.Pipe()
			go func() {
				_, _ = io.WriteString(far, "through the tunnel")
				_ = far.Close()
			}()
			return near, nil
		},
	})
	n.Set([]string{h.Listener.Addr().String()}, "")
	ctx, cancel := context.WithCancel(tt.Context())
	var wg sync.WaitGroup
	wg.Go(func() { n.Run(ctx) })
	tt.Cleanup(func() {
		cancel()
		wg.Wait()
		h.Close()
	})
	<-t.changed
}

func TestTheAPIServerGoesThroughTunnelsWhereThereAreSome(t *testing.T) {
	f := fakeTunnels(t, map[string]bool{"10.0.0.1:10250": true, "10.0.0.8:10250": true, "10.42.1.6:443": true, "webhook.example:443": true},
		node("server-0", "10.42.0.0/24", 10250, "10.0.0.1"), node("agent-0", "10.42.1.0/24", 10250, "10.0.0.7"), node("agent-1", "10.42.2.0/24", 10250, "10.0.0.8"))
	says := func(addr string) (string, error) {
		c, err := f.dial(t.Context(), "tcp", addr)
		if err != nil {
			return "", err
		}
		defer c.Close()
		b, err := io.ReadAll(c)
		return string(b), err
	}
	if _, err := says("10.0.0.7:10250"); err == nil || err.Error() != "no route to 10.0.0.7:10250" {
		t.Errorf("before there is a tunnel: %v", err)
	}
	f.opens(t, "10.42.1.6:443")
	for addr, want := range map[string]string{
		"10.0.0.7:10250": "through the tunnel", "10.42.1.5:443": "through the tunnel",
		"10.0.0.1:10250": "", "10.0.0.8:10250": "", "webhook.example:443": "", // these directly
		"10.42.1.6:443": "", // it is refused there, and reached directly
	} {
		if got, err := says(addr); err != nil || got != want {
			t.Errorf("%s: %q, %v", addr, got, err)
		}
	}
	// What the node says of its own is final; what it refuses is tried, and both reasons are told.
	if _, err := says("10.42.1.5:1"); err == nil || strings.Contains(err.Error(), "no route") || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("a port where nobody listens: %v", err)
	}
	if _, err := says("10.42.2.5:443"); err == nil || err.Error() != "no route to 10.42.2.5:443" {
		t.Errorf("a pod of a node without a tunnel: %v", err)
	}
}

func TestOnlyNodesOpenTunnels(t *testing.T) {
	f := fakeTunnels(t, nil)
	next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	who := authenticator.RequestFunc(func(r *http.Request) (*authenticator.Response, bool, error) {
		switch name := r.Header.Get("As"); name {
		case "":
			return nil, false, nil
		case "broken":
			return nil, false, errors.New("the certificate has ended")
		default:
			u := &user.DefaultInfo{Name: name}
			if strings.HasPrefix(name, "system:node:") && name != "system:node:alone" {
				u.Groups = []string{user.NodesGroup}
			}
			return &authenticator.Response{User: u}, true, nil
		}
	})
	h := f.accept(next, who)
	for as, want := range map[string]int{
		"": http.StatusUnauthorized, "broken": http.StatusUnauthorized, "kubernetes-admin": http.StatusForbidden, "system:node:alone": http.StatusForbidden,
		"system:node:": http.StatusForbidden, "system:kube-proxy": http.StatusForbidden, "system:node:agent-0": http.StatusUpgradeRequired,
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, tunnel.Path, nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*stdx509.Certificate{{NotAfter: time.Now().Add(time.Hour)}}}
		r.Header.Set("As", as)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%q: %d, want %d", as, w.Code, want)
		}
	}
	for _, path := range []string{"/", tunnel.Path + "/", tunnel.Path + "s", "/api" + tunnel.Path} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		if w.Code != http.StatusTeapot {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	if f.server.Any() {
		t.Error("there is a tunnel")
	}
}

func TestNodesThatAreReachedInNoWayAreTold(t *testing.T) {
	notReady := node("off", "", 10250, "10.0.0.9")
	notReady.Status.Conditions[0].Status = corev1.ConditionUnknown
	f := fakeTunnels(t, nil, node("server-0", "", 10250, "10.0.0.1"), node("agent-0", "", 10250, "10.0.0.7"), node("agent-1", "", 10250, "10.0.0.8"), notReady, node("new", "", 0))
	f.opens(t, "")
	seen := map[string]*sight{}
	for range misses {
		if s := f.state(seen); len(s.Unreachable) > 0 {
			t.Errorf("too soon: %+v", s)
		}
		f.look(t.Context(), seen)
		for _, s := range seen {
			s.at = time.Time{} // a while later
		}
	}
	s := f.state(seen)
	if len(s.Nodes) != 1 || s.Nodes[0].Name != "agent-0" || len(s.Unreachable) != 1 || s.Unreachable[0] != (control.UnreachableNode{Name: "agent-1", Reason: "no route to 10.0.0.8:10250"}) {
		t.Errorf("%+v", s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { f.watch(ctx) })
	var told control.Tunnels
	for len(told.Nodes) == 0 && t.Context().Err() == nil {
		if b, err := os.ReadFile(f.stateFile); err == nil {
			if err := json.Unmarshal(b, &told); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	wg.Wait()
	if told.Nodes[0].Name != "agent-0" || told.Nodes[0].From == "" {
		t.Errorf("%+v", told)
	}
}
