//go:build !linux

package platform

import "errors"

// FreeBytes is what can be written to the file system of dir.
func FreeBytes(string) (uint64, error) { return 0, errors.ErrUnsupported }
