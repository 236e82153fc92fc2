package cluster

import (
	"testing"

	"k1s.io/k1s/internal/errs"
)

func TestSelectorsAreRead(t *testing.T) {
	for in, want := range map[string]string{
		"all": "all", "servers": "servers", "server": "servers", "agents": "agents", "agent:*": "agents",
		"agent-1": "agent-1", "agent:1": "agent-1", "agent:0,1": "agent-0,agent-1", "server:0,agents": "server-0,agents",
		"agent-0,agent-0": "agent-0", "agents,all": "all", "server-0,agent:2,3": "server-0,agent-2,agent-3",
		"": "", "nodes": "", "agent-": "", "agent-01": "", "agent--1": "", "server:99": "", "1": "", "agents,1": "", "agent:*,1": "", "king:0": "", "agent-0,": "",
	} {
		got, err := ParseSelector(in)
		switch {
		case want == "" && !errs.Is(err, errs.Usage):
			t.Errorf("%q: got %v, %v, want a usage error", in, got, err)
		case want != "" && (err != nil || got.String() != want):
			t.Errorf("%q: got %v, %v, want %s", in, got, err, want)
		}
	}
}

func TestSelectorsChooseNodesThatAreAddedLater(t *testing.T) {
	for _, c := range []struct {
		on    Selector
		role  Role
		index int
		want  bool
	}{
		{"", Agent, 7, true}, {"agents", Agent, 7, true}, {"agents", Server, 0, false}, {"servers", Server, 2, true},
		{"agent-1", Agent, 1, true}, {"agent-1", Agent, 11, false}, {"server-0,agent-1", Agent, 1, true},
	} {
		if got := c.on.Matches(c.role, c.index); got != c.want {
			t.Errorf("%q and %s: got %v", c.on, NodeName(c.role, c.index), got)
		}
	}
}

func TestASelectorIsCutOffWhereItIsOne(t *testing.T) {
	for _, c := range []struct {
		in    string
		loose bool
		text  string
		on    Selector
		ok    bool
	}{
		{"a=b", false, "a=b", "", true},
		{"a=b@agents", false, "a=b", "agents", true},
		{"a=b@agnets", false, "a=b", "", false},
		{"P=http://me:word@server.example:3128", true, "P=http://me:word@server.example:3128", "", true},
		{"P=http://me:word@server.example:3128@agent-0", true, "P=http://me:word@server.example:3128", "agent-0", true},
	} {
		text, on, err := CutSelector(c.in, c.loose)
		if text != c.text || on != c.on || (err == nil) != c.ok {
			t.Errorf("%s: got %q, %q, %v", c.in, text, on, err)
		}
	}
}
