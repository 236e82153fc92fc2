//go:build linux && (arm || 386)

package platform

import "golang.org/x/sys/unix"

// The system calls that take numbers of 32 bits; those with the plain names take 16.
const (
	sysSetgroups = unix.SYS_SETGROUPS32
	sysSetresgid = unix.SYS_SETRESGID32
	sysSetresuid = unix.SYS_SETRESUID32
)
