package rules

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// Base makes a chain one that packets come to by themselves.
type Base struct {
	Hook     string
	Priority int
}

// Chain is a list of rules.
type Chain struct {
	Base  *Base // nil: packets come by a jump only
	Rules []Rule
}

// Rule is one rule. Text is nft's language; read back from the kernel, only ID is known: it is written as the
// rule's comment, see RuleOf.
type Rule struct {
	Text, ID string
}

// Set is a set, or a map of verdicts.
type Set struct {
	Type string // of keys, in nft's language
	Map  bool
	// Elements by key, with fields joined by Dot; the value is the verdict in a map, "" in a set.
	Elements map[string]string
	// Comment is for people and is not compared.
	Comment string
}

// Dot stands between the fields of a key of several.
const Dot = " . "

// Fields are those of an element's key.
func Fields(key string) []string { return strings.Split(key, Dot) }

// State is a whole table. Its zero value is no table at all.
type State struct {
	Chains map[string]Chain
	Sets   map[string]Set
}

// Empty tells that there is nothing to be a table for.
func (s State) Empty() bool { return len(s.Chains) == 0 && len(s.Sets) == 0 }

// Kind is what an operation does.
type Kind uint8

// The kinds, in the order in which they stand in a transaction: each needs what those before it have done.
const (
	AddTable Kind = iota
	AddChain
	AddSet
	FlushChain
	DeleteElement
	AddElement
	AddRule
	DeleteSet
	DeleteChain
	DeleteTable
)

// Op is one step of a transaction.
type Op struct {
	Kind Kind
	// Name is that of the chain or set.
	Name       string
	Chain      Chain  // AddChain: its base
	Set        Set    // AddSet, DeleteSet: without elements; AddElement, DeleteElement: whether it is a map
	Key, Value string // of elements
	Rule       Rule   // AddRule
}

// sortOps puts operations into an order that a transaction may have, the same for the same changes.
func sortOps(ops []Op) {
	slices.SortStableFunc(ops, func(a, b Op) int {
		if a.Kind == AddRule && b.Kind == AddRule { // rules keep their order in their chain
			return cmp.Compare(a.Name, b.Name)
		}
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Key, b.Key))
	})
}

// Diff is what makes old into want, nothing where they are equal. A chain is written anew where its rules differ, a set
// only where it is of another type, and elements one by one.
func Diff(old, want State) []Op {
	if want.Empty() {
		if old.Empty() {
			return nil
		}
		return []Op{{Kind: DeleteTable}}
	}
	var ops []Op
	if old.Empty() {
		ops = append(ops, Op{Kind: AddTable})
	}
	for name, c := range want.Chains {
		o, had := old.Chains[name]
		if had && !sameBase(o.Base, c.Base) { // nobody makes one like this but somebody else; all of it is made anew
			return append([]Op{{Kind: DeleteTable}}, Diff(State{}, want)...)
		}
		if had && slices.EqualFunc(o.Rules, c.Rules, func(a, b Rule) bool { return a.ID == b.ID }) {
			continue
		}
		if !had {
			ops = append(ops, Op{Kind: AddChain, Name: name, Chain: Chain{Base: c.Base}})
		} else {
			ops = append(ops, Op{Kind: FlushChain, Name: name})
		}
		for _, r := range c.Rules {
			ops = append(ops, Op{Kind: AddRule, Name: name, Rule: r})
		}
	}
	for name := range old.Chains {
		if _, ok := want.Chains[name]; !ok {
			// Empty first: chains that go may refer to one another.
			ops = append(ops, Op{Kind: FlushChain, Name: name}, Op{Kind: DeleteChain, Name: name})
		}
	}
	for name, s := range want.Sets {
		o, had := old.Sets[name]
		if had && (o.Type != s.Type || o.Map != s.Map) {
			return append([]Op{{Kind: DeleteTable}}, Diff(State{}, want)...)
		}
		if !had {
			ops = append(ops, Op{Kind: AddSet, Name: name, Set: s.bare()})
		}
		ops = append(ops, elements(name, s.Map, o.Elements, s.Elements)...)
	}
	for name, s := range old.Sets {
		if _, ok := want.Sets[name]; !ok {
			// Its verdicts may point to chains that go as well.
			if s.Map {
				ops = append(ops, elements(name, true, s.Elements, nil)...)
			}
			ops = append(ops, Op{Kind: DeleteSet, Name: name, Set: s.bare()})
		}
	}
	sortOps(ops)
	return ops
}

func sameBase(a, b *Base) bool { return a == b || a != nil && b != nil && *a == *b }

func (s Set) bare() Set { return Set{Type: s.Type, Map: s.Map, Comment: s.Comment} }

// elements is the difference of two sets; an element with another verdict goes and comes.
func elements(name string, isMap bool, old, want map[string]string) []Op {
	var ops []Op
	for k, v := range old {
		if w, ok := want[k]; !ok || w != v {
			ops = append(ops, Op{Kind: DeleteElement, Name: name, Set: Set{Map: isMap}, Key: k, Value: v})
		}
	}
	for k, v := range want {
		if o, ok := old[k]; !ok || o != v {
			ops = append(ops, Op{Kind: AddElement, Name: name, Set: Set{Map: isMap}, Key: k, Value: v})
		}
	}
	return ops
}

// Apply does to a copy of s what the kernel does with ops.
func (s State) Apply(ops []Op) State {
	out := State{Chains: maps.Clone(s.Chains), Sets: map[string]Set{}}
	if out.Chains == nil {
		out.Chains = map[string]Chain{}
	}
	for name, set := range s.Sets {
		set.Elements = maps.Clone(set.Elements)
		out.Sets[name] = set
	}
	for _, op := range ops {
		switch op.Kind {
		case AddTable:
		case DeleteTable:
			out = State{Chains: map[string]Chain{}, Sets: map[string]Set{}}
		case AddChain:
			out.Chains[op.Name] = op.Chain
		case FlushChain:
			out.Chains[op.Name] = Chain{Base: out.Chains[op.Name].Base}
		case AddRule:
			c := out.Chains[op.Name]
			c.Rules = append(slices.Clip(c.Rules), op.Rule)
			out.Chains[op.Name] = c
		case DeleteChain:
			delete(out.Chains, op.Name)
		case AddSet:
			set := op.Set
			set.Elements = map[string]string{}
			out.Sets[op.Name] = set
		case DeleteSet:
			delete(out.Sets, op.Name)
		case AddElement:
			out.Sets[op.Name].Elements[op.Key] = op.Value
		case DeleteElement:
			delete(out.Sets[op.Name].Elements, op.Key)
		}
	}
	return out
}
