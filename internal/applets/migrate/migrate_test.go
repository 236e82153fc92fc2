package migrate

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/paths"
)

const root = "/registry"

// datastore is one of ours, in a directory of its own.
func datastore(t *testing.T, endpoint config.DSN) func(name string) migration.Store {
	t.Helper()
	of := founded(t, endpoint)
	return func(name string) migration.Store { return of(name, "") }
}

// founded is one whose etcd is founded with a token.
func founded(t *testing.T, endpoint config.DSN) func(name, token string) migration.Store {
	t.Helper()
	dir, err := os.MkdirTemp("", "k1s") // short: the name of a socket has room for a hundred letters
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	in := component.Input{
		Config: config.Default(), Paths: paths.Paths{Data: dir, Run: dir},
		Facts: component.Facts{NodeName: "node", NodeIP: netip.MustParseAddr("192.0.2.1")},
	}
	in.Config.Spec.Datastore.Endpoint = endpoint
	return func(name, token string) migration.Store {
		in.Etcd.Token = token
		s, files, err := components.Private(in, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range []string{in.Paths.Moving(""), in.Paths.DB(), in.Paths.Etcd()} {
			if err := os.MkdirAll(d, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if strings.Contains(string(endpoint), "://") {
			files = append(files, component.File{Path: in.Paths.Moving(name + ".dsn"), Content: string(endpoint) + "\n", Mode: 0o600})
		}
		for _, f := range files {
			if err := os.WriteFile(f.Path, []byte(f.Content), f.Mode); err != nil {
				t.Fatal(err)
			}
		}
		return s
	}
}

// with opens a datastore, and closes it.
func with(t *testing.T, s migration.Store, do func(s *store)) {
	t.Helper()
	o, err := open(t.Context(), s, 0)
	if err != nil {
		t.Fatal(err)
	}
	do(o)
	if err := o.close(); err != nil {
		t.Errorf("closing: %v", err)
	}
}

func (s *store) put(t *testing.T, key, value string) int64 {
	t.Helper()
	rev, err := s.writeOver(t.Context(), key, []byte(value), nil)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func (s *store) drop(t *testing.T, key string) {
	t.Helper()
	if err := s.remove(t.Context(), key, 1); err != nil {
		t.Fatal(err)
	}
}

// all is what a datastore has, with values.
func (s *store) all(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	_, _, err := s.read(t.Context(), root, func(key string, value []byte, _, _ int64) error {
		out[key] = string(value)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// job runs a copier; caughtUp is called when it has caught up.
func job(t *testing.T, j migration.Job, caughtUp func()) (r *migration.Result, seen *migration.Seen, err error) {
	t.Helper()
	in, input := io.Pipe()
	output, out := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(t.Context(), in, out)
		out.Close()
		done <- err
	}()
	line, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = fmt.Fprintf(input, "%s\n", line) }()
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		var e migration.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		switch {
		case e.CaughtUp:
			if caughtUp != nil {
				caughtUp()
				go func() { _, _ = fmt.Fprintln(input, migration.Finish) }()
			} else {
				input.Close()
			}
		case e.Result != nil:
			r = e.Result
		case e.Seen != nil:
			seen = e.Seen
		}
	}
	err = <-done
	input.Close()
	return r, seen, err
}

func TestEverythingIsCopiedBetweenOurDatastoresAndTimeOnlyGoesForward(t *testing.T) {
	sqlite, etcd := datastore(t, "sqlite"), datastore(t, "etcd")
	want := map[string]string{}
	var last int64
	with(t, sqlite("s"), func(s *store) {
		for i := range 450 { // several pages
			key := fmt.Sprintf("%s/configmaps/default/%03d", root, i)
			want[key] = strings.Repeat(fmt.Sprint(i), i)
			s.put(t, key, want[key])
		}
		for i := range 3 {
			want[root+"/example.com/things/red"] = fmt.Sprint(i)
			last = s.put(t, root+"/example.com/things/red", fmt.Sprint(i))
		}
		s.put(t, root+"/configmaps/default/gone", "x")
		s.drop(t, root+"/configmaps/default/gone")
		if _, err := s.write(t.Context(), root+"/events/default/e", []byte("event"), 0, 3600); err != nil {
			t.Fatal(err)
		}
		want[root+"/events/default/e"] = "event"
		s.put(t, "/elsewhere/x", "not the API server's")
	})

	move := func(from, to func(string) migration.Store, id string, replace bool, between func(s *store)) (*migration.Result, error) {
		t.Helper()
		live, err := open(t.Context(), from("live"), 0)
		if err != nil {
			t.Fatal(err)
		}
		served := from("live")
		served.Kine, served.Etcd = nil, ""
		r, _, err := job(t, migration.Job{Mode: migration.Copy, ID: id, Root: root, Live: served, Source: from("own"), Target: to("t"), Replace: replace}, func() {
			if between != nil {
				between(live)
			}
			if err := live.close(); err != nil {
				t.Error(err)
			}
		})
		_ = live.close()
		return r, err
	}
	check := func(in func(string) migration.Store, r *migration.Result) {
		t.Helper()
		with(t, in("s"), func(s *store) {
			if got := s.all(t); !maps.Equal(got, want) {
				t.Errorf("%d keys, want %d", len(got), len(want))
			}
			rev := s.put(t, root+"/next", "1")
			if rev <= r.SourceRevision || rev <= last {
				t.Errorf("the next write has revision %d, the source had %d", rev, r.SourceRevision)
			}
			last = rev
			w := <-s.client.Watch(t.Context(), root+"/", clientv3.WithPrefix(), clientv3.WithRev(2))
			if w.CompactRevision == 0 {
				t.Errorf("a watch from long ago is not told to begin anew: %+v", w)
			}
			s.drop(t, root+"/next")
		})
	}

	r, err := move(sqlite, etcd, "one", false, func(s *store) { // written while it is copied
		want[root+"/late"] = "late"
		s.put(t, root+"/late", "late")
		want[root+"/configmaps/default/001"] = "changed"
		s.put(t, root+"/configmaps/default/001", "changed")
		delete(want, root+"/configmaps/default/002")
		s.drop(t, root+"/configmaps/default/002")
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Late != 3 || r.Keys != len(want) {
		t.Errorf("%d late of %d, want 3 of %d", r.Late, r.Keys, len(want))
	}
	check(etcd, r)
	with(t, etcd("s"), func(s *store) {
		got, err := s.client.Get(t.Context(), root+"/events/default/e")
		if err != nil {
			t.Fatal(err)
		}
		left, err := s.client.TimeToLive(t.Context(), clientv3.LeaseID(got.Kvs[0].Lease))
		if err != nil || left.TTL < 3000 || left.TTL > 3600 {
			t.Errorf("the lease has %v left, %v", left, err)
		}
	})

	if _, err := move(etcd, sqlite, "two", false, nil); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("into one that has the state of before: %v", err)
	}
	if r, err = move(etcd, sqlite, "two", true, nil); err != nil {
		t.Fatal(err)
	}
	check(sqlite, r)
}

func TestACopyThatBrokeOffGoesOn(t *testing.T) {
	sqlite, etcd := datastore(t, "sqlite"), datastore(t, "etcd")
	with(t, sqlite("s"), func(s *store) {
		for i := range 20 {
			s.put(t, fmt.Sprintf("%s/a/%d", root, i), "v")
		}
	})
	look := func() *migration.Seen {
		t.Helper()
		_, seen, err := job(t, migration.Job{Mode: migration.Look, ID: "one", Root: root, Live: sqlite("l"), Target: etcd("t")}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return seen
	}
	if seen := look(); seen.Keys != 20 || seen.TargetKeys != 0 || seen.Resumes || seen.Bytes == 0 || seen.Revision < 20 {
		t.Errorf("before: %+v", seen)
	}
	if _, _, err := job(t, migration.Job{Mode: migration.Copy, ID: "one", Root: root, Live: sqlite("l"), Source: sqlite("o"), Target: etcd("t")}, nil); !errors.Is(err, errNoInput) {
		t.Fatalf("without the end of its input: %v", err)
	}
	if seen := look(); seen.TargetKeys != 20 || !seen.Resumes {
		t.Errorf("after: %+v", seen)
	}
	// What only the target has is not the source's.
	with(t, etcd("s"), func(s *store) { s.put(t, root+"/a/foreign", "v") })
	if _, _, err := job(t, migration.Job{Mode: migration.Copy, ID: "other", Root: root, Live: sqlite("l"), Source: sqlite("o"), Target: etcd("t")}, func() {}); err == nil {
		t.Error("another migration goes on with it")
	}
	r, _, err := job(t, migration.Job{Mode: migration.Copy, ID: "one", Root: root, Live: sqlite("l"), Source: sqlite("o"), Target: etcd("t")}, func() {})
	if err != nil {
		t.Fatal(err)
	}
	if r.Keys != 20 || r.Late != 1 {
		t.Errorf("%+v", r)
	}
}

func TestTheOldDatastoreIsPassedOver(t *testing.T) {
	sqlite, etcd := datastore(t, "sqlite"), datastore(t, "etcd")
	var present int64
	with(t, sqlite("s"), func(s *store) { s.put(t, root+"/a/1", "old"); s.put(t, root+"/a/2", "same") })
	with(t, etcd("s"), func(s *store) {
		s.put(t, root+"/a/2", "same")
		s.put(t, root+"/a/3", "new")
		for range 50 {
			present = s.put(t, root+"/a/1", "changed")
		}
	})
	lost, _, err := job(t, migration.Job{Mode: migration.Differ, Root: root, Live: etcd("l"), Target: sqlite("t")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(lost.Rows) != 1 || lost.Rows[0].Missing != 1 || lost.Rows[0].Differs != 1 || lost.Rows[0].Extra != 0 {
		t.Errorf("what would be lost: %+v", lost.Rows)
	}
	r, _, err := job(t, migration.Job{Mode: migration.Pass, Root: root, Source: etcd("l"), Target: sqlite("t")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	with(t, sqlite("s"), func(s *store) {
		if got := s.all(t); got[root+"/a/1"] != "old" || len(got) != 2 {
			t.Errorf("it has %v", got)
		}
		if rev := s.put(t, root+"/a/4", "x"); rev <= present || rev <= r.SourceRevision {
			t.Errorf("the next revision is %d, after %d", rev, present)
		}
	})
}

func TestADatastoreThatCannotBeOpenedEndsTheCopyWithTheReason(t *testing.T) {
	sqlite := datastore(t, "sqlite")
	with(t, sqlite("s"), func(s *store) { s.put(t, root+"/a", "1") })
	dsn := filepath.Join(t.TempDir(), "dsn")
	if err := os.WriteFile(dsn, []byte("postgres://k1s:tops3cret@127.0.0.1:1/k1s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	target := sqlite("t")
	target.Kine = []string{"--endpoint-file=" + dsn}
	began := time.Now()
	_, _, err := job(t, migration.Job{Mode: migration.Copy, ID: "x", Root: root, Live: sqlite("l"), Source: sqlite("o"), Target: target}, func() {})
	if err == nil || !strings.Contains(err.Error(), "does not answer") || strings.Contains(err.Error(), "tops3cret") {
		t.Errorf("%v", err)
	}
	t.Logf("after %s: %v", time.Since(began), err)
}

func TestTheSameDatastoreUnderAnotherNameIsFoundOut(t *testing.T) {
	etcd := datastore(t, "etcd")
	with(t, etcd("s"), func(s *store) {
		s.put(t, root+"/a", "1")
		served := etcd("s")
		served.Etcd = ""
		_, _, err := job(t, migration.Job{Mode: migration.Copy, ID: "x", Root: root, Live: served, Source: served, Target: served, Replace: true}, func() {})
		if err == nil || !strings.Contains(err.Error(), "is the present one") {
			t.Errorf("%v", err)
		}
		if mark, _, err := s.mark(t.Context(), root); err != nil || mark != "" || len(s.all(t)) != 1 {
			t.Errorf("it left the mark %q, %v", mark, err)
		}
	})
}

func TestWritingUntilARevision(t *testing.T) {
	for _, engine := range []config.DSN{"sqlite", "etcd"} {
		s := datastore(t, engine)
		with(t, s("s"), func(s *store) {
			s.put(t, root+"/a", "1")
			if err := s.writeUntil(t.Context(), 700, func(int64) error { return nil }); err != nil {
				t.Fatal(err)
			}
			keys, rev, err := s.count(t.Context(), root)
			if err != nil || keys != 1 || rev < 700 || rev > 800 {
				t.Errorf("%s: %d keys at %d, %v", engine, keys, rev, err)
			}
			if got := slices.Collect(maps.Keys(s.all(t))); len(got) != 1 {
				t.Errorf("%s: %q", engine, got)
			}
		})
	}
}

func TestAJobIsNeeded(t *testing.T) {
	for _, in := range []string{"", "nonsense\n", "{\"mode\":\"dance\"}\n"} {
		if err := run(context.Background(), strings.NewReader(in), io.Discard); err == nil {
			t.Errorf("%q is accepted", in)
		}
	}
}
