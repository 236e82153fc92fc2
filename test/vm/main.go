// Command vm shows k1s on a stock machine: Debian's kernel with its modules, systemd as the first process,
// all capabilities, and cgroup version 2 (or 1, with -cgroup v1), in a virtual machine. It is made for
// machines where tests run in a container and have none of these. qemu emulates the processor unless told
// otherwise, so it needs no KVM; that is why it is slow, and not part of `make test`.
//
// The root image is made of Debian's packages, from where apt on this machine gets them, and kept below
// -cache. The virtual machine has one network card, which is connected to nothing. In it, ./guest runs as a
// systemd service, makes the checks, reboots in between, and powers off. The exit code is 0 when every
// check was made and succeeded. `make vm` runs it; docs/how-to/systemd.md is what is checked.
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
	"strings"
	"syscall"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/test/vm/report"
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
	program string        // the k1s to check
	arch    string        // of it and of the machine
	cgroup  string        // v1 or v2
	cache   string        // directory of root images
	logs    string        // directory for the console and the results
	accel   string        // how qemu runs the processor
	memory  int           // of the machine, in MiB
	cpus    int           // of the machine
	limit   time.Duration // of one run, image making excluded
	image   bool          // only make the image
	quick   bool          // one boot, and nothing is killed
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("vm", flag.ContinueOnError)
	f.StringVar(&o.program, "program", "k1s", "the k1s to check")
	f.StringVar(&o.arch, "arch", "amd64", "architecture of the machine: amd64 or arm64")
	f.StringVar(&o.cgroup, "cgroup", "v2", "cgroup version systemd sets up: v2 or v1")
	f.StringVar(&o.cache, "cache", "out/vm", "directory that keeps the root image")
	f.StringVar(&o.logs, "logs", "", "directory for console and results (default: CACHE/logs-CGROUP)")
	f.StringVar(&o.accel, "accel", "tcg,thread=multi,tb-size=512", "qemu's -accel: tcg emulates, kvm is fast where it works")
	f.IntVar(&o.memory, "memory", 3072, "memory of the machine in MiB")
	f.IntVar(&o.cpus, "cpus", 2, "processors of the machine")
	f.DurationVar(&o.limit, "limit", 40*time.Minute, "when to give up")
	f.BoolVar(&o.image, "image", false, "only make the root image")
	f.BoolVar(&o.quick, "quick", false, "leave out kills, metrics, the reboot and the stop before the reset")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if _, ok := platforms[o.arch]; !ok {
		return o, errs.New(errs.Usage, "-arch is amd64 or arm64, not %q", o.arch)
	}
	if _, ok := cgroupArguments[o.cgroup]; !ok {
		return o, errs.New(errs.Usage, "-cgroup is v2 or v1, not %q", o.cgroup)
	}
	if o.logs == "" {
		o.logs = filepath.Join(o.cache, "logs-"+o.cgroup)
	}
	return o, nil
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if err := tools(platforms[o.arch].qemu); err != nil {
		return err
	}
	root, err := rootImage(ctx, o)
	if err != nil || o.image {
		return err
	}
	if err := os.MkdirAll(o.logs, 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.cache, "run-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	disk, err := checksDisk(ctx, o, dir)
	if err != nil {
		return err
	}
	results, err := os.Create(filepath.Join(o.logs, "results.txt"))
	if err != nil {
		return err
	}
	defer results.Close()

	start, t := time.Now(), &tally{}
	show := func(r report.Result) {
		for _, w := range []*os.File{os.Stdout, results} {
			fmt.Fprint(w, t.text(r))
		}
		t.add(r)
	}
	err = machine{options: o, root: root, disk: disk, dir: dir}.run(ctx, show)
	fmt.Printf("%d passed, %d failed\n", t.passed, t.failed)
	fmt.Fprintf(os.Stderr, "cgroup %s, %s; console and results: %s\n", o.cgroup, time.Since(start).Round(time.Second), o.logs)
	return errors.Join(err, t.verdict())
}

// tally counts results.
type tally struct {
	passed, failed int
	complete       bool
}

func (t *tally) add(r report.Result) {
	switch {
	case r.Last:
		t.complete = true
	case r.Failure == "":
		t.passed++
	default:
		t.failed++
	}
}

func (t *tally) verdict() error {
	switch {
	case t.failed > 0:
		return fmt.Errorf("%d of %d checks failed", t.failed, t.passed+t.failed)
	case !t.complete:
		return errs.Hint(fmt.Errorf("the machine ended after %d checks, before it had made all", t.passed), "see its console")
	}
	return nil
}

// text is a result as people read it.
func (t *tally) text(r report.Result) string {
	if r.Last {
		return ""
	}
	var b strings.Builder
	word := "ok  "
	if r.Failure != "" {
		word = "FAIL"
	}
	fmt.Fprintf(&b, "%s %s (%s)\n", word, r.Check, r.Took.Round(100*time.Millisecond))
	for _, part := range []string{r.Failure, r.Output, r.Detail} {
		for line := range strings.Lines(strings.TrimRight(part, "\n")) {
			fmt.Fprintf(&b, "       %s\n", strings.TrimRight(line, "\r\n"))
		}
	}
	return b.String()
}

// tools makes sure that what makes and runs the machine is there.
func tools(qemu string) error {
	packages := map[string]string{
		qemu:         map[string]string{"qemu-system-x86_64": "qemu-system-x86", "qemu-system-aarch64": "qemu-system-arm"}[qemu],
		"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs",
	}
	var missing []string
	for program, pkg := range packages {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) > 0 {
		return errs.Hint(errs.New(errs.Unsupported, "a virtual machine needs packages that are not installed: %s", strings.Join(missing, " ")),
			"as root, run: apt-get install --no-install-recommends %s", strings.Join(missing, " "))
	}
	if os.Geteuid() > 0 {
		return errs.Hint(errs.New(errs.Unsupported, "making a root image needs root"), "run the same command with sudo")
	}
	return nil
}
