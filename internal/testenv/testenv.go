// Package testenv says what a test may ask of the machine. Used by tests only.
package testenv

import (
	"os"
	"testing"
)

// RootVar asks for the tests that need root.
const RootVar = "K1S_TEST_ROOT"

// Root skips the test unless tests that need root were asked for, and fails it when they were and there is
// no root: a test that was asked for is never skipped silently.
func Root(t testing.TB) {
	t.Helper()
	if os.Getenv(RootVar) == "" {
		t.Skipf("needs root and changes this machine for a moment; ask for it with %s=1", RootVar)
	}
	if os.Geteuid() != 0 {
		t.Fatalf("%s is set, but this is not root", RootVar)
	}
}
