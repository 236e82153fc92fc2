//go:build !linux

package flannel

import (
	"context"
	"errors"
	"net/netip"

	"k1s.io/k1s/internal/errs"
)

var errOS = errs.As(errs.Unsupported, errors.New("pod networking by flannel is only there on Linux"))

func serve(context.Context, options) error { return errOS }

// Cleanup removes what the applet has set up; there is nothing here.
func Cleanup(context.Context, netip.Prefix, string) error { return errOS }
