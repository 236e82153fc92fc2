package clustercmd

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestProgressOnATerminalStaysOnOneLine(t *testing.T) {
	var out strings.Builder
	clock := time.Now()
	p := &progress{w: &out, terminal: true, width: func() int { return 40 }, now: func() time.Time { return clock }}
	p.Step("waiting for node server-0")
	p.Waiting(strings.Repeat("a long reason ", 20))
	p.Waiting("of several\nlines")
	clock = clock.Add(1200 * time.Millisecond)
	p.Done()
	for _, line := range strings.Split(out.String(), "\r\033[K") {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 39 {
			t.Errorf("%d columns: %q", n, line)
		}
	}
	if got := strings.Count(out.String(), "\n"); got != 1 {
		t.Errorf("%d lines, want 1: %q", got, out.String())
	}
	if !strings.HasSuffix(out.String(), "waiting for node server-0 (1.2s)\n") {
		t.Errorf("it ends with %q", out.String())
	}
}

func TestProgressElsewhereIsALineForEverythingNew(t *testing.T) {
	var out strings.Builder
	p := &progress{w: &out, now: func() time.Time { return time.Time{} }}
	p.Step("one")
	p.Waiting("why")
	p.Waiting("why")
	p.Step("two")
	p.Done()
	if got, want := out.String(), "one\n  0s: why\ntwo\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
