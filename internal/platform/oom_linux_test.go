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
	// Anybody may make it more likely to be chosen, and take that back. 1000 is as likely as it gets.
	want := min(was+1, 1000)
	if err := SetOOMScore(os.Getpid(), want); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := SetOOMScore(os.Getpid(), was); err != nil {
			t.Error(err)
		}
	}()
	if now, err := OOMScore(); err != nil || now != want {
		t.Errorf("%d, %v, want %d", now, err, want)
	}
}
