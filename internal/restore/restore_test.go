package restore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
)

// errKilled is the end of the process: nothing of the World happens any more.
var errKilled = errors.New("killed")

// source is what the tests restore.
type source struct{ Name string }

func (s source) Title() string { return s.Name }

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// world is one in memory. Each of its deeds can fail, or be the last; those of more than one step can break off in between.
type world struct {
	steps  int
	fail   string // the deed that fails
	with   error
	killAt int // the step before which the process ends; 0 for none

	kept                 State[source] // on the disk
	place, aside, staged string        // what is in the data directory, in the archive, and staged; "" for nothing
	serves               string        // what the API serves, "" while it is stopped
	seen                 []string
}

func newWorld() *world { return &world{place: "old", serves: "old"} }

func (w *world) do(deed string) error {
	if w.steps++; w.killAt > 0 && w.steps >= w.killAt {
		return errKilled
	}
	if w.fail == deed {
		return w.with
	}
	return nil
}

// move is one rename.
func (w *world) move(deed string, from, to *string) error {
	if err := w.do(deed); err != nil {
		return err
	}
	*from, *to = "", *from
	return nil
}

func (w *world) Keep(r State[source]) error {
	err := w.do("keep")
	if err == nil {
		w.kept = r
	}
	return err
}

func (w *world) Stage(context.Context) (source, error) {
	err := w.do("stage")
	if err == nil {
		w.staged = "new"
	}
	return source{"snapshot"}, err
}

func (w *world) Pause(context.Context) error {
	err := w.do("pause")
	if err == nil {
		w.serves = ""
	}
	return err
}

func (w *world) Finish(context.Context) (int64, error) {
	if w.serves != "" {
		return 0, errors.New("the control plane runs")
	}
	return 7, w.do("finish")
}

func (w *world) Switch() error {
	if w.staged == "" {
		return nil
	}
	if w.aside == "" && w.place != "" {
		if err := w.move("switch", &w.place, &w.aside); err != nil {
			return err
		}
	}
	return w.move("switch", &w.staged, &w.place)
}

func (w *world) Unswitch() error {
	if w.aside == "" {
		return nil
	}
	if w.place != "" {
		if err := w.move("unswitch", &w.place, &w.staged); err != nil {
			return err
		}
	}
	return w.move("unswitch", &w.aside, &w.place)
}

func (w *world) start() {
	w.serves = w.place
	w.seen = append(w.seen, w.place)
}

func (w *world) Start(context.Context) error {
	err := w.do("start")
	if err == nil {
		w.start()
	}
	return err
}

func (w *world) Resume(context.Context) error {
	err := w.do("resume")
	if err == nil {
		w.start()
	}
	return err
}

func (w *world) Discard() error {
	err := w.do("discard")
	if err == nil {
		w.staged = ""
	}
	return err
}

func (w *world) Now() time.Time { return noon }

func begun(t *testing.T) State[source] {
	t.Helper()
	r, err := State[source]{}.Begin(State[source]{ID: "1", From: source{"snapshot"}, Archive: "/aside", Staged: "/staged"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestARestore(t *testing.T) {
	w := newWorld()
	r, err := Run(t.Context(), w, begun(t))
	if err != nil || r.Phase != Done || r.Revision != 7 || r.From.Name != "snapshot" || w.serves != "new" || w.aside != "old" || w.staged != "" {
		t.Errorf("%+v, %v, %+v", r, err, w)
	}
	if w.kept.Phase != Done {
		t.Errorf("kept is %q", w.kept.Phase)
	}
	if _, err := (State[source]{Phase: Finishing}).Begin(State[source]{}); !errs.Is(err, errs.Exists) {
		t.Errorf("a second one begins: %v", err)
	}
	again, err := Unmarshal[source](r.Marshal())
	if err != nil || fmt.Sprint(again) != fmt.Sprint(r) {
		t.Errorf("%+v, %v", again, err)
	}
}

func TestARestoreThatFailsLeavesWhatWas(t *testing.T) {
	for _, c := range []struct {
		fail string
		with error
	}{{"stage", errs.Hint(errors.New("corrupt"), "take another")}, {"pause", errors.New("stuck")}, {"finish", errors.New("disk")}, {"start", NotServed{errors.New("no")}}} {
		w := newWorld()
		w.fail, w.with = c.fail, c.with
		r, err := Run(t.Context(), w, begun(t))
		if err == nil || r.Phase != Failed || w.serves != "old" || w.place != "old" || w.aside != "" || w.staged != "" || w.kept.Phase != Failed || !strings.Contains(r.Error, c.with.Error()) {
			t.Errorf("%s: %+v, %v, %+v", c.fail, r, err, w)
		}
		if c.fail == "stage" && r.Hint != "take another" {
			t.Errorf("the hint is %q", r.Hint)
		}
	}
	// What may have been seen is not taken back.
	w := newWorld()
	w.fail, w.with = "start", errors.New("late")
	r, err := Run(t.Context(), w, begun(t))
	if err == nil || r.Phase != Starting || w.place != "new" || w.kept.Phase != Starting || w.kept.Error != "late" {
		t.Errorf("%+v, %v, %+v", r, err, w)
	}
	w.fail = ""
	if r, err = Run(t.Context(), w, r); err != nil || r.Phase != Done || r.Error != "" {
		t.Errorf("%+v, %v", r, err)
	}
	// Without anything before there is nothing to go back to.
	w = newWorld()
	w.place, w.serves, w.fail, w.with = "", "", "start", NotServed{errors.New("no")}
	first := begun(t)
	first.Archive = ""
	if r, err = Run(t.Context(), w, first); err == nil || r.Phase != Starting || w.place != "new" {
		t.Errorf("%+v, %v, %+v", r, err, w)
	}
}

// TestKilledAnywhere ends the process before every step of a restore, with one that starts and one that does not, and again
// before every step of what follows. The API is then started on what is in its place: all of the old, or all of the new.
func TestKilledAnywhere(t *testing.T) {
	for _, refuses := range []bool{false, true} {
		for at := 1; ; at++ {
			done := false
			for again := 1; ; again++ {
				w := newWorld()
				if refuses {
					w.fail, w.with = "start", NotServed{errors.New("no")}
				}
				w.killAt = at
				_, err := Run(t.Context(), w, begun(t))
				if !errors.Is(err, errKilled) {
					done = true
					break
				}
				begin := w.kept.Phase
				// The next process, which is killed as well.
				w.steps, w.killAt, w.serves = 0, again, ""
				_, err = Recover(w, w.kept)
				killed := errors.Is(err, errKilled)
				if err != nil && !killed {
					t.Fatal(err)
				}
				w.steps, w.killAt = 0, 0
				r, err := Recover(w, w.kept)
				if err != nil {
					t.Fatal(err)
				}
				w.start()
				what := fmt.Sprintf("refuses=%t, killed at %d in %q, again at %d", refuses, at, begin, again)
				switch {
				case r.Phase == Starting || r.Phase == Done:
					if w.serves != "new" || w.aside != "old" {
						t.Errorf("%s: %q and it serves %q", what, r.Phase, w.serves)
					}
				case r.Phase == Failed || r.Phase == "":
					if w.serves != "old" || w.aside != "" {
						t.Errorf("%s: %q and it serves %q", what, r.Phase, w.serves)
					}
				default:
					t.Errorf("%s: it stays in %q", what, r.Phase)
				}
				if !killed {
					break
				}
			}
			if done {
				break
			}
		}
	}
}
