// Command k1s-pack is the build's own tool and is never shipped: it turns upstream main packages into
// importable ones (upstream), collects licences and the bill of materials (notice), compresses a
// directory into a payload (pack), and appends a payload to the light program (join). The Makefile runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
)

type command struct {
	name, usage string
	run         func(ctx context.Context, args []string) error
}

var commands = []command{
	{"upstream", "-o DIR NAME=IMPORTPATH…", runUpstream},
	{"notice", "-o DIR [flags] PROGRAM…", runNotice},
	{"pack", "-dir DIR -cache DIR -o FILE [flags]", runPack},
	{"join", "-program FILE -payload FILE -o FILE", runJoin},
	{"list", "FILE", runList},
	{"unpack", "FILE DIR", runUnpack},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "k1s-pack:", err)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		if i := slices.IndexFunc(commands, func(c command) bool { return c.name == args[0] }); i >= 0 {
			return commands[i].run(ctx, args[1:])
		}
	}
	for _, c := range commands {
		fmt.Fprintf(os.Stderr, "usage: k1s-pack %s %s\n", c.name, c.usage)
	}
	return flag.ErrHelp
}
