// Package component is the vocabulary in which a node is described: what a component is (Def), what
// one instance of it looks like on this node (Spec), what a process that runs one or several of them
// is (Unit), and what all of this is computed from (Input). Data and pure functions only: nothing here
// or in package components touches files, clocks or the network, so a whole node can be printed and
// golden-tested before it runs.
package component

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"
	"time"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/probe"
)

// Role says on which nodes a component runs.
type Role uint8

// The roles; they may be combined.
const (
	ControlPlane Role = 1 << iota // on servers
	Worker                        // on every node that runs pods
	Agent                         // on nodes without an API server of their own
)

// Level is how far a component has to be before another one may start.
type Level string

// The levels.
const (
	// Open: its port or socket answers at all. Enough for clients that retry by themselves, and earlier.
	Open Level = "open"
	// Ready: its Ready probe passes.
	Ready Level = "ready"
)

// Need is one edge of the dependency graph.
type Need struct {
	Component string `json:"component"`
	Level     Level  `json:"level"`
}

// Def describes a component once and for all. Components of package components register one each.
type Def struct {
	Name    string
	Summary string // one line for people: what it does here
	Roles   Role
	// Group is the process the component shares with others when isolation is "grouped".
	Group string
	// Needs are the components that must be there first. Those that are not part of the node (an agent
	// has no kube-apiserver of its own) are left out by the planner.
	Needs []Need
	// When says whether the configuration asks for it; nil is always.
	When func(Input) bool
	// Spec is pure: no files, no clock, no network.
	Spec func(Input) (Spec, error)
	// Merge names list flags whose value is joined with the user's, where losing ours would open a hole.
	Merge []string
	// Open and Ready are the probes of the two levels. A nil Open is the same as Ready; a nil Ready means
	// ready as soon as it runs.
	Open, Ready func(Input) probe.Probe
	// StopTimeout is how long it may take to end after being asked; 0 is DefaultStopTimeout.
	StopTimeout time.Duration
}

// DefaultStopTimeout is how long a component may take to end before it is killed.
const DefaultStopTimeout = 10 * time.Second

// Spec is one component on one node.
type Spec struct {
	Applet string            `json:"applet"`          // program name inside the payload, e.g. "kube-apiserver"
	Args   []string          `json:"args,omitempty"`  // without argv[0]
	Env    map[string]string `json:"env,omitempty"`   // added to a minimal environment
	Files  []File            `json:"files,omitempty"` // written before it starts
	Dirs   []Dir             `json:"dirs,omitempty"`  // made before it starts
	// Access is what it needs of this node's files that not everybody may read, Files and Dirs aside. It is given to its user where
	// it has one, see User.
	Access []Access `json:"access,omitempty"`
	// Given are files that somebody else writes and names to it, as certificates for a database of others: they have to be open to
	// its user already, because they are not ours.
	Given []string `json:"given,omitempty"`
}

// Access is one thing a component needs of the files on this node.
type Access struct {
	Path string `json:"path"`
	Way  Way    `json:"way"`
}

// Way is what a component does with what it has access to.
type Way string

// The ways.
const (
	// Reads a file. One that is not there is not needed.
	Reads Way = "reads"
	// Owns a directory with all that is in it: it writes there.
	Owns Way = "owns"
	// Views a directory with all that is in it, which belongs to others; it may add to it.
	Views Way = "views"
	// Serves a socket in a directory that it owns; those who call it may come there.
	Serves Way = "serves"
	// Calls who serves a socket in a directory.
	Calls Way = "calls"
)

// File is written before a component starts. Its content is part of what a restart depends on.
type File struct {
	Path    string      `json:"path"`
	Content string      `json:"content"`
	Mode    fs.FileMode `json:"mode"`
}

// Dir is made before a component starts.
type Dir struct {
	Path string      `json:"path"`
	Mode fs.FileMode `json:"mode"`
}

// Facts are what is known about the machine when Specs are rendered.
type Facts struct {
	NodeName string     `json:"nodeName"`
	NodeIP   netip.Addr `json:"nodeIP"`
	// NodeInterface carries NodeIP; "" where unknown.
	NodeInterface string `json:"nodeInterface,omitempty"`
	CPUs          int    `json:"cpus"`
	// MemoryBytes may be used; MemoryLimit is the cgroup's file that says so, "" for the machine's own memory.
	MemoryBytes uint64 `json:"memoryBytes"`
	MemoryLimit string `json:"memoryLimit,omitempty"`
	// CgroupVersion is 1 (also for the hybrid layout) or 2.
	CgroupVersion int `json:"cgroupVersion"`
	// CgroupRoot is the cgroup below which everything of this node lives, e.g. "/k1s".
	CgroupRoot string `json:"cgroupRoot"`
	// Systemd tells that pid 1 is systemd, so cgroups of pods are made through it.
	Systemd bool `json:"systemd"`
	// SysResource tells that CAP_SYS_RESOURCE is there (OOM scores can be lowered).
	SysResource bool `json:"sysResource"`
	// OOMScore is the oom_score_adj that the daemon has, and everything it starts with it.
	OOMScore int `json:"oomScore,omitempty"`
	// InitialNetNS tells that we run in the machine's own network namespace; outside of it the conntrack
	// limits are not ours to set.
	InitialNetNS bool `json:"initialNetNS"`
	AppArmor     bool `json:"appArmor"`
	// Sandbox tells that this is a node of `k1s cluster create`, which shares the disks of its machine with what is not its own.
	Sandbox bool `json:"sandbox,omitempty"`
	// Proxy is the proxy configuration of the daemon's environment: HTTP_PROXY, HTTPS_PROXY, NO_PROXY.
	Proxy map[string]string `json:"proxy,omitempty"`
	// Resolver is where pods find name servers outside the cluster.
	Resolver Resolver `json:"resolver"`
	// OverlayFS tells that the overlay snapshotter works below the data directory.
	OverlayFS bool `json:"overlayFS"`
}

// Resolver is the resolver configuration pods inherit.
type Resolver struct {
	// File is the machine's own; "" where Text has to be written instead.
	File string `json:"file,omitempty"`
	Text string `json:"text,omitempty"`
	// HasServers tells that it names servers a pod can reach.
	HasServers bool `json:"hasServers"`
}

// Input is everything a Spec may depend on.
type Input struct {
	Config config.Config
	Paths  paths.Paths
	Facts  Facts
	// Payload is the directory of the unpacked payload this node runs from.
	Payload string
	// Registries identifies the credentials of registries, which are kept out of Specs; "" for none.
	Registries string
	// Datastore identifies the DSN of a database of others and its TLS files, which are kept out of Specs; "" for none.
	Datastore string
	// Former are the values of spec.users.first that files of this node may still be given to; nil for none.
	Former []int
	// Fence is the attempt to move the datastore for which the API server is not to serve; "" for none.
	Fence string
	// AuditPolicy is the user's audit policy where the configuration names one; "" for ours.
	AuditPolicy string
	// Etcd is this server as a member of an embedded etcd of several; zero for the only one.
	Etcd EtcdMember
	// Several tells that the cluster has, or had, more than one server, so that some things are done by one of them.
	Several bool
	// Trust differs between any two sets of authorities this cluster has had, for programs that read them only when they start;
	// "" before they were replaced for the first time.
	Trust string
	// Server is where this agent was told to find its cluster, as host:port; "" on servers.
	Server string
	// PayloadID is the payload's hash, for objects that must change when the programs change.
	PayloadID string
}

// EtcdMember is a server that joined the etcd of others.
type EtcdMember struct {
	Name string
	// InitialCluster are the members there were when it joined, with itself: NAME=URL,…
	InitialCluster string
	// Token makes the IDs of a cluster that is founded others than those of any other one with the same members; "" is etcd's default.
	// What joins a cluster, or goes on, does not need it.
	Token string
}

// Component is a Def rendered for one node.
type Component struct {
	Name        string        `json:"name"`
	Needs       []Need        `json:"needs,omitempty"`
	Spec        Spec          `json:"spec"`
	Open        probe.Probe   `json:"open"`
	Ready       probe.Probe   `json:"ready"`
	Group       string        `json:"group"`
	StopTimeout time.Duration `json:"stopTimeout"`
}

// Unit is one process and the components it runs, most often one or a whole group.
type Unit struct {
	Name string `json:"name"`
	// Argv is the full command line; Argv[0] is an absolute path inside the payload.
	Argv  []string          `json:"argv"`
	Env   map[string]string `json:"env,omitempty"`
	Files []File            `json:"files,omitempty"`
	Dirs  []Dir             `json:"dirs,omitempty"`
	// Components are the members in start order. A unit of one is started when its Needs are met; a unit of
	// several starts at once and its group runner starts each member when the member's Needs are met.
	Components  []Component   `json:"components"`
	StopTimeout time.Duration `json:"stopTimeout"`
	// Stale are files an earlier run may have left that would make a component look ready before it is; they
	// are removed before the unit starts.
	Stale []string `json:"stale,omitempty"`
	// OOMScore is the process's oom_score_adj, 0 to leave it alone.
	OOMScore int `json:"oomScore,omitempty"`
	// User is as whom the process runs; nil is root.
	User *User `json:"user,omitempty"`
	// TimerSlack is how much later than asked its threads may be woken, 0 to leave that to the process. It is for one that may not set
	// it itself, and is put into force from outside when it has started.
	TimerSlack time.Duration `json:"timerSlack,omitempty"`
	// Grants are whose its files are, and who may read them; they are seen to before it starts.
	Grants []Grant `json:"grants,omitempty"`
}

// User is as whom a process runs that is not to be root. The numbers need no names on the machine.
type User struct {
	UID    int   `json:"uid"`
	GID    int   `json:"gid"`
	Groups []int `json:"groups,omitempty"` // beyond GID
	// BindLowPorts lets it listen at ports below 1024. It has no other capability.
	BindLowPorts bool `json:"bindLowPorts,omitempty"`
}

// String tells it in a line.
func (u User) String() string {
	out := fmt.Sprintf("%d:%d", u.UID, u.GID)
	for _, g := range u.Groups {
		out += fmt.Sprintf(",%d", g)
	}
	if u.BindLowPorts {
		out += ", ports below 1024"
	}
	return out
}

// Grant is the owner, the group and the mode of a file or a directory. What is not there is left out.
type Grant struct {
	Path string `json:"path"`
	UID  int    `json:"uid"` // KeepOwner leaves the owner
	GID  int    `json:"gid"`
	// Mode is that of Path itself.
	Mode fs.FileMode `json:"mode"`
	// Tree gives everything below to the same owner and group, and leaves its modes; with KeepOwner it lets the group read it all.
	Tree bool `json:"tree,omitempty"`
	// Former are owners that are not kept, where KeepOwner is said, but become root: what components have put there.
	Former []int `json:"former,omitempty"`
}

// String tells it in a line, like ls: the mode as chmod takes it, owner and group, and the path, with /... where all below has them too.
func (g Grant) String() string {
	mode := uint32(g.Mode.Perm())
	if g.Mode&fs.ModeSetgid != 0 {
		mode |= 0o2000
	}
	owner := "(its own)"
	if g.UID != KeepOwner {
		owner = strconv.Itoa(g.UID)
	}
	path := g.Path
	if g.Tree {
		path += "/..."
	}
	return fmt.Sprintf("%04o %s:%d %s", mode, owner, g.GID, path)
}

// KeepOwner as the owner of a Grant leaves the one that there is.
const KeepOwner = -1

// Hash identifies everything about the unit that needs a restart when it changes.
func (u Unit) Hash() string {
	u.TimerSlack = 0
	u.Grants = nil // they follow from the rest, or are taken back, which is no reason to restart
	b, err := json.Marshal(u)
	if err != nil { // only strings and numbers in it
		panic(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// Group is the file a group process is started with.
type Group struct {
	Name    string   `json:"name"`
	Members []Member `json:"members"`
}

// Member is one applet of a group.
type Member struct {
	Name   string   `json:"name"`
	Applet string   `json:"applet"`
	Args   []string `json:"args,omitempty"`
	// After must all pass before the applet starts.
	After []probe.Probe `json:"after,omitempty"`
	// Ready tells when the member is up; the group runner tunes the garbage collector when all are.
	Ready probe.Probe `json:"ready"`
	// StopAfter names members that must have ended before this one is asked to stop (its clients).
	StopAfter   []string      `json:"stopAfter,omitempty"`
	StopTimeout time.Duration `json:"stopTimeout,omitempty"`
}
