package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what we read of ginkgo's JSON, see types.Report of github.com/onsi/ginkgo/v2.
type report struct {
	SpecialSuiteFailureReasons []string
	SpecReports                []spec
}

type spec struct {
	ContainerHierarchyTexts    []string
	LeafNodeText               string
	LeafNodeType               string
	State                      string
	RunTime                    time.Duration
	Failure                    failure
	AdditionalFailures         []struct{ Failure failure }
	CapturedGinkgoWriterOutput string
	CapturedStdOutErr          string
}

type failure struct {
	Message, ForwardedPanic string
	Location                struct {
		FileName, FullStackTrace string
		LineNumber               int
	}
}

func readReport(file string) (report, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return report{}, err
	}
	var suites []report
	if err := json.Unmarshal(b, &suites); err != nil {
		return report{}, fmt.Errorf("reading %s: %w", file, err)
	}
	if len(suites) != 1 {
		return report{}, fmt.Errorf("%s has the results of %d suites, and should of one", file, len(suites))
	}
	return suites[0], nil
}

// name is how tests are listed and chosen.
func (s spec) name() string {
	texts := slices.Clone(s.ContainerHierarchyTexts)
	if s.LeafNodeText != "" {
		texts = append(texts, s.LeafNodeText)
	}
	return strings.Join(texts, " ")
}

type result string

const (
	passed  result = "passed"
	failed  result = "FAILED"
	skipped result = "skipped"
	notRun  result = "NOT RUN"
)

// outcome is what came of a test, or of what is done before and after all tests.
type outcome struct {
	test   string
	result result
	reason string // why it was skipped, or the beginning of what it failed with
	took   time.Duration
	spec   spec
	log    string // file with all that a failed test said
}

type outcomes []outcome

// outcomes tells what came of each test of the plan, and of all else that failed. A test that the report says nothing of was not run, and
// so was one that was left out without a reason: ginkgo does so with those that are left when time is over.
func (r report) outcomes(p plan) outcomes {
	var out outcomes
	specs := map[string]spec{}
	for _, s := range r.SpecReports {
		if s.LeafNodeType == "It" {
			specs[s.name()] = s
		} else if s.State != "passed" && s.State != "skipped" {
			out = append(out, outcome{test: "(" + s.LeafNodeType + ")", result: failed, reason: firstLine(s.Failure.Message), took: s.RunTime, spec: s})
		}
	}
	for _, name := range p.run {
		s, ok := specs[name]
		o := outcome{test: name, took: s.RunTime, spec: s, reason: firstLine(s.Failure.Message)}
		switch {
		case !ok, s.State == "skipped" && s.Failure.Message == "", s.State == "pending":
			o.result = notRun
		case s.State == "passed":
			o.result = passed
		case s.State == "skipped":
			o.result = skipped
		default: // failed, panicked, interrupted, aborted, timedout
			o.result = failed
		}
		out = append(out, o)
	}
	for _, l := range p.left {
		out = append(out, outcome{test: l.test, result: skipped, reason: l.why.reason})
	}
	return out
}

func (o outcomes) count(r result) int {
	n := 0
	for _, x := range o {
		if x.result == r {
			n++
		}
	}
	return n
}

var unsafe = regexp.MustCompile(`[^A-Za-z0-9.]+`)

// writeLogs writes a file into dir for each test that failed, and says in the outcomes where.
func (o outcomes) writeLogs(dir string) error {
	for i, x := range o {
		if x.result != failed {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		name := strings.Trim(unsafe.ReplaceAllString(x.test, "-"), "-")
		if len(name) > 100 { // the end is what differs
			name = name[len(name)-100:]
		}
		o[i].log = filepath.Join(dir, fmt.Sprintf("%03d-%s.log", i+1, name))
		if err := os.WriteFile(o[i].log, []byte(x.spec.text()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// text is all that is known of a test.
func (s spec) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s after %s\n", s.name(), s.State, s.RunTime.Round(time.Millisecond))
	failures := []failure{s.Failure}
	for _, more := range s.AdditionalFailures {
		failures = append(failures, more.Failure)
	}
	for _, f := range failures {
		fmt.Fprintf(&b, "\n%s\n%s\n%s:%d\n%s\n", f.Message, f.ForwardedPanic, f.Location.FileName, f.Location.LineNumber, f.Location.FullStackTrace)
	}
	fmt.Fprintf(&b, "\n%s\n%s\n", s.CapturedGinkgoWriterOutput, s.CapturedStdOutErr)
	return b.String()
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	if r := []rune(line); len(r) > 200 {
		return string(r[:200]) + "…"
	}
	return line
}

// list has a line for each test.
func (o outcomes) list() string {
	var b strings.Builder
	for _, x := range o {
		fmt.Fprintf(&b, "%-7s %6s  %s", x.result, x.took.Round(time.Second), x.test)
		if x.reason != "" && x.result != passed {
			fmt.Fprintf(&b, ": %s", x.reason)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

var group = regexp.MustCompile(`^\[[^]]+\]`)

// table counts the results by the group that owns the tests, and names all that did not pass.
func (o outcomes) table() string {
	var groups []string
	by := map[string]outcomes{}
	for _, x := range o {
		g := group.FindString(x.test)
		if g == "" {
			g = "(others)"
		}
		if by[g] == nil {
			groups = append(groups, g)
		}
		by[g] = append(by[g], x)
	}
	slices.Sort(groups)
	if len(groups) > 1 {
		groups, by["all"] = append(groups, "all"), o
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "GROUP\tPASSED\tFAILED\tSKIPPED\tNOT RUN")
	for _, g := range groups {
		of := by[g]
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\n", g, of.count(passed), of.count(failed), of.count(skipped), of.count(notRun))
	}
	_ = w.Flush() // to memory
	for _, r := range []result{failed, notRun, skipped} {
		for _, x := range o {
			if x.result != r {
				continue
			}
			fmt.Fprintf(&b, "%s  %s\n", r, x.test)
			if x.reason != "" {
				fmt.Fprintf(&b, "         %s\n", x.reason)
			}
			if x.log != "" {
				fmt.Fprintf(&b, "         log: %s\n", x.log)
			}
		}
	}
	return b.String()
}

// verdict is nil when all that was run has passed, and something was.
func (o outcomes) verdict(r report) error {
	var err error
	if n, m := o.count(failed), o.count(notRun); n+m > 0 {
		err = fmt.Errorf("%d tests failed and %d were not run, of %d", n, m, len(o))
	} else if o.count(passed) == 0 {
		err = errors.New("no test was run")
	}
	if len(r.SpecialSuiteFailureReasons) > 0 {
		err = errors.Join(err, errors.New(strings.Join(r.SpecialSuiteFailureReasons, "; ")))
	}
	return err
}
