// Command k1s-pods is the programs that run inside k1s's own pods, in one static file that those pods
// mount read-only from the node, so that no image has to be fetched. The first argument, or the name it is
// called by, says which one it is.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"k1s.io/k1s/internal/applets/coredns"
	"k1s.io/k1s/internal/applets/localpath"
	"k1s.io/k1s/internal/applets/metricsserver"
)

type applet struct {
	name string
	run  func(args []string) error // owns the process
}

var applets = []applet{
	{"coredns", coredns.Run},
	{"local-path-helper", localpath.Helper},
	{"local-path-provisioner", localpath.Run},
	{"metrics-server", metricsserver.Run},
}

func main() {
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
	for _, a := range applets {
		fmt.Fprintln(os.Stderr, "  "+a.name)
	}
	os.Exit(2)
}

func find(name string) func([]string) error {
	i := slices.IndexFunc(applets, func(a applet) bool { return a.name == name })
	if i < 0 {
		return nil
	}
	return applets[i].run
}

func end(name string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}
