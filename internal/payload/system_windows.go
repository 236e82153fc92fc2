package payload

import (
	"context"
	"errors"
	"fmt"
)

// lock is missing because there is no payload for Windows yet: the programs in it are for Linux.
func lock(context.Context, string) (unlock func(), err error) {
	return nil, fmt.Errorf("unpacking on Windows: %w", errors.ErrUnsupported)
}

func hold(string) (release func(), err error) {
	return nil, fmt.Errorf("holding a payload: %w", errors.ErrUnsupported)
}

func isHeld(string) (bool, error) { return true, nil }

func syncDir(string) error { return nil }
