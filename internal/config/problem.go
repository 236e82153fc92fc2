package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"k1s.io/k1s/internal/errs"
)

// Problem is one thing that is wrong with what the user wrote.
type Problem struct {
	Path    string `json:"path,omitempty"` // the field, e.g. "spec.api.port"; "" if the whole file is meant
	Message string `json:"message"`        // what is wrong, with the value
	Hint    string `json:"hint,omitempty"` // what to do; "" if the message says it
	Origin  Origin `json:"origin"`         // where it was written
	Err     error  `json:"-"`              // the cause, where there is one
}

// String is one line: where, which field, what.
func (p Problem) String() string {
	var b strings.Builder
	if p.Origin.Name != "" {
		b.WriteString(p.Origin.String() + ": ")
	}
	if p.Path != "" {
		b.WriteString(shorten(p.Path) + ": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// InvalidError is the error of Load and Effective: everything that is wrong, not only the first thing.
type InvalidError struct{ Problems []Problem }

// Error lists the problems, one a line, each with its hint below it. The hint of a single problem is
// left to errs.HintOf.
func (e *InvalidError) Error() string {
	if len(e.Problems) == 1 {
		return e.Problems[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "the configuration has %d problems:", len(e.Problems))
	for _, p := range e.Problems {
		b.WriteString("\n  " + p.String())
		if p.Hint != "" {
			b.WriteString("\n    " + p.Hint)
		}
	}
	return b.String()
}

// Unwrap gives the causes, so that errors.Is finds fs.ErrNotExist.
func (e *InvalidError) Unwrap() []error {
	var list []error
	for _, p := range e.Problems {
		if p.Err != nil {
			list = append(list, p.Err)
		}
	}
	return list
}

// Invalid makes one error of kind errs.Invalid of all problems, in the order of the files; nil if there
// are none. errors.As finds the *InvalidError in it.
func Invalid(problems []Problem) error {
	if len(problems) == 0 {
		return nil
	}
	list := slices.Clone(problems)
	rank := map[string]int{} // sources keep the order in which they were met
	for _, p := range list {
		if _, ok := rank[p.Origin.Name]; !ok {
			rank[p.Origin.Name] = len(rank)
		}
	}
	slices.SortStableFunc(list, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(rank[a.Origin.Name], rank[b.Origin.Name]),
			cmp.Compare(a.Origin.Line, b.Origin.Line), cmp.Compare(a.Origin.Column, b.Origin.Column))
	})
	err := errs.As(errs.Invalid, &InvalidError{Problems: list})
	if len(list) == 1 && list[0].Hint != "" {
		return errs.Hint(err, "%s", list[0].Hint)
	}
	return err
}
