package cluster

import (
	"cmp"
	"context"
	"slices"

	"k1s.io/k1s/internal/errs"
)

// Links is a Provider that can cut nodes off from each other. What reaches a node from this machine (the API, published
// ports, commands) is not concerned, so that one can look at a node that nobody else sees.
type Links interface {
	// SetCuts makes exactly these cuts be there, also after a restart.
	SetCuts(ctx context.Context, cluster string, cuts []Cut) error
}

// Cut is a connection that carries nothing, in both directions.
type Cut struct {
	A string `json:"a"`
	// B is the other end; "" is every other node.
	B string `json:"b,omitempty"`
}

// normal has its ends in order, so that each cut is there once.
func (c Cut) normal() Cut {
	if c.B != "" && c.B < c.A {
		c.A, c.B = c.B, c.A
	}
	return c
}

// CutLink cuts two nodes of a cluster off from each other, or one, with b "", from all.
func (m Manager) CutLink(ctx context.Context, name, a, b string) error {
	return m.changeCuts(ctx, name, func(now []Cut) ([]Cut, error) {
		c := Cut{a, b}.normal()
		if a == b {
			return nil, errs.New(errs.Usage, "a node cannot be cut off from itself")
		}
		if !slices.Contains(now, c) {
			now = append(now, c)
		}
		return now, nil
	}, a, b)
}

// HealLink takes a cut back; with b "" all that concern a node, and with a "" all of the cluster.
func (m Manager) HealLink(ctx context.Context, name, a, b string) error {
	return m.changeCuts(ctx, name, func(now []Cut) ([]Cut, error) {
		c := Cut{a, b}.normal()
		left := slices.DeleteFunc(slices.Clone(now), func(o Cut) bool {
			return a == "" || o == c || b == "" && (o.A == a || o.B == a)
		})
		if b != "" && len(left) == len(now) {
			return nil, errs.Hint(errs.New(errs.NotFound, "%s and %s are not cut off from each other", a, b), "see: k1s cluster net ls")
		}
		return left, nil
	}, a, b)
}

func (m Manager) changeCuts(ctx context.Context, name string, change func([]Cut) ([]Cut, error), nodes ...string) error {
	links, ok := m.Provider.(Links)
	if !ok {
		return errs.New(errs.Unsupported, "this machine cannot cut nodes of a cluster off from each other")
	}
	st, err := m.Provider.Describe(ctx, name)
	if err != nil {
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
	cuts, err := change(slices.Clone(st.Spec.Cuts))
	if err != nil {
		return err
	}
	slices.SortFunc(cuts, func(x, y Cut) int { return cmp.Or(cmp.Compare(x.A, y.A), cmp.Compare(x.B, y.B)) })
	return links.SetCuts(ctx, name, cuts)
}
