// Command k1s-pods is the programs that run inside k1s's own pods, in one static file that those pods
// mount read-only from the node, so that no image has to be fetched. The first argument, or the name it is
// called by, says which one it is.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k1s.io/k1s/internal/applets/applet"
	"k1s.io/k1s/internal/applets/coredns"
	"k1s.io/k1s/internal/applets/localpath"
	"k1s.io/k1s/internal/applets/metricsserver"
)

type program struct {
	name string
	run  func(args []string) error // owns the process
}

var programs = []program{
	{"coredns", coredns.Run},
	{"local-path-helper", localpath.Helper},
	{"local-path-provisioner", localpath.Run},
	{"metrics-server", metricsserver.Run},
}

func main() {
	if err := tune(); err != nil {
		end("k1s-pods", err)
	}
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if run := find(name); run != nil {
		end(name, run(args))
	}
	if len(args) > 0 {
		if run := find(args[0]); run != nil {
			end(args[0], run(args[1:]))
		}
	}
	fmt.Fprintln(os.Stderr, "usage: k1s-pods PROGRAM [ARGUMENTS], where PROGRAM is one of")
	for _, p := range programs {
		fmt.Fprintln(os.Stderr, "  "+p.name)
	}
	os.Exit(2)
}

func find(name string) func([]string) error {
	i := slices.IndexFunc(programs, func(p program) bool { return p.name == name })
	if i < 0 {
		return nil
	}
	return programs[i].run
}

// started is when a program here counts as started, which none of them tells.
const started = 5 * time.Second

// tune puts the garbage collector's schedule into force, for as long as the process lives: the programs own it.
func tune() error {
	memory, err := applet.DefaultMemory.FromEnv(os.Getenv)
	if err != nil {
		return err
	}
	memory.Begin()
	time.AfterFunc(started, func() {
		ctx := context.Background()
		go memory.Follow(ctx)
		if err := memory.Release(ctx); err != nil {
			fmt.Fprintf(os.Stderr, "keeping memory of the start: %v\n", err)
		}
	})
	return nil
}

func end(name string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}
