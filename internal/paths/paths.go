// Package paths names every file, directory and socket k1s owns on a machine. It computes names and
// touches nothing. docs/data-dir.md describes the same tree for users.
package paths

import (
	"path"
	"time"
)

// Defaults of the three roots.
const (
	DefaultData   = "/var/lib/k1s"
	DefaultRun    = "/run/k1s"
	DefaultConfig = "/etc/k1s"
	// DefaultKubelet is where CSI drivers expect the kubelet's directory; moving it breaks them.
	DefaultKubelet = "/var/lib/kubelet"
)

// Paths are the roots of one node. The zero value is not useful, see Default. Separators are always
// "/": these are names on the node, whatever machine renders them.
type Paths struct {
	Data    string // survives a reboot: database, certificates, images
	Run     string // sockets, pid records; gone after a reboot
	Config  string // what the user writes
	Kubelet string // the kubelet's own directory
}

// Default are the roots of a node that runs directly on a machine.
func Default() Paths {
	return Paths{Data: DefaultData, Run: DefaultRun, Config: DefaultConfig, Kubelet: DefaultKubelet}
}

// What the user writes.
func (p Paths) ConfigFile() string     { return path.Join(p.Config, "config.yaml") }
func (p Paths) ConfigDropIns() string  { return path.Join(p.Config, "config.d") }
func (p Paths) RegistriesFile() string { return path.Join(p.Config, "registries.yaml") }
func (p Paths) AdminKubeconfig() string {
	return path.Join(p.Config, "admin.kubeconfig")
}

// Persistent state.
func (p Paths) Payloads() string       { return path.Join(p.Data, "payload") }
func (p Paths) CurrentPayload() string { return path.Join(p.Data, "payload", "current") }
func (p Paths) PKI(elem ...string) string {
	return path.Join(append([]string{p.Data, "pki"}, elem...)...)
}

// Upgrade keeps how far the last upgrade of k1s came.
func (p Paths) Upgrade() string { return path.Join(p.Data, "upgrade.json") }

// Rotation keeps how far the replacement of the cluster's authorities is.
func (p Paths) Rotation() string { return p.PKI("rotation.json") }

// Kubeconfig is the client configuration of one component, e.g. "kubelet".
func (p Paths) Kubeconfig(component string) string {
	return path.Join(p.Data, "kubeconfig", component+".kubeconfig")
}

// Rendered is a file written from a component's Spec, e.g. kubelet.yaml.
func (p Paths) Rendered(name string) string { return path.Join(p.Data, "rendered", name) }
func (p Paths) DB() string                  { return path.Join(p.Data, "db") }
func (p Paths) Etcd() string                { return path.Join(p.Data, "etcd") }
func (p Paths) Containerd() string          { return path.Join(p.Data, "containerd") }

// Bundles holds image archives the user drops in; they are imported, pinned and watched.
func (p Paths) Bundles() string { return path.Join(p.Data, "images") }

// Manifests holds the user's manifests; each direct sub-directory or file is a stack.
func (p Paths) Manifests() string { return path.Join(p.Data, "manifests") }

// Packaged holds the manifests k1s brings; it is rewritten at every start.
func (p Paths) Packaged() string { return path.Join(p.Data, "packaged") }

// Storage is where local-path keeps volumes.
func (p Paths) Storage() string    { return path.Join(p.Data, "storage") }
func (p Paths) CNIConf() string    { return path.Join(p.Data, "cni", "conf") }
func (p Paths) CNIState() string   { return path.Join(p.Data, "cni", "state") }
func (p Paths) Registries() string { return path.Join(p.Data, "containerd", "certs.d") }

// RegistryAuth holds credentials for containerd, made from the registries file.
func (p Paths) RegistryAuth() string   { return path.Join(p.Data, "containerd", "auth.toml") }
func (p Paths) Ledger() string         { return path.Join(p.Data, "ledger.json") }
func (p Paths) Logs() string           { return path.Join(p.Data, "log") }
func (p Paths) Log(unit string) string { return path.Join(p.Data, "log", unit+".log") }
func (p Paths) AuditLog() string       { return path.Join(p.Data, "log", "audit.log") }

// AuditLogApart is the audit log of an API server that is not root: it rotates it, and so needs a directory that is its own.
func (p Paths) AuditLogApart() string { return path.Join(p.Data, "log", "audit", "audit.log") }

// Users keeps which users and groups files were given to, for as long as some may be theirs.
func (p Paths) Users() string { return path.Join(p.Data, "users.json") }

// EncryptionKeys holds the keys Secrets are encrypted with; EncryptionConfig is what follows from it for API servers.
func (p Paths) EncryptionKeys() string   { return path.Join(p.Data, "encryption", "keys.json") }
func (p Paths) EncryptionConfig() string { return path.Join(p.Data, "encryption", "config.json") }

// EncryptionServers are the other servers, to be asked for keys at the next start; EncryptionKeysAside are keys that were
// replaced by those of another time.
func (p Paths) EncryptionServers() string { return path.Join(p.Data, "encryption", "servers") }
func (p Paths) EncryptionKeysAside(t time.Time) string {
	return path.Join(p.Data, "encryption", "keys-"+t.UTC().Format("20060102T150405Z")+".json")
}

// Agent is what a node that joined keeps of its cluster, Servers the API servers it has learned of.
func (p Paths) Agent() string   { return path.Join(p.Data, "agent.json") }
func (p Paths) Servers() string { return path.Join(p.Data, "servers.json") }

// Programs holds the k1s that the cluster is upgraded to, while it is.
func (p Paths) Programs() string { return path.Join(p.Data, "programs") }

// Server is what a server keeps of the other servers.
func (p Paths) Server() string { return path.Join(p.Data, "server.json") }

// DatastorePKI holds what a server that joined reaches a database of others with.
func (p Paths) DatastorePKI(name string) string { return path.Join(p.Data, "pki", "datastore", name) }

// Run-time state.
func (p Paths) Lock() string             { return path.Join(p.Data, "daemon.lock") }
func (p Paths) ControlSocket() string    { return path.Join(p.Run, "k1s.sock") }
func (p Paths) ContainerdSocket() string { return path.Join(p.Run, "containerd", "containerd.sock") }
func (p Paths) ContainerdState() string  { return path.Join(p.Run, "containerd") }
func (p Paths) JoinSocket() string       { return path.Join(p.Run, "join.sock") }

// Of is where a component keeps what it makes at run time, in a directory of its own so that it can have a user of its own.
func (p Paths) Of(component string, elem ...string) string {
	return path.Join(append([]string{p.Run, component}, elem...)...)
}
func (p Paths) KineSocket() string { return p.Of("kine", "kine.sock") }

// Claim is where the API server tells whose a database of others is.
func (p Paths) Claim() string { return p.Of("kube-apiserver", "claim.json") }

// Tunnels is the file in which the API server of a server tells which tunnels there are, AgentTunnels where the balancer of an agent does.
func (p Paths) Tunnels() string      { return p.Of("kube-apiserver", "tunnels.json") }
func (p Paths) AgentTunnels() string { return path.Join(p.Run, "tunnels.json") }

// PodsLeft is there when a daemon that was asked to end the node's pods could not, and says why.
func (p Paths) PodsLeft() string { return path.Join(p.Run, "pods-left") }

// Datastore holds the DSN of a database of others, for kine; DatastoreStatus what kine has to say about it.
func (p Paths) Datastore() string       { return path.Join(p.Run, "datastore") }
func (p Paths) DatastoreStatus() string { return p.Of("kine", "datastore.json") }

// Moving is where a move of the datastore keeps its sockets and what opens them, one time after the other.
func (p Paths) Moving(name string) string { return path.Join(p.Run, "datastore-move", name) }

// DatastoreGoing is how the datastore is reached to which several servers are on their way, for the one that leads; Following what one
// that goes with it keeps.
func (p Paths) DatastoreGoing() string { return path.Join(p.Data, "datastore", "going.json") }
func (p Paths) Following() string      { return path.Join(p.Data, "datastore", "following.json") }

// Migration keeps how far the last move of the datastore has come, and DatastoreBefore the configuration that a rollback
// of the move with that id brings back; it may hold a password.
func (p Paths) Migration() string { return path.Join(p.Data, "datastore", "migration.json") }
func (p Paths) DatastoreBefore(id string) string {
	return path.Join(p.Data, "datastore", "before-"+id+".json")
}

// Snapshots is where snapshots of etcd are when nothing else is configured. EtcdCare keeps what the schedule needs, and
// EtcdRestore how far the last restore has come, while the new data directory is made in EtcdStaged; the old one becomes
// EtcdArchive.
func (p Paths) Snapshots() string   { return path.Join(p.Data, "snapshots") }
func (p Paths) EtcdCare() string    { return path.Join(p.Data, "datastore", "etcd-care.json") }
func (p Paths) EtcdRestore() string { return path.Join(p.Data, "datastore", "etcd-restore.json") }
func (p Paths) EtcdStaged(id string) string {
	return path.Join(p.Data, "etcd-restoring-"+id)
}
func (p Paths) EtcdArchive(at string) string { return path.Join(p.Data, "etcd-before-"+at) }

// Backups is where archives of the whole state are when nothing else is said; BackupStaging is where the files of one are
// gathered.
func (p Paths) Backups() string { return path.Join(p.Data, "backups") }
func (p Paths) BackupStaging(id string) string {
	return path.Join(p.Data, "backup-making-"+id)
}

// Restore keeps how far the last restore of a backup has come. What is to be is made in RestoreStaged, which has the form of Data;
// what was goes to RestoreArchive.
func (p Paths) Restore() string                { return path.Join(p.Data, "restore.json") }
func (p Paths) RestoreStaged(id string) string { return path.Join(p.Data, "restoring-"+id) }
func (p Paths) RestoreArchive(at string) string {
	return path.Join(p.Data, "before-restore-"+at)
}

// RestoreDropIn has the settings of the cluster a backup was restored of, as far as the configuration says nothing else.
func (p Paths) RestoreDropIn() string { return path.Join(p.ConfigDropIns(), "zz-k1s-restored.yaml") }

// DatastoreDropIn says where the state is since it was moved. It sorts behind the names people give.
func (p Paths) DatastoreDropIn() string { return path.Join(p.ConfigDropIns(), "zz-k1s-datastore.yaml") }

// Unit is the record of a running unit: pid, start time, Spec hash. It is what a new daemon adopts by.
func (p Paths) Unit(name string) string  { return path.Join(p.Run, "units", name+".json") }
func (p Paths) Units() string            { return path.Join(p.Run, "units") }
func (p Paths) Group(name string) string { return path.Join(p.Run, "groups", name+".json") }
