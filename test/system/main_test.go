//go:build system

package system

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"k1s.io/k1s/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run makes the bench, runs the tests, and fails when they leave something on this machine.
func run(m *testing.M) int {
	flag.Parse()
	if os.Getenv(testenv.RootVar) == "" || os.Geteuid() != 0 {
		return m.Run() // each test says why it is skipped, or fails
	}
	if p := flag.Lookup("test.parallel"); p.Value.String() == p.DefValue {
		// Most of these tests wait for Kubernetes most of the time, so more of them than there are cores.
		if err := p.Value.Set("4"); err != nil {
			panic(err)
		}
	}
	var err error
	if the, err = newBench(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return 1
	}
	before, err := look(the.marks())
	if err != nil {
		fmt.Fprintln(os.Stderr, "error: looking at this machine before the tests:", err)
		return 1
	}
	code := m.Run()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := the.close(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error: clearing up:", err)
		code = 1
	}
	var left []string
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Second) { // what was killed last is still dying
		after, err := look(the.marks())
		if err != nil {
			fmt.Fprintln(os.Stderr, "error: looking at this machine after the tests:", err)
			return 1
		}
		if left = before.added(after); len(left) == 0 || time.Now().After(end) {
			break
		}
	}
	for _, l := range left {
		fmt.Fprintln(os.Stderr, "FAIL: left on this machine:", l)
		code = 1
	}
	return code
}
