package migrate

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/migration"
)

// settles is one Settle.
func settles(t *testing.T, j migration.Job) (migration.Register, error) {
	t.Helper()
	j.Mode, j.Root = migration.Settle, root
	all, err := told(t, j)
	if err != nil {
		return migration.Register{}, err
	}
	if len(all) != 1 || all[0].Settled == nil {
		t.Fatalf("it told %+v", all)
	}
	return *all[0].Settled, nil
}

func TestServersAgreeInTheNewDatastoreOnce(t *testing.T) {
	for _, engine := range []config.DSN{"sqlite", "etcd"} {
		t.Run(string(engine), func(t *testing.T) {
			at := datastore(t, engine)
			ask := func(attempt string, want migration.Decision) migration.Decision {
				t.Helper()
				is, err := settles(t, migration.Job{Target: at("t"), Attempt: attempt, Want: want})
				if err != nil {
					t.Fatal(err)
				}
				return is.Of(attempt)
			}
			for _, c := range []struct {
				attempt    string
				want, have migration.Decision
			}{
				{"one", "", ""}, {"one", migration.Forward, ""}, // nobody has begun
				{"one", migration.Open, migration.Open}, {"one", "", migration.Open}, {"one", migration.Alive, migration.Open}, {"two", migration.Alive, ""},
				{"one", migration.Back, migration.Back}, {"one", migration.Forward, migration.Back}, {"one", migration.Open, migration.Back},
				{"two", migration.Open, migration.Open}, {"one", migration.Back, ""}, {"two", migration.Forward, migration.Forward}, {"two", migration.Back, migration.Forward},
			} {
				if got := ask(c.attempt, c.want); got != c.have {
					t.Errorf("%s wants %q: it is %q, not %q", c.attempt, c.want, got, c.have)
				}
			}
		})
	}
}

func TestOfThoseWhoDecideAtOnceOneWins(t *testing.T) {
	at := datastore(t, "etcd")
	with(t, at("s"), func(s *store) {
		for round := range 20 {
			attempt := fmt.Sprint(round)
			if r, err := s.decide(t.Context(), root, attempt, migration.Open); err != nil || r.Of(attempt) != migration.Open {
				t.Fatalf("%+v, %v", r, err)
			}
			found := make([]migration.Decision, 8)
			var all sync.WaitGroup
			for i := range found {
				all.Go(func() {
					r, err := s.decide(t.Context(), root, attempt, []migration.Decision{migration.Forward, migration.Back}[i%2])
					if err != nil {
						t.Error(err)
					}
					found[i] = r.Of(attempt)
				})
			}
			all.Wait()
			for _, d := range found {
				if d != found[0] || d != migration.Forward && d != migration.Back {
					t.Fatalf("they found %q", found)
				}
			}
		}
	})
}

// fenceIn is the attempt for which a datastore was left; "" for none.
func fenceIn(t *testing.T, s migration.Store) (attempt string) {
	t.Helper()
	with(t, s, func(s *store) {
		got, err := s.client.Get(t.Context(), migration.FenceKey(root))
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range got.Kvs {
			var f migration.Fence
			if err := json.Unmarshal(kv.Value, &f); err != nil || f.To != "there" {
				t.Errorf("%s, %v", kv.Value, err)
			}
			attempt = f.Attempt
		}
	})
	return attempt
}

func TestADatastoreThatIsLeftIsFencedUntilItIsUsedAgain(t *testing.T) {
	a, b := datastore(t, "sqlite"), datastore(t, "etcd")
	with(t, a("s"), func(s *store) { s.put(t, root+"/a", "1") })
	fence := func(attempt string) *migration.Fence { return &migration.Fence{Attempt: attempt, To: "there"} }
	r, _, err := job(t, migration.Job{Mode: migration.Copy, ID: "x", Root: root, Live: a("l"), Source: a("o"), Target: b("t"), Fence: fence("one")}, func() {})
	if err != nil || r.Keys != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if got := fenceIn(t, a("s")); got != "one" {
		t.Errorf("the old one is fenced for %q", got)
	}
	// They did not agree: whoever goes back takes the fence out, if it is that of this attempt.
	if _, err := settles(t, migration.Job{Source: a("o"), Fence: fence("other")}); err != nil || fenceIn(t, a("s")) != "one" {
		t.Errorf("the fence of another attempt is gone, %v", err)
	}
	back := migration.Job{Source: a("o"), Target: b("t"), Attempt: "one", Fence: fence("one")}
	if _, err := settles(t, back); err != nil || fenceIn(t, a("s")) != "one" {
		t.Errorf("it is gone before anything is decided, %v", err)
	}
	for _, back.Want = range []migration.Decision{migration.Open, migration.Back} {
		if _, err := settles(t, back); err != nil {
			t.Fatal(err)
		}
	}
	if got := fenceIn(t, a("s")); got != "" {
		t.Errorf("after going back it is fenced for %q", got)
	}
	// They did, and roll back later: the one that was left is used again, and the other one is left.
	for _, c := range []struct {
		mode     migration.Mode
		from, to func(string) migration.Store
	}{{migration.Copy, a, b}, {migration.Pass, b, a}, {migration.Copy, a, b}} {
		if _, _, err := job(t, migration.Job{Mode: c.mode, ID: "x", Root: root, Live: c.from("l"), Source: c.from("o"), Target: c.to("t"), Fence: fence("two"), Replace: true}, func() {}); err != nil {
			t.Fatal(err)
		}
		if left, used := fenceIn(t, c.from("s")), fenceIn(t, c.to("s")); left != "two" || used != "" {
			t.Errorf("%s: the old one is fenced for %q, the new one for %q", c.mode, left, used)
		}
	}
}

func TestABackupMayBeRestoredToADatastoreThatWasLeft(t *testing.T) {
	a, b := datastore(t, "sqlite"), datastore(t, "sqlite")
	with(t, a("s"), func(s *store) { s.put(t, root+"/a", "1") })
	with(t, b("s"), func(s *store) {
		s.put(t, migration.FenceKey(root), string(migration.Fence{Attempt: "one", To: "there"}.Marshal()))
	})
	file := filepath.Join(t.TempDir(), "dump")
	sum := dumped(t, a("l"), file)
	if _, err := told(t, migration.Job{Mode: migration.Load, ID: migration.RestoreID("archive", "node"), Root: root, Target: b("t"), File: file, Summary: sum, At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if got := fenceIn(t, b("s")); got != "" {
		t.Errorf("it is fenced for %q", got)
	}
}
