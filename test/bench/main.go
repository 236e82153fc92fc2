// Command bench measures a k1s program against its budgets and prints a table with, beside every number, a
// plain baseline taken in the same run: the same upstream programs from the same payload, each a process
// of its own, with upstream's settings, started one after the other the way a script would (baseline.go).
// Both live in the same kind of namespaces (package netns), so the machine's network is not touched and
// nothing is left behind. It asserts nothing: a slow machine is not a fault.
//
// Everything is observed from outside, over TCP, HTTPS and DNS into the node's network namespace. `make
// bench` runs it; docs/benchmarks.md has its output and what follows from it. It needs Linux and root.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"k1s.io/k1s/internal/cluster/netns"
	"k1s.io/k1s/internal/errs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if !errors.Is(err, flag.ErrHelp) {
		os.Exit(errs.Report(os.Stderr, err))
	}
}

func run(ctx context.Context, args []string) error {
	// The provider starts its program again inside a node; for the baseline that program is this one.
	switch {
	case len(args) > 1 && args[0] == "cluster" && strings.HasPrefix(args[1], "__"):
		return netns.Main(ctx, args[1:])
	case len(args) > 0 && args[0] == baselineCommand:
		return runBaseline(ctx)
	case len(args) > 0 && args[0] == baselineStop:
		return nil // the node's first process then asks the baseline itself to end, which ends its pods
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errs.Hint(errs.New(errs.Unsupported, "measuring needs root: nodes are made of namespaces"), "run the same command with sudo")
	}
	b, err := newBench(o)
	if err != nil {
		return err
	}
	err = b.measure(ctx)
	return errors.Join(err, b.report(), b.close())
}

// options are the command line.
type options struct {
	program  string        // the k1s to measure
	dir      string        // where nodes live while they are measured
	json     string        // file for everything that was measured
	logs     string        // directory for the logs of all nodes; "" keeps none
	runs     int           // of each start
	pods     int           // whose latency is taken
	lists    int           // consistent LISTs
	commands int           // runs of each CLI command
	kills    int           // of the leading server, in each cluster of several
	settle   time.Duration // between the last start and the idle window
	window   time.Duration // over which idle CPU is taken
	writing  time.Duration // over which writes are counted, for each store and number of writers
	patience time.Duration // how long to wait for a quiet machine before each start
	limit    time.Duration // of all measuring
	only     string        // sections, comma separated; "" is all
	baseline bool
}

func parse(args []string) (options, error) {
	var o options
	var quick bool
	set := flag.NewFlagSet("bench", flag.ContinueOnError)
	set.StringVar(&o.program, "program", "k1s", "the k1s `file` to measure")
	set.StringVar(&o.dir, "dir", "/var/tmp/k1s-bench", "`directory` for nodes and their data, on a disk; it is removed afterwards")
	set.StringVar(&o.json, "json", "", "`file` for everything that was measured")
	set.StringVar(&o.logs, "logs", "", "`directory` in which to keep the logs of all nodes")
	set.IntVar(&o.runs, "runs", 5, "how often each start is measured")
	set.BoolVar(&quick, "quick", false, "two runs and a short idle time, for a first impression")
	set.DurationVar(&o.patience, "patience", 20*time.Second, "how long to wait for the machine to be quiet before each start")
	set.StringVar(&o.only, "only", "", "measure `sections` of: "+strings.Join(sections, ", "))
	set.BoolVar(&o.baseline, "baseline", true, "measure the baseline too")
	if err := set.Parse(args); err != nil {
		return o, errs.As(errs.Usage, err)
	}
	if set.NArg() > 0 {
		return o, errs.New(errs.Usage, "unexpected argument %q", set.Arg(0))
	}
	// Three clusters come to 21 kills: the second longest is their p95.
	o.pods, o.lists, o.commands, o.kills = 20, 60, 20, 7
	o.settle, o.window, o.writing, o.limit = time.Minute, time.Minute, 5*time.Second, 38*time.Minute
	if quick {
		o.runs, o.pods, o.kills = 2, 10, 3
		o.settle, o.window, o.writing, o.limit = 20*time.Second, 20*time.Second, 2*time.Second, 11*time.Minute
		o.patience = min(o.patience, 3*time.Second)
	}
	if o.runs < 1 {
		return o, errs.New(errs.Usage, "-runs %d: at least 1", o.runs)
	}
	for _, s := range strings.FieldsFunc(o.only, isComma) {
		if !contains(sections, s) {
			return o, errs.New(errs.Usage, "there is no section %q; sections: %s", s, strings.Join(sections, ", "))
		}
	}
	program, err := filepath.Abs(o.program)
	if err == nil {
		_, err = os.Stat(program)
	}
	if err != nil {
		return o, errs.Hint(fmt.Errorf("finding the program to measure: %w", err), "run: make build")
	}
	o.program = program
	return o, nil
}

func isComma(r rune) bool { return r == ',' }

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

// wants tells whether a section is to be measured.
func (o options) wants(section string) bool {
	return o.only == "" || contains(strings.FieldsFunc(o.only, isComma), section)
}

// writeJSON keeps what was measured.
func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the measurements: %w", err)
	}
	return nil
}
