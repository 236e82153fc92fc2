package errs

import (
	"context"
	"errors"
	"fmt"
	"strings"
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

func TestAnErrorIsToldWithWhatToDo(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
		code int
	}{
		{nil, "", 0},
		{errors.New("a"), "error: a\n", 1},
		{errors.Join(errors.New("a"), errors.New("b")), "error: a\n       b\n", 1},
		{WithLog(Hint(New(NotRunning, "a"), "run: k1s start"), "/log"), "error: a\nhint:  run: k1s start\nlog:   /log\n", 3},
	} {
		var out strings.Builder
		if code := Report(&out, c.err); code != c.code || out.String() != c.want {
			t.Errorf("%v: exit code %d and %q, want %d and %q", c.err, code, out.String(), c.code, c.want)
		}
	}
}
