package etcdcare

import (
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/health"
)

// without are the facts of the leader of three, of which c is away.
func without() Facts {
	f := ofThree()
	f.Leader, f.Term, f.Members[0].Leader, f.Members[1].Leader = 1, 7, true, false
	f.Members[2].Healthy, f.Members[2].Problem = false, "no route to host"
	return f
}

// watched is what is seen in that time by looks every ten seconds, all of which find f.
func watched(s Sight, f Facts, from, until time.Duration) Sight {
	for at := from; at <= until; at += 10 * time.Second {
		s = s.Look(at, f)
	}
	return s
}

const day = 24 * time.Hour

func TestOneThatIsAwayForLongIsRemoved(t *testing.T) {
	f := without()
	s := watched(Sight{}, f, time.Hour, time.Hour+day-10*time.Second)
	if d := s.Departs(f, day, ""); d.ID != 3 || d.In != 10*time.Second {
		t.Errorf("before: %+v", d)
	}
	s = s.Look(time.Hour+day, f)
	if d := s.Departs(f, day, ""); d.ID != 3 || d.In > 0 || d.Why != "" {
		t.Errorf("then: %+v", d)
	}
	if s.Away(3) != day || s.Away(2) != 0 {
		t.Errorf("away for %s and %s", s.Away(3), s.Away(2))
	}
	// And of five, when there are four.
	f.Members = append(f.Members, Member{ID: 4, Name: "d", Healthy: true}, Member{ID: 5, Name: "e", Healthy: true})
	if d := s.Departs(f, day, ""); d.ID != 3 || d.In > 0 {
		t.Errorf("of five: %+v", d)
	}
}

func TestNobodyIsRemovedWhoMayBeNeeded(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Facts)
		after  time.Duration
		busy   string
		why    string
	}{
		"it is not asked for":   {func(*Facts) {}, 0, "", "without being asked"},
		"nobody is away":        {func(f *Facts) { f.Members[2].Healthy = true }, day, "", "all members are there"},
		"two of three are away": {func(f *Facts) { f.Members[1].Healthy = false }, day, "", "2 of 3 members are away"},
		"two of five are away": {func(f *Facts) {
			f.Members = append(f.Members, Member{ID: 4, Name: "d"}, Member{ID: 5, Name: "e", Healthy: true})
		}, day, "", "2 of 5"},
		"one of two is away":               {func(f *Facts) { f.Members = []Member{f.Members[0], f.Members[2]} }, day, "", "no majority"},
		"another one does not answer":      {func(f *Facts) { f.Members[1].Healthy, f.Members[1].Linked = false, true }, day, "", "2 of 3"},
		"it is connected":                  {func(f *Facts) { f.Members[2].Linked = true }, day, "", "is connected"},
		"another one leads":                {func(f *Facts) { f.Leader = 2 }, day, "", "up to b, which leads"},
		"nobody leads":                     {func(f *Facts) { f.Leader = 0 }, day, "", "no leader"},
		"one is joining":                   {func(f *Facts) { f.Members = append(f.Members, Member{ID: 4, Name: "d", Learner: true, Healthy: true}) }, day, "", "d is joining"},
		"one was joining, and is away":     {func(f *Facts) { f.Members[2].Learner = true }, day, "", "c is joining"},
		"one has not started":              {func(f *Facts) { f.Members = append(f.Members, Member{ID: 4, Name: "4", Unstarted: true}) }, day, "", "has not started"},
		"etcd is full":                     {func(f *Facts) { f.Alarms = map[uint64]Alarm{2: NoSpace} }, day, "", "alarm"},
		"the datastore is moved":           {func(*Facts) {}, day, "the datastore is being moved", "is being moved"},
		"the members are not known":        {func(f *Facts) { f.Members = nil }, day, "", "not known"},
		"this member is not one any more":  {func(f *Facts) { f.Members = f.Members[1:] }, day, "", "not known"},
		"the only one is there, and alone": {func(f *Facts) { f.Members = f.Members[:1] }, day, "", "all members are there"},
	} {
		f := without()
		s := watched(Sight{}, f, 0, 2*day)
		c.change(&f)
		s = s.Look(2*day, f)
		if d := s.Departs(f, c.after, c.busy); d.ID != 0 || !strings.Contains(d.Why, c.why) {
			t.Errorf("%s: %+v, want %q", name, d, c.why)
		}
	}
}

func TestOnlyWhatTheObserverHasSeenCounts(t *testing.T) {
	f := without()
	other := without()
	other.Leader = 2
	back := without()
	back.Members[2].Healthy = true
	for name, c := range map[string]struct {
		sight func() Sight
		want  time.Duration // until it is removed
	}{
		"it has not looked":        {func() Sight { return Sight{} }, day},
		"it has looked once":       {func() Sight { return Sight{}.Look(100*day, f) }, day},
		"it slept for a week":      {func() Sight { return Sight{}.Look(0, f).Look(7*day, f) }, day - glance},
		"its clock went back":      {func() Sight { return watched(Sight{}, f, day, day+time.Hour).Look(time.Hour, f) }, day - time.Hour},
		"another one led so far":   {func() Sight { return watched(Sight{}, other, 0, 7*day).Look(7*day, f) }, day},
		"it has lost an election":  {func() Sight { return watched(Sight{}, f, 0, 7*day).Look(7*day, other).Look(7*day, f) }, day},
		"and won it again":         {func() Sight { g := f; g.Term++; return watched(Sight{}, f, 0, 7*day).Look(7*day, g) }, day},
		"it was there for a while": {func() Sight { return watched(Sight{}, f, 0, 7*day).Look(7*day, back).Look(7*day, f) }, day},
		"it was connected": {func() Sight {
			g := without()
			g.Members[2].Linked = true
			return watched(Sight{}, g, 0, 7*day).Look(7*day, f)
		}, day},
		"clocks of others differ": {func() Sight {
			g := without()
			g.Now, g.Members[1].Skew, g.Members[2].Skew = noon.Add(1000*day), 1000*day, -1000*day
			return watched(Sight{}, g, 0, time.Hour)
		}, day - time.Hour},
		"another one of that place": {func() Sight { g := without(); g.Members[2].ID = 9; return watched(Sight{}, g, 0, 7*day).Look(7*day, f) }, day},
	} {
		if d := c.sight().Departs(f, day, ""); d.ID != 3 || d.In != c.want {
			t.Errorf("%s: %+v, want %s", name, d, c.want)
		}
	}
}

// Where the power comes back d answers one look before c, which starts at that moment.
func TestTheTimeInWhichARemovalWasBarredDoesNotCount(t *testing.T) {
	for name, bar := range map[string]func(*Facts){
		"two are away":   func(f *Facts) { f.Members[3].Healthy = false },
		"one is joining": func(f *Facts) { f.Members[3].Learner = true },
		"an alarm":       func(f *Facts) { f.Alarms = map[uint64]Alarm{1: NoSpace} },
		"none":           nil,
	} {
		five := func() Facts {
			f := without()
			f.Members = append(f.Members, Member{ID: 4, Name: "d", Healthy: true}, Member{ID: 5, Name: "e", Healthy: true})
			return f
		}
		f, barred := five(), five()
		if bar != nil {
			bar(&barred)
		}
		s := watched(Sight{}, barred, 0, 2*day)
		if bar == nil { // something that is not among the facts: its Node is Ready
			s = s.Barred()
		}
		s = s.Look(2*day+10*time.Second, f)
		if d := s.Departs(f, day, ""); d.ID != 3 || d.In != tellAfter {
			t.Errorf("%s: at the first look: %+v", name, d)
		}
		if d := s.Departs(f, time.Minute, ""); d.ID != 3 || d.In != time.Minute {
			t.Errorf("%s: at the first look, after a minute: %+v", name, d)
		}
		s = watched(s, f, 2*day+20*time.Second, 2*day+tellAfter)
		if d := s.Departs(f, day, ""); d.ID != 3 || d.In != 10*time.Second {
			t.Errorf("%s: a while later: %+v", name, d)
		}
		if d := s.Look(2*day+tellAfter+10*time.Second, f).Departs(f, day, ""); d.ID != 3 || d.In > 0 {
			t.Errorf("%s: at last: %+v", name, d)
		}
	}
}

// The way to it is cut, and it still reaches this one: etcd takes such a connection for none.
func TestOneThatSendsIsThere(t *testing.T) {
	f := without()
	s := watched(Sight{}, f, 0, 2*day)
	at := 2 * day
	look := func(received uint64) Departure {
		g := without()
		g.Members[2].Received = received
		at += 10 * time.Second
		s = s.Look(at, g)
		return s.Departs(g, day, "")
	}
	if d := look(1000); d.ID != 3 || d.In > 0 {
		t.Errorf("what has come before says nothing: %+v", d)
	}
	if d := look(1200); d.ID != 0 || !strings.Contains(d.Why, "c does not answer, and sends") || s.Away(3) != 0 {
		t.Errorf("it sends: %+v, away for %s", d, s.Away(3))
	}
	for _, received := range []uint64{1200, 0, 1200, 300, 300} { // none; not known; none; etcd was started again; none
		if d := look(received); d.ID != 3 || d.In <= day-time.Minute {
			t.Errorf("it sends no more, %d: %+v", received, d)
		}
	}
	if d := look(301); d.ID != 0 {
		t.Errorf("it sends again: %+v", d)
	}
}

func TestALookLeavesTheOneBeforeAsItWas(t *testing.T) {
	f := without()
	a := watched(Sight{}, f, 0, time.Hour)
	b := a.Look(time.Hour+10*time.Second, f)
	if a.Away(3) != time.Hour || b.Away(3) != time.Hour+10*time.Second {
		t.Errorf("%s, then %s", a.Away(3), b.Away(3))
	}
}

func TestOneThatIsAwayIsToldBeforeItIsRemoved(t *testing.T) {
	for name, c := range map[string]struct {
		away   time.Duration
		after  time.Duration
		busy   string
		change func(*Facts)
		text   string // "" for nothing
		remedy string
	}{
		"not yet":                   {5 * time.Minute, 0, "", nil, "", ""},
		"never removed":             {3 * time.Hour, 0, "", nil, "c has not been seen for 3h", "if it does not come back: k1s node remove c"},
		"to be removed":             {3 * time.Hour, day, "", nil, "c has not been seen for 3h; it will be removed in 21h", "k1s node remove c does it now"},
		"soon":                      {20 * time.Second, time.Minute, "", nil, "c has not been seen for 20s; it will be removed in 40s", "does it now"},
		"not that soon":             {10 * time.Second, time.Minute, "", nil, "", ""},
		"now":                       {day, day, "", nil, "c has not been seen for 24h; it is being removed", "k1s node remove c"},
		"something is in the way":   {day, day, "the datastore is being moved", nil, "it is not removed by itself: the datastore is being moved", "start it"},
		"another one is away, too":  {day, day, "", func(f *Facts) { f.Members[1].Healthy = false }, "2 of 3 members are away", "start it"},
		"it is somebody else's":     {90 * time.Minute, day, "", func(f *Facts) { f.Leader = 2 }, "c has not been seen for 1h30m; b leads, and removes it when", "start it"},
		"there is no leader":        {day, day, "", func(f *Facts) { f.Leader = 0 }, "", ""},
		"it is connected":           {day, day, "", func(f *Facts) { f.Members[2].Linked = true }, "", ""},
		"it never came to its vote": {day, day, "", func(f *Facts) { f.Members[2].Learner = true }, "", ""},
		"its node has another name": {3 * time.Hour, 0, "", func(f *Facts) { f.Members[2].Name = "server-2-0123abcd" }, "server-2 has not been seen for 3h", "k1s node remove server-2"},
	} {
		f := without()
		if c.change != nil {
			c.change(&f)
		}
		before := f
		before.Leader = 1
		s := watched(Sight{}, before, 0, c.away)
		var texts []string
		for _, p := range s.Problems(f, c.after, s.Departs(f, c.after, c.busy)) {
			texts = append(texts, p.Text)
			if p.Code != health.EtcdMemberAway || p.Severity != health.Warning || p.Component != "etcd" || !strings.Contains(p.Remedy, c.remedy) {
				t.Errorf("%s: %+v", name, p)
			}
		}
		if all := strings.Join(texts, " | "); (all == "") != (c.text == "") || !strings.Contains(all, c.text) {
			t.Errorf("%s: %q, want %q", name, all, c.text)
		}
	}
}

func TestTheOthersAreAMajorityWithoutOneThatIsRemoved(t *testing.T) {
	five := func(states string) []Member { // one letter each: there, away, linked, unsure, joining, joining and away
		var out []Member
		for i, s := range states {
			out = append(out, Member{ID: uint64(i + 1), Name: string(rune('a' + i)), Self: i == 0, Healthy: s == 't' || s == 'j', Linked: s == 'l' || s == 'u', Unsure: s == 'u', Learner: s == 'j' || s == 'J'})
		}
		return out
	}
	for _, c := range []struct {
		states string
		remove uint64
		want   string
	}{
		{"ttt", 3, ""},
		{"tta", 3, ""},
		{"tta", 2, "of 2 members 2 would have to be there, and away are c"},
		{"ttl", 2, ""},
		{"ttu", 2, "away are c"}, // its metrics cannot be read
		{"ttu", 3, ""},
		{"tt", 2, ""},
		{"ta", 2, ""},
		{"ta", 1, "away are b"},
		{"t", 1, "no other member"},
		{"tj", 1, "no other member"},
		{"tj", 2, ""},
		{"taJ", 3, ""},
		{"ttttt", 1, ""},
		{"tttta", 2, ""},
		{"tttaa", 2, "of 4 members 3 would have to be there, and away are d, e"},
		{"tttaa", 4, ""},
		{"tttaj", 2, "of 3 members 2"},
		{"tttj", 3, ""},
	} {
		m := five(c.states)
		if c.states == "tttaj" {
			m[2].Healthy = false
		}
		if got := TooFew(m, c.remove); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s without %d: %q, want %q", c.states, c.remove, got, c.want)
		}
	}
}
