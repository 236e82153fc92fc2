//go:build !unix

package kubeconfig

import "os"

// own has nothing to add: a file that is open cannot be removed here.
func own(f *os.File) (unlock func() error) {
	f.Close()
	return func() error { return os.Remove(f.Name()) }
}

// inherit cannot tell here whose a lock file is.
func inherit(string) (unlock func() error) { return nil }
