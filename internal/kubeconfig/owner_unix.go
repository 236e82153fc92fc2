//go:build unix

package kubeconfig

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// likeFile gives name the owner of st, so that a user's file stays the user's when root edits it.
func likeFile(name string, st fs.FileInfo) error {
	if os.Geteuid() != 0 {
		return nil // cannot be given away, and it is ours already or the write would fail
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return os.Lchown(name, int(sys.Uid), int(sys.Gid))
}

// likeParent gives name the owner of the directory target is in: under sudo with the user's HOME a new
// file has to be the user's.
func likeParent(name, target string) error {
	st, err := os.Stat(filepath.Dir(target))
	if err != nil {
		return err
	}
	return likeFile(name, st)
}
