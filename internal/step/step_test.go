package step

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

func recorder() (*[]string, func(name string, fail error) Step) {
	var trace []string
	return &trace, func(name string, fail error) Step {
		return Step{
			Name: name,
			Do:   func(context.Context) error { trace = append(trace, "do "+name); return fail },
			Undo: func(context.Context) error { trace = append(trace, "undo "+name); return nil },
		}
	}
}

func TestAFailedStepUndoesWhatWasDoneInReverse(t *testing.T) {
	trace, mk := recorder()
	boom := errors.New("boom")
	err := Run(t.Context(), []Step{mk("a", nil), mk("b", boom), mk("c", nil)}, func(string) {})
	if !errors.Is(err, boom) || !strings.HasPrefix(err.Error(), "b: ") {
		t.Fatalf("error is %v, want boom told by step b", err)
	}
	want := []string{"do a", "do b", "undo b", "undo a"}
	if !slices.Equal(*trace, want) {
		t.Fatalf("did %v, want %v", *trace, want)
	}
}

func TestUndoWorksAfterTheContextEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var undoErr error
	err := Run(ctx, []Step{{
		Name: "a",
		Do:   func(context.Context) error { cancel(); return context.Canceled },
		Undo: func(ctx context.Context) error { undoErr = ctx.Err(); return nil },
	}}, func(string) {})
	if err == nil || undoErr != nil {
		t.Fatalf("Run: %v, context while undoing: %v", err, undoErr)
	}
}

func TestRemovingGoesOnAfterAFailure(t *testing.T) {
	trace, mk := recorder()
	err := RunAll(t.Context(), []Step{mk("a", errors.New("x")), mk("b", nil)}, func(string) {})
	if err == nil || !slices.Equal(*trace, []string{"do a", "do b"}) {
		t.Fatalf("did %v, error %v", *trace, err)
	}
}

func TestNothingIsRemovedBehindWhatIsRequired(t *testing.T) {
	trace, mk := recorder()
	leave := mk("leave", errors.New("nobody answers"))
	leave.Required = true
	err := RunAll(t.Context(), []Step{mk("a", errors.New("x")), leave, mk("remove", nil)}, func(string) {})
	if err == nil || !strings.Contains(err.Error(), "leave: nobody answers") || !slices.Equal(*trace, []string{"do a", "do leave"}) {
		t.Fatalf("did %v, error %v", *trace, err)
	}
}

func TestPrintDoesNothing(t *testing.T) {
	trace, mk := recorder()
	var out bytes.Buffer
	Print(&out, []Step{mk("remove x", nil)})
	if out.String() != "would remove x\n" || len(*trace) != 0 {
		t.Fatalf("printed %q, did %v", out.String(), *trace)
	}
}
