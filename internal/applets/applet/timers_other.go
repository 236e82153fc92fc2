//go:build !linux

package applet

import "time"

// slack has no counterpart here.
func slack() (time.Duration, error) { return 0, nil }

// relax has no counterpart here.
func relax(time.Duration) error { return nil }
