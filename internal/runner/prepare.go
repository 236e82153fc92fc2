package runner

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/errs"
)

// prepare makes the directories and writes the files of a unit, touching nothing that is right already.
func prepare(dirs []component.Dir, files []component.File) error {
	for _, d := range dirs {
		if err := makeDir(d); err != nil {
			return remedy(fmt.Errorf("making directory %s: %w", d.Path, err), d.Path)
		}
	}
	for _, f := range files {
		if err := writeFile(f); err != nil {
			return remedy(fmt.Errorf("writing %s: %w", f.Path, err), f.Path)
		}
	}
	return nil
}

func makeDir(d component.Dir) error {
	mode := d.Mode
	if mode == 0 {
		mode = 0o755
	}
	if err := os.MkdirAll(filepath.Dir(d.Path), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(d.Path, mode.Perm()); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	st, err := os.Stat(d.Path)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return &fs.PathError{Op: "mkdir", Path: d.Path, Err: syscall.ENOTDIR}
	}
	return setMode(d.Path, st, mode) // the umask, or somebody's chmod
}

func setMode(name string, st fs.FileInfo, mode fs.FileMode) error {
	const bits = fs.ModePerm | fs.ModeSetgid | fs.ModeSticky
	if st.Mode()&bits == mode&bits {
		return nil
	}
	return os.Chmod(name, mode&bits)
}

func writeFile(f component.File) error {
	mode := f.Mode
	if mode == 0 {
		mode = 0o644
	}
	if have, err := os.ReadFile(f.Path); err == nil && bytes.Equal(have, []byte(f.Content)) {
		st, err := os.Stat(f.Path)
		if err != nil {
			return err
		}
		return setMode(f.Path, st, mode)
	}
	if err := os.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
		return err
	}
	return writeAtomic(f.Path, []byte(f.Content), mode)
}

// writeAtomic leaves the old file or the new one, never a part, and never readable by more than mode says.
func writeAtomic(name string, data []byte, mode fs.FileMode) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Chmod(mode.Perm()), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), name)
}

// remedy adds what can be done about a failed write.
func remedy(err error, name string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EROFS):
		return errs.Hint(err, "the file system of %s is read-only: remount it writable, or use another data directory", filepath.Dir(name))
	case errors.Is(err, syscall.ENOSPC):
		return errs.Hint(err, "the file system of %s is full: make room on it; k1s tries again by itself", filepath.Dir(name))
	case errors.Is(err, syscall.ENOTDIR):
		return errs.Hint(err, "a file is where a directory has to be: move it away")
	case errors.Is(err, syscall.EISDIR), errors.Is(err, fs.ErrExist):
		return errs.Hint(err, "a directory is where a file has to be: move it away")
	case errors.Is(err, fs.ErrPermission):
		return errs.Hint(err, "run k1s as root; if it is, look for an immutable flag: lsattr -d %s", name)
	}
	return err
}

// checkProgram tells the usual reasons why a program cannot be started in better words than exec does.
func checkProgram(name string) error {
	st, err := os.Stat(name)
	if err != nil {
		return programRemedy(fmt.Errorf("its program %s: %w", name, err), name)
	}
	if !st.Mode().IsRegular() {
		return programRemedy(fmt.Errorf("its program %s is not a file: %w", name, syscall.EACCES), name)
	}
	return nil
}

// programError is one of a program's file, which another file may help against.
type programError struct{ error }

func (e *programError) Unwrap() error { return e.error }

func programRemedy(err error, name string) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ENOEXEC) {
		err = &programError{err}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errs.Hint(err, "the unpacked payload is incomplete: remove %s and start k1s again, it is unpacked anew", filepath.Dir(name))
	case errors.Is(err, fs.ErrPermission):
		return errs.Hint(err, "make %s executable, and see that its file system is not mounted noexec", name)
	case errors.Is(err, syscall.ENOEXEC):
		return errs.Hint(err, "the file is damaged or made for another machine: remove %s and start k1s again, it is unpacked anew", filepath.Dir(name))
	case errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EAGAIN):
		return errs.Hint(err, "the machine is out of memory or processes: see free -m and ulimit -u")
	}
	return err
}
