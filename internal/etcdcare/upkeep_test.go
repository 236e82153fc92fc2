package etcdcare

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/health"
)

const mib = 1 << 20

// alone are the facts of the only member, with much to be given back and all at rest.
func alone() Facts {
	return Facts{
		Now: noon, ID: 1, Leader: 1, Bytes: 300 * mib, InUse: 100 * mib, Quota: 2048 * mib, Revision: 1000, Free: 10_000 * mib, Writes: 1, Tried: noon.Add(-2 * time.Hour),
		Members: []Member{{ID: 1, Name: "a", Self: true, Leader: true, Healthy: true}},
	}
}

// ofThree are those of one of three.
func ofThree() Facts {
	f := alone()
	f.Leader = 2
	f.Members = []Member{{ID: 1, Name: "a", Self: true, Healthy: true}, {ID: 2, Name: "b", Leader: true, Healthy: true}, {ID: 3, Name: "c", Healthy: true}}
	return f
}

func fullOf(f Facts) Facts {
	f.Bytes, f.Alarms = f.Quota, map[uint64]Alarm{f.ID: NoSpace}
	return f
}

func TestWhatIsDoneForEtcd(t *testing.T) {
	for _, c := range []struct {
		name   string
		facts  Facts
		change func(*Facts)
		want   Deed
	}{
		{"much is free", alone(), func(*Facts) {}, Defragment},
		{"little is free", alone(), func(f *Facts) { f.InUse = 200 * mib }, Nothing},
		{"half of little", alone(), func(f *Facts) { f.Bytes, f.InUse = 60*mib, 10*mib }, Nothing},
		{"a new one", alone(), func(f *Facts) { f.Bytes, f.InUse = 8*mib, 2*mib }, Nothing},
		{"a lot would have to be copied", alone(), func(f *Facts) { f.Bytes, f.InUse = 900*mib, 300*mib }, Nothing},
		{"unless the quota is near", alone(), func(f *Facts) { f.Bytes, f.InUse = 1800*mib, 1200*mib }, Defragment},
		{"the quota is near and all is in use", alone(), func(f *Facts) { f.Bytes, f.InUse = 1800*mib, 1700*mib }, Nothing},
		{"it was just done", alone(), func(f *Facts) { f.Tried = noon.Add(-time.Minute) }, Nothing},
		{"it was never done", alone(), func(f *Facts) { f.Tried = time.Time{} }, Defragment},
		{"much is written", alone(), func(f *Facts) { f.Writes = 100 }, Nothing},
		{"nobody knows what is written", alone(), func(f *Facts) { f.Writes = -1 }, Nothing},
		{"no leader", alone(), func(f *Facts) { f.Leader = 0 }, Nothing},
		{"the disk is full", alone(), func(f *Facts) { f.Free = 200 * mib }, Nothing},
		{"nobody knows the members", alone(), func(f *Facts) { f.Members = nil }, Nothing},

		{"a follower", ofThree(), func(*Facts) {}, Defragment},
		{"the leader", ofThree(), func(f *Facts) { f.Leader = 1 }, MoveLeader},
		{"the leader beside a member that is away", ofThree(), func(f *Facts) { f.Leader, f.Members[1].Healthy = 1, false }, Nothing},
		{"a follower beside a member that is away", ofThree(), func(f *Facts) { f.Members[2].Healthy = false }, Nothing},
		{"while a member is added", ofThree(), func(f *Facts) { f.Members[2].Learner = true }, Nothing},
		{"another one is full", ofThree(), func(f *Facts) { f.Alarms = map[uint64]Alarm{3: NoSpace} }, Nothing},
		{"data is damaged", ofThree(), func(f *Facts) { f.Alarms = map[uint64]Alarm{3: Corruption, 1: NoSpace} }, Nothing},

		{"full", fullOf(alone()), func(*Facts) {}, Compact},
		{"full, and compacted", fullOf(alone()), func(f *Facts) { f.Compacted = 1000 }, Defragment},
		{"whatever is written", fullOf(alone()), func(f *Facts) { f.Compacted, f.Writes = 1000, 500 }, Defragment},
		{"however much is in use", fullOf(alone()), func(f *Facts) { f.Compacted, f.InUse = 1000, 1500*mib }, Defragment},
		{"full of what is in use", fullOf(alone()), func(f *Facts) { f.Compacted, f.InUse = 1000, 2000*mib }, Nothing},
		{"full, and tried just now", fullOf(alone()), func(f *Facts) {
			f.Compacted, f.Tried, f.Bytes, f.InUse = 1000, noon.Add(-time.Minute), 1884*mib, 1800*mib
		}, Nothing},
		{"full soon after one that was not for the alarm", fullOf(alone()), func(f *Facts) { f.Compacted, f.Tried = 1000, noon.Add(-time.Minute) }, Defragment},
		{"full, compacted, and something was deleted since", fullOf(alone()), func(f *Facts) { f.Compacted = 990 }, Defragment},
		{"full of what is in use, and something was deleted since", fullOf(alone()), func(f *Facts) { f.Compacted, f.InUse = 990, 2000*mib }, Compact},
		{"full no more", fullOf(alone()), func(f *Facts) { f.Bytes = 100 * mib }, Disarm},
		{"the quota was raised", fullOf(alone()), func(f *Facts) { f.Quota *= 2 }, Disarm},
		{"full, compacted, and one of three is away", fullOf(ofThree()), func(f *Facts) { f.Compacted, f.Members[2].Healthy = 1000, false }, Defragment},
		{"full, compacted, and one is being added", fullOf(ofThree()), func(f *Facts) { f.Compacted, f.Members[2].Learner = 1000, true }, Defragment},
		{"another one is full, and one is away", ofThree(), func(f *Facts) { f.Alarms, f.Members[2].Healthy = map[uint64]Alarm{2: NoSpace}, false }, Nothing},
		{"full, compacted, and nobody knows the members", fullOf(alone()), func(f *Facts) { f.Compacted, f.Members = 1000, nil }, Nothing},
		{"the leader of three is full", fullOf(ofThree()), func(f *Facts) { f.Leader, f.Compacted = 1, 1000 }, MoveLeader},
	} {
		c.change(&c.facts)
		if got, why := Next(c.facts); got != c.want || why == "" {
			t.Errorf("%s: %q (%s), want %q", c.name, got, why, c.want)
		}
	}
}

func TestProblemsOfEtcd(t *testing.T) {
	for _, c := range []struct {
		name   string
		facts  Facts
		change func(*Facts)
		want   string // severity and code of each
		says   string
	}{
		{"well", alone(), func(*Facts) {}, "", ""},
		{"full", fullOf(alone()), func(*Facts) {}, "error etcd-no-space", "k1s is making room"},
		{"full of what is in use", fullOf(alone()), func(f *Facts) { f.InUse = f.Quota }, "error etcd-no-space", "does not help"},
		{"full, and one is away", fullOf(ofThree()), func(f *Facts) { f.Members[2].Healthy = false }, "error etcd-no-space", "k1s is making room"},
		{"full, and so is the disk", fullOf(alone()), func(f *Facts) { f.InUse, f.Free = 1500*mib, 1600*mib }, "error etcd-no-space, warning etcd-disk-low", "k1s cannot make room: a copy of 1500 MiB does not fit"},
		{"another one is full", ofThree(), func(f *Facts) { f.Alarms = map[uint64]Alarm{3: NoSpace} }, "error etcd-no-space", "quota of c"},
		{"an alarm of tomorrow", alone(), func(f *Facts) { f.Alarms = map[uint64]Alarm{9: "FIRE"} }, "error etcd-no-space", "FIRE"},
		{"nearly full", alone(), func(f *Facts) { f.InUse = 1700 * mib }, "warning etcd-nearly-full", "1700 MiB"},
		{"damaged", ofThree(), func(f *Facts) { f.Alarms = map[uint64]Alarm{2: Corruption} }, "error etcd-corrupt", "b has other data"},
		{"damaged, and nobody can tell which", ofThree(), func(f *Facts) { f.Alarms = map[uint64]Alarm{0: Corruption} }, "error etcd-corrupt", "no majority"},
		{"a small disk", alone(), func(f *Facts) { f.Free = 500 * mib }, "warning etcd-disk-low", "500 MiB"},
		{"a full disk", alone(), func(f *Facts) { f.Free = 100 * mib }, "error etcd-disk-low", "100 MiB"},
		{"a disk of which nothing is known", alone(), func(f *Facts) { f.Free = 0 }, "", ""},
		{"no leader", ofThree(), func(f *Facts) { f.Leader, f.Members[1].Healthy = 0, false }, "error etcd-no-leader", "b does not answer"},
		{"another clock", ofThree(), func(f *Facts) { f.Members[1].Skew = 24*time.Hour + 300*time.Millisecond }, "warning clock-skew", "the clock of b is 24h0m0s ahead of"},
		{"a clock that is behind", ofThree(), func(f *Facts) { f.Members[2].Skew = -time.Minute }, "warning clock-skew", "the clock of c is 1m0s behind this"},
		{"clocks as they are", ofThree(), func(f *Facts) { f.Members[1].Skew, f.Members[2].Skew = 2*time.Second, -5*time.Second }, "", ""},
		{"all at once", ofThree(), func(f *Facts) { f.Leader, f.Free, f.Alarms = 0, 1, map[uint64]Alarm{1: NoSpace, 2: NoSpace} },
			"error etcd-disk-low, error etcd-no-leader, error etcd-no-space, error etcd-no-space", ""},
	} {
		c.change(&c.facts)
		var got, text []string
		for _, p := range Problems(c.facts) {
			got, text = append(got, fmt.Sprintf("%s %s", p.Severity, p.Code)), append(text, p.Text)
			if p.Component != "etcd" || p.Remedy == "" {
				t.Errorf("%s: %+v", c.name, p)
			}
		}
		if strings.Join(got, ", ") != c.want || !strings.Contains(strings.Join(text, "; "), c.says) {
			t.Errorf("%s: %q, %q", c.name, got, text)
		}
	}
	for id, want := range map[uint64]string{0: "no member in particular", 2: "b", 0xabc: "the member abc"} {
		if got := MemberName(ofThree().Members, id); got != want {
			t.Errorf("%x is %q", id, got)
		}
	}
	// Where etcd does not answer the disk is all that is known.
	if p := Problems(Facts{Free: mib}); len(p) != 1 || p[0].Code != health.EtcdDiskLow {
		t.Errorf("%+v", p)
	}
}
