package unitlog

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a rotation waits for readers, who have the lock for a blink each time. One that is frozen must not hold up
// whoever keeps the unit.
const patience = 2 * time.Second

// lock takes the advisory lock by which readers and the rotation of one log keep out of each other's way,
// also across processes. The writing process takes no part in it.
func lock(f *os.File, exclusive bool) (unlock func(), err error) {
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX | unix.LOCK_NB
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) && (!errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline)) {
			break
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("somebody has been reading it for %s, and may be stopped (see lslocks)", patience)
	}
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	return func() { _ = unix.Flock(int(f.Fd()), unix.LOCK_UN) }, nil
}

// cuttable is how much of the head of a file of this size cutHead could take: whole blocks, not all.
func cuttable(f *os.File, size int64) int64 {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Bsize <= 0 || size == 0 {
		return size
	}
	switch uint32(st.Type) { // signed on some machines, where one of the numbers would not fit
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC:
		bs := int64(st.Bsize)
		return (size - 1) / bs * bs
	}
	return size
}

// cutHead removes the first n bytes of f in one step, also while others append to it.
func cutHead(f *os.File, n int64) error {
	if n == 0 {
		return nil
	}
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, n)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return errors.ErrUnsupported
	}
	return err
}
