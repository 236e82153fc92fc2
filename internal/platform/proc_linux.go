package platform

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/errs"
)

// NewProcesses returns the processes of this machine.
func NewProcesses() Processes { return linuxProcesses{} }

// linuxProcesses works through pidfds (Linux 5.3): a descriptor of a process cannot come to mean another
// one, so no signal ever hits a stranger. The os/exec package is not used because its processes have to be
// waited for by whoever started them; ours are to be left and found again.
type linuxProcesses struct{}

func (linuxProcesses) Start(c Command) (Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	out := null
	if c.Output != nil {
		out = c.Output
	}
	dir := c.Dir
	if dir == "" {
		dir = "/"
	}
	pidfd := -1
	attr := &syscall.ProcAttr{
		Dir:   dir,
		Env:   c.Env,
		Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
		// A session of its own: neither a terminal's hang-up nor its ^C reaches it.
		Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	}
	if c.User != nil {
		attr.Sys.Credential, attr.Sys.AmbientCaps = credential(*c.User)
	}
	if c.Cgroup != nil {
		if f, err := c.Cgroup.birthplace(); err == nil && f != nil {
			defer f.Close()
			attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(f.Fd())
		}
	}
	KeepFilesFromChildren()
	pid, err := syscall.ForkExec(c.Argv[0], c.Argv, attr)
	if err != nil && attr.Sys.UseCgroupFD { // whatever it is: a process in the wrong cgroup is better than none
		attr.Sys.UseCgroupFD = false
		pid, err = syscall.ForkExec(c.Argv[0], c.Argv, attr)
	}
	runtime.KeepAlive(null)
	runtime.KeepAlive(c.Output)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.Argv[0], err)
	}
	p := &linuxProcess{id: identify(pid), fd: pidfd}
	if pidfd < 0 { // the kernel did not give one at birth; pid cannot be reused before we have waited for it
		if p.fd, err = unix.PidfdOpen(pid, 0); err != nil {
			_ = unix.Kill(pid, unix.SIGKILL)
			_, _ = unix.Wait4(pid, nil, 0, nil)
			return nil, fmt.Errorf("starting %s: opening the process: %w", c.Argv[0], err)
		}
	}
	if err := p.watch(); err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	return p, nil
}

func (linuxProcesses) Adopt(id ProcessID) (Process, error) {
	gone := func(why string) error {
		return errs.New(errs.NotFound, "process %d is gone: %s", id.PID, why)
	}
	if id.PID <= 0 {
		return nil, gone("not a pid")
	}
	fd, err := unix.PidfdOpen(id.PID, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, gone("no such process")
	}
	if err != nil {
		return nil, fmt.Errorf("opening process %d: %w", id.PID, err)
	}
	// Compared after opening: if the pid was reused before, the comparison shows it; later it cannot be.
	now := identify(id.PID)
	why := ""
	switch {
	case now.Start == 0:
		why = "no such process"
	case now.Boot != id.Boot:
		why = "the machine was restarted since"
	case id.Namespace != "" && now.Namespace != id.Namespace:
		why = "its pid was counted elsewhere"
	case now.Start != id.Start:
		why = "its pid belongs to " + now.Exe
	}
	if why != "" {
		unix.Close(fd)
		return nil, gone(why)
	}
	p := &linuxProcess{id: now, fd: fd}
	if err := p.watch(); err != nil {
		return nil, err
	}
	return p, nil
}

func (linuxProcesses) FindByEnv(key, value string) ([]ProcessID, error) {
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return nil, err
	}
	want := []byte(key + "=" + value)
	var ids []ProcessID
	for _, name := range environs {
		env, err := os.ReadFile(name)
		if err != nil || !slices.ContainsFunc(bytes.Split(env, []byte{0}), func(v []byte) bool { return bytes.Equal(v, want) }) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			continue
		}
		if id := identify(pid); id.Start != 0 {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b ProcessID) int {
		if a.Start != b.Start {
			if a.Start < b.Start {
				return -1
			}
			return 1
		}
		return a.PID - b.PID
	})
	return ids, nil
}

// Identify describes the process that has the pid now; Start is 0 when there is none.
func Identify(pid int) ProcessID { return identify(pid) }

// identify describes the process that has the pid now; Start is 0 when there is none, or only its remains.
func identify(pid int) ProcessID {
	id := ProcessID{PID: pid, Boot: bootID()}
	id.Namespace, _ = os.Readlink("/proc/self/ns/pid")
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return id
	}
	state, start, err := parseStat(string(stat))
	if err != nil || state == "Z" || state == "X" {
		return id
	}
	id.Start = start
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	// The file may have been replaced or pruned since, which changes nothing about the process.
	id.Exe = strings.TrimSuffix(exe, " (deleted)")
	return id
}

// parseStat picks the state and the start time out of /proc/<pid>/stat. The second field is the program's
// name in parentheses and may itself contain spaces and parentheses.
func parseStat(stat string) (state string, start uint64, err error) {
	i := strings.LastIndexByte(stat, ')')
	if i < 0 {
		return "", 0, fmt.Errorf("no program name in %q", stat)
	}
	f := strings.Fields(stat[i+1:]) // f[0] is field 3
	if len(f) < 20 {
		return "", 0, fmt.Errorf("too few fields in %q", stat)
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return f[0], start, err
}

var bootID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})

type linuxProcess struct {
	id   ProcessID
	fd   int // for signals; the same as file's, valid until file is closed
	file *os.File
}

// watch registers the pidfd with the runtime's poller, so that waiting costs no thread.
func (p *linuxProcess) watch() error {
	if err := unix.SetNonblock(p.fd, true); err != nil {
		unix.Close(p.fd)
		return fmt.Errorf("watching process %d: %w", p.id.PID, err)
	}
	p.file = os.NewFile(uintptr(p.fd), "pidfd")
	return nil
}

func (p *linuxProcess) ID() ProcessID { return p.id }

func (p *linuxProcess) RequestStop() error { return p.signal(unix.SIGTERM) }
func (p *linuxProcess) Kill() error        { return p.signal(unix.SIGKILL) }

func (p *linuxProcess) signal(s unix.Signal) error {
	rc, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = rc.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), s, nil, 0) })
	if errors.Is(err, fs.ErrClosed) || errors.Is(serr, unix.ESRCH) {
		return nil
	}
	if err = errors.Join(err, serr); err != nil {
		return fmt.Errorf("sending %s to process %d: %w", s, p.id.PID, err)
	}
	return nil
}

func (p *linuxProcess) Wait(ctx context.Context) (Exit, error) {
	stop := context.AfterFunc(ctx, func() { _ = p.file.SetReadDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() {
			_ = p.file.SetReadDeadline(time.Time{})
		}
	}()
	rc, err := p.file.SyscallConn()
	if err != nil {
		return Exit{}, err
	}
	var exit Exit
	var perr error
	err = rc.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			perr = err
			return true
		}
		if n <= 0 {
			return false
		}
		exit = reap(int(fd), p.id.PID)
		return true
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return Exit{}, context.Cause(ctx)
	}
	if err = errors.Join(err, perr); err != nil {
		return Exit{}, fmt.Errorf("waiting for process %d: %w", p.id.PID, err)
	}
	return exit, nil
}

// reap collects the exit status of a process that has ended. Only its parent can have it; we are that if
// we started it, or if we are the same process as the one that did (a daemon that replaced itself).
func reap(fd, pid int) Exit {
	e := Exit{Code: -1, Time: time.Now()}
	// Looking through the descriptor first tells whether it is a child of ours that has not been collected;
	// only then its pid is certainly still its own.
	if err := retry(func() error { return unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED|unix.WNOWAIT, nil) }); err != nil {
		e.Unknown = true
		return e
	}
	var ws unix.WaitStatus
	if err := retry(func() error { _, err := unix.Wait4(pid, &ws, 0, nil); return err }); err != nil {
		e.Unknown = true
		return e
	}
	if ws.Signaled() {
		e.Signal = ws.Signal().String()
	} else {
		e.Code = ws.ExitStatus()
	}
	return e
}

func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (p *linuxProcess) Close() error { return p.file.Close() }

func killPID(pid int) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}
