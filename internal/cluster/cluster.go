// Package cluster makes and removes local clusters on this machine: what a cluster is (Spec, Node), what
// somebody who can make one must offer (Provider), and the flow around it that every provider shares
// (Manager: create, start, stop, delete, list). It does not know how a node is made; that is netns (namespaces
// on this Linux machine) and whatever comes. Used by `k1s cluster`.
package cluster

import (
	"context"
	"io"
	"net/netip"
	"os"
	"strconv"
	"time"
)

// Role is what a node is for.
type Role string

// The roles.
const (
	Server Role = "server" // control plane, and worker unless its configuration says otherwise
	Agent  Role = "agent"  // worker only
)

// Spec is a cluster as it was asked for. Providers keep it, so that a stopped cluster can be started again.
type Spec struct {
	Name string `json:"name"`
	// APIPort is where the Kubernetes API appears on 127.0.0.1; 0 lets the provider choose a free one.
	APIPort uint16 `json:"apiPort"`
	// APIPortChosen: the provider chose it, and may choose again when somebody else has it at the next start.
	APIPortChosen bool `json:"apiPortChosen,omitempty"`
	// Publish are further ports of the nodes that appear on 127.0.0.1.
	Publish []Publish `json:"publish,omitempty"`
	// Egress lets nodes and pods open connections to the outside.
	Egress bool `json:"egress"`
	// Subnet joins the nodes. It exists inside the cluster only, so all clusters may have the same one.
	// The zero value is DefaultSubnet.
	Subnet netip.Prefix `json:"subnet"`
	// Private are the networks of pods and services; they are never sent to the outside. Empty is
	// DefaultPrivate.
	Private []netip.Prefix `json:"private,omitempty"`
	Created time.Time      `json:"created"`
	// Cuts are connections between nodes that carry nothing.
	Cuts []Cut `json:"cuts,omitempty"`
	// Delays are connections between nodes on which everything takes longer.
	Delays []Delay `json:"delays,omitempty"`
	// NextAgent is above the index of every agent there has been: their names are not used again.
	NextAgent int `json:"nextAgent,omitempty"`
	// NextServer is the same for servers.
	NextServer int `json:"nextServer,omitempty"`
	// Nodes are those that were created, in order.
	Nodes []NodeSpec `json:"nodes,omitempty"`
	// Like are what nodes that are added later are like, one for each role that has any.
	Like []NodeSpec `json:"like,omitempty"`
	// Settings, Env and Volumes are given to the nodes their selectors choose, Reach to all.
	Settings []Setting `json:"settings,omitempty"`
	Env      []Env     `json:"env,omitempty"`
	Volumes  []Volume  `json:"volumes,omitempty"`
	Reach    []Reach   `json:"reach,omitempty"`
	// Program is what the nodes run, a k1s; "" is the one that creates the cluster.
	Program string `json:"program,omitempty"`
	// Files are for every node's configuration directory (/etc/k1s), by their names in it; a node that has one
	// keeps its own. They may hold secrets: they are kept apart from the rest, and given to a provider only when they
	// are new.
	Files map[string][]byte `json:"-"`
	// Creation is of one creation: with it Prepare refuses a cluster that somebody else has created meanwhile.
	Creation string `json:"creation,omitempty"`
}

// Template is what a node that is added is like: as it was asked for, or as the last one of its role, or as the first node.
func (s Spec) Template(role Role) NodeSpec {
	var like NodeSpec
	for _, n := range s.Nodes {
		if n.Role == role || like.Role == "" {
			like = n
		}
	}
	for _, n := range s.Like {
		if n.Role == role {
			like = n
		}
	}
	like.Cluster, like.Role = s.Name, role
	return like
}

// Keep puts a node into the record of its cluster.
func (s *Spec) Keep(n NodeSpec) {
	n.Token = ""
	next := &s.NextServer
	if n.Role == Agent {
		next = &s.NextAgent
	}
	*next = max(*next, n.Index+1)
	for i := range s.Nodes {
		if s.Nodes[i].Name() == n.Name() {
			s.Nodes[i] = n
			return
		}
	}
	s.Nodes = append(s.Nodes, n)
}

// NodeSpec is one node as it was asked for.
type NodeSpec struct {
	Cluster string `json:"cluster"`
	Role    Role   `json:"role"`
	// Index counts the nodes of a role from 0; role and index give the node its name and address.
	Index int `json:"index"`
	// Config is the node's configuration file; "" leaves the one that is there, or the defaults.
	Config string `json:"config,omitempty"`
	// Args are added to the node program's command line. They are visible in the process list: no secrets.
	Args []string `json:"args,omitempty"`
	// Bundles are image archives on this machine, offered to the node when it is created.
	Bundles []string `json:"bundles,omitempty"`
	// Token lets an agent, or a server that is not the first one, join. It is given to the node and kept nowhere else; "" leaves the one that is there.
	Token string `json:"-"`
}

// Name is the node's host name and its name in Kubernetes, e.g. "server-0".
func (n NodeSpec) Name() string { return NodeName(n.Role, n.Index) }

// State tells how something of a cluster is.
type State string

// The states.
const (
	Running State = "running"
	// Stopped: nothing of it runs, or, where its daemon was stopped from within (k1s stop), only its pods; Start
	// brings it back.
	Stopped State = "stopped"
	// Broken: parts of it run or exist and others that should do not; Start mends it, Delete removes it.
	Broken State = "broken"
)

// Node is one node as it is.
type Node struct {
	Cluster string     `json:"cluster"`
	Name    string     `json:"name"`
	Role    Role       `json:"role"`
	Index   int        `json:"index"`
	Addr    netip.Addr `json:"addr"`
	State   State      `json:"state"`
	// Note says what is wrong when State is Broken.
	Note string `json:"note,omitempty"`
	// PID is the node's first process, 0 when there is none.
	PID int `json:"pid,omitempty"`
	// ControlSocket is the node daemon's local API and Kubeconfig the administrator's kubeconfig, as the
	// node writes it (its server is an address inside the node). Both are paths on this machine, and neither
	// exists before the node got so far.
	ControlSocket string `json:"controlSocket"`
	Kubeconfig    string `json:"kubeconfig"`
	// Log is where the node's first process and its daemon write.
	Log string `json:"log"`
}

// Status is one cluster as it is.
type Status struct {
	Spec  Spec  `json:"spec"`
	State State `json:"state"`
	// Note says what is wrong when State is Broken.
	Note  string `json:"note,omitempty"`
	Nodes []Node `json:"nodes"`
}

// Features are what a provider can do here.
type Features struct {
	// Egress: Spec.Egress is honoured.
	Egress bool `json:"egress"`
	// UDP: udp ports can be published.
	UDP bool `json:"udp"`
	// MaxServers and MaxAgents bound NodeSpec.Index.
	MaxServers int `json:"maxServers"`
	MaxAgents  int `json:"maxAgents"`
}

// Provider makes clusters in one particular way. Every method may be called at any time, by several
// processes at once, also after this machine or any process was killed; mutations of the same cluster
// exclude each other, and do not wait for those of others. Names have passed ValidateName. ctx bounds the call; when it ends in the middle of a
// mutation, what is there so far can be continued by the same call or removed by Delete.
type Provider interface {
	// Features says what can be done here; the error says why nothing can (kind errs.Unsupported).
	Features(ctx context.Context) (Features, error)

	// Prepare makes what the nodes of a cluster share exist and run: its record, its network, its ports on
	// 127.0.0.1. Idempotent: for a cluster that is there it applies the ports and mends what is missing.
	// Spec.Nodes is ignored. It returns the spec with all choices made (APIPort, Subnet).
	Prepare(ctx context.Context, spec Spec) (Spec, error)

	// Create makes a node exist and run; the cluster has been prepared. Idempotent: a running node is left
	// alone, a stopped or broken one is started with its data. It returns when the node's first process
	// runs, which is long before Kubernetes answers.
	Create(ctx context.Context, spec NodeSpec) (Node, error)

	// Stop ends a node and everything on it, pods too, and keeps its data; node "" stops all nodes and the
	// shared parts. Stopping what does not run is success.
	Stop(ctx context.Context, cluster, node string) error

	// Describe tells how a cluster is, nodes in the order they were created; kind errs.NotFound when there
	// is no trace of it. A cluster whose record cannot be read is Broken, not an error.
	Describe(ctx context.Context, cluster string) (Status, error)

	// Clusters lists the names of all clusters of which there is any trace, sorted.
	Clusters(ctx context.Context) ([]string, error)

	// Delete removes a node with all its data; node "" removes the whole cluster, whatever state it is in.
	// Deleting what is not there is success.
	Delete(ctx context.Context, cluster, node string) error

	// Leftovers names everything that exists on this machine because of the cluster: processes, mounts,
	// namespaces, cgroups, files. Empty after Delete; tests rely on it.
	Leftovers(ctx context.Context, cluster string) ([]string, error)
}

// Executor is a Provider that can run commands in a node.
type Executor interface {
	// Exec runs argv in the node as root and waits. Its exit status is an error with ExitCode() int.
	Exec(ctx context.Context, cluster, node string, argv []string, io Streams) error
}

// Preflight is a Provider that can tell before anything is made what is in the way of a cluster on this machine: ports,
// volumes, space. All of it, not the first.
type Preflight interface {
	Preflight(ctx context.Context, spec Spec, nodes []NodeSpec) error
}

// Killer is a Provider that can end a node as a power cut does.
type Killer interface {
	// Kill ends everything on a node at once; its data stays as it is at that moment.
	Kill(ctx context.Context, cluster, node string) error
}

// ImageStore is a Provider that keeps image archives for the nodes of a cluster, each once.
type ImageStore interface {
	// AddImages gives an archive, which is a file of this machine, to the nodes chosen, under the given name. One
	// that nodes have under the names in replaces goes when they have this one. Nodes that do not run have it at their
	// next start, and those that are added and chosen too.
	AddImages(ctx context.Context, cluster, archive, name string, replaces func(name string) bool, on Selector) error
	// ImageDir is a directory of the cluster for archives in the making; it goes with the cluster. AddImages takes
	// what is there without another copy, and away from there.
	ImageDir(cluster string) (string, error)
}

// LogCollector is a Provider that knows where the logs of a cluster are.
type LogCollector interface {
	// Logs are the log files of a cluster on this machine: its own, its nodes' and their pods'.
	Logs(ctx context.Context, cluster string) ([]LogFile, error)
}

// LogFile is one log of a cluster.
type LogFile struct {
	// Name is where it belongs among the others, e.g. "server-0/kubelet.log".
	Name string
	Path string // on this machine
}

// Streams are the standard streams of a command in a node. Files are handed over as they are, so that a
// terminal stays one.
type Streams struct {
	In          io.Reader
	Out, ErrOut io.Writer
}

// Files are the files a cluster's user works with, below a provider's state directory.
type Files interface {
	// KubeconfigFile is where the cluster's kubeconfig for this machine is kept. Delete removes it.
	KubeconfigFile(cluster string) string
}

// NodeEnviron are variables every provider gives to the node program: those of the user, and the settings that follow
// from being a node of this cluster. They win over the node's configuration file.
func NodeEnviron(spec Spec, node NodeSpec) []string {
	var env []string
	for _, e := range spec.Env {
		if e.On.Matches(node.Role, node.Index) {
			env = append(env, e.Name+"="+e.Value)
		}
	}
	env = append(env,
		"K1S_CLUSTER_NAME="+spec.Name,
		"K1S_NODE_NAME="+node.Name(),
		"K1S_NODE_IP="+NodeAddr(spec.Subnet, node.Role, node.Index).String(),
		"K1S_API_PORT="+strconv.Itoa(APIPortInNode),
	)
	if node.Role == Agent {
		env = append(env, "K1S_ROLE=agent")
	}
	if node.Joins() {
		server := netip.AddrPortFrom(NodeAddr(spec.Subnet, Server, other(spec, node)), APIPortInNode)
		env = append(env, "K1S_SERVER=https://"+server.String(), "K1S_TOKEN_FILE="+TokenFileInNode)
	}
	return env
}

// Joins tells that the node becomes part of a cluster that is there, for which it needs a token.
func (n NodeSpec) Joins() bool { return n.Role == Agent || n.Index > 0 }

// other is the first server of a cluster beside a node.
func other(spec Spec, node NodeSpec) int {
	first := -1
	for _, n := range spec.Nodes {
		if n.Role == Server && n.Name() != node.Name() && (first < 0 || n.Index < first) {
			first = n.Index
		}
	}
	return max(first, 0)
}

// TokenFileInNode is where an agent finds NodeSpec.Token.
const TokenFileInNode = "/etc/k1s/token"

// APIPortInNode is where the API listens inside a node, whatever its configuration file says.
const APIPortInNode = 6443

// EnvRoot overrides the directory below which clusters are kept, for tests and for users without space
// in /var.
const EnvRoot = "K1S_CLUSTERS_DIR"

// RootFromEnv is the override, "" without.
func RootFromEnv() string { return os.Getenv(EnvRoot) }
