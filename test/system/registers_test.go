//go:build system

package system

import (
	"math"
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
