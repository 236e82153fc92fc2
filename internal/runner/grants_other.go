//go:build !unix

package runner

import (
	"errors"
	"fmt"

	"k1s.io/k1s/internal/component"
)

// Give is not to be had here.
func Give(grants []component.Grant) error {
	if len(grants) == 0 {
		return nil
	}
	return fmt.Errorf("giving %s to a user: %w", grants[0].Path, errors.ErrUnsupported)
}
