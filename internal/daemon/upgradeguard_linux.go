package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// child is a program that runs under this process' command line.
type child struct {
	process *os.Process
	ended   chan struct{}
	exit    programExit // written before ended is closed
}

// keepSaid is how much of what a program says last is kept, and drainSaid how long its end is waited for when the program itself has ended.
const (
	keepSaid  = 4 << 10
	drainSaid = time.Second
)

// startProgram starts another k1s under this one's command line and environment. It has a process group of its own: what is typed
// at a terminal comes to us, who pass it on. It dies with us, also when we are killed: nobody would guard it, and whoever starts k1s next would find
// the node taken.
func startProgram(file string) (program, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c := &child{ended: make(chan struct{})}
	attr := &os.ProcAttr{
		Env: environFor(os.Environ()), Files: []*os.File{os.Stdin, os.Stdout, w},
		Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
	}
	said := &tail{to: os.Stderr}
	var copying sync.WaitGroup
	started := make(chan error)
	go func() {
		// The death of the thread that starts a process counts as ours, see prctl(2), PR_SET_PDEATHSIG. It ends with this goroutine, after the process.
		runtime.LockOSThread()
		var err error
		c.process, err = os.StartProcess(file, append([]string{os.Args[0]}, os.Args[1:]...), attr)
		err = errors.Join(err, w.Close())
		if err == nil {
			copying.Go(func() { _, _ = io.Copy(said, r) }) // it ends with the other end, or at the deadline
		}
		started <- err
		if c.process == nil {
			return
		}
		how := reapUntil(c.process.Pid)
		_ = r.SetReadDeadline(time.Now().Add(drainSaid)) // a pipe has deadlines
		copying.Wait()
		c.exit = programExit{Clean: how.Exited() && how.ExitStatus() == 0, How: inWords(how), Said: said.String()}
		_ = r.Close() // it was only read
		close(c.ended)
	}()
	if err := <-started; err != nil {
		if c.process != nil {
			c.Kill()
			<-c.ended
		} else {
			_ = r.Close()
		}
		return nil, err
	}
	return c, nil
}

// environFor leaves out what is this process' alone: the init system hears from it.
func environFor(environ []string) []string {
	var out []string
	for _, kv := range environ {
		if !strings.HasPrefix(kv, "NOTIFY_SOCKET=") {
			out = append(out, kv)
		}
	}
	return out
}

// reapUntil waits for a child, and collects all that end before it: those that were started before this process became a guard are ours, too, and
// nobody else waits for them while they are replaced.
func reapUntil(pid int) unix.WaitStatus {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || got == pid:
			return ws
		}
	}
}

func inWords(ws unix.WaitStatus) string {
	if ws.Signaled() {
		return fmt.Sprintf("was ended by a signal (%s)", ws.Signal())
	}
	return fmt.Sprintf("ended with exit status %d", ws.ExitStatus())
}

func (c *child) PID() int               { return c.process.Pid }
func (c *child) Ended() <-chan struct{} { return c.ended }
func (c *child) Exit() programExit      { return c.exit }
func (c *child) RequestStop()           { c.signal(unix.SIGTERM) }
func (c *child) Kill()                  { c.signal(unix.SIGKILL) }

func (c *child) signal(s unix.Signal) {
	select {
	case <-c.ended: // its pid may be another's
	default:
		_ = c.process.Signal(s) // it may be ending
	}
}

// tail passes on what is written, and keeps the end of it.
type tail struct {
	to  io.Writer
	mu  sync.Mutex
	end []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.end = append(t.end, p...)
	if n := len(t.end) - keepSaid; n > 0 {
		t.end = append([]byte(nil), t.end[n:]...)
	}
	t.mu.Unlock()
	_, _ = t.to.Write(p) // whoever read it may have gone, and what is written has to be taken all the same
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.end)
}

// becomeProgram replaces this process by a program under the same command line.
func becomeProgram(file string) error {
	err := syscall.Exec(file, append([]string{os.Args[0]}, os.Args[1:]...), os.Environ())
	return fmt.Errorf("starting %s again: %w", file, err)
}
