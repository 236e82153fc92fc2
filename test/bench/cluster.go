package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/runner"
)

// What samples of clusters of several nodes are called.
const (
	sampleFive    = "five nodes"
	sampleAdded   = "agent added"
	sampleJoined  = "agent joined"
	sampleMemory  = "agent anonymous MB"
	fiveName      = "bench-five"
	fiveAgents    = 4
	settleOfAgent = 15 * time.Second
)

// five makes a cluster of a server and four agents as a user would, adds one, and looks at an agent.
func (b *bench) five(ctx context.Context) (err error) {
	quiet(ctx, b.o.patience)
	defer func() {
		ctx = context.WithoutCancel(ctx)
		err = errors.Join(err, b.clusterCommand(ctx, "delete", fiveName, "--yes"))
	}()
	b.say("a cluster of %d nodes", fiveAgents+1)
	began := time.Now()
	if err := b.clusterCommand(ctx, "create", fiveName, "--agents", fmt.Sprint(fiveAgents), "--no-kubeconfig"); err != nil {
		return err
	}
	b.took(sampleFive, time.Since(began))
	began = time.Now()
	if err := b.clusterCommand(ctx, "node", "add", fiveName); err != nil {
		return err
	}
	b.took(sampleAdded, time.Since(began))
	st, err := b.main.provider(k1s).Describe(ctx, fiveName)
	if err != nil {
		return err
	}
	added := st.Nodes[len(st.Nodes)-1]
	s, err := control.NewClient(added.ControlSocket).Status(ctx)
	if err != nil {
		return err
	}
	if s.ReadyAt == nil {
		return fmt.Errorf("%s is not ready", added.Name)
	}
	b.took(sampleJoined, s.ReadyAt.Sub(s.Since))
	if !sleep(ctx, settleOfAgent) {
		return context.Cause(ctx)
	}
	mb, err := unitsAnon(filepath.Dir(added.ControlSocket))
	if err != nil {
		return err
	}
	b.Samples["k1s "+sampleMemory] = append(b.Samples["k1s "+sampleMemory], mb)
	return nil
}

// clusterCommand runs `k1s cluster` as a user would.
func (b *bench) clusterCommand(ctx context.Context, args ...string) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, b.o.program, append([]string{"cluster"}, args...)...)
	cmd.Env = append(os.Environ(), cluster.EnvRoot+"="+b.main.dir)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("k1s cluster %v: %w\n%s", args, err, out.String())
	}
	return nil
}

// unitsAnon is the anonymous memory of a node's units, in MB, by the records of its daemon.
func unitsAnon(run string) (float64, error) {
	records, err := runner.Records(paths.Paths{Run: run})
	if err != nil || len(records) == 0 {
		return 0, fmt.Errorf("no units of a node in %s: %w", run, err)
	}
	total := 0.0
	for _, r := range records {
		kb, err := rollup(r.Process.PID)
		if err != nil {
			return 0, err
		}
		total += kb["Anonymous:"] / 1024
	}
	return total, nil
}
