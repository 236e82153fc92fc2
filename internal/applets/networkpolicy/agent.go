package networkpolicy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"k1s.io/k1s/internal/applets/networkpolicy/gate"
	"k1s.io/k1s/internal/applets/networkpolicy/rules"
)

// Pauses after a failure.
const (
	retryFirst = 250 * time.Millisecond
	retryMost  = 10 * time.Second
)

// lookAgain is how often it is made sure that the table is there: something else may flush all tables, as restarting a
// machine's own firewall does. Comparing all of it as often would cost more than enforcing it, with many policies.
const lookAgain = 15 * time.Second

// kernel is where states are written to.
type kernel interface {
	there(context.Context) (bool, error) // cheap
	read(context.Context) (rules.State, error)
	apply(context.Context, []rules.Op) error
}

// assigned are the addresses of a pod as its CNI plugin told them, which is before the API server knows.
type assigned struct {
	UID       types.UID    `json:"uid"`
	Container string       `json:"container"`
	IPs       []netip.Addr `json:"ips"`
}

// asking is a request of the CNI plugin that waits for its pod's policies.
type asking struct {
	gate.Request
	ctx    context.Context // ends when the plugin has lost patience
	answer chan<- error    // takes one without being read
}

func (a asking) key() rules.Key { return rules.Key{Namespace: a.Namespace, Name: a.Name} }

// agent holds together the watches, the engine and the kernel. One goroutine runs it, so nothing in it is locked.
type agent struct {
	client   kubernetes.Interface
	log      *slog.Logger
	nodeName string
	kernel   kernel
	// remember keeps the assigned addresses for the next process.
	remember func(map[rules.Key]assigned) error

	changes  *changes
	requests chan asking

	engine   *rules.Engine
	assigned map[rules.Key]assigned
	// inherited are those of the process before that may be of pods whose end nobody heard of.
	inherited []rules.Key
	fromAPI   map[rules.Key]rules.Pod // pods of this node, with the addresses that the API server knows
	waiting   []asking
	look      time.Duration // lookAgain
	policies  bool          // all are known
	peers     *peers        // watches of pods and namespaces; nil without policies
	written   bool          // the kernel's table is what the engine said last
	inForce   chan struct{}
}

// peers is one life of the watches of pods and namespaces.
type peers struct {
	stop             context.CancelFunc
	done             sync.WaitGroup
	pods, namespaces bool // all are known
}

func newAgent(client kubernetes.Interface, log *slog.Logger, nodeName string, k kernel) *agent {
	return &agent{
		client: client, log: log, nodeName: nodeName, kernel: k, remember: func(map[rules.Key]assigned) error { return nil },
		changes: newChanges(), requests: make(chan asking), engine: rules.NewEngine(rules.MinShape),
		look: lookAgain, assigned: map[rules.Key]assigned{}, fromAPI: map[rules.Key]rules.Pod{}, inForce: make(chan struct{}),
	}
}

// run enforces until ctx ends. inForce is closed when the policies known at start are in force.
func (a *agent) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var watched sync.WaitGroup
	watched.Go(func() {
		follow(ctx, a.client, "policies", &networkingv1.NetworkPolicy{}, policiesOf(a.client), store[*networkingv1.NetworkPolicy]{
			to: a.changes, key: policyKey,
			set:  func(p *networkingv1.NetworkPolicy) { a.engine.SetPolicy(p) },
			drop: func(k rules.Key) { a.engine.DeletePolicy(k) },
			replace: func(all []*networkingv1.NetworkPolicy) {
				gone := keys(a.engine.PolicyKeys())
				for _, p := range all {
					delete(gone, policyKey(p))
					a.engine.SetPolicy(p)
				}
				for k := range gone {
					a.engine.DeletePolicy(k)
				}
				a.policies = true
			},
		})
	})
	defer watched.Wait()
	defer a.stopPeers()
	defer cancel()
	defer func() {
		a.answer(func(asking) (bool, error) { return true, errors.New("k1s is stopping; the kubelet will try again") })
	}()

	retry := time.NewTimer(0)
	<-retry.C
	look := time.NewTicker(a.look)
	defer look.Stop()
	pause := retryFirst
	for {
		var late <-chan struct{}
		if len(a.waiting) > 0 { // the one that came first loses patience first
			late = a.waiting[0].ctx.Done()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.changes.some:
			for _, do := range a.changes.take() {
				do()
			}
		case r := <-a.requests:
			a.hear(r)
		case <-late:
		case <-retry.C:
		case <-look.C:
			if a.written && a.engine.Policies() > 0 {
				there, err := a.kernel.there(ctx)
				a.written = there && err == nil
			}
		}
		if err := a.enforce(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			a.log.Warn("network policies are not in force as they should be", "err", err, "after", pause)
			retry.Reset(pause)
			pause = min(2*pause, retryMost)
		} else {
			pause = retryFirst
		}
		a.answerWaiting()
	}
}

func keys(in []rules.Key) map[rules.Key]bool {
	out := make(map[rules.Key]bool, len(in))
	for _, k := range in {
		out[k] = true
	}
	return out
}

// known tells that everything the rules depend on has been heard of.
func (a *agent) known() bool {
	return a.policies && (a.engine.Policies() == 0 || a.peers != nil && a.peers.pods && a.peers.namespaces)
}

// enforce makes the kernel's table what it should be. Until everything is known it stays as it is.
func (a *agent) enforce(ctx context.Context) error {
	if !a.policies {
		return nil
	}
	switch {
	case a.engine.Policies() > 0 && a.peers == nil:
		a.startPeers(ctx)
	case a.engine.Policies() == 0 && a.peers != nil:
		a.stopPeers()
	}
	if !a.known() {
		return nil
	}
	ops := a.engine.Commit()
	if !a.written {
		old, err := a.kernel.read(ctx)
		if err != nil {
			return err
		}
		ops = rules.Diff(old, a.engine.State())
		if a.isInForce() && len(ops) > 0 {
			a.log.Warn("something else has removed or changed the table of network policies, or a change failed; it is put right", "table", rules.Table, "operations", len(ops))
		}
	}
	began := time.Now()
	a.written = false
	if err := a.kernel.apply(ctx, ops); err != nil {
		return err
	}
	a.written = true
	if len(ops) > 0 {
		a.log.Debug("network policies written", "operations", len(ops), "policies", a.engine.Policies(), "took", time.Since(began))
	}
	if !a.isInForce() {
		a.log.Info("network policies are in force", "policies", a.engine.Policies(), "changed", len(ops))
		close(a.inForce)
	}
	return nil
}

func (a *agent) isInForce() bool {
	select {
	case <-a.inForce:
		return true
	default:
		return false
	}
}

// startPeers begins to watch pods and namespaces.
func (a *agent) startPeers(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	p := &peers{stop: cancel}
	a.peers = p
	live := func(f func()) { // what an earlier life has left in the queue is old
		if a.peers == p {
			f()
		}
	}
	p.done.Go(func() {
		follow(ctx, a.client, "pods", &corev1.Pod{}, podsOf(a.client), store[*corev1.Pod]{
			to: a.changes, key: podKey,
			set:  func(pod *corev1.Pod) { live(func() { a.setPod(pod) }) },
			drop: func(k rules.Key) { live(func() { a.dropPod(k) }) },
			replace: func(all []*corev1.Pod) {
				live(func() {
					gone := keys(a.engine.PodKeys())
					for _, pod := range all {
						delete(gone, podKey(pod))
						a.setPod(pod)
					}
					for k := range gone {
						a.dropPod(k)
					}
					for _, k := range a.inherited {
						if a.fromAPI[k].UID != a.assigned[k].UID {
							delete(a.assigned, k)
						}
					}
					a.inherited, p.pods = nil, true
				})
			},
		})
	})
	p.done.Go(func() {
		follow(ctx, a.client, "namespaces", &corev1.Namespace{}, namespacesOf(a.client), store[*corev1.Namespace]{
			to: a.changes, key: namespaceKey,
			set:  func(n *corev1.Namespace) { live(func() { a.engine.SetNamespace(n.Name, n.Labels) }) },
			drop: func(k rules.Key) { live(func() { a.engine.DeleteNamespace(k.Name) }) },
			replace: func(all []*corev1.Namespace) {
				live(func() {
					gone := map[string]bool{}
					for _, name := range a.engine.NamespaceNames() {
						gone[name] = true
					}
					for _, n := range all {
						delete(gone, n.Name)
						a.engine.SetNamespace(n.Name, n.Labels)
					}
					for name := range gone {
						a.engine.DeleteNamespace(name)
					}
					p.namespaces = true
				})
			},
		})
	})
}

// stopPeers ends the watches and forgets what they brought.
func (a *agent) stopPeers() {
	if a.peers == nil {
		return
	}
	a.peers.stop()
	a.peers.done.Wait()
	a.peers = nil
	for _, k := range a.engine.PodKeys() {
		a.engine.DeletePod(k)
	}
	for _, name := range a.engine.NamespaceNames() {
		a.engine.DeleteNamespace(name)
	}
	clear(a.fromAPI)
}

func (a *agent) setPod(pod *corev1.Pod) {
	p, ok := rules.PodOf(pod, a.nodeName)
	if !ok {
		a.dropPod(p.Key)
		return
	}
	if p.Local {
		a.fromAPI[p.Key] = p
	}
	a.engine.SetPod(a.placed(p))
}

// placed has the addresses that were assigned to a pod, which are right where the API server's are missing or old.
func (a *agent) placed(p rules.Pod) rules.Pod {
	if s, ok := a.assigned[p.Key]; ok && p.Local && s.UID == p.UID {
		p.IPs = s.IPs
	}
	return p
}

func (a *agent) dropPod(k rules.Key) {
	a.engine.DeletePod(k)
	delete(a.fromAPI, k)
}

// hear notes what a CNI plugin says.
func (a *agent) hear(r asking) {
	k := r.key()
	if r.Gone {
		if a.assigned[k].Container == r.Container {
			delete(a.assigned, k)
		}
	} else {
		a.assigned[k] = assigned{UID: types.UID(r.UID), Container: r.Container, IPs: r.IPs}
	}
	if p, ok := a.fromAPI[k]; ok {
		a.engine.SetPod(a.placed(p))
	}
	if err := a.remember(a.assigned); err != nil {
		a.log.Warn("addresses of pods that start are not kept for a restart", "err", err)
	}
	a.waiting = append(a.waiting, r)
}

// answerWaiting answers whoever need not wait any longer.
func (a *agent) answerWaiting() {
	a.answer(func(r asking) (bool, error) {
		switch p, ok := a.engine.Pod(r.key()); {
		case r.Gone:
			return true, nil
		case a.known() && a.written && (a.engine.Policies() == 0 || ok && p.UID == types.UID(r.UID)):
			return true, nil
		case r.ctx.Err() == nil:
			return false, nil
		case !a.known():
			return true, errors.New("the node's network policies are not known yet: the API server has not answered")
		case !a.written:
			return true, errors.New("the node's network policies could not be written; the log of the unit that runs network-policy says why")
		default:
			return true, fmt.Errorf("the API server has not told of pod %s with UID %s yet", r.key(), r.UID)
		}
	})
}

func (a *agent) answer(ready func(asking) (bool, error)) {
	left := a.waiting[:0]
	for _, r := range a.waiting {
		if ok, err := ready(r); ok {
			r.answer <- err
		} else {
			left = append(left, r)
		}
	}
	clear(a.waiting[len(left):])
	a.waiting = left
}

// keptPod is one entry of the file in which assigned addresses outlive the process.
type keptPod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	assigned
}

// keep writes the file at once. It need not survive a power cut: no pod does.
func keep(file string, all map[rules.Key]assigned) error {
	out := make([]keptPod, 0, len(all))
	for k, v := range all {
		out = append(out, keptPod{k.Namespace, k.Name, v})
	}
	text, err := json.Marshal(out)
	if err == nil {
		err = os.WriteFile(file+".tmp", text, 0o600)
	}
	if err == nil {
		err = os.Rename(file+".tmp", file)
	}
	if err != nil {
		return fmt.Errorf("keeping the addresses of pods: %w", err)
	}
	return nil
}

// kept reads what keep wrote. Without it only pods are affected that were starting when the process before ended.
func kept(file string) (map[rules.Key]assigned, error) {
	out := map[rules.Key]assigned{}
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return out, nil
	}
	var in []keptPod
	if err == nil {
		err = json.Unmarshal(text, &in)
	}
	if err != nil {
		return out, fmt.Errorf("reading the addresses of pods from %q: %w", file, err)
	}
	for _, p := range in {
		out[rules.Key{Namespace: p.Namespace, Name: p.Name}] = p.assigned
	}
	return out, nil
}
