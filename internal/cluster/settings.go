package cluster

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"k1s.io/k1s/internal/errs"
)

// Setting is a flag of the node program for some nodes, e.g. --node-labels=tier=db. It is visible in the process list: no
// secrets.
type Setting struct {
	Flag string   `json:"flag"`
	On   Selector `json:"on,omitempty"`
}

// NodeArgs are the arguments a node's program gets: its own, and the settings of the cluster that are meant for it.
func NodeArgs(s Spec, n NodeSpec) []string {
	out := slices.Clone(n.Args)
	for _, set := range s.Settings {
		if set.On.Matches(n.Role, n.Index) {
			out = append(out, set.Flag)
		}
	}
	return out
}

// Env is an environment variable of the node program, and of commands in the node.
type Env struct {
	Name  string   `json:"name"`
	Value string   `json:"value"`
	On    Selector `json:"on,omitempty"`
}

// String is the form ParseEnv reads.
func (e Env) String() string { return e.Name + "=" + e.Value + e.On.suffix() }

// reservedEnv are variables that say what a node is. The first part of a name ends with a star.
var reservedEnv = []string{"PATH", "HOME", "LANG", "K1S_*"}

// ParseEnv reads NAME=VALUE[@NODES].
func ParseEnv(text string) (Env, error) {
	rest, on, err := CutSelector(text, true)
	if err != nil {
		return Env{}, err
	}
	name, value, ok := strings.Cut(rest, "=")
	if !ok || name == "" || strings.ContainsAny(name, " \t\n") || strings.ContainsRune(value, 0) {
		return Env{}, errs.Hint(errs.New(errs.Usage, "%q is no environment variable", name), "write NAME=VALUE, or NAME=VALUE@NODES")
	}
	for _, r := range reservedEnv {
		if prefix, many := strings.CutSuffix(r, "*"); name == r || many && strings.HasPrefix(name, prefix) {
			return Env{}, errs.Hint(errs.New(errs.Usage, "the variable %s cannot be given to nodes: it says what they are", name), "settings of k1s are given with --set or --config")
		}
	}
	return Env{Name: name, Value: value, On: on}, nil
}

// Volume is a directory or file of this machine in nodes.
type Volume struct {
	Host     string   `json:"host"` // absolute
	Node     string   `json:"node"` // absolute
	ReadOnly bool     `json:"readOnly,omitempty"`
	On       Selector `json:"on,omitempty"`
}

// String is the form ParseVolume reads.
func (v Volume) String() string {
	ro := ""
	if v.ReadOnly {
		ro = ":ro"
	}
	return v.Host + ":" + v.Node + ro + v.On.suffix()
}

// ParseVolume reads HOST:NODE[:ro|:rw][@NODES]; a HOST that is not absolute is below dir.
func ParseVolume(text, dir string) (Volume, error) {
	bad := func(format string, args ...any) (Volume, error) {
		return Volume{}, errs.Hint(errs.New(errs.Usage, "volume %q: %w", text, fmt.Errorf(format, args...)), "write HOST:NODE[:ro][@NODES], e.g. ./data:/data or /srv/models:/models:ro@agents")
	}
	rest, on, err := CutSelector(text, false)
	if err != nil {
		return Volume{}, errs.Hint(fmt.Errorf("volume %q: %w", text, err), "where the path has an @, end with @all")
	}
	v := Volume{On: on}
	parts := strings.Split(rest, ":")
	if len(parts) == 3 {
		switch parts[2] {
		case "ro":
			v.ReadOnly = true
		case "rw":
		default:
			return bad("%q is neither ro nor rw", parts[2])
		}
		parts = parts[:2]
	}
	if len(parts) != 2 || parts[0] == "" || parts[1] == "" {
		return bad("it takes a path here and a path in the node")
	}
	if v.Host = parts[0]; !filepath.IsAbs(v.Host) {
		v.Host = filepath.Join(dir, v.Host)
	}
	v.Host, v.Node = filepath.Clean(v.Host), path.Clean(parts[1])
	return v, validateVolume(v)
}

// What a node's root is made of: nothing may be put over these, and nothing below those in the second list.
var (
	nodePlaces   = []string{"/", "/etc", "/etc/k1s", "/opt", "/run", "/run/k1s", "/var", "/var/lib", "/var/lib/k1s", "/var/lib/kubelet", "/var/log"}
	nodePrograms = []string{"/proc", "/sys", "/dev", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix", "/gnu", "/opt/k1s", "/var/lib/k1s/payload"}
)

func validateVolume(v Volume) error {
	switch {
	case !path.IsAbs(v.Node):
		return errs.New(errs.Usage, "volume %s: the path in the node is not absolute", v)
	case slices.Contains(nodePlaces, v.Node):
		return errs.Hint(errs.New(errs.Usage, "volume %s: the node needs its own %s", v, v.Node), "choose a directory below it, or another one, e.g. /data")
	}
	for _, p := range nodePrograms {
		if v.Node == p || strings.HasPrefix(v.Node, p+"/") {
			return errs.Hint(errs.New(errs.Usage, "volume %s: the node needs its own %s", v, p), "choose another directory, e.g. /data")
		}
	}
	return nil
}

// VolumesOf are the volumes of a node, those further up first.
func (s Spec) VolumesOf(n NodeSpec) []Volume {
	var out []Volume
	for _, v := range s.Volumes {
		if v.On.Matches(n.Role, n.Index) {
			out = append(out, v)
		}
	}
	slices.SortStableFunc(out, func(a, b Volume) int { return strings.Count(a.Node, "/") - strings.Count(b.Node, "/") })
	return out
}

// Reach is an address that this machine reaches and that nodes and pods reach through it, at BridgeAddr and the same port,
// whether or not they have a way to the outside.
type Reach struct {
	Host string `json:"host"` // a name or an address
	Port uint16 `json:"port"`
}

// String is the form ParseReach reads.
func (r Reach) String() string { return net.JoinHostPort(r.Host, strconv.Itoa(int(r.Port))) }

// Local tells that it is on this machine.
func (r Reach) Local() bool {
	a, err := netip.ParseAddr(r.Host)
	return r.Host == "localhost" || err == nil && (a.IsLoopback() || a.IsUnspecified())
}

// ParseReach reads HOST:PORT; a port alone is one of this machine.
func ParseReach(text string) (Reach, error) {
	if _, err := strconv.Atoi(text); err == nil {
		text = "127.0.0.1:" + text
	}
	host, port, err := net.SplitHostPort(text)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || n == 0 || host == "" {
		return Reach{}, errs.Hint(errs.New(errs.Usage, "%q is no address to reach", text), "write HOST:PORT, e.g. 127.0.0.1:5432, or a port of this machine")
	}
	return Reach{Host: host, Port: uint16(n)}, nil
}

// HostName is how nodes call this machine, as far as it is to be reached.
const HostName = "host.k1s.internal"

// HostNames are what resolves to BridgeAddr in nodes.
func (s Spec) HostNames() []string {
	out := []string{HostName}
	for _, r := range s.Reach {
		if _, err := netip.ParseAddr(r.Host); err != nil && r.Host != "localhost" && !slices.Contains(out, r.Host) {
			out = append(out, r.Host)
		}
	}
	return out
}

// selects checks that a selector means something in a cluster of these nodes.
func selects(what fmt.Stringer, on Selector, nodes []NodeSpec) error {
	for _, n := range nodes {
		if on.Matches(n.Role, n.Index) {
			return nil
		}
	}
	if on == allAgents || on == allServers { // some may be added
		return nil
	}
	return errs.New(errs.Usage, "%s is for %s, and the cluster has no such node", what, on)
}

// ValidateFor checks what a spec says about some nodes against those there will be.
func ValidateFor(s Spec, nodes []NodeSpec) error {
	for _, p := range s.Publish {
		if err := selects(p, p.On, nodes); err != nil {
			return err
		}
	}
	for _, e := range s.Env {
		if err := selects(Env{Name: e.Name, Value: "…", On: e.On}, e.On, nodes); err != nil {
			return err
		}
	}
	for _, v := range s.Volumes {
		if err := selects(v, v.On, nodes); err != nil {
			return err
		}
	}
	for _, set := range s.Settings {
		if err := selects(text(set.Flag+set.On.suffix()), set.On, nodes); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		at := map[string]Volume{}
		for _, v := range s.VolumesOf(n) {
			if other, ok := at[v.Node]; ok && other != v {
				return errs.New(errs.Usage, "node %s has two volumes at %s: %s and %s", n.Name(), v.Node, other.Host, v.Host)
			}
			at[v.Node] = v
		}
	}
	return nil
}

type text string

func (t text) String() string { return string(t) }
