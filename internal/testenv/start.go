package testenv

import (
	"os/exec"
	"runtime"
	"sync"
)

// Start starts a process that is to die with this one, that is with SysProcAttr.Pdeathsig, and returns what waits for
// its end. The kernel sends that signal when the thread ends that started the process, and whoever enters namespaces ends
// threads: here it is a thread that stays for as long as the process. wait may be called any number of times.
func Start(cmd *exec.Cmd) (wait func() error, err error) {
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return sync.OnceValue(func() error { return <-ended }), nil
}
