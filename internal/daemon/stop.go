package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/payload"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/probe"
	"k1s.io/k1s/internal/runner"
	"k1s.io/k1s/internal/wait"
)

// endPods ends all pods of a node that runs: the kubelet goes first, because it would start them again,
// and containerd stays until they are gone.
func (d *Daemon) endPods() error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), 90*time.Second, errors.New("the pods did not end within 90s"))
	defer cancel()
	d.mu.Lock()
	in := d.in
	d.mu.Unlock()
	if !in.Config.Spec.Worker() {
		return nil
	}
	plan, err := components.Plan(in)
	if err != nil {
		return err
	}
	without := slices.DeleteFunc(plan, func(u component.Unit) bool {
		return slices.ContainsFunc(u.Components, func(c component.Component) bool { return c.Name == "kubelet" })
	})
	d.step("ending pods")
	if err := d.sup.Apply(ctx, without); err != nil {
		return fmt.Errorf("stopping the kubelet before its pods: %w", err)
	}
	return stopPods(ctx, in)
}

// podsEnded keeps for whoever has asked for it whether the pods have ended. What is left of them is no reason for the daemon to fail: an init system would
// start the node again that somebody wanted to be stopped.
func (d *Daemon) podsEnded(p paths.Paths, err error) error {
	if err == nil {
		return removeIfThere(p.PodsLeft())
	}
	d.log.Error("pods have not ended", "err", err)
	return durable.WriteFile(p.PodsLeft(), []byte(err.Error()+"\n"), 0o600)
}

// PodsLeft is why a daemon that has ended could not end the node's pods; nil where it did, or was not asked to.
func PodsLeft(p paths.Paths) error {
	b, err := os.ReadFile(p.PodsLeft())
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return errors.New(strings.TrimSpace(string(b)))
}

func stopPods(ctx context.Context, in component.Input) error {
	return applet(ctx, in, "stop-pods", "--endpoint="+components.RuntimeEndpoint(in))
}

// applet runs a payload program to its end; its error output becomes the error.
func applet(ctx context.Context, in component.Input, args ...string) error {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path.Join(in.Payload, components.Program), args...)
	cmd.Env = append(os.Environ(), "PATH="+in.Payload+":"+os.Getenv("PATH"))
	cmd.Stderr = &stderr
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil: // it was killed for that
		err = context.Cause(ctx)
	}
	if said := lastLine(stderr.String()); said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return fmt.Errorf("%s: %w", args[0], err)
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// offline is the Input of a node whose daemon does not run, as far as it can be known without one.
func offline(ctx context.Context, o Options) (component.Input, error) {
	in := component.Input{Config: o.Config, Paths: o.Paths}
	carried, err := payload.Open(o.Executable)
	if err != nil {
		return in, err
	}
	r, err := payload.Unpack(ctx, carried, o.Paths.Payloads(), platform.AvailableMemory())
	if err != nil {
		return in, err
	}
	in.Payload, in.PayloadID = r.Dir, carried.ID
	in.Facts, err = detectFacts(ctx, o)
	return in, err
}

func offlineRunner(o Options, in component.Input) runner.Options {
	ro := runner.Options{Paths: o.Paths, CgroupRoot: in.Facts.CgroupRoot, Payload: in.Payload, Log: o.Log}
	if cg, err := platform.DetectCgroups(); err == nil {
		ro.Cgroups = cg
	}
	return ro
}

// StopLeftovers stops the units a killed daemon has left, and with pods also what runs in them; it
// returns how many processes it found: none when only pods were left. The error is of kind NotRunning when
// there cannot have been anything.
func StopLeftovers(ctx context.Context, o Options, pods bool) (int, error) {
	if _, err := os.Stat(o.Paths.Data); errors.Is(err, os.ErrNotExist) {
		return 0, errs.New(errs.NotRunning, "there is no node on this machine") // and looking makes none
	}
	unlock, err := lock(ctx, o.Paths)
	if err != nil {
		return 0, err
	}
	defer unlock()
	pids, err := runningPIDs(o.Paths)
	if err != nil {
		return 0, err
	}
	if len(pids) == 0 && (!pods || neverRan(o)) {
		return 0, errs.New(errs.NotRunning, "nothing of this node runs")
	}
	in, err := offline(ctx, o)
	if err != nil {
		return 0, err
	}
	ro := offlineRunner(o, in)
	if !pods || !in.Config.Spec.Worker() {
		return len(pids), runner.StopRecorded(ctx, ro, nil)
	}
	isRuntime := func(unit string) bool { return unit == "containerd" }
	err = runner.StopRecorded(ctx, ro, isRuntime)
	ended := endPodsOffline(ctx, in, ro)
	if ended == nil {
		ended = removeIfThere(o.Paths.PodsLeft())
	}
	return len(pids), errors.Join(err, ended, runner.StopRecorded(ctx, ro, nil))
}

// neverRan tells that no container can have been started here.
func neverRan(o Options) bool {
	_, err := os.Stat(o.Paths.Containerd())
	return errors.Is(err, os.ErrNotExist)
}

// runtimeAnswers is how long a containerd that was started to end pods may take until it does: on a machine that is busy, and
// with pods of which it has to find out first whether they run.
const runtimeAnswers = time.Minute

// endPodsOffline ends pods through a containerd that still runs, or through one started for it.
func endPodsOffline(ctx context.Context, in component.Input, ro runner.Options) error {
	if !components.OwnRuntime(in) {
		return stopPods(ctx, in)
	}
	if _, err := os.Stat(in.Paths.Containerd()); errors.Is(err, os.ErrNotExist) {
		return nil // there never were any
	}
	plan, err := components.Plan(in)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(plan, func(u component.Unit) bool { return u.Name == "containerd" })
	if i < 0 {
		return nil
	}
	if err := prepareCgroups(in); err != nil {
		return err
	}
	runCtx, end := context.WithCancel(ctx)
	done := make(chan error, 1)
	p := runner.NewProcess(plan[i], ro)
	if running, _, err := p.Adopt(ctx); err != nil || !running {
		go func() { done <- p.Run(runCtx) }()
	} else {
		done <- nil
	}
	ready := plan[i].Components[0].Ready
	waitCtx, cancel := context.WithTimeoutCause(ctx, runtimeAnswers, fmt.Errorf("not within %s", runtimeAnswers))
	defer cancel()
	err = wait.Until(waitCtx, 50*time.Millisecond, "containerd", func(ctx context.Context) error { return probe.Check(ctx, ready) })
	if err == nil {
		err = stopPods(ctx, in)
	}
	end()
	<-done // how it ended does not matter: it was asked to
	return err
}

// running tells that a daemon holds the lock.
func running(ctx context.Context, o Options) bool {
	unlock, err := lock(ctx, o.Paths)
	if err != nil {
		return errs.Is(err, errs.Exists)
	}
	unlock()
	return false
}
