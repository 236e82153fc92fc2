package supervise

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/platform"
	"k1s.io/k1s/internal/probe"
)

// world is the outside: what runs, what answers, what happened.
type world struct {
	mu      sync.Mutex // guards all
	trace   []string
	answers map[string]bool       // by probe address
	exits   map[string]chan error // makes a running unit end
	slow    map[string]time.Duration
	left    map[string]string // hash of what an earlier daemon left, by unit
	broken  map[string]error  // cannot be started
}

func newWorld() *world {
	return &world{
		answers: map[string]bool{}, exits: map[string]chan error{}, slow: map[string]time.Duration{},
		left: map[string]string{}, broken: map[string]error{},
	}
}

func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

// took returns what happened since it was last asked.
func (w *world) took() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.trace
	w.trace = nil
	return t
}

func (w *world) answer(addr string, yes bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers[addr] = yes
}

func (w *world) probe(_ context.Context, p probe.Probe) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.Kind == probe.None || w.answers[p.Addr] {
		return nil
	}
	return fmt.Errorf("dial %s: connection refused", p.Addr)
}

func (w *world) exit(unit string, err error) {
	w.mu.Lock()
	ch := w.exits[unit]
	w.mu.Unlock()
	ch <- err
}

type fakeRunner struct {
	w       *world
	u       component.Unit
	started func(int, bool)
}

func (r *fakeRunner) OnStart(f func(int, bool)) { r.started = f }

func (r *fakeRunner) Adopt(context.Context) (bool, bool, error) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	hash, ok := r.w.left[r.u.Name]
	return ok, hash == r.u.Hash(), nil
}

func (r *fakeRunner) StopOld(context.Context) error {
	r.w.note("stop old %s", r.u.Name)
	r.w.mu.Lock()
	slow := r.w.slow[r.u.Name]
	r.w.mu.Unlock()
	time.Sleep(slow)
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	delete(r.w.left, r.u.Name)
	return nil
}

func (r *fakeRunner) Run(ctx context.Context) error {
	w, name := r.w, r.u.Name
	w.mu.Lock()
	if err := w.broken[name]; err != nil {
		w.mu.Unlock()
		return err
	}
	adopted := w.left[name] == r.u.Hash()
	delete(w.left, name)
	ch := make(chan error)
	w.exits[name] = ch
	slow := w.slow[name]
	w.mu.Unlock()
	if adopted {
		w.note("adopt %s", name)
	} else {
		w.note("start %s", name)
	}
	r.started(100, adopted)
	select {
	case err := <-ch:
		w.note("exit %s", name)
		return err
	case <-ctx.Done():
		if errors.Is(context.Cause(ctx), ErrDetach) {
			w.note("detach %s", name)
			return ErrDetach
		}
		w.note("stopping %s", name)
		time.Sleep(slow)
		w.note("stopped %s", name)
		return nil
	}
}

func comp0(name string, needs ...string) component.Component {
	c := component.Component{
		Name:  name,
		Open:  probe.Probe{Kind: probe.TCP, Addr: name + ":open"},
		Ready: probe.Probe{Kind: probe.HTTPS, Addr: name},
	}
	for _, n := range needs {
		to, level, _ := strings.Cut(n, "/")
		c.Needs = append(c.Needs, component.Need{Component: to, Level: component.Level(cmp.Or(level, string(component.Ready)))})
	}
	return c
}

func single(name string, needs ...string) component.Unit {
	return component.Unit{Name: name, Argv: []string{"/payload/" + name}, Components: []component.Component{comp0(name, needs...)}}
}

// run starts a supervisor that the end of the test stops; stop may also be called before, with a cause.
func run(t *testing.T, w *world, units ...component.Unit) (s *Supervisor, stop func(cause error) error) {
	t.Helper()
	s = New(slog.New(slog.DiscardHandler), Options{
		NewRunner: func(u component.Unit) Runner { return &fakeRunner{w: w, u: u} },
		Probe:     w.probe,
	})
	if err := s.Apply(t.Context(), units); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	result := make(chan error, 1)
	go func() { result <- s.Run(ctx) }()
	var once sync.Once
	var err error
	end := func(cause error) error {
		once.Do(func() { cancel(cause); err = <-result })
		return err
	}
	t.Cleanup(func() { _ = end(nil) })
	synctest.Wait()
	return s, end
}

func states(s *Supervisor) string {
	var parts []string
	for _, st := range s.Snapshot() {
		parts = append(parts, st.Component+" "+string(st.State))
	}
	return strings.Join(parts, ", ")
}

func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func eq[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %v\nwant %v", what, got, want)
	}
}

func trace(t *testing.T, w *world, want ...string) {
	t.Helper()
	if got := w.took(); !slices.Equal(got, want) {
		t.Errorf("what happened:\n got %q\nwant %q", got, want)
	}
}

func TestAUnitStartsWhenWhatItNeedsHasGotFarEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s, _ := run(t, w, single("api", "store", "absent"), single("kubelet", "api/open"), single("store"), single("proxy", "api"))
		trace(t, w, "start store")
		eq(t, "states", states(s), "api waiting, kubelet waiting, store starting, proxy waiting")
		settle(time.Second)
		eq(t, "note of api", s.Snapshot()[0].Note(), "for store to be ready: dial store:open: connection refused")
		eq(t, "note of proxy", s.Snapshot()[3].Note(), "for api to be ready: it is waiting itself")

		w.answer("store:open", true)
		settle(time.Second)
		trace(t, w)
		eq(t, "note of api", s.Snapshot()[0].Note(), "for store to be ready: dial store: connection refused")
		w.answer("store", true)
		settle(time.Second)
		trace(t, w, "start api")
		w.answer("api:open", true)
		settle(time.Second)
		trace(t, w, "start kubelet")
		eq(t, "states", states(s), "api starting, kubelet starting, store ready, proxy waiting")
		w.answer("api", true)
		settle(time.Second)
		trace(t, w, "start proxy")
	})
}

func TestStopsDependantsBeforeTheStoreAndIndependentUnitsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		for _, name := range []string{"store", "api", "kubelet", "proxy"} {
			w.answer(name+":open", true)
			w.answer(name, true)
			w.slow[name] = 4 * time.Second
		}
		w.slow["proxy"] = time.Second
		_, stop := run(t, w, single("store"), single("api", "store"), single("kubelet", "api"), single("proxy", "store"))
		settle(5 * time.Second)
		w.took()
		from := time.Now()
		if err := stop(nil); err != nil {
			t.Error(err)
		}
		eq(t, "time taken", time.Since(from), 12*time.Second)
		got := w.took()
		slices.Sort(got[:2]) // both at once
		want := []string{"stopping kubelet", "stopping proxy", "stopped proxy", "stopped kubelet",
			"stopping api", "stopped api", "stopping store", "stopped store"}
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
}

func TestApplyReplacesOnlyWhatHasChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s, _ := run(t, w, single("a"), single("b"), single("c"))
		w.took()
		b := single("b")
		b.Argv = append(b.Argv, "--new")
		if err := s.Apply(t.Context(), []component.Unit{single("a"), b, single("d")}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		got := w.took()
		slices.Sort(got)
		if want := []string{"start b", "start d", "stopped b", "stopped c", "stopping b", "stopping c"}; !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
		eq(t, "states", states(s), "a starting, b starting, d starting")
		eq(t, "restarts of b", s.Snapshot()[1].Restarts, 1)
	})
}

func TestACrashIsHealedAtOnceAndALoopBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.answer("a:open", true)
		s, _ := run(t, w, single("a"))
		crash := func() time.Duration {
			synctest.Wait()
			w.exit("a", &platform.ExitError{Exit: platform.Exit{Code: 3, Time: time.Now()}})
			from := time.Now()
			synctest.Wait()
			w.took()
			for {
				settle(time.Millisecond)
				if len(w.took()) > 0 {
					return time.Since(from)
				}
			}
		}
		if d := crash(); d > 20*time.Millisecond {
			t.Errorf("the first restart took %s", d)
		}
		eq(t, "problems after one crash", len(s.Problems()), 0)
		var last time.Duration
		for i := 2; i <= 12; i++ {
			d := crash()
			if d > 30*time.Second+2*time.Millisecond || i < 9 && d <= last {
				t.Errorf("restart %d after %s, the one before after %s", i, d, last)
			}
			last = d
		}
		if last < 20*time.Second {
			t.Errorf("the twelfth restart came after %s", last)
		}
		ps := s.Problems()
		if len(ps) != 1 || ps[0].Code != CodeCrashLoop || !strings.Contains(ps[0].Text, "ended 12 times in a row; the last time it exited with status 3") {
			t.Errorf("problems: %+v", ps)
		}
		st := s.Snapshot()[0]
		eq(t, "restarts", st.Restarts, 12)
		eq(t, "last exit code", st.LastExit.Code, 3)

		w.answer("a", true)
		settle(2 * time.Minute)
		eq(t, "problems once it is well", len(s.Problems()), 0)
		if d := crash(); d > 20*time.Millisecond {
			t.Errorf("the restart after a good time took %s", d)
		}
	})
}

func TestBackoffSaysUntilWhenAndRestartCutsItShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s, _ := run(t, w, single("a"))
		for range 8 {
			for !strings.Contains(states(s), "starting") {
				settle(100 * time.Millisecond)
			}
			w.exit("a", errors.New("boom"))
			synctest.Wait()
		}
		st := s.Snapshot()[0]
		if st.State != Backoff || st.RetryAt == nil || !strings.HasPrefix(st.Note(), "boom; next try in ") {
			t.Errorf("status %+v, note %q", st, st.Note())
		}
		w.took()
		if err := s.Restart("a"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		trace(t, w, "start a")
	})
}

func TestRestartStopsAndStartsWithoutDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		u := single("one")
		u.Name = "unit"
		s, _ := run(t, w, u, single("other"))
		w.took()
		if err := s.Restart("one"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		trace(t, w, "stopping unit", "stopped unit", "start unit")
		if err := s.Restart("nothing"); !errs.Is(err, errs.NotFound) {
			t.Errorf("restarting nothing: %v", err)
		}
	})
}

func TestAUnitThatCannotBeStartedSaysWhyAndHealsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.answer("a:open", true)
		w.answer("a", true)
		w.broken["a"] = errs.Hint(errors.New("the disk is read-only"), "remount it")
		s, _ := run(t, w, single("a"))
		st := s.Snapshot()[0]
		eq(t, "state", st.State, Failed)
		eq(t, "hint", st.Hint, "remount it")
		ps := s.Problems()
		if len(ps) != 1 || ps[0].Code != CodeUnitFailed || ps[0].Remedy != "remount it" {
			t.Errorf("problems: %+v", ps)
		}
		w.mu.Lock()
		delete(w.broken, "a")
		w.mu.Unlock()
		settle(time.Minute)
		eq(t, "state", states(s), "a ready")
		eq(t, "problems", len(s.Problems()), 0)
	})
}

func TestAComponentThatStopsAnsweringIsDegradedAfterThreeMisses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.answer("a:open", true)
		w.answer("a", true)
		s, _ := run(t, w, single("a"))
		settle(time.Second)
		eq(t, "state", states(s), "a ready")
		w.answer("a", false)
		settle(10 * time.Second) // one miss
		eq(t, "state after one miss", states(s), "a ready")
		settle(3 * time.Second)
		eq(t, "state after three", states(s), "a degraded")
		eq(t, "note", s.Snapshot()[0].Note(), "dial a: connection refused")
		eq(t, "problem", s.Problems()[0].Code, CodeDegraded)
		w.answer("a", true)
		settle(2 * time.Second)
		eq(t, "state", states(s), "a ready")
		eq(t, "restarts", s.Snapshot()[0].Restarts, 0)
	})
}

func TestAGroupStartsAtOnceAndItsMembersSayWhatTheyWaitFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		group := component.Unit{Name: "node", Argv: []string{"/payload/node"}, Components: []component.Component{
			comp0("kubelet", "containerd/open"), comp0("proxy", "kubelet"),
		}}
		s, _ := run(t, w, group, single("containerd"))
		got := w.took()
		slices.Sort(got)
		if want := []string{"start containerd", "start node"}; !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
		eq(t, "states", states(s), "kubelet waiting, proxy waiting, containerd starting")
		eq(t, "note", s.Snapshot()[0].Note(), "for containerd to be open: dial containerd:open: connection refused")
		w.answer("containerd:open", true)
		settle(time.Second)
		eq(t, "states", states(s), "kubelet starting, proxy waiting, containerd starting")
		w.answer("kubelet:open", true)
		w.answer("kubelet", true)
		settle(time.Second)
		eq(t, "states", states(s), "kubelet ready, proxy starting, containerd starting")
		w.exit("node", errors.New("boom"))
		synctest.Wait()
		eq(t, "states", states(s), "kubelet backoff, proxy backoff, containerd starting")
	})
}

func TestWhatAnEarlierDaemonLeftIsAdoptedOrReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		api, store, proxy := single("api", "store"), single("store"), single("proxy", "api")
		w.left["api"] = api.Hash()
		w.left["store"] = "another"
		w.left["proxy"] = "another"
		s, _ := run(t, w, store, api, proxy)
		// The API is adopted although its store is not ready, and what is replaced is stopped in order.
		got := w.took()
		if want := []string{"stop old proxy", "stop old store"}; !slices.Equal(got[:2], want) {
			t.Errorf("got %q, want first %q", got, want)
		}
		slices.Sort(got[2:])
		if want := []string{"adopt api", "start store"}; !slices.Equal(got[2:], want) {
			t.Errorf("then %q, want %q", got[2:], want)
		}
		eq(t, "states", states(s), "store starting, api starting, proxy waiting")
		eq(t, "adopted", s.Snapshot()[1].Adopted, true)
	})
}

func TestAComponentIsAskedOftenWhileItStartsAndLessLater(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name     string
		kind     probe.Kind
		degraded bool
		age      time.Duration
		want     time.Duration
	}{
		{"at once", probe.HTTPS, false, 0, 20 * ms},
		{"a tenth of its age", probe.HTTPS, false, 300 * ms, 30 * ms},
		{"a usual start", probe.HTTPS, false, 3 * time.Second, 50 * ms},
		{"a slow start over TLS", probe.HTTPS, false, 10 * time.Second, 250 * ms},
		{"a slow start that is cheap to ask about", probe.Unix, false, time.Hour, 50 * ms},
		{"a slow start without TLS", probe.HTTP, false, time.Hour, 50 * ms},
		{"just degraded", probe.HTTPS, true, 0, 20 * ms},
		{"degraded for long", probe.HTTPS, true, time.Hour, 2 * time.Second},
		{"degraded for long, cheap", probe.TCP, true, time.Hour, 2 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) { eq(t, "pause", untilReady(c.kind, c.degraded, c.age), c.want) })
	}
}

func TestAComponentThatIsReadyAfterThreeSecondsIsSeenSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.answer("a:open", true)
		s, _ := run(t, w, single("a"))
		settle(3 * time.Second)
		w.answer("a", true)
		settle(50 * time.Millisecond)
		eq(t, "states", states(s), "a ready")
	})
}

func notes(s *Supervisor) string {
	var parts []string
	for _, st := range s.Snapshot() {
		parts = append(parts, strings.TrimSuffix(st.Component+" "+string(st.State)+" "+st.Note(), " "))
	}
	return strings.Join(parts, "\n")
}

func TestEveryComponentIsShownBeforeItCanBeStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := New(slog.New(slog.DiscardHandler), Options{NewRunner: func(u component.Unit) Runner { return &fakeRunner{w: w, u: u} }})
		if err := s.Apply(t.Context(), []component.Unit{single("store"), single("api", "store")}); err != nil {
			t.Fatal(err)
		}
		eq(t, "states before Run", states(s), "store waiting, api waiting")
	})
}

func TestWhatWaitsForOldProcessesToStopSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		api, store, proxy, fresh := single("api", "store"), single("store"), single("proxy", "api"), single("fresh")
		w.left["api"] = api.Hash()
		w.left["store"], w.left["proxy"] = "another", "another"
		w.slow["store"], w.slow["proxy"] = 2*time.Second, 4*time.Second
		s, _ := run(t, w, store, api, proxy, fresh) // proxy is stopped first, then store
		const old = "stopping its old process, started with other settings, is being stopped"
		eq(t, "at once", notes(s), "store "+old+"\napi waiting to be taken over: it runs already\nproxy "+old+"\nfresh waiting for old processes to be stopped")
		settle(5 * time.Second)
		eq(t, "later", notes(s), "store "+old+"\napi waiting to be taken over: it runs already\nproxy waiting for old processes to be stopped\nfresh waiting for old processes to be stopped")
		settle(2 * time.Second)
		eq(t, "states at the end", states(s), "store starting, api starting, proxy waiting, fresh starting")
	})
}

func TestWhatIsReplacedIsShownUntilAndAfterItHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.slow["a"], w.slow["b"], w.slow["gone"] = time.Second, 3*time.Second, 3*time.Second
		s, _ := run(t, w, single("a"), single("b"), single("gone"))
		a, b := single("a"), single("b")
		a.Argv, b.Argv = append(a.Argv, "--new"), append(b.Argv, "--new")
		applied := make(chan error, 1)
		go func() { applied <- s.Apply(context.Background(), []component.Unit{a, b, single("c")}) }()
		synctest.Wait()
		eq(t, "states at once", states(s), "a stopping, b stopping, c waiting, gone stopping")
		settle(2 * time.Second)
		eq(t, "states later", states(s), "a waiting, b stopping, c waiting, gone stopping")
		if err := <-applied; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		eq(t, "states at the end", states(s), "a starting, b starting, c starting")
	})
}

func TestDetachLeavesEverythingRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s, stop := run(t, w, single("a"), single("b", "a"))
		w.took()
		if err := stop(ErrDetach); err != nil {
			t.Error(err)
		}
		trace(t, w, "detach a")
		eq(t, "states", states(s), "a stopped, b stopped")
		if err := s.Apply(t.Context(), nil); !errs.Is(err, errs.NotRunning) {
			t.Errorf("Apply afterwards: %v", err)
		}
		if err := s.Wait(t.Context(), "a", component.Ready); !errs.Is(err, errs.NotRunning) {
			t.Errorf("Wait afterwards: %v", err)
		}
	})
}

func TestAnAdoptedUnitIsStoppedEvenIfTheDaemonIsStoppedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		b := single("b", "a")
		w.left["b"] = b.Hash()
		s := New(slog.New(slog.DiscardHandler), Options{
			NewRunner: func(u component.Unit) Runner { return &fakeRunner{w: w, u: u} }, Probe: w.probe,
		})
		ctx, cancel := context.WithCancel(t.Context())
		applied := make(chan error, 1)
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		synctest.Wait()
		go func() { applied <- s.Apply(t.Context(), []component.Unit{single("a"), b}) }()
		if err := <-applied; err != nil {
			t.Fatal(err)
		}
		cancel() // before the units' goroutines have had a chance
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		got := w.took()
		if !slices.Contains(got, "stopped b") {
			t.Errorf("b was left running: %q", got)
		}
	})
}

func TestWaitTellsWhatHappenedInstead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s, _ := run(t, w, single("store"), single("api", "store"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := s.Wait(ctx, "api", component.Ready)
		if !errs.Is(err, errs.Timeout) || !strings.Contains(err.Error(),
			"gave up waiting for api to be ready, it is waiting for store to be ready: dial store:open: connection refused") {
			t.Errorf("timeout: %v", err)
		}
		if err := s.Wait(t.Context(), "nothing", component.Ready); !errs.Is(err, errs.NotFound) {
			t.Errorf("unknown: %v", err)
		}
		w.answer("store:open", true)
		if err := s.Wait(t.Context(), "store", component.Open); err != nil {
			t.Error(err)
		}
		w.answer("store", true)
		if err := s.Wait(t.Context(), "store", component.Ready); err != nil {
			t.Error(err)
		}
	})
}

func TestAComponentThatIsAwayForAWhileIsAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s, stop := run(t, w, single("store"), single("api", "store"))
		awaited := make(chan error, 1)
		go func() { awaited <- s.Await(t.Context(), "api", component.Ready) }()
		synctest.Wait()
		if err := s.Apply(t.Context(), []component.Unit{single("store")}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		select {
		case err := <-awaited:
			t.Fatalf("it was not waited for: %v", err)
		default:
		}
		if err := s.Apply(t.Context(), []component.Unit{single("store"), single("api", "store")}); err != nil {
			t.Fatal(err)
		}
		for _, answers := range []string{"store:open", "store", "api:open", "api"} {
			w.answer(answers, true)
		}
		if err := <-awaited; err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := s.Await(ctx, "nothing", component.Ready); !errs.Is(err, errs.Timeout) {
			t.Errorf("what never comes: %v", err)
		}
		if err := stop(ErrDetach); err != nil {
			t.Error(err)
		}
		if err := s.Await(t.Context(), "nothing", component.Ready); !errs.Is(err, errs.NotRunning) {
			t.Errorf("afterwards: %v", err)
		}
	})
}

func TestAUnitThatNeverEndsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := New(slog.New(slog.DiscardHandler), Options{
			NewRunner: func(component.Unit) Runner { return runnerFunc(func(context.Context) error { <-release; return nil }) },
			Probe:     newWorld().probe,
		})
		u := single("stubborn")
		u.StopTimeout = 3 * time.Second
		if err := s.Apply(t.Context(), []component.Unit{u}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		synctest.Wait()
		cancel()
		err := <-ended
		if err == nil || !strings.Contains(err.Error(), "unit stubborn has not ended 18s after it was asked to") {
			t.Errorf("Run ended with %v", err)
		}
		close(release)
	})
}

type runnerFunc func(context.Context) error

func (f runnerFunc) Run(ctx context.Context) error { return f(ctx) }

func TestEventsAreKeptAndSlowReadersMissSome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s, stop := run(t, w, single("a"))
		slow, quick := s.Subscribe(1), s.Subscribe(100)
		w.answer("a:open", true)
		w.answer("a", true)
		settle(time.Second)
		if err := stop(nil); err != nil {
			t.Fatal(err)
		}
		slow.Close()
		slow.Close()
		quick.Close()
		var got []string
		for e := range quick.C {
			got = append(got, e.What)
		}
		if want := []string{"open", "ready", "stopping", "stopped"}; !slices.Equal(got, want) {
			t.Errorf("events %q, want %q", got, want)
		}
		eq(t, "dropped by the slow one", slow.Dropped(), 3)
		eq(t, "dropped by the quick one", quick.Dropped(), 0)
		all := s.Events()
		eq(t, "first event kept", all[0].What, "starting")
		for i, e := range all {
			eq(t, "sequence number", e.Seq, uint64(i+1))
		}
	})
}

func TestTheRingKeepsTheNewestEvents(t *testing.T) {
	r := ring{max: 3}
	for i := range 5 {
		r.add(Event{What: fmt.Sprint(i)})
	}
	var got []string
	for _, e := range r.all() {
		got = append(got, e.What)
	}
	if want := []string{"2", "3", "4"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestApplyRefusesPlansThatCannotWork(t *testing.T) {
	twice := single("a")
	twice.Name = "b"
	for name, tc := range map[string]struct {
		units []component.Unit
		want  string
	}{
		"circle":          {[]component.Unit{single("a", "b"), single("b", "c"), single("c", "a")}, "components need each other in a circle: a → b → c → a"},
		"two units":       {[]component.Unit{single("a"), single("a")}, `unit "a": each unit needs a name of its own`},
		"two components":  {[]component.Unit{single("a"), twice}, `component "a" of unit b: each component needs a name of its own`},
		"need of its own": {[]component.Unit{single("a", "a")}, "components need each other in a circle: a → a"},
	} {
		t.Run(name, func(t *testing.T) {
			err := New(slog.New(slog.DiscardHandler), Options{}).Apply(t.Context(), tc.units)
			if !errs.Is(err, errs.Invalid) || err.Error() != tc.want {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

func TestUnitsThatNeedEachOtherDoNotBlockTheStop(t *testing.T) {
	a := component.Unit{Name: "a", Components: []component.Component{comp0("a1", "b1"), comp0("a2")}}
	b := component.Unit{Name: "b", Components: []component.Component{comp0("b1", "a2")}}
	c := single("c", "a1")
	got := dependants([]component.Unit{a, b, c})
	if len(got["a"]) != 1 || !got["a"]["c"] || len(got["b"]) != 1 || !got["b"]["c"] || len(got["c"]) != 0 {
		t.Errorf("dependants: %v", got)
	}
}
