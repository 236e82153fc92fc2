package rollout

import (
	"fmt"
	"slices"
	"time"

	"k1s.io/k1s/internal/upgrade"
)

const (
	// Fresh is for how long what a node has said of itself is believed.
	Fresh = 30 * time.Second
	// askLimit is how long a node whose turn it is may take to answer.
	askLimit = 3 * time.Minute
	// fetchLimit is how long it may take to get the program and to begin, beside the time it has for trying it.
	fetchLimit = 10 * time.Minute
)

// Report is what a node says of itself.
type Report struct {
	Node string `json:"node"`
	// Digest is the SHA-256 of the program that runs it in hexadecimal digits, with its versions.
	Digest     string `json:"digest"`
	Version    string `json:"version"`
	Kubernetes string `json:"kubernetes"`
	// Well tells that everything on it is, and Why what is not.
	Well bool   `json:"well"`
	Why  string `json:"why,omitempty"`
	// Order is the key of the Order it has begun with last, or refused, Phase how far it is, and Doing what it does before that.
	Order string        `json:"order,omitempty"`
	Phase upgrade.Phase `json:"phase,omitempty"`
	Doing string        `json:"doing,omitempty"`
	Error string        `json:"error,omitempty"`
	Hint  string        `json:"hint,omitempty"`
	// At is when it was heard, by the clock of who has heard it.
	At time.Time `json:"-"`
}

func (r Report) active() bool { return upgrade.State{Phase: r.Phase}.Active() }

// Seen is a node as the API has it.
type Seen struct {
	Ready   bool
	Why     string
	Kubelet string
	// Unschedulable tells that it gets no new pods, whoever wants that, and Cordoned that an upgrade of the cluster does.
	Unschedulable, Cordoned bool
	// Called tells that the node can see on it that it is its turn.
	Called bool
}

// Drain is how a drain goes.
type Drain struct {
	Done bool
	// Err is why it has ended without having come to its end.
	Err string
	// Last is what it has said last.
	Last string
}

// Facts are what a leader sees.
type Facts struct {
	Now time.Time
	// Machines are the nodes of the cluster by name, true for servers; Nodes are those of them that run pods.
	Machines map[string]bool
	Nodes    map[string]Seen
	Reports  map[string]Report
	// Drains are those that this leader has begun, by node.
	Drains map[string]Drain
}

func (f Facts) report(node string) (Report, bool) {
	r, ok := f.Reports[node]
	return r, ok && f.Now.Sub(r.At) < Fresh
}

// Deed is what a leader has to do to a node beside keeping the Record. All can be done again.
type Deed string

// The deeds.
const (
	Call    Deed = "call"    // let it see that it is its turn
	Cordon  Deed = "cordon"  // let it get no new pods, unless somebody else has; that it was the upgrade is kept with it, in one write
	Empty   Deed = "drain"   // let its pods leave it; one that is being drained goes on, and one for which this is not wanted any more ends
	Release Deed = "release" // undo what Call and Cordon did
)

// Action is a Deed for a node.
type Action struct {
	Deed Deed
	Node string
	// Within is how long an Empty may still take.
	Within time.Duration
}

// Advance tells how it goes on: what is to be done now, what is waited for, and the Record that takes r's place, r itself where nothing has
// changed. Whatever ends after anything of that, Advance says the same again, or what follows from it.
func (r Record) Advance(f Facts) (Record, []Action, []string) {
	if r.Plan.ID == "" && (r.Stage == Going || r.Stage == Halted) {
		return r, nil, []string{ErrNoPlan.Error()}
	}
	next := r.then()
	changed := false
	set := func(i int, s Step, why, hint string) {
		n := &next.Nodes[i]
		n.Step, n.Since, n.Error, n.Hint, changed = s, f.Now.UTC().Truncate(time.Second), why, hint, true
		switch {
		case s == Failed && next.Stage == Going:
			next.Stage = Halted
		case s == Upgrading:
			n.Attempt++
		case s == Waiting:
			n.Since = time.Time{}
		}
	}
	if r.Stage == Going {
		if all := added(next.Nodes, "", f.Machines); len(all) > len(next.Nodes) { // they have joined meanwhile
			next.Nodes, changed = all, true
		}
	}
	var actions []Action
	var waits []string
	if r.Active() {
		for i, n := range next.Nodes {
			if n.Step == Upgraded {
				continue
			}
			_, there := f.Machines[n.Name]
			if n.Step == Gone {
				if there && r.Stage == Going { // it has joined again
					set(i, Waiting, "", "")
				}
				continue
			}
			if !there {
				set(i, Gone, "", "")
				continue
			}
			if n.Step.turn() {
				a, wait := r.work(n, f, func(s Step, why, hint string) { set(i, s, why, hint) })
				actions = append(actions, a...)
				if wait != "" {
					waits = append(waits, n.Name+" "+wait)
				}
			}
		}
	}
	if next.Stage == Going {
		i, wait := next.choose(f)
		for ; i >= 0; i, _ = next.choose(f) {
			set(i, Asking, "", "")
		}
		if wait != "" {
			waits = append(waits, wait)
		}
	}
	if !slices.ContainsFunc(next.Nodes, func(n Node) bool { return n.Step.turn() }) {
		switch {
		case next.Stage == Aborting:
			next.Stage, changed = Aborted, true
		case next.Stage == Going && !slices.ContainsFunc(next.Nodes, func(n Node) bool { return n.Step == Waiting }):
			next.Stage, changed = Complete, true
		}
		if !next.Active() && changed {
			next.Ended = f.Now.UTC().Truncate(time.Second)
		}
	}
	actions = append(actions, next.release(f)...)
	if !changed {
		return r, actions, waits
	}
	return next, actions, waits
}

// release is for all nodes that show that it is their turn, or get no new pods, and are not to any more.
func (r Record) release(f Facts) []Action {
	var out []Action
	for _, name := range sorted(f.Nodes) {
		seen := f.Nodes[name]
		step := Waiting
		if i := slices.IndexFunc(r.Nodes, func(n Node) bool { return n.Name == name }); i >= 0 && r.Active() {
			step = r.Nodes[i].Step
		}
		if (seen.Called || seen.Cordoned) && !step.turn() {
			out = append(out, Action{Deed: Release, Node: name})
		}
	}
	return out
}

// work goes on with a node whose turn it is.
func (r Record) work(n Node, f Facts, set func(s Step, why, hint string)) (actions []Action, wait string) {
	seen, pods := f.Nodes[n.Name]
	rep, heard := f.report(n.Name)
	since := f.Now.Sub(n.Since)
	if r.Stage != Going && n.Step != Upgrading || r.Plan.ID == "" { // nothing has happened to it yet that could not be undone, or nobody knows what
		set(Waiting, "", "")
		return nil, ""
	}
	if heard && !rep.active() && rep.Digest == r.Plan.To.Digest && r.missing(rep, seen, pods) == "" {
		set(Upgraded, "", "")
		return nil, ""
	}
	if pods && !n.Server && !seen.Called {
		actions = append(actions, Action{Deed: Call, Node: n.Name})
	}
	switch n.Step {
	case Asking:
		switch {
		case heard && !rep.active() && rep.Well && rep.Digest != r.Plan.To.Digest:
			set(Draining, "", "")
		case since > askLimit && heard && rep.active():
			set(Failed, "an upgrade of its own is on its way there: "+string(rep.Phase), "look there: k1s upgrade --status")
		case since > askLimit && heard && rep.Digest == r.Plan.To.Digest:
			set(Failed, "it runs the program already, and is not well: "+r.missing(rep, seen, pods), "look there: k1s status")
		case since > askLimit && heard:
			set(Failed, "it is not well, and could not show that it is afterwards: "+rep.Why, "look there: k1s status")
		case since > askLimit:
			set(Failed, fmt.Sprintf("it has not answered for %s: %s", askLimit, silence(seen, pods)), "is k1s running on it, and not too old to be upgraded from here? If it does not come back: k1s node remove "+n.Name)
		default:
			wait = "is asked what it runs"
		}
	case Draining:
		drain := f.Drains[n.Name]
		switch {
		case !pods:
			set(Upgrading, "", "")
		case !seen.Unschedulable:
			return append(actions, Action{Deed: Cordon, Node: n.Name}), "is to get no new pods"
		case r.Plan.Drain == 0 || !elsewhere(n.Name, f) || drain.Done:
			set(Upgrading, "", "")
		case drain.Err != "":
			set(Failed, "its pods do not leave it: "+drain.Err, "see what is on it: k1s kubectl get pods -A --field-selector spec.nodeName="+n.Name+". A pod that nobody would bring back is yours to move; with --drain-timeout 0 all stay where they are")
		case since > r.Plan.Drain:
			set(Failed, fmt.Sprintf("its pods have not left it within %s: %s", r.Plan.Drain, orElse(drain.Last, "nothing is known of them")), "see: k1s kubectl get poddisruptionbudgets -A; give them longer with --drain-timeout, or leave them where they are with --drain-timeout 0")
		default:
			return append(actions, Action{Deed: Empty, Node: n.Name, Within: r.Plan.Drain - since}), "is emptied" + after(": ", drain.Last)
		}
	case Upgrading:
		limit := r.Plan.Timeout + fetchLimit
		switch {
		case heard && rep.Order == r.key(n) && rep.Phase == upgrade.Failed:
			set(Failed, rep.Error, rep.Hint)
		case since > limit && heard:
			set(Failed, fmt.Sprintf("it has not gone over within %s: %s", limit, orElse(r.missing(rep, seen, pods), string(rep.Phase))), "look there: k1s upgrade --status, k1s status")
		case since > limit:
			set(Failed, fmt.Sprintf("it has not answered for longer than %s: %s", Fresh, silence(seen, pods)), "look there: k1s upgrade --status, k1s status")
		case !heard:
			wait = "goes over, and does not answer in this moment"
		case rep.active():
			wait = "goes over: " + string(rep.Phase)
		case rep.Digest == r.Plan.To.Digest:
			wait = "runs it, and is not well yet: " + r.missing(rep, seen, pods)
		default:
			wait = "is told to go over" + after(": ", rep.Doing)
		}
	}
	return actions, wait
}

// missing is what is not as it is to be on a node that runs the program; "" for nothing.
func (r Record) missing(rep Report, seen Seen, pods bool) string {
	switch {
	case rep.Digest != r.Plan.To.Digest:
		return fmt.Sprintf("it runs k1s %s with Kubernetes %s", rep.Version, rep.Kubernetes) + after(", ", rep.Doing)
	case !rep.Well:
		return orElse(rep.Why, "it is not well")
	case pods && !seen.Ready:
		return "the node is not Ready: " + seen.Why
	case pods && seen.Kubelet != r.Plan.To.Kubernetes:
		return fmt.Sprintf("the node has a kubelet %s yet", seen.Kubelet)
	}
	return ""
}

// elsewhere tells that pods of a node may find another one.
func elsewhere(node string, f Facts) bool {
	for name, s := range f.Nodes {
		if name != node && s.Ready && !s.Unschedulable {
			return true
		}
	}
	return false
}

// choose is the node whose turn comes next, -1 for none, with what is waited for.
func (r Record) choose(f Facts) (int, string) {
	busy, servers := 0, false
	for _, n := range r.Nodes {
		if n.Step.turn() {
			busy++
		}
		servers = servers || n.Server && (n.Step == Waiting || n.Step.turn())
	}
	best := -1
	for i, n := range r.Nodes {
		if n.Step != Waiting || n.Server != servers {
			continue
		}
		// Who is away comes last: it may be back by then.
		if best < 0 || f.Nodes[n.Name].Ready && !f.Nodes[r.Nodes[best].Name].Ready && !n.Server {
			best = i
		}
	}
	switch {
	case best < 0, servers && busy > 0, busy >= max(1, r.Plan.Parallel):
		return -1, ""
	case !servers:
		return best, ""
	}
	// With one of three away the others are the majority of etcd.
	for _, name := range sorted(f.Machines) {
		if !f.Machines[name] || name == r.Nodes[best].Name {
			continue
		}
		rep, heard := f.report(name)
		switch {
		case !heard:
			return -1, "server " + name + " does not answer; no other one goes over until it does. If it does not come back: k1s node remove " + name
		case !rep.Well:
			return -1, "server " + name + " is not well, and no other one goes over until it is: " + rep.Why
		}
	}
	return best, ""
}

func silence(seen Seen, pods bool) string {
	switch {
	case !pods:
		return "there is no node of this name in the API"
	case !seen.Ready:
		return "the node is not Ready: " + seen.Why
	}
	return "the node is Ready"
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// after puts something before a text that is there.
func after(before, s string) string {
	if s == "" {
		return ""
	}
	return before + s
}

func sorted[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
