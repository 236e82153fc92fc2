//go:build linux

package flannel

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"k1s.io/k1s/internal/wait"
)

// leases is flannel's subnet.Manager over our own watch of the nodes, for one session of a backend.
// Upstream's keeps its own watch, takes its settings from the environment and does not notice when the
// node is made anew.
type leases struct {
	client   kubernetes.Interface
	log      *slog.Logger
	nodeName string
	podCIDR  netip.Prefix // ours
	config   *subnet.Config
	// direct are the networks of our interface; a host-gw route to elsewhere cannot work.
	direct []netip.Prefix
	mac    string // of the vxlan link in an earlier run
	// restart is called when the backend has to be set up from the start.
	restart func(error)
	changed chan struct{} // a token: look at others again

	mu     sync.Mutex // guards others and mine
	others map[string]node
	mine   annotated // as the backend asked for; empty before
}

var _ subnet.Manager = (*leases)(nil)

// errRebuild ends a session whose link has gone.
var errRebuild = errors.New("the vxlan link was removed")

// GetNetworkConfig is called by the vxlan backend only when its link has been removed. Upstream's way of
// making it again panics on an IPv4-only node (v0.28.4), so it gets an error, and the session starts anew.
func (l *leases) GetNetworkConfig(context.Context) (*subnet.Config, error) {
	l.restart(errRebuild)
	return nil, errRebuild
}

// AcquireLease publishes on our Node how its pods are reached.
func (l *leases) AcquireLease(ctx context.Context, attrs *lease.LeaseAttrs) (*lease.Lease, error) {
	data, err := attrs.BackendData.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("encoding the backend's data: %w", err)
	}
	mine := annotated{managed: true, backend: attrs.BackendType, publicIP: attrs.PublicIP.String(), backendData: string(data)}
	l.mu.Lock()
	l.mine = mine
	l.mu.Unlock()
	err = wait.Until(ctx, time.Second, "the node to take our annotations", func(ctx context.Context) error {
		return annotate(ctx, l.client, l.nodeName, mine)
	})
	if err != nil {
		return nil, err
	}
	return &lease.Lease{
		EnableIPv4: true, Subnet: ip4Net(l.podCIDR), Attrs: *attrs,
		// Nothing renews it: it is the node's for as long as the node is.
		Expiration: time.Now().Add(24 * time.Hour),
	}, nil
}

// wanted are the annotations our Node should have, ok once the backend has said so.
func (l *leases) wanted() (a annotated, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mine, l.mine.managed
}

func annotate(ctx context.Context, client kubernetes.Interface, name string, a annotated) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{
		annotationManaged: "true", annotationBackend: a.backend, annotationIP: a.publicIP, annotationData: a.backendData,
	}}})
	if err != nil { // only strings in it
		panic(err)
	}
	_, err = client.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// update gives the session a new view of the cluster.
func (l *leases) update(all map[string]node) {
	others := maps.Clone(all)
	delete(others, l.nodeName)
	l.mu.Lock()
	l.others = others
	l.mu.Unlock()
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// WatchLeases tells the backend about the other nodes until ctx ends. It closes receiver at the end.
func (l *leases) WatchLeases(ctx context.Context, receiver chan []lease.LeaseWatchResult) error {
	defer close(receiver)
	told := map[string]lease.Lease{} // by node
	for {
		if events := l.events(told); len(events) > 0 {
			select {
			case receiver <- []lease.LeaseWatchResult{{Events: events}}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		select {
		case <-l.changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// events brings told up to date and returns what changed. What is gone comes first: its subnet may have
// gone to another node.
func (l *leases) events(told map[string]lease.Lease) []lease.Event {
	now := l.current()
	var removed, added []lease.Event
	for _, name := range slices.Sorted(maps.Keys(told)) {
		if n, ok := now[name]; !ok || !sameLease(n, told[name]) {
			removed = append(removed, lease.Event{Type: lease.EventRemoved, Lease: told[name]})
			delete(told, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if _, ok := told[name]; !ok {
			added = append(added, lease.Event{Type: lease.EventAdded, Lease: now[name]})
			told[name] = now[name]
			l.checkReach(name, now[name])
		}
	}
	return append(removed, added...)
}

// current are the leases of the other nodes that our backend can reach, by node.
func (l *leases) current() map[string]lease.Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := map[string]lease.Lease{}
	for name, n := range l.others {
		if got, ok := l.leaseOf(n); ok {
			now[name] = got
		}
	}
	return now
}

func sameLease(a, b lease.Lease) bool {
	return a.Subnet.Equal(b.Subnet) && a.Attrs.PublicIP == b.Attrs.PublicIP && string(a.Attrs.BackendData) == string(b.Attrs.BackendData)
}

func (l *leases) leaseOf(n node) (lease.Lease, bool) {
	if !n.lease.managed || !n.podCIDR.IsValid() {
		return lease.Lease{}, false // not there yet; the watch tells when it is
	}
	public, err := ip.ParseIP4(n.lease.publicIP)
	if err != nil {
		l.log.Warn("pods of a node cannot be reached: its annotation is wrong", "node", n.name, "annotation", annotationIP, "err", err)
		return lease.Lease{}, false
	}
	if n.lease.backend != l.config.BackendType {
		l.log.Warn("pods of a node cannot be reached: it uses another backend", "node", n.name, "its", n.lease.backend, "ours", l.config.BackendType)
		return lease.Lease{}, false
	}
	return lease.Lease{
		EnableIPv4: true, Subnet: ip4Net(n.podCIDR),
		Attrs: lease.LeaseAttrs{PublicIP: public, BackendType: n.lease.backend, BackendData: json.RawMessage(cmp.Or(n.lease.backendData, "null"))},
	}, true
}

func (l *leases) checkReach(name string, n lease.Lease) {
	if l.config.BackendType != hostGW {
		return
	}
	addr, ok := netip.AddrFromSlice(n.Attrs.PublicIP.ToIP().To4())
	if ok && !slices.ContainsFunc(l.direct, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		l.log.Warn("pods of a node cannot be reached: it is not on this node's network, and host-gw needs that; use the backend vxlan",
			"node", name, "address", addr)
	}
}

// GetStoredMacAddresses lets the vxlan link keep its address, so that other nodes need not learn a new one.
func (l *leases) GetStoredMacAddresses(context.Context) (v4, v6 string) { return l.mac, "" }

// macOf reads the link's address out of what the vxlan backend wrote on our Node.
func macOf(a annotated) string {
	var v struct{ VtepMAC string }
	if a.backend != vxlan || json.Unmarshal([]byte(a.backendData), &v) != nil {
		return ""
	}
	if _, err := net.ParseMAC(v.VtepMAC); err != nil {
		return ""
	}
	return v.VtepMAC
}

// Name says who we are in flannel's log.
func (l *leases) Name() string { return "k1s" }

// The rest is not used by the backends we have.

// GetStoredPublicIP is used by upstream's main program only.
func (l *leases) GetStoredPublicIP(context.Context) (v4, v6 string) { return "", "" }

// HandleSubnetFile is used by upstream's main program only.
func (l *leases) HandleSubnetFile(string, *subnet.Config, bool, ip.IP4Net, ip.IP6Net, int) error {
	return nil
}

// RenewLease has nothing to do: the lease is the node's pod CIDR.
func (l *leases) RenewLease(context.Context, *lease.Lease) error { return nil }

// WatchLease has nothing to tell: a changed pod CIDR starts a new session.
func (l *leases) WatchLease(ctx context.Context, _ ip.IP4Net, _ ip.IP6Net, _ chan []lease.LeaseWatchResult) error {
	<-ctx.Done()
	return ctx.Err()
}

// CompleteLease has nothing to do: the glue sets the node's condition.
func (l *leases) CompleteLease(context.Context, *lease.Lease, *sync.WaitGroup) error { return nil }

func ip4Net(p netip.Prefix) ip.IP4Net {
	return ip.FromIPNet(&net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)})
}
