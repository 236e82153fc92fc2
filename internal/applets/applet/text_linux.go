package applet

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// dropText takes the program's own code and constants out of this process' memory. Half of what was mapped
// while it started, 80 MB in Kubernetes' servers, is never used again, but the kernel would keep it
// mapped until memory is short. What is used comes back from the page cache at its next use, 64 kB at a time.
// From Linux 6.18 on it is as much as the cache has in one piece: 2 MB of a file that was just written, so that
// nearly everything comes back until the machine has been booted. That is left so, for it makes the program faster.
func dropText() error {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("finding the program's file: %w", err)
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("finding the program's mappings: %w", err)
	}
	defer f.Close()
	spans, err := programText(f, program)
	if err != nil {
		return err
	}
	for _, s := range spans {
		// By address, because this memory is not Go's. Clean pages of a file are only unmapped.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, s.begin, s.end-s.begin, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("dropping the program's text at %x: %w", s.begin, errno)
		}
	}
	return nil
}
