// Command dist checks a k1s that was built for release, of this machine's architecture or another's: its size,
// that everything in it is for its architecture and runs on every distribution, and that it starts, finds its
// payload, unpacks it and that the programs in it run. A foreign processor is emulated by qemu's user mode
// (Debian's package qemu-user), which the kernel is told of in a user namespace of its own: the machine's
// own setting stays as it is. No node is started: emulating one takes a whole machine, see test/vm.
//
// `make dist-check ARCH=arm64` runs it. The exit code is 0 when every check succeeded.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/payload"
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
	program string
	arch    string  // what it must be for, as Go names it
	budget  float64 // MB (10⁶ bytes) the file may have
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("dist", flag.ContinueOnError)
	f.StringVar(&o.arch, "arch", runtime.GOARCH, "architecture it must be for: amd64, arm64 or arm")
	f.StringVar(&o.program, "program", "", "the k1s to check (default: dist/k1s-linux-ARCH)")
	f.Float64Var(&o.budget, "budget", 70, "MB the file may have")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if _, ok := platforms[o.arch]; !ok {
		return o, errs.New(errs.Usage, "-arch is amd64, arm64 or arm, not %q", o.arch)
	}
	if o.program == "" {
		o.program = "dist/k1s-linux-" + o.arch
	}
	var err error
	o.program, err = filepath.Abs(o.program)
	return o, err
}

// check is one statement that is to be true.
type check struct {
	name string
	// show makes sure of it, and returns what shows it.
	show func(context.Context) (string, error)
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "k1s-dist-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	carried, err := payload.Open(o.program)
	if err != nil {
		return err
	}
	m, err := findMachine(ctx, o.arch, dir)
	if err != nil {
		return err
	}
	// Unpacked by the program itself, with its first command that needs the payload.
	unpacked := filepath.Join(dir, "data/payload", carried.ID)
	checks := []check{
		{"the file", func(context.Context) (string, error) { return size(o.program, o.budget) }},
		{"it is static", func(context.Context) (string, error) { return static(o.program, o.arch) }},
		{"it starts, and lists what it carries", func(ctx context.Context) (string, error) {
			out, err := m.says(ctx, o.program+" version --components", "payload "+carried.ID, "k8s.io/kubernetes")
			return fmt.Sprintf("%s… and %d components more", firstLines(out, 4), max(strings.Count(out, "\n")-4, 0)), err
		}},
		{"it examines the machine", func(ctx context.Context) (string, error) {
			// 4: this machine cannot be a node, which is what an emulated one is told.
			return m.says(ctx, o.program+" check || [ $? = 4 ]")
		}},
		{"it unpacks itself and runs kubectl", func(ctx context.Context) (string, error) {
			return m.says(ctx, o.program+" kubectl version --client", "Client Version: v")
		}},
		{"all programs are for " + o.arch, func(context.Context) (string, error) { return programs(unpacked, o.arch) }},
	}
	for _, p := range []struct{ command, says string }{
		{"k1s-kube kube-apiserver --version", "Kubernetes v"},
		{"k1s-kube kubelet --version", "Kubernetes v"},
		{"k1s-kube containerd --version", "containerd/v2 v"},
		{"k1s-kube ctr --version", "containerd/v2 v"},
		{"containerd-shim-runc-v2 -v", "Version:  v"},
		{"runc --version", "libseccomp: "},
		// An emulator knows no sockets of netfilter, which nft opens first; that it gets there shows loader and libraries.
		{"nft --version 2>&1 | grep -e 'nftables v' -e 'Unable to initialize Netlink socket: Protocol not supported'", ""},
		{"k1s-pods coredns --version", "linux/" + o.arch},
		{"k1s-pods metrics-server --version", "v"},
		{"k1s-pods local-path-provisioner --version", "version v"},
		{"CNI_COMMAND=VERSION ./cni/ptp </dev/null", `"supportedVersions"`},
		{"CNI_COMMAND=VERSION ./cni/portmap </dev/null", `"supportedVersions"`},
		// It waits until it is asked to end.
		{"timeout --preserve-status -s TERM 2 ./pause && echo ended when asked", "ended"},
	} {
		command := p.command
		if !strings.Contains(command, "./") {
			command = "./" + command
		}
		checks = append(checks, check{p.command, func(ctx context.Context) (string, error) {
			return m.says(ctx, "cd "+unpacked+"; "+command, p.says)
		}})
	}
	return all(ctx, checks)
}

// all makes the checks in order.
func all(ctx context.Context, checks []check) error {
	failed := 0
	for _, c := range checks {
		start := time.Now()
		out, err := c.show(ctx)
		word := "ok  "
		if err != nil {
			failed++
			word = "FAIL"
			out = err.Error() + "\n" + out
		}
		fmt.Printf("%s %s (%s)\n", word, c.name, time.Since(start).Round(100*time.Millisecond))
		for line := range strings.Lines(strings.TrimSpace(out)) {
			fmt.Printf("       %s\n", strings.TrimRight(line, "\n"))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	fmt.Printf("%d passed, %d failed\n", len(checks)-failed, failed)
	if failed > 0 {
		return fmt.Errorf("%d of %d checks failed", failed, len(checks))
	}
	return nil
}

func firstLines(s string, n int) string {
	lines := strings.SplitAfterN(s, "\n", n+1)
	return strings.Join(lines[:min(n, len(lines))], "")
}
