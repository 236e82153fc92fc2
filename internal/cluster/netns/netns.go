// Package netns is the cluster provider that needs nothing but a Linux kernel: every node is a network, a
// mount and a UTS namespace on this machine with a root file system of its own, and the nodes of a cluster
// are joined by a bridge in one more network namespace. The machine's own network namespace gets no link,
// no address, no route and no firewall rule; ports appear on 127.0.0.1 through a process, the switch, that
// opens its sockets inside the bridge's namespace. It also holds what delayed links carry.
//
// It is not a container engine: nodes have no PID, user or IPC namespace and trust the machine's root.
//
// What exists for a cluster, and where (Delete removes all of it, Leftovers finds all of it):
//
//	<state>/<cluster>/               record (cluster.json), kubeconfig, logs, files and images for all nodes, and
//	                                 nodes/<node>/{var,etc}
//	<run>/<cluster>/                 records of processes, nodes/<node>/run, and ns/: pinned namespaces
//	<cgroup>/k1s/<cluster>/<node>/   in every hierarchy; see Below for other directories than the usual ones
//	two kinds of process             the switch, and each node's first process with all its offspring
//
// Namespaces are pinned by mounting them on files in ns/, so a node survives the death of any process of
// ours: the node's pods go on, and Create puts a new first process into the same namespaces.
package netns

import (
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"path/filepath"
	"time"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/errs"
)

// Options say where a provider keeps things and what it runs. The zero value works on a real machine.
type Options struct {
	// State survives a reboot, Run need not. Empty: below /var/lib/k1s and /run/k1s.
	State, Run string
	// CgroupRoot is the parent of all clusters' cgroups; empty is "/k1s".
	CgroupRoot string
	// Program is what the switch and the nodes run: k1s itself. Empty is the running executable. The switch
	// is `Program cluster __switch …`, a node's first process `/opt/k1s/k1s cluster __node`, see Main.
	Program string
	// NodeArgs are the arguments with which Program becomes the node; empty is the node's role. Those of the
	// NodeSpec follow.
	NodeArgs []string
	// StopArgs are the arguments with which Program ends what a node's daemon leaves running when it is
	// stopped: its pods. Empty is "stop --pods".
	StopArgs []string
	// Egress is the command that carries traffic to the outside, see applets/egress; empty is the one of the
	// unpacked payload.
	Egress []string
	// NFT is the nft program; empty is the one of the unpacked payload.
	NFT string
	// StopTimeout is how long a node may take to stop in order; 0 is 30 s. What is left then is killed.
	StopTimeout time.Duration
	Log         *slog.Logger
}

const (
	defaultState  = "/var/lib/k1s/clusters"
	defaultRun    = "/run/k1s/clusters"
	defaultCgroup = "/k1s"

	// programInNode is where Program is mounted in a node, and payloadInNode where all nodes of all
	// clusters share the unpacked payload.
	programInNode = "/opt/k1s/k1s"
	payloadInNode = "/var/lib/k1s/payload"

	// payloadProgram is the program of the payload that has the egress applet.
	payloadProgram = "k1s-kube"
)

func (o Options) withDefaults() Options {
	if o.State == "" {
		o.State = defaultState
	}
	if o.Run == "" {
		o.Run = defaultRun
	}
	if o.CgroupRoot == "" {
		o.CgroupRoot = defaultCgroup
	}
	if o.StopArgs == nil {
		o.StopArgs = []string{"stop", "--pods"}
	}
	if o.Egress == nil {
		o.Egress = []string{filepath.Join(layout{state: o.State}.payload(), "current", payloadProgram), "egress"}
	}
	if o.NFT == "" {
		o.NFT = filepath.Join(layout{state: o.State}.payload(), "current", "nft")
	}
	if o.StopTimeout == 0 {
		o.StopTimeout = 30 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Below returns options for a provider that keeps everything under one directory, as tests and
// K1S_CLUSTERS_DIR want it. Its cgroups are its own too: what is in a cluster's cgroup is killed with it, so
// clusters of one name in two directories must not share one.
func Below(dir string) Options {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	sum := sha256.Sum256([]byte(dir))
	return Options{
		State: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run"),
		CgroupRoot: filepath.Join(defaultCgroup, "_"+hex.EncodeToString(sum[:4])), // no cluster is called so
	}
}

// layout names the files of one cluster.
type layout struct{ state, run, cluster string }

func (l layout) stateDir() string           { return filepath.Join(l.state, l.cluster) }
func (l layout) runDir() string             { return filepath.Join(l.run, l.cluster) }
func (l layout) record() string             { return filepath.Join(l.stateDir(), "cluster.json") }
func (l layout) kubeconfig() string         { return filepath.Join(l.stateDir(), "kubeconfig") }
func (l layout) log(name string) string     { return filepath.Join(l.stateDir(), "log", name+".log") }
func (l layout) node(node string) string    { return filepath.Join(l.stateDir(), "nodes", node) }
func (l layout) nodeVar(node string) string { return filepath.Join(l.node(node), "var") }
func (l layout) nodeEtc(node string) string { return filepath.Join(l.node(node), "etc") }
func (l layout) nodeRun(node string) string { return filepath.Join(l.runDir(), "nodes", node, "run") }

// files are for every node's configuration directory, images the archives of all nodes, each once.
func (l layout) files() string  { return filepath.Join(l.stateDir(), "files") }
func (l layout) images() string { return filepath.Join(l.stateDir(), "images") }
func (l layout) imagesOf(node string) string {
	return filepath.Join(l.nodeVar(node), "lib/k1s/images")
}

func (l layout) controlSocket(node string) string {
	return filepath.Join(l.nodeRun(node), "k1s", "k1s.sock")
}
func (l layout) proc(name string) string { return filepath.Join(l.runDir(), name+".proc.json") }

// links is how the switch tells about delayed links.
func (l layout) links() string { return filepath.Join(l.runDir(), "links.json") }

// changing is there while links are changed, and stays where that broke off.
func (l layout) changing() string              { return filepath.Join(l.runDir(), "links.changing") }
func (l layout) pins() string                  { return filepath.Join(l.runDir(), "ns") }
func (l layout) pin(owner, kind string) string { return filepath.Join(l.pins(), owner+"."+kind) }

// payload is where the payload is unpacked once for all clusters; it goes with the last of them.
func (l layout) payload() string { return filepath.Join(l.state, ".payload") }

// maxSocketPath is how long the path of a socket may be.
const maxSocketPath = 107

// socketsFit makes sure that the nodes of a cluster can be asked how they are: names of clusters are short
// enough for the usual directories, but not for any.
func socketsFit(l layout) error {
	longest := l.controlSocket(cluster.NodeName(cluster.Server, cluster.MaxServers-1))
	if too := len(longest) - maxSocketPath; too > 0 {
		return errs.Hint(errs.New(errs.Invalid, "the path of a node's control socket would be too long: %s", longest),
			"choose a directory or a name that is %d bytes shorter (%s=%s)", too, cluster.EnvRoot, filepath.Dir(l.run))
	}
	return nil
}

// switchName is the switch's name among the processes and namespaces of a cluster; no node is called so.
const switchName = "switch"

// Payloads is the directory, on this machine, in which all nodes of all clusters find and put the unpacked
// payload. It goes with the last cluster. Clients such as kubectl may be run from there.
func (p *Provider) Payloads() string { return layout{state: p.opts.State}.payload() }
