//go:build !linux

package platform

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"k1s.io/k1s/internal/component"
)

// DetectFacts is not to be had here: nodes run on Linux so far.
func DetectFacts(context.Context, FactsInput) (component.Facts, error) {
	return component.Facts{}, fmt.Errorf("detecting facts about the machine on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

// AvailableMemory is not known here.
func AvailableMemory() uint64 { return 0 }
