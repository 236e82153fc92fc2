package components

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/probe"
)

// Ports every Kubernetes node uses. They are upstream's defaults, so that tools find them.
const (
	kubeletPort        = 10250
	kubeletHealthPort  = 10248
	proxyHealthPort    = 10256
	proxyMetricsPort   = 10249
	controllerPort     = 10257
	schedulerPort      = 10259
	etcdClientPort     = 2379
	etcdPeerPort       = 2380
	etcdMetricsPort    = 2381
	loopback           = "127.0.0.1"
	tlsMinVersion      = "VersionTLS12"
	clientQPS          = "2000" // our own loopback API server throttles by priority and fairness already
	nodeCIDRMaskLength = 24
)

// Ports are all ports the components of this node listen at, by component.
func Ports(in component.Input) map[string][]int {
	out := map[string][]int{}
	if in.Config.Spec.ControlPlane() {
		out["kube-apiserver"] = []int{in.Config.Spec.API.Port}
		out["kube-controller-manager"] = []int{controllerPort}
		out["kube-scheduler"] = []int{schedulerPort}
	} else {
		out["balancer"] = []int{in.Config.Spec.API.Port}
	}
	if UsesEtcd(in) {
		out["etcd"] = []int{etcdClientPort, etcdPeerPort, etcdMetricsPort}
	}
	if in.Config.Spec.Worker() {
		out["kubelet"] = []int{kubeletPort, kubeletHealthPort}
		out["kube-proxy"] = []int{proxyHealthPort, proxyMetricsPort}
	}
	return out
}

// flags builds an argument list; empty values are left out.
type flags []string

func (f *flags) add(name, value string) {
	if value != "" {
		*f = append(*f, "--"+name+"="+value)
	}
}

func (f *flags) gates(in component.Input) {
	f.gatesWith(in, nil)
}

// gatesWith adds ours, which the user's override.
func (f *flags) gatesWith(in component.Input, ours map[string]bool) {
	all := map[string]bool{}
	maps.Copy(all, ours)
	maps.Copy(all, in.Config.Spec.Gates)
	var kv []string
	for _, k := range slices.Sorted(maps.Keys(all)) {
		kv = append(kv, k+"="+strconv.FormatBool(all[k]))
	}
	f.add("feature-gates", strings.Join(kv, ","))
}

// controller adds what the two controllers of the control plane have in common: who they are to the API
// server, how they serve their own endpoint, and that nobody else is to be elected.
func (f *flags) controller(in component.Input, name, serving string, port int) {
	p := in.Paths
	kubeconfig := p.Kubeconfig(name)
	f.add("kubeconfig", kubeconfig)
	f.add("authentication-kubeconfig", kubeconfig)
	f.add("authorization-kubeconfig", kubeconfig)
	f.add("client-ca-file", p.PKI("ca.crt"))
	f.add("requestheader-client-ca-file", p.PKI("front-proxy-ca.crt"))
	f.add("bind-address", loopback)
	f.add("secure-port", strconv.Itoa(port))
	f.add("tls-cert-file", p.PKI(serving+".crt"))
	f.add("tls-private-key-file", p.PKI(serving+".key"))
	f.add("tls-min-version", tlsMinVersion)
	// One server has nobody to elect against, and a slow disk must not end its controllers.
	f.add("leader-elect", strconv.FormatBool(in.Several))
	// Upstream's 20 requests a second cost 4.5 s until the first pod.
	f.add("kube-api-qps", clientQPS)
	f.add("kube-api-burst", clientQPS)
	f.add("profiling", "false")
}

func local(port int) string { return loopback + ":" + strconv.Itoa(port) }

func httpsReady(port int, p string) func(component.Input) probe.Probe {
	return func(component.Input) probe.Probe {
		return probe.Probe{Kind: probe.HTTPS, Addr: local(port), Path: p}
	}
}

func httpReady(port int, p string) func(component.Input) probe.Probe {
	return func(component.Input) probe.Probe {
		return probe.Probe{Kind: probe.HTTP, Addr: local(port), Path: p}
	}
}

func unixReady(socket func(component.Input) string) func(component.Input) probe.Probe {
	return func(in component.Input) probe.Probe { return probe.Probe{Kind: probe.Unix, Addr: socket(in)} }
}

func fileReady(file func(component.Input) string) func(component.Input) probe.Probe {
	return func(in component.Input) probe.Probe { return probe.Probe{Kind: probe.File, Addr: file(in)} }
}

// yamlFile renders v with sorted keys, so that equal configuration gives equal text.
func yamlFile(p string, v any) (component.File, error) {
	var b bytes.Buffer
	b.WriteString("# Written by k1s at every start; change /etc/k1s/config.yaml instead.\n")
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(v); err != nil {
		return component.File{}, fmt.Errorf("rendering %s: %w", path.Base(p), err)
	}
	return component.File{Path: p, Content: b.String(), Mode: 0o600}, nil
}

// merge lays over on top of base, maps by key and everything else as a whole.
func merge(base, over map[string]any) map[string]any {
	out := maps.Clone(base)
	for k, v := range over {
		b, okB := out[k].(map[string]any)
		o, okO := v.(map[string]any)
		if okB && okO {
			out[k] = merge(b, o)
		} else {
			out[k] = v
		}
	}
	return out
}

// nth is the n-th address of a prefix, e.g. the tenth of 10.43.0.0/16 is 10.43.0.10.
func nth(cidr string, n int) (netip.Addr, error) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("reading %q: %w", cidr, err)
	}
	a := p.Masked().Addr()
	for range n {
		a = a.Next()
	}
	if !p.Contains(a) {
		return netip.Addr{}, fmt.Errorf("%s has no address number %d", cidr, n)
	}
	return a, nil
}

// ClusterDNS is the address of the DNS service.
func ClusterDNS(in component.Input) (string, error) {
	if a := in.Config.Spec.Network.ClusterDNS; a != "" {
		return a, nil
	}
	a, err := nth(in.Config.Spec.Network.ServiceCIDR, 10)
	return a.String(), err
}

// APIServiceIP is the address of the service "kubernetes": the first of the service network.
func APIServiceIP(in component.Input) (string, error) {
	a, err := nth(in.Config.Spec.Network.ServiceCIDR, 1)
	return a.String(), err
}

// apiHost is the address at which this node itself reaches the API server: loopback, unless it is bound
// to one address only.
func apiHost(in component.Input) string {
	if !in.Config.Spec.ControlPlane() {
		return loopback // the balancer is for this node only
	}
	if a, err := netip.ParseAddr(in.Config.Spec.API.Bind); err == nil && !a.IsUnspecified() {
		return a.String()
	}
	return loopback
}

// APIHosts are the addresses the API's certificate needs because of the configuration.
func APIHosts(in component.Input) []string {
	if h := apiHost(in); h != loopback {
		return []string{h}
	}
	return nil
}

// apiAddr is where the API server of this node answers, as host:port.
func apiAddr(in component.Input) string {
	return net.JoinHostPort(apiHost(in), strconv.Itoa(in.Config.Spec.API.Port))
}

// UsesEtcd tells that the datastore is etcd embedded in this server.
func UsesEtcd(in component.Input) bool {
	return in.Config.Spec.ControlPlane() && Engine(in) == config.EmbeddedEtcd
}

// Engine is what the datastore is.
func Engine(in component.Input) config.Engine { return in.Config.Spec.Datastore.Endpoint.Engine() }

// trustEnv makes a change of the cluster's authorities a change of those who read some of them only when they start: etcd its
// own, the API server etcd's and the keys of service accounts, the controller manager the CA for pods. Everything else reads
// the files again.
func trustEnv(in component.Input) map[string]string {
	if in.Trust == "" {
		return nil
	}
	return map[string]string{"K1S_TRUST_ID": in.Trust}
}

// datastoreEnv makes a change of a database's DSN, and of the files it is reached with, a change of those who use it.
func datastoreEnv(in component.Input) map[string]string {
	if in.Datastore == "" {
		return nil
	}
	return map[string]string{"K1S_DATASTORE_ID": in.Datastore}
}
