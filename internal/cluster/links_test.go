package cluster_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/errs"
)

func delayed(a, b string, by, jitter time.Duration) cluster.Delay {
	return cluster.Delay{Ends: cluster.Ends{A: a, B: b}, Delay: cluster.Duration(by), Jitter: cluster.Duration(jitter)}
}

func cut(a, b string) cluster.Cut { return cluster.Cut{Ends: cluster.Ends{A: a, B: b}} }

const ms = time.Millisecond

func TestWhichDirectionsAreDelayed(t *testing.T) {
	for name, tc := range map[string]struct {
		cuts   []cluster.Cut
		delays []cluster.Delay
		want   string
	}{
		"nothing":                     {nil, nil, ""},
		"two nodes":                   {nil, []cluster.Delay{delayed("a", "b", 5*ms, 0)}, "a>b 5ms, b>a 5ms"},
		"one and all others":          {nil, []cluster.Delay{delayed("a", "", 5*ms, 0)}, "a>b 5ms, a>c 5ms, b>a 5ms, c>a 5ms"},
		"two nodes win over all":      {nil, []cluster.Delay{delayed("a", "", 50*ms, 0), delayed("a", "b", 5*ms, 0)}, "a>b 5ms, a>c 50ms, b>a 5ms, c>a 50ms"},
		"of two with all, the longer": {nil, []cluster.Delay{delayed("a", "", 5*ms, 0), delayed("b", "", 50*ms, 0)}, "a>b 50ms, a>c 5ms, b>a 50ms, b>c 50ms, c>a 5ms, c>b 50ms"},
		"a cut wins":                  {[]cluster.Cut{cut("a", "b")}, []cluster.Delay{delayed("a", "", 5*ms, 0)}, "a>c 5ms, c>a 5ms"},
		"a cut off from all wins":     {[]cluster.Cut{cut("b", "")}, []cluster.Delay{delayed("a", "", 5*ms, 0)}, "a>c 5ms, c>a 5ms"},
		"a node that is not there":    {nil, []cluster.Delay{delayed("a", "x", 5*ms, 0)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, d := range (cluster.Links{Cuts: tc.cuts, Delays: tc.delays}).Directions([]string{"a", "b", "c"}) {
				got = append(got, fmt.Sprintf("%s>%s %s", d.From, d.To, d.Delay.Delay))
			}
			if s := strings.Join(got, ", "); s != tc.want {
				t.Errorf("got %s, want %s", s, tc.want)
			}
		})
	}
}

func TestLinksAreCutDelayedAndHealed(t *testing.T) {
	w := newWorld(t)
	o := w.options()
	o.Nodes = append(o.Nodes, cluster.NodeSpec{Role: cluster.Agent}, cluster.NodeSpec{Role: cluster.Agent, Index: 1})
	w.Token = func(context.Context, cluster.Node, cluster.Role) (string, error) { return "k1s1.agent", nil }
	if _, err := w.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	// is tells what is recorded, as JSON: what older and newer k1s read.
	is := func() string {
		t.Helper()
		st, err := w.fake.Describe(t.Context(), "dev")
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(cluster.Links{Cuts: st.Spec.Cuts, Delays: st.Spec.Delays})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	delay := func(d cluster.Delay) func() error {
		return func() error { return w.DelayLink(t.Context(), "dev", d) }
	}
	for _, step := range []struct {
		what string
		do   func() error
		kind errs.Kind // of the error; Failure is none
		want string
	}{
		{"two are delayed", delay(delayed("agent-1", "agent-0", 50*ms, 5*ms)), 0, `{"delays":[{"a":"agent-0","b":"agent-1","delay":"50ms","jitter":"5ms"}]}`},
		{"otherwise", delay(delayed("agent-0", "agent-1", 1500*ms, 0)), 0, `{"delays":[{"a":"agent-0","b":"agent-1","delay":"1.5s"}]}`},
		{"one from all", delay(delayed("agent-0", "", 20*ms, 0)), 0, `{"delays":[{"a":"agent-0","delay":"20ms"},{"a":"agent-0","b":"agent-1","delay":"1.5s"}]}`},
		{"and cut", func() error { return w.CutLink(t.Context(), "dev", "agent-1", "agent-0") }, 0,
			`{"cuts":[{"a":"agent-0","b":"agent-1"}],"delays":[{"a":"agent-0","delay":"20ms"},{"a":"agent-0","b":"agent-1","delay":"1.5s"}]}`},
		{"the two healed", func() error { return w.HealLink(t.Context(), "dev", "agent-0", "agent-1") }, 0, `{"delays":[{"a":"agent-0","delay":"20ms"}]}`},
		{"what is well healed", func() error { return w.HealLink(t.Context(), "dev", "agent-0", "agent-1") }, errs.NotFound, `{"delays":[{"a":"agent-0","delay":"20ms"}]}`},
		{"nobody", delay(delayed("agent-0", "agent-7", 20*ms, 0)), errs.NotFound, `{"delays":[{"a":"agent-0","delay":"20ms"}]}`},
		{"itself", delay(delayed("agent-0", "agent-0", 20*ms, 0)), errs.Usage, `{"delays":[{"a":"agent-0","delay":"20ms"}]}`},
		{"not at all", delay(delayed("agent-0", "agent-1", 0, 0)), errs.Usage, `{"delays":[{"a":"agent-0","delay":"20ms"}]}`},
		{"too much", delay(delayed("agent-0", "agent-1", time.Hour, 0)), errs.Usage, `{"delays":[{"a":"agent-0","delay":"20ms"}]}`},
		{"back in time", delay(delayed("agent-0", "agent-1", 20*ms, 21*ms)), errs.Usage, `{"delays":[{"a":"agent-0","delay":"20ms"}]}`},
		{"stopped and started", func() error {
			if err := w.Stop(t.Context(), "dev"); err != nil {
				return err
			}
			_, err := w.Start(t.Context(), "dev", time.Minute, true)
			return err
		}, 0, `{"delays":[{"a":"agent-0","delay":"20ms"}]}`},
		{"all healed", func() error { return w.HealLink(t.Context(), "dev", "", "") }, 0, `{}`},
	} {
		err := step.do()
		if step.kind == errs.Failure && err != nil || step.kind != errs.Failure && !errs.Is(err, step.kind) {
			t.Errorf("%s: %v", step.what, err)
		}
		if got := is(); got != step.want {
			t.Errorf("%s: %s\nwant %s", step.what, got, step.want)
		}
	}
}

func TestTheLinksOfANodeThatIsGoneAreForgotten(t *testing.T) {
	s := cluster.Spec{Cuts: []cluster.Cut{cut("a", ""), cut("a", "b"), cut("b", "c")}, Delays: []cluster.Delay{delayed("a", "c", ms, 0), delayed("b", "", ms, 0)}}
	s.DropLinks("a")
	if got := fmt.Sprint(s.Cuts, s.Delays); got != "[{{b c}}] [{{b } 1ms 0s}]" {
		t.Errorf("left: %s", got)
	}
}
