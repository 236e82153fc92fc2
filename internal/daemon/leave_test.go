package daemon

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
)

func TestAServerThatCannotTellTheOthersKeepsWhatItHas(t *testing.T) {
	s := newServer(t, newObjects(), "server-0", "127.0.0.1", nil)
	o := Options{Paths: s.in.Paths}
	if steps := ResetSteps(o, false); steps[0].Required || strings.Contains(steps[0].Name, "leave") {
		t.Errorf("the only server begins with %q", steps[0].Name)
	}
	if err := (peers{Several: true}).keep(o.Paths); err != nil {
		t.Fatal(err)
	}
	first := ResetSteps(o, false)[0]
	err := first.Do(t.Context())
	hint, _ := errs.HintOf(err)
	if !first.Required || !errs.Is(err, errs.NotRunning) || !strings.Contains(err.Error(), "cannot tell the others") || !strings.HasSuffix(err.Error(), "; nothing was removed") || !strings.Contains(hint, "k1s reset --force") {
		t.Errorf("required %v: %v, %q", first.Required, err, hint)
	}
	if err := ResetSteps(o, true)[0].Do(t.Context()); err != nil {
		t.Errorf("forced: %v", err)
	}
}

func TestAServerThatIsStartingLeavesWhenItsAPIIsThere(t *testing.T) {
	s := newServer(t, newObjects(), "server-0", "127.0.0.1", nil)
	s.in.Several = false // whoever has nobody to tell has nothing to do then
	ready, _ := supervised(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() { _ = s.sup.Run(ctx) })
	short, cancelShort := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancelShort()
	if err := s.Leave(short); !errs.Is(err, errs.Timeout) || !strings.Contains(err.Error(), "finding the other servers: ") {
		t.Errorf("before: %v", err)
	}
	ready.Store(true)
	if err := s.Leave(t.Context()); err != nil {
		t.Error(err)
	}
}
