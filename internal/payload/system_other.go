//go:build !linux

package payload

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// changeTime has no portable source; the other fields of a stamp still differ when a file is replaced.
func changeTime(fs.FileInfo) (ctime int64, inode uint64) { return 0, 0 }

func startWriteback(*os.File, int64, int64) {}

// scratch is plain memory here.
func scratch(_ string, size int64) (b []byte, unmap func(), err error) {
	return make([]byte, size), func() {}, nil
}

// inUse cannot be answered here without a process table like Linux's.
func inUse(context.Context, string, []string) (map[string]bool, error) {
	return nil, fmt.Errorf("telling which payloads are in use: %w", errors.ErrUnsupported)
}
