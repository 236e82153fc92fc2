//go:build !linux

package daemon

import (
	"errors"
	"fmt"
)

func startProgram(string) (program, error) { return nil, errors.ErrUnsupported }

func becomeProgram(file string) error {
	return fmt.Errorf("starting %s again: %w", file, errors.ErrUnsupported)
}
