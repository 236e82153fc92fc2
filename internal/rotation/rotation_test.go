package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
)

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func replaced(chained bool) []Authority {
	return []Authority{
		{Name: CA, Old: "old", New: "new", OldEnds: now.AddDate(5, 0, 0), NewEnds: now.AddDate(10, 0, 0), Chained: chained},
		{Name: "sa", Old: "k1", New: "k2"},
	}
}

func begun(t *testing.T, chained bool) State {
	t.Helper()
	s, err := State{}.Begin(replaced(chained), time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func in(s State, stage Stage) State {
	s.Stage = stage
	if stage != Trusting && stage != None {
		s.Switched, s.Until = s.Since, s.Since.Add(s.Keep)
	}
	return s
}

func TestAStageEndsWhenEverybodyWhoIsThereIsSoFar(t *testing.T) {
	knows := Node{Name: "knows", Present: true, Trusts: []string{"old", "new"}, Issuer: "old"}
	has := Node{Name: "has", Present: true, Trusts: []string{"new", "old"}, Issuer: "new"}
	only := Node{Name: "only", Present: true, Trusts: []string{"new"}, Issuer: "new"}
	slow := Node{Name: "slow", Present: true}
	away := Node{Name: "away", Trusts: []string{"old"}, Issuer: "old"}
	for name, c := range map[string]struct {
		stage       Stage
		hurry, drop bool
		after       time.Duration
		nodes       []Node
		unpublished []string
		extended    []string
		chained     bool
		behind      time.Duration // after the beginning somebody was last seen to be
		want        Stage
		waits       string
	}{
		"nobody else is there":                           {stage: Trusting, chained: true, want: Overlapping},
		"all have learned of the new CA":                 {stage: Trusting, chained: true, nodes: []Node{knows, has}, want: Overlapping},
		"one has not":                                    {stage: Trusting, chained: true, nodes: []Node{knows, slow}, want: Trusting, waits: "slow: has not learned of the new CA yet"},
		"one that is away is not waited for":             {stage: Trusting, chained: true, nodes: []Node{knows, away}, want: Overlapping},
		"pods are not given the bundle":                  {stage: Trusting, chained: true, unpublished: []string{"a", "b", "c", "d", "e"}, want: Trusting, waits: "pods of a, b, c and 2 other namespaces are not given this stage's bundle yet"},
		"without a chain running programs need time":     {stage: Trusting, after: 9 * time.Minute, nodes: []Node{knows}, want: Trusting, waits: "running programs read the CA again by 2026-11-21T12:10:00Z (the old CA allows no chain)"},
		"which passes":                                   {stage: Trusting, after: 10 * time.Minute, nodes: []Node{knows}, want: Overlapping},
		"the old CA is trusted for a time":               {stage: Overlapping, after: 59 * time.Minute, nodes: []Node{has}, want: Overlapping, waits: "the old CA is trusted until 2026-11-21T13:00:00Z"},
		"which ends":                                     {stage: Overlapping, after: time.Hour, nodes: []Node{has, away}, want: Draining},
		"and then tokens have ended too":                 {stage: Overlapping, after: 24 * time.Hour, nodes: []Node{has, away}, want: Removing},
		"or is ended":                                    {stage: Overlapping, hurry: true, after: 10 * time.Minute, nodes: []Node{has, away}, want: Draining},
		"with the tokens of pods":                        {stage: Overlapping, hurry: true, drop: true, after: 10 * time.Minute, nodes: []Node{has, away}, want: Removing},
		"not before running programs know the new one":   {stage: Overlapping, hurry: true, drop: true, after: 10*time.Minute - 1, nodes: []Node{has}, want: Overlapping, waits: "running programs read the new CA by 2026-11-21T12:10:00Z; they know nobody if the old one goes before"},
		"one that renews late is given time":             {stage: Overlapping, hurry: true, after: 14 * time.Minute, behind: 5 * time.Minute, nodes: []Node{has}, want: Overlapping, waits: "running programs read the new CA by 2026-11-21T12:15:00Z; they know nobody if the old one goes before"},
		"and no more than that":                          {stage: Overlapping, hurry: true, after: 15 * time.Minute, behind: 5 * time.Minute, nodes: []Node{has}, want: Draining},
		"one that learns late is too, without a chain":   {stage: Trusting, after: 14 * time.Minute, behind: 5 * time.Minute, nodes: []Node{knows}, want: Trusting, waits: "running programs read the CA again by 2026-11-21T12:15:00Z (the old CA allows no chain)"},
		"not before all that are there have renewed":     {stage: Overlapping, hurry: true, after: 10 * time.Minute, nodes: []Node{has, knows}, want: Overlapping, waits: "knows: has no certificates of the new CA yet"},
		"removed is when pods are not told of the old":   {stage: Removing, unpublished: []string{"a"}, want: Removing, waits: "pods of a are not given this stage's bundle yet"},
		"and nodes that are there do not trust the old":  {stage: Removing, nodes: []Node{only, has, away}, want: Removing, waits: "has: trusts the old CA still"},
		"nor do aggregated servers":                      {stage: Removing, extended: []string{CA}, nodes: []Node{only}, want: Removing, waits: "aggregated API servers are told to believe the old ca"},
		"then it is the end":                             {stage: Removing, nodes: []Node{only, away}, want: None},
		"tokens of pods last a day":                      {stage: Draining, after: 24*time.Hour - 1, nodes: []Node{only, away}, want: Draining, waits: "tokens of pods that the old key has signed are good until 2026-11-22T12:00:00Z"},
		"and end then":                                   {stage: Draining, after: 24 * time.Hour, nodes: []Node{only, away}, want: Removing},
		"or when they are dropped":                       {stage: Draining, drop: true, nodes: []Node{only, away}, want: Removing},
		"called off is when nobody trusts the new one":   {stage: Aborting, nodes: []Node{slow, away, knows}, extended: []string{CA}, want: Aborting, waits: "knows: trusts the new CA still; aggregated API servers are told to believe the new ca"},
		"then nothing is replaced":                       {stage: Aborting, nodes: []Node{slow, away}, want: None},
		"who is slow is waited for meanwhile":            {stage: Draining, drop: true, nodes: []Node{has}, want: Draining, waits: "has: trusts the old CA still"},
		"nothing happens when nothing was asked for":     {stage: None, nodes: []Node{slow}, unpublished: []string{"a"}, want: None},
		"both things that are waited for are told":       {stage: Overlapping, after: 30 * time.Minute, nodes: []Node{slow}, want: Overlapping, waits: "the old CA is trusted until 2026-11-21T13:00:00Z; slow: has no certificates of the new CA yet"},
		"a node that has only the new CA has learned it": {stage: Trusting, chained: true, nodes: []Node{{Name: "n", Present: true, Trusts: []string{"new"}}}, want: Overlapping},
	} {
		t.Run(name, func(t *testing.T) {
			s := in(begun(t, c.chained), c.stage)
			s.Hurry, s.DropTokens = c.hurry, c.drop
			at := now.Add(c.after)
			f := Facts{Now: at, Nodes: c.nodes, Unpublished: c.unpublished, Extended: c.extended}
			if c.behind > 0 {
				f.BehindAt = now.Add(c.behind)
			}
			got, waits := Next(s, f)
			if got.Stage != c.want || strings.Join(waits, "; ") != c.waits {
				t.Errorf("%q, waits for %q", got.Stage, waits)
			}
			if got.Stage != s.Stage && !got.Since.Equal(at) {
				t.Errorf("since %s", got.Since)
			}
			if got.Stage == Overlapping && s.Stage == Trusting && !got.Until.Equal(at.Add(time.Hour)) {
				t.Errorf("until %s", got.Until)
			}
		})
	}
}

func TestWhoIsBehindIsTold(t *testing.T) {
	nodes := []Node{
		{Name: "a", Present: true, Trusts: []string{"new"}, Issuer: "new"}, {Name: "b", Present: true, Trusts: []string{"new", "old"}, Issuer: "new"},
		{Name: "c", Present: true, Trusts: []string{"old", "new"}, Issuer: "old"}, {Name: "d", Trusts: []string{"old"}, Issuer: "old"}, {Name: "e", Present: true},
	}
	for stage, want := range map[Stage]string{Trusting: "[e] [d]", Overlapping: "[c e] [d]", Draining: "[b c e] [d]", Removing: "[b c e] [d]", Aborting: "[a b c] []", None: "[] []"} {
		present, away := Behind(in(begun(t, true), stage), Facts{Nodes: nodes})
		if got := fmt.Sprint(present, away); got != want {
			t.Errorf("%q: %s, want %s", stage, got, want)
		}
	}
}

func TestWhatIsAskedForAtTheWrongTimeIsRefused(t *testing.T) {
	s := begun(t, true)
	if _, err := s.Begin(replaced(true), 0, now); !errs.Is(err, errs.Exists) {
		t.Errorf("begun twice: %v", err)
	}
	if _, err := s.Finish(false); !errs.Is(err, errs.Failure) {
		t.Errorf("finished while nobody knows the new one: %v", err)
	}
	if _, err := (State{Number: 1}).Finish(false); !errs.Is(err, errs.NotFound) {
		t.Errorf("finished without a beginning: %v", err)
	}
	if _, err := (State{}).Begin(replaced(true), -time.Second, now); !errs.Is(err, errs.Usage) {
		t.Errorf("trusted for less than nothing: %v", err)
	}
	for _, stage := range []Stage{Overlapping, Draining, Removing} {
		if _, err := in(s, stage).Finish(false); err != nil {
			t.Errorf("%s: %v", stage, err)
		}
	}
}

func TestAReplacementIsCalledOffBeforeTheNewOneSigns(t *testing.T) {
	s := begun(t, true)
	off, err := s.Abort(now.Add(time.Hour))
	if err != nil || off.Stage != Aborting || !off.Since.Equal(now.Add(time.Hour)) {
		t.Fatalf("%+v, %v", off, err)
	}
	if again, err := off.Abort(now.Add(2 * time.Hour)); err != nil || !again.Since.Equal(off.Since) {
		t.Errorf("asked twice: %+v, %v", again, err)
	}
	if _, err := off.Finish(false); !errs.Is(err, errs.Failure) {
		t.Errorf("it is finished then: %v", err)
	}
	end, waits := Next(off, Facts{Now: now.Add(time.Hour)})
	if end.Active() || !end.Ended.IsZero() || end.Epoch() != off.Epoch() {
		t.Errorf("%+v, waits for %q", end, waits)
	}
	if next, err := end.Begin(replaced(true), 0, now); err != nil || next.Number != 2 || next.Aborted {
		t.Errorf("another one: %+v, %v", next, err)
	}
	for _, stage := range []Stage{Overlapping, Draining, Removing} {
		if _, err := in(s, stage).Abort(now); !errs.Is(err, errs.Failure) {
			t.Errorf("%s: %v", stage, err)
		}
	}
	if _, err := (State{}).Abort(now); !errs.Is(err, errs.NotFound) {
		t.Errorf("none: %v", err)
	}
}

// Kubelets hand out tokens of the old key for as long as they are good; whoever ends them has to say so.
func TestTokensOfPodsOutliveTheOldCAUnlessToldOtherwise(t *testing.T) {
	s := in(begun(t, true), Overlapping)
	if got := s.TokensUntil(); !got.Equal(now.Add(24 * time.Hour)) {
		t.Errorf("good until %s", got)
	}
	once, err := s.Finish(false)
	if err != nil || once.TokensUntil().IsZero() {
		t.Errorf("they are dropped for a hurry: %+v, %v", once, err)
	}
	dropped, err := once.Finish(true)
	if err != nil || !dropped.TokensUntil().IsZero() {
		t.Errorf("they are kept against what was said: %+v, %v", dropped, err)
	}
	if again, err := dropped.Finish(false); err != nil || !again.DropTokens {
		t.Errorf("what was said is forgotten: %+v, %v", again, err)
	}
	s.Authorities = s.Authorities[:1]
	if got := s.TokensUntil(); !got.IsZero() {
		t.Errorf("their key is not replaced, and they are good until %s", got)
	}
}

func TestEveryStageOfEveryReplacementHasItsEpoch(t *testing.T) {
	if e := (State{}).Epoch(); e != "" {
		t.Errorf("a cluster whose authorities were never replaced: %q", e)
	}
	seen := map[string]bool{}
	for number := 1; number < 4; number++ {
		for _, stage := range []Stage{Trusting, Overlapping, Draining, Removing} {
			seen[State{Number: number, Stage: stage}.Epoch()] = true
		}
	}
	if len(seen) != 12 {
		t.Errorf("%v", seen)
	}
	// What runs at the end of a replacement has the files of that end.
	if end, last := (State{Number: 1}).Epoch(), (State{Number: 1, Stage: Removing}).Epoch(); end != last {
		t.Errorf("the control plane restarts once more: %q, %q", end, last)
	}
}

func TestAStateIsReadAsItWasKept(t *testing.T) {
	s := in(begun(t, true), Overlapping)
	s.Hurry = true
	got, err := Unmarshal(s.Marshal())
	if err != nil || fmt.Sprint(got) != fmt.Sprint(s) || got.Keep != s.Keep || !got.Until.Equal(s.Until) || len(got.Authorities) != 2 || !got.Hurry {
		t.Errorf("%+v, %v", got, err)
	}
	for name, content := range map[string]string{
		"nothing": "", "half": string(s.Marshal()[:40]), "another version": `{"version":2}`, "an unknown stage": `{"version":1,"number":1,"stage":"dancing"}`,
		"no authorities": `{"version":1,"number":1,"stage":"trusting"}`,
	} {
		if s, err := Unmarshal([]byte(content)); err == nil {
			t.Errorf("%s is read as %+v", name, s)
		}
	}
}

// world is a cluster of one agent; it dies after a number of steps.
type world struct {
	kept      []byte
	installed []Stage
	agent     Node
	steps     int // left to live
	forgotten bool
	at        time.Time
}

var errKilled = errors.New("killed")

func (w *world) step() error {
	if w.steps--; w.steps < 0 {
		return errKilled
	}
	return nil
}

func (w *world) Keep(s State) error {
	if err := w.step(); err != nil {
		return err
	}
	w.kept = s.Marshal()
	return w.step() // it may die right after
}

func (w *world) Install(_ context.Context, s State) error {
	if err := w.step(); err != nil {
		return err
	}
	w.installed = append(w.installed, s.Stage)
	return w.step()
}

func (w *world) Look(context.Context, State) (Facts, error) {
	return Facts{Now: w.at, Nodes: []Node{w.agent}}, w.step()
}

func (w *world) Wait(context.Context, []string, error) (State, error) {
	if w.steps < 0 {
		return State{}, errKilled
	}
	// Time passes, and the agent does what the last stage that was installed wants of it.
	w.at = w.at.Add(30 * time.Minute)
	switch w.installed[len(w.installed)-1] {
	case Trusting:
		w.agent.Trusts = []string{"old", "new"}
	case Overlapping:
		w.agent.Trusts, w.agent.Issuer = []string{"new", "old"}, "new"
	case Draining, Removing:
		w.agent.Trusts = []string{"new"}
	}
	return Unmarshal(w.kept)
}

func (w *world) Forget(context.Context) error {
	w.forgotten = true
	return w.step()
}

func TestAReplacementThatIsKilledAnywhereComesToItsEnd(t *testing.T) {
	for life := 1; life < 30; life++ {
		s := begun(t, true)
		w := &world{kept: s.Marshal(), agent: Node{Name: "agent", Present: true, Trusts: []string{"old"}, Issuer: "old"}, at: now}
		for starts := 0; ; starts++ {
			if starts > 100 && life < 5 {
				break // too short a life to get anywhere is no life
			}
			if starts > 100 {
				t.Fatalf("a life of %d steps never ends", life)
			}
			w.steps = life
			s, err := Unmarshal(w.kept)
			if err != nil {
				t.Fatal(err)
			}
			if err = Run(t.Context(), w, s); err == nil {
				break
			} else if !errors.Is(err, errKilled) {
				t.Fatal(err)
			}
		}
		last, err := Unmarshal(w.kept)
		if err != nil {
			t.Fatal(err)
		}
		if life < 5 {
			continue
		}
		if order := slices.Compact(w.installed); !slices.Equal(order, []Stage{Trusting, Overlapping, Draining, Removing}) || last.Active() || !w.forgotten {
			t.Errorf("a life of %d steps: installed %v, the end is %s", life, order, last)
		}
		if w.at.Before(now.Add(24 * time.Hour)) {
			t.Errorf("tokens of the old key were good until %s only", w.at)
		}
	}
}
