package upgrade

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

// errKilled is the end of the process: nothing of the World happens any more.
var errKilled = errors.New("killed")

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// world is a machine in memory. Each of its deeds can fail, or be the last; those of more than one step can break off in between.
type world struct {
	steps  int
	fail   string // the deed that fails
	killAt int    // the step before which the process ends; 0 for none

	journal             State  // on the disk
	place, staged, kept string // what is in the files; "" for nothing
	runs                string // the program that runs the node
}

func newWorld() *world { return &world{place: "old", staged: "new", runs: "old"} }

func (w *world) do(deed string) error {
	if w.steps++; w.killAt > 0 && w.steps >= w.killAt {
		return errKilled
	}
	if w.fail == deed {
		return errors.New(deed + " failed")
	}
	return nil
}

func (w *world) Keep(s State) error {
	err := w.do("keep " + string(s.Phase))
	if err == nil {
		w.journal = s
	}
	return err
}

func (w *world) Try(context.Context, State) error {
	err := w.do("try")
	switch {
	case err == nil:
		w.runs = "new"
	case errors.Is(err, errKilled):
		w.runs = "" // it ends with its guard
	}
	return err
}

func (w *world) Place(State) error {
	if err := w.do("link"); err != nil {
		return err
	}
	w.kept = "old"
	if err := w.do("rename"); err != nil {
		return err
	}
	w.place, w.staged = "new", ""
	return w.do("synchronise")
}

func (w *world) Placed(State) (bool, error) {
	return w.place == "new", w.do("placed")
}

func (w *world) Discard(State) error {
	err := w.do("discard")
	if err == nil {
		w.staged = ""
	}
	return err
}

func (w *world) Now() time.Time { return noon }

func begun(t *testing.T) State {
	t.Helper()
	s, err := State{}.Begin(State{File: "/k1s", From: Program{Version: "v0.1.0", Kubernetes: "v1.36.3"}, To: Program{Version: "v0.2.0", Kubernetes: "v1.37.0"}})
	if err != nil || s.Phase != Staging {
		t.Fatalf("%+v, %v", s, err)
	}
	s.Phase = Trying
	return s
}

func TestAnUpgrade(t *testing.T) {
	w := newWorld()
	s, err := Run(t.Context(), w, begun(t))
	if err != nil || s.Phase != Done || w.journal.Phase != Done || w.place != "new" || w.kept != "old" || w.staged != "" || w.runs != "new" || !s.Ended.Equal(noon) {
		t.Errorf("%+v, %v, %+v", s, err, w)
	}
}

func TestWhatFailsLeavesTheOldOneInItsPlace(t *testing.T) {
	for _, deed := range []string{"try", "keep trying", "keep placing", "link", "rename"} {
		w := newWorld()
		w.fail = deed
		s, err := Run(t.Context(), w, begun(t))
		if err != nil || s.Phase != Failed || w.journal.Phase != Failed || !strings.Contains(s.Error, deed+" failed") && !strings.HasPrefix(deed, "keep") || w.place != "old" || w.staged != "" {
			t.Errorf("%s: %+v, %v, %+v", deed, s, err, w)
		}
	}
}

func TestWhatIsInItsPlaceIsDoneThoughItWasNotPutOnTheDisk(t *testing.T) {
	w := newWorld()
	w.fail = "synchronise"
	s, err := Run(t.Context(), w, begun(t))
	if err != nil || s.Phase != Done || w.place != "new" {
		t.Errorf("%+v, %v, %+v", s, err, w)
	}
}

// Whenever everything ends at once, there is a program in the place, and the journal comes to say which.
func TestAnEndAtAnyPoint(t *testing.T) {
	for at := 1; ; at++ {
		w := newWorld()
		w.journal = begun(t)
		w.killAt = at
		s, _ := Run(t.Context(), w, begun(t)) // what it says nobody hears
		if w.steps < at {
			if s.Phase != Done || at < 7 {
				t.Errorf("after %d steps: %+v", at, s)
			}
			return
		}
		if w.place == "" {
			t.Fatalf("at %d: there is no program", at)
		}
		// The start after it is killed, too, before it gets to its end.
		for again := 1; ; again++ {
			w.steps, w.killAt = 0, again
			_, err := Recover(w, w.journal)
			if w.place == "" {
				t.Fatalf("at %d and %d: there is no program", at, again)
			}
			if w.steps < again {
				if err != nil {
					t.Fatalf("at %d: %v", at, err)
				}
				break
			}
		}
		done := w.place == "new"
		if w.journal.Active() || (w.journal.Phase == Done) != done || w.staged != "" {
			t.Errorf("at %d: %+v", at, w)
		}
	}
}

func TestOneAtATime(t *testing.T) {
	if _, err := begun(t).Begin(State{}); err == nil || !strings.Contains(err.Error(), `its phase is "trying"`) {
		t.Error(err)
	}
	if _, err := begun(t).Fail(errors.New("no"), noon).Begin(State{}); err != nil {
		t.Error(err)
	}
}

func TestTheFileKeepsAll(t *testing.T) {
	s := begun(t)
	s.Guard, s.Timeout, s.Since = Process{PID: 7, Start: 8, Boot: "b"}, time.Minute, noon
	got, err := Unmarshal(s.Marshal())
	if err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("%+v, %v, want %+v", got, err, s)
	}
	if _, err := Unmarshal([]byte("{")); err == nil {
		t.Error("half a file was read")
	}
}
