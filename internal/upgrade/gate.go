package upgrade

import (
	"fmt"
	"time"
)

// Steady is for how long a node has to be well before the new program counts as good: one that comes up and ends again is not.
const Steady = 5 * time.Second

// Seen is what the program that is tried tells of itself and its node.
type Seen struct {
	Version, Kubernetes, Payload string
	// Started tells that the node has been ready for work since the program runs.
	Started bool
	// Doing is the step it is at.
	Doing string
	Parts []Part
	// Node is the Kubernetes node; nil where there is none.
	Node *Node
	// Failing says which part has ended so often in a row that it will not come up by itself; "" is none.
	Failing string
}

// Part is one component.
type Part struct {
	Name, State, Note string
	Ready             bool
}

// Node is the Kubernetes node as the API server has it.
type Node struct {
	Ready   bool
	Reason  string
	Kubelet string // version
}

// wrong is why a node is not what it is to be with a program; "" when it is.
func (s Seen) wrong(p Program) string {
	switch {
	case s.Version != p.Version || s.Kubernetes != p.Kubernetes || s.Payload != p.Payload:
		return fmt.Sprintf("k1s %s with Kubernetes %s and payload %.12s answers", s.Version, s.Kubernetes, s.Payload)
	case len(s.Parts) == 0:
		return "nothing has been started yet"
	}
	for _, c := range s.Parts {
		switch {
		case !c.Ready && c.Note != "":
			return fmt.Sprintf("%s is %s: %s", c.Name, c.State, c.Note)
		case !c.Ready:
			return fmt.Sprintf("%s is %s", c.Name, c.State)
		}
	}
	switch n := s.Node; {
	case n != nil && !n.Ready:
		return "the node is not Ready: " + n.Reason
	case n != nil && n.Kubelet != p.Kubernetes:
		return fmt.Sprintf("the node has a kubelet %s yet", n.Kubelet)
	case !s.Started && s.Doing != "":
		return s.Doing
	case !s.Started:
		return "it is starting"
	}
	return ""
}

// Verdict is what a Gate has come to.
type Verdict int

// The verdicts.
const (
	Wait Verdict = iota
	Pass
	Fail
)

// Gate decides whether a program that is tried is good. The zero Gate has seen nothing.
type Gate struct {
	Program Program
	// Until is when it has to be well, or it is not good.
	Until time.Time
	// well is since when it is; zero while it is not.
	well time.Time
	// Why is what was in the way when it was looked at last; "" is nothing.
	Why string
}

// Look takes what was seen at a time, nil with the reason where nothing answers. On Fail Why says why.
func (g *Gate) Look(now time.Time, seen *Seen, unseen string) Verdict {
	switch {
	case seen == nil:
		g.Why = unseen
	case seen.Failing != "":
		g.Why = seen.Failing
		return Fail
	default:
		g.Why = seen.wrong(g.Program)
	}
	if g.Why == "" {
		if g.well.IsZero() {
			g.well = now
		}
		if now.Sub(g.well) >= Steady {
			return Pass
		}
		return Wait // what is well at the last moment gets its time
	}
	g.well = time.Time{}
	if !now.Before(g.Until) {
		return Fail
	}
	return Wait
}
