package health

import (
	"fmt"
	"slices"
	"strings"
)

// The codes, by what they are about. docs/health-codes.md is generated from the registry below.
const (
	// The kernel and what it offers.
	NotRoot            Code = "not-root"
	KernelTooOld       Code = "kernel-too-old"
	NoNFTables         Code = "no-nftables"
	NFTablesIncomplete Code = "nftables-incomplete"
	NoOverlayFS        Code = "no-overlayfs"
	NoNamespaces       Code = "no-namespaces"
	NoSeccomp          Code = "no-seccomp"
	NoCapSysResource   Code = "no-cap-sys-resource"
	CgroupV1           Code = "cgroup-v1"
	NoCgroups          Code = "no-cgroups"
	CgroupControllers  Code = "cgroup-controllers"
	ProcSysReadonly    Code = "proc-sys-readonly"
	IPForwarding       Code = "ip-forwarding"
	BridgeNetfilter    Code = "bridge-netfilter"
	ConntrackReadonly  Code = "conntrack-limits-readonly"
	InotifyLow         Code = "inotify-low"
	OpenFilesLow       Code = "open-files-low"
	SELinux            Code = "selinux"
	Swap               Code = "swap"
	NoUsers            Code = "no-users"
	FileClosed         Code = "file-closed"

	// The machine's resources and identity.
	MemoryLow       Code = "memory-low"
	DiskLow         Code = "disk-low"
	InodesLow       Code = "inodes-low"
	DiskSlow        Code = "disk-slow"
	DataDirReadonly Code = "data-dir-readonly"
	DataDirFS       Code = "data-dir-fs"
	Clock           Code = "clock"
	ClockSkew       Code = "clock-skew"
	HostName        Code = "hostname"

	// The network.
	NodeIP          Code = "node-ip"
	PortInUse       Code = "port-in-use"
	CIDROverlap     Code = "cidr-overlap"
	ForeignFirewall Code = "foreign-firewall"

	// What somebody left on the machine.
	LeftoverMounts    Code = "leftover-mounts"
	LeftoverLinks     Code = "leftover-links"
	LeftoverProcesses Code = "leftover-processes"

	// k1s itself.
	BundleUnreadable   Code = "bundle-unreadable"
	BundlesUnwatched   Code = "bundles-unwatched"
	BaseImage          Code = "base-image"
	PayloadRepaired    Code = "payload-repaired"
	ComponentCrashloop Code = "component-crashloop"
	ComponentDegraded  Code = "component-degraded"
	CertExpiring       Code = "cert-expiring"
	CAUnusable         Code = "ca-unusable"
	CARotation         Code = "ca-rotation"
	DatabaseCorrupt    Code = "database-corrupt"
	EncryptionKeys     Code = "encryption-keys"
	EncryptionStuck    Code = "encryption-stuck"
	SecretsUnreadable  Code = "secrets-unreadable"
	DatabaseAway       Code = "database-away"
	DatabaseRefuses    Code = "database-refuses"
	DatabaseHalf       Code = "database-half-restored"
	DatabaseLeft       Code = "database-left"
	DatastoreMove      Code = "datastore-move"
	EtcdNoSpace        Code = "etcd-no-space"
	EtcdNearlyFull     Code = "etcd-nearly-full"
	EtcdCorrupt        Code = "etcd-corrupt"
	EtcdDiskLow        Code = "etcd-disk-low"
	EtcdNoLeader       Code = "etcd-no-leader"
	EtcdMemberAway     Code = "etcd-member-away"
	SnapshotFailed     Code = "snapshot-failed"
	NodeNotReady       Code = "node-not-ready"
	ServersAway        Code = "servers-away"
	JoinClosed         Code = "join-closed"
	NodeUnreachable    Code = "node-unreachable"
	TunnelDown         Code = "tunnel-down"
	SettingsChanged    Code = "settings-changed"
	NoMember           Code = "no-member"
	ServerRemoved      Code = "server-removed"
	AddonFailed        Code = "addon-failed"
	RegistryConfig     Code = "registry-config"
	UpgradeFailed      Code = "upgrade-failed"
	UpgradeHalted      Code = "upgrade-halted"
	CheckFailed        Code = "check-failed"
)

// Doc is what is known about a code in general.
type Doc struct {
	Code Code
	// Severity is the usual one; a Problem may have another where Meaning says so.
	Severity Severity
	// Meaning says when it is raised and what it brings.
	Meaning string
	// Remedy is what to do in general.
	Remedy string
}

type section struct {
	title string
	docs  []Doc
}

// registry is the one list of codes, in the order of the page.
func registry() []section {
	return []section{
		{"The kernel and what it offers", []Doc{
			{NotRoot, Error, "k1s was started by an ordinary user. A node makes cgroups, mounts and links.", "run it as root, e.g. with sudo"},
			{KernelTooOld, Error, "The kernel is older than 5.13, with which kube-proxy's nftables mode works.", "boot a kernel of version 5.13 or newer"},
			{NoNFTables, Error, "The kernel has no nf_tables. Services and pod addresses are made with it; iptables are not used.", "load the module nf_tables (modprobe nf_tables), or boot a kernel with CONFIG_NF_TABLES"},
			{NFTablesIncomplete, Error, "nf_tables is there, but some expression that kube-proxy, flannel or the port mapper needs is not.", "load the modules named, or boot a kernel that has them"},
			{NoOverlayFS, Error, "The overlay file system does not work below the data directory, so container images cannot be unpacked quickly or at all.", "load the module overlay, or put the data directory on ext4 or xfs (with ftype=1)"},
			{NoNamespaces, Error, "The kernel lacks a kind of namespace that containers need.", "boot a kernel with CONFIG_NAMESPACES and all its kinds"},
			{NoSeccomp, Warning, "The kernel has no seccomp filters. Pods that ask for a seccomp profile fail, the others run without one.", "boot a kernel with CONFIG_SECCOMP_FILTER"},
			{NoCapSysResource, Info, "The capability CAP_SYS_RESOURCE is missing, so the out-of-memory killer cannot be kept away from system processes and their limits cannot be raised. k1s adapts.", "give the container or service that runs k1s this capability"},
			{CgroupV1, Warning, "The machine uses cgroup v1 or the hybrid layout, which Kubernetes is about to drop. Everything works; memory QoS and some accounting do not.", "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 alone"},
			{NoCgroups, Error, "No cgroup file system is mounted at /sys/fs/cgroup.", "mount it: mount -t cgroup2 none /sys/fs/cgroup"},
			{CgroupControllers, Error, "A cgroup controller the kubelet needs is not available. For pids and a few others it is a warning.", "enable it on the kernel's command line, e.g. cgroup_enable=memory cgroup_memory=1"},
			{ProcSysReadonly, Warning, "/proc/sys is mounted read-only, as in an unprivileged container. Kernel settings stay as they are; an error where one of them is wrong.", "run privileged, or mount /proc/sys writable"},
			{IPForwarding, Info, "The kernel does not forward IPv4 packets yet; k1s turns it on. An error where it cannot.", "run: sysctl -w net.ipv4.ip_forward=1"},
			{BridgeNetfilter, Warning, "Bridged packets do not pass the firewall, so with a network plugin that bridges pods (network.backend: none) a pod may not reach a Service whose answering pod is on the same node. k1s' own network routes them.", "run: modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1"},
			{ConntrackReadonly, Info, "The connection tracking limits cannot be set from here, as in a network namespace of its own. kube-proxy leaves them alone.", "set net.netfilter.nf_conntrack_max on the machine itself if connections are dropped"},
			{InotifyLow, Warning, "Few inotify instances or watches are allowed. Log following and configuration reload fail with \"too many open files\" when they run out.", "run: sysctl -w fs.inotify.max_user_instances=512 fs.inotify.max_user_watches=524288"},
			{OpenFilesLow, Warning, "The limit of open files is low for an API server and a container runtime.", "raise it: ulimit -n 1048576, or LimitNOFILE= in the service"},
			{SELinux, Info, "SELinux is enforcing. The data directory needs the labels of a container runtime.", "label it: semanage fcontext -a -t container_var_lib_t '/var/lib/k1s(/.*)?' && restorecon -R /var/lib/k1s"},
			{Swap, Info, "Swap is on. Pods do not use it; the machine may become slow instead of running out of memory.", "nothing has to be done; swapoff -a avoids surprises in latency"},
			{NoUsers, Error, "spec.users.separate is set, and processes cannot be started as another user here, or files cannot be given to one: a right is missing, as in a container, or the file system knows no owners, or what leads to the data directory is closed.", "give k1s the right that the text names, open the directories above the data directory (chmod o+x), or set spec.users.separate: false"},
			{FileClosed, Error, "spec.users.separate is set, and a file of yours that the configuration names cannot be read by the component's user. k1s changes nothing about files that are not its own.", "give it to the group that the text names, and let that read it: chgrp GROUP FILE; chmod g+r FILE"},
		}},
		{"The machine", []Doc{
			{MemoryLow, Warning, "Less than 768 MB of memory may be used here; below 400 MB it is an error.", "give the machine, or the cgroup k1s runs in, more memory"},
			{DiskLow, Warning, "Less than 2 GB is free where the data directory is; below 500 MB it is an error, and k1s does not start. The kubelet evicts pods when a disk is nearly full. With SQLite on a full disk the API refuses every change; what it has acknowledged stays, and it goes on by itself when there is room.", "free some space, or move the data directory"},
			{InodesLow, Warning, "Few inodes are free where the data directory is; container images need many.", "delete small files, or put the data directory on another file system"},
			{DiskSlow, Warning, "Writing safely to the data directory takes long (median over 20 ms per fsync). Every change in the cluster waits for it.", "put the data directory on a faster disk"},
			{DataDirReadonly, Error, "The data directory cannot be written to: read-only, full, or not permitted.", "remount it writable, or choose another data directory"},
			{DataDirFS, Warning, "The data directory is on a file system that does not suit: a network one locks unreliably and loses databases (error), one in memory is empty after a reboot.", "put the data directory on a local disk"},
			{Clock, Error, "The machine's clock is wrong: before this program was made, or before the cluster's certificates were. TLS fails then.", "set the clock, e.g. with timedatectl set-time or an NTP client, and start again"},
			{ClockSkew, Warning, "The clock of another server differs from this one's by more than 5 seconds. What one of them issues, certificates and pods' tokens, may not be valid yet for the other, or not any more. Nothing is lost: the datastore does not go by the clock.", "set the clock of the server that is wrong, e.g. with an NTP client, and restart k1s there"},
			{HostName, Warning, "The host name is not a valid node name. k1s derives one from it; an error where it cannot.", "set spec.node.name, or run: hostnamectl set-hostname NAME"},
		}},
		{"The network", []Doc{
			{NodeIP, Error, "No address was found that other nodes and pods can reach this node at, or the configured one is on no interface (warning).", "give an interface an address, or set spec.node.ip"},
			{PortInUse, Error, "Another program listens on a port that a component needs.", "stop that program, or choose another port in the configuration"},
			{CIDROverlap, Error, "Addresses of pods or services are in use by the machine's own network. Where the machine's route is the wider one it is a warning: those hosts cannot be reached from here.", "choose other ranges: spec.network.podCIDR and spec.network.serviceCIDR"},
			{ForeignFirewall, Warning, "A firewall on this machine drops forwarded or incoming packets unless a rule allows them, so pods may not be reached.", "allow the pod and service ranges in that firewall"},
		}},
		{"What somebody left on the machine", []Doc{
			{LeftoverMounts, Warning, "Mounts of an earlier kubelet or container runtime are still there.", "run: k1s reset, or reboot"},
			{LeftoverLinks, Warning, "Network interfaces of an earlier cluster are still there. Another pod range on them confuses routing.", "run: k1s reset, or delete them with ip link delete NAME"},
			{LeftoverProcesses, Warning, "Another Kubernetes distribution runs on this machine.", "stop it, or run k1s in a sandbox: k1s cluster create"},
		}},
		{"k1s itself", []Doc{
			{BundleUnreadable, Warning, "An image archive in the bundles directory cannot be read; its images are missing.", "copy the archive again, or remove it"},
			{BundlesUnwatched, Warning, "The kernel does not tell about changes in the bundles directory; it is looked at every 10 seconds.", "allow more watches: sysctl -w fs.inotify.max_user_watches=65536 fs.inotify.max_user_instances=1024"},
			{BaseImage, Error, "The image that every pod's sandbox runs from cannot be made; no pod can start.", "see: k1s logs images; if the payload was damaged, start k1s again, which unpacks it anew"},
			{PayloadRepaired, Info, "A file of the unpacked programs was missing or changed and has been unpacked again.", "check the disk when it happens more than once"},
			{ComponentCrashloop, Error, "A component ends again and again; it is restarted with growing pauses.", "read its log: k1s logs COMPONENT"},
			{ComponentDegraded, Warning, "A component runs but its readiness check fails.", "read its log: k1s logs COMPONENT"},
			{CertExpiring, Warning, "A certificate ends soon. Those k1s issues are renewed by themselves; a certificate authority is not. It is an event of the node as well, CertificateExpiring, every hour.", "see: k1s certs; renew with: k1s certs renew, and a certificate authority with: k1s certs rotate-ca"},
			{CAUnusable, Error, "A certificate authority or the service account key is there but cannot be used. k1s never replaces one: all nodes and tokens depend on it.", "restore the pki directory from a backup"},
			{CARotation, Warning, "Replacing the cluster's CA does not go on, or nodes that are there have no certificates of the new one. The old one is trusted meanwhile.", "see for whom it waits: k1s certs rotate-ca --status; a node that is gone for good: k1s node remove NAME"},
			{DatabaseCorrupt, Error, "The cluster's database is damaged.", "restore it from a backup"},
			{DatabaseAway, Error, "The database the configuration names does not answer. The API waits for it.", "start it, and check its address and what is between: spec.datastore.endpoint"},
			{DatabaseRefuses, Error, "The database answers, and does not let k1s in, or does not let it do what it has to: the password, a certificate or a right is wrong.", "correct what the text names, see docs/how-to/datastores.md; it is tried again"},
			{DatabaseHalf, Error, "A restore of a backup to a database of others broke off, so only half of the cluster is in it. The API server waits and serves nothing from it: what belongs to objects that are still to come would be deleted.", "stop k1s, and run the same k1s backup restore again; or empty the database, /k1s.io included"},
			{DatabaseLeft, Error, "The servers have moved the cluster's state from this database to another one, and this server is still configured for the one that was left. The API server serves nothing from it: what it would write there is lost to the others.", "name the new datastore in spec.datastore as on the other servers, or k1s node remove this server there, k1s reset --force here, and join again; to go back: k1s datastore rollback on the server that was asked for the migration"},
			{DatastoreMove, Error, "Another server moves the datastore, and this one has stopped its API server for that. It does not know yet what was decided, or cannot do what follows from it.", "start the server that moves it. After ten minutes without it this one takes the old datastore into use again, if the new one says that nothing else was decided; so that has to answer"},
			{EtcdNoSpace, Error, "The embedded etcd has used up its quota: the API can be read, and objects can be deleted, but nothing can be written. Where that helps k1s forgets old revisions and gives the space back by itself.", "set a larger spec.etcd.quota and restart k1s, or delete what is not needed (k1s kubectl delete); see docs/how-to/etcd.md"},
			{EtcdNearlyFull, Warning, "Most of the embedded etcd's quota is in use. When it is used up nothing can be written.", "set a larger spec.etcd.quota and restart k1s, or delete what is not needed; see docs/how-to/etcd.md"},
			{EtcdCorrupt, Error, "The members of the embedded etcd do not have the same data, which means that a disk or a memory has changed something. It takes no writes, and nothing is done by itself.", "take a snapshot of a server whose data is right and restore it there (k1s etcd snapshot); the others join again; see docs/how-to/etcd.md"},
			{EtcdDiskLow, Warning, "Little is free on the disk of the embedded etcd. It ends when it cannot write its log; below 192 MB it is an error.", "free some space, or move the data directory to a larger disk"},
			{EtcdNoLeader, Error, "More than half of the embedded etcd's members have to answer for one of them to lead. Nothing can be written until then; pods go on.", "start the servers that are away, and name one that is there where all have got other addresses (--server); see docs/how-to/etcd.md if they do not come back"},
			{EtcdMemberAway, Warning, "A server has not been seen for ten minutes or more. Its member of etcd counts as one that is missing: with two of three left, none of them may fail. Where spec.etcd.removeDeadAfter says so it is removed by itself, and when is told before.", "start it; if it does not come back: k1s node remove NAME"},
			{SnapshotFailed, Warning, "The last snapshot of etcd by schedule was not taken, or not copied to S3. It is tried again at its next time, and after ten minutes.", "correct what the text names, then run: k1s etcd snapshot save"},
			{EncryptionKeys, Error, "The file with the keys of Secrets, or the API server's copy of it, is damaged or gone. k1s never replaces keys it does not know to be unused: what they encrypted could not be read any more.", "put the directory encryption back from a backup of the data directory"},
			{EncryptionStuck, Warning, "Encrypting Secrets, or changing their key, does not go on. Nothing is lost and everything can be read; it is tried again.", "correct what the text names"},
			{SecretsUnreadable, Error, "The API server cannot read Secrets in the database: they are encrypted with a key it does not have. Pods that need them do not start.", "put the directory encryption back that belongs to this database, from a backup of the data directory, and start k1s again"},
			{NodeNotReady, Error, "This node is registered but not ready.", "run: k1s kubectl describe node"},
			{ServersAway, Error, "An agent cannot reach a server of its cluster. One that has joined before goes on with its pods; a new one waits.", "check that the servers run (k1s status) and that this machine reaches port 6443 of one of them"},
			{JoinClosed, Error, "Machines that want to join this server are not answered. Nodes that have joined are not concerned, until they have to renew their certificates.", "look at k1s' own log, and restart k1s"},
			{NodeUnreachable, Warning, "A node is Ready, and this server reaches it neither through a tunnel, which the node opens, nor directly. Its pods run; logs, exec, port-forward, and webhooks and aggregated APIs on it do not work through this server.", "let the node reach port 6443 of this server, and look there: k1s status, k1s logs balancer"},
			{TunnelDown, Warning, "A server of the cluster answers this agent, and the agent cannot keep the connection to it through which the server reaches its kubelet and pods.", "see: k1s logs balancer; what is between them has to let connections live that are upgraded (HTTP/1.1 Upgrade) and quiet for 10 seconds"},
			{SettingsChanged, Warning, "The servers have settings now, such as the network backend, that this agent was not started with.", "restart k1s on this node: it takes the cluster's settings"},
			{NoMember, Error, "A server that joins does not get its place in the cluster's datastore.", "read the text; restart k1s on this server: it asks again"},
			{ServerRemoved, Error, "The other servers have removed this one. Its control plane is stopped, and its data is put aside beside the data directory's etcd.", "to join again, restart it with --server and a new token (k1s token create --role server); to give up what is on it: k1s reset"},
			{AddonFailed, Warning, "A packaged component or a manifest of yours could not be applied.", "correct what the text names; it is tried again"},
			{RegistryConfig, Warning, "registries.yaml cannot be used as it is; images come from where they came before.", "correct what the text names"},
			{UpgradeFailed, Warning, "Another k1s was tried on this node and did not make it work, so the one before runs again, with everything it had. It is told for a day.", "the text says what was in the way; look closer with: k1s upgrade --status, k1s logs NAME"},
			{UpgradeHalted, Warning, "The upgrade of the cluster has stopped at the first node that did not go over, or cannot go on: no other node is begun with. Nodes that went over stay so, the one that failed runs what it ran before.", "mend what is named, then: k1s upgrade resume; or leave it as it is: k1s upgrade abort"},
			{CheckFailed, Warning, "A preflight check could not be made, so nothing is known about what it looks at.", "read the text: most often a permission is missing"},
		}},
	}
}

// Codes returns everything about every code, in the order of the page.
func Codes() []Doc {
	var out []Doc
	for _, s := range registry() {
		out = append(out, s.docs...)
	}
	return out
}

// Lookup returns what is known about a code.
func Lookup(code Code) (Doc, bool) {
	docs := Codes()
	i := slices.IndexFunc(docs, func(d Doc) bool { return d.Code == code })
	if i < 0 {
		return Doc{}, false
	}
	return docs[i], true
}

// Page renders docs/health-codes.md.
func Page() string {
	var b strings.Builder
	b.WriteString(`# Health codes

What ` + "`k1s check`, `k1s status`" + ` and the dashboard may report. A problem has a code that does not change between versions, a
severity, a sentence and a remedy. At start an **error** keeps k1s from starting; a **warning** means that something is degraded; an
**info** is worth knowing. The severity below is the usual one.

This page is generated: ` + "`go test ./internal/health -update`." + `
`)
	for _, s := range registry() {
		fmt.Fprintf(&b, "\n## %s\n\n| code | severity | meaning | remedy |\n|---|---|---|---|\n", s.title)
		for _, d := range s.docs {
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", d.Code, d.Severity, d.Meaning, d.Remedy)
		}
	}
	return b.String()
}
