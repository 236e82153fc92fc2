package cluster

import (
	"fmt"
	"maps"
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

// HostsFile is a node's /etc/hosts: itself, the nodes that are there when it is started, and this machine. By these names servers find
// each other when all have got other addresses.
func HostsFile(s Spec, node NodeSpec, hostname string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "127.0.0.1 localhost\n::1 localhost\n%s %s %s\n", NodeAddr(s.Subnet, node.Role, node.Index), node.Name(), hostname)
	for _, n := range s.Nodes {
		if n.Name() != node.Name() {
			fmt.Fprintf(&b, "%s %s\n", NodeAddr(s.Subnet, n.Role, n.Index), n.Name())
		}
	}
	fmt.Fprintf(&b, "%s %s\n", BridgeAddr(s.Subnet), strings.Join(s.HostNames(), " "))
	return b.String()
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

// Publish makes a port of the cluster's nodes appear on this machine.
type Publish struct {
	// Address is where on this machine; the zero value is 127.0.0.1.
	Address  netip.Addr `json:"address,omitzero"`
	HostPort uint16     `json:"hostPort"`
	NodePort uint16     `json:"nodePort"`
	Proto    string     `json:"proto"` // tcp or udp
	// On are the nodes it leads to.
	On Selector `json:"on,omitempty"`
}

// localhost is where ports appear unless another address is given.
var localhost = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// Listen is where it appears.
func (p Publish) Listen() netip.AddrPort {
	if !p.Address.IsValid() {
		return netip.AddrPortFrom(localhost, p.HostPort)
	}
	return netip.AddrPortFrom(p.Address, p.HostPort)
}

// String is the form ParsePublish reads.
func (p Publish) String() string {
	at := strconv.Itoa(int(p.HostPort))
	if p.Address.IsValid() {
		at = p.Listen().String()
	}
	return fmt.Sprintf("%s:%d/%s%s", at, p.NodePort, p.Proto, p.On.suffix())
}

// ParsePublish reads [ADDRESS:]HOSTPORT:NODEPORT[/tcp|/udp][@NODES]; a single number is both ports. The address is of
// this machine; 0.0.0.0 and [::] are all it has.
func ParsePublish(s string) (Publish, error) {
	bad := func(why string) (Publish, error) {
		return Publish{}, errs.Hint(errs.New(errs.Usage, "cannot publish %q: %s", s, why),
			"write HOSTPORT:NODEPORT, e.g. 8080:30080, 5353:30053/udp, 8080:80@agent-0 or 192.168.7.1:8080:30080")
	}
	rest, on, err := CutSelector(s, false)
	if err != nil {
		return bad(err.Error())
	}
	ports, proto, ok := strings.Cut(rest, "/")
	if !ok {
		proto = "tcp"
	}
	if proto != "tcp" && proto != "udp" {
		return bad("the protocol is tcp or udp")
	}
	p := Publish{Proto: proto, On: on}
	h, n, ok := cutLast(ports, ":")
	if !ok {
		h = n
	}
	if address, port, ok := cutLast(h, ":"); ok {
		h = port
		if address == "localhost" {
			address = localhost.String()
		}
		if p.Address, err = netip.ParseAddr(strings.Trim(address, "[]")); err != nil || p.Address.Zone() != "" {
			return bad(fmt.Sprintf("%q is no address", address))
		}
		if p.Address == localhost {
			p.Address = netip.Addr{}
		}
	}
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

// cutLast is strings.Cut around the last sep; without one all is after it.
func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return "", s, false
	}
	return s[:i], s[i+len(sep):], true
}

// sameAddress tells that who listens at both would be in each other's way.
func sameAddress(a, b netip.Addr) bool { return a == b || a.IsUnspecified() || b.IsUnspecified() }

// ValidateSpec checks everything of a spec that does not depend on this machine.
func ValidateSpec(s Spec) error {
	if err := ValidateName(s.Name); err != nil {
		return err
	}
	if err := ValidateSubnet(s.Subnet); err != nil {
		return err
	}
	type taken struct {
		at    netip.AddrPort
		proto string
		by    string
	}
	var all []taken
	if s.APIPort != 0 {
		all = append(all, taken{netip.AddrPortFrom(localhost, s.APIPort), "tcp", "the API"})
	}
	for _, p := range s.Publish {
		at := p.Listen()
		for _, t := range all {
			if t.proto == p.Proto && t.at.Port() == at.Port() && sameAddress(t.at.Addr(), at.Addr()) {
				return errs.New(errs.Usage, "cannot publish %s: port %d/%s of this machine is taken by %s", p, p.HostPort, p.Proto, t.by)
			}
		}
		all = append(all, taken{at, p.Proto, "the published port " + p.String()})
	}
	ports := map[uint16]Reach{}
	for _, r := range s.Reach {
		if other, ok := ports[r.Port]; ok && other != r {
			return errs.New(errs.Usage, "nodes cannot reach both %s and %s: in the cluster both would be port %d of %s", other, r, r.Port, BridgeAddr(s.Subnet))
		}
		ports[r.Port] = r
	}
	for _, v := range s.Volumes {
		if err := validateVolume(v); err != nil {
			return err
		}
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
		for _, a := range NodeArgs(s, n) {
			plan = append(plan, fmt.Sprintf("give node %s the setting %s", n.Name(), a))
		}
		for _, e := range s.Env { // a value may be a secret
			if e.On.Matches(n.Role, n.Index) {
				plan = append(plan, fmt.Sprintf("give node %s the variable %s", n.Name(), e.Name))
			}
		}
		for _, v := range s.VolumesOf(n) {
			how := ""
			if v.ReadOnly {
				how = ", read-only"
			}
			plan = append(plan, fmt.Sprintf("show %s of this machine to node %s as %s%s", v.Host, n.Name(), v.Node, how))
		}
		for _, b := range n.Bundles {
			plan = append(plan, fmt.Sprintf("offer image bundle %s to node %s", b, n.Name()))
		}
	}
	for _, f := range slices.Sorted(maps.Keys(s.Files)) {
		plan = append(plan, fmt.Sprintf("give every node the file /etc/k1s/%s", f))
	}
	if s.Program != "" {
		plan = append(plan, "run the nodes with "+s.Program)
	}
	api := "a free port"
	if s.APIPort != 0 {
		api = strconv.Itoa(int(s.APIPort))
	}
	plan = append(plan, fmt.Sprintf("forward 127.0.0.1:%s to the Kubernetes API", api))
	for _, p := range s.Publish {
		nodes := "the nodes"
		if p.On != "" {
			nodes = string(p.On)
		}
		plan = append(plan, fmt.Sprintf("forward %s to port %d of %s (%s)", p.Listen(), p.NodePort, nodes, p.Proto))
	}
	for _, r := range s.Reach {
		plan = append(plan, fmt.Sprintf("let nodes and pods reach %s of this machine's network, at %s:%d", r, BridgeAddr(s.Subnet), r.Port))
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
