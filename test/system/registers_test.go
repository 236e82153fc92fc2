//go:build system

package system

import (
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/anishathalye/porcupine"
)

func TestWhatRegistersMayAnswer(t *testing.T) {
	read := func(call, ret int64, value string) porcupine.Operation {
		return porcupine.Operation{Input: registerInput{register: "r"}, Output: registerOutput{value: value}, Call: call, Return: ret}
	}
	write := func(call, ret int64, old, new, result string) porcupine.Operation {
		return porcupine.Operation{Input: registerInput{register: "r", write: true, old: old, new: new}, Output: registerOutput{result: result}, Call: call, Return: ret}
	}
	const never = math.MaxInt64
	for name, tc := range map[string]struct {
		history []porcupine.Operation
		want    bool
	}{
		"in order":                                  {[]porcupine.Operation{read(1, 2, "0"), write(3, 4, "0", "a", applied), read(5, 6, "a")}, true},
		"an acknowledged write is lost":             {[]porcupine.Operation{write(1, 2, "0", "a", applied), read(3, 4, "0")}, false},
		"an old value after a newer one":            {[]porcupine.Operation{write(1, 9, "0", "a", applied), read(2, 3, "a"), read(4, 5, "0")}, false},
		"two changes of one value":                  {[]porcupine.Operation{write(1, 2, "0", "a", applied), write(1, 2, "0", "b", applied)}, false},
		"a conflict with nothing":                   {[]porcupine.Operation{write(1, 2, "0", "a", conflict), read(3, 4, "0")}, false},
		"a conflict":                                {[]porcupine.Operation{write(1, 2, "0", "b", applied), write(1, 2, "0", "a", conflict)}, true},
		"an unknown write that was not applied":     {[]porcupine.Operation{write(1, never, "0", "a", unknown), write(3, 4, "0", "b", applied), read(5, 6, "b")}, true},
		"an unknown write that is applied later":    {[]porcupine.Operation{write(1, never, "0", "a", unknown), read(2, 3, "0"), read(4, 5, "a")}, true},
		"an unknown write that is applied, and not": {[]porcupine.Operation{write(1, never, "0", "a", unknown), read(2, 3, "a"), read(4, 5, "0")}, false},
		"an unknown write over a later one":         {[]porcupine.Operation{write(1, never, "0", "a", unknown), write(2, 3, "0", "b", applied), read(4, 5, "a")}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := porcupine.CheckOperations(registerModel, tc.history); got != tc.want {
				t.Errorf("it is found to be one of a register: %v, want %v", got, tc.want)
			}
		})
	}
}

func TestWhatWatchersHaveToBeTold(t *testing.T) {
	a, b, c := change{"x", "a"}, change{"x", "b"}, change{"x", "c"}
	acked := map[int]change{11: a, 12: b, 14: c}
	at := func(from, listed, last int, events map[int]change) *chapter {
		return &chapter{from: from, listed: map[string]int{"x": listed}, last: last, events: events}
	}
	for name, tc := range map[string]struct {
		watchers [][]*chapter
		want     []string
	}{
		"everything":                           {[][]*chapter{{at(10, 9, 14, map[int]change{11: a, 12: b, 14: c})}}, nil},
		"one is lost":                          {[][]*chapter{{at(10, 9, 14, map[int]change{11: a, 14: c})}}, []string{"does not tell of {x b}, revision 12"}},
		"nothing before the first list":        {[][]*chapter{{at(12, 12, 14, map[int]change{14: c})}}, nil},
		"the list has what was not told":       {[][]*chapter{{at(10, 9, 11, map[int]change{11: a}), at(15, 14, 15, nil)}}, nil},
		"neither told nor in the next list":    {[][]*chapter{{at(10, 9, 11, map[int]change{11: a}), at(15, 12, 15, nil)}}, []string{"the list of revision 15 at 0 has x of revision 12, and not {x c} of 14"}},
		"one of which only another was told":   {[][]*chapter{{at(10, 9, 13, map[int]change{11: a, 12: b, 13: b})}, {at(10, 9, 14, map[int]change{11: a, 12: b, 14: c})}}, []string{"the watch at 1 does not tell of {x b}, revision 13"}},
		"another change than the acknowledged": {[][]*chapter{{at(10, 9, 14, map[int]change{11: a, 12: c, 14: c})}}, []string{"revision 12 is {x b}, and the watch at 0 tells of {x c}"}},
	} {
		t.Run(name, func(t *testing.T) {
			watchers := map[string]*watcher{}
			for i, chapters := range tc.watchers {
				watchers[strconv.Itoa(i)] = &watcher{chapters: chapters}
			}
			got := untold(acked, watchers)
			if len(got) != len(tc.want) {
				t.Fatalf("found is %q, want %q", got, tc.want)
			}
			for i := range got {
				if !strings.Contains(got[i], tc.want[i]) {
					t.Errorf("found is %q, want %q", got[i], tc.want[i])
				}
			}
		})
	}
}
