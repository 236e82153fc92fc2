package durable

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

// SyncDir does nothing: NTFS journals names, and directories cannot be opened for synchronisation.
func SyncDir(string) error { return nil }

// likeBefore gives nothing to anybody: files have the rights of their directory.
func likeBefore(_ string, mode fs.FileMode) (func(*os.File) error, fs.FileMode) {
	return func(*os.File) error { return nil }, mode
}

func tryLock(f *os.File) (bool, error) {
	err := windows.LockFileEx(windows.Handle(f.Fd()),
		windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, new(windows.Overlapped))
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return false, nil
	}
	return err == nil, err
}
