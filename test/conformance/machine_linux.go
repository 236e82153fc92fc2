package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// machine finds out what tests may need of this machine.
func machine() facts {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return facts{noSCTP: os.NewSyscallError("socket", err)}
	}
	_ = unix.Close(fd) // nothing was written
	return facts{}
}
