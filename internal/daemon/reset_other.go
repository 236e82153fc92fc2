//go:build !linux

package daemon

import (
	"context"
	"errors"
)

func unmount(string) error { return errors.ErrUnsupported }

// removeTables has nothing to do: there are no nftables here.
func removeTables(context.Context, string, []string) error { return nil }

// stopUnit has nothing to do: there is no systemd here.
func stopUnit(context.Context, string) error { return nil }
