package cluster

import (
	"cmp"
	"context"
	"slices"
	"time"

	"k1s.io/k1s/internal/errs"
)

// LinkSetter is a Provider that can cut nodes off from each other and delay what they say to each other. What reaches a
// node from this machine (the API, published ports, commands) is not concerned, so that one can look at a node that nobody
// else sees.
type LinkSetter interface {
	// SetLinks makes those cuts and delays be there, exactly, that change returns for those that are, also after a restart. When
	// it fails, also because change does, those of before are. Nobody else changes them meanwhile: of several at once each
	// builds on the one before. What change is given is its own.
	SetLinks(ctx context.Context, cluster string, change func(Links) (Links, error)) error
	// Delayed tells how the delays of a cluster that runs fare, in their order; nothing for one that is stopped.
	Delayed(ctx context.Context, cluster string) ([]Delayed, error)
}

// Links is what is not as usual with the connections between the nodes of a cluster.
type Links struct {
	Cuts   []Cut   `json:"cuts,omitempty"`
	Delays []Delay `json:"delays,omitempty"`
}

// Equal tells whether they are the same.
func (l Links) Equal(o Links) bool {
	return slices.Equal(l.Cuts, o.Cuts) && slices.Equal(l.Delays, o.Delays)
}

// Clone is a copy that shares nothing.
func (l Links) Clone() Links { return Links{slices.Clone(l.Cuts), slices.Clone(l.Delays)} }

// Cut is a connection that carries nothing, in both directions.
type Cut struct{ Ends }

// Ends are a connection between two nodes.
type Ends struct {
	A string `json:"a"`
	// B is the other end; "" is every other node.
	B string `json:"b,omitempty"`
}

// normal has them in order, so that each connection is there once.
func (e Ends) normal() Ends {
	if e.B != "" && e.B < e.A {
		e.A, e.B = e.B, e.A
	}
	return e
}

// with tells whether a node is one of them.
func (e Ends) with(node string) bool { return e.A == node || e.B == node }

func (e Ends) compare(o Ends) int { return cmp.Or(cmp.Compare(e.A, o.A), cmp.Compare(e.B, o.B)) }

// covers tells whether it is the connection between two nodes, or one of those.
func (e Ends) covers(a, b string) bool {
	return e == Ends{a, b}.normal() || e.B == "" && (e.A == a || e.A == b)
}

// Delay is a connection on which everything takes longer, in both directions.
type Delay struct {
	Ends
	// Delay is for one direction, so that a round trip takes twice as long.
	Delay Duration `json:"delay"`
	// Jitter is by how much it varies, up and down. It changes the order of nothing.
	Jitter Duration `json:"jitter,omitempty"`
}

// Delayed is how a Delay fares.
type Delayed struct {
	Delay
	// Dropped counts the frames that were lost because more was on the way than is held, since it was last changed.
	Dropped uint64 `json:"dropped"`
	// Problem is why the connection is not delayed but carries nothing; "" when all is well.
	Problem string `json:"problem,omitempty"`
}

// Duration is a time.Duration that is written as 50ms.
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

func (d Duration) String() string { return time.Duration(d).String() }

// MaxDelay is the longest delay. What is said to a node that is farther away is lost anyway, by the timeouts of those who say it.
const MaxDelay = Duration(time.Minute)

// Direction is one direction of a delayed connection between two nodes.
type Direction struct {
	From, To string
	Delay    Delay // to which it is due
}

// Directions are those between the given nodes that are delayed, each at most once: what is cut carries nothing, a delay
// between two nodes wins over one between a node and all others, and of two of those the longer.
func (l Links) Directions(nodes []string) []Direction {
	var out []Direction
	for _, from := range nodes {
		for _, to := range nodes {
			if from == to || slices.ContainsFunc(l.Cuts, func(c Cut) bool { return c.covers(from, to) }) {
				continue
			}
			var best *Delay
			for i, d := range l.Delays {
				switch {
				case !d.covers(from, to):
				case best == nil, best.B == "" && d.B != "", (best.B == "") == (d.B == "") && d.Delay > best.Delay:
					best = &l.Delays[i]
				}
			}
			if best != nil {
				out = append(out, Direction{from, to, *best})
			}
		}
	}
	return out
}

// CutLink cuts two nodes of a cluster off from each other, or one, with b "", from all.
func (m Manager) CutLink(ctx context.Context, name, a, b string) error {
	return m.changeLinks(ctx, name, func(now *Links) error {
		c := Cut{Ends{a, b}.normal()}
		if a == b {
			return errs.New(errs.Usage, "a node cannot be cut off from itself")
		}
		if !slices.Contains(now.Cuts, c) {
			now.Cuts = append(now.Cuts, c)
		}
		return nil
	}, a, b)
}

// DelayLink delays what two nodes of a cluster say to each other, or, with d.B "", one and all others. It takes the place of an
// earlier delay between the same.
func (m Manager) DelayLink(ctx context.Context, name string, d Delay) error {
	return m.changeLinks(ctx, name, func(now *Links) error {
		d.Ends = d.normal()
		switch {
		case d.A == d.B:
			return errs.New(errs.Usage, "what a node says to itself cannot be delayed")
		case d.Delay <= 0 || d.Delay > MaxDelay:
			return errs.New(errs.Usage, "a delay of %s is not possible: it is more than 0 and at most %s", d.Delay, MaxDelay)
		case d.Jitter < 0 || d.Jitter > d.Delay:
			return errs.New(errs.Usage, "a jitter of %s is not possible with a delay of %s: it is at least 0 and at most the delay", d.Jitter, d.Delay)
		}
		now.Delays = append(slices.DeleteFunc(now.Delays, func(o Delay) bool { return o.Ends == d.Ends }), d)
		return nil
	}, d.A, d.B)
}

// HealLink takes cuts and delays back: between two nodes, with b "" all that concern a node, and with a "" all of the cluster.
func (m Manager) HealLink(ctx context.Context, name, a, b string) error {
	return m.changeLinks(ctx, name, func(now *Links) error {
		e := Ends{a, b}.normal()
		healed := func(o Ends) bool { return a == "" || o == e || b == "" && o.with(a) }
		before := len(now.Cuts) + len(now.Delays)
		now.Cuts = slices.DeleteFunc(now.Cuts, func(c Cut) bool { return healed(c.Ends) })
		now.Delays = slices.DeleteFunc(now.Delays, func(d Delay) bool { return healed(d.Ends) })
		if b != "" && len(now.Cuts)+len(now.Delays) == before {
			return errs.Hint(errs.New(errs.NotFound, "%s and %s are neither cut off from each other nor delayed", a, b), "see: k1s cluster net ls")
		}
		return nil
	}, a, b)
}

func (m Manager) changeLinks(ctx context.Context, name string, change func(*Links) error, nodes ...string) error {
	links, ok := m.Provider.(LinkSetter)
	if !ok {
		return errs.New(errs.Unsupported, "this machine cannot cut nodes of a cluster off from each other, or delay what they say")
	}
	if _, err := m.Provider.Describe(ctx, name); err != nil {
		return Missing(err)
	}
	for _, n := range nodes {
		if n == "" {
			continue
		}
		if _, _, err := m.node(ctx, name, n); err != nil {
			return err
		}
	}
	return links.SetLinks(ctx, name, func(want Links) (Links, error) {
		err := change(&want)
		slices.SortFunc(want.Cuts, func(x, y Cut) int { return x.compare(y.Ends) })
		slices.SortFunc(want.Delays, func(x, y Delay) int { return x.compare(y.Ends) })
		return want, err
	})
}

// DropLinks forgets the cuts and delays of a node that is gone: its name is not used again.
func (s *Spec) DropLinks(node string) {
	s.Cuts = slices.DeleteFunc(s.Cuts, func(c Cut) bool { return c.with(node) })
	s.Delays = slices.DeleteFunc(s.Delays, func(d Delay) bool { return d.with(node) })
}
