// Command images writes the image archives that system tests and examples run, because there is no
// registry to pull from:
//
//	go run ./test/images -o DIR
//
// writes DIR/busybox.tar (docker.io/library/busybox:latest and k1s.io/test/busybox:1) from a static
// busybox of this machine, and DIR/app.tar (k1s.io/test/app:1) from the program in ./app.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"k1s.io/k1s/test/images/testimage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	dir := flag.String("o", ".", "directory to write to")
	busybox := flag.String("busybox", testimage.DefaultBusybox, "static busybox program")
	arch := flag.String("arch", testimage.Arch(), "architecture of the programs (GOARCH)")
	flag.Parse()
	if err := os.MkdirAll(*dir, 0o755); err != nil {
		return err
	}
	if err := testimage.WriteBusybox(ctx, filepath.Join(*dir, "busybox.tar"), *busybox, *arch); err != nil {
		return err
	}
	return testimage.WriteApp(ctx, filepath.Join(*dir, "app.tar"), *arch)
}
