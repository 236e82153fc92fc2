package iostreams

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestAskReturnsTheAnswerOrNothing(t *testing.T) {
	for in, want := range map[string]string{"yes\nmore\n": "yes", "  Y \n": "Y", "\n": "", "": "", "no end": "no end"} {
		var out strings.Builder
		got, err := Ask(t.Context(), Streams{In: strings.NewReader(in), ErrOut: &out}, "really? ")
		if err != nil || got != want || out.String() != "really? " {
			t.Errorf("%q: got %q, %v, asked %q", in, got, err, out.String())
		}
	}
}

func TestAnInterruptEndsAQuestion(t *testing.T) {
	in, w := io.Pipe() // nobody answers
	defer w.Close()
	interrupted := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(interrupted)
	if _, err := Ask(ctx, Streams{In: in, ErrOut: io.Discard}, "really? "); !errors.Is(err, interrupted) {
		t.Errorf("got %v", err)
	}
}

func TestTheWidthOfWhatIsNoTerminalIsTheUsualOne(t *testing.T) {
	if got := Width(io.Discard); got != 80 {
		t.Errorf("got %d", got)
	}
}
