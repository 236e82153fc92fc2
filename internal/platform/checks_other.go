//go:build !linux

package platform

import (
	"context"
	"os"

	"k1s.io/k1s/internal/health"
)

// Checks returns the checks that can be made on this system.
func Checks() []Check {
	return []Check{
		{Name: "clock", Summary: "the clock", Run: func(_ context.Context, in CheckInput) []health.Problem { return decideClock(in.now()) }},
		{Name: "hostname", Summary: "the host name", Run: func(_ context.Context, in CheckInput) []health.Problem {
			host, err := os.Hostname()
			if err != nil {
				return failed("the host name", err)
			}
			return decideHost(host, in.Facts.NodeName)
		}},
	}
}
