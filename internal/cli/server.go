package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/daemon"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/printer"
)

type serverOptions struct {
	deps   Deps
	role   string
	flags  *config.Flags
	dryRun bool
	format printer.Format
}

func newServerCmd(deps Deps, runF func(context.Context, serverOptions) error) *cobra.Command {
	o := serverOptions{deps: deps, role: config.Server, format: printer.Table}
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run this machine as a Kubernetes server, in the foreground",
		Long: "Runs the control plane and, unless --no-worker is given, a worker on this machine, until it is\n" +
			"interrupted or `k1s stop` is called. Pods keep running when it stops; the next start finds them.",
		Example: "  k1s server\n  k1s server --server https://10.0.0.1:6443 --token-file /etc/k1s/token   # as another server of that cluster\n  k1s server --dry-run          # print every process, its arguments and files\n  k1s server --no-worker --datastore-endpoint etcd",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	nodeFlags(cmd, &o)
	return cmd
}

// nodeFlags are those of a command that runs a node.
func nodeFlags(cmd *cobra.Command, o *serverOptions) {
	o.flags = config.RegisterFlags(cmd.Flags(), o.deps.Paths().ConfigFile())
	// It follows from the command.
	if err := cmd.Flags().MarkHidden("role"); err != nil {
		panic(err) // there is no such flag any more
	}
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "print what would run, and do nothing")
	cmd.Flags().VarP(&o.format, "output", "o", "format of --dry-run")
	cmd.SetUsageFunc(groupedUsage(cmd.UsageFunc()))
}

func newAgentCmd(deps Deps, runF func(context.Context, serverOptions) error) *cobra.Command {
	o := serverOptions{deps: deps, role: config.Agent, format: printer.Table}
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run this machine as a worker of a cluster that is there, in the foreground",
		Long: "Joins a cluster, and runs its pods on this machine until it is interrupted or `k1s stop` is called. The first\n" +
			"time it needs the address of a server and a token (k1s token create); after that it knows its cluster, and\n" +
			"starts with its pods also while no server answers. What all nodes have to agree about, such as networks, it\n" +
			"takes from the cluster.",
		Example: "  k1s agent --server https://10.0.0.1:6443 --token-file /etc/k1s/token\n" +
			"  K1S_SERVER=10.0.0.1 K1S_TOKEN=k1s1.agent.… k1s agent",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runF(cmd.Context(), o) },
	}
	nodeFlags(cmd, &o)
	return cmd
}

func runServer(ctx context.Context, o serverOptions) error {
	if !o.dryRun && os.Geteuid() <= 0 {
		// It may change the configuration.
		if _, err := daemon.FinishRestore(ctx, o.deps.Paths(), newLogger(o.deps.Streams.ErrOut, config.Default().Spec.Log)); err != nil {
			return err
		}
	}
	do, err := daemonOptions(o.deps, o.flags)
	if err != nil {
		return err
	}
	spec := &do.Config.Spec
	switch {
	case o.role == config.Server && spec.Role == config.Agent:
		return errs.Hint(errs.New(errs.Invalid, "this machine is configured as an agent (spec.role)"), "run: k1s agent")
	case slices.Contains(o.flags.Given(), "--token"):
		do.Warnings = append(do.Warnings, "--token can be read by everybody on this machine while k1s runs; use --token-file or K1S_TOKEN")
	case o.role == config.Agent && spec.NoWorker:
		do.Warnings = append(do.Warnings, "spec.noWorker is for servers, and has no effect on an agent")
	}
	spec.Role = o.role
	if o.dryRun {
		units, err := daemon.Plan(ctx, do)
		if err != nil {
			return err
		}
		return printer.Print(o.deps.Streams.Out, o.format, units, func(w io.Writer) error { return printPlan(w, units) })
	}
	if os.Geteuid() > 0 {
		return errs.Hint(errs.New(errs.Failure, "cannot start a node: it needs root"), "run: sudo k1s %[1]s (or try: k1s %[1]s --dry-run)", o.role)
	}
	if err := daemon.Run(ctx, do); !errors.Is(err, daemon.ErrHandOver) {
		return err
	}
	return daemon.FinishUpgrade(ctx, do)
}

// daemonOptions reads the whole configuration; flags may be nil where a command has none.
func daemonOptions(deps Deps, flags *config.Flags) (daemon.Options, error) {
	var src config.Sources
	if flags != nil {
		src = flags.Sources(deps.Environ())
	} else {
		src = config.Sources{File: deps.Paths().ConfigFile(), DropIns: deps.Paths().ConfigDropIns(), Env: deps.Environ()}
	}
	src.OtherEnv = otherEnv()
	src.Stdin = deps.Streams.In
	load := func() (config.Loaded, error) {
		return config.Effective(src, config.Known{Disable: disableNames(), Components: components.Names()})
	}
	loaded, err := load()
	if err != nil {
		return daemon.Options{}, err
	}
	exe, err := deps.Executable()
	if err != nil {
		return daemon.Options{}, fmt.Errorf("finding this program's own file: %w", err)
	}
	return daemon.Options{
		Config: loaded.Config, Paths: deps.Paths(), Executable: exe, Warnings: loaded.Warnings,
		CgroupRoot: lookup(deps.Environ(), envCgroupRoot), Sandbox: lookup(deps.Environ(), envSandbox) != "", Log: newLogger(deps.Streams.ErrOut, loaded.Config.Spec.Log),
		Reload: func() (config.Config, config.Origins, error) {
			again, err := load()
			return again.Config, again.Origins, err
		},
	}, nil
}

// defaultDaemonOptions are those of a machine whose configuration cannot be read.
func defaultDaemonOptions(deps Deps) (daemon.Options, error) {
	exe, err := deps.Executable()
	if err != nil {
		return daemon.Options{}, fmt.Errorf("finding this program's own file: %w", err)
	}
	c := config.Default()
	return daemon.Options{
		Config: c, Paths: deps.Paths(), Executable: exe, CgroupRoot: lookup(deps.Environ(), envCgroupRoot),
		Log: newLogger(deps.Streams.ErrOut, c.Spec.Log),
	}, nil
}

func lookup(environ []string, name string) string {
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			return v
		}
	}
	return ""
}

func newLogger(w io.Writer, c config.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// printPlan shows the whole node before it runs: every process, its arguments and the files it reads.
func printPlan(w io.Writer, units []component.Unit) error {
	for _, u := range units {
		fmt.Fprintf(w, "# %s\n", u.Name)
		fmt.Fprintf(w, "%s\n", strings.Join(u.Argv, " "))
		if u.User != nil {
			fmt.Fprintf(w, "user: %s\n", u.User)
		}
		for _, g := range u.Grants {
			fmt.Fprintf(w, "owner: %s\n", g)
		}
		for _, name := range slices.Sorted(maps.Keys(u.Env)) {
			fmt.Fprintf(w, "environment: %s=%s\n", name, u.Env[name])
		}
		for _, c := range u.Components {
			needs := make([]string, 0, len(c.Needs))
			for _, n := range c.Needs {
				needs = append(needs, fmt.Sprintf("%s (%s)", n.Component, n.Level))
			}
			fmt.Fprintf(w, "\n## %s: %s\n", c.Name, components.Summary(c.Name))
			if len(needs) > 0 {
				fmt.Fprintf(w, "needs: %s\n", strings.Join(needs, ", "))
			}
			fmt.Fprintf(w, "ready: %s\n", c.Ready)
			for _, a := range c.Spec.Args {
				fmt.Fprintf(w, "  %s\n", a)
			}
			for _, f := range c.Spec.Files {
				fmt.Fprintf(w, "\n--- %s\n%s", filepath.ToSlash(f.Path), f.Content)
			}
		}
		fmt.Fprintln(w)
	}
	return nil
}
