//go:build unix

package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// SyncDir makes renames and new files in dir survive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("synchronising directory: %w", err)
	}
	defer d.Close()
	// Some network file systems refuse this; the file's own data is safe by then.
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("synchronising directory: %w", err)
	}
	return nil
}

// likeBefore is what a file that takes the place of another one has to be given, and with which mode.
func likeBefore(path string, mode fs.FileMode) (give func(*os.File) error, _ fs.FileMode) {
	keep := func(*os.File) error { return nil }
	if os.Geteuid() != 0 {
		return keep, mode // it cannot be given away
	}
	// Elsewhere somebody could have put a file there to be given what root writes.
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil || dir.Mode().Perm()&0o022 != 0 || !isRoots(dir) {
		return keep, mode
	}
	st, err := os.Lstat(path)
	if err != nil || !st.Mode().IsRegular() {
		return keep, mode
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || sys.Uid == 0 && sys.Gid == 0 {
		return keep, mode
	}
	if sys.Gid != 0 {
		mode |= st.Mode() & 0o040
	}
	return func(f *os.File) error {
		// In a container without the right to, or where they do not exist, files have been root's so far, and stay it.
		if err := f.Chown(int(sys.Uid), int(sys.Gid)); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EINVAL) {
			return err
		}
		return nil
	}, mode
}

func isRoots(st fs.FileInfo) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && sys.Uid == 0
}

func tryLock(f *os.File) (bool, error) {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		case errors.Is(err, unix.EINTR):
		default:
			return false, err
		}
	}
}
