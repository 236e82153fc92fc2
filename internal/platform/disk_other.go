//go:build !linux

package platform

import (
	"errors"

	"k1s.io/k1s/internal/health"
)

// FreeBytes is what can be written to the file system of dir.
func FreeBytes(string) (uint64, error) { return 0, errors.ErrUnsupported }

// DiskProblems finds none where nobody looks.
func DiskProblems(string) []health.Problem { return nil }
