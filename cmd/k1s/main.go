// Command k1s is the light program users call: command line, daemon and supervisor. It carries the
// payload with everything heavy and imports none of it, so that it starts in milliseconds.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"k1s.io/k1s/internal/cli"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop() // a second signal ends it at once
	}()
	return cli.Run(ctx, cli.SystemDeps(), os.Args)
}
