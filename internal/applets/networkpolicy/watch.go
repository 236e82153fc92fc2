package networkpolicy

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"k1s.io/k1s/internal/applets/networkpolicy/rules"
)

// changes is a queue of what watches saw, for the one goroutine that may do it.
type changes struct {
	// some gets a token when the queue is no longer empty.
	some chan struct{}

	mu    sync.Mutex // guards queue
	queue []func()
}

func newChanges() *changes { return &changes{some: make(chan struct{}, 1)} }

func (c *changes) push(f func()) {
	c.mu.Lock()
	c.queue = append(c.queue, f)
	c.mu.Unlock()
	select {
	case c.some <- struct{}{}:
	default:
	}
}

// take empties the queue.
func (c *changes) take() []func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.queue
	c.queue = nil
	return out
}

// store puts what a watch sees into the queue, instead of keeping it: objects are large, and the engine has
// what is needed of them.
type store[T runtime.Object] struct {
	to      *changes
	set     func(T)
	drop    func(rules.Key)
	replace func([]T) // all there are
	key     func(T) rules.Key
}

func (s store[T]) object(obj any) (T, error) {
	out, ok := obj.(T)
	if !ok {
		return out, fmt.Errorf("watching brought a %T", obj)
	}
	return out, nil
}

// Add implements cache.ReflectorStore.
func (s store[T]) Add(obj any) error {
	o, err := s.object(obj)
	if err == nil {
		s.to.push(func() { s.set(o) })
	}
	return err
}

// Update implements cache.ReflectorStore.
func (s store[T]) Update(obj any) error { return s.Add(obj) }

// Delete implements cache.ReflectorStore.
func (s store[T]) Delete(obj any) error {
	o, err := s.object(obj)
	if err == nil {
		k := s.key(o)
		s.to.push(func() { s.drop(k) })
	}
	return err
}

// Replace implements cache.ReflectorStore.
func (s store[T]) Replace(list []any, _ string) error {
	all := make([]T, 0, len(list))
	for _, obj := range list {
		o, err := s.object(obj)
		if err != nil {
			return err
		}
		all = append(all, o)
	}
	s.to.push(func() { s.replace(all) })
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing to do.
func (store[T]) Resync() error { return nil }

// follow watches one kind of object until ctx ends. It retries sooner than client-go usually does: at start the API
// server answers a moment before it authorizes us, and pods wait for this.
func follow[T runtime.Object](ctx context.Context, client kubernetes.Interface, name string, example T, lw *cache.ListWatch, s store[T]) {
	cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, client), example, s, cache.ReflectorOptions{
		Name:    "network-policy-" + name,
		Backoff: &wait.Backoff{Duration: 100 * time.Millisecond, Cap: 5 * time.Second, Steps: 50, Factor: 1.5, Jitter: 0.2},
	}).RunWithContext(ctx)
}

func policiesOf(client kubernetes.Interface) *cache.ListWatch {
	api := client.NetworkingV1().NetworkPolicies(metav1.NamespaceAll)
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return api.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return api.Watch(ctx, o)
		},
	}
}

func namespacesOf(client kubernetes.Interface) *cache.ListWatch {
	api := client.CoreV1().Namespaces()
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return api.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return api.Watch(ctx, o)
		},
	}
}

// running leaves out pods that have ended: a cluster with jobs has many more of them than others.
var running = fields.AndSelectors(
	fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
	fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)),
).String()

func podsOf(client kubernetes.Interface) *cache.ListWatch {
	api := client.CoreV1().Pods(metav1.NamespaceAll)
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = running
			return api.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = running
			return api.Watch(ctx, o)
		},
	}
}

func keyOf(o metav1.Object) rules.Key {
	return rules.Key{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func policyKey(p *networkingv1.NetworkPolicy) rules.Key { return keyOf(p) }
func podKey(p *corev1.Pod) rules.Key                    { return keyOf(p) }
func namespaceKey(n *corev1.Namespace) rules.Key        { return keyOf(n) }
