package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k1s.io/k1s/internal/errs"
)

// Directories in the node that runs the tests.
const (
	programsInNode = "/conformance/programs"
	resultsInNode  = "/conformance/results"
)

// sandbox is a cluster of our own, apart from all other clusters of this machine.
type sandbox struct {
	program string
	dir     string // holds everything of it
}

// cluster is its name.
const cluster = "conformance"

// newSandbox makes its directory.
func newSandbox(o options) (sandbox, error) {
	dir, err := os.MkdirTemp(o.work, "k1s-conformance-")
	return sandbox{o.program, dir}, err
}

// k1s is a command of the program that is tested. It is asked to end before it is killed: it takes back what it has begun.
func (s sandbox) k1s(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.program, append([]string{"cluster"}, args...)...)
	cmd.Env = append(os.Environ(), s.variable())
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	return cmd
}

func (s sandbox) variable() string { return "K1S_CLUSTERS_DIR=" + filepath.Join(s.dir, "c") }

func (s sandbox) howToDelete() string {
	return fmt.Sprintf("%s %s cluster delete %s --yes && rm -r %s", s.variable(), s.program, cluster, s.dir)
}

// create makes the cluster, with the images, and shows programs and results to the node that runs the tests.
func (s sandbox) create(ctx context.Context, o options, images, programs, results string) error {
	args := []string{"create", cluster, "--no-kubeconfig", "--agents", strconv.Itoa(o.nodes - 1), "--image-bundle", images, "--wait", "5m",
		"--volume", programs + ":" + programsInNode + ":ro@server-0", "--volume", results + ":" + resultsInNode + "@server-0"}
	for _, v := range o.set {
		args = append(args, "--set", v)
	}
	return errs.Ended("k1s cluster create", s.k1s(ctx, args...).Run())
}

// runTests runs the tests of the plan in a node, with what they print in log. That some failed is an *exec.ExitError.
func (s sandbox) runTests(ctx context.Context, o options, p plan, log string) error {
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	defer f.Close()
	// ginkgo ends the tests in time, and lets them tell where they were.
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit+5*time.Minute, errs.New(errs.Timeout, "the tests did not end in %s", o.limit))
	defer cancel()
	cmd := s.k1s(ctx, append([]string{"exec", cluster, "server-0", "--"}, testCommand(o, p)...)...)
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	return nil
}

// testCommand is what runs the tests, in a node. See hack/ginkgo-e2e.sh of Kubernetes.
func testCommand(o options, p plan) []string {
	argv := []string{programsInNode + "/ginkgo", "--procs=" + strconv.Itoa(o.procs), "--timeout=" + o.limit.String(), "--no-color", "--silence-skips",
		"--poll-progress-after=10m", "--focus=" + o.focus}
	skips := p.skips()
	if o.skip != "" {
		skips = append(skips, o.skip)
	}
	for _, s := range skips {
		argv = append(argv, "--skip="+s)
	}
	return append(argv, programsInNode+"/e2e.test", "--",
		"--kubeconfig=/etc/k1s/admin.kubeconfig",
		"--kubectl-path="+programsInNode+"/kubectl",
		// A cluster nobody knows anything of: no cloud, no logging in to nodes.
		"--provider=skeleton",
		"--report-dir="+resultsInNode, "--report-complete-ginkgo", "--report-complete-junit",
		"--e2e-output-dir="+resultsInNode,
		"--disable-log-dump", // by a script of upstream's; we export the cluster's logs
	)
}

// exportLogs saves what the cluster says of itself, for tests that failed. That it cannot is no reason to hide their results.
func (s sandbox) exportLogs(ctx context.Context, dir string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := s.k1s(ctx, "logs", "export", cluster, dir).Run(); err != nil {
		fmt.Fprintln(os.Stderr, "warning: logs of the cluster could not be saved:", err)
	}
}

// delete leaves nothing of the cluster.
func (s sandbox) delete(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := s.k1s(ctx, "delete", cluster, "--yes").Run(); err != nil {
		return errs.Hint(fmt.Errorf("deleting the cluster: %w", err), "run: %s", s.howToDelete())
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	if at := mountsBelow(string(mounts), s.dir); len(at) > 0 { // what is mounted would be emptied with it
		return errs.Hint(fmt.Errorf("the cluster is deleted, and %s is still mounted", strings.Join(at, ", ")), "see what holds it, unmount it, and run: rm -r %s", s.dir)
	}
	return os.RemoveAll(s.dir)
}

// mountsBelow are the mount points below dir in a file like /proc/self/mounts.
func mountsBelow(mounts, dir string) []string {
	var out []string
	for line := range strings.Lines(mounts) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			out = append(out, f[1])
		}
	}
	return out
}
