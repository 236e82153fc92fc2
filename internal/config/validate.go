package config

import (
	"fmt"
	"maps"
	"net/netip"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Known is what Validate cannot know by itself. The zero value checks what the configuration alone tells.
type Known struct {
	// Disable are the packaged components that can be left out; nil if not known.
	Disable []string
	// Components are the names that may stand below spec.components; nil if not known.
	Components []string
	// NodeIP is the address found on this machine; the zero value if not known.
	NodeIP netip.Addr
	// Origins tell where values were written, for the problems.
	Origins Origins
}

// Bounds of what Kubernetes and the network take.
const (
	nodeMaskLength   = 24 // each node gets a /24 of podCIDR
	minPodLength     = 8  // the controller manager splits at most 16 bits below the node's mask
	minServiceLength = 12
	maxServiceLength = 28
	minMTU, maxMTU   = 576, 65520
	minQuota         = 16         // MiB; a new cluster takes five
	maxQuota         = 100 * 1024 // etcd advises not to go beyond 8 GiB, and warns
	maxSocketPath    = 107        // sockaddr_un has 108 bytes with the closing zero
	// minRemoveDeadAfter is longer than a server that is started again is away.
	minRemoveDeadAfter = time.Minute
)

// fixedPorts are the ports components listen at on every node.
var fixedPorts = map[int]string{
	10248: "the kubelet's health", 10249: "kube-proxy's metrics", 10250: "the kubelet", 10256: "kube-proxy's health",
	10257: "kube-controller-manager", 10259: "kube-scheduler", 2379: "etcd", 2380: "etcd's peers", 2381: "etcd's metrics",
}

// Validate checks everything that can be said without looking at the machine. It is pure, finds all
// problems at once and returns them in the order of the file.
func Validate(cfg Config, known Known) []Problem {
	c := &checker{known: known}
	s := cfg.Spec
	if cfg.APIVersion != APIVersion {
		c.bad("apiVersion", "", "is %q, and must be %q", shorten(cfg.APIVersion), APIVersion)
	}
	if cfg.Kind != Kind {
		c.bad("kind", "", "is %q, and must be %q", shorten(cfg.Kind), Kind)
	}
	c.enums("spec", reflect.ValueOf(s))
	c.name("spec.cluster.name", s.Cluster.Name, 63, false)
	c.name("spec.cluster.domain", s.Cluster.Domain, 253, true)
	c.node(s.Node)
	c.api(s.API, s.Network)
	c.network(s)
	c.datastore(s.Datastore)
	c.etcd(s.Etcd)
	c.runtime(s.Runtime)
	if s.Audit.PolicyFile != "" {
		c.file("spec.audit.policyFile", s.Audit.PolicyFile)
	}
	c.users(s)
	c.disable(s.Disable)
	for _, gate := range slices.Sorted(maps.Keys(s.Gates)) {
		if !gateName.MatchString(gate) {
			c.bad(keyPath("spec.featureGates", gate), "the names are listed at https://kubernetes.io/docs/reference/command-line-tools-reference/feature-gates/",
				"%q is no feature gate: names are letters and digits and start with a capital", shorten(gate))
		}
	}
	c.upstream("spec.kubelet", s.Kubelet)
	c.upstream("spec.kubeProxy", s.KubeProxy)
	c.components(s.Components)
	if s.Kubeconfig.Output != "" {
		c.file("spec.kubeconfig.output", s.Kubeconfig.Output)
	}
	if g := s.Kubeconfig.Group; g != "" && !groupName.MatchString(g) {
		c.bad("spec.kubeconfig.group", "", "%q is no group name or number", shorten(g))
	}
	return c.problems
}

var (
	dnsLabel      = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	qualifiedName = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`)
	gateName      = regexp.MustCompile(`^[A-Z][A-Za-z0-9]*$`)
	argName       = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9_.]*$`)
	groupName     = regexp.MustCompile(`^([0-9]{1,10}|[A-Za-z_][-A-Za-z0-9_. ]{0,254}\$?)$`)
)

type checker struct {
	known    Known
	problems []Problem
}

func (c *checker) bad(path, hint, format string, args ...any) {
	c.problems = append(c.problems, Problem{Path: path, Message: fmt.Sprintf(format, args...), Hint: hint, Origin: c.known.Origins.Of(path)})
}

// enums checks every field with an enum tag.
func (c *checker) enums(parent string, v reflect.Value) {
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		at := parent + "." + jsonName(sf)
		if sf.Type.Kind() == reflect.Struct {
			c.enums(at, v.Field(i))
		} else if e := sf.Tag.Get("enum"); e != "" && (v.Field(i).String() != "" || sf.Tag.Get("default") != "") {
			if err := checkEnum(v.Field(i).String(), strings.Split(e, ",")); err != nil {
				c.bad(at, hintOf(err), "%v", err)
			}
		}
	}
}

// name checks a DNS-1123 label, or with dots a subdomain.
func (c *checker) name(path, name string, most int, dots bool) {
	if msg := badName(name, most, dots); msg != "" {
		hint := ""
		if better := strings.ToLower(strings.Trim(strings.NewReplacer("_", "-", " ", "-").Replace(name), "-.")); badName(better, most, dots) == "" {
			hint = fmt.Sprintf("did you mean %q?", better)
		}
		c.bad(path, hint, "%s", msg)
	}
}

// badName says what is wrong with a DNS-1123 name; "" if nothing is.
func badName(name string, most int, dots bool) string {
	switch {
	case name == "":
		return "is empty, and must be a name"
	case len(name) > most:
		return fmt.Sprintf("%q is longer than %d characters", shorten(name), most)
	}
	labels := []string{name}
	if dots {
		labels = strings.Split(name, ".")
	}
	for _, l := range labels {
		if len(l) > 63 {
			return fmt.Sprintf("%q has a part that is longer than 63 characters", shorten(name))
		}
		if !dnsLabel.MatchString(l) {
			also := ""
			if dots {
				also = " between dots"
			}
			return fmt.Sprintf("%q is no DNS name: lower-case letters, digits and hyphens%s, with a letter or digit at both ends", shorten(name), also)
		}
	}
	return ""
}

func (c *checker) node(n Node) {
	if n.Name != "" { // the name becomes the label kubernetes.io/hostname, which takes 63 characters
		c.name("spec.node.name", n.Name, 63, true)
	}
	if n.IP != "" {
		if ip, ok := c.address("spec.node.ip", n.IP); ok {
			switch {
			case ip.IsUnspecified(), ip.IsLoopback(), ip.IsMulticast(), ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
				c.bad("spec.node.ip", "leave it out to have it detected", "%s is no address other nodes can reach this one at", ip)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(n.Labels)) {
		at := keyPath("spec.node.labels", key)
		if msg := badLabelKey(key); msg != "" {
			c.bad(at, "", "%s", msg)
		} else if msg, hint := forbiddenLabel(key); msg != "" {
			c.bad(at, hint, "%s", msg)
		}
		if msg := badLabelValue(n.Labels[key]); msg != "" {
			c.bad(at, "", "%s", msg)
		}
	}
	seen := map[string]int{}
	for i, taint := range n.Taints {
		c.taint(indexPath("spec.node.taints", i), taint, i, seen)
	}
}

func badLabelKey(key string) string {
	name := key
	if prefix, rest, ok := strings.Cut(key, "/"); ok {
		name = rest
		if msg := badName(prefix, 253, true); msg != "" {
			return "the part before the slash: " + msg
		}
	}
	switch {
	case name == "":
		return fmt.Sprintf("the key %q has no name", shorten(key))
	case len(name) > 63:
		return fmt.Sprintf("the name in the key %q is longer than 63 characters", shorten(key))
	case !qualifiedName.MatchString(name):
		return fmt.Sprintf("the key %q is not valid: letters, digits, “-”, “_” and “.”, with a letter or digit at both ends", shorten(key))
	}
	return ""
}

func badLabelValue(value string) string {
	switch {
	case value == "":
		return ""
	case len(value) > 63:
		return fmt.Sprintf("the value %q is longer than 63 characters", shorten(value))
	case !qualifiedName.MatchString(value):
		return fmt.Sprintf("the value %q is not valid: letters, digits, “-”, “_” and “.”, with a letter or digit at both ends", shorten(value))
	}
	return ""
}

// kubeletLabels are the labels of the project's own namespaces that a kubelet may give its node; the
// kubelet refuses to start with any other, and so does the NodeRestriction admission.
var kubeletLabels = []string{
	"kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch", "node.kubernetes.io/instance-type",
	"topology.kubernetes.io/zone", "topology.kubernetes.io/region", "beta.kubernetes.io/os", "beta.kubernetes.io/arch",
	"beta.kubernetes.io/instance-type", "failure-domain.beta.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/region",
}

func forbiddenLabel(key string) (msg, hint string) {
	namespace, _, ok := strings.Cut(key, "/")
	within := func(domain string) bool { return namespace == domain || strings.HasSuffix(namespace, "."+domain) }
	switch {
	case !ok, !within("kubernetes.io") && !within("k8s.io"),
		slices.Contains(kubeletLabels, key), within("kubelet.kubernetes.io"), within("node.kubernetes.io"):
		return "", ""
	}
	return fmt.Sprintf("a node may not give itself the label %s (NodeRestriction)", shorten(key)),
		"set it afterwards as administrator: k1s kubectl label node NAME " + shorten(key) + "=…"
}

func (c *checker) taint(at, taint string, i int, seen map[string]int) {
	rest, effect, ok := cutLast(taint, ":")
	if !ok {
		c.bad(at, "for example gpu=true:NoSchedule", "%q is no taint: write key=value:Effect or key:Effect", shorten(taint))
		return
	}
	if err := checkEnum(effect, []string{"NoSchedule", "PreferNoSchedule", "NoExecute"}); err != nil {
		c.bad(at, hintOf(err), "the effect %v", err)
	}
	key, value, _ := strings.Cut(rest, "=")
	if msg := badLabelKey(key); msg != "" {
		c.bad(at, "", "%s", msg)
	}
	if msg := badLabelValue(value); msg != "" {
		c.bad(at, "", "%s", msg)
	}
	if first, ok := seen[key+":"+effect]; ok {
		c.bad(at, "", "repeats key and effect of %s", indexPath("spec.node.taints", first))
		return
	}
	seen[key+":"+effect] = i
}

func cutLast(s, sep string) (before, after string, ok bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// address checks an IPv4 address.
func (c *checker) address(at, text string) (netip.Addr, bool) {
	ip, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		c.bad(at, "", "%q is no IP address", shorten(text))
	case !ip.Is4():
		c.bad(at, "use an IPv4 address", "%s is IPv6, which is not supported in this version", ip)
	default:
		return ip, true
	}
	return netip.Addr{}, false
}

// cidr checks an IPv4 range in canonical form. shortest and longest bound the prefix length.
func (c *checker) cidr(at, text string, shortest, longest int, why string) (netip.Prefix, bool) {
	if strings.Contains(text, ",") {
		c.bad(at, "give one IPv4 range", "%q names several ranges; dual stack is not supported in this version", shorten(text))
		return netip.Prefix{}, false
	}
	if ip, err := netip.ParseAddr(text); err == nil {
		c.bad(at, fmt.Sprintf("for example %s/16", ip), "%s is an address, and must be a range of addresses", ip)
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		c.bad(at, "for example 10.42.0.0/16", "%q is no range of addresses", shorten(text))
		return p, false
	case !p.Addr().Is4():
		c.bad(at, "use an IPv4 range", "%s is IPv6, which is not supported in this version", p)
		return p, false
	}
	ok := true
	if p.Masked() != p {
		c.bad(at, fmt.Sprintf("did you mean %s?", p.Masked()), "%s has bits set behind the mask", p)
		p = p.Masked()
	}
	if p.Bits() < shortest || p.Bits() > longest {
		c.bad(at, "", "%s has %s; the length must be from /%d to /%d: %s", p, addresses(p), shortest, longest, why)
		ok = false
	}
	for _, r := range []struct{ cidr, what string }{
		{"0.0.0.0/8", "“this network”"}, {"127.0.0.0/8", "loopback"}, {"169.254.0.0/16", "link-local"}, {"224.0.0.0/3", "multicast and reserved"},
	} {
		if p.Overlaps(netip.MustParsePrefix(r.cidr)) {
			c.bad(at, "use a private range: 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16", "%s overlaps %s, the %s addresses", p, r.cidr, r.what)
			ok = false
			break
		}
	}
	return p, ok
}

func addresses(p netip.Prefix) string {
	if p.Bits() == 32 {
		return "1 address"
	}
	return fmt.Sprintf("%d addresses", uint64(1)<<(32-p.Bits()))
}

func (c *checker) network(s Spec) {
	n := s.Network
	pods, podsOK := c.cidr("spec.network.podCIDR", n.PodCIDR, minPodLength, nodeMaskLength, "each node takes a /24 of it")
	services, servicesOK := c.cidr("spec.network.serviceCIDR", n.ServiceCIDR, minServiceLength, maxServiceLength, "it must hold the API, DNS and your services")
	if podsOK && servicesOK && pods.Overlaps(services) {
		c.bad("spec.network.serviceCIDR", "", "%s overlaps spec.network.podCIDR %s", services, pods)
	}
	nodeIP, what := c.known.NodeIP, "the address of this node"
	if ip, err := netip.ParseAddr(s.Node.IP); err == nil {
		nodeIP, what = ip, "spec.node.ip"
	}
	if nodeIP.IsValid() {
		if podsOK && pods.Contains(nodeIP) {
			c.bad("spec.network.podCIDR", "choose a range that your network does not use", "%s contains %s, %s", pods, nodeIP, what)
		}
		if servicesOK && services.Contains(nodeIP) {
			c.bad("spec.network.serviceCIDR", "choose a range that your network does not use", "%s contains %s, %s", services, nodeIP, what)
		}
	}
	if n.ClusterDNS != "" {
		c.clusterDNS(n.ClusterDNS, services, servicesOK)
	}
	c.nodePorts(n.NodePorts)
	if n.MTU != 0 && (n.MTU < minMTU || n.MTU > maxMTU) {
		c.bad("spec.network.mtu", "leave it out to take it from the node's link", "is %d, and must be from %d to %d", n.MTU, minMTU, maxMTU)
	}
}

func (c *checker) clusterDNS(text string, services netip.Prefix, servicesOK bool) {
	const at = "spec.network.clusterDNS"
	ip, ok := c.address(at, text)
	if !ok || !servicesOK {
		return
	}
	switch {
	case !services.Contains(ip):
		c.bad(at, "leave it out for the tenth address of the range", "%s is outside of spec.network.serviceCIDR %s", ip, services)
	case ip == services.Addr(), !services.Contains(ip.Next()):
		c.bad(at, "leave it out for the tenth address of the range", "%s is the first or last address of %s, which no service can have", ip, services)
	case ip == services.Addr().Next():
		c.bad(at, "leave it out for the tenth address of the range", "%s is the address of the Kubernetes API service", ip)
	}
}

// portRange reads "30000-32767".
func portRange(text string) (from, to int, ok bool) {
	a, b, found := strings.Cut(text, "-")
	from, err1 := strconv.Atoi(strings.TrimSpace(a))
	to, err2 := strconv.Atoi(strings.TrimSpace(b))
	return from, to, found && err1 == nil && err2 == nil
}

func (c *checker) nodePorts(text string) {
	const at = "spec.network.nodePorts"
	from, to, ok := portRange(text)
	switch {
	case !ok:
		c.bad(at, "for example 30000-32767", "%q is no range of ports", shorten(text))
		return
	case from < 1 || to > 65535:
		c.bad(at, "", "%s leaves the ports 1-65535", text)
		return
	case from > to:
		c.bad(at, fmt.Sprintf("did you mean %d-%d?", to, from), "%s ends before it starts", text)
		return
	}
	for _, port := range slices.Sorted(maps.Keys(fixedPorts)) {
		if port >= from && port <= to {
			c.bad(at, "for example 30000-32767", "%s contains %d, the port of %s", text, port, fixedPorts[port])
			return
		}
	}
}

func (c *checker) api(a API, n Network) {
	const at = "spec.api.port"
	from, to, rangeOK := portRange(n.NodePorts)
	switch {
	case a.Port < 1 || a.Port > 65535:
		c.bad(at, "", "is %d, and must be from 1 to 65535", a.Port)
	case fixedPorts[a.Port] != "":
		c.bad(at, "6443 is usual", "%d is the port of %s", a.Port, fixedPorts[a.Port])
	case rangeOK && a.Port >= from && a.Port <= to:
		c.bad(at, "", "%d is inside spec.network.nodePorts %s, where a service could take it", a.Port, n.NodePorts)
	}
	if ip, ok := c.address("spec.api.bind", a.Bind); ok && ip.IsMulticast() {
		c.bad("spec.api.bind", "0.0.0.0 is every address of this machine", "%s is a multicast address", ip)
	}
	for i, san := range a.SANs {
		c.san(indexPath("spec.api.sans", i), san)
	}
}

func (c *checker) san(at, san string) {
	if _, err := netip.ParseAddr(san); err == nil {
		return
	}
	bare := san
	if _, rest, ok := strings.Cut(bare, "://"); ok {
		bare, _, _ = strings.Cut(rest, "/")
	}
	if host, port, ok := cutLast(bare, ":"); ok {
		if _, err := strconv.Atoi(port); err == nil {
			bare = strings.Trim(host, "[]")
		}
	}
	_, ipErr := netip.ParseAddr(bare)
	switch msg := badName(strings.ToLower(strings.TrimPrefix(bare, "*.")), 253, true); {
	case bare != san && (msg == "" || ipErr == nil):
		c.bad(at, fmt.Sprintf("did you mean %q?", bare), "%q is more than a name or an address", shorten(san))
	case msg != "":
		c.bad(at, "", "%s", msg)
	}
}

func (c *checker) etcd(e Etcd) {
	if e.Quota < minQuota || e.Quota > maxQuota {
		c.bad("spec.etcd.quota", "2048 is usual, and more than 8192 is not advised", "is %d MiB, and must be from %d to %d", e.Quota, minQuota, maxQuota)
	}
	if err := e.RemoveDeadAfter.Check(minRemoveDeadAfter); err != nil {
		c.bad("spec.etcd.removeDeadAfter", "for example 72h, or never", "%v", err)
	}
	s := e.Snapshots
	if err := s.Schedule.Check(); err != nil {
		c.bad("spec.etcd.snapshots.schedule", "for example “0 */12 * * *”, “@daily”, or never", "%v", err)
	}
	if s.Keep < 0 {
		c.bad("spec.etcd.snapshots.keep", "0 keeps all", "is %d", s.Keep)
	}
	const s3 = "spec.etcd.snapshots.s3."
	for _, f := range []struct{ at, value string }{
		{"spec.etcd.snapshots.dir", s.Dir}, {s3 + "caFile", s.S3.CAFile}, {s3 + "credentialsFile", s.S3.CredentialsFile},
	} {
		if f.value != "" {
			c.file(f.at, f.value)
		}
	}
	if s.S3.Secret != "" {
		c.name(s3+"secret", s.S3.Secret, 253, true)
		if s.S3.CredentialsFile != "" {
			c.bad(s3+"secret", "keep one of them", "there is %scredentialsFile as well", s3)
		}
	}
	if s.S3.Bucket == "" && s.S3 != (S3{}) {
		c.bad(s3+"bucket", "", "is empty, and other fields of %s are set", strings.TrimSuffix(s3, "."))
	}
	if strings.Contains(s.S3.Bucket, "/") {
		c.bad(s3+"bucket", "what is behind the slash is the folder", "%q is no name of a bucket", shorten(s.S3.Bucket))
	}
	if rest := strings.TrimPrefix(strings.TrimPrefix(s.S3.Endpoint, "https://"), "http://"); strings.ContainsAny(rest, "/@?") {
		c.bad(s3+"endpoint", "for example minio.example:9000", "is more than a host and a port")
	}
}

func (c *checker) runtime(r Runtime) {
	const at = "spec.runtime.socket"
	file, unix := strings.CutPrefix(r.Socket, "unix://")
	switch {
	case r.Socket == "":
	case strings.HasPrefix(r.Socket, "npipe://"):
		if !strings.HasPrefix(r.Socket, "npipe:////./pipe/") {
			c.bad(at, "for example npipe:////./pipe/containerd-containerd", "%q is no named pipe", shorten(r.Socket))
		}
	case path.IsAbs(r.Socket):
		c.bad(at, "did you mean unix://"+shorten(r.Socket)+"?", "%q has no scheme", shorten(r.Socket))
	case !unix:
		c.bad(at, "for example unix:///run/crio/crio.sock", "%q is no socket", shorten(r.Socket))
	case !path.IsAbs(file):
		c.bad(at, "there are three slashes: unix:///run/crio/crio.sock", "%q is not an absolute path", shorten(file))
	case len(file) > maxSocketPath:
		c.bad(at, "", "the path is longer than %d bytes, the most a socket can have", maxSocketPath)
	}
}

// file checks a path that the daemon, whose working directory is nobody's business, opens later.
func (c *checker) file(at, name string) {
	windows := len(name) > 2 && name[1] == ':' && (name[2] == '\\' || name[2] == '/')
	switch {
	case strings.HasPrefix(name, "~"):
		c.bad(at, "write the home directory out", "%q: “~” is not expanded here", shorten(name))
	case !path.IsAbs(name) && !windows:
		c.bad(at, "write the whole path", "%q is not an absolute path", shorten(name))
	case strings.ContainsRune(name, 0):
		c.bad(at, "", "contains a zero byte")
	}
}

// users checks that there is room for eight numbers, none of which is root's or one that systems give to people and services.
func (c *checker) users(s Spec) {
	const least, most = 1000, 1<<31 - 16
	if s.Users.First < least || s.Users.First > most {
		c.bad("spec.users.first", "the default is 61100", "%d is no number that users of their own can begin with: %d to %d", s.Users.First, least, most)
	}
	if s.Users.Separate && s.Isolation == "none" {
		c.bad("spec.users.separate", "set spec.isolation to grouped or component", "cannot be had with spec.isolation none: the kubelet is in the same process, and needs root")
	}
}

func (c *checker) disable(list []string) {
	if c.known.Disable == nil {
		return
	}
	for i, name := range list {
		if slices.Contains(c.known.Disable, name) {
			continue
		}
		hint := "it can be " + oneOf(c.known.Disable)
		if near := nearest(name, c.known.Disable); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		c.bad(indexPath("spec.disable", i), hint, "%q is no packaged component", shorten(name))
	}
}

func (c *checker) components(m map[string]ComponentArgs) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		at := keyPath("spec.components", name)
		if c.known.Components != nil && !slices.Contains(c.known.Components, name) {
			hint := "there are: " + strings.Join(c.known.Components, ", ")
			if near := nearest(name, c.known.Components); near != "" {
				hint = fmt.Sprintf("did you mean %q?", near)
			}
			c.bad(at, hint, "%q is no component", shorten(name))
		}
		args := m[name].Args
		for _, arg := range slices.Sorted(maps.Keys(args)) {
			where := keyPath(at+".args", arg)
			bare, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
			switch {
			case !argName.MatchString(arg) && argName.MatchString(bare):
				c.bad(where, fmt.Sprintf("did you mean %q?", bare), "%q is no flag name: it stands here without dashes and without its value", shorten(arg))
			case !argName.MatchString(arg):
				c.bad(where, "", "%q is no flag name", shorten(arg))
			case strings.ContainsRune(args[arg], 0):
				c.bad(where, "", "contains a zero byte")
			case name == "kube-proxy" && bare != "v" && bare != "vmodule" && !strings.HasPrefix(bare, "log"):
				c.bad(where, "set a field of KubeProxyConfiguration in spec.kubeProxy", "kube-proxy would ignore it: it takes its settings from a file, and flags about logging only")
			}
		}
	}
}
