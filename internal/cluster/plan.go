package cluster

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"k1s.io/k1s/internal/errs"
)

// DefaultName is the cluster that is meant when none is named.
const DefaultName = "k1s"

// DefaultSubnet joins the nodes of a cluster.
var DefaultSubnet = netip.MustParsePrefix("10.88.0.0/24")

// DefaultPrivate are the networks of pods and services that a node has when its configuration says nothing.
var DefaultPrivate = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16")}

// Places in a cluster's subnet. Nodes have fixed addresses, so that a restart never moves one.
const (
	bridgeHost  = 1
	gatewayHost = 2
	serverHost  = 10
	agentHost   = 30

	// MaxServers and MaxAgents are how many of each the address plan has room for.
	MaxServers = agentHost - serverHost
	MaxAgents  = 254 - agentHost
)

// BridgeAddr is the address of the cluster's bridge, from which published ports are reached.
func BridgeAddr(subnet netip.Prefix) netip.Addr { return host(subnet, bridgeHost) }

// GatewayAddr is where the way out is, if there is one.
func GatewayAddr(subnet netip.Prefix) netip.Addr { return host(subnet, gatewayHost) }

// NodeAddr is the address of a node. Role and index are valid, see ValidateNode.
func NodeAddr(subnet netip.Prefix, role Role, index int) netip.Addr {
	if role == Agent {
		return host(subnet, agentHost+index)
	}
	return host(subnet, serverHost+index)
}

func host(subnet netip.Prefix, n int) netip.Addr {
	if !subnet.IsValid() {
		subnet = DefaultSubnet
	}
	a := subnet.Masked().Addr().As4()
	a[3] += byte(n)
	return netip.AddrFrom4(a)
}

// NodeName is the name of a node, e.g. "agent-2".
func NodeName(role Role, index int) string { return string(role) + "-" + strconv.Itoa(index) }

// maxName keeps the path of a node's control socket below the 108 bytes a socket address has room for.
const maxName = 30

var nameRE = regexp.MustCompile(`^[a-z]([-a-z0-9]*[a-z0-9])?$`)

// ValidateName checks a cluster's name: it becomes a directory, a cgroup and a kubeconfig context.
func ValidateName(name string) error {
	switch {
	case name == "":
		return errs.Hint(errs.New(errs.Usage, "the cluster's name is empty"), "leave it out for %q", DefaultName)
	case len(name) > maxName:
		return errs.New(errs.Usage, "cluster name %q is %d characters long; %d are allowed", name, len(name), maxName)
	case !nameRE.MatchString(name):
		return errs.Hint(errs.New(errs.Usage, "%q cannot be the name of a cluster", name),
			"use lower-case letters, digits and dashes, and begin with a letter")
	}
	return nil
}

// ValidateNode checks role and index.
func ValidateNode(n NodeSpec) error {
	limit, ok := map[Role]int{Server: MaxServers, Agent: MaxAgents}[n.Role]
	if !ok {
		return errs.New(errs.Invalid, "%q is no role of a node: server or agent", n.Role)
	}
	if n.Index < 0 || n.Index >= limit {
		return errs.New(errs.Invalid, "%s %d: a cluster has room for %d of them", n.Role, n.Index, limit)
	}
	return nil
}

// ValidateSubnet checks Spec.Subnet. Only /24 of private IPv4 space: the address plan is made for it.
func ValidateSubnet(p netip.Prefix) error {
	if !p.IsValid() { // DefaultSubnet
		return nil
	}
	if !p.Addr().Is4() || p.Bits() != 24 || !p.Addr().IsPrivate() || p != p.Masked() {
		return errs.Hint(errs.New(errs.Invalid, "%s cannot be the subnet of a cluster", p), "use a private IPv4 /24 such as %s", DefaultSubnet)
	}
	return nil
}

// Publish makes a port of the cluster's nodes appear on 127.0.0.1 of this machine.
type Publish struct {
	HostPort uint16 `json:"hostPort"`
	NodePort uint16 `json:"nodePort"`
	Proto    string `json:"proto"` // tcp or udp
}

// String is the form ParsePublish reads.
func (p Publish) String() string {
	return fmt.Sprintf("%d:%d/%s", p.HostPort, p.NodePort, p.Proto)
}

// ParsePublish reads [127.0.0.1:]HOSTPORT:NODEPORT[/tcp|/udp]; a single number is both ports.
func ParsePublish(s string) (Publish, error) {
	bad := func(why string) (Publish, error) {
		return Publish{}, errs.Hint(errs.New(errs.Usage, "cannot publish %q: %s", s, why), "write HOSTPORT:NODEPORT, e.g. 8080:30080 or 5353:30053/udp")
	}
	ports, proto, ok := strings.Cut(s, "/")
	if !ok {
		proto = "tcp"
	}
	if proto != "tcp" && proto != "udp" {
		return bad("the protocol is tcp or udp")
	}
	if parts := strings.Split(ports, ":"); len(parts) == 3 {
		if parts[0] != "127.0.0.1" && parts[0] != "localhost" {
			return bad("ports are published on 127.0.0.1 only")
		}
		ports = parts[1] + ":" + parts[2]
	}
	h, n, ok := strings.Cut(ports, ":")
	if !ok {
		n = h
	}
	p := Publish{Proto: proto}
	for _, f := range []struct {
		text string
		to   *uint16
	}{{h, &p.HostPort}, {n, &p.NodePort}} {
		v, err := strconv.ParseUint(f.text, 10, 16)
		if err != nil || v == 0 {
			return bad(fmt.Sprintf("%q is no port (1 to 65535)", f.text))
		}
		*f.to = uint16(v)
	}
	return p, nil
}

// ValidateSpec checks everything of a spec that does not depend on this machine.
func ValidateSpec(s Spec) error {
	if err := ValidateName(s.Name); err != nil {
		return err
	}
	if err := ValidateSubnet(s.Subnet); err != nil {
		return err
	}
	type port struct {
		n     uint16
		proto string
	}
	taken := map[port]string{}
	if s.APIPort != 0 {
		taken[port{s.APIPort, "tcp"}] = "the API"
	}
	for _, p := range s.Publish {
		k := port{p.HostPort, p.Proto}
		if by, ok := taken[k]; ok {
			return errs.New(errs.Usage, "cannot publish %s: port %d/%s of this machine is taken by %s", p, p.HostPort, p.Proto, by)
		}
		taken[k] = "the published port " + p.String()
	}
	for _, n := range s.Nodes {
		if err := ValidateNode(n); err != nil {
			return err
		}
	}
	return nil
}

// CreatePlan is what Create would do, a line each, as --dry-run prints it.
func CreatePlan(s Spec, nodes []NodeSpec, context string) []string {
	if !s.Subnet.IsValid() {
		s.Subnet = DefaultSubnet
	}
	plan := []string{
		fmt.Sprintf("create cluster %s: a network namespace with a bridge at %s, unconnected to this machine's network", s.Name, BridgeAddr(s.Subnet)),
	}
	for _, n := range nodes {
		plan = append(plan, fmt.Sprintf("start node %s at %s in namespaces of its own", n.Name(), NodeAddr(s.Subnet, n.Role, n.Index)))
		for _, b := range n.Bundles {
			plan = append(plan, fmt.Sprintf("offer image bundle %s to node %s", b, n.Name()))
		}
	}
	api := "a free port"
	if s.APIPort != 0 {
		api = strconv.Itoa(int(s.APIPort))
	}
	plan = append(plan, fmt.Sprintf("forward 127.0.0.1:%s to the Kubernetes API", api))
	for _, p := range s.Publish {
		plan = append(plan, fmt.Sprintf("forward 127.0.0.1:%d to port %d of the nodes (%s)", p.HostPort, p.NodePort, p.Proto))
	}
	if s.Egress {
		plan = append(plan, fmt.Sprintf("let nodes and pods open connections to the outside, through %s", GatewayAddr(s.Subnet)))
	}
	if context != "" {
		plan = append(plan, fmt.Sprintf("add context %s to the kubeconfig", context))
	}
	return plan
}

// DeletePlan is what Delete would do.
func DeletePlan(s Status, context string) []string {
	plan := []string{}
	for _, n := range slices.Backward(s.Nodes) {
		plan = append(plan, endNode(n.Name))
	}
	plan = append(plan, fmt.Sprintf("remove the network, ports, cgroups and files of cluster %s", s.Spec.Name))
	if context != "" {
		plan = append(plan, fmt.Sprintf("remove context %s from the kubeconfig", context))
	}
	return plan
}

func endNode(name string) string {
	return fmt.Sprintf("end node %s with all its pods and remove its data", name)
}
