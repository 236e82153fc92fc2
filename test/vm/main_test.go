package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/test/vm/report"
)

func TestSourcesAreThoseOfApt(t *testing.T) {
	s, err := parseSources("http://mirror.test/debian/ trixie main\nhttp://mirror.test/debian/ trixie main\nhttp://mirror.test/debian-security/ trixie-security main\n")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"deb http://mirror.test/debian/ trixie main", "deb http://mirror.test/debian-security/ trixie-security main"}
	if s.suite != "trixie" || !slices.Equal(s.lines, want) {
		t.Errorf("suite %q, lines %q", s.suite, s.lines)
	}
	if _, err := parseSources("\n"); err == nil {
		t.Error("no sources are no error")
	}
}

func TestTheVerdictNeedsEveryCheck(t *testing.T) {
	stream := `{"check":"one","took":1500000000,"output":"a\nb"}` + "\n" + `{"check":"two","failure":"it is not so"}` + "\n"
	for name, c := range map[string]struct{ stream, verdict string }{
		"all made":  {`{"check":"one"}` + "\n" + `{"last":true}`, ""},
		"one fails": {stream + `{"last":true}`, "1 of 2 checks failed"},
		"cut short": {`{"check":"one"}`, "the machine ended after 1 checks, before it had made all"},
		"nothing":   {"", "the machine ended after 0 checks, before it had made all"},
	} {
		var all tally
		if err := report.Read(strings.NewReader(c.stream), all.add); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		got := ""
		if err := all.verdict(); err != nil {
			got = err.Error()
		}
		if got != c.verdict {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := (&tally{}).text(report.Result{Check: "one", Took: 1500 * time.Millisecond, Output: "a\nb\n"}); got != "ok   one (1.5s)\n       a\n       b\n" {
		t.Errorf("%q", got)
	}
}

func TestTheMachineHasNoWayOut(t *testing.T) {
	o, err := parse([]string{"-cgroup", "v1"})
	if err != nil {
		t.Fatal(err)
	}
	args := strings.Join(machine{options: o, root: "root", disk: "checks.img"}.arguments(), " ")
	for _, want := range []string{"-nodefaults", "-netdev hubport,id=lan,hubid=0", "systemd.unified_cgroup_hierarchy=0", "snapshot=on"} {
		if !strings.Contains(args, want) {
			t.Errorf("%q is not in %s", want, args)
		}
	}
	if n := strings.Count(args, "-netdev"); n != 1 || strings.Contains(args, "-netdev user") {
		t.Errorf("network: %s", args)
	}
}
