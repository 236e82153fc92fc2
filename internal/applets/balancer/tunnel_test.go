package balancer

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k1s.io/k1s/internal/balancer"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/tunnel"
)

func theNode() nodeOptions {
	return nodeOptions{name: "agent-0", ip: "10.0.0.7", kubeletPort: "10250", podCIDR: "10.42.0.0/16"}
}

func TestTheAPIIsAskedOnlyWhenItHasToBe(t *testing.T) {
	scope, err := theNode().scope()
	if err != nil {
		t.Fatal(err)
	}
	var networks, pods int
	var away error
	g := &guard{
		scope: scope,
		own:   func() ([]netip.Addr, error) { return []netip.Addr{scope.Node, netip.MustParseAddr("10.42.1.1")}, nil },
		networks: func(context.Context) ([]netip.Prefix, error) {
			networks++
			return []netip.Prefix{netip.MustParsePrefix("10.42.1.0/24")}, away
		},
		pods: func(context.Context) ([]tunnel.Pod, error) {
			pods++
			return []tunnel.Pod{{Addrs: []netip.Addr{scope.Node}, HostNetwork: true, Ports: []uint16{9443}}}, away
		},
	}
	ask := func(to string, want bool, wantNetworks, wantPods int) {
		t.Helper()
		err := g.allow(t.Context(), netip.MustParseAddrPort(to))
		if (err == nil) != want || networks != wantNetworks || pods != wantPods {
			t.Errorf("%s: %v, after asking %d times for networks and %d for pods", to, err, networks, pods)
		}
	}
	away = errors.New("no server answers")
	ask("10.0.0.7:10250", true, 0, 0) // whatever the API does
	ask("10.42.1.5:80", false, 1, 0)
	away = nil
	ask("10.42.1.5:80", true, 2, 0)
	ask("10.42.1.6:80", true, 2, 0)
	ask("10.0.0.7:9443", true, 2, 1)
	// A server that asks for what is not the node's makes it ask no more often than that.
	for _, foreign := range []string{"10.42.1.1:22", "10.0.0.7:22", "10.42.2.5:80", "192.168.1.1:443", "127.0.0.1:6443", "169.254.169.254:80"} {
		ask(foreign, false, 2, 1)
	}
	if err := g.allow(t.Context(), netip.MustParseAddrPort("192.168.1.1:443")); err == nil || !strings.Contains(err.Error(), "192.168.1.1:443 is neither") {
		t.Errorf("%v", err)
	}
}

// As after the node was removed and has joined again.
func TestANodeThatWasMadeAnewHasAnotherNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		scope, err := theNode().scope()
		if err != nil {
			t.Fatal(err)
		}
		network, asked := netip.MustParsePrefix("10.42.1.0/24"), 0
		g := &guard{
			scope: scope, own: func() ([]netip.Addr, error) { return []netip.Addr{scope.Node}, nil },
			networks: func(context.Context) ([]netip.Prefix, error) { asked++; return []netip.Prefix{network}, nil },
			pods:     func(context.Context) ([]tunnel.Pod, error) { return nil, nil },
		}
		ask := func(to string, want bool, wantAsked int) {
			t.Helper()
			if err := g.allow(t.Context(), netip.MustParseAddrPort(to)); (err == nil) != want || asked != wantAsked {
				t.Errorf("%s: %v, after asking %d times", to, err, asked)
			}
		}
		ask("10.42.1.5:80", true, 1)
		network = netip.MustParsePrefix("10.42.7.0/24")
		ask("10.42.7.5:80", false, 1) // not at each question
		time.Sleep(podsFresh)
		ask("10.42.1.6:80", true, 1) // what is known is not asked for
		ask("10.42.7.5:80", true, 2)
		ask("10.42.1.6:80", false, 2)
		time.Sleep(podsFresh)
		ask("192.168.1.1:80", false, 2) // nobody's pod
		ask("10.42.9.5:80", false, 3)
	})
}

func TestWhatIsSaidOfTheNodeIsChecked(t *testing.T) {
	good := theNode()
	good.podCIDR = "10.42.0.1/16,fd42::/48"
	s, err := good.scope()
	if err != nil || s.Kubelet != 10250 || s.Node.String() != "10.0.0.7" || len(s.Cluster) != 2 || s.Cluster[0].String() != "10.42.0.0/16" {
		t.Errorf("%+v, %v", s, err)
	}
	for name, change := range map[string]func(*nodeOptions){
		"--node-ip": func(o *nodeOptions) { o.ip = "agent-0" }, "--kubelet-port": func(o *nodeOptions) { o.kubeletPort = "0" }, "--pod-cidr": func(o *nodeOptions) { o.podCIDR = "10.42.0.0/16," },
	} {
		o := theNode()
		change(&o)
		if _, err := o.scope(); err == nil || !errs.Is(err, errs.Usage) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPodsThatHaveEndedHaveNoAddress(t *testing.T) {
	p := &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.42.1.5"}, {IP: "bad"}}}}
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 80}, {ContainerPort: 70000}}}}
	want := tunnel.Pod{Addrs: []netip.Addr{netip.MustParseAddr("10.42.1.5")}, Ports: []uint16{80}}
	if got, ok := podOf(p); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, ok)
	}
	p.Status.Phase = corev1.PodFailed
	if _, ok := podOf(p); ok {
		t.Error("a pod that has failed counts")
	}
}

func TestItIsToldWhetherAServerThatHasNoTunnelAnswers(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 5, time.UTC)
	got := state(
		[]tunnel.ServerState{{Server: "10.0.0.1:6443", Connected: true, Since: now, Streams: 3}, {Server: "10.0.0.2:6443", Since: now, Note: "refused"}, {Server: "10.0.0.3:6443", Since: now, Note: "refused"}},
		[]balancer.Server{{Addr: "10.0.0.1:6443", Healthy: true}, {Addr: "10.0.0.2:6443", Healthy: true}, {Addr: "10.0.0.3:6443"}})
	since := now.Truncate(time.Second)
	want := control.Tunnels{Servers: []control.TunnelServer{
		{Server: "10.0.0.1:6443", Connected: true, Since: since, Answers: true}, {Server: "10.0.0.2:6443", Since: since, Answers: true, Note: "refused"}, {Server: "10.0.0.3:6443", Since: since, Note: "refused"},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
