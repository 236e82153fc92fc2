//go:build unix

package kubeconfig

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// lockMark is in lock files of ours, which are held by a lock of the kernel too: that ends with the process, however it ends.
const lockMark = "k1s\n"

// own makes a lock file one of ours, where the file system can, and returns what ends the lock.
func own(f *os.File) (unlock func() error) {
	// Others hold it only while they look whether it is left behind.
	if unix.Flock(int(f.Fd()), unix.LOCK_EX) == nil {
		_, _ = f.WriteString(lockMark) // without it the file is as kubectl's
	}
	return release(f)
}

// inherit takes over a lock file that a k1s has left behind; nil when it is somebody's.
func inherit(name string) (unlock func() error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	if said, err := io.ReadAll(io.LimitReader(f, 64)); err == nil && string(said) == lockMark &&
		unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		mine, err1 := f.Stat()
		there, err2 := os.Stat(name)
		if err1 == nil && err2 == nil && os.SameFile(mine, there) { // nobody else was quicker
			return release(f)
		}
	}
	f.Close()
	return nil
}

func release(f *os.File) func() error {
	return func() error {
		defer f.Close() // afterwards, so that it is nobody's while it is there
		return os.Remove(f.Name())
	}
}
