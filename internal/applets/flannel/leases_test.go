//go:build linux

package flannel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"k1s.io/k1s/internal/errs"
)

func apiNode(name, podCIDR, publicIP, backend, data string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDR: podCIDR}}
	if podCIDR != "" {
		n.Spec.PodCIDRs = []string{podCIDR}
	}
	if publicIP != "" {
		n.Annotations = map[string]string{annotationManaged: "true", annotationBackend: backend, annotationIP: publicIP, annotationData: data}
	}
	return n
}

func view(list ...*corev1.Node) map[string]node {
	out := map[string]node{}
	for _, n := range list {
		out[n.Name] = trim(n)
	}
	return out
}

func TestBackendHearsWhatChangesAboutOtherNodes(t *testing.T) {
	var log bytes.Buffer
	l := &leases{
		nodeName: "me", config: &subnet.Config{BackendType: hostGW}, changed: make(chan struct{}, 1),
		log: slog.New(slog.NewTextHandler(&log, nil)), direct: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
	}
	told := map[string]lease.Lease{}
	me := apiNode("me", "10.42.0.0/24", "192.0.2.1", hostGW, "null")
	for _, step := range []struct {
		what string
		all  map[string]node
		want string
	}{
		{"itself is not told", view(me), ""},
		{"without a CIDR", view(me, apiNode("a", "", "192.0.2.2", hostGW, "null")), ""},
		{"without annotations", view(me, apiNode("a", "10.42.1.0/24", "", "", "")), ""},
		{"complete", view(me, apiNode("a", "10.42.1.0/24", "192.0.2.2", hostGW, "null")), "+10.42.1.0/24 192.0.2.2"},
		{"the same again", view(me, apiNode("a", "10.42.1.0/24", "192.0.2.2", hostGW, "null")), ""},
		{"new address", view(me, apiNode("a", "10.42.1.0/24", "192.0.2.3", hostGW, "null")), "-10.42.1.0/24 192.0.2.2 +10.42.1.0/24 192.0.2.3"},
		{"its CIDR goes to another", view(me, apiNode("b", "10.42.1.0/24", "192.0.2.4", hostGW, "null")), "-10.42.1.0/24 192.0.2.3 +10.42.1.0/24 192.0.2.4"},
		{"other backend", view(me, apiNode("b", "10.42.1.0/24", "192.0.2.4", vxlan, "{}")), "-10.42.1.0/24 192.0.2.4"},
		{"bad address", view(me, apiNode("b", "10.42.1.0/24", "x", hostGW, "null")), ""},
		{"far away", view(me, apiNode("c", "10.42.2.0/24", "198.51.100.1", hostGW, "null")), "+10.42.2.0/24 198.51.100.1"},
		{"gone", view(), "-10.42.2.0/24 198.51.100.1"},
	} {
		l.update(step.all)
		var got []string
		for _, e := range l.events(told) {
			sign := map[lease.EventType]string{lease.EventAdded: "+", lease.EventRemoved: "-"}[e.Type]
			got = append(got, fmt.Sprintf("%s%s %s", sign, e.Lease.Subnet, e.Lease.Attrs.PublicIP))
		}
		if s := strings.Join(got, " "); s != step.want {
			t.Errorf("%s: events are %q, want %q", step.what, s, step.want)
		}
	}
	for _, want := range []string{"another backend", "annotation is wrong", "not on this node's network"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("nobody was told %q:\n%s", want, log.String())
		}
	}
}

func TestOnlyRelevantChangesOfNodesWakeUs(t *testing.T) {
	s := newNodes()
	woken := func() bool {
		select {
		case <-s.changed:
			return true
		default:
			return false
		}
	}
	n := apiNode("a", "", "", "", "")
	if _, ok := s.snapshot(); ok {
		t.Error("complete before the first list")
	}
	for _, step := range []struct {
		what string
		do   func() error
		want bool
	}{
		{"first list", func() error { return s.Replace([]any{n}, "1") }, true},
		{"same list", func() error { return s.Replace([]any{n}, "2") }, false},
		{"heartbeat", func() error {
			c := n.DeepCopy()
			c.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
			return s.Update(c)
		}, false},
		{"CIDR", func() error { return s.Update(apiNode("a", "10.42.0.0/24", "", "", "")) }, true},
		{"gone", func() error { return s.Delete(n) }, true},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := woken(); got != step.want {
			t.Errorf("%s: woken %t, want %t", step.what, got, step.want)
		}
	}
	if err := s.Add(&corev1.Pod{}); err == nil {
		t.Error("something that is no node is taken")
	}
}

func TestIPv4CIDRIsFoundAmongSeveral(t *testing.T) {
	n := &corev1.Node{Spec: corev1.NodeSpec{PodCIDR: "fd00::/64", PodCIDRs: []string{"fd00::/64", "10.42.1.0/24"}}}
	if got := trim(n).podCIDR.String(); got != "10.42.1.0/24" {
		t.Errorf("got %s", got)
	}
}

func TestLinkAddressIsKeptOverRestarts(t *testing.T) {
	const mac = "02:00:00:00:00:01"
	for data, want := range map[string]string{
		`{"VNI":1,"VtepMAC":"` + mac + `"}`: mac, `{"VNI":1,"VtepMAC":"x"}`: "", "null": "", "": "",
	} {
		if got := macOf(annotated{backend: vxlan, backendData: data}); got != want {
			t.Errorf("%s gives %q, want %q", data, got, want)
		}
	}
}

func TestReadOnlySettingsAreAnErrorWithARemedy(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "net/ipv4/ip_forward")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := sysctl(dir, "net/ipv4/ip_forward", "1"); err != nil {
		t.Error(err)
	}
	if after, err := os.Stat(file); err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Error("a setting that is right is written")
	}
	// The kernel refuses to change this one, even to root.
	err = sysctl(procSys, "kernel/ostype", "k1s")
	if err == nil {
		t.Fatal("changing kernel.ostype succeeds")
	}
	if hint, _ := errs.HintOf(err); !strings.Contains(hint, "sysctl -w kernel.ostype=k1s") {
		t.Errorf("hint is %q of %v", hint, err)
	}
}

func TestAnAPIServerThatIsNotReadyYetIsAskedAgain(t *testing.T) {
	client := fake.NewClientset(apiNode("a", "10.42.0.0/24", "", "", ""))
	refused := 0
	client.PrependReactor("list", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
		if refused < 3 {
			refused++
			return true, nil, apierrors.NewForbidden(corev1.Resource("nodes"), "", errors.New("roles are not there yet"))
		}
		return false, nil, nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	s := newNodes()
	go func() { defer close(ended); s.watch(ctx, client) }()
	<-s.changed
	if all, ok := s.snapshot(); !ok || len(all) != 1 {
		t.Errorf("known are %v, complete %t", all, ok)
	}
	cancel()
	<-ended
}

// A machine that was removed and goes on, or whose Node somebody has deleted, is another Node when kubelet has started again.
func TestPodsOfANewNodeDoNotGetAddressesOfTheOneBefore(t *testing.T) {
	for name, c := range map[string]struct {
		all    map[string]node
		looked bool
		stays  bool
	}{
		"it is just being made":        {view(apiNode("me", "", "", "", "")), true, false},
		"at the beginning":             {view(apiNode("me", "", "", "", ""), apiNode("other", "10.42.1.0/24", "", "", "")), false, false},
		"it is away at the beginning":  {view(apiNode("other", "10.42.1.0/24", "", "", "")), false, false},
		"it is away while pods run on": {view(apiNode("other", "10.42.1.0/24", "", "", "")), true, true},
	} {
		g := &glue{options: options{nodeName: "me", podCIDR: netip.MustParsePrefix("10.42.0.0/16"), cniConfDir: t.TempDir()}, log: slog.New(slog.DiscardHandler), looked: c.looked}
		theirs := filepath.Join(g.cniConfDir, "00-theirs.conflist")
		for _, f := range []string{filepath.Join(g.cniConfDir, conflistName), theirs} {
			if err := os.WriteFile(f, []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // the second time there is nothing left to be removed
			if err := g.reconcile(t.Context(), c.all); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := os.Stat(filepath.Join(g.cniConfDir, conflistName)); (err == nil) != c.stays {
			t.Errorf("%s: the CNI configuration of before: %v", name, err)
		}
		if _, err := os.Stat(theirs); err != nil {
			t.Errorf("%s: what others have put there: %v", name, err)
		}
	}
}
