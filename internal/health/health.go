// Package health describes problems as data: a stable code, a severity, one sentence about what is the
// matter and one about what to do. Status, dashboard, preflight and docs/health-codes.md show the same.
// It finds nothing by itself: package platform checks the machine, the daemon watches components, and
// both hand Problems on. A leaf but for errs.
package health

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/errs"
)

// Severity says how bad a problem is.
type Severity string

// The severities.
const (
	Info    Severity = "info"    // worth knowing, nothing is lost
	Warning Severity = "warning" // works, but degraded or soon not
	Error   Severity = "error"   // does not work; at start it keeps k1s from starting
)

// rank orders severities, worst first.
func (s Severity) rank() int { return slices.Index([]Severity{Error, Warning, Info}, s) }

// Code names a sort of problem. Codes are part of the interface: scripts match on them.
type Code string

// Problem is one thing that is wrong now.
type Problem struct {
	Code     Code     `json:"code"`
	Severity Severity `json:"severity"`
	// Component is the part concerned, e.g. "kubelet"; "" for the machine.
	Component string `json:"component,omitempty"`
	// Text is a sentence without a full stop, with the values that matter: "port 6443 is in use by haproxy (pid 812)".
	Text string `json:"text"`
	// Remedy says what to do, in the imperative.
	Remedy string `json:"remedy,omitempty"`
	// Since is when it was first seen; zero in one-off reports such as `k1s check`.
	Since time.Time `json:"since,omitzero"`
}

// String is the problem on one line.
func (p Problem) String() string {
	s := fmt.Sprintf("%s: %s: ", p.Severity, p.Code)
	if p.Component != "" {
		s += p.Component + ": "
	}
	return s + p.Text
}

// New makes a problem with the severity and remedy that the registry gives to its code. It panics on a
// code that is not registered: that is a mistake in the program.
func New(code Code, format string, args ...any) Problem {
	d, ok := Lookup(code)
	if !ok {
		panic(fmt.Sprintf("health code %q is not registered in codes.go", code))
	}
	return Problem{Code: code, Severity: d.Severity, Text: fmt.Sprintf(format, args...), Remedy: d.Remedy}
}

// As returns p with another severity.
func (p Problem) As(s Severity) Problem { p.Severity = s; return p }

// Of returns p about a component.
func (p Problem) Of(component string) Problem { p.Component = component; return p }

// Fix returns p with a remedy that knows more than the registry's.
func (p Problem) Fix(format string, args ...any) Problem {
	p.Remedy = fmt.Sprintf(format, args...)
	return p
}

// FromError turns an error into a problem. An error in the chain with a method HealthCode() string
// chooses the code, otherwise it is fallback; the error's hint becomes the remedy.
func FromError(err error, fallback Code, component string) Problem {
	code := fallback
	var coded interface{ HealthCode() string }
	if errors.As(err, &coded) {
		if _, ok := Lookup(Code(coded.HealthCode())); ok {
			code = Code(coded.HealthCode())
		}
	}
	p := New(code, "%s", err.Error()).Of(component)
	if hint, _ := errs.HintOf(err); hint != "" {
		p.Remedy = hint
	}
	return p
}

// Sort orders problems worst first, then by code, component and text.
func Sort(problems []Problem) {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Severity.rank(), b.Severity.rank()), cmp.Compare(a.Code, b.Code),
			cmp.Compare(a.Component, b.Component), cmp.Compare(a.Text, b.Text))
	})
}

// Blocking returns the problems that keep k1s from starting.
func Blocking(problems []Problem) []Problem {
	var out []Problem
	for _, p := range problems {
		if p.Severity == Error {
			out = append(out, p)
		}
	}
	return out
}

// BlockingError is the error of a start that problems forbid, nil when none does. With a single one
// its remedy is the hint; with several each line carries its own.
func BlockingError(problems []Problem) error {
	bad := Blocking(problems)
	if len(bad) == 0 {
		return nil
	}
	Sort(bad)
	if len(bad) == 1 {
		return errs.Hint(errors.New(bad[0].Text), "%s", bad[0].Remedy)
	}
	lines := make([]string, len(bad))
	for i, p := range bad {
		lines[i] = fmt.Sprintf("  %s: %s\n    %s", p.Code, p.Text, p.Remedy)
	}
	return fmt.Errorf("%d problems are in the way:\n%s", len(bad), strings.Join(lines, "\n"))
}

// Board collects the current problems of a running node. Each source reports its complete list again
// and again; the board keeps since when each problem has been there. Safe for concurrent use.
type Board struct {
	now func() time.Time

	mu sync.Mutex
	// bySource is guarded by mu.
	bySource map[string][]Problem
}

// NewBoard returns an empty board; now is the clock, time.Now outside of tests.
func NewBoard(now func() time.Time) *Board {
	return &Board{now: now, bySource: map[string][]Problem{}}
}

// Report replaces what source said before; an empty list means all is well. Two problems with the same
// code and component, in order, are the same problem even if the text changed (it may hold a number that
// moves), so Since stays. It returns the problems that are new.
func (b *Board) Report(source string, problems []Problem) (fresh []Problem) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := map[key]Problem{}
	for i, k := range keys(b.bySource[source]) {
		before[k] = b.bySource[source][i]
	}
	kept := slices.Clone(problems)
	for i, k := range keys(kept) {
		if old, ok := before[k]; ok {
			kept[i].Since = old.Since
			continue
		}
		if kept[i].Since.IsZero() {
			kept[i].Since = b.now()
		}
		fresh = append(fresh, kept[i])
	}
	if len(kept) == 0 {
		delete(b.bySource, source)
		return nil
	}
	b.bySource[source] = kept
	return fresh
}

// key tells problems of one source apart: nth counts those with the same code and component.
type key struct {
	code      Code
	component string
	nth       int
}

func keys(problems []Problem) []key {
	count := map[key]int{}
	out := make([]key, len(problems))
	for i, p := range problems {
		k := key{code: p.Code, component: p.Component}
		n := count[k]
		count[k]++
		k.nth = n
		out[i] = k
	}
	return out
}

// List returns all current problems, worst first.
func (b *Board) List() []Problem {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Problem
	for _, ps := range b.bySource {
		out = append(out, ps...)
	}
	Sort(out)
	return out
}
