// Package control is the one way to know and to steer a running node: a small HTTP API on a unix
// socket (wire types, server and client). `k1s status`, `k1s logs`, the sandbox, the dashboard and the
// tests are its clients. Only root may open the socket; there is no other authentication.
package control

import (
	"time"

	"k1s.io/k1s/internal/backup"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/rotation"
	"k1s.io/k1s/internal/token"
	"k1s.io/k1s/internal/upgrade"
)

// State of a whole node.
type State string

// The states of a node, in the order it goes through them.
const (
	Starting State = "starting"
	Running  State = "running"
	Degraded State = "degraded" // it works, but something that should be ready is not
	Stopping State = "stopping"
)

// Status is everything a node knows about itself.
type Status struct {
	State State `json:"state"`
	// Doing is the step the node is at while it starts or stops, e.g. "waiting for the node to be Ready".
	Doing string    `json:"doing,omitempty"`
	Since time.Time `json:"since"`
	// ReadyAt is when the node was ready for work for the first time since the daemon started.
	ReadyAt    *time.Time `json:"readyAt,omitempty"`
	PID        int        `json:"pid"`
	Version    string     `json:"version"`
	Kubernetes string     `json:"kubernetes"`
	Payload    string     `json:"payload"`
	// Role is server or agent.
	Role      string `json:"role"`
	Cluster   string `json:"cluster"`
	Server    string `json:"server"`
	DataDir   string `json:"dataDir"`
	Isolation string `json:"isolation"`
	Node      *Node  `json:"node,omitempty"`
	// DNS tells whether the cluster's DNS answers on this node; nil where it is disabled or not to be asked yet.
	DNS        *DNS        `json:"dns,omitempty"`
	Components []Component `json:"components"`
	Addons     []Addon     `json:"addons,omitempty"`
	// Tunnels are those through which servers reach nodes; nil on a server without any.
	Tunnels *Tunnels `json:"tunnels,omitempty"`
	// Upgrade is the one on its way; nil is none.
	Upgrade  *upgrade.State   `json:"upgrade,omitempty"`
	Problems []health.Problem `json:"problems"`
}

// Tunnels are connections that nodes keep open to servers, through which servers reach them. A server knows its nodes,
// an agent its servers.
type Tunnels struct {
	Nodes       []TunnelNode      `json:"nodes,omitempty"`
	Unreachable []UnreachableNode `json:"unreachable,omitempty"`
	Servers     []TunnelServer    `json:"servers,omitempty"`
}

// TunnelNode is a node with a tunnel to this server.
type TunnelNode struct {
	Name  string    `json:"name"`
	From  string    `json:"from"` // its end, as this server sees it
	Since time.Time `json:"since"`
}

// UnreachableNode is a node that is Ready, and that this server reaches neither through a tunnel nor directly.
type UnreachableNode struct {
	Name   string `json:"name"`
	Reason string `json:"reason"` // why not directly
}

// TunnelServer is a server this node keeps a tunnel to, or tries.
type TunnelServer struct {
	Server    string    `json:"server"` // host:port
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"` // of being connected, or not
	// Answers tells that its API is well, as this node sees it.
	Answers bool   `json:"answers"`
	Note    string `json:"note,omitempty"` // why it is not connected
}

// Node is the Kubernetes node of this machine, as the API server sees it.
type Node struct {
	Name    string `json:"name"`
	IP      string `json:"ip"`
	Ready   bool   `json:"ready"`
	Reason  string `json:"reason,omitempty"`
	Kubelet string `json:"kubelet,omitempty"`
	Runtime string `json:"runtime,omitempty"`
	PodCIDR string `json:"podCIDR,omitempty"`
	Pods    Pods   `json:"pods"`
}

// DNS is the cluster's DNS as seen from this node.
type DNS struct {
	Address string `json:"address"`
	Answers bool   `json:"answers"`
	Reason  string `json:"reason,omitempty"`
}

// Pods counts the pods of a node.
type Pods struct {
	Total int `json:"total"`
	Ready int `json:"ready"`
	// NotReady names those that should be ready and are not, at most ten.
	NotReady []string `json:"notReady,omitempty"`
}

// Component is one upstream part.
type Component struct {
	Name     string     `json:"name"`
	Unit     string     `json:"unit"`
	State    string     `json:"state"`
	Since    time.Time  `json:"since"`
	PID      int        `json:"pid,omitempty"`
	UID      int        `json:"uid,omitempty"` // the user as whom it runs; 0, which is left out, is root
	Restarts int        `json:"restarts"`
	Note     string     `json:"note,omitempty"` // what it waits for, or why it is not well
	LastExit string     `json:"lastExit,omitempty"`
	RetryAt  *time.Time `json:"retryAt,omitempty"`
	// ReadyAt is when it was ready for the first time in this run.
	ReadyAt *time.Time `json:"readyAt,omitempty"`
	Log     string     `json:"log"`
}

// Addon is one stack of manifests.
type Addon struct {
	Name     string `json:"name"`
	State    string `json:"state"`
	Packaged bool   `json:"packaged"`
	// Note is what is wrong with it or what it waits for.
	Note string `json:"note,omitempty"`
	// Drift names objects whose fields somebody else has changed since.
	Drift []string `json:"drift,omitempty"`
}

// StopRequest is the body of POST /v1/stop.
type StopRequest struct {
	// Pods also ends the pods; otherwise they keep running and the next start finds them.
	Pods bool `json:"pods"`
}

// UpgradeRequest is the body of POST /v1/upgrade.
type UpgradeRequest struct {
	// DryRun answers with what would be done.
	DryRun bool `json:"dryRun,omitempty"`
	// File is the path of the new program, on this machine.
	File string `json:"file"`
	// SHA256 is what the file has to have, in hexadecimal digits; "" is not known.
	SHA256 string `json:"sha256,omitempty"`
	// AllowOlder lets it be an older program, within what the state of a cluster bears.
	AllowOlder bool `json:"allowOlder,omitempty"`
	// Timeout is how long the new program may take until the node is well, in nanoseconds.
	Timeout time.Duration `json:"timeout"`
}

// Upgrade is the answer: the upgrade that has begun, or would.
type Upgrade struct {
	State upgrade.State `json:"state"`
	// Same tells that the node runs this very file; nothing is done.
	Same bool `json:"same,omitempty"`
}

// What can be done with an upgrade of the cluster that is there.
const (
	ResumeUpgrade = "resume" // go on after a halt
	AbortUpgrade  = "abort"  // begin with no other node
)

// ClusterUpgradeRequest is the body of POST /v1/upgrade/cluster.
type ClusterUpgradeRequest struct {
	// Action is ResumeUpgrade or AbortUpgrade, which need nothing else; "" begins one.
	Action string `json:"action,omitempty"`
	// DryRun answers with what would be done.
	DryRun bool `json:"dryRun,omitempty"`
	// File is the path of the new program, on this machine; SHA256 and AllowOlder are as for one node.
	File       string `json:"file,omitempty"`
	SHA256     string `json:"sha256,omitempty"`
	AllowOlder bool   `json:"allowOlder,omitempty"`
	// Timeout is how long the new program may take on a node until that is well, and Drain how long pods may take to leave it, 0 for leaving
	// them where they are; in nanoseconds.
	Timeout time.Duration `json:"timeout,omitempty"`
	Drain   time.Duration `json:"drain,omitempty"`
	// Parallel is how many agents may go over at a time.
	Parallel int `json:"parallel,omitempty"`
}

// ClusterUpgrade is the upgrade of the cluster, the last there was.
type ClusterUpgrade struct {
	// ID is "" where there never was one, and where nobody knows who has signed it.
	ID string `json:"id,omitempty"`
	// Stage is going, halted, aborting, aborted or complete.
	Stage string `json:"stage,omitempty"`
	// From is what this server runs; only a request that begins one is told.
	From     upgrade.Program `json:"from,omitzero"`
	To       upgrade.Program `json:"to,omitzero"`
	Leader   string          `json:"leader,omitempty"`
	Began    time.Time       `json:"began,omitzero"`
	Ended    time.Time       `json:"ended,omitzero"`
	Parallel int             `json:"parallel,omitempty"`
	Drain    time.Duration   `json:"drain,omitempty"`
	Timeout  time.Duration   `json:"timeout,omitempty"`
	// Nodes are in the order in which they go.
	Nodes []ClusterUpgradeNode `json:"nodes"`
	// Waits is what is waited for, Note why nothing is known or it does not go on, Warnings what is worth knowing before.
	Waits    []string `json:"waits,omitempty"`
	Note     string   `json:"note,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// ClusterUpgradeNode is how far one node is.
type ClusterUpgradeNode struct {
	Name   string `json:"name"`
	Server bool   `json:"server,omitempty"`
	// Step is waiting, asking, draining, upgrading, upgraded, failed or gone.
	Step    string    `json:"step"`
	Since   time.Time `json:"since,omitzero"`
	Attempt int       `json:"attempt,omitempty"`
	// Version is that of k1s where the node has told it, Kubernetes that of its kubelet.
	Version       string `json:"version,omitempty"`
	Kubernetes    string `json:"kubernetes,omitempty"`
	Unschedulable bool   `json:"unschedulable,omitempty"`
	Error         string `json:"error,omitempty"`
	Hint          string `json:"hint,omitempty"`
}

// RenewRequest is the body of POST /v1/certificates/renew.
type RenewRequest struct {
	// All renews every certificate; otherwise only those of whose lifetime less than a third is left.
	All bool `json:"all"`
}

// Renewed is the answer: what was issued anew, and when more is due.
type Renewed struct {
	Certificates []Certificate `json:"certificates"`
	// Postponed would have been renewed if their authority's key were on this machine.
	Postponed []Certificate `json:"postponed,omitempty"`
	Next      time.Time     `json:"next,omitzero"`
}

// Certificate is one that was issued, and why.
type Certificate struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Rotation is how the cluster's authorities are replaced, or would be.
type Rotation struct {
	State rotation.State `json:"state"`
	// Waits is what the stage waits for, and Note why that is not known now, or why it does not go on.
	Waits []string `json:"waits,omitempty"`
	Note  string   `json:"note,omitempty"`
	// Behind are the nodes that are there and not where the stage wants them; Away those that are not there: they find their way.
	Behind   []string       `json:"behind,omitempty"`
	Away     []string       `json:"away,omitempty"`
	Nodes    []RotationNode `json:"nodes,omitempty"`
	Warnings []string       `json:"warnings,omitempty"`
	// Servers are all of a cluster of several, and how far each is; State is where they are brought to.
	Servers []RotationServer `json:"servers,omitempty"`
}

// RotationServer is what one of several servers has said of itself, in this moment.
type RotationServer struct {
	Name string `json:"name"`
	// Number and Stage are those it keeps, and Ready tells that its control plane works.
	Number int    `json:"number,omitempty"`
	Stage  string `json:"stage,omitempty"`
	Ready  bool   `json:"ready"`
	// There tells that it keeps and runs the stage of all.
	There bool `json:"there"`
	// Turn tells that it is the one that may go over to the stage now, Leader that it decides how it goes on.
	Turn   bool `json:"turn,omitempty"`
	Leader bool `json:"leader,omitempty"`
	// Error is why nothing is known of it.
	Error string `json:"error,omitempty"`
}

// RotationNode is what a node has said of itself.
type RotationNode struct {
	Name   string `json:"name"`
	Server bool   `json:"server,omitempty"`
	Ready  bool   `json:"ready"`
	// Trusts are the CAs it trusts, and Issuer is that of its certificates: "old", "new", or the beginning of another pin; "" is
	// not known.
	Trusts []string `json:"trusts,omitempty"`
	Issuer string   `json:"issuer,omitempty"`
}

// RotateRequest is the body of POST /v1/certificates/rotation.
type RotateRequest struct {
	// DryRun answers with what would be done.
	DryRun bool `json:"dryRun,omitempty"`
	// Dir has authorities of the user's in it; "" is none.
	Dir string `json:"dir,omitempty"`
	// Keep is for how long the old ones are trusted beside the new ones, in nanoseconds.
	Keep time.Duration `json:"keep"`
	// DropTokens ends tokens that the old key of service accounts has signed together with the old ones, instead of a day after
	// the new key signs: pods get others only when they are started anew, or within an hour.
	DropTokens bool `json:"dropTokens,omitempty"`
	// Abort calls the replacement off that is on its way, while nothing has been signed by the new ones; nothing else is looked at.
	Abort bool `json:"abort,omitempty"`
	// Finish stops trusting the old ones of the replacement that is on its way; nothing else is looked at.
	Finish bool `json:"finish,omitempty"`
}

// Encryption is how Secrets are kept in the database. It names keys and never holds one.
type Encryption struct {
	// Enabled tells that Secrets are written encrypted, or will be when the change is done.
	Enabled bool `json:"enabled"`
	// Configured is the provider that spec.secrets.encryption asks for.
	Configured string   `json:"configured,omitempty"`
	Resources  []string `json:"resources"`
	// Keys in the order the API server has them: the first writes, all read.
	Keys    []EncryptionKey    `json:"keys"`
	Change  *EncryptionChange  `json:"change,omitempty"`
	Checked *EncryptionChecked `json:"checked,omitempty"`
	// Servers are all of a cluster of several, and whether each uses these keys.
	Servers []EncryptionServer `json:"servers,omitempty"`
}

// EncryptionServer is what is known of the keys of one server.
type EncryptionServer struct {
	Name string `json:"name"`
	// Loaded tells that its API server uses the keys as they are here.
	Loaded bool `json:"loaded"`
	// Error is why nothing is known.
	Error string `json:"error,omitempty"`
}

// EncryptionKey is a key by its name; the provider identity has none.
type EncryptionKey struct {
	Provider string `json:"provider"`
	Name     string `json:"name,omitempty"`
	Writes   bool   `json:"writes"`
}

// EncryptionChange is one on its way.
type EncryptionChange struct {
	Action string    `json:"action"`
	Stage  string    `json:"stage"`
	Key    string    `json:"key,omitempty"` // "" is identity
	Since  time.Time `json:"since"`
	Leader string    `json:"leader,omitempty"` // the server that does it
	// Done and All count objects while they are written again.
	Done int `json:"done,omitempty"`
	All  int `json:"all,omitempty"`
	// Note is what it waits for, or why it does not go on.
	Note string `json:"note,omitempty"`
}

// EncryptionChecked is what was found when all objects had been written again.
type EncryptionChecked struct {
	At        time.Time `json:"at"`
	Objects   int       `json:"objects"`
	Rewritten int       `json:"rewritten"`
	Key       string    `json:"key,omitempty"` // all are written with it
}

// EncryptionRequest is the body of POST /v1/encryption.
type EncryptionRequest struct {
	// Action is enable, rotate or disable.
	Action string `json:"action"`
	// Provider of the new key; "" is the configured one, or that of the present key, or secretbox.
	Provider string `json:"provider,omitempty"`
}

// Token is what is known of a token that lets machines join.
type Token struct {
	token.Record
	Expired bool `json:"expired,omitempty"`
	// Problem says why its record cannot be read; nothing else is known then.
	Problem string `json:"problem,omitempty"`
}

// NodeRemoval is the answer to GET /v1/nodes/{name}/removal: what would be done, in this order.
type NodeRemoval struct {
	Steps []string `json:"steps"`
}

// TokenRequest is the body of POST /v1/tokens.
type TokenRequest struct {
	Role        string `json:"role"`
	Description string `json:"description,omitempty"`
	// TTL is how long it can be used, in nanoseconds; 0 is for ever.
	TTL time.Duration `json:"ttl"`
}

// NewToken is the answer: the only time the token itself is seen.
type NewToken struct {
	Token
	Text string `json:"token"`
	// Server is an address at which it can be used.
	Server string `json:"server"`
}

// Datastore is where the cluster's state is, and what was the matter with its last move.
type Datastore struct {
	migration.Place
	// Bytes is the size on the disk of a datastore on this server, or what the database says of itself; 0 is unknown.
	Bytes int64 `json:"bytes,omitempty"`
	// Revision is that of the last write; 0 while the API server does not answer.
	Revision int64            `json:"revision,omitempty"`
	Move     *migration.State `json:"move,omitempty"`
	// Progress of a move on its way.
	Progress *migration.Progress `json:"progress,omitempty"`
	Plan     *DatastorePlan      `json:"plan,omitempty"`
}

// DatastorePlan is what a request would do.
type DatastorePlan struct {
	Kind migration.Kind  `json:"kind"`
	From migration.Place `json:"from"`
	To   migration.Place `json:"to"`
	// Seen is what a migration would find.
	Seen *migration.Seen `json:"seen,omitempty"`
	// Lost are the differences between now and the datastore a rollback goes back to, and Since when that was left.
	Lost  []migration.Row `json:"lost,omitempty"`
	Since time.Time       `json:"since,omitzero"`
	// FreeBytes and NeededBytes are those of this server's disk, where the target is on it.
	FreeBytes   uint64 `json:"freeBytes,omitempty"`
	NeededBytes uint64 `json:"neededBytes,omitempty"`
	DropIn      string `json:"dropIn"` // the file of the configuration that is written
	// Servers are the others that go with it.
	Servers []string `json:"servers,omitempty"`
}

// DatastoreRequest is the body of POST /v1/datastore. Its fields are those of spec.datastore. It may hold a password, and
// goes through the control socket only.
type DatastoreRequest struct {
	Action migration.Kind `json:"action"`
	// DryRun answers with the plan and changes nothing.
	DryRun       bool   `json:"dryRun,omitempty"`
	Endpoint     string `json:"endpoint,omitempty"`
	EndpointFile string `json:"endpointFile,omitempty"`
	CAFile       string `json:"caFile,omitempty"`
	CertFile     string `json:"certFile,omitempty"`
	KeyFile      string `json:"keyFile,omitempty"`
	// Replace overwrites what is in the target.
	Replace bool `json:"replace,omitempty"`
}

// Etcd is the embedded etcd as this server's daemon knows it.
type Etcd struct {
	ClusterID string `json:"clusterID"`
	// ID is this server's member.
	ID       string `json:"id"`
	Version  string `json:"version"`
	Revision int64  `json:"revision"`
	// Bytes is the size of the file, InUse the part of it that is not free, Quota what it may grow to.
	Bytes int64 `json:"bytes"`
	InUse int64 `json:"inUse"`
	Quota int64 `json:"quota"`
	// Lag is how many entries of the log this member has yet to apply.
	Lag  uint64 `json:"lag"`
	Term uint64 `json:"term"`
	// FreeBytes is what can be written to its disk; 0 is unknown.
	FreeBytes uint64            `json:"freeBytes,omitempty"`
	Members   []etcdcare.Member `json:"members"`
	Alarms    []EtcdAlarm       `json:"alarms,omitempty"`
	// Upkeep is what k1s does, or why there is nothing to do.
	Upkeep       string            `json:"upkeep,omitempty"`
	Defragmented *EtcdDefragmented `json:"defragmented,omitempty"`
	Snapshots    EtcdSnapshots     `json:"snapshots"`
	Restore      *etcdcare.Restore `json:"restore,omitempty"`
	// Problem is why etcd cannot be asked; then nothing but Snapshots and Restore is known.
	Problem string `json:"problem,omitempty"`
}

// EtcdAlarm is one of a member.
type EtcdAlarm struct {
	Member string         `json:"member"`
	Alarm  etcdcare.Alarm `json:"alarm"`
}

// EtcdDefragmented is the last time this member was.
type EtcdDefragmented struct {
	At      time.Time `json:"at"`
	Before  int64     `json:"before"` // bytes
	After   int64     `json:"after"`
	Seconds float64   `json:"seconds"` // for which it did not answer
}

// EtcdSnapshots tells of snapshots by schedule.
type EtcdSnapshots struct {
	Schedule string          `json:"schedule"`
	Next     time.Time       `json:"next,omitzero"`
	Last     *etcdcare.Entry `json:"last,omitempty"`
	// Error is why the last one failed.
	Error string `json:"error,omitempty"`
}

// SnapshotRequest is the body of POST /v1/etcd/snapshots.
type SnapshotRequest struct {
	Name string `json:"name,omitempty"` // "" is one by node and time
}

// Snapshots is an answer about some.
type Snapshots struct {
	Snapshots []etcdcare.Entry `json:"snapshots"`
	Warnings  []string         `json:"warnings,omitempty"`
	// Problem is what failed after what Snapshots shows was done.
	Problem *errs.Wire `json:"problem,omitempty"`
}

// RemoveSnapshotsRequest is the body of POST /v1/etcd/snapshots/remove.
type RemoveSnapshotsRequest struct {
	// Names of snapshots, or their places. With Prune those that retention lets go instead.
	Names []string `json:"names,omitempty"`
	Prune bool     `json:"prune,omitempty"`
	// Keep is how many stay, nil what is configured; Manual is for those that somebody asked for as well.
	Keep   *int `json:"keep,omitempty"`
	Manual bool `json:"manual,omitempty"`
	DryRun bool `json:"dryRun,omitempty"`
}

// RestoreRequest is the body of POST /v1/etcd/restore.
type RestoreRequest struct {
	Snapshot string `json:"snapshot"` // a name, a file, an archived data directory, or s3://BUCKET/OBJECT
	// Foreign also takes one that may not fit here.
	Foreign bool `json:"foreign,omitempty"`
	// Alone restores although there are other members: this server becomes the only one.
	Alone  bool `json:"alone,omitempty"`
	DryRun bool `json:"dryRun,omitempty"`
}

// RestorePlan is what a restore would do.
type RestorePlan struct {
	Snapshot etcdcare.Entry `json:"snapshot"`
	// Unfit is what speaks against it.
	Unfit   []string `json:"unfit,omitempty"`
	Archive string   `json:"archive,omitempty"` // where the present data goes
	// Revision is the present one, 0 where it is not known.
	Revision int64 `json:"revision,omitempty"`
	// Others are the members that are left out.
	Others []string `json:"others,omitempty"`
	// Running tells that the control plane is stopped for it; otherwise nothing runs.
	Running bool `json:"running"`
}

// Restored is the answer to a RestoreRequest: Plan of one that is only to be shown, or how far it is.
type Restored struct {
	Plan    *RestorePlan      `json:"plan,omitempty"`
	Restore *etcdcare.Restore `json:"restore,omitempty"`
}

// BackupRequest is the body of POST /v1/backup.
type BackupRequest struct {
	Name string `json:"name"`
}

// Collected are the files of an archive that is to be written, in a directory only root may read, which who asked removes.
type Collected struct {
	Dir      string          `json:"dir"`
	Manifest backup.Manifest `json:"manifest"`
}

// LogOptions select what GET /v1/logs/{component} answers.
type LogOptions struct {
	Lines  int
	Follow bool
}
