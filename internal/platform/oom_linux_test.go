package platform

import (
	"os"
	"testing"
)

func TestOOMScoreIsReadAsItWasSet(t *testing.T) {
	was, err := OOMScore()
	if err != nil {
		t.Fatal(err)
	}
	if was == 1000 {
		t.Skip("this process has the highest score there is, and lowering it may not be allowed")
	}
	// Anybody may make it more likely to be chosen, and take that back.
	if err := SetOOMScore(os.Getpid(), was+1); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := SetOOMScore(os.Getpid(), was); err != nil {
			t.Error(err)
		}
	}()
	if now, err := OOMScore(); err != nil || now != was+1 {
		t.Errorf("%d, %v, want %d", now, err, was+1)
	}
}
