package group

import (
	"errors"
	"slices"
	"strings"

	"k1s.io/k1s/internal/applets/applet"
	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/errs"
)

// validate finds everything that would let a group start wrongly or never stop. All problems are
// reported at once.
func validate(g component.Group, table applet.Table) error {
	var problems []error
	invalid := func(format string, args ...any) {
		problems = append(problems, errs.New(errs.Invalid, "group "+g.Name+": "+format, args...))
	}
	if len(g.Members) == 0 {
		invalid("it has no members")
	}
	byName := map[string]component.Member{}
	ran := map[string]string{}
	for _, m := range g.Members {
		if _, ok := byName[m.Name]; ok {
			invalid("member %s is there twice", m.Name)
		}
		byName[m.Name] = m
		a, ok := table[m.Applet]
		switch {
		case !ok:
			invalid("member %s: there is no applet %q", m.Name, m.Applet)
		case a.Tool:
			invalid("member %s: %s is a tool and cannot be a member", m.Name, m.Applet)
		case ran[m.Applet] != "": // see applet.Func
			invalid("members %s and %s are both %s, which can run only once in a process", ran[m.Applet], m.Name, m.Applet)
		}
		ran[m.Applet] = m.Name
	}
	for _, m := range g.Members {
		for _, c := range m.StopAfter {
			if _, ok := byName[c]; !ok {
				invalid("member %s stops after %q, which is not a member", m.Name, c)
			}
		}
	}
	if circle := stopCircle(g.Members, byName); circle != nil {
		invalid("members wait for each other to stop: %s", strings.Join(circle, " → "))
	}
	return errors.Join(problems...)
}

// stopCircle returns members that would wait for each other's end for good, nil if there are none.
func stopCircle(members []component.Member, byName map[string]component.Member) []string {
	done := map[string]bool{}
	var visit func(name string, trail []string) []string
	visit = func(name string, trail []string) []string {
		if i := slices.Index(trail, name); i >= 0 {
			return append(slices.Clone(trail[i:]), name)
		}
		if done[name] {
			return nil
		}
		for _, c := range byName[name].StopAfter {
			if circle := visit(c, append(trail, name)); circle != nil {
				return circle
			}
		}
		done[name] = true
		return nil
	}
	for _, m := range members {
		if circle := visit(m.Name, nil); circle != nil {
			return circle
		}
	}
	return nil
}
