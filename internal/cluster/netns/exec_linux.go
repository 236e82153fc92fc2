package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/errs"
)

// Exec implements cluster.Executor.
func (p *Provider) Exec(ctx context.Context, name, node string, argv []string, io cluster.Streams) error {
	if _, err := p.Features(ctx); err != nil {
		return err
	}
	l := p.layout(name)
	if !isPinned(l, node, nsKinds) {
		return errs.Hint(errs.New(errs.NotRunning, "node %s of cluster %s does not run", node, name), "run: k1s cluster start %s", name)
	}
	cg := p.cgroup(name, node)
	env := nodeEnv(cg)
	if spec, err := readRecord(l); err == nil {
		for _, n := range spec.Nodes {
			if n.Name() == node {
				env = append(cluster.NodeEnviron(spec, n), env...)
			}
		}
	}
	if term := os.Getenv("TERM"); term != "" {
		env = append(env, "TERM="+term)
	}
	// It is there, unless `k1s reset` in the node has removed all of its cgroups.
	if err := makeCgroup(filepath.Join(cg, "exec")); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, programInNode, append([]string{"cluster", "__exec", filepath.Join(cg, "exec")}, argv...)...)
	cmd.Err = nil // it was looked up on the machine; it is in the node
	cmd.Path = programInNode
	cmd.Dir, cmd.Env = "/", env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = io.In, io.Out, io.ErrOut
	err := onThread(func() error {
		if err := enter(l, node, nsKinds); err != nil {
			return err
		}
		return cmd.Start()
	})
	if err != nil {
		return fmt.Errorf("running %s in node %s: %w", argv[0], node, err)
	}
	return cmd.Wait()
}

// runExec becomes a command, as a member of the node's cgroup, so that it ends with the node.
func runExec(cgroup string, argv []string) error {
	if err := joinCgroup(cgroup, os.Getpid()); err != nil {
		return err
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return errs.As(errs.NotFound, err)
	}
	return fmt.Errorf("running %s: %w", path, syscall.Exec(path, argv, os.Environ()))
}

// Main is what the hidden sub-commands of `k1s cluster` do: args[0] is "__switch", "__node" or "__exec".
// Nobody but this package starts them.
func Main(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "__switch":
		var a switchArgs
		if err := json.Unmarshal([]byte(args[1]), &a); err != nil {
			return err
		}
		unix.CloseOnExec(readyFD)
		return runSwitch(ctx, a)
	case len(args) == 1 && args[0] == "__node":
		return runInit(ctx, "/run")
	case len(args) > 2 && args[0] == "__exec":
		return runExec(args[1], args[2:])
	}
	return errs.As(errs.Usage, errors.New("this command is started by k1s itself"))
}
