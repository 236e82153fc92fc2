package main

import (
	"strings"
	"testing"
)

func TestTheEndSaysWhatFailed(t *testing.T) {
	const in = `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:7: it is 1, want 2:\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"        the rest of it\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:9: a word of one that passes\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    cluster.go:350: end of a log:\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"        a line of a log\n"}
{"Action":"fail","Package":"p","Test":"TestA","Elapsed":3.2}
{"Action":"output","Package":"p","Test":"TestB","Output":"--- PASS: TestB (1.00s)\n"}
{"Action":"pass","Package":"p","Test":"TestB","Elapsed":1}
{"Action":"output","Package":"p","Test":"TestC","Output":"c\n"}
{"Action":"output","Package":"p","Output":"FAIL: left on this machine: a link\n"}
{"Action":"fail","Package":"p","Elapsed":9}
FAIL	q [build failed]
`
	var out strings.Builder
	ok, err := show(strings.NewReader(in), &out)
	if err != nil || ok {
		t.Errorf("%v, %v", ok, err)
	}
	all, end, found := strings.Cut(out.String(), "\nWhat failed:\n")
	const want = "--- p TestA (3s)\n    a_test.go:7: it is 1, want 2:\n        the rest of it\n--- p  (9s)\nFAIL: left on this machine: a link\n"
	if !found || end != want {
		t.Errorf("the end is\n%s\nwant\n%s", end, want)
	}
	if strings.Contains(all, "b_test.go:9") {
		t.Error("what a test printed that passed is printed")
	}
	for _, l := range []string{"a line of a log", "FAIL\tq [build failed]", "--- PASS: TestB", "did not come to its end:\nc\n"} {
		if !strings.Contains(all, l) {
			t.Errorf("%q is not printed", l)
		}
	}
}

func TestOnlyTestsThatPassedAreGood(t *testing.T) {
	for in, want := range map[string]bool{
		"":                                       false,
		"no test files\n":                        false,
		`{"Action":"pass","Package":"p"}` + "\n": true,
		`{"Action":"pass","Package":"p"}` + "\n" + `{"Action":"fail","Package":"q"}`: false,
	} {
		if ok, err := show(strings.NewReader(in), new(strings.Builder)); err != nil || ok != want {
			t.Errorf("%q: %v, %v, want %v", in, ok, err, want)
		}
	}
}
