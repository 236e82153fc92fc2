package netns

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
)

// Files in a node by which the provider and the node's first process talk. Seen from the machine they are
// in the node's run directory.
const (
	initSpecName  = "k1s-init.json"
	initStateName = "k1s-init-state.json"
)

// initSpec is what a node's first process is to do.
type initSpec struct {
	Cgroup string   `json:"cgroup"` // it and its direct child live there
	Argv   []string `json:"argv"`
	// Stop is run when the node is to end, before Argv's process is asked to: it ends what that one would
	// leave behind, its pods.
	Stop    []string      `json:"stop"`
	Env     []string      `json:"env"`
	Timeout time.Duration `json:"timeout"` // for all of stopping
	// Generation grows with every spec that is written, so that it can be seen which one is followed.
	Generation int64 `json:"generation"`
}

// initState is how the node program fares.
type initState struct {
	PID      int    `json:"pid"` // 0 when it does not run
	Restarts int    `json:"restarts"`
	Last     string `json:"last,omitempty"` // how it ended the last time
	// Final: it said that trying again is pointless (exit status of a usage error or of an unsupported machine).
	Final bool `json:"final"`
	// Stopped: it was asked to end (exit status 0), and waits for SIGHUP to be started again.
	Stopped bool `json:"stopped"`
	// Generation is that of the last spec it has heard of. It follows that one from the next start.
	Generation int64 `json:"generation"`
}

// Back-off of the node program: from minBackOff doubling to maxBackOff, from the start again after it ran for
// steady.
const (
	minBackOff = 200 * time.Millisecond
	maxBackOff = 15 * time.Second
	steady     = time.Minute
)

// runInit is a node's first process. It starts the node program, starts it again when it dies, collects
// orphans, and ends the node program in order when it is asked to end itself. A node program that was stopped
// (k1s stop) stays so until SIGHUP. It may be killed at any time and started again in the same node; pods do
// not notice.
func runInit(_ context.Context, dir string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("from", "node")
	spec, err := readInitSpec(dir)
	if err != nil {
		return err
	}
	if err := joinCgroup(spec.Cgroup, os.Getpid()); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming the parent of orphans: %w", err)
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(signals)

	in := &initLoop{spec: spec, log: log, stateFile: dir + "/" + initStateName, backOff: minBackOff, state: initState{Generation: spec.Generation}}
	return in.run(signals)
}

func readInitSpec(dir string) (initSpec, error) {
	var spec initSpec
	b, err := os.ReadFile(filepath.Join(dir, initSpecName))
	if err == nil {
		err = json.Unmarshal(b, &spec)
	}
	if err != nil {
		return spec, fmt.Errorf("reading what to do in this node: %w", err)
	}
	return spec, nil
}

type initLoop struct {
	spec      initSpec
	log       *slog.Logger
	stateFile string
	stopper   int // pid of spec.Stop while it runs
	state     initState
	started   time.Time
	backOff   time.Duration
}

func (in *initLoop) run(signals <-chan os.Signal) error {
	again := time.NewTimer(0) // until the next start
	defer again.Stop()
	var overdue <-chan time.Time
	stopping := false
	for {
		select {
		case <-again.C:
			if err := in.start(); err != nil {
				in.state.Last = err.Error()
				in.save()
				again.Reset(in.nextBackOff())
			}
		case <-overdue:
			if in.state.PID == 0 { // whoever asked us to end kills the rest
				return nil
			}
			_ = unix.Kill(in.state.PID, unix.SIGKILL)
		case s := <-signals:
			switch {
			case s == unix.SIGCHLD:
				died := in.reap()
				switch {
				case stopping && in.state.PID == 0 && (died || in.stopper == 0):
					return nil
				case died && !stopping && !in.state.Final && !in.state.Stopped:
					again.Reset(in.nextBackOff())
				}
			case s == unix.SIGHUP:
				in.reap() // who sent it has seen the program end, and signals come in any order
				if !stopping && in.heed() {
					again.Reset(0)
				}
			case !stopping:
				stopping = true
				again.Stop()
				overdue = time.After(in.spec.Timeout)
				if in.startStopping(); in.state.PID == 0 && in.stopper == 0 {
					return nil
				}
			case in.state.PID != 0: // asked twice
				_ = unix.Kill(in.state.PID, unix.SIGTERM)
			}
		}
	}
}

// heed takes what may have changed, and tells whether the node program is to be started now: because it was stopped, has
// given up, or waits for another try.
func (in *initLoop) heed() bool {
	spec, err := readInitSpec(filepath.Dir(in.stateFile))
	if err != nil {
		in.log.Warn("not started again", "err", err)
		return false
	}
	in.spec, in.state.Generation = spec, spec.Generation
	if in.state.PID == 0 {
		in.backOff = minBackOff
		in.state.Stopped, in.state.Final, in.state.Last = false, false, ""
	}
	in.save() // before anybody takes what was for what is
	return in.state.PID == 0
}

// startStopping ends the node program and what it would leave behind, in the words of spec.Stop if there are
// any.
func (in *initLoop) startStopping() {
	if len(in.spec.Stop) > 0 {
		pid, err := in.launch(in.spec.Stop)
		if err == nil {
			in.stopper = pid
			return
		}
		in.log.Warn("stopping in order failed", "err", err)
	}
	if in.state.PID != 0 {
		_ = unix.Kill(in.state.PID, unix.SIGTERM)
	}
}

// start runs the node program. It is not waited for with os/exec: reap collects every child alike.
func (in *initLoop) start() error {
	pid, err := in.launch(in.spec.Argv)
	if err != nil {
		return err
	}
	in.state.PID = pid
	in.started = time.Now()
	in.save()
	in.log.Info("node program started", "pid", in.state.PID, "restarts", in.state.Restarts)
	return nil
}

func (in *initLoop) launch(argv []string) (int, error) {
	cmd := exec.Cmd{Path: argv[0], Args: argv, Env: in.spec.Env, Dir: "/", Stdout: os.Stdout, Stderr: os.Stderr}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("starting %s: %w", argv[0], err)
	}
	pid := cmd.Process.Pid
	return pid, cmd.Process.Release()
}

// reap collects all dead children and tells whether the node program was among them.
func (in *initLoop) reap() (died bool) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return died
		}
		if pid == in.stopper {
			in.stopper = 0
			if in.state.PID != 0 { // it failed, or only asked
				_ = unix.Kill(in.state.PID, unix.SIGTERM)
			}
		}
		if pid != in.state.PID {
			continue
		}
		died = true
		in.state.PID = 0
		in.state.Last = describeExit(ws)
		kind := ws.ExitStatus()
		in.state.Final = ws.Exited() && (kind == errs.Usage.ExitCode() || kind == errs.Unsupported.ExitCode())
		if in.state.Stopped = ws.Exited() && kind == 0; !in.state.Stopped {
			in.state.Restarts++
		}
		in.save()
		in.log.Warn("node program ended", "how", in.state.Last, "final", in.state.Final, "stopped", in.state.Stopped)
	}
}

func describeExit(ws unix.WaitStatus) string {
	if ws.Signaled() {
		return "killed by " + unix.SignalName(ws.Signal())
	}
	return fmt.Sprintf("exit status %d", ws.ExitStatus())
}

func (in *initLoop) nextBackOff() time.Duration {
	if !in.started.IsZero() && time.Since(in.started) > steady {
		in.backOff = minBackOff
	}
	d := in.backOff
	in.backOff = min(2*in.backOff, maxBackOff)
	return d
}

// save tells how the node program fares. Everybody who asks waits for this, and it is of this boot only: the program's pid
// means nothing in the next one, and whoever starts this process then removes the file before.
func (in *initLoop) save() {
	b, err := json.Marshal(in.state)
	if err == nil {
		err = durable.Replace(in.stateFile, b, 0o600)
	}
	if err != nil {
		in.log.Warn("recording the node's state failed", "err", err)
	}
}
