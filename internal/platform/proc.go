package platform

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"k1s.io/k1s/internal/component"
)

// Processes starts processes that outlive their starter and finds them again.
//
// Nothing ties a process to the one that started it: it has a session of its own, writes to a file and
// not to a pipe, and gets no signal when the starter dies. So a daemon can be killed or replaced and the
// next one takes over what runs.
type Processes interface {
	// Start returns when the program has been loaded; from then on it runs whatever happens to us.
	Start(c Command) (Process, error)
	// Adopt opens the process id names. The error is of kind errs.NotFound when it is gone, also when its
	// pid belongs to another process by now.
	Adopt(id ProcessID) (Process, error)
	// FindByEnv returns the processes that were started with key=value in their environment, oldest first.
	FindByEnv(key, value string) ([]ProcessID, error)
}

// Process is a running process. Wait must be called until it has returned an Exit or the process is
// abandoned with Close; the other methods may be called at any time and by anybody.
type Process interface {
	ID() ProcessID
	// RequestStop asks it to end in its own time. Nothing happens when it is gone already.
	RequestStop() error
	// Kill ends it. Nothing happens when it is gone already.
	Kill() error
	// Wait returns when the process is gone, or with ctx's cause.
	Wait(ctx context.Context) (Exit, error)
	// Close lets go of the process; it runs on.
	Close() error
}

// Command says what to start.
type Command struct {
	Argv   []string // Argv[0] is an absolute path
	Env    []string // all of it; ours is not inherited
	Dir    string   // working directory; "" is the root directory
	Output *os.File // standard output and error; nil throws them away
	// Cgroup is where the process is born, where the kernel can do that (version 2). Elsewhere it is born
	// in ours, so Cgroup.Add has to follow in any case. May be nil.
	Cgroup *Cgroup
	// User is as whom it runs; nil is as us.
	User *component.User
}

// ProcessID identifies one process for ever: a pid alone does not, pids are used again, but no two processes
// of one boot have the same pid and the same start time.
type ProcessID struct {
	PID int `json:"pid"`
	// Start is when it was started, in clock ticks since boot.
	Start uint64 `json:"start"`
	// Boot identifies the boot of the machine, Namespace the space pids are counted in.
	Boot      string `json:"boot"`
	Namespace string `json:"namespace,omitempty"`
	// Exe is the program it was running when it was identified. It is not part of the identity, since a
	// process may load another program and is still the same.
	Exe string `json:"exe,omitempty"`
}

// Exit is how a process ended.
type Exit struct {
	Code   int    `json:"code"`             // exit status; -1 when ended by a signal or unknown
	Signal string `json:"signal,omitempty"` // "killed", "segmentation fault" …; "" when it ended by itself
	// Unknown tells that only the end is known: the process was started by an earlier daemon, so its exit
	// status went to somebody else.
	Unknown bool      `json:"unknown,omitempty"`
	Time    time.Time `json:"time"`
}

// String tells it in words that follow "it".
func (e Exit) String() string {
	switch {
	case e.Unknown:
		return "ended (exit status unknown: started by an earlier daemon)"
	case e.Signal != "":
		return "was ended by a signal: " + e.Signal
	default:
		return fmt.Sprintf("exited with status %d", e.Code)
	}
}

// ExitError is the end of a process that was not asked to end.
type ExitError struct{ Exit }

func (e *ExitError) Error() string { return e.String() }

// ErrDetach is the cause with which a context is cancelled when processes are to be left alone and only
// the watching of them is to end.
var ErrDetach = errors.New("left running for the next daemon")
