package crictl

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg/logs"
	"k8s.io/kubectl/pkg/util/term"

	"k1s.io/k1s/internal/errs"
)

func (c *client) logsCmd() *cobra.Command {
	var follow, stamps, previous bool
	var tail int64
	var since string
	cmd := &cobra.Command{
		Use:   "logs CONTAINER",
		Short: "Show a container's output",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			now := time.Now()
			opts := &logs.LogOptions{Follow: follow, Timestamp: stamps}
			if tail >= 0 {
				opts.TailLines = &tail
			}
			if since != "" {
				at, err := sinceTime(since, now)
				if err != nil {
					return err
				}
				opts.Since = at
			}
			return c.withRuntime(cmd.Context(), func(rt internalapi.RuntimeService) error {
				ctx := cmd.Context()
				r, err := rt.ContainerStatus(ctx, args[0], false)
				if err != nil {
					return fmt.Errorf("finding container %s: %w", args[0], err)
				}
				s := r.GetStatus()
				if previous {
					if s, err = lastAttempt(ctx, rt, s); err != nil {
						return err
					}
				}
				if s.GetLogPath() == "" {
					return errs.New(errs.NotFound, "container %s has no log file", args[0])
				}
				return logs.ReadLogs(ctx, s.GetLogPath(), s.GetId(), opts, rt, c.Out, c.ErrOut)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "go on as more comes")
	f.BoolVar(&stamps, "timestamps", false, "with times")
	f.BoolVarP(&previous, "previous", "p", false, "of the attempt before")
	f.Int64Var(&tail, "tail", -1, "the last `N` lines")
	f.StringVar(&since, "since", "", "after a `time` (RFC 3339) or duration ago (10m)")
	return cmd
}

func sinceTime(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, errs.New(errs.Usage, "--since %q is neither a duration nor a time like 2026-01-02T15:04:05Z", text)
	}
	return t, nil
}

// lastAttempt finds the container that was there before s in the same pod under the same name.
func lastAttempt(ctx context.Context, rt internalapi.RuntimeService, s *runtimeapi.ContainerStatus) (*runtimeapi.ContainerStatus, error) {
	all, err := rt.ListContainers(ctx, &runtimeapi.ContainerFilter{LabelSelector: map[string]string{
		"io.kubernetes.pod.uid":        s.Labels["io.kubernetes.pod.uid"],
		"io.kubernetes.container.name": s.Labels["io.kubernetes.container.name"],
	}})
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", err)
	}
	var best *runtimeapi.Container
	for _, f := range all {
		if f.GetMetadata().GetAttempt() < s.GetMetadata().GetAttempt() && (best == nil || f.GetMetadata().GetAttempt() > best.GetMetadata().GetAttempt()) {
			best = f
		}
	}
	if best == nil {
		return nil, errs.New(errs.NotFound, "container %s has no attempt before it", s.GetId())
	}
	r, err := rt.ContainerStatus(ctx, best.Id, false)
	if err != nil {
		return nil, fmt.Errorf("finding container %s: %w", best.Id, err)
	}
	return r.GetStatus(), nil
}

func (c *client) execCmd() *cobra.Command {
	var interactive, tty, sync bool
	var timeout int64
	cmd := &cobra.Command{
		Use:   "exec CONTAINER COMMAND...",
		Short: "Run a command in a container",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRuntime(cmd.Context(), func(rt internalapi.RuntimeService) error {
				if sync {
					out, errOut, err := rt.ExecSync(cmd.Context(), args[0], args[1:], time.Duration(timeout)*time.Second)
					_, _ = c.Out.Write(out)
					_, _ = c.ErrOut.Write(errOut)
					return err
				}
				return c.exec(cmd.Context(), rt, args[0], args[1:], interactive, tty)
			})
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // flags after the container are the command's
	f.BoolVarP(&interactive, "interactive", "i", false, "pass standard input on")
	f.BoolVarP(&tty, "tty", "t", false, "with a terminal")
	f.BoolVarP(&sync, "sync", "s", false, "without streams: wait for the end, then print")
	f.Int64Var(&timeout, "timeout", 0, "`seconds` a command run with --sync may take, 0 for no limit")
	return cmd
}

func (c *client) exec(ctx context.Context, rt internalapi.RuntimeService, id string, command []string, interactive, tty bool) error {
	r, err := rt.Exec(ctx, &runtimeapi.ExecRequest{
		ContainerId: id, Cmd: command, Tty: tty, Stdin: interactive, Stdout: true, Stderr: !tty,
	})
	if err != nil {
		return fmt.Errorf("running a command in %s: %w", id, err)
	}
	u, err := url.Parse(r.Url)
	if err != nil {
		return fmt.Errorf("reading the runtime's streaming address: %w", err)
	}
	executor, err := remotecommand.NewSPDYExecutor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, "POST", u)
	if err != nil {
		return fmt.Errorf("connecting to %s: %w", u.Host, err)
	}
	opts := remotecommand.StreamOptions{Stdout: c.Out, Tty: tty}
	if interactive {
		opts.Stdin = c.In
	}
	if !tty {
		opts.Stderr = c.ErrOut
		return executor.StreamWithContext(ctx, opts)
	}
	terminal := term.TTY{In: opts.Stdin, Out: c.Out, Raw: interactive}
	if sizes := terminal.MonitorSize(terminal.GetSize()); sizes != nil {
		opts.TerminalSizeQueue = sizeQueue{sizes}
	}
	return terminal.Safe(func() error { return executor.StreamWithContext(ctx, opts) })
}

// sizeQueue joins two equal interfaces of upstream.
type sizeQueue struct{ term.TerminalSizeQueue }

func (q sizeQueue) Next() *remotecommand.TerminalSize {
	s := q.TerminalSizeQueue.Next()
	if s == nil {
		return nil
	}
	return &remotecommand.TerminalSize{Width: s.Width, Height: s.Height}
}
