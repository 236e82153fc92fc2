package platform

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/ledger"
)

// SetServiceRoute makes addresses of services reachable from this machine when no other route leads to them: on a
// site without a way out there is no default route, or it is lost. The kernel looks for a route before the
// firewall translates the address, and refuses to connect without one; where this one leads does not matter. It
// is in the table "default", which is looked at after all others, so any route of the machine comes
// first. l remembers it; one to another range that l knows of is removed.
func SetServiceRoute(ctx context.Context, l *ledger.Ledger, services netip.Prefix, nodeIP netip.Addr) error {
	services = services.Masked()
	if err := removeServiceRoutes(ctx, l, services.String()); err != nil {
		return err
	}
	if err := l.Add(ctx, ledger.Entry{Kind: ledger.Route, Name: services.String()}); err != nil {
		return fmt.Errorf("remembering the route to services: %w", err)
	}
	r, err := serviceRoute(services)
	if err != nil {
		return err
	}
	r.Src = nodeIP.AsSlice() // by itself the kernel would take the address of any link
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("setting a route to services at %s from %s: %w", services, nodeIP, err)
	}
	return nil
}

// RemoveServiceRoutes removes what SetServiceRoute has set, by what l remembers.
func RemoveServiceRoutes(ctx context.Context, l *ledger.Ledger) error {
	return removeServiceRoutes(ctx, l, "")
}

// removeServiceRoutes leaves the one to keep.
func removeServiceRoutes(ctx context.Context, l *ledger.Ledger, keep string) error {
	entries, err := l.List(ctx)
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range entries {
		if e.Kind != ledger.Route || e.Name == keep {
			continue
		}
		if err := removeServiceRoute(e.Name); err != nil {
			failed = append(failed, fmt.Errorf("removing the route to services at %s: %w", e.Name, err))
			continue
		}
		failed = append(failed, l.Remove(ctx, e.Kind, e.Name))
	}
	return errors.Join(failed...)
}

func removeServiceRoute(name string) error {
	services, err := netip.ParsePrefix(name)
	if err != nil {
		return err
	}
	r, err := serviceRoute(services)
	if err != nil {
		return err
	}
	if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// serviceRoute leads to the loopback link, which is always up and has no other end.
func serviceRoute(services netip.Prefix) (*netlink.Route, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("finding the loopback link: %w", err)
	}
	return &netlink.Route{
		LinkIndex: lo.Attrs().Index, Table: unix.RT_TABLE_DEFAULT, Scope: netlink.SCOPE_LINK,
		Dst: &net.IPNet{IP: services.Addr().AsSlice(), Mask: net.CIDRMask(services.Bits(), services.Addr().BitLen())},
	}, nil
}
