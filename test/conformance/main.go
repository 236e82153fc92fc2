// Command conformance runs Kubernetes' own end-to-end tests against ./k1s: it builds upstream's test binary, its program for test pods
// (agnhost) and ginkgo from the module ./upstream, makes images without a registry, creates a local cluster of its own, runs the tests in a
// node of it, from where there is no way to the outside, and deletes the cluster. `make conformance` runs it; docs/conformance.md tells what
// came of it.
//
// The exit code is 0 when every test that was chosen has passed, or was left out for a reason that is printed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/test/images/testimage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if !errors.Is(err, flag.ErrHelp) {
		os.Exit(errs.Report(os.Stderr, err))
	}
}

// options are the command line.
type options struct {
	program string // the k1s to test
	out     string // directory of programs, images and results
	work    string // directory below which the cluster is made
	busybox string // static busybox of this machine
	focus   string // what the names of tests match that are run
	skip    string // … and those that are not
	nodes   int
	procs   int           // how many tests run at once
	limit   time.Duration // of the tests; building them is not limited
	only    string        // do only this: "build" or "list"
	keep    bool          // leave the cluster for looking at it
	set     []string      // settings of nodes, as k1s cluster create takes them

	chosen, left *regexp.Regexp // focus and skip; left is nil without
}

// defaultFocus is what is run unless told otherwise, and what docs/conformance.md tells about.
const defaultFocus = `\[sig-network\] Netpol`

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("conformance", flag.ContinueOnError)
	f.StringVar(&o.program, "program", "k1s", "the k1s to test")
	f.StringVar(&o.out, "out", "out/"+runtime.GOARCH+"/conformance", "directory of programs, images and results")
	// What is below /tmp may be memory, and sockets have to have short names.
	f.StringVar(&o.work, "work", "/var/tmp", "directory below which the cluster is made, with a short name")
	f.StringVar(&o.busybox, "busybox", testimage.DefaultBusybox, "static busybox program")
	f.StringVar(&o.focus, "focus", defaultFocus, "regular expression for the names of the tests to run")
	f.StringVar(&o.skip, "skip", "", "regular expression for the names of tests to leave out")
	f.IntVar(&o.nodes, "nodes", 2, "nodes of the cluster: one server, the others are agents")
	f.IntVar(&o.procs, "procs", 2, "how many tests run at once; those marked [Serial] run alone")
	f.DurationVar(&o.limit, "limit", 2*time.Hour, "how long all tests together may take")
	f.StringVar(&o.only, "only", "", "build: only build what is needed; list: only print the names of the tests that would be run")
	f.Func("set", "a setting of nodes, `PATH=VALUE[@NODES]`, e.g. spec.isolation=component; may be given several times", func(v string) error {
		o.set = append(o.set, v)
		return nil
	})
	f.BoolVar(&o.keep, "keep", false, "leave the cluster there, and print how to delete it")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, errs.New(errs.Usage, "there are no arguments beside the flags: %s", strings.Join(f.Args(), " "))
	}
	// A cluster of one node would leave out, or fail, what is about packets between nodes.
	if o.nodes < 2 || o.nodes > 20 {
		return o, errs.New(errs.Usage, "-nodes is 2 to 20, not %d: upstream's tests need two", o.nodes)
	}
	if o.procs < 1 {
		return o, errs.New(errs.Usage, "-procs is at least 1, not %d", o.procs)
	}
	if !slices.Contains([]string{"", "build", "list"}, o.only) {
		return o, errs.New(errs.Usage, "-only is build or list, not %q", o.only)
	}
	var err error
	if o.chosen, err = regexp.Compile(o.focus); err != nil {
		return o, errs.New(errs.Usage, "-focus: %w", err)
	}
	if o.skip != "" {
		if o.left, err = regexp.Compile(o.skip); err != nil {
			return o, errs.New(errs.Usage, "-skip: %w", err)
		}
	}
	for _, p := range []*string{&o.program, &o.out} {
		if *p, err = filepath.Abs(*p); err != nil {
			return o, err
		}
	}
	return o, nil
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	p, err := build(ctx, filepath.Join(o.out, "programs"))
	if err != nil || o.only == "build" {
		return err
	}
	all, err := p.tests(ctx)
	if err != nil {
		return err
	}
	plan, err := choose(all, o.chosen, o.left, conditions(machine()))
	if err != nil {
		return err
	}
	if o.only == "list" {
		fmt.Println(strings.Join(plan.names(), "\n"))
		return nil
	}
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		return errs.Hint(errs.New(errs.Unsupported, "a cluster in namespaces needs Linux and root"), "run the same command with sudo on Linux")
	}
	if _, err := os.Stat(o.program); err != nil {
		return errs.Hint(fmt.Errorf("the program to test: %w", err), "run: make build")
	}
	images, err := p.writeImages(ctx, o)
	if err != nil {
		return err
	}
	return test(ctx, o, p.dir, images, plan)
}

// test runs the plan in a cluster made for it. programs is the directory of upstream's, images an archive.
func test(ctx context.Context, o options, programs, images string, plan plan) (err error) {
	results := filepath.Join(o.out, "results-"+time.Now().UTC().Format("20060102-150405"))
	if err := os.MkdirAll(results, 0o755); err != nil {
		return err
	}
	s, err := newSandbox(o)
	if err != nil {
		return err
	}
	defer func() {
		if o.keep {
			fmt.Fprintf(os.Stderr, "the cluster is still there; delete it by: %s\n", s.howToDelete())
			return
		}
		if left := s.delete(context.WithoutCancel(ctx)); left != nil {
			err = errors.Join(err, left)
		}
	}()
	fmt.Fprintf(os.Stderr, "%d tests, %d at once, in a cluster of %d nodes; follow: tail -f %s\n",
		len(plan.run), o.procs, o.nodes, filepath.Join(results, "e2e.log"))
	if err := s.create(ctx, o, images, programs, results); err != nil {
		return err
	}
	start := time.Now()
	ended := s.runTests(ctx, o, plan, filepath.Join(results, "e2e.log"))
	report, err := readReport(filepath.Join(results, "ginkgo", "report.json"))
	if err != nil {
		return errs.WithLog(errors.Join(ended, fmt.Errorf("the tests ended without a report: %w", err)), filepath.Join(results, "e2e.log"))
	}
	outcomes := report.outcomes(plan)
	if err := outcomes.writeLogs(filepath.Join(results, "failed")); err != nil {
		return err
	}
	if outcomes.count(failed)+outcomes.count(notRun) > 0 {
		s.exportLogs(ctx, filepath.Join(results, "cluster"))
	}
	if err := os.WriteFile(filepath.Join(results, "results.txt"), []byte(outcomes.list()), 0o644); err != nil {
		return err
	}
	fmt.Print(outcomes.table())
	fmt.Fprintf(os.Stderr, "%s; every test with its time: %s\n", time.Since(start).Round(time.Second), filepath.Join(results, "results.txt"))
	verdict := outcomes.verdict(report)
	var exit *exec.ExitError
	if verdict != nil && errors.As(ended, &exit) && exit.ExitCode() > 0 {
		return verdict // which is why ginkgo ended so
	}
	if ended != nil {
		ended = errs.WithLog(fmt.Errorf("running the tests: %w", ended), filepath.Join(results, "e2e.log"))
	}
	return errors.Join(verdict, ended)
}
