//go:build unix

package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/errs"
)

// Give sees to it that files and directories are of whom they are to be of, and touches nothing that is right already. What is not
// there is left out.
func Give(grants []component.Grant) error {
	var failed []error
	for _, g := range grants {
		if err := give(g); err != nil {
			failed = append(failed, errs.Hint(fmt.Errorf("giving %s to user %d and group %d: %w", g.Path, g.UID, g.GID, err),
				"the file system has to know owners, and k1s to be allowed to change them; without spec.users.separate nothing is given away"))
		}
	}
	return errors.Join(failed...)
}

func give(g component.Grant) error {
	path := g.Path
	if g.Tree { // its place is root's, who may have it on another disk; what is below may be of somebody who must not lead us elsewhere
		resolved, err := filepath.EvalSymlinks(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		path = resolved
	}
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode()&fs.ModeSymlink != 0 {
		if g.UID == 0 && g.GID == 0 {
			return nil // it never was anybody else's
		}
		return errors.New("it is a link, and files elsewhere are not given away: put a copy in its place")
	}
	if !isOf(st, g) {
		if err := os.Lchown(path, g.UID, g.GID); err != nil {
			return err
		}
		if st, err = os.Lstat(path); err != nil { // changing the owner may change the mode
			return err
		}
	}
	if err := setMode(path, st, g.Mode); err != nil || !g.Tree || !st.IsDir() {
		return err
	}
	root, err := os.OpenRoot(path) // nothing outside is reached through it
	if err != nil {
		return err
	}
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || name == "." {
			return nil
		}
		if err != nil {
			return err
		}
		return giveBelow(root, name, d, g)
	})
	return errors.Join(err, root.Close())
}

func giveBelow(root *os.Root, name string, d fs.DirEntry, g component.Grant) error {
	st, err := d.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if ok && st.Mode().IsRegular() && sys.Nlink > 1 {
		if g.UID == component.KeepOwner {
			return nil // the user's, who has other names for it
		}
		return fmt.Errorf("%s has a second name, which may be anywhere (hard link)", name)
	}
	if ok && slices.Contains(g.Former, int(sys.Uid)) {
		g.UID = 0
	}
	if !isOf(st, g) {
		if err := root.Lchown(name, g.UID, g.GID); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if g.UID != component.KeepOwner || st.Mode()&fs.ModeSymlink != 0 {
		return nil
	}
	want := st.Mode().Perm() | 0o040
	if st.IsDir() {
		want |= 0o010
	}
	if want == st.Mode().Perm() {
		return nil
	}
	if err := root.Chmod(name, want|st.Mode()&(fs.ModeSetgid|fs.ModeSticky)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// isOf tells that a file has the owner and the group already.
func isOf(st fs.FileInfo, g component.Grant) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && (g.UID == component.KeepOwner || int(sys.Uid) == g.UID) && int(sys.Gid) == g.GID
}
