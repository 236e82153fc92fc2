package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/upgrade/rollout"
)

// drains are the nodes that pods leave just now because the cluster is upgraded. Each is a process that ends with this one.
type drains struct {
	d       *Daemon
	running sync.WaitGroup

	mu  sync.Mutex // guards what follows
	all map[string]*draining
}

// draining is one node.
type draining struct {
	state  rollout.Drain
	cancel context.CancelFunc
	ended  chan struct{} // closed when nothing of it runs any more
}

// newDrains is for one leader, which removes what one that was killed has left.
func newDrains(d *Daemon) *drains {
	left, err := filepath.Glob(filepath.Join(d.o.Paths.Run, drainCache+"*"))
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		d.log.Warn("what an upgrade has left is not removed", "err", err)
	}
	return &drains{d: d, all: map[string]*draining{}}
}

// drainCache begins the name of a directory for kubectl.
const drainCache = "drain-"

// begin empties a node, unless that is being done, or has come to its end since it was wanted first. It ends with ctx, with end, and when it is not wanted any more.
func (s *drains) begin(ctx context.Context, plan, node string, within time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[node] != nil {
		return
	}
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	one := &draining{cancel: cancel, ended: make(chan struct{})}
	s.all[node] = one
	empty := drainNode
	if s.d.emptyNode != nil {
		empty = s.d.emptyNode
	}
	s.d.mu.Lock()
	in := s.d.in
	s.d.mu.Unlock()
	s.d.log.Info("emptying a node", "node", node, "within", within.Round(time.Second))
	s.running.Go(func() {
		defer close(one.ended)
		defer cancel()
		err := empty(ctx, in, node, within, func(line string) {
			if line == "node/"+node+" cordoned" {
				s.owned(outer, plan, node)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			one.state.Last = line
		})
		s.mu.Lock()
		defer s.mu.Unlock()
		if one.state.Done = err == nil; err != nil {
			one.state.Err = err.Error()
		}
	})
}

// owned keeps with a node that it was the upgrade that has cordoned it. kubectl does that itself where it finds a node that was released in the
// moment it was started, as by another server that leads from then on.
func (s *drains) owned(ctx context.Context, plan, node string) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	patch := map[string]any{"metadata": map[string]any{"annotations": map[string]any{cordonAnnotation: plan}}}
	if err := s.d.client().PatchNode(ctx, node, patch); err != nil {
		s.d.log.Warn("a node was cordoned by an upgrade of the cluster, and that could not be kept with it", "node", node, "err", err)
	}
}

// seen tells how they go.
func (s *drains) seen() map[string]rollout.Drain {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]rollout.Drain{}
	for node, one := range s.all {
		out[node] = one.state
	}
	return out
}

// only ends and forgets those that are not wanted any more. When it returns nothing of them runs: what is done to their nodes next is the last.
func (s *drains) only(wanted []rollout.Action) {
	var ending []*draining
	defer func() {
		for _, one := range ending {
			<-one.ended
		}
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	for node, one := range s.all {
		keep := false
		for _, a := range wanted {
			keep = keep || a.Deed == rollout.Empty && a.Node == node
		}
		if !keep {
			one.cancel()
			delete(s.all, node)
			ending = append(ending, one)
		}
	}
}

// end waits until all have ended.
func (s *drains) end() {
	s.only(nil)
	s.running.Wait()
}

// drainNode lets the pods of a node leave it, with kubectl: it obeys PodDisruptionBudgets, and touches no pod that nobody would bring back. What it
// says is passed on line by line.
func drainNode(ctx context.Context, in component.Input, node string, within time.Duration, said func(string)) error {
	cache, err := os.MkdirTemp(in.Paths.Run, drainCache)
	if err != nil {
		return fmt.Errorf("making room for kubectl: %w", err)
	}
	defer os.RemoveAll(cache)
	cmd := exec.CommandContext(ctx, path.Join(in.Payload, components.Program), "kubectl", "drain", node,
		"--ignore-daemonsets", "--delete-emptydir-data", "--timeout="+max(within, time.Second).Round(time.Second).String(),
		"--kubeconfig="+os.DevNull, "--server="+components.URL(in), "--certificate-authority="+pki.CertFile(in.Paths, pki.CA),
		"--client-certificate="+pki.CertFile(in.Paths, pki.DaemonClient), "--client-key="+pki.KeyFile(in.Paths, pki.DaemonClient), "--cache-dir="+cache)
	cmd.Env = []string{"PATH=" + in.Payload + ":" + os.Getenv("PATH"), "HOME=" + cache}
	out := &lines{said: said}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	err = runWithUs(cmd)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if told := drainError(out.text.String()); told != "" {
		return errors.New(told)
	}
	if told := lastLine(out.text.String()); told != "" {
		return fmt.Errorf("kubectl drain: %w: %s", err, told)
	}
	return fmt.Errorf("kubectl drain: %w", err)
}

// lines passes on what is written line by line, and keeps the end of it.
type lines struct {
	said func(string)
	rest []byte
	text strings.Builder
}

// keepLines is how much of what kubectl says is kept.
const keepLines = 64 << 10

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		l.rest = rest
		if text := strings.TrimSpace(string(line)); text != "" {
			l.said(text)
			if l.text.Len() < keepLines {
				l.text.WriteString(text + "\n")
			}
		}
	}
}

// drainError is why kubectl could not empty a node, without the words that it puts around that.
func drainError(said string) string {
	const before, after = "due to error: ", ", continuing command..."
	out := ""
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if i := strings.Index(line, before); i >= 0 {
			out = strings.TrimSuffix(line[i+len(before):], after)
		} else if rest, ok := strings.CutPrefix(line, "error: "); ok && out == "" && !strings.HasPrefix(rest, "when evicting") {
			out = rest
		}
	}
	return strings.Trim(strings.TrimSuffix(out, after), "[]")
}
