package errs

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestKindSurvivesWrapping(t *testing.T) {
	err := fmt.Errorf("outer: %w", New(NotRunning, "k1s is not running"))
	if !Is(err, NotRunning) || KindOf(err).ExitCode() != 3 {
		t.Fatalf("kind %d", KindOf(err))
	}
	if err.Error() != "outer: k1s is not running" {
		t.Fatal(err)
	}
}

func TestForeignErrorsHaveKindsToo(t *testing.T) {
	for err, want := range map[error]int{
		context.DeadlineExceeded:                          5,
		context.Canceled:                                  130,
		fmt.Errorf("x: %w", errors.ErrUnsupported):        4,
		errors.New("anything"):                            1,
		As(Usage, errors.New("bad flag")):                 2,
		fmt.Errorf("x: %w", context.DeadlineExceeded):     5,
		As(NotFound, fmt.Errorf("x: %w", errors.New(""))): 1,
	} {
		if got := KindOf(err).ExitCode(); got != want {
			t.Errorf("%v: exit code %d, want %d", err, got, want)
		}
	}
}

func TestTheOutermostHintCounts(t *testing.T) {
	err := Hint(fmt.Errorf("b: %w", WithLog(Hint(errors.New("a"), "inner"), "/log")), "run: %s", "k1s start")
	hint, log := HintOf(err)
	if hint != "run: k1s start" || log != "/log" {
		t.Fatalf("hint %q, log %q", hint, log)
	}
}

func TestNilStaysNil(t *testing.T) {
	if Hint(nil, "x") != nil || As(Usage, nil) != nil || WithLog(nil, "x") != nil || Is(nil, Failure) {
		t.Fatal("nil became an error")
	}
}
