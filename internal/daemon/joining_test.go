package daemon

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/probe"
	"k1s.io/k1s/internal/supervise"
	"k1s.io/k1s/internal/token"
)

// supervised lets a server's components run, as if they did, without what Run adds; none is ready before ready says so.
func supervised(t *testing.T, s *oneServer) (ready *atomic.Bool, plan []component.Unit) {
	t.Helper()
	ready = new(atomic.Bool)
	s.sup = supervise.New(s.log, supervise.Options{
		NewRunner: func(component.Unit) supervise.Runner { return idle{} },
		Probe: func(context.Context, probe.Probe) error {
			if !ready.Load() {
				return errors.New("not ready")
			}
			return nil
		},
	})
	plan, err := components.Plan(s.in)
	if err == nil {
		err = s.sup.Apply(t.Context(), plan)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ready, plan
}

// The second server joins while the first one's API server is open and not ready yet: the datastore is moved for it, and the control plane is
// away meanwhile.
func TestAServerIsKnownWhoseControlPlaneWasStoppedBeforeItWasReady(t *testing.T) {
	shared := newObjects()
	s := newServer(t, shared, "server-0", "127.0.0.1", nil)
	const own = nodePrefix + "server-0"
	bound := func() bool {
		shared.mu.Lock()
		defer shared.mu.Unlock()
		_, ok := shared.secrets[own]
		return ok
	}
	shared.mu.Lock()
	delete(shared.secrets, own)
	shared.mu.Unlock()
	ready, plan := supervised(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() { _ = s.sup.Run(ctx) })
	all.Go(func() { s.serveJoiners(ctx) })
	eventually := func(what string, is func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("waited for %s", what)
			}
		}
	}
	eventually("the socket for machines that join", func() bool { return exists(s.in.Paths.JoinSocket()) })
	if err := s.sup.Apply(t.Context(), components.WithoutControlPlane(plan)); err != nil {
		t.Fatal(err)
	}
	ready.Store(true)
	if err := s.sup.Apply(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	eventually("its own name to be kept in the cluster", bound)
}

// idle is a process that does nothing.
type idle struct{}

func (idle) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func TestTokensAreRemovedADayAfterTheyWereSeenToHaveExpired(t *testing.T) {
	start := time.Now()
	one := func(expired bool) []control.Token {
		return []control.Token{{Record: token.Record{ID: "one"}, Expired: expired}, {Record: token.Record{ID: "other"}}, {Record: token.Record{ID: "damaged"}, Problem: "it is damaged"}}
	}
	e := expiredSince{}
	for _, step := range []struct {
		after   time.Duration
		expired bool
		want    []string
	}{
		{0, false, nil},
		{time.Hour, true, nil}, // however long ago that was by the clock, which may have jumped
		{24 * time.Hour, true, nil},
		{26 * time.Hour, true, []string{"one"}},
		{27 * time.Hour, true, []string{"one"}}, // it could not be removed
		{28 * time.Hour, false, nil},            // the clock is right again
		{60 * time.Hour, true, nil},
		{85 * time.Hour, true, []string{"one"}},
	} {
		if got := e.due(one(step.expired), start.Add(step.after)); !slices.Equal(got, step.want) {
			t.Errorf("after %s: %v, want %v", step.after, got, step.want)
		}
	}
	if got := e.due(nil, start); got != nil || len(e) != 0 {
		t.Errorf("what is gone is remembered: %v, %v", got, e)
	}
}
