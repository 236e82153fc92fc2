package upgrade

import (
	"strings"
	"testing"
	"time"
)

func well() *Seen {
	return &Seen{
		Version: "v0.3.0", Kubernetes: "v1.36.3", Payload: "p-v0.3.0", Started: true,
		Parts: []Part{{Name: "kubelet", State: "ready", Ready: true}}, Node: &Node{Ready: true, Kubelet: "v1.36.3"},
	}
}

func gate() *Gate {
	return &Gate{Program: program("v0.3.0", "v1.36.3"), Until: noon.Add(time.Minute)}
}

func TestWhatIsWellForAWhilePasses(t *testing.T) {
	g := gate()
	for _, c := range []struct {
		at   time.Duration
		seen *Seen
		want Verdict
	}{
		{0, nil, Wait}, {time.Second, well(), Wait}, {time.Second + Steady - 1, well(), Wait},
		{7 * time.Second, nil, Wait}, // it counts from the beginning
		{8 * time.Second, well(), Wait}, {8*time.Second + Steady, well(), Pass},
	} {
		if got := g.Look(noon.Add(c.at), c.seen, "nothing answers"); got != c.want {
			t.Errorf("after %s: %d, %q, want %d", c.at, got, g.Why, c.want)
		}
	}
}

func TestWhatIsWellAtTheLastMomentGetsItsTime(t *testing.T) {
	g := gate()
	if got := g.Look(g.Until.Add(-1), well(), ""); got != Wait {
		t.Error(got)
	}
	if got := g.Look(g.Until.Add(1), well(), ""); got != Wait {
		t.Error(got)
	}
	if got := g.Look(g.Until.Add(Steady), well(), ""); got != Pass {
		t.Error(got)
	}
}

func TestWhatIsNotWellFailsAtItsEndAndSaysWhy(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Seen)
		why    string
	}{
		"another version":    {func(s *Seen) { s.Version = "v0.2.0" }, "k1s v0.2.0"},
		"another payload":    {func(s *Seen) { s.Payload = "other" }, "payload other"},
		"nothing yet":        {func(s *Seen) { s.Parts = nil }, "nothing has been started"},
		"a part":             {func(s *Seen) { s.Parts[0] = Part{Name: "kubelet", State: "waiting", Note: "for containerd"} }, "kubelet is waiting: for containerd"},
		"a part, silent":     {func(s *Seen) { s.Parts[0] = Part{Name: "kubelet", State: "starting"} }, "kubelet is starting"},
		"the node":           {func(s *Seen) { s.Node = &Node{Reason: "no network"} }, "the node is not Ready: no network"},
		"the kubelet before": {func(s *Seen) { s.Node.Kubelet = "v1.36.2" }, "a kubelet v1.36.2"},
		"a step":             {func(s *Seen) { s.Started, s.Doing = false, "waiting for the node" }, "waiting for the node"},
		"no step":            {func(s *Seen) { s.Started = false }, "it is starting"},
	} {
		g, s := gate(), well()
		c.change(s)
		if got := g.Look(noon, s, ""); got != Wait || !strings.Contains(g.Why, c.why) {
			t.Errorf("%s: %d, %q, want %q", name, got, g.Why, c.why)
		}
		if got := g.Look(g.Until, s, ""); got != Fail {
			t.Errorf("%s: %d at the end", name, got)
		}
	}
	g := gate()
	if got := g.Look(g.Until, nil, "nothing answers"); got != Fail || g.Why != "nothing answers" {
		t.Errorf("%d, %q", got, g.Why)
	}
}

func TestWhatEndsAgainAndAgainIsNotWaitedFor(t *testing.T) {
	g, s := gate(), well()
	s.Failing = "kube-apiserver has ended 5 times in a row"
	if got := g.Look(noon, s, ""); got != Fail || g.Why != s.Failing {
		t.Errorf("%d, %q", got, g.Why)
	}
}

func TestAServerThatIsNoWorkerHasNoNode(t *testing.T) {
	g, s := gate(), well()
	s.Node = nil
	if got := g.Look(noon, s, ""); got != Wait || g.Why != "" {
		t.Errorf("%d, %q", got, g.Why)
	}
}
