// Package components says what a node consists of: one file a component, each a pure function from
// configuration and facts to a Spec. Plan puts them together into the units the supervisor runs.
// Nothing in here reads a file, a clock or the network, so that every node can be printed before it
// runs and golden-tested anywhere.
package components

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/probe"
)

// defs holds every known component; filled by the files of this package while it is initialised and
// never changed afterwards.
var defs = map[string]component.Def{}

func register(d component.Def) struct{} {
	if _, ok := defs[d.Name]; ok {
		panic("component " + d.Name + " is registered twice")
	}
	defs[d.Name] = d
	return struct{}{}
}

// Names of all components, sorted.
func Names() []string { return slices.Sorted(maps.Keys(defs)) }

// Summary is the one line that says what a component does, "" for an unknown name.
func Summary(name string) string { return defs[name].Summary }

// Isolation modes, see config.Spec.Isolation.
const (
	Grouped    = "grouped"
	PerProcess = "component"
	Fused      = "none"
)

// Groups of components that share a process when isolation is Grouped.
const (
	controlPlane = "control-plane"
	node         = "node"
	runtime      = "containerd"

	fusedUnit = "k1s-node" // all of them but the runtime, when isolation is Fused
)

// Roles are the roles a configuration asks for.
func Roles(in component.Input) component.Role {
	var r component.Role
	if in.Config.Spec.ControlPlane() {
		r |= component.ControlPlane
	} else {
		r |= component.Agent
	}
	if in.Config.Spec.Worker() {
		r |= component.Worker
	}
	return r
}

// Plan renders all components of a node and puts them into units, in start order.
func Plan(in component.Input) ([]component.Unit, error) {
	comps, err := Render(in)
	if err != nil {
		return nil, err
	}
	units, err := group(in, comps)
	if err != nil {
		return nil, err
	}
	return units, users(in, units)
}

// Render renders the components of a node in start order: whatever one needs stands before it.
func Render(in component.Input) ([]component.Component, error) {
	chosen := chosen(in)
	var problems []error
	comps := map[string]component.Component{}
	for name, d := range chosen {
		c, err := renderOne(in, d, chosen)
		if err != nil {
			problems = append(problems, fmt.Errorf("rendering %s: %w", name, err))
			continue
		}
		comps[name] = c
	}
	for name := range in.Config.Spec.Components {
		if _, ok := defs[name]; !ok {
			problems = append(problems, errs.New(errs.Invalid, "spec.components: there is no component %q", name))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return sorted(comps)
}

// chosen are the components that are part of the node.
func chosen(in component.Input) map[string]component.Def {
	roles := Roles(in)
	out := map[string]component.Def{}
	for name, d := range defs {
		if d.Roles&roles != 0 && (d.When == nil || d.When(in)) {
			out[name] = d
		}
	}
	return out
}

// Outline tells which units a node will have and which components they are made of, in start order, before
// anything is known about the machine: names and needs, and nothing else. in needs its Config only.
func Outline(in component.Input) ([]component.Unit, error) {
	chosen := chosen(in)
	comps := map[string]component.Component{}
	for name, d := range chosen {
		comps[name] = component.Component{Name: name, Group: d.Group, Needs: needs(d, chosen)}
	}
	all, err := sorted(comps)
	if err != nil {
		return nil, err
	}
	order, members := divide(in, all)
	units := make([]component.Unit, 0, len(order))
	for _, name := range order {
		units = append(units, component.Unit{Name: name, Components: members[name]})
	}
	return units, nil
}

// needs are those of a component that are part of the node.
func needs(d component.Def, chosen map[string]component.Def) []component.Need {
	var out []component.Need
	for _, n := range d.Needs {
		if _, ok := chosen[n.Component]; ok {
			out = append(out, n)
		}
	}
	return out
}

func renderOne(in component.Input, d component.Def, chosen map[string]component.Def) (component.Component, error) {
	spec, err := d.Spec(in)
	if err != nil {
		return component.Component{}, err
	}
	spec.Args = override(spec.Args, d.Merge, in.Config.Spec.Components[d.Name].Args)
	c := component.Component{Name: d.Name, Spec: spec, Group: d.Group, Needs: needs(d, chosen), StopTimeout: d.StopTimeout}
	if c.StopTimeout == 0 {
		c.StopTimeout = component.DefaultStopTimeout
	}
	if d.Ready != nil {
		c.Ready = d.Ready(in)
	}
	c.Open = c.Ready
	if d.Open != nil {
		c.Open = d.Open(in)
	}
	return c, nil
}

// override lets the user's arguments win over ours: the same flag is replaced where it stands, or joined
// with ours when it is one of merge, and others are added at the end in alphabetical order.
func override(args, merge []string, user map[string]string) []string {
	out := make([]string, 0, len(args)+len(user))
	used := map[string]bool{}
	for _, a := range args {
		name, ours, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		v, ok := user[name]
		switch {
		case !ok || !strings.HasPrefix(a, "-"):
			out = append(out, a)
		case !used[name]:
			used[name] = true
			if slices.Contains(merge, name) && v != "" && !slices.Contains(strings.Split(v, ","), ours) {
				v = ours + "," + v
			}
			out = append(out, "--"+name+"="+v)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(user)) {
		if !used[name] {
			out = append(out, "--"+name+"="+user[name])
		}
	}
	return out
}

// sorted orders components so that needs come first, otherwise by name; a cycle is an error.
func sorted(comps map[string]component.Component) ([]component.Component, error) {
	var out []component.Component
	state := map[string]int{} // 1 being visited, 2 done
	var visit func(name string, trail []string) error
	visit = func(name string, trail []string) error {
		switch state[name] {
		case 1:
			return fmt.Errorf("components need each other in a circle: %s", strings.Join(append(trail, name), " → "))
		case 2:
			return nil
		}
		state[name] = 1
		for _, n := range comps[name].Needs {
			if err := visit(n.Component, append(trail, name)); err != nil {
				return err
			}
		}
		state[name] = 2
		out = append(out, comps[name])
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(comps)) {
		if err := visit(name, nil); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// oomScore keeps the kernel from choosing the node's own processes when memory runs out: pods go first.
// It is what upstream gives its static control plane pods.
const oomScore = -997

// keepOOMScore lets a component of upstream's ask for the OOM score that it has already, where lowering it is not
// allowed: it would try twice and wait a tenth of a second after each time, before it does anything else.
func keepOOMScore(cfg map[string]any, in component.Input) {
	if !in.Facts.SysResource {
		cfg["oomScoreAdj"] = in.Facts.OOMScore
	}
}

// Program is the payload's multi-call program that carries the applets.
const Program = "k1s-kube"

func group(in component.Input, comps []component.Component) ([]component.Unit, error) {
	order, members := divide(in, comps)
	units := make([]component.Unit, 0, len(order))
	for _, name := range order {
		u, err := unit(in, name, members[name], comps)
		if err != nil {
			return nil, err
		}
		units = append(units, u)
	}
	return units, nil
}

// divide puts components into processes, as the isolation says.
func divide(in component.Input, comps []component.Component) (order []string, members map[string][]component.Component) {
	unitOf := func(c component.Component) string {
		switch {
		case in.Config.Spec.Isolation == PerProcess:
			return c.Name
		case in.Config.Spec.Isolation == Fused && c.Group != runtime:
			return fusedUnit
		case c.Group != "":
			return c.Group
		default:
			return c.Name
		}
	}
	members = map[string][]component.Component{}
	for _, c := range comps {
		u := unitOf(c)
		if _, ok := members[u]; !ok {
			order = append(order, u)
		}
		members[u] = append(members[u], c)
	}
	return order, members
}

func unit(in component.Input, name string, members, all []component.Component) (component.Unit, error) {
	u := component.Unit{Name: name, Components: members, Env: map[string]string{}}
	if in.Facts.SysResource {
		u.OOMScore = oomScore
	}
	program := path.Join(in.Payload, Program)
	for _, m := range members {
		u.Files = append(u.Files, m.Spec.Files...)
		u.Dirs = append(u.Dirs, m.Spec.Dirs...)
		maps.Copy(u.Env, m.Spec.Env)
		u.StopTimeout += m.StopTimeout // members may have to end one after the other
		if m.Ready.Kind == probe.File && strings.HasPrefix(m.Ready.Addr, in.Paths.Run+"/") {
			u.Stale = append(u.Stale, m.Ready.Addr)
		}
	}
	if len(members) == 1 {
		m := members[0]
		u.Argv = append([]string{program, m.Spec.Applet}, m.Spec.Args...)
		return u, nil
	}
	g := component.Group{Name: name}
	for _, m := range members {
		g.Members = append(g.Members, component.Member{
			Name: m.Name, Applet: m.Spec.Applet, Args: m.Spec.Args,
			After: after(m, all), Ready: m.Ready, StopAfter: clients(m, members), StopTimeout: m.StopTimeout,
		})
	}
	text, err := json.MarshalIndent(g, "", "  ")
	if err != nil {
		return component.Unit{}, fmt.Errorf("writing the group file of %s: %w", name, err)
	}
	file := in.Paths.Group(name)
	u.Files = append(u.Files, component.File{Path: file, Content: string(text) + "\n", Mode: 0o600})
	u.Argv = []string{program, "group", file}
	return u, nil
}

// after are the probes that must pass before m starts inside its group.
func after(m component.Component, all []component.Component) []probe.Probe {
	var out []probe.Probe
	for _, n := range m.Needs {
		i := slices.IndexFunc(all, func(c component.Component) bool { return c.Name == n.Component })
		if n.Level == component.Open {
			out = append(out, all[i].Open)
		} else {
			out = append(out, all[i].Ready)
		}
	}
	return out
}

// clients are the members that need m, and so have to end before it.
func clients(m component.Component, members []component.Component) []string {
	var out []string
	for _, c := range members {
		if slices.ContainsFunc(c.Needs, func(n component.Need) bool { return n.Component == m.Name }) {
			out = append(out, c.Name)
		}
	}
	slices.SortFunc(out, cmp.Compare[string])
	return out
}

// Groups are the names of the processes of Grouped isolation, sorted.
func Groups() []string {
	var out []string
	for _, d := range defs {
		if !slices.Contains(out, d.Group) {
			out = append(out, d.Group)
		}
	}
	slices.Sort(out)
	return out
}

// UnitNames are the units a component may run in, by isolation, the default one first. A unit's own name
// is found too.
func UnitNames(name string) []string {
	out := []string{name}
	if d, ok := defs[name]; ok {
		out = []string{d.Group, name, fusedUnit}
	}
	return out
}
