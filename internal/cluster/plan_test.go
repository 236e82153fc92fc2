package cluster

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/errs"
)

func TestNamesThatCannotBeDirectoriesCgroupsAndContextsAreRefused(t *testing.T) {
	for name, ok := range map[string]bool{
		"k1s": true, "dev-2": true, "a": true, strings.Repeat("a", 30): true,
		"": false, "A": false, "-a": false, "a-": false, "2a": false, "a.b": false, "a/b": false, "..": false, "a b": false,
		strings.Repeat("a", 31): false, "ü": false, "a\n": false,
	} {
		if err := ValidateName(name); (err == nil) != ok || err != nil && !errs.Is(err, errs.Usage) {
			t.Errorf("%q: got %v", name, err)
		}
	}
}

func TestPublishedPortsAreRead(t *testing.T) {
	for in, want := range map[string]string{
		"8080:30080": "8080:30080/tcp", "8080:30080/udp": "8080:30080/udp", "30080": "30080:30080/tcp",
		"127.0.0.1:1:65535/tcp": "1:65535/tcp", "localhost:1:2": "1:2/tcp", "0.0.0.0:1:2": "0.0.0.0:1:2/tcp", "[::1]:1:2/udp": "[::1]:1:2/udp",
		"8080:80@agent:0": "8080:80/tcp@agent-0", "8080:80/udp@agents": "8080:80/udp@agents",
		"": "", "0:1": "", "1:65536": "", "a:1": "", "1:2/sctp": "", "1:2:3:4": "", "-1:1": "", "1:": "", "host:1:2": "", "1:2@nobody": "", "1:2@": "", "fe80::1%eth0:1:2": "",
	} {
		got, err := ParsePublish(in)
		switch {
		case want == "" && !errs.Is(err, errs.Usage):
			t.Errorf("%q: got %v, %v, want a usage error", in, got, err)
		case want != "" && (err != nil || got.String() != want):
			t.Errorf("%q: got %v, %v, want %s", in, got, err, want)
		}
	}
}

func TestEveryNodeHasAnAddressOfItsOwn(t *testing.T) {
	seen := map[netip.Addr]string{BridgeAddr(DefaultSubnet): "bridge", GatewayAddr(DefaultSubnet): "gateway"}
	for role, n := range map[Role]int{Server: MaxServers, Agent: MaxAgents} {
		for i := range n {
			a, name := NodeAddr(DefaultSubnet, role, i), NodeName(role, i)
			if by, ok := seen[a]; ok {
				t.Errorf("%s and %s both have %s", by, name, a)
			}
			if seen[a] = name; !DefaultSubnet.Contains(a) || a.As4()[3] == 255 {
				t.Errorf("%s has %s", name, a)
			}
			if len(name) > 15 {
				t.Errorf("%s is too long for the name of a link", name)
			}
		}
	}
}

func TestSubnets(t *testing.T) {
	for in, ok := range map[string]bool{
		"10.88.0.0/24": true, "192.168.7.0/24": true, "10.88.0.1/24": false, "10.0.0.0/8": false, "8.8.8.0/24": false, "fd00::/24": false,
	} {
		if err := ValidateSubnet(netip.MustParsePrefix(in)); (err == nil) != ok {
			t.Errorf("%s: got %v", in, err)
		}
	}
}

func TestOnePortIsNotTakenTwice(t *testing.T) {
	s := Spec{Name: "a", APIPort: 8080, Publish: []Publish{{HostPort: 8080, NodePort: 80, Proto: "tcp"}}}
	if err := ValidateSpec(s); err == nil || !strings.Contains(err.Error(), "the API") {
		t.Errorf("got %v", err)
	}
	s.Publish[0].Proto = "udp"
	if err := ValidateSpec(s); err != nil {
		t.Errorf("the same port of another protocol: got %v", err)
	}
	s.Publish[0].Proto, s.Publish[0].Address = "tcp", netip.MustParseAddr("192.168.7.1")
	if err := ValidateSpec(s); err != nil {
		t.Errorf("the same port of another address: got %v", err)
	}
	s.Publish[0].Address = netip.IPv4Unspecified()
	if err := ValidateSpec(s); err == nil {
		t.Error("the same port of all addresses: got no error")
	}
	s.Publish, s.Reach = nil, []Reach{{"127.0.0.1", 5000}, {"registry.example", 5000}}
	if err := ValidateSpec(s); err == nil || !strings.Contains(err.Error(), "10.88.0.1") {
		t.Errorf("two addresses to reach at one port: got %v", err)
	}
}

func TestPlansSayWhatIsDone(t *testing.T) {
	s := Spec{
		Name: "dev", Publish: []Publish{{HostPort: 8080, NodePort: 30080, Proto: "tcp"}}, Egress: true,
		Settings: []Setting{{"--isolation=none", "servers"}}, Env: []Env{{Name: "A", Value: "secret"}},
		Volumes: []Volume{{Host: "/a", Node: "/b", ReadOnly: true}}, Reach: []Reach{{"localhost", 5000}},
		Files: map[string][]byte{"registries.yaml": []byte("secret")}, Program: "/opt/k1s-next",
	}
	got := CreatePlan(s, []NodeSpec{{Role: Server, Bundles: []string{"app.tar"}}}, "k1s-dev")
	want := []string{
		"create cluster dev: a network namespace with a bridge at 10.88.0.1, unconnected to this machine's network",
		"start node server-0 at 10.88.0.10 in namespaces of its own",
		"give node server-0 the setting --isolation=none",
		"give node server-0 the variable A",
		"show /a of this machine to node server-0 as /b, read-only",
		"offer image bundle app.tar to node server-0",
		"give every node the file /etc/k1s/registries.yaml",
		"run the nodes with /opt/k1s-next",
		"forward 127.0.0.1:a free port to the Kubernetes API",
		"forward 127.0.0.1:8080 to port 30080 of the nodes (tcp)",
		"let nodes and pods reach localhost:5000 of this machine's network, at 10.88.0.1:5000",
		"let nodes and pods open connections to the outside, through 10.88.0.2",
		"add context k1s-dev to the kubeconfig",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestNodesKnowEachOtherByName(t *testing.T) {
	s := Spec{
		Name: "dev", Subnet: netip.MustParsePrefix("10.99.0.0/24"), Reach: []Reach{{Host: "db.example", Port: 5432}},
		Nodes: []NodeSpec{{Role: Server}, {Role: Server, Index: 2}, {Role: Agent}},
	}
	want := "127.0.0.1 localhost\n::1 localhost\n10.99.0.12 server-2 dev-server-2\n10.99.0.10 server-0\n10.99.0.30 agent-0\n10.99.0.1 host.k1s.internal db.example\n"
	if got := HostsFile(s, s.Nodes[1], "dev-server-2"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
