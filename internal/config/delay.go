package config

import (
	"errors"
	"fmt"
	"time"
)

// Delay is after which time something is done by itself, as Go writes durations ("72h", "1h30m"); or Never.
type Delay string

// Check is an error where it cannot be understood, or is shorter than least.
func (d Delay) Check(least time.Duration) error {
	if d == Never {
		return nil
	}
	if d == "" {
		return errors.New("is empty, and must be a duration or never")
	}
	after, err := time.ParseDuration(string(d))
	switch {
	case err != nil:
		return fmt.Errorf("%q is no duration", shorten(string(d)))
	case after < least:
		return fmt.Errorf("is %s, and must be %s at least", after, least)
	}
	return nil
}

// Duration of it, 0 for Never.
func (d Delay) Duration() time.Duration {
	if d == Never {
		return 0
	}
	after, err := time.ParseDuration(string(d))
	if err != nil { // Check has said so
		return 0
	}
	return after
}
