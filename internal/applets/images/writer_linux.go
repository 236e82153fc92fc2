package images

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// beingWritten tells whether somebody has f open for writing. The kernel grants a read lease only on a
// file nobody writes to, so asking for one answers it; where a file system has no leases, a file that
// changed just now counts as being written.
func beingWritten(f *os.File, modified time.Time) bool {
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	switch {
	case err == nil:
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
		return err != nil
	case errors.Is(err, unix.EAGAIN):
		return true
	default:
		return time.Since(modified) < quiet
	}
}
