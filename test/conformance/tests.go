package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"k1s.io/k1s/internal/errs"
)

// suite is what ginkgo sets before the name of a test when it compares it with a focus.
const suite = "Kubernetes e2e suite "

// listed is a line of `e2e.test --list-tests`: where the test is, and its name.
var listed = regexp.MustCompile(`^ {4}\S+:\d+: (.+)$`)

// parseTests returns the names in the output of `e2e.test --list-tests`.
func parseTests(out string) ([]string, error) {
	var names []string
	for line := range strings.Lines(out) {
		if m := listed.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil {
			names = append(names, m[1])
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("the test binary lists no tests: %.300q", out)
	}
	return names, nil
}

// condition is why tests are left out that a machine cannot run.
type condition struct {
	tests  *regexp.Regexp
	reason string
}

// facts are what tests may need of a machine.
type facts struct {
	// noSCTP is why there is no SCTP, nil where there is.
	noSCTP error
}

// conditions says which tests cannot succeed on a machine, whatever k1s does.
func conditions(f facts) []condition {
	var out []condition
	if f.noSCTP != nil {
		out = append(out, condition{
			// Others name SCTP in a policy and send TCP, which works everywhere.
			regexp.MustCompile(`\[Feature:SCTPConnectivity\]`),
			fmt.Sprintf("this kernel has no SCTP (%v), and pods cannot open a socket of it", f.noSCTP),
		})
	}
	return out
}

// plan is which tests are run.
type plan struct {
	run  []string
	left []leftOut
}

// leftOut is a test that was chosen and is not run.
type leftOut struct {
	test string
	why  condition
}

// choose makes a plan: tests whose names match focus, and not skip where that is not nil, unless a condition forbids them.
func choose(all []string, focus, skip *regexp.Regexp, forbidden []condition) (plan, error) {
	var p plan
	for _, name := range all {
		text := suite + name
		if !focus.MatchString(text) || skip != nil && skip.MatchString(text) {
			continue
		}
		if i := slices.IndexFunc(forbidden, func(c condition) bool { return c.tests.MatchString(text) }); i >= 0 {
			p.left = append(p.left, leftOut{name, forbidden[i]})
		} else {
			p.run = append(p.run, name)
		}
	}
	if len(p.run) == 0 {
		return p, errs.Hint(errs.New(errs.Usage, "of %d tests none is left to run: %d match, and cannot be run here", len(all), len(p.left)),
			"see what there is: go run ./test/conformance -only list -focus .")
	}
	return p, nil
}

// names are those of all tests that were chosen, with the reason behind those that are not run.
func (p plan) names() []string {
	names := slices.Clone(p.run)
	for _, l := range p.left {
		names = append(names, l.test+" (not run: "+l.why.reason+")")
	}
	return names
}

// skips are the regular expressions of what is not run for a reason.
func (p plan) skips() []string {
	var out []string
	for _, l := range p.left {
		if s := l.why.tests.String(); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
