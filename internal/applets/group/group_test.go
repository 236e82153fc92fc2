package group

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k1s.io/k1s/internal/applets/applet"
	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/probe"
)

// world is a set of fake applets that write down what happens to them.
type world struct {
	mu     sync.Mutex
	events []string        // guarded by mu
	up     map[string]bool // guarded by mu; what probes answer
	table  applet.Table
}

func (w *world) did(event string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, event)
}

func (w *world) check(_ context.Context, p probe.Probe) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.up[p.Addr] {
		return nil
	}
	return errors.New("not up")
}

// server takes warm to come up and cool to end after being asked to.
func (w *world) server(name string, warm, cool time.Duration) {
	w.table[name] = applet.Applet{Run: func(ctx context.Context, args []string) error {
		w.did("start " + strings.Join(append([]string{name}, args...), " "))
		time.Sleep(warm)
		w.mu.Lock()
		w.up[name] = true
		w.mu.Unlock()
		<-ctx.Done()
		time.Sleep(cool)
		w.did("end " + name)
		return ctx.Err()
	}}
}

func newWorld() *world { return &world{up: map[string]bool{}, table: applet.Table{}} }

func (w *world) runner() Runner {
	return Runner{Table: w.table, Check: w.check, Log: slog.New(slog.DiscardHandler)}
}

func answers(name string) probe.Probe { return probe.Probe{Kind: probe.TCP, Addr: name} }

// controlPlane is a store, a server on it, and two clients of the server.
func controlPlane() component.Group {
	return component.Group{Name: "control-plane", Members: []component.Member{
		{Name: "manager", Applet: "manager", After: []probe.Probe{answers("api")}, Ready: answers("manager")},
		{Name: "scheduler", Applet: "scheduler", Args: []string{"--fast"}, After: []probe.Probe{answers("api")}, Ready: answers("scheduler")},
		{Name: "api", Applet: "api", After: []probe.Probe{answers("store")}, Ready: answers("api"), StopAfter: []string{"manager", "scheduler"}},
		{Name: "store", Applet: "store", Ready: answers("store"), StopAfter: []string{"api"}},
	}}
}

func TestStartsWhatIsNeededFirstAndStopsClientsBeforeTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.server("store", time.Second, 0)
		w.server("api", 2*time.Second, 0)
		w.server("manager", time.Second, 2*time.Second)
		w.server("scheduler", 3*time.Second, time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := w.runner().Run(ctx, controlPlane()); err != nil {
			t.Fatalf("Run: %v", err)
		}
		// The two clients start at the same moment.
		if w.events[2] == "start scheduler --fast" {
			w.events[2], w.events[3] = w.events[3], w.events[2]
		}
		want := []string{
			"start store", "start api", "start manager", "start scheduler --fast",
			"end scheduler", "end manager", "end api", "end store",
		}
		if !reflect.DeepEqual(w.events, want) {
			t.Errorf("got  %q\nwant %q", w.events, want)
		}
	})
}

func TestAMemberThatEndsTakesTheRestWithItAndIsNamed(t *testing.T) {
	for name, end := range map[string]error{
		"scheduler failed: no such flag": errors.New("no such flag"),
		"scheduler ended by itself":      nil,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				for _, n := range []string{"store", "api", "manager"} {
					w.server(n, time.Second, 0)
				}
				w.table["scheduler"] = applet.Applet{Run: func(context.Context, []string) error { return end }}
				err := w.runner().Run(t.Context(), controlPlane())
				if err == nil || err.Error() != name {
					t.Fatalf("Run: %v, want %s", err, name)
				}
				if end != nil && !errors.Is(err, end) {
					t.Error("the cause is lost")
				}
				if last := w.events[len(w.events)-1]; last != "end store" {
					t.Errorf("the last thing was %q: the store has to be stopped, and last", last)
				}
			})
		})
	}
}

func TestTheProcessEndsAtOnceWithAMemberThatHasLostItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		stop, cancel := context.WithCancel(t.Context())
		defer cancel()                                                                                           // of what a process would take with it
		w.table["api"] = applet.Applet{Run: func(context.Context, []string) error { <-stop.Done(); return nil }} // hangs on its store
		w.table["store"] = applet.Applet{Run: func(context.Context, []string) error {
			time.Sleep(time.Second)
			return errs.New(errs.Denied, "removed by the others")
		}}
		begin := time.Now()
		err := w.runner().Run(t.Context(), component.Group{Name: "g", Members: []component.Member{
			{Name: "api", Applet: "api", Ready: answers("api")},
			{Name: "store", Applet: "store", Ready: answers("store"), StopAfter: []string{"api"}},
		}})
		if err == nil || !strings.Contains(err.Error(), "store failed: removed by the others") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("it took %s", took)
		}
		cancel()
		synctest.Wait()
	})
}

func TestMembersStillWaitingAreNotStartedWhenTheGroupStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.server("store", time.Hour, 0)
		for _, n := range []string{"api", "manager", "scheduler"} {
			w.server(n, 0, 0)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		g := controlPlane()
		g.Members[3].StopTimeout = 2 * time.Hour
		if err := w.runner().Run(ctx, g); err != nil {
			t.Fatalf("Run: %v", err)
		}
		if want := []string{"start store", "end store"}; !reflect.DeepEqual(w.events, want) {
			t.Errorf("got %q, want %q", w.events, want)
		}
	})
}

func TestAMemberThatDoesNotStopIsGivenUpAndTheOthersStillEndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.server("store", 0, 0)
		w.server("api", 0, time.Hour)
		w.server("manager", 0, 0)
		w.server("scheduler", 0, 0)
		g := controlPlane()
		g.Members[2].StopTimeout = 15 * time.Second
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		err := w.runner().Run(ctx, g)
		if err == nil || err.Error() != "api did not stop within 15s" {
			t.Errorf("Run: %v", err)
		}
		if took := time.Since(began); took != time.Minute+15*time.Second {
			t.Errorf("it took %s", took)
		}
		if last := w.events[len(w.events)-1]; last != "end store" {
			t.Errorf("the last thing was %q, want the store's end", last)
		}
		time.Sleep(2 * time.Hour) // let what was given up end, as the process would make it
	})
}

func TestSaysWhenAllMembersAreReadyAndWhatItStillWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.server("store", 25*time.Second, 0)
		for _, n := range []string{"api", "manager", "scheduler"} {
			w.server(n, time.Second, 0)
		}
		var log bytes.Buffer
		r := w.runner()
		r.Log = slog.New(slog.NewTextHandler(&log, nil))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := r.Run(ctx, controlPlane()); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(log.String(), `msg="still waiting" for="tcp store"`); n != 2 {
			t.Errorf("said %d times that it waits for the store, want 2:\n%s", n, log.String())
		}
		if !strings.Contains(log.String(), `msg="group is ready" group=control-plane after=27`) {
			t.Errorf("did not say that it is ready after 27 seconds:\n%s", log.String())
		}
	})
}

func TestRefusesGroupsThatCannotWork(t *testing.T) {
	w := newWorld()
	for _, n := range []string{"a", "b", "c"} {
		w.server(n, 0, 0)
	}
	w.table["tool"] = applet.Applet{Tool: true}
	m := func(name, app string, stopAfter ...string) component.Member {
		return component.Member{Name: name, Applet: app, StopAfter: stopAfter}
	}
	for _, c := range []struct {
		name    string
		members []component.Member
		want    string
	}{
		{"nothing in it", nil, "group g: it has no members"},
		{"unknown applet", []component.Member{m("a", "x")}, `group g: member a: there is no applet "x"`},
		{"a tool", []component.Member{m("t", "tool")}, "group g: member t: tool is a tool and cannot be a member"},
		{"twice the same name", []component.Member{m("a", "a"), m("a", "b")}, "group g: member a is there twice"},
		{"twice the same applet", []component.Member{m("x", "a"), m("y", "a")}, "group g: members x and y are both a, which can run only once in a process"},
		{"stops after a stranger", []component.Member{m("a", "a", "z")}, `group g: member a stops after "z", which is not a member`},
		{"a circle", []component.Member{m("a", "a", "b"), m("b", "b", "c"), m("c", "c", "b")}, "group g: members wait for each other to stop: b → c → b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := w.runner().Run(t.Context(), component.Group{Name: "g", Members: c.members})
			if err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if !errs.Is(err, errs.Invalid) {
				t.Error("it is not of kind Invalid")
			}
		})
	}
}
