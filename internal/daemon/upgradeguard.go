package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/upgrade"
)

const (
	// lookAtTried is how often a program that is tried is asked how it is, and answersStatus how long one answer may take.
	lookAtTried   = 300 * time.Millisecond
	answersStatus = 10 * time.Second
)

// errStopped is why an upgrade ends when the node is stopped.
var errStopped = errs.Hint(errors.New("k1s was stopped while it was tried"), "nothing has changed; run the command again when it runs")

// program is a k1s that runs as a child of this process, and ends with it.
type program interface {
	PID() int
	// Ended is closed when it has ended; then Exit tells how, and what it said last.
	Ended() <-chan struct{}
	Exit() programExit
	// RequestStop asks it to stop the node, and Kill ends it alone. Nothing happens when it has ended.
	RequestStop()
	Kill()
}

// programExit is how a program has ended.
type programExit struct {
	// Clean tells that its exit status was 0; How is that in words that follow "it".
	Clean bool
	How   string
	// Said is the end of what it wrote to standard error.
	Said string
}

// guard tries another program on the node: in the process that the init system, or a person, has started, and under its command line.
type guard struct {
	upgradeFiles
	log    *slog.Logger
	status func(context.Context) (control.Status, error)
	start  func(file string) (program, error)
	tried  program // nil until there is one
	// stopped tells that the node was asked to stop meanwhile, and does not run any more.
	stopped bool
}

// FinishUpgrade comes after an ErrHandOver of Run, in the same process: it tries the new program on the node, puts it in its place when the node
// is well with it, and then becomes what is in that place, be it the new program or the old one. It returns when that cannot be done, or when the
// node was stopped meanwhile, with nil. ctx ends when this process is asked to stop; o is what Run was given.
func FinishUpgrade(ctx context.Context, o Options) error {
	p, log := o.Paths, o.Log
	s, err := LastUpgrade(p)
	if err != nil {
		return err
	}
	if s.Phase != upgrade.Trying {
		return fmt.Errorf("the upgrade to %s is %s, and cannot be tried", s.To, s.Phase)
	}
	g := &guard{upgradeFiles: upgradeFiles{p}, log: log, status: control.NewClient(p.ControlSocket()).Status, start: startProgram}
	s, err = g.run(ctx, s)
	if err != nil {
		log.Error("how the upgrade ended could not be kept", "err", err)
	}
	if g.stopped {
		// Before it was started, or when it did not come to that.
		if _, err := StopLeftovers(context.WithoutCancel(ctx), o, false); err != nil && !errs.Is(err, errs.NotRunning) {
			return fmt.Errorf("stopping what ran: %w", err)
		}
		return nil
	}
	return becomeProgram(s.File)
}

// run brings it to its end, and ends what was tried: whoever runs the node next finds everything running.
func (g *guard) run(ctx context.Context, s upgrade.State) (upgrade.State, error) {
	s, err := upgrade.Run(ctx, g, s)
	if g.tried != nil {
		g.tried.Kill()
		<-g.tried.Ended()
	}
	if s.Phase == upgrade.Done {
		g.log.Info("upgraded", "to", s.To.Version, "kubernetes", s.To.Kubernetes, "kept", s.Kept())
	} else {
		g.log.Warn("upgrade taken back", "to", s.To.Version, "kubernetes", s.To.Kubernetes, "err", s.Error)
	}
	return s, err
}

// Try implements upgrade.World.
func (g *guard) Try(ctx context.Context, s upgrade.State) (err error) {
	if ctx.Err() != nil {
		g.stopped = true
		return errStopped
	}
	g.log.Info("trying", "program", s.Staged(), "version", s.To.Version, "kubernetes", s.To.Kubernetes, "for", s.Timeout)
	child, err := g.start(s.Staged())
	if err != nil {
		return fmt.Errorf("starting it: %w", err)
	}
	g.tried = child
	defer func() {
		if err != nil {
			child.Kill()
			<-child.Ended()
		}
	}()
	answered := false
	gate := upgrade.Gate{Program: s.To, Until: time.Now().Add(s.Timeout)}
	for {
		select {
		case <-child.Ended():
			return g.ended(ctx, child.Exit(), answered)
		case <-ctx.Done():
			child.RequestStop()
			<-child.Ended()
			g.stopped = true
			return errStopped
		case <-time.After(lookAtTried):
		}
		seen, why := g.look(ctx, child)
		answered = answered || seen != nil
		switch gate.Look(time.Now(), seen, why) {
		case upgrade.Pass:
			return nil
		case upgrade.Fail:
			select {
			case <-child.Ended():
				return g.ended(ctx, child.Exit(), answered)
			default:
			}
			return errs.Hint(errs.New(errs.Timeout, "the node was not well with it within %s: %s", s.Timeout, gate.Why), "look for the reason: k1s logs NAME; where the machine is slow, give it longer with --timeout")
		}
	}
}

// ended is why a program that has ended by itself is not good.
func (g *guard) ended(ctx context.Context, e programExit, answered bool) error {
	if e.Clean && (answered || ctx.Err() != nil) { // `k1s stop`, or a signal
		g.stopped = true
		return errStopped
	}
	if said := lastError(e.Said); said != "" {
		return fmt.Errorf("it %s: %s", e.How, said)
	}
	return fmt.Errorf("it %s", e.How)
}

// look asks the program that is tried how it is; nil with the reason when it does not answer.
func (g *guard) look(ctx context.Context, child program) (*upgrade.Seen, string) {
	ctx, cancel := context.WithTimeoutCause(ctx, answersStatus, fmt.Errorf("no answer within %s", answersStatus))
	defer cancel()
	over := make(chan struct{})
	defer close(over)
	go func() { // it ends with this call
		select {
		case <-child.Ended():
			cancel()
		case <-over:
		}
	}()
	st, err := g.status(ctx)
	switch {
	case err != nil:
		return nil, "it does not answer yet: " + err.Error()
	case st.PID != child.PID():
		return nil, fmt.Sprintf("process %d answers in its place", st.PID)
	}
	return seenOf(st), ""
}

// seenOf is what a node tells of itself, as far as it decides.
func seenOf(st control.Status) *upgrade.Seen {
	seen := &upgrade.Seen{Version: st.Version, Kubernetes: st.Kubernetes, Payload: st.Payload, Started: st.ReadyAt != nil, Doing: st.Doing}
	for _, c := range st.Components {
		seen.Parts = append(seen.Parts, upgrade.Part{Name: c.Name, State: c.State, Note: c.Note, Ready: c.State == "ready"})
	}
	if n := st.Node; n != nil {
		seen.Node = &upgrade.Node{Ready: n.Ready, Reason: n.Reason, Kubelet: n.Kubelet}
	}
	for _, p := range st.Problems {
		if p.Code == health.ComponentCrashloop {
			seen.Failing = p.Text
		}
	}
	return seen
}

// lastError is the last error that a k1s has printed, or its last line.
func lastError(said string) string {
	last := ""
	for line := range strings.Lines(said) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "error: ") {
			last = strings.TrimPrefix(line, "error: ")
		}
	}
	if last == "" {
		last = lastLine(said)
	}
	return last
}
