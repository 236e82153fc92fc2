package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"k1s.io/k1s/internal/payload"
)

// runJoin writes program followed by payload, executable, under a temporary name first: a running k1s
// of the same name is not disturbed.
func runJoin(_ context.Context, args []string) error {
	fs := flag.NewFlagSet("join", flag.ContinueOnError)
	program := fs.String("program", "", "light program")
	carried := fs.String("payload", "", "payload file")
	out := fs.String("o", "", "file to write")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *program == "" || *carried == "" || *out == "" {
		return errors.New("join needs -program, -payload and -o")
	}
	b, err := os.ReadFile(*program)
	if err != nil {
		return err
	}
	if isDynamic(b) {
		return fmt.Errorf("%s is not linked statically and would not run on every distribution", *program)
	}
	temp := *out + ".new"
	w, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer w.Close()
	for _, name := range []string{*program, *carried} {
		r, err := os.Open(name)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, r)
		r.Close()
		if err != nil {
			return fmt.Errorf("appending %s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if _, err := payload.Open(temp); err != nil {
		return err
	}
	return os.Rename(temp, *out)
}
