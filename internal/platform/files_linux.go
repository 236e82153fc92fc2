package platform

import (
	"math"

	"golang.org/x/sys/unix"
)

// KeepFilesFromChildren closes in processes that are started from now on what this one was given beyond its standard
// streams: a lock or a pipe of whoever runs k1s would stay open for as long as they live, which may be weeks. Where the
// kernel refuses that (Linux 5.11), they are given it as before.
func KeepFilesFromChildren() {
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
}
