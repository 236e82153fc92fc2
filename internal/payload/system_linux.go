package payload

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func changeTime(st fs.FileInfo) (ctime int64, inode uint64) {
	s := st.Sys().(*syscall.Stat_t)
	return s.Ctim.Nano(), s.Ino
}

// startWriteback begins writing the range to disk without waiting, so that the final sync finds
// little left to do. Only a hint: errors do not matter.
func startWriteback(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// scratch returns memory that a file without a name in dir stands behind: when memory is needed, the kernel
// writes it there instead of ending somebody. Where the file system cannot do that it is plain memory.
func scratch(dir string, size int64) (b []byte, unmap func(), err error) {
	f, err := os.CreateTemp(dir, tempMark)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return nil, nil, err
	}
	// All of it now: a disk that is full when a page is written to would end us.
	err = unix.EINTR // what tmpfs says when a signal is pending, as they are in Go programs
	for err == unix.EINTR {
		err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		return make([]byte, size), func() {}, nil
	} else if err != nil {
		return nil, nil, fmt.Errorf("making room to unpack in, %d MB for a moment: %w", size>>20, err)
	}
	b, err = unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("mapping room to unpack in: %w", err)
	}
	return b, func() { _ = unix.Munmap(b) }, nil
}

type fileID struct{ dev, ino uint64 }

// inUse finds out from which of the payloads (IDs under root) any process of this machine runs a
// program, maps a file, or has one mounted. Programs in pods run from bind mounts: their /proc/*/exe
// names the path inside the pod, so files are compared by device and inode, and mounts by the ID,
// which is long enough to be unique.
func inUse(ctx context.Context, root string, ids []string) (map[string]bool, error) {
	owner := map[fileID]string{}
	for _, id := range ids {
		err := filepath.WalkDir(filepath.Join(root, id), func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			st, err := d.Info()
			if err != nil {
				return err
			}
			s := st.Sys().(*syscall.Stat_t)
			owner[fileID{uint64(s.Dev), s.Ino}] = id
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	seen := map[string]bool{} // mount namespaces already looked at
	for _, e := range procs {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if e.Name()[0] < '0' || e.Name()[0] > '9' {
			continue
		}
		proc := filepath.Join("/proc", e.Name())
		// A process that ends while we look (ENOENT, ESRCH) and a kernel thread (ENOENT) use nothing. One
		// that we may not look at has rights that we have not, so it was not started by a k1s like us.
		// Anything else leaves us not knowing, and then nothing may be removed.
		st, err := os.Stat(filepath.Join(proc, "exe"))
		if err == nil {
			s := st.Sys().(*syscall.Stat_t)
			if id, ok := owner[fileID{uint64(s.Dev), s.Ino}]; ok {
				used[id] = true
			}
		} else if !gone(err) {
			return nil, err
		}
		if err := scan(filepath.Join(proc, "maps"), func(line string) {
			// address perms offset major:minor inode path
			f := strings.Fields(line)
			if len(f) < 6 {
				return
			}
			for _, id := range ids {
				if strings.Contains(f[5], "/"+id+"/") {
					used[id] = true
				}
			}
		}); err != nil {
			return nil, err
		}
		ns, err := os.Readlink(filepath.Join(proc, "ns", "mnt"))
		if err != nil {
			if gone(err) {
				continue
			}
			return nil, err
		}
		if seen[ns] {
			continue
		}
		seen[ns] = true
		if err := scan(filepath.Join(proc, "mountinfo"), func(line string) {
			for _, id := range ids {
				if strings.Contains(line, id) {
					used[id] = true
				}
			}
		}); err != nil {
			return nil, err
		}
	}
	return used, nil
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EINVAL)
}

// scan calls fn for every line of a file of /proc; a process that has ended has none.
func scan(name string, fn func(line string)) error {
	f, err := os.Open(name)
	if err != nil {
		if gone(err) {
			return nil
		}
		return err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		fn(s.Text())
	}
	if err := s.Err(); err != nil && !gone(err) {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	return nil
}
