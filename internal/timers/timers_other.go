//go:build !linux

package timers

import "time"

// slack has no counterpart here.
func slack() (time.Duration, error) { return 0, nil }

// relax has no counterpart here.
func relax(int, time.Duration) error { return nil }

func self() int { return 0 }
