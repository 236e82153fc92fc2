package migration

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
)

var (
	here  = Place{Engine: "sqlite", Endpoint: "sqlite", Identity: "a"}
	there = Place{Engine: "etcd", Endpoint: "etcd", Identity: "b"}
	noon  = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
)

// errKilled is the end of the process: nothing of the World happens any more.
var errKilled = errors.New("killed")

// world is one in memory. Each of its deeds can fail, or be the last.
type world struct {
	deeds  []string
	fail   string         // the deed that fails
	with   error          // and how
	killAt int            // the number of the deed before which the process ends; 0 for none
	kept   State          // on the disk
	config string         // identity the next start uses
	serves string         // identity the API serves from, "" while it is stopped
	opened map[string]int // how often it served from each

	refuses bool // the target is not taken at all
}

func newWorld() *world { return &world{config: "a", serves: "a", opened: map[string]int{}} }

func (w *world) do(deed string) error {
	if w.killAt > 0 && len(w.deeds)+1 >= w.killAt {
		return errKilled
	}
	w.deeds = append(w.deeds, deed)
	if w.fail == deed {
		return w.with
	}
	return nil
}

func (w *world) Keep(s State) error {
	err := w.do("keep " + string(s.Phase))
	if err == nil {
		w.kept = s
	}
	return err
}
func (w *world) Copy(context.Context) (bool, error) { return !w.refuses, w.do("copy") }
func (w *world) Pause(context.Context) error {
	err := w.do("pause")
	if err == nil {
		w.serves = ""
	}
	return err
}
func (w *world) Finish(context.Context) (Result, error) {
	if w.serves != "" {
		return Result{}, errors.New("somebody writes to the old one")
	}
	return Result{Keys: 7}, w.do("finish")
}
func (w *world) Fence(context.Context) error { return w.do("fence") }
func (w *world) Switch(context.Context) error {
	err := w.do("switch")
	if err == nil {
		w.config = "b"
	}
	return err
}
func (w *world) Unswitch() error {
	err := w.do("unswitch")
	if err == nil {
		w.config = "a"
	}
	return err
}
func (w *world) Start(context.Context) error {
	err := w.do("start")
	if err == nil {
		w.serves = "b"
		w.opened["b"]++
	}
	return err
}
func (w *world) Resume(context.Context) error {
	err := w.do("resume")
	if err == nil {
		w.serves = "a"
	}
	return err
}
func (w *world) Now() time.Time { return noon }

func begun(t *testing.T) State {
	t.Helper()
	s, err := State{}.Begin(Migrate, here, there, noon, func() string { return "one" })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAMigrationGoesThroughItsPhases(t *testing.T) {
	w := newWorld()
	s, err := Run(t.Context(), w, begun(t))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields("keep_copying copy keep_pausing pause keep_finishing finish keep_switching switch keep_starting start keep_done")
	for i := range want {
		want[i] = strings.ReplaceAll(want[i], "_", " ")
	}
	if !reflect.DeepEqual(w.deeds, want) {
		t.Errorf("it does %q, want %q", w.deeds, want)
	}
	if s.Phase != Done || s.Result == nil || s.Result.Keys != 7 || s.Previous == nil || *s.Previous != here || s.PreviousID != "one" || w.config != "b" || w.serves != "b" {
		t.Errorf("the end: %+v, configured %q, served from %q", s, w.config, w.serves)
	}
	if !reflect.DeepEqual(w.kept, s) {
		t.Errorf("kept is %+v, want %+v", w.kept, s)
	}
}

func TestWhatFailsBeforeTheSwitchLeavesTheClusterWhereItWas(t *testing.T) {
	broken := errs.Hint(errors.New("broken"), "mend it")
	for _, deed := range []string{"copy", "pause", "finish", "switch", "keep pausing", "keep finishing", "keep switching"} {
		t.Run(deed, func(t *testing.T) {
			w := newWorld()
			w.fail, w.with = deed, broken
			s, err := Run(t.Context(), w, begun(t))
			if err == nil || s.Phase != Failed || !strings.Contains(s.Error, "broken") || s.Hint != "mend it" || s.Previous != nil {
				t.Errorf("%+v, %v", s, err)
			}
			if w.config != "a" || w.serves != "a" {
				t.Errorf("configured %q, served from %q", w.config, w.serves)
			}
			again, err := s.Begin(Migrate, here, there, noon, func() string { return "two" })
			if err != nil || again.ID != "one" {
				t.Errorf("the next attempt is %+v, %v", again, err)
			}
		})
	}
}

func TestAStartThatNobodyWasServedByIsTakenBack(t *testing.T) {
	w := newWorld()
	w.fail, w.with = "start", NotServed{errors.New("the database went away")}
	s, err := Run(t.Context(), w, begun(t))
	if err == nil || s.Phase != Failed || w.config != "a" || w.serves != "a" {
		t.Errorf("%+v, %v; configured %q, served from %q", s, err, w.config, w.serves)
	}
}

func TestAStartThatMayHaveServedIsNeverTakenBack(t *testing.T) {
	w := newWorld()
	w.fail, w.with = "start", errors.New("it is slow")
	s, err := Run(t.Context(), w, begun(t))
	if err == nil || s.Phase != Starting || s.Error == "" || w.config != "b" || w.kept.Phase != Starting {
		t.Errorf("%+v, %v; configured %q, kept %s", s, err, w.config, w.kept.Phase)
	}
	w.fail = ""
	if s, err = Run(t.Context(), w, s); err != nil || s.Phase != Done || s.Error != "" {
		t.Errorf("the next try: %+v, %v", s, err)
	}
}

// A full disk, most likely: the API serves from the new datastore already.
func TestAnEndThatCannotBeKeptIsNotTakenBack(t *testing.T) {
	w := newWorld()
	w.fail, w.with = "keep done", errors.New("no space left")
	s, err := Run(t.Context(), w, begun(t))
	if err == nil || s.Phase != Starting || w.config != "b" || w.serves != "b" {
		t.Errorf("%+v, %v; configured %q, served from %q", s, err, w.config, w.serves)
	}
	w.fail = ""
	if s, err = Run(t.Context(), w, s); err != nil || s.Phase != Done || w.serves != "b" {
		t.Errorf("the next try: %+v, %v", s, err)
	}
}

func TestAKillAtAnyPointLeavesOneDatastoreThatHasEverything(t *testing.T) {
	whole := newWorld()
	if _, err := Run(t.Context(), whole, begun(t)); err != nil {
		t.Fatal(err)
	}
	for at := 1; at <= len(whole.deeds); at++ {
		t.Run(fmt.Sprintf("before %s", whole.deeds[at-1]), func(t *testing.T) {
			w := newWorld()
			w.kept = begun(t) // as whoever was asked kept it
			w.killAt = at
			_, _ = Run(t.Context(), w, w.kept)
			w.killAt = 0
			// What the next daemon finds: its configuration, and what was kept.
			s := w.kept.Recover(w.config, noon)
			if w.opened["b"] > 0 && w.config != "b" {
				t.Fatal("the new one has served, and the next start uses the old one")
			}
			switch {
			case w.config == "a" && (s.Phase != Failed || s.Hint == ""):
				t.Errorf("on the old one: %+v", s)
			case w.config == "b" && s.Phase != Starting && s.Phase != Done:
				t.Errorf("on the new one: %+v", s)
			}
			w.serves = w.config
			if s.Phase == Failed {
				var err error
				if s, err = s.Begin(Migrate, here, there, noon, func() string { return "two" }); err != nil || s.ID != "one" {
					t.Fatalf("the next attempt: %+v, %v", s, err)
				}
			}
			if s, err := Run(t.Context(), w, s); err != nil || s.Phase != Done || w.serves != "b" || w.config != "b" {
				t.Errorf("the next attempt ends %+v, %v; served from %q", s, err, w.serves)
			}
		})
	}
}

func TestWhatRecoverMakesOfAConfigurationChangedByHand(t *testing.T) {
	s := begun(t)
	s.Phase = Switching
	if got := s.Recover("c", noon); got.Phase != Failed || !strings.Contains(got.Error, "changed since") {
		t.Errorf("%+v", got)
	}
	s.Phase = Done
	if got := s.Recover("c", noon); got.Phase != Done {
		t.Errorf("what is done: %+v", got)
	}
}

func TestWhenAMoveMayBegin(t *testing.T) {
	id := func() string { return "new" }
	done, err := Run(t.Context(), newWorld(), begun(t))
	if err != nil {
		t.Fatal(err)
	}
	failed := begun(t)
	failed.Phase, failed.Marked = Failed, true
	w := newWorld()
	w.refuses, w.fail, w.with = true, "copy", errors.New("not empty")
	refused, _ := Run(t.Context(), w, begun(t))
	third := Place{Engine: "PostgreSQL", Endpoint: "postgres://db", Identity: "c"}
	for name, c := range map[string]struct {
		from     State
		kind     Kind
		a, b     Place
		id       string
		phase    Phase
		previous bool
		kindOf   errs.Kind
	}{
		"the first":                     {State{}, Migrate, here, there, "new", Copying, false, 0},
		"to where it is":                {State{}, Migrate, here, here, "", "", false, errs.Invalid},
		"while one is on its way":       {begun(t), Migrate, here, third, "", "", false, errs.Exists},
		"the failed one again":          {failed, Migrate, here, there, "one", Copying, false, 0},
		"another after the failed one":  {failed, Migrate, here, third, "new", Copying, false, 0},
		"one whose target was refused":  {refused, Migrate, here, there, "new", Copying, false, 0},
		"another after one":             {done, Migrate, there, third, "new", Copying, true, 0},
		"a rollback":                    {done, Rollback, there, here, "new", Pausing, true, 0},
		"a rollback of nothing":         {State{}, Rollback, there, here, "", "", false, errs.NotFound},
		"a rollback after a failed one": {failed, Rollback, there, here, "", "", false, errs.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := c.from.Begin(c.kind, c.a, c.b, noon, id)
			if c.kindOf != 0 {
				if !errs.Is(err, c.kindOf) {
					t.Errorf("%+v, %v", s, err)
				}
				return
			}
			if err != nil || s.ID != c.id || s.Phase != c.phase || (s.Previous != nil) != c.previous || s.From != c.a || s.To != c.b {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
}

func TestARollbackCopiesNothingAndIsTheLast(t *testing.T) {
	done, err := Run(t.Context(), newWorld(), begun(t))
	if err != nil {
		t.Fatal(err)
	}
	s, err := done.Begin(Rollback, there, here, noon, func() string { return "back" })
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld()
	if s, err = Run(t.Context(), w, s); err != nil || s.Phase != Done || s.Previous != nil || s.PreviousID != "" {
		t.Errorf("%+v, %v", s, err)
	}
	for _, deed := range w.deeds {
		if deed == "copy" {
			t.Error("it copies")
		}
	}
}

func TestTheFileOfAState(t *testing.T) {
	s, err := Run(t.Context(), newWorld(), begun(t))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Unmarshal(s.Marshal())
	if err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("%+v, %v, want %+v", got, err, s)
	}
	if _, err := Unmarshal([]byte("{")); err == nil {
		t.Error("half a file is read")
	}
}
