package networkpolicy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"

	"k1s.io/k1s/internal/applets/networkpolicy/rules"
	"k1s.io/k1s/internal/errs"
)

// nftables writes states to the kernel and reads them back. It begins no process before it is used.
type nftables struct {
	nft knftables.Interface
}

// apply does all operations in one transaction.
func (n *nftables) apply(ctx context.Context, ops []rules.Op) error {
	if len(ops) == 0 {
		return nil
	}
	if n.nft == nil {
		nft, err := knftables.New(knftables.InetFamily, rules.Table)
		if err != nil {
			return errs.Hint(fmt.Errorf("writing network policies: %w", err), "nft must be in PATH and the kernel must have nf_tables with the family inet (5.13 or later)")
		}
		n.nft = nft
	}
	tx := n.nft.NewTransaction()
	write(tx, ops)
	if err := n.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("writing network policies: %w", err)
	}
	return nil
}

// write turns operations into nft's.
func write(tx *knftables.Transaction, ops []rules.Op) {
	for _, op := range ops {
		switch op.Kind {
		case rules.DeleteTable:
			tx.Add(&knftables.Table{}) // so that deleting it cannot fail
			tx.Delete(&knftables.Table{})
		case rules.AddTable:
			tx.Add(&knftables.Table{Comment: knftables.PtrTo("k1s: network policies of this node's pods")})
		case rules.AddChain:
			c := &knftables.Chain{Name: op.Name}
			if b := op.Chain.Base; b != nil {
				c.Type, c.Hook = knftables.PtrTo(knftables.FilterType), knftables.PtrTo(knftables.BaseChainHook(b.Hook))
				c.Priority = knftables.PtrTo(knftables.BaseChainPriority(strconv.Itoa(b.Priority)))
			}
			tx.Add(c)
		case rules.FlushChain:
			tx.Flush(&knftables.Chain{Name: op.Name})
		case rules.DeleteChain:
			tx.Delete(&knftables.Chain{Name: op.Name})
		case rules.AddRule:
			tx.Add(&knftables.Rule{Chain: op.Name, Rule: op.Rule.Text, Comment: &op.Rule.ID})
		case rules.AddSet, rules.DeleteSet:
			do := tx.Add
			if op.Kind == rules.DeleteSet {
				do = tx.Delete
			}
			var comment *string
			if op.Set.Comment != "" {
				comment = &op.Set.Comment
			}
			if op.Set.Map {
				do(&knftables.Map{Name: op.Name, Type: op.Set.Type + " : verdict", Comment: comment})
			} else {
				do(&knftables.Set{Name: op.Name, Type: op.Set.Type, Comment: comment})
			}
		case rules.AddElement, rules.DeleteElement:
			e := &knftables.Element{Set: op.Name, Key: rules.Fields(op.Key)}
			if op.Set.Map {
				e.Set, e.Map, e.Value = "", op.Name, []string{op.Value}
			}
			if op.Kind == rules.AddElement {
				tx.Add(e)
			} else {
				tx.Delete(e)
			}
		}
	}
}

// there tells whether the kernel has the table.
func (n *nftables) there(ctx context.Context) (bool, error) {
	there := false
	err := list(ctx, func(o object) error {
		there = there || o.Table != nil && o.Table.Family == "inet" && o.Table.Name == rules.Table
		return nil
	}, "tables", "inet")
	if err != nil {
		return false, fmt.Errorf("looking for network policies: %w", err)
	}
	return there, nil
}

// read returns what the kernel has, the zero value where there is no table.
func (n *nftables) read(ctx context.Context) (rules.State, error) {
	var state rules.State
	there, err := n.there(ctx)
	if err == nil && there {
		state = rules.State{Chains: map[string]rules.Chain{}, Sets: map[string]rules.Set{}}
		err = list(ctx, func(o object) error { return o.into(state) }, "table", "inet", rules.Table)
	}
	if err != nil {
		return rules.State{}, fmt.Errorf("reading back network policies: %w", err)
	}
	return state, nil
}

// list runs nft's "list" and gives out its objects one by one: a large table is large in JSON.
func list(ctx context.Context, each func(object) error, args ...string) error {
	cmd := exec.CommandContext(ctx, "nft", append([]string{"-n", "-j", "list"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = decode(out, each)
	if err != nil {
		_ = cmd.Process.Kill()
	}
	if end := cmd.Wait(); err == nil && end != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), end, strings.TrimSpace(stderr.String()))
	}
	return err
}

// object is one entry of what libnftables-json(5) prints; one field is set. Content of rules is not read: their comments
// say which they are.
type object struct {
	Table *struct{ Family, Name string }
	Chain *struct {
		Name, Hook string
		Prio       int
	}
	Rule *struct{ Chain, Comment string }
	Set  *set
	Map  *set
}

type set struct {
	Name string
	Type json.RawMessage // a string or a list of them
	Elem []json.RawMessage
}

func decode(r io.Reader, each func(object) error) error {
	dec := json.NewDecoder(r)
	for range 3 { // { "nftables": [
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			return nil // nothing to tell; nft's exit says why
		} else if err != nil {
			return err
		}
	}
	for dec.More() {
		var o object
		if err := dec.Decode(&o); err != nil {
			return err
		}
		if err := each(o); err != nil {
			return err
		}
	}
	_, err := io.Copy(io.Discard, io.MultiReader(dec.Buffered(), r))
	return err
}

// into adds an object to the state it is a part of.
func (o object) into(s rules.State) error {
	switch {
	case o.Chain != nil:
		c := s.Chains[o.Chain.Name]
		if o.Chain.Hook != "" {
			c.Base = &rules.Base{Hook: o.Chain.Hook, Priority: o.Chain.Prio}
		}
		s.Chains[o.Chain.Name] = c
	case o.Rule != nil:
		c := s.Chains[o.Rule.Chain]
		c.Rules = append(c.Rules, rules.Rule{ID: o.Rule.Comment})
		s.Chains[o.Rule.Chain] = c
	case o.Set != nil, o.Map != nil:
		from, isMap := o.Set, false
		if from == nil {
			from, isMap = o.Map, true
		}
		out := rules.Set{Map: isMap, Elements: make(map[string]string, len(from.Elem))}
		var err error
		if out.Type, err = joined(from.Type); err != nil {
			return fmt.Errorf("type of set %s: %w", from.Name, err)
		}
		for _, raw := range from.Elem {
			key, value, err := elementOf(raw, isMap)
			if err != nil { // we write none like this
				out = rules.Set{Type: "of others", Map: isMap}
				break
			}
			out.Elements[key] = value
		}
		s.Sets[from.Name] = out
	}
	return nil
}

// joined is a string, or a list of fields joined.
func joined(raw json.RawMessage) (string, error) {
	var one any
	if err := json.Unmarshal(raw, &one); err != nil {
		return "", err
	}
	many, ok := one.([]any)
	if !ok {
		return field(one)
	}
	var parts []string
	for _, p := range many {
		text, err := field(p)
		if err != nil {
			return "", err
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, rules.Dot), nil
}

// field is one field of a key, written as rules writes it.
func field(v any) (string, error) {
	switch v := v.(type) {
	case string:
		if a, err := netip.ParseAddr(v); err == nil {
			return a.String(), nil
		}
		return v, nil
	case float64:
		return strconv.Itoa(int(v)), nil
	}
	return "", errors.New("is neither text nor number")
}

func elementOf(raw json.RawMessage, isMap bool) (key, value string, err error) {
	if isMap {
		var pair []json.RawMessage
		if err := json.Unmarshal(raw, &pair); err != nil || len(pair) != 2 {
			return "", "", errors.New("is no pair")
		}
		raw = pair[0]
		var verdict map[string]*struct{ Target string }
		if err := json.Unmarshal(pair[1], &verdict); err != nil || len(verdict) != 1 {
			return "", "", errors.New("has no verdict")
		}
		for name, to := range verdict {
			value = name
			if to != nil {
				value += " " + to.Target
			}
		}
	}
	var object struct{ Concat json.RawMessage }
	if json.Unmarshal(raw, &object) == nil && object.Concat != nil {
		raw = object.Concat
	}
	key, err = joined(raw)
	return key, value, err
}
