package pki

import (
	"fmt"
	"time"
)

// made is a day before which no clock can be right.
var made = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// ClockError says that the machine's clock does not fit an authority's lifetime, so no certificate
// would be accepted.
type ClockError struct {
	Now, Bound time.Time
	After      bool   // Now is after Bound, otherwise before
	What       string // what happened at Bound: "the certificate authority … was made"
}

func (e *ClockError) Error() string {
	word := "before"
	if e.After {
		word = "after"
	}
	return fmt.Sprintf("the machine's clock says %s, which is %s %s (%s)",
		e.Now.UTC().Format(time.RFC3339), word, e.What, e.Bound.UTC().Format(time.RFC3339))
}

// HealthCode is the code of this problem in package health.
func (e *ClockError) HealthCode() string { return "clock" }

func (e *ClockError) hint() string {
	if e.After {
		return "set the clock if it is wrong; if it is right, the authority has to be replaced: restore a newer pki directory from a backup"
	}
	return "set the clock (for example: timedatectl set-ntp true) and start again"
}

// CAError says that an authority or the service account key is there but cannot be used. It is never
// replaced by itself: every node, client and token of the cluster depends on it.
type CAError struct {
	File   string
	Reason string
	Err    error
}

func (e *CAError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s %s: %v", e.File, e.Reason, e.Err)
	}
	return e.File + " " + e.Reason
}

func (e *CAError) Unwrap() error { return e.Err }

// HealthCode is the code of this problem in package health.
func (e *CAError) HealthCode() string { return "ca-unusable" }
