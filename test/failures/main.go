// Command failures makes the output of "go test -json" readable: it prints how each test ended as it ends, what a failed one printed, and at
// the end, in one place, which tests failed and with which words. Tests of whole clusters print thousands of lines on failure, and who reads the end of a log
// must not have to search for the one that matters.
//
//	go test -json ./... | go run ./test/failures
//
// It exits with 1 when a test or a package failed, when nothing was run at all, or when its input is not of "go test -json".
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	ok, err := show(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "error: reading what go test -json printed:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// event is a line of "go test -json", see "go doc test2json".
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64 // seconds
}

// said is a line of a test's own: where in which test file, and what. Helpers that report where nothing of theirs is wrong are no test files.
var said = regexp.MustCompile(`^\s+\w+_test\.go:\d+: `)

// ended is how a test ended, with its time.
var ended = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): `)

// whole is what a package says as a whole: that it left something behind, that it ran out of time.
var whole = regexp.MustCompile(`^(FAIL: |error: |panic: )`)

// most is how many lines of one message are repeated at the end.
const most = 12

// show prints what the events of r say, and tells whether everything passed.
func show(r io.Reader, w io.Writer) (bool, error) {
	words := map[string][]string{} // by package and test, as the next two
	kept := map[string][]string{}  // all that it printed, until it has ended
	left := map[string]int{}       // how many lines of its present message are still to be taken
	var failed []event
	passed := false
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadString('\n')
		if strings.TrimSpace(line) != "" {
			var e event
			if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &e) != nil {
				fmt.Fprint(w, line) // of the go command itself
				continue
			}
			key := e.Package + " " + e.Test
			switch e.Action {
			case "output", "build-output":
				if e.Test == "" || ended.MatchString(e.Output) {
					fmt.Fprint(w, e.Output)
				} else {
					kept[key] = append(kept[key], e.Output)
				}
				switch {
				case e.Test == "" && whole.MatchString(e.Output):
					words[key] = append(words[key], e.Output)
				case said.MatchString(e.Output):
					left[key] = most
				case !strings.HasPrefix(e.Output, "        "): // not the rest of a message
					left[key] = 0
				}
				if left[key] > 0 {
					left[key]--
					words[key] = append(words[key], e.Output)
				}
			case "fail":
				failed = append(failed, e)
				fmt.Fprint(w, strings.Join(kept[key], ""))
				delete(kept, key)
			case "skip": // with the reason
				fmt.Fprint(w, strings.Join(kept[key], ""))
				delete(kept, key)
			case "pass":
				passed = true
				delete(kept, key)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return false, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(kept)) {
		fmt.Fprintf(w, "%s did not come to its end:\n%s", key, strings.Join(kept[key], ""))
	}
	if len(failed) > 0 {
		fmt.Fprintln(w, "\nWhat failed:")
	}
	for _, e := range failed {
		fmt.Fprintf(w, "--- %s %s (%.0fs)\n", e.Package, e.Test, e.Elapsed)
		for _, l := range words[e.Package+" "+e.Test] {
			fmt.Fprint(w, l)
		}
	}
	return passed && len(failed) == 0, nil
}
