package components

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/etcdcare"
)

// etcd is the store when it has to be shared by several servers, or when the user asks for it.
var _ = register(component.Def{
	Name:    "etcd",
	Summary: "the cluster's database",
	Roles:   component.ControlPlane,
	Group:   controlPlane,
	When:    UsesEtcd,
	Spec:    etcdSpec,
	Ready:   httpReady(etcdMetricsPort, "/readyz"),
})

// EtcdRemoved is a file that is there when the member found out that the others have removed it.
func EtcdRemoved(in component.Input) string { return in.Paths.Of("etcd", "removed") }

func etcdSpec(in component.Input) (component.Spec, error) {
	client := fmt.Sprintf("https://%s", local(etcdClientPort))
	peer := EtcdPeerURL(in)
	tls := func(what string) map[string]any {
		return map[string]any{
			"cert-file":        in.Paths.PKI("etcd", what+".crt"),
			"key-file":         in.Paths.PKI("etcd", what+".key"),
			"trusted-ca-file":  in.Paths.PKI("etcd", "ca.crt"),
			"client-cert-auth": true,
		}
	}
	cfg := merge(etcdMember(in), map[string]any{
		"listen-client-urls":        client,
		"listen-peer-urls":          peer,
		"listen-metrics-urls":       etcdMetrics(),
		"client-transport-security": tls("server"),
		"peer-transport-security":   tls("peer"),
	})
	file, err := yamlFile(in.Paths.Rendered("etcd.yaml"), cfg)
	if err != nil {
		return component.Spec{}, err
	}
	args := []string{"--config-file=" + file.Path, "--removed-file=" + EtcdRemoved(in)}
	if host := hostOf(in.Config.Spec.Join.Server); host != "" {
		args = append(args, "--seek="+host)
	}
	return component.Spec{
		Applet: "etcd",
		Env:    trustEnv(in),
		Args:   args,
		Files:  []component.File{file},
		Dirs:   []component.Dir{{Path: in.Paths.Etcd(), Mode: 0o700}, {Path: path.Dir(EtcdRemoved(in)), Mode: 0o700}},
		Access: append(reads(in.Paths.PKI("etcd", "server.key"), in.Paths.PKI("etcd", "peer.key")), owns(in.Paths.Etcd()), owns(path.Dir(EtcdRemoved(in)))),
	}, nil
}

// hostOf is the host in the address of a server, as users write it (join.Address); "" for none.
func hostOf(server string) string {
	if a, err := netip.ParseAddr(server); err == nil {
		return a.String()
	}
	if !strings.Contains(server, "://") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil {
		return "" // the configuration was checked before
	}
	return u.Hostname()
}

// EtcdPeerURL is where the other members reach this one.
func EtcdPeerURL(in component.Input) string {
	return "https://" + net.JoinHostPort(in.Facts.NodeIP.String(), strconv.Itoa(etcdPeerPort))
}

// etcdMember is what a member is, wherever it listens.
func etcdMember(in component.Input) map[string]any {
	name, peer := EtcdMember(in)
	all, state := name+"="+peer, "new"
	if in.Etcd.Name != "" {
		all, state = in.Etcd.InitialCluster, "existing"
	}
	// A single member has nobody to wait for: with upstream's 100 and 1000 ms its election alone costs 0.7 s. Several
	// have a network between them, and other work beside them.
	heartbeat, election := 10, 100
	if in.Several {
		heartbeat, election = 100, 1000
	}
	cfg := map[string]any{
		"name":                        name,
		"data-dir":                    in.Paths.Etcd(),
		"advertise-client-urls":       fmt.Sprintf("https://%s", local(etcdClientPort)),
		"initial-advertise-peer-urls": peer,
		"initial-cluster":             all,
		"initial-cluster-state":       state,
		"heartbeat-interval":          heartbeat,
		"election-timeout":            election,
		// In nanoseconds. Only etcd's own program has a default, without one every request is warned of.
		"warning-unary-request-duration": 300_000_000,
		"quota-backend-bytes":            int64(in.Config.Spec.Etcd.Quota) << 20,
		"log-level":                      "warn",
		"logger":                         "zap",
	}
	if in.Several {
		// The leader compares the members' data, as the hashes that each makes of it when it forgets revisions, which it does every five
		// minutes. Without that nobody would ever find out that a disk or a memory has changed something.
		cfg["feature-gates"] = "CompactHashCheck=true"
		cfg["compact-hash-check-time"] = int64(5 * time.Minute)
	}
	if in.Etcd.Token != "" {
		cfg["initial-cluster-token"] = in.Etcd.Token
	}
	return cfg
}

// EtcdMember are the name and the peers' address of this server's member.
func EtcdMember(in component.Input) (name, peerURL string) {
	return cmp.Or(in.Etcd.Name, in.Facts.NodeName), EtcdPeerURL(in)
}

func etcdMetrics() string { return "http://" + local(etcdMetricsPort) }

// EtcdMetrics is where this server's member tells its metrics.
func EtcdMetrics() string { return etcdMetrics() + "/metrics" }

// EtcdClient is where this server's member answers, and the files that takes.
func EtcdClient(in component.Input) etcdcare.Etcd {
	return etcdcare.Etcd{
		Endpoint: "https://" + local(etcdClientPort), CAFile: in.Paths.PKI("etcd", "ca.crt"),
		CertFile: in.Paths.PKI("apiserver-etcd-client.crt"), KeyFile: in.Paths.PKI("apiserver-etcd-client.key"),
	}
}
