//go:build linux && !arm && !386

package platform

import "golang.org/x/sys/unix"

// The system calls that take numbers of 32 bits.
const (
	sysSetgroups = unix.SYS_SETGROUPS
	sysSetresgid = unix.SYS_SETRESGID
	sysSetresuid = unix.SYS_SETRESUID
)
