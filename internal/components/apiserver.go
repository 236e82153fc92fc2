package components

import (
	"maps"
	"path"
	"strconv"
	"strings"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/probe"
)

// The API server needs its store and nothing else. Clients that retry by themselves start when its
// port answers; what needs the bootstrap roles waits for /readyz.
var _ = register(component.Def{
	Name:    "kube-apiserver",
	Summary: "the Kubernetes API",
	Roles:   component.ControlPlane,
	Group:   controlPlane,
	Needs:   []component.Need{{Component: "kine", Level: component.Ready}, {Component: "etcd", Level: component.Ready}},
	Spec:    apiserverSpec,
	Open: func(in component.Input) probe.Probe {
		return probe.Probe{Kind: probe.TCP, Addr: apiAddr(in)}
	},
	Ready: apiserverReady,
	// Without NodeRestriction a kubelet may change other nodes; who wants that says so with
	// disable-admission-plugins.
	Merge:       []string{"enable-admission-plugins"},
	StopTimeout: 15 * time.Second,
})

// apiserverReady leaves aggregated APIs out: when the pod behind one is gone, as after every restart of the node, that
// check waits 5 s for it, and everything else would wait too.
func apiserverReady(in component.Input) probe.Probe {
	return probe.Probe{Kind: probe.HTTPS, Addr: apiAddr(in), Path: "/readyz?exclude=poststarthook/apiservice-discovery-controller"}
}

// withoutProgress are features of the API server that are switched off on a datastore that does not say on request how
// far its watches are, which kine does not (it announces an etcd that could not).
var withoutProgress = []string{
	// Priority and fairness weighs a LIST by the size of what it returns. It waits for progress in vain and logs
	// that it gave up, 40 times a minute.
	"SizeBasedListCostEstimate",
	// A watch begins with all objects. It makes every watch that names no revision wait for progress, 3 seconds
	// and in vain, while one that asks for it is refused, and clients go back to LISTs.
	"WatchList",
}

func apiserverSpec(in component.Input) (component.Spec, error) {
	c, p := in.Config.Spec, in.Paths
	authn, err := yamlFile(p.Rendered("authentication.yaml"), map[string]any{
		"apiVersion": "apiserver.config.k8s.io/v1",
		"kind":       "AuthenticationConfiguration",
		// Who has no credentials may learn whether we are well and which version this is, nothing else.
		"anonymous": map[string]any{
			"enabled": true,
			"conditions": []map[string]any{
				{"path": "/livez"}, {"path": "/readyz"}, {"path": "/healthz"}, {"path": "/version"},
			},
		},
	})
	if err != nil {
		return component.Spec{}, err
	}
	files := []component.File{authn}
	if usesOIDC(in) {
		files = nil
	}

	var f flags
	f.add("advertise-address", in.Facts.NodeIP.String())
	f.add("bind-address", c.API.Bind)
	f.add("secure-port", strconv.Itoa(c.API.Port))
	var env map[string]string
	store := Served(in)
	f.add("etcd-servers", strings.Join(store.Endpoints, ","))
	f.add("etcd-cafile", store.CAFile)
	f.add("etcd-certfile", store.CertFile)
	f.add("etcd-keyfile", store.KeyFile)
	if Engine(in) == config.ExternalEtcd {
		env = datastoreEnv(in)
	}
	f.add("service-cluster-ip-range", c.Network.ServiceCIDR)
	f.add("service-node-port-range", c.Network.NodePorts)
	f.add("allow-privileged", "true")
	if !usesOIDC(in) {
		f.add("authentication-config", authn.Path)
	}
	f.add("authorization-mode", "Node,RBAC")
	f.add("enable-admission-plugins", "NodeRestriction")
	f.add("client-ca-file", p.PKI("ca.crt"))
	f.add("tls-cert-file", p.PKI("apiserver.crt"))
	f.add("tls-private-key-file", p.PKI("apiserver.key"))
	f.add("tls-min-version", tlsMinVersion)
	f.add("kubelet-certificate-authority", p.PKI("ca.crt"))
	f.add("kubelet-client-certificate", p.PKI("apiserver-kubelet-client.crt"))
	f.add("kubelet-client-key", p.PKI("apiserver-kubelet-client.key"))
	f.add("kubelet-preferred-address-types", "InternalIP")
	f.add("requestheader-client-ca-file", p.PKI("front-proxy-ca.crt"))
	f.add("requestheader-allowed-names", "front-proxy-client")
	f.add("requestheader-extra-headers-prefix", "X-Remote-Extra-")
	f.add("requestheader-group-headers", "X-Remote-Group")
	f.add("requestheader-username-headers", "X-Remote-User")
	f.add("proxy-client-cert-file", p.PKI("front-proxy-client.crt"))
	f.add("proxy-client-key-file", p.PKI("front-proxy-client.key"))
	// Aggregated APIs are reached at their endpoints: a server may have no kube-proxy.
	f.add("enable-aggregator-routing", "true")
	f.add("service-account-issuer", "https://kubernetes.default.svc."+c.Cluster.Domain)
	f.add("service-account-key-file", p.PKI("sa.pub"))
	f.add("service-account-signing-key-file", p.PKI("sa.key"))
	// Always, so that switching it on or off later needs no restart. The file is no part of the Spec: the daemon
	// changes it while the API server runs.
	f.add("encryption-provider-config", p.EncryptionConfig())
	f.add("encryption-provider-config-automatic-reload", "true")
	f.add("profiling", "false")
	// Without it open watches keep a stopping server until it is killed, and the API is away for as long.
	f.add("shutdown-watch-termination-grace-period", "2s")
	if Engine(in).Kine() {
		gates := map[string]bool{}
		for _, gate := range withoutProgress {
			gates[gate] = false
		}
		maps.Copy(gates, c.Gates)
		in.Config.Spec.Gates = gates
	}
	f.gates(in)
	dirs := []component.Dir{{Path: path.Dir(p.Tunnels()), Mode: 0o700}}
	access := append(reads(p.PKI("apiserver.key"), p.PKI("apiserver-kubelet-client.key"), p.PKI("front-proxy-client.key"), p.PKI("sa.key"), p.EncryptionConfig()),
		owns(path.Dir(p.Tunnels())))
	given := argumentFiles(in, "kube-apiserver")
	switch Engine(in) {
	case config.EmbeddedEtcd:
		access = append(access, reads(store.KeyFile)...)
	case config.ExternalEtcd:
		ours, others := databaseFiles(in)
		access, given = append(access, ours...), append(given, others...)
	default:
		access = append(access, component.Access{Path: path.Dir(p.KineSocket()), Way: component.Calls})
	}
	if c.Audit.Enabled {
		policy, err := auditPolicy(in)
		if err != nil {
			return component.Spec{}, err
		}
		files = append(files, policy)
		f.add("audit-policy-file", policy.Path)
		log := p.AuditLog()
		if c.Users.Separate {
			log = p.AuditLogApart()
			dirs = append(dirs, component.Dir{Path: path.Dir(log), Mode: 0o700})
			access = append(access, owns(path.Dir(log)))
		}
		f.add("audit-log-path", log)
		f.add("audit-log-maxage", "30")
		f.add("audit-log-maxbackup", "10")
		f.add("audit-log-maxsize", "100")
		f.add("audit-log-mode", "batch")
	}
	if env == nil {
		env = map[string]string{}
	}
	env[EnvJoin] = p.JoinSocket()
	if Engine(in).External() {
		env[EnvClaim], env[EnvClaimNode], env[EnvClaimHad] = p.Claim(), in.Facts.NodeName, p.PKI("ca-cross.pem")
		env[EnvClaimOf] = in.Datastore
	}
	if in.Fence != "" {
		env[EnvFence] = in.Fence
	}
	env[EnvTunnels] = p.Tunnels()
	maps.Copy(env, trustEnv(in))
	if c.Network.Backend == "none" {
		env[EnvTunnelPods] = "1"
	}
	return component.Spec{Applet: "kube-apiserver", Args: f, Env: env, Files: files, Dirs: dirs, Access: access, Given: given}, nil
}

// How the API server is told to find out whose a database of others is before it writes to it: where it tells the answer
// (claim.Report), in which server's name it takes one that is nobody's, and where the CAs are that the cluster had before,
// in whose name it may have been taken. What it tells is about the database that the last one identifies.
const (
	EnvClaim     = "K1S_CLAIM"
	EnvClaimNode = "K1S_CLAIM_NODE"
	EnvClaimHad  = "K1S_CLAIM_HAD"
	EnvClaimOf   = "K1S_CLAIM_OF"
)

// EnvFence keeps an API server from serving while the state moves to another datastore: it is the attempt. It runs and waits for its end,
// so that the rest of its process, such as the datastore that is left, serves those who copy.
const EnvFence = "K1S_FENCE"

// EnvJoin tells the API server at which socket the daemon answers machines that join; they come to the API's port.
const EnvJoin = "K1S_JOIN_SOCKET"

// How the API server is told of tunnels: where it tells which nodes have one, and, set to anything, that pods do not have
// addresses of their nodes' pod CIDRs.
const (
	EnvTunnels    = "K1S_TUNNELS"
	EnvTunnelPods = "K1S_TUNNEL_PODS"
)

// usesOIDC tells that the user sets up OpenID Connect by flags, which upstream refuses beside a
// configuration file. Anonymous requests are then not limited to health and version by authentication, but
// by authorization alone, as upstream has it.
func usesOIDC(in component.Input) bool {
	for name := range in.Config.Spec.Components["kube-apiserver"].Args {
		if strings.HasPrefix(name, "oidc-") {
			return true
		}
	}
	return false
}

// auditPolicy is a copy of the user's, so that a change of it is a change of the API server.
func auditPolicy(in component.Input) (component.File, error) {
	file := in.Paths.Rendered("audit-policy.yaml")
	if in.AuditPolicy != "" {
		return component.File{Path: file, Content: in.AuditPolicy, Mode: 0o600}, nil
	}
	return yamlFile(file, defaultAuditPolicy())
}

// defaultAuditPolicy records who did what, without bodies: those may hold secrets.
func defaultAuditPolicy() map[string]any {
	quiet := func(users []string, verbs ...string) map[string]any {
		return map[string]any{"level": "None", "users": users, "verbs": verbs}
	}
	return map[string]any{
		"apiVersion": "audit.k8s.io/v1",
		"kind":       "Policy",
		"omitStages": []string{"RequestReceived"},
		"rules": []map[string]any{
			{"level": "None", "nonResourceURLs": []string{"/healthz*", "/readyz*", "/livez*", "/version", "/openapi*"}},
			quiet([]string{"system:kube-scheduler", "system:kube-controller-manager", "system:apiserver"}, "get", "list", "watch"),
			{"level": "None", "resources": []map[string]any{{"group": "coordination.k8s.io", "resources": []string{"leases"}}}},
			{"level": "Metadata"},
		},
	}
}

// URL is the address clients on this node use for the API.
func URL(in component.Input) string {
	return "https://" + apiAddr(in)
}
