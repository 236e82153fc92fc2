//go:build !linux

package unitlog

import (
	"errors"
	"os"
)

// lock does nothing: elsewhere only the daemon itself reads and rotates, and a reader that is overtaken
// by a rotation sees some lines twice.
func lock(*os.File, bool) (unlock func(), err error) { return func() {}, nil }

func cuttable(_ *os.File, size int64) int64 { return size }

func cutHead(*os.File, int64) error { return errors.ErrUnsupported }
