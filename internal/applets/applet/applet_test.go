package applet

import (
	"reflect"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"testing/synctest"
	"time"

	"k1s.io/k1s/internal/errs"
)

func TestFindsTheAppletByProgramNameOrFirstArgument(t *testing.T) {
	table := Table{"kubectl": {Tool: true}, "kine": {}}
	for _, c := range []struct {
		argv []string
		name string
		args []string
	}{
		{[]string{"/payload/kubectl", "get", "ns"}, "kubectl", []string{"get", "ns"}},
		{[]string{`kubectl.exe`, "get"}, "kubectl", []string{"get"}},
		{[]string{"/payload/k1s-kube", "kine", "--listen=x"}, "kine", []string{"--listen=x"}},
		{[]string{"kubectl", "kine"}, "kubectl", []string{"kine"}},
	} {
		name, args, err := table.Find(c.argv)
		if err != nil || name != c.name || !reflect.DeepEqual(args, c.args) {
			t.Errorf("Find(%q) = %q, %q, %v", c.argv, name, args, err)
		}
	}
	for _, argv := range [][]string{nil, {"k1s-kube"}, {"k1s-kube", "nosuch"}} {
		_, _, err := table.Find(argv)
		if !errs.Is(err, errs.Usage) {
			t.Errorf("Find(%q): %v, want a usage error", argv, err)
		}
		if hint, _ := errs.HintOf(err); hint != "name one of: kine, kubectl" {
			t.Errorf("Find(%q): hint %q", argv, hint)
		}
	}
}

func TestEnvironmentOverridesOrSwitchesOffTheMemorySchedule(t *testing.T) {
	base := Memory{Start: 400, Then: 50, Busy: 100, Settle: time.Second}
	for _, c := range []struct {
		start, then string
		want        Memory
		ok          bool
	}{
		{"", "", base, true},
		{"200", "", Memory{200, 50, 100, time.Second}, true},
		{"200", "100", Memory{200, 100, 0, time.Second}, true},
		{"off", "100", Memory{}, true},
		{"", "off", Memory{}, true},
		{"0", "", Memory{}, false},
		{"", "fast", Memory{}, false},
	} {
		got, err := base.FromEnv(func(name string) string {
			return map[string]string{EnvGOGCStart: c.start, EnvGOGC: c.then}[name]
		})
		if (err == nil) != c.ok || got != c.want {
			t.Errorf("%q, %q: %+v, %v; want %+v", c.start, c.then, got, err, c.want)
		}
	}
}

// A server that has just become ready has its first objects and pods to deal with.
func TestTheCollectorIsTightWhenTheProcessHasSettledNotWhenItIsReady(t *testing.T) {
	percent := func() int {
		sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(sample)
		return int(sample[0].Value.Uint64())
	}
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	synctest.Test(t, func(t *testing.T) {
		m := Memory{Start: 123, Then: 45, Settle: time.Minute}
		m.Begin()
		go m.Follow(t.Context())
		time.Sleep(m.Settle - 1)
		synctest.Wait()
		if got := percent(); got != m.Start {
			t.Errorf("GOGC %d after it became ready, want %d", got, m.Start)
		}
		time.Sleep(1)
		synctest.Wait()
		if got := percent(); got != m.Then {
			t.Errorf("GOGC %d when it has settled, want %d", got, m.Then)
		}
	})
}

func TestLoadIsNoticedAtOnceAndItsEndAfterAMinute(t *testing.T) {
	for _, c := range []struct {
		name   string
		cycles []uint64 // in each look
		busy   string   // afterwards, one letter a look
	}{
		{"idle", []uint64{0, 1, 5, 0}, "...."},
		{"a burst", []uint64{6, 0, 1, 0, 0, 1, 0, 0}, "bbbbbb.."},
		{"work that goes on", []uint64{60, 2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0}, "bbbbbbbbbbb."},
		{"twice", []uint64{9, 0, 0, 0, 0, 0, 0, 9}, "bbbbbb.b"},
	} {
		var l load
		got := ""
		for _, n := range c.cycles {
			l = l.after(n)
			got += map[bool]string{true: "b", false: "."}[l.busy]
		}
		if got != c.busy {
			t.Errorf("%s: %s, want %s", c.name, got, c.busy)
		}
	}
}
