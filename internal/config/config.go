// Package config is what the user writes: one file, drop-ins, environment variables and flags, all
// views of the same Config. Precedence is flag > environment > file > default. Unknown or wrong fields
// are errors that name file, line and the nearest right name.
//
// Every field is reachable in four ways that follow from its path in the file: spec.api.port is the
// flag --api-port, the variable K1S_API_PORT and the argument of `k1s config explain`.
package config

//go:generate go run ./gen

// APIVersion and Kind open every configuration file.
const (
	APIVersion = "k1s.io/v1alpha1"
	Kind       = "Config"
)

// Config is the whole configuration of a node.
type Config struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       Spec   `json:"spec"`
}

// Spec holds the settings. The tags are all there is to a field: `doc`, `default`, `enum` (values
// allowed) and `example` (as in the file) are what `config explain`, --help and the reference show;
// flag:"-" keeps a field out of flags and environment, and flag:"NAME" gives it a shorter name there; shared:"true" marks
// what all nodes of a cluster have to agree about, see Shared; scalar:"any" lets numbers and booleans stand for
// strings without quotes.
type Spec struct {
	Cluster   Cluster   `json:"cluster" doc:"the cluster this node is part of"`
	Join      Join      `json:"join" doc:"the cluster to join"`
	Node      Node      `json:"node" doc:"this node"`
	API       API       `json:"api" doc:"the Kubernetes API"`
	Network   Network   `json:"network" doc:"pod and service networks"`
	Datastore Datastore `json:"datastore" doc:"where the cluster's state is kept"`
	Etcd      Etcd      `json:"etcd" doc:"the embedded etcd, where that is the datastore"`
	Runtime   Runtime   `json:"runtime" doc:"the container runtime"`
	Images    Images    `json:"images" doc:"container images"`
	Audit     Audit     `json:"audit" doc:"the API audit log"`
	Secrets   Secrets   `json:"secrets" doc:"Secrets in the datastore"`
	Role      string    `json:"role" doc:"what this machine is: server (control plane, and worker), or agent (worker of a cluster that is there)" enum:"server,agent" default:"server"`
	// Isolation decides how many processes the components share.
	Isolation  string                   `json:"isolation" doc:"processes: grouped (control plane, node, containerd), component (one each), none (all but containerd in one)" enum:"grouped,component,none" default:"grouped"`
	Users      Users                    `json:"users" doc:"as whom the control plane runs"`
	NoWorker   bool                     `json:"noWorker" doc:"run the control plane only: no kubelet and no container runtime, nothing is scheduled here" example:"true"`
	Disable    []string                 `json:"disable,omitempty" doc:"packaged components to leave out: coredns, metrics-server, local-path, network-policy" example:"[metrics-server]"`
	Gates      map[string]bool          `json:"featureGates,omitempty" doc:"Kubernetes feature gates, for every component" example:"{AllAlpha: true}"`
	Kubelet    map[string]any           `json:"kubelet,omitempty" doc:"fields of KubeletConfiguration that override ours; in nodes of k1s cluster create full disks evict no pods and remove no images (evictionHard, imageGCHighThresholdPercent)" flag:"-" example:"{maxPods: 250}"`
	KubeProxy  map[string]any           `json:"kubeProxy,omitempty" doc:"fields of KubeProxyConfiguration that override ours" flag:"-" example:"{nodePortAddresses: [198.51.100.0/24]}"`
	Components map[string]ComponentArgs `json:"components,omitempty" doc:"additional arguments by component name" flag:"-" example:"{kube-apiserver: {args: {v: 4}}}"`
	Kubeconfig Kubeconfig               `json:"kubeconfig" doc:"the administrator's kubeconfig"`
	Log        Log                      `json:"log" doc:"k1s' own log"`
}

// The roles of a node.
const (
	Server = "server"
	Agent  = "agent"
)

// ControlPlane tells that the node has an API server.
func (s Spec) ControlPlane() bool { return s.Role != Agent }

// Worker tells that the node runs pods.
func (s Spec) Worker() bool { return s.Role == Agent || !s.NoWorker }

// Join is how an agent finds its cluster. It is needed once; then the node knows the cluster's servers by itself.
type Join struct {
	Server    string `json:"server,omitempty" doc:"a server of the cluster to join, or an address that leads to all of them" flag:"server" example:"https://10.0.0.1:6443"`
	Token     Secret `json:"token,omitempty" doc:"token of 'k1s token create'; better in a file or in the environment than on a command line, which everybody on the machine can read" flag:"token" example:"k1s1.agent.0123456789…"`
	TokenFile string `json:"tokenFile,omitempty" doc:"file of one line that holds the token; nobody but its owner and group may read it" flag:"token-file" example:"/etc/k1s/token"`
}

// Cluster names the cluster.
type Cluster struct {
	Name   string `json:"name" doc:"name of the cluster; the kubeconfig context is called after it" default:"k1s" shared:"true"`
	Domain string `json:"domain" doc:"DNS domain of the cluster" default:"cluster.local" shared:"true"`
}

// Node describes this node.
type Node struct {
	Name   string            `json:"name,omitempty" doc:"node name; the host name in lower case if empty" example:"edge-1"`
	IP     string            `json:"ip,omitempty" doc:"address other nodes reach this one at; detected if empty" example:"192.168.7.11"`
	Labels map[string]string `json:"labels,omitempty" doc:"labels given to the node when it registers" example:"{example.com/rack: r12}"`
	Taints []string          `json:"taints,omitempty" doc:"taints given to the node when it registers, key=value:Effect" example:"['gpu=true:NoSchedule']"`
}

// API is the Kubernetes API endpoint.
type API struct {
	Port int      `json:"port" doc:"port of the Kubernetes API" default:"6443"`
	Bind string   `json:"bind" doc:"address the API listens at" default:"0.0.0.0"`
	SANs []string `json:"sans,omitempty" doc:"additional names and addresses in the API's certificate" example:"[k8s.example.com, 203.0.113.7]" shared:"true"`
}

// Network is the pod and service network. One IPv4 CIDR each for now.
type Network struct {
	PodCIDR     string `json:"podCIDR" doc:"addresses of pods" default:"10.42.0.0/16" shared:"true"`
	ServiceCIDR string `json:"serviceCIDR" doc:"addresses of services" default:"10.43.0.0/16" shared:"true"`
	ClusterDNS  string `json:"clusterDNS,omitempty" doc:"address of the DNS service; the tenth of serviceCIDR if empty" example:"10.43.0.10" shared:"true"`
	Backend     string `json:"backend" doc:"how pod traffic crosses nodes: host-gw (routes), vxlan, or none (bring your own CNI)" enum:"host-gw,vxlan,none" default:"host-gw" shared:"true"`
	NodePorts   string `json:"nodePorts" doc:"ports for services of type NodePort" default:"30000-32767"`
	MTU         int    `json:"mtu,omitempty" doc:"MTU of pod interfaces; taken from the node's link if 0" example:"1450"`
}

// Datastore is the cluster's database.
type Datastore struct {
	Endpoint     DSN    `json:"endpoint" doc:"sqlite (a file on this server), etcd (embedded), or a database by its URL: https://HOST:2379,… (etcd), postgres://…, mysql://…, nats://…" default:"sqlite" example:"postgres://k1s@db.example:5432/k1s"`
	EndpointFile string `json:"endpointFile,omitempty" doc:"file of one line that holds the URL, where it has a password; nobody but its owner and group may read it" example:"/etc/k1s/datastore"`
	CAFile       string `json:"caFile,omitempty" doc:"certificate authority of the database's certificate, PEM; TLS is then required and the server's name checked" example:"/etc/k1s/db-ca.crt"`
	CertFile     string `json:"certFile,omitempty" doc:"client certificate for the database, PEM" example:"/etc/k1s/db.crt"`
	KeyFile      string `json:"keyFile,omitempty" doc:"key of the client certificate" example:"/etc/k1s/db.key"`
}

// Etcd is how the embedded etcd is looked after. It is of each server, and means nothing with other datastores.
type Etcd struct {
	Quota           int       `json:"quota" doc:"how large the database's file may become, in MiB; when that is used up etcd takes no writes until k1s has made room" default:"2048"`
	RemoveDeadAfter Delay     `json:"removeDeadAfter" doc:"how long a server may be away until it is removed from the cluster by itself, if all the others are there and are a majority; a duration, or never. The server that leads goes by its own setting, so give all of them the same" default:"never" example:"72h"`
	Snapshots       Snapshots `json:"snapshots" doc:"snapshots of the database; they hold no certificates and no keys"`
}

// Snapshots of the embedded etcd.
type Snapshots struct {
	Schedule Schedule `json:"schedule" doc:"when to take one by itself: a cron expression (minute hour day month weekday), @hourly, @daily, '@every 6h' …, in the machine's time zone; or never" default:"0 */12 * * *" example:"'@every 6h'"`
	Keep     int      `json:"keep" doc:"how many of those taken by itself are kept on this server, and how many in S3; 0 keeps all" default:"5"`
	Dir      string   `json:"dir,omitempty" doc:"directory for them; snapshots in the data directory if empty" example:"/mnt/backup/k1s"`
	S3       S3       `json:"s3" doc:"also copy them into a bucket"`
}

// S3 is a bucket, of Amazon or of anybody else.
type S3 struct {
	Bucket          string `json:"bucket,omitempty" doc:"its name; nothing is copied if empty" example:"k1s-snapshots"`
	Endpoint        string `json:"endpoint,omitempty" doc:"HOST or HOST:PORT; http:// before it for one without TLS; Amazon's if empty" example:"minio.example:9000"`
	Folder          string `json:"folder,omitempty" doc:"what the names of the objects begin with; one for each cluster" example:"clusters/edge"`
	Region          string `json:"region,omitempty" doc:"region of the bucket; asked for if empty" example:"eu-central-1"`
	CAFile          string `json:"caFile,omitempty" doc:"certificate authority of the endpoint, PEM; the machine's own if empty" example:"/etc/k1s/s3-ca.crt"`
	PathStyle       bool   `json:"pathStyle" doc:"name the bucket in the path, not in the host name; addresses need that" example:"true"`
	CredentialsFile string `json:"credentialsFile,omitempty" doc:"file as ~/.aws/credentials; nobody but its owner and group may read it; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY if empty" example:"/etc/k1s/s3-credentials"`
	Secret          string `json:"secret,omitempty" doc:"Secret in kube-system that holds the credentials instead: accessKey, secretKey, and sessionToken where there is one; it cannot be read while the API does not run" example:"etcd-snapshots"`
	Only            bool   `json:"only" doc:"keep no snapshot on this server once it is in the bucket" example:"true"`
}

// Runtime selects the container runtime.
type Runtime struct {
	Socket string `json:"socket,omitempty" doc:"socket of another CRI runtime, e.g. unix:///run/crio/crio.sock; ours is started if empty" example:"unix:///run/crio/crio.sock"`
}

// Images says where images come from.
type Images struct {
	DisableDefaultRegistry bool `json:"disableDefaultRegistry" doc:"never pull from a registry that registries.yaml does not name" example:"true"`
}

// Audit is the API server's audit log.
type Audit struct {
	Enabled    bool   `json:"enabled" doc:"write an audit log" example:"true"`
	PolicyFile string `json:"policyFile,omitempty" doc:"audit policy; metadata of every request if empty" example:"/etc/k1s/audit-policy.yaml"`
}

// Secrets is how Secrets are kept. Keys are not configuration, see package encryption.
type Secrets struct {
	Encryption string `json:"encryption,omitempty" doc:"encrypt Secrets in the datastore, from the first start or from now on, with secretbox or aescbc; if empty as 'k1s encryption' has set it, at first not at all" enum:"secretbox,aescbc" example:"secretbox"`
}

// ComponentArgs are additional arguments of one component; they win over ours.
type ComponentArgs struct {
	Args map[string]string `json:"args,omitempty" doc:"flag name without dashes: value" example:"{v: 4}" scalar:"any"`
}

// Users are as whom the processes of the control plane run.
type Users struct {
	Separate bool `json:"separate" doc:"run the control plane without root, as a user of its own, and with isolation component each of its components as another one; not with isolation none" example:"true"`
	First    int  `json:"first" doc:"first of the eight user and group numbers for that; they need no names, and nothing else on the machine may use them" default:"61100"`
}

// Kubeconfig is where the administrator's kubeconfig goes.
type Kubeconfig struct {
	Output string `json:"output,omitempty" doc:"also write it here; an existing file that is not ours is merged into, never overwritten" example:"/home/me/.kube/config"`
	Group  string `json:"group,omitempty" doc:"group that may read it; root only if empty" example:"adm"`
}

// Log is k1s' own log.
type Log struct {
	Level  string `json:"level" doc:"debug, info, warn or error" enum:"debug,info,warn,error" default:"info"`
	Format string `json:"format" doc:"text or json" enum:"text,json" default:"text"`
}
