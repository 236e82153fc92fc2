//go:build !linux

package platform

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"

	"k1s.io/k1s/internal/ledger"
)

// SetServiceRoute is a matter of Linux.
func SetServiceRoute(context.Context, *ledger.Ledger, netip.Prefix, netip.Addr) error {
	return fmt.Errorf("setting a route to services on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

// RemoveServiceRoutes has nothing to remove: none can have been set.
func RemoveServiceRoutes(context.Context, *ledger.Ledger) error { return nil }
