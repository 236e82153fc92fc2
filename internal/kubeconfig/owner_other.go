//go:build !unix

package kubeconfig

import "io/fs"

// Ownership follows from the directory here.
func likeFile(string, fs.FileInfo) error { return nil }

func likeParent(string, string) error { return nil }
