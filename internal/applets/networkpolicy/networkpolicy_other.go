//go:build !linux

package networkpolicy

import (
	"context"
	"errors"

	"k1s.io/k1s/internal/errs"
)

func serve(context.Context, options) error {
	return errs.As(errs.Unsupported, errors.New("network policies are only enforced on Linux"))
}
