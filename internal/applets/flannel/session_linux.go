package flannel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/backend/hostgw"
	vxlanbackend "github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/trafficmngr/nftables"

	"k1s.io/k1s/internal/errs"
)

// vxlan's settings: those every flannel has, so that nodes understand each other.
const (
	vni       = 1
	vxlanPort = 8472
	overhead  = 50 // bytes vxlan puts around a packet
)

// rulesAgain is how often the rules are written again: something else may flush all tables, as restarting
// a machine's own firewall does.
const rulesAgain = time.Minute

// session is one life of a backend with one pod CIDR.
type session struct {
	leases  *leases
	cancel  context.CancelCauseFunc
	up      chan struct{} // closed when routes and rules are there
	running bool          // up was seen
	ended   chan error    // gets why it ended
}

func (g *glue) startSession(ctx context.Context, own node, l link, all map[string]node) *session {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &session{
		cancel: cancel, up: make(chan struct{}), ended: make(chan error, 1),
		leases: &leases{
			client: g.client, log: g.log, nodeName: g.nodeName, podCIDR: own.podCIDR,
			config: g.config(l), direct: l.networks, mac: macOf(own.lease),
			changed: make(chan struct{}, 1), restart: cancel,
		},
	}
	s.leases.update(all)
	up := s.up
	go func() {
		err := g.serveSession(ctx, s.leases, l, func() { close(up) })
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		cancel(nil)
		s.ended <- err
	}()
	return s
}

func (g *glue) config(l link) *subnet.Config {
	under := l.mtu
	if g.mtu != 0 {
		under = g.mtu + overhead // flannel takes the overhead off
	}
	b, err := json.Marshal(map[string]any{"Type": g.backend, "VNI": vni, "Port": vxlanPort, "MTU": under})
	if err != nil { // only strings and numbers in it
		panic(err)
	}
	return &subnet.Config{
		EnableIPv4: true, EnableNFTables: true, Network: ip4Net(g.podCIDR),
		BackendType: g.backend, Backend: b,
	}
}

func (g *glue) serveSession(ctx context.Context, sm *leases, l link, up func()) error {
	iface, err := net.InterfaceByName(l.name)
	if err != nil {
		return fmt.Errorf("looking at interface %s: %w", l.name, err)
	}
	addr := net.IP(l.addr.AsSlice())
	ext := &backend.ExternalInterface{Iface: iface, IfaceName: l.name, IfaceAddr: addr, ExtAddr: addr}
	create := hostgw.New
	if g.backend == vxlan {
		create = vxlanbackend.New
	}
	be, err := create(sm, ext)
	if err != nil {
		return fmt.Errorf("starting backend %s: %w", g.backend, err)
	}
	var others sync.WaitGroup // flannel's way of telling; the backends we have start nothing with it
	network, err := be.RegisterNetwork(ctx, &others, sm.config)
	if err != nil {
		return fmt.Errorf("starting backend %s: %w", g.backend, err)
	}
	if err := g.rules(ctx, sm.config, network.Lease()); err != nil {
		return err
	}
	if g.backend == vxlan {
		if err := looseReversePath(vxlanLink); err != nil {
			return err
		}
		if strictReversePath(l.name) {
			g.log.Warn("connections of nodes to pods of other nodes fail when a program binds to the node's address: "+
				"the interface drops answers that come in beside the overlay",
				"interface", l.name, "remedy", "sysctl -w net.ipv4.conf.all.rp_filter=2")
		}
	}
	if err := dropStale(sm, g.podCIDR, l); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { defer close(ended); network.Run(ctx) }()
	up()
	g.log.Info("pod network is up", "backend", g.backend, "interface", l.name, "address", l.addr, "podCIDR", sm.podCIDR)
	tick := time.NewTicker(rulesAgain)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			others.Wait()
			return errors.New("the backend ended")
		case <-tick.C:
			if now, err := net.InterfaceByName(l.name); err == nil && now.Index != l.index {
				return fmt.Errorf("interface %s was replaced", l.name)
			}
			if err := g.rules(ctx, sm.config, network.Lease()); err != nil && ctx.Err() == nil {
				g.log.Warn("masquerading rules could not be written again", "err", err)
			}
		}
	}
}

// rules writes flannel's tables. Each table is replaced in one transaction, so no packet sees half of it.
func (g *glue) rules(ctx context.Context, cfg *subnet.Config, own *lease.Lease) error {
	var m nftables.NFTablesManager
	if err := m.Init(ctx); err != nil {
		return errs.Hint(fmt.Errorf("writing packet filter rules: %w", err),
			"nft must be in PATH and the kernel must have nf_tables with NAT (5.13 or later)")
	}
	if g.ipMasq {
		// The previous networks and the resync period matter to the iptables flavour only.
		if err := m.SetupAndEnsureMasqRules(ctx, cfg.Network, ip.IP4Net{}, ip.IP4Net{}, ip.IP6Net{}, ip.IP6Net{}, ip.IP6Net{}, own, 0, false); err != nil {
			return fmt.Errorf("writing masquerading rules: %w", err)
		}
	}
	m.SetupAndEnsureForwardRules(ctx, cfg.Network, ip.IP6Net{}, 0)
	return nil
}
