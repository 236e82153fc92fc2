//go:build !linux

package platform

import (
	"errors"
	"fmt"
	"runtime"
)

// ListenersOn cannot be answered here yet.
func ListenersOn(...uint16) ([]Listener, error) {
	return nil, fmt.Errorf("finding out who listens on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
