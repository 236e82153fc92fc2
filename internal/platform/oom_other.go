//go:build !linux

package platform

import "errors"

// SetOOMScore is a matter of Linux.
func SetOOMScore(int, int) error { return errors.ErrUnsupported }
