//go:build linux

package flannel

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// node is what we need to know of a Node. The objects are large and change all the time, so only this
// is kept.
type node struct {
	name, uid string
	podCIDR   netip.Prefix // zero until assigned
	lease     annotated
	// available tells that the condition NetworkUnavailable is there and False.
	available bool
}

// annotated is what flannel writes on a Node for the others to see.
type annotated struct {
	managed                        bool
	backend, publicIP, backendData string
}

// flannel's annotations, with its usual prefix so that other flannels in the cluster understand them.
const (
	prefix            = "flannel.alpha.coreos.com/"
	annotationManaged = prefix + "kube-subnet-manager"
	annotationBackend = prefix + "backend-type"
	annotationIP      = prefix + "public-ip"
	annotationData    = prefix + "backend-data"
)

func trim(n *corev1.Node) node {
	out := node{name: n.Name, uid: string(n.UID), lease: annotated{
		managed:     n.Annotations[annotationManaged] == "true",
		backend:     n.Annotations[annotationBackend],
		publicIP:    n.Annotations[annotationIP],
		backendData: n.Annotations[annotationData],
	}}
	for _, text := range append([]string{n.Spec.PodCIDR}, n.Spec.PodCIDRs...) {
		if p, err := netip.ParsePrefix(text); err == nil && p.Addr().Is4() {
			out.podCIDR = p.Masked()
			break
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable && c.Status == corev1.ConditionFalse {
			out.available = true
		}
	}
	return out
}

// nodes is the store behind a watch of all nodes. changed gets a token after every change that matters.
type nodes struct {
	changed chan struct{}

	mu  sync.Mutex // guards all
	all map[string]node
	// synced tells that all has been complete once.
	synced bool
}

func newNodes() *nodes { return &nodes{changed: make(chan struct{}, 1), all: map[string]node{}} }

// watch follows the nodes until ctx ends. It retries sooner than client-go usually does: at start the API
// server answers a moment before it authorizes us, and pods wait for this.
func (s *nodes) watch(ctx context.Context, client kubernetes.Interface) {
	api := client.CoreV1().Nodes()
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return api.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return api.Watch(ctx, o)
		},
	}, client)
	cache.NewReflectorWithOptions(lw, &corev1.Node{}, s, cache.ReflectorOptions{
		Name:    "flannel-nodes",
		Backoff: &wait.Backoff{Duration: 100 * time.Millisecond, Cap: 5 * time.Second, Steps: 50, Factor: 1.5, Jitter: 0.2},
	}).RunWithContext(ctx)
}

// snapshot returns the nodes by name; ok is false until all are known.
func (s *nodes) snapshot() (all map[string]node, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.all), s.synced
}

func (s *nodes) change(f func() bool) {
	s.mu.Lock()
	relevant := f()
	s.mu.Unlock()
	if relevant {
		select {
		case s.changed <- struct{}{}:
		default:
		}
	}
}

// Add implements cache.ReflectorStore.
func (s *nodes) Add(obj any) error {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return fmt.Errorf("watching nodes brought a %T", obj)
	}
	t := trim(n)
	s.change(func() bool {
		old, known := s.all[t.name]
		s.all[t.name] = t
		return !known || old != t
	})
	return nil
}

// Update implements cache.ReflectorStore.
func (s *nodes) Update(obj any) error { return s.Add(obj) }

// Delete implements cache.ReflectorStore.
func (s *nodes) Delete(obj any) error {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return fmt.Errorf("watching nodes brought a %T", obj)
	}
	s.change(func() bool { delete(s.all, n.Name); return true })
	return nil
}

// Replace implements cache.ReflectorStore.
func (s *nodes) Replace(list []any, _ string) error {
	all := make(map[string]node, len(list))
	for _, obj := range list {
		n, ok := obj.(*corev1.Node)
		if !ok {
			return fmt.Errorf("listing nodes brought a %T", obj)
		}
		all[n.Name] = trim(n)
	}
	s.change(func() bool {
		relevant := !s.synced || !maps.Equal(s.all, all)
		s.all, s.synced = all, true
		return relevant
	})
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing to do.
func (s *nodes) Resync() error { return nil }
