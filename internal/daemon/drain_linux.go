package daemon

import (
	"os/exec"
	"runtime"
	"syscall"
)

// runWithUs runs a process that dies with this one, also when this one is killed.
func runWithUs(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// The death of the thread that starts a process counts as ours, see prctl(2), PR_SET_PDEATHSIG: it ends with this call, after the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}
