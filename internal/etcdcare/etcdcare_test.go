package etcdcare

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// taken is a snapshot of an hour before noon.
func taken(name string, kind Kind, hours int, change ...func(*Entry)) Entry {
	e := Entry{Snapshot: Snapshot{Name: name, Kind: kind, Node: "a", At: noon.Add(-time.Duration(hours) * time.Hour)}, Where: "/snapshots/" + name + FileEnd, State: Complete}
	for _, c := range change {
		c(&e)
	}
	return e
}

func inS3(e *Entry)       { e.Where = "s3://b/" + e.Name + FileEnd }
func ofB(e *Entry)        { e.Node = "b" }
func ofNobody(e *Entry)   { e.Node = "" }
func corrupt(e *Entry)    { e.State = Corrupt }
func unfinished(e *Entry) { e.State = Unfinished }
func names(all []Entry) string {
	var out []string
	for _, e := range all {
		out = append(out, e.Name)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestRetention(t *testing.T) {
	for _, c := range []struct {
		name   string
		all    []Entry
		keep   int
		manual bool
		want   string
	}{
		{"nothing", nil, 2, false, ""},
		{"the oldest go", []Entry{taken("1", Scheduled, 1), taken("3", Scheduled, 3), taken("2", Scheduled, 2)}, 2, false, "3"},
		{"none goes", []Entry{taken("1", Scheduled, 1), taken("2", Scheduled, 2)}, 0, false, ""},
		{"those that were asked for stay", []Entry{taken("1", Scheduled, 1), taken("2", Manual, 2), taken("3", Manual, 3)}, 1, false, ""},
		{"and count by themselves", []Entry{taken("1", Scheduled, 1), taken("2", Manual, 2), taken("3", Manual, 3)}, 1, true, "3"},
		{"those of others stay", []Entry{taken("1", Scheduled, 1), taken("2", Scheduled, 2, ofB), taken("3", Scheduled, 3, ofB)}, 1, false, ""},
		{"each place for itself", []Entry{taken("1", Scheduled, 1), taken("2", Scheduled, 2, inS3), taken("3", Scheduled, 3), taken("4", Scheduled, 4, inS3)}, 1, false, "3 4"},
		{"what is corrupt counts for nothing", []Entry{taken("1", Scheduled, 1, corrupt), taken("2", Scheduled, 2), taken("3", Scheduled, 3)}, 1, false, "3"},
		{"and goes when it is older", []Entry{taken("1", Scheduled, 1), taken("2", Scheduled, 2, corrupt)}, 1, false, "2"},
		{"the last good one never goes", []Entry{taken("1", Scheduled, 1, corrupt), taken("2", Scheduled, 2, corrupt), taken("9", Scheduled, 99)}, 1, false, ""},
		{"what is unfinished may be being written", []Entry{taken("1", Scheduled, 1, unfinished), taken("2", Manual, 25, unfinished)}, 1, false, "2"},
		{"nor is it known whose it is", []Entry{taken("1", "", 1, unfinished, ofNobody), taken("2", "", 25, unfinished, ofNobody), taken("3", "", 25, unfinished, ofNobody, inS3), taken("4", "", 99, ofNobody)}, 1, false, "2"},
		{"of data put aside two stay", []Entry{taken("1", Archived, 1), taken("2", Archived, 2), taken("3", Archived, 3), taken("4", Archived, 4)}, 5, false, "3 4"},
	} {
		before := slices.Clone(c.all)
		if got := names(Expired(c.all, "a", c.keep, c.manual, noon)); got != c.want {
			t.Errorf("%s: %q go, want %q", c.name, got, c.want)
		}
		if fmt.Sprint(before) != fmt.Sprint(c.all) {
			t.Errorf("%s: the list has changed", c.name)
		}
	}
}

func TestASnapshotIsFoundByNameOrPlace(t *testing.T) {
	all := []Entry{taken("x", Manual, 1, inS3), taken("x", Manual, 1), taken("y", Manual, 2, corrupt), taken("y", Manual, 3, inS3)}
	for what, want := range map[string]string{"x": "/snapshots/x.db", "s3://b/x.db": "s3://b/x.db", "/snapshots/x.db": "/snapshots/x.db", "y": "s3://b/y.db"} {
		if e, err := Find(all, what); err != nil || e.Where != want {
			t.Errorf("%s: %s, %v", what, e.Where, err)
		}
	}
	if _, err := Find(all, "z"); !errs.Is(err, errs.NotFound) {
		t.Errorf("%v", err)
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{"a", "before-upgrade", "v1.36.3", NewName(Scheduled, "edge-1.example", noon)} {
		if err := CheckName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", ".", "..", "a/b", "-a", "a b", "a.db", "a.json", "a.part", strings.Repeat("a", 101)} {
		if err := CheckName(name); !errs.Is(err, errs.Usage) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestWhatSpeaksAgainstARestore(t *testing.T) {
	here := Here{CA: "pin", Kubernetes: "v1.36.3", SecretKeys: []string{"k2"}}
	for _, c := range []struct {
		name string
		s    Snapshot
		want string // of the first reason; "" for none
	}{
		{"ours", Snapshot{CA: "pin", Kubernetes: "v1.36.9", SecretKeys: []string{"k2"}}, ""},
		{"older", Snapshot{CA: "pin", Kubernetes: "v1.35.1"}, ""},
		{"of another cluster", Snapshot{CA: "other", Kubernetes: "v1.36.3"}, "another cluster"},
		{"of nobody", Snapshot{}, "nothing is known"},
		{"newer", Snapshot{CA: "pin", Kubernetes: "v1.37.0"}, "newer than"},
		{"a key is gone", Snapshot{CA: "pin", SecretKeys: []string{"k1"}}, "k1, which this server does not have"},
		{"one of two keys is gone", Snapshot{CA: "pin", SecretKeys: []string{"k1", "k2"}}, ""},
	} {
		got := strings.Join(c.s.Unfit(here), "; ")
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestWhenASnapshotIsDue(t *testing.T) {
	hourly := func(t time.Time) time.Time { return t.Truncate(time.Hour).Add(time.Hour) }
	never := func(time.Time) time.Time { return time.Time{} }
	at := func(h, m int) time.Time { return time.Date(2026, 11, 21, h, m, 0, 0, time.UTC) }
	for _, c := range []struct {
		name   string
		after  func(time.Time) time.Time
		last   time.Time
		failed bool
		want   time.Time
	}{
		{"never", never, noon, true, time.Time{}},
		{"at its time", hourly, at(12, 0), false, at(13, 0)},
		{"what was missed, once", hourly, at(3, 30), false, at(4, 0)},
		{"again after a failure", hourly, at(12, 0), true, at(12, 10)},
		{"or earlier", hourly, at(12, 55), true, at(13, 0)},
	} {
		if got := Due(c.after, c.last, c.failed, 10*time.Minute); !got.Equal(c.want) {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}

func TestWhereRevisionsGoOn(t *testing.T) {
	for _, c := range []struct {
		snapshot, old int64
		age           time.Duration
		want          int64
	}{
		{100, 5000, time.Hour, 100 + 10_000_000 + 3_600_000}, // the old data may be a member's that was behind
		{100, 50_000_000, time.Hour, 50_100_000},
		{9000, 5000, time.Hour, 9000 + 10_000_000 + 3_600_000},                  // of a cluster that was reset meanwhile
		{100, 0, time.Minute, 100 + 10_000_000 + 60_000},                        // nobody knows
		{100, 0, 100 * time.Hour, 100 + 10_000_000 + 360_000_000},               // nor here
		{100, 0, 10 * 365 * 24 * time.Hour, 100 + 10_000_000 + 315_360_000_000}, // however long
		{100, 0, -time.Hour, 100 + 10_000_000},                                  // the clock is wrong
	} {
		if got := Target(c.snapshot, c.old, c.age); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}

// One snapshot that is restored a second time, to a machine that has nothing of the first, begins behind whatever that one has reached.
func TestALaterRestoreOfTheSameSnapshotBeginsBehindTheEarlierOne(t *testing.T) {
	for _, first := range []time.Duration{0, time.Hour, 1000 * 24 * time.Hour} {
		for _, ran := range []time.Duration{0, time.Minute, 30 * 24 * time.Hour} {
			reached := Target(100, 0, first) + int64(ran/time.Second)*unknownRate
			for _, stale := range []int64{0, 90, 5000} {
				if got := Target(100, stale, first+ran); got < reached {
					t.Errorf("after %s, with %d on the disk: %d, and the first reached %d", first+ran, stale, got, reached)
				}
			}
		}
	}
}

func TestAMemberIsOnTheNodeWhoseNameItHas(t *testing.T) {
	for member, want := range map[string]string{
		"server-0": "server-0", "server-1-0a1b2c3d": "server-1", "a-b-0a1b2c3d": "a-b", "machine": "machine", "-0a1b2c3d": "-0a1b2c3d",
	} {
		if got := NodeOf(member); got != want {
			t.Errorf("%s is on %q, want %q", member, got, want)
		}
	}
}
