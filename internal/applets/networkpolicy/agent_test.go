package networkpolicy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"k1s.io/k1s/internal/applets/networkpolicy/gate"
	"k1s.io/k1s/internal/applets/networkpolicy/rules"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/wait"
)

// memory is a kernel that is a state.
type memory struct {
	mu      sync.Mutex // guards what follows
	state   rules.State
	applied [][]rules.Op // those that changed something
	failing error
}

func (m *memory) there(context.Context) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.state.Empty(), m.failing
}

func (m *memory) read(context.Context) (rules.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.Apply(nil), m.failing
}

func (m *memory) apply(_ context.Context, ops []rules.Op) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failing == nil && len(ops) > 0 && m.state.Empty() && ops[0].Kind != rules.AddTable {
		return errors.New("there is no table")
	}
	if m.failing == nil && len(ops) > 0 {
		m.state = m.state.Apply(ops)
		m.applied = append(m.applied, ops)
	}
	return m.failing
}

func (m *memory) do(f func(*memory)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(m)
}

// isolated tells whether an address is in the set of those that policies are for.
func (m *memory) isolated(ip string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.state.Sets["ingress4"].Elements[ip]
	return ok
}

func until(t *testing.T, what string, probe func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := wait.Until(ctx, 5*time.Millisecond, what, func(context.Context) error {
		if probe() {
			return nil
		}
		return errors.New("not yet")
	})
	if err != nil {
		t.Fatal(err)
	}
}

// cluster is a fake API server. It has no revisions: what happens between a list and its watch is not told to anybody, so a test
// waits for watches before it changes something.
type cluster struct {
	*fake.Clientset
	mu     sync.Mutex // guards opened
	opened map[string]int
}

func newCluster(objects ...runtime.Object) *cluster {
	c := &cluster{Clientset: fake.NewClientset(objects...), opened: map[string]int{}}
	c.PrependWatchReactor("*", func(action clienttesting.Action) (bool, watch.Interface, error) {
		w, err := c.Tracker().Watch(action.GetResource(), action.GetNamespace())
		c.mu.Lock()
		defer c.mu.Unlock()
		c.opened[action.GetResource().Resource]++
		return true, w, err
	})
	return c
}

// watched waits until watches of some kinds have been opened so often.
func (c *cluster) watched(t *testing.T, times int, kinds ...string) {
	t.Helper()
	for _, kind := range kinds {
		until(t, fmt.Sprintf("watch %d of %s", times, kind), func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.opened[kind] >= times
		})
	}
}

func podObject(name, node string, ips ...string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"pod": name}},
		Spec:       corev1.PodSpec{NodeName: node},
	}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return p
}

func policyObject(name string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name}}
}

func namespaceObject(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"ns": name}}}
}

// runs starts an agent, which ends with the test.
func runs(t *testing.T, a *agent) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("the agent ended with %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// tell is what the CNI plugin does; the answer comes by the channel.
func tell(t *testing.T, a *agent, patience time.Duration, r gate.Request) <-chan error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	answer := make(chan error, 1)
	a.requests <- asking{Request: r, ctx: ctx, answer: answer}
	return answer
}

func added(name, ip string) gate.Request {
	return gate.Request{Namespace: "x", Name: name, UID: "uid-" + name, Container: "c-" + name, IPs: []netip.Addr{netip.MustParseAddr(ip)}}
}

func TestTheKernelFollowsTheCluster(t *testing.T) {
	client := newCluster(namespaceObject("x"), podObject("a", "me", "10.42.0.2"), podObject("far", "you", "10.42.1.2"))
	m := &memory{}
	a := newAgent(client, slog.New(slog.DiscardHandler), "me", m)
	stop := runs(t, a)
	<-a.inForce
	if m.do(func(m *memory) {
		if len(m.applied) != 0 {
			t.Errorf("without policies this is written: %v", m.applied)
		}
	}); len(client.Actions()) == 0 {
		t.Error("policies are not watched")
	}
	for _, action := range client.Actions() {
		if action.GetResource().Resource != "networkpolicies" {
			t.Errorf("without policies %s are watched", action.GetResource().Resource)
		}
	}

	client.watched(t, 1, "networkpolicies")
	api := client.NetworkingV1().NetworkPolicies("x")
	if _, err := api.Create(t.Context(), policyObject("p"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "the policy to be in force", func() bool { return m.isolated("10.42.0.2") })
	if m.isolated("10.42.1.2") {
		t.Error("another node's pod is isolated here")
	}
	client.watched(t, 1, "pods", "namespaces")
	pods := client.CoreV1().Pods("x")
	if _, err := pods.Create(t.Context(), podObject("b", "me", "10.42.0.3"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "another pod", func() bool { return m.isolated("10.42.0.3") })
	done := podObject("b", "me", "10.42.0.3")
	done.Status.Phase = corev1.PodSucceeded
	if _, err := pods.UpdateStatus(t.Context(), done, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "its end", func() bool { return !m.isolated("10.42.0.3") })

	// What is there stays when the agent ends, and the next one finds nothing to do.
	stop()
	m.do(func(m *memory) { m.applied = nil })
	next := newAgent(client, slog.New(slog.DiscardHandler), "me", m)
	runs(t, next)
	<-next.inForce
	m.do(func(m *memory) {
		if len(m.applied) != 0 {
			t.Errorf("starting again writes %v", m.applied)
		}
	})
	client.watched(t, 2, "networkpolicies")
	if err := api.Delete(t.Context(), "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "the table's end", func() (gone bool) { m.do(func(m *memory) { gone = m.state.Empty() }); return gone })
	// And again: what was watched before is not taken for what is watched now.
	if _, err := api.Create(t.Context(), policyObject("q"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "another policy to be in force", func() bool { return m.isolated("10.42.0.2") && !m.isolated("10.42.0.3") })
}

func TestAPodStartsWhenItsPoliciesAreInForce(t *testing.T) {
	client := newCluster(namespaceObject("x"), policyObject("p"))
	m := &memory{}
	a := newAgent(client, slog.New(slog.DiscardHandler), "me", m)
	kept := make(chan map[rules.Key]assigned, 10)
	a.remember = func(all map[rules.Key]assigned) error { kept <- all; return nil }
	runs(t, a)
	<-a.inForce

	answer := tell(t, a, time.Minute, added("a", "10.42.0.2"))
	if len(<-kept) != 1 {
		t.Error("its address is not kept")
	}
	select {
	case err := <-answer:
		t.Fatalf("it may start before anybody knows of it: %v", err)
	default:
	}
	client.watched(t, 1, "pods")
	pods := client.CoreV1().Pods("x")
	if _, err := pods.Create(t.Context(), podObject("a", "me"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
	if !m.isolated("10.42.0.2") {
		t.Error("it may start without its policy")
	}
	// A sandbox made anew has another address; the API server tells the old one for a while.
	if _, err := pods.UpdateStatus(t.Context(), podObject("a", "me", "10.42.0.2"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	again := added("a", "10.42.0.9")
	again.Container = "second"
	if err := <-tell(t, a, time.Minute, again); err != nil {
		t.Fatal(err)
	}
	late := gate.Request{Gone: true, Namespace: "x", Name: "a", Container: "c-a"}
	if err := <-tell(t, a, time.Minute, late); err != nil {
		t.Fatal(err)
	}
	if !m.isolated("10.42.0.9") || m.isolated("10.42.0.2") {
		t.Error("the end of the first sandbox takes the second one's address away")
	}
	// One that the API server never tells of does not start.
	if err := <-tell(t, a, 50*time.Millisecond, added("ghost", "10.42.0.7")); err == nil || !strings.Contains(err.Error(), "has not told of pod x/ghost") {
		t.Errorf("a pod nobody knows: %v", err)
	}
}

func TestWithoutPoliciesPodsStartAtOnce(t *testing.T) {
	client := newCluster(namespaceObject("x"), podObject("a", "me"))
	m := &memory{}
	a := newAgent(client, slog.New(slog.DiscardHandler), "me", m)
	runs(t, a)
	<-a.inForce
	if err := <-tell(t, a, time.Minute, added("a", "10.42.0.2")); err != nil {
		t.Fatal(err)
	}
	// Its address was told before there was a policy, and is still not known to the API server.
	client.watched(t, 1, "networkpolicies")
	if _, err := client.NetworkingV1().NetworkPolicies("x").Create(t.Context(), policyObject("p"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "the policy to be in force", func() bool { return m.isolated("10.42.0.2") })
}

func TestAKernelThatRefusesIsAskedAgainAndPodsWait(t *testing.T) {
	client := newCluster(namespaceObject("x"), policyObject("p"), podObject("a", "me", "10.42.0.2"), podObject("b", "me"))
	m := &memory{failing: errors.New("no such luck")}
	a := newAgent(client, slog.New(slog.DiscardHandler), "me", m)
	runs(t, a)
	if err := <-tell(t, a, 500*time.Millisecond, added("b", "10.42.0.3")); err == nil {
		t.Error("a pod may start while its policies cannot be written")
	}
	m.do(func(m *memory) { m.failing = nil })
	until(t, "the policies to be in force", func() bool { return m.isolated("10.42.0.2") && m.isolated("10.42.0.3") })
	// Whatever fails later is found by comparing.
	client.watched(t, 1, "pods")
	m.do(func(m *memory) { m.failing = errors.New("again") })
	if _, err := client.CoreV1().Pods("x").Create(t.Context(), podObject("c", "me", "10.42.0.4"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	m.do(func(m *memory) { m.failing, m.state = nil, rules.State{} })
	until(t, "the policies to be in force again", func() bool { return m.isolated("10.42.0.2") && m.isolated("10.42.0.4") })
}

func TestATableThatSomethingElseRemovedComesBack(t *testing.T) {
	client := newCluster(namespaceObject("x"), policyObject("p"), podObject("a", "me", "10.42.0.2"))
	m := &memory{}
	a := newAgent(client, slog.New(slog.DiscardHandler), "me", m)
	a.look = 10 * time.Millisecond
	runs(t, a)
	for range 2 {
		until(t, "the policy to be in force", func() bool { return m.isolated("10.42.0.2") })
		m.do(func(m *memory) { m.state = rules.State{} })
	}
}

func TestAddressesOutliveTheProcess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kept.json")
	want := map[rules.Key]assigned{{Namespace: "x", Name: "a"}: {UID: "u", Container: "c", IPs: []netip.Addr{netip.MustParseAddr("fd00::5")}}}
	if got, err := kept(file); err != nil || len(got) != 0 {
		t.Errorf("without a file: %v, %v", got, err)
	}
	if err := keep(file, want); err != nil {
		t.Fatal(err)
	}
	if got, err := kept(file); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	// Those of pods that ended meanwhile are dropped when it is known who is left.
	client := newCluster(namespaceObject("x"), policyObject("p"), podObject("a", "me"))
	m := &memory{}
	a := newAgent(client, slog.New(slog.DiscardHandler), "me", m)
	for _, name := range []string{"a", "ended"} {
		k := rules.Key{Namespace: "x", Name: name}
		a.assigned[k] = assigned{UID: types.UID("uid-" + name), IPs: []netip.Addr{netip.MustParseAddr("10.42.0.5")}}
		a.inherited = append(a.inherited, k)
	}
	stop := runs(t, a)
	until(t, "the policy to be in force", func() bool { return m.isolated("10.42.0.5") })
	stop()
	if len(a.assigned) != 1 {
		t.Errorf("kept are %v", a.assigned)
	}
}

func TestArgumentsAreChecked(t *testing.T) {
	good := []string{"--kubeconfig=k", "--node-name=n", "--socket=s", "--state-file=f"}
	if _, err := parse(good); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"unexpected": append(good, "x"), "--socket is": append(good[:2:2], good[3]), "not defined: -wat": append(good, "--wat"),
	} {
		if _, err := parse(args); err == nil || !strings.Contains(err.Error(), want) || !errs.Is(err, errs.Usage) {
			t.Errorf("%v gives %v, want a usage error with %q", args, err, want)
		}
	}
}
