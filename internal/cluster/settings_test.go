package cluster

import (
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/errs"
)

func TestVolumesAreRead(t *testing.T) {
	for in, want := range map[string]string{
		"/a:/b": "/a:/b", "a:/b/": "/here/a:/b", "/a/:/b:ro": "/a:/b:ro", "/a:/b:rw@agents": "/a:/b@agents", ".:/src@agent:0": "/here:/src@agent-0",
		"/a:/var/lib/k1s/storage": "/a:/var/lib/k1s/storage", "/a:/x@y@all": "/a:/x@y", "/ca.crt:/etc/k1s/ca.crt:ro": "/ca.crt:/etc/k1s/ca.crt:ro",
		"": "", "/a": "", "/a:": "", ":/b": "", "/a:b": "", "/a:/b:rx": "", "/a:/b:ro:ro": "", "/a:/b@nobody": "",
		"/a:/": "", "/a:/var/lib/k1s": "", "/a:/usr/local/bin": "", "/a:/proc/x": "", "/a:/opt/k1s/k1s": "", "/a:/b/../etc": "",
	} {
		got, err := ParseVolume(in, "/here")
		switch {
		case want == "" && !errs.Is(err, errs.Usage):
			t.Errorf("%q: got %v, %v, want a usage error", in, got, err)
		case want != "" && (err != nil || got.String() != want):
			t.Errorf("%q: got %v, %v, want %s", in, got, err, want)
		}
	}
}

func TestVariablesAreRead(t *testing.T) {
	for in, want := range map[string]string{
		"A=b": "A=b", "A=": "A=", "A=b=c": "A=b=c", "A=b@agents": "A=b@agents",
		"HTTPS_PROXY=http://me:x@proxy.example:3128": "HTTPS_PROXY=http://me:x@proxy.example:3128",
		"": "", "A": "", "=b": "", "A B=c": "", "K1S_NODE_IP=1.2.3.4": "", "PATH=/x": "",
	} {
		got, err := ParseEnv(in)
		switch {
		case want == "" && !errs.Is(err, errs.Usage):
			t.Errorf("%q: got %v, %v, want a usage error", in, got, err)
		case want != "" && (err != nil || got.String() != want):
			t.Errorf("%q: got %v, %v, want %s", in, got, err, want)
		}
	}
	// A value may be a password.
	if _, err := ParseEnv("K1S_TOKEN=secret"); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("the error tells the value: %v", err)
	}
}

func TestAddressesToReachAreRead(t *testing.T) {
	for in, want := range map[string]string{
		"5000": "127.0.0.1:5000", "localhost:5000": "localhost:5000", "registry.example:443": "registry.example:443", "[::1]:80": "[::1]:80",
		"": "", "a": "", ":80": "", "a:0": "", "a:70000": "", "0": "",
	} {
		got, err := ParseReach(in)
		switch {
		case want == "" && !errs.Is(err, errs.Usage):
			t.Errorf("%q: got %v, %v, want a usage error", in, got, err)
		case want != "" && (err != nil || got.String() != want):
			t.Errorf("%q: got %v, %v, want %s", in, got, err, want)
		}
	}
	s := Spec{Reach: []Reach{{"127.0.0.1", 1}, {"registry.example", 443}, {"localhost", 2}}}
	if got := s.HostNames(); !slices.Equal(got, []string{HostName, "registry.example"}) {
		t.Errorf("names: %v", got)
	}
}

func TestEachNodeGetsWhatIsMeantForIt(t *testing.T) {
	s := Spec{
		Settings: []Setting{{"--isolation=none", ""}, {"--node-labels=tier=db", "agents"}, {"--node-taints=a=b:NoSchedule", "agent-1"}},
		Volumes:  []Volume{{Host: "/a", Node: "/data/a"}, {Host: "/d", Node: "/data", On: "agents"}},
		Env:      []Env{{Name: "A", Value: "1", On: "servers"}, {Name: "B", Value: "2"}},
	}
	server, agent := NodeSpec{Role: Server}, NodeSpec{Role: Agent, Index: 1, Args: []string{"--log-level=debug"}}
	if got := strings.Join(NodeArgs(s, agent), " "); got != "--log-level=debug --isolation=none --node-labels=tier=db --node-taints=a=b:NoSchedule" {
		t.Errorf("arguments of an agent: %s", got)
	}
	if got := strings.Join(NodeArgs(s, server), " "); got != "--isolation=none" {
		t.Errorf("arguments of the server: %s", got)
	}
	// What is further up is mounted first, or it would hide the other.
	if got := s.VolumesOf(agent); len(got) != 2 || got[0].Node != "/data" {
		t.Errorf("volumes of an agent: %v", got)
	}
	if got := strings.Join(NodeEnviron(s, server)[:2], " "); got != "A=1 B=2" {
		t.Errorf("variables of the server begin with %s", got)
	}
	if got := NodeEnviron(s, agent)[0]; got != "B=2" {
		t.Errorf("variables of an agent begin with %s", got)
	}
}

func TestWhatIsForNoNodeIsRefused(t *testing.T) {
	nodes := []NodeSpec{{Role: Server}, {Role: Agent}}
	for name, s := range map[string]Spec{
		"agent-1":         {Volumes: []Volume{{Host: "/a", Node: "/b", On: "agent-1"}}},
		"server-2":        {Publish: []Publish{{HostPort: 1, NodePort: 1, Proto: "tcp", On: "server-2"}}},
		"agent-3":         {Settings: []Setting{{"--x", "agent-3"}}},
		"agent-4":         {Env: []Env{{Name: "A", Value: "secret", On: "agent-4"}}},
		"two volumes":     {Volumes: []Volume{{Host: "/a", Node: "/b"}, {Host: "/c", Node: "/b", On: "agents"}}},
		"agents later on": {Volumes: []Volume{{Host: "/a", Node: "/b", On: "agents"}}},
	} {
		err := ValidateFor(s, nodes)
		if name == "agents later on" {
			if err = ValidateFor(s, nodes[:1]); err != nil {
				t.Error(err)
			}
			continue
		}
		if !errs.Is(err, errs.Usage) || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
