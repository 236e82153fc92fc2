package flannel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/knftables"

	"k1s.io/k1s/internal/applets/networkpolicy/rules"
	"k1s.io/k1s/internal/errs"
)

// Pauses after a failure.
const (
	retryFirst = 250 * time.Millisecond
	retryMost  = 10 * time.Second
)

func serve(ctx context.Context, o options) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return fmt.Errorf("reading kubeconfig %q: %w", o.kubeconfig, err)
	}
	cfg.UserAgent = "k1s-flannel"
	cfg.ContentType, cfg.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("making a client from %q: %w", o.kubeconfig, err)
	}
	return (&glue{options: o, client: client, log: slog.Default()}).run(ctx)
}

// glue holds together the watch of the nodes, the CNI configuration and a session of the backend. One
// goroutine runs it, so nothing in it is locked.
type glue struct {
	options
	client kubernetes.Interface
	log    *slog.Logger

	session *session     // nil between two
	written netip.Prefix // the pod CIDR in the CNI configuration
	looked  bool         // for our Node
}

func (g *glue) run(ctx context.Context) error {
	if err := enableForwarding(); err != nil {
		return err
	}
	if err := guardLoopback(ctx); err != nil {
		return err // before the first pod: better no network than an open one
	}
	if g.policySocket == "" { // they may have been enforced until now, and nobody would keep the rules right
		if err := removeTable(ctx, knftables.InetFamily, rules.Table, ""); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	watched := make(chan struct{})
	store := newNodes()
	go func() { defer close(watched); store.watch(ctx, g.client) }()
	defer func() { cancel(); <-watched }()
	defer func() { g.stopSession() }()

	retry := time.NewTimer(0)
	retry.Stop()
	pause := retryFirst
	for {
		var ended <-chan error
		var up <-chan struct{}
		if g.session != nil {
			ended, up = g.session.ended, g.session.up
		}
		select {
		case <-ctx.Done():
			return nil
		case <-store.changed:
		case <-retry.C:
		case <-up:
			g.session.running, g.session.up = true, nil
		case err := <-ended:
			g.session = nil
			if ctx.Err() != nil {
				return nil
			}
			g.log.Warn("pod network is set up again", "err", err, "after", pause)
			retry.Reset(pause)
			pause = min(2*pause, retryMost)
			continue
		}
		all, ok := store.snapshot()
		if !ok {
			continue
		}
		if err := g.reconcile(ctx, all); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			g.log.Warn("pod network is not complete", "err", err, "after", pause)
			retry.Reset(pause)
			pause = min(2*pause, retryMost)
			continue
		}
		if g.session != nil && g.session.running {
			pause = retryFirst
		}
	}
}

// reconcile does what the state of the cluster asks for. While our Node is away everything stays as it
// is: it comes back, and pods run on. A Node that is just being made is another one, with other addresses: pods wait for them.
// So is one that is away when we begin, because kubelet begins with us and makes one.
func (g *glue) reconcile(ctx context.Context, all map[string]node) error {
	own, ok := all[g.nodeName]
	first := !g.looked
	g.looked = true
	if !ok || !own.podCIDR.IsValid() {
		if ok || first {
			if err := g.forgetConflist(); err != nil {
				return err
			}
		}
		if g.session != nil {
			g.session.leases.update(all)
		}
		return nil
	}
	if !g.podCIDR.Contains(own.podCIDR.Addr()) || own.podCIDR.Bits() < g.podCIDR.Bits() {
		return errs.Hint(fmt.Errorf("the node's pod CIDR %s is not within the cluster's, %s", own.podCIDR, g.podCIDR),
			"a node keeps its pod CIDR for ever: delete the node object to get a new one, or set the pod CIDR back")
	}
	link, err := g.link()
	if err != nil {
		return err
	}
	if err := g.ensureConflist(own.podCIDR, link); err != nil {
		return err
	}
	if g.session != nil && g.session.leases.podCIDR != own.podCIDR {
		g.log.Warn("the node's pod CIDR changed; running pods keep addresses nobody routes to until they are made anew",
			"old", g.session.leases.podCIDR, "new", own.podCIDR)
		g.stopSession()
	}
	if g.session == nil {
		g.session = g.startSession(ctx, own, link, all)
		return nil
	}
	g.session.leases.update(all)
	if !g.session.running {
		return nil
	}
	// A node that was deleted and made anew has lost both.
	if want, ok := g.session.leases.wanted(); ok && own.lease != want {
		if err := annotate(ctx, g.client, g.nodeName, want); err != nil {
			return fmt.Errorf("telling other nodes how to reach ours: %w", err)
		}
	}
	if !own.available {
		return setAvailable(ctx, g.client, g.nodeName)
	}
	return nil
}

func (g *glue) forgetConflist() error {
	removed, err := removeConflist(g.cniConfDir)
	if err != nil {
		return fmt.Errorf("removing the CNI configuration of the node that was: %w", err)
	}
	if removed {
		g.log.Info("CNI configuration removed: the node is a new one, and has no pod CIDR yet")
	}
	return nil
}

func (g *glue) ensureConflist(podCIDR netip.Prefix, link link) error {
	mtu := g.mtu
	if mtu == 0 {
		mtu = link.podMTU(g.backend)
	}
	changed, err := writeConflist(g.cniConfDir, conflist(podCIDR, mtu, g.cniState, g.policySocket))
	if err != nil {
		return fmt.Errorf("writing the CNI configuration: %w", err)
	}
	if changed {
		g.log.Info("CNI configuration written", "podCIDR", podCIDR, "mtu", mtu, "instead", g.written)
	}
	g.written = podCIDR
	return nil
}

// setAvailable says what cloud providers' controllers otherwise wait to hear: the node has its routes.
func setAvailable(ctx context.Context, client kubernetes.Interface, name string) error {
	now := metav1.Now()
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{{
		Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse,
		Reason: "FlannelIsUp", Message: "pods of other nodes can be reached",
		LastTransitionTime: now, LastHeartbeatTime: now,
	}}}})
	if err != nil { // only strings and times in it
		panic(err)
	}
	if _, err := client.CoreV1().Nodes().PatchStatus(ctx, name, patch); err != nil {
		return fmt.Errorf("setting the node's condition: %w", err)
	}
	return nil
}

func (g *glue) stopSession() {
	if g.session == nil {
		return
	}
	g.session.cancel(errors.New("stopped"))
	select {
	case <-g.session.ended:
	// A backend's last event may have nobody to take it; it holds nothing that matters.
	case <-time.After(5 * time.Second):
		g.log.Warn("the backend did not end in time", "backend", g.backend)
	}
	g.session = nil
}
