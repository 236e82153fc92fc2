// Package pki makes and keeps the certificates and keys of one cluster on one server: certificate
// authorities, the service account key, and a certificate for every component; and it signs, and installs, the
// certificates of nodes that join. It writes no kubeconfigs. Used by the daemon at start and
// when certificates are due; the components' Specs use CertFile and KeyFile to name what it makes.
//
// There are three authorities, as upstream documents: one for the cluster (API server, kubelets and
// their clients), one for the front proxy, because whoever it signs may speak in the name of anybody, and
// one for etcd, because whoever it signs may read everything. Keys are ECDSA P-256: generating them
// costs nothing at start, and every part in the payload understands them.
package pki

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/paths"
)

// Names of authorities, certificates and the service account key. The files are <name>.crt and
// <name>.key in the pki directory; the service account key is sa.key and sa.pub.
const (
	CA           = "ca"
	FrontProxyCA = "front-proxy-ca"
	EtcdCA       = "etcd/ca"

	ServiceAccount = "sa"

	APIServer                = "apiserver"
	APIServerKubeletClient   = "apiserver-kubelet-client"
	APIServerEtcdClient      = "apiserver-etcd-client"
	FrontProxyClient         = "front-proxy-client"
	ControllerManagerClient  = "controller-manager-client"
	ControllerManagerServing = "controller-manager-serving"
	SchedulerClient          = "scheduler-client"
	SchedulerServing         = "scheduler-serving"
	KubeletClient            = "kubelet-client"
	KubeletServing           = "kubelet-serving"
	KubeProxyClient          = "kube-proxy-client"
	NetworkPolicyClient      = "network-policy-client"
	AddonManagerClient       = "addon-manager-client"
	AdminClient              = "admin-client"
	DaemonClient             = "daemon-client"
	EtcdServer               = "etcd/server"
	EtcdPeer                 = "etcd/peer"
)

// CertFile names the certificate file of name; for ServiceAccount it is the public key.
func CertFile(p paths.Paths, name string) string {
	if name == ServiceAccount {
		return p.PKI(name + ".pub")
	}
	return p.PKI(name + ".crt")
}

// SigningFile names the file with the certificate of the CA that signs now, and nothing else. CertFile of CA may hold more:
// the one that signs comes first, the others are trusted too.
func SigningFile(p paths.Paths) string { return p.PKI("ca-signing.pem") }

// KeyFile names the private key file of name.
func KeyFile(p paths.Paths, name string) string { return p.PKI(name + ".key") }

// Lifetimes. A certificate is renewed when a third of its lifetime is left, so a machine that is
// switched on once in four months never meets an expired one.
const (
	caLifetime   = 10 * 365 * 24 * time.Hour
	leafLifetime = 365 * 24 * time.Hour
	// backdate lets clocks of other machines be a little behind.
	backdate = time.Hour
)

// Leaf is a certificate that is no authority.
type Leaf struct {
	Name          string // of its files
	CA            string // who signs it: CA, FrontProxyCA or EtcdCA
	CommonName    string
	Organizations []string // groups, for clients
	DNSNames      []string
	IPs           []netip.Addr
	Server        bool // may serve TLS
	Client        bool // may be a TLS client
	// Lifetime is how long it is valid; 0 is leafLifetime.
	Lifetime time.Duration
}

// masters is the group that RBAC lets do anything, also before any role exists.
const masters = "system:masters"

// Request says for which node certificates are made.
type Request struct {
	Paths       paths.Paths
	NodeName    string
	NodeIP      netip.Addr // may be invalid: then it is in no certificate
	Domain      string     // DNS domain of the cluster; cluster.local if empty
	ServiceCIDR netip.Prefix
	// SANs are additional names and addresses of the API server.
	SANs []string
	// NoWorker leaves out what only nodes with a kubelet need.
	NoWorker bool
	// Etcd adds etcd's own authority and certificates.
	Etcd bool
	// All issues every leaf anew, whatever is left of its lifetime.
	All bool
	// Extra are further certificates, for example of an aggregated API server.
	Extra []Leaf
	// Now is the clock; time.Now if nil.
	Now func() time.Time
}

func (r Request) authorities() []string {
	cas := []string{CA, FrontProxyCA}
	if r.Etcd {
		cas = append(cas, EtcdCA)
	}
	return cas
}

// leaves lists every certificate the request needs.
func (r Request) leaves() []Leaf {
	domain := r.Domain
	if domain == "" {
		domain = "cluster.local"
	}
	local := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	api := Leaf{
		Name: APIServer, CA: CA, CommonName: "kube-apiserver", Server: true,
		DNSNames: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + domain, "localhost", r.NodeName},
		IPs:      append(slices.Clone(local), r.NodeIP),
	}
	if r.ServiceCIDR.IsValid() {
		api.IPs = append(api.IPs, r.ServiceCIDR.Masked().Addr().Next())
	}
	for _, san := range r.SANs {
		if ip, err := netip.ParseAddr(san); err == nil {
			api.IPs = append(api.IPs, ip)
		} else {
			api.DNSNames = append(api.DNSNames, san)
		}
	}

	all := []Leaf{
		api,
		client(APIServerKubeletClient, "kube-apiserver-kubelet-client"),
		{Name: FrontProxyClient, CA: FrontProxyCA, CommonName: "front-proxy-client", Client: true},
		client(ControllerManagerClient, "system:kube-controller-manager"),
		client(SchedulerClient, "system:kube-scheduler"),
		client(AddonManagerClient, "system:k1s:addon-manager", masters),
		client(DaemonClient, "system:k1s:daemon", masters),
		client(AdminClient, "kubernetes-admin", masters),
		// Without these two the programs generate RSA keys at every start, which is slow.
		{Name: ControllerManagerServing, CA: CA, CommonName: "kube-controller-manager", DNSNames: []string{"localhost"}, IPs: local, Server: true},
		{Name: SchedulerServing, CA: CA, CommonName: "kube-scheduler", DNSNames: []string{"localhost"}, IPs: local, Server: true},
	}
	if !r.NoWorker {
		worker := workerLeaves(r.NodeName, r.NodeIP)
		for i := range worker {
			if worker[i].Name == KubeletServing { // tools on this node ask the kubelet at loopback
				worker[i].DNSNames = append(worker[i].DNSNames, "localhost")
				worker[i].IPs = append(worker[i].IPs, local...)
			}
		}
		all = append(all, worker...)
	}
	if r.Etcd {
		member := Leaf{
			CA: EtcdCA, CommonName: r.NodeName, DNSNames: []string{r.NodeName, "localhost"},
			IPs: append(slices.Clone(local), r.NodeIP), Server: true, Client: true,
		}
		server, peer := member, member
		server.Name, peer.Name = EtcdServer, EtcdPeer
		all = append(all, server, peer,
			Leaf{Name: APIServerEtcdClient, CA: EtcdCA, CommonName: "kube-apiserver-etcd-client", Client: true})
	}
	all = append(all, r.Extra...)
	for i := range all {
		all[i] = all[i].normal()
	}
	return all
}

func client(name, cn string, groups ...string) Leaf {
	return Leaf{Name: name, CA: CA, CommonName: cn, Organizations: groups, Client: true}
}

// workerLeaves are the certificates of a node that runs pods.
func workerLeaves(node string, ip netip.Addr) []Leaf {
	return []Leaf{
		client(KubeletClient, "system:node:"+node, "system:nodes"),
		{
			Name: KubeletServing, CA: CA, CommonName: "system:node:" + node, Organizations: []string{"system:nodes"},
			DNSNames: []string{node}, IPs: []netip.Addr{ip}, Server: true,
		},
		client(KubeProxyClient, "system:kube-proxy"),
		client(NetworkPolicyClient, "system:k1s:network-policy"),
	}
}

// joinedLifetime is that of the certificates of nodes that joined. They are short, because nothing takes them back but
// their end: a node that is to be gone is refused when it wants to renew them.
const joinedLifetime = 30 * 24 * time.Hour

// JoinedLeaves are the certificates of a node that joined. None of them is valid for loopback or for a name of
// the API server: who has the keys of one node must not be able to pass for a server on another.
func JoinedLeaves(node string, ip netip.Addr) []Leaf {
	all := workerLeaves(node, ip)
	for i := range all {
		all[i].Lifetime = joinedLifetime
		all[i] = all[i].normal()
	}
	return all
}

// normal has its names and addresses sorted, each once, without empty ones, so that they compare.
func (l Leaf) normal() Leaf {
	names := make([]string, 0, len(l.DNSNames))
	for _, n := range l.DNSNames {
		if n = strings.ToLower(n); n != "" {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	l.DNSNames = slices.Compact(names)
	ips := make([]netip.Addr, 0, len(l.IPs))
	for _, ip := range l.IPs {
		if ip.IsValid() {
			ips = append(ips, ip.Unmap().WithZone(""))
		}
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	l.IPs = slices.Compact(ips)
	l.Organizations = slices.Clone(l.Organizations)
	slices.Sort(l.Organizations)
	return l
}
