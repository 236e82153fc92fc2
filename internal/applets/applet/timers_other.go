//go:build !linux

package applet

import "time"

// relax has no counterpart here.
func relax(time.Duration) error { return nil }
