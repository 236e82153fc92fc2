//go:build !linux

package applet

// dropText does nothing: elsewhere the system's working set is trimmed by itself.
func dropText() error { return nil }
