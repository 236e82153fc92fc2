//go:build !linux

// Package egress is a cluster's way to the outside; it needs a tap device and so Linux.
package egress

import (
	"context"
	"errors"

	"k1s.io/k1s/internal/errs"
)

// Run says that it is not for this system.
func Run(context.Context, []string) error { return errs.As(errs.Unsupported, errors.ErrUnsupported) }
