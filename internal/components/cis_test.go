package components

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
)

// The items of the CIS Kubernetes Benchmark, version 1.11, and how k1s meets them. Those with a check are tested here,
// against what k1s renders; the others say why there is none. docs/how-to/hardening.md is written from this table.
type cisItem struct {
	id, what string
	// nodes are the configurations the check is made on; nil is the default server and the default agent, where they have the
	// component.
	nodes []string
	check func(n cisNode) error
	// how it is met, or why not. Where there is no check it begins with one of the words of outside.
	how string
}

// outside are the words for items that are not checked on rendered configuration.
var outside = []string{"system test: ", "test of the add-ons: ", "no such thing: ", "yours: ", "otherwise: ", "not met: "}

// cisNode is one rendered node.
type cisNode struct {
	name  string
	units []component.Unit
}

func (n cisNode) component(name string) *component.Component {
	for _, u := range n.units {
		for i := range u.Components {
			if u.Components[i].Name == name {
				return &u.Components[i]
			}
		}
	}
	return nil
}

// flag is the value of a component's argument.
func (n cisNode) flag(comp, name string) (string, bool) {
	c := n.component(comp)
	if c == nil {
		return "", false
	}
	for _, a := range c.Spec.Args {
		if v, ok := strings.CutPrefix(a, "--"+name+"="); ok {
			return v, true
		}
	}
	return "", false
}

// file is a rendered YAML file of a component.
func (n cisNode) file(comp, base string) (map[string]any, component.File, error) {
	for _, f := range n.component(comp).Spec.Files {
		if path.Base(f.Path) == base {
			var v map[string]any
			return v, f, yaml.Unmarshal([]byte(f.Content), &v)
		}
	}
	return nil, component.File{}, fmt.Errorf("there is no %s", base)
}

func is(comp, name, want string) func(cisNode) error {
	return func(n cisNode) error {
		if got, _ := n.flag(comp, name); got != want {
			return fmt.Errorf("--%s is %q, want %q", name, got, want)
		}
		return nil
	}
}

func set(comp string, names ...string) func(cisNode) error {
	return func(n cisNode) error {
		for _, name := range names {
			if got, _ := n.flag(comp, name); got == "" {
				return fmt.Errorf("--%s is not set", name)
			}
		}
		return nil
	}
}

func unset(comp string, names ...string) func(cisNode) error {
	return func(n cisNode) error {
		for _, name := range names {
			if got, ok := n.flag(comp, name); ok {
				return fmt.Errorf("--%s is %q", name, got)
			}
		}
		return nil
	}
}

// lists tells of a list of words whether it has one, or with "!" has not.
func lists(comp, name, word string) func(cisNode) error {
	return func(n cisNode) error {
		got, _ := n.flag(comp, name)
		word, not := strings.CutPrefix(word, "!")
		if slices.Contains(strings.Split(got, ","), word) == not {
			return fmt.Errorf("--%s is %q", name, got)
		}
		return nil
	}
}

func atLeast(comp, name string, least int) func(cisNode) error {
	return func(n cisNode) error {
		got, _ := n.flag(comp, name)
		if v, err := strconv.Atoi(got); err != nil || v < least {
			return fmt.Errorf("--%s is %q, want %d or more", name, got, least)
		}
		return nil
	}
}

// field is one of a rendered file; want nil means that it is not there.
func field(comp, base, where string, want any) func(cisNode) error {
	return func(n cisNode) error {
		v, _, err := n.file(comp, base)
		if err != nil {
			return err
		}
		var got any = v
		for key := range strings.SplitSeq(where, ".") {
			m, _ := got.(map[string]any)
			got = m[key]
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("%s of %s is %v, want %v", where, base, got, want)
		}
		return nil
	}
}

func given(comp, base, where string) func(cisNode) error {
	return func(n cisNode) error {
		if err := field(comp, base, where, nil)(n); err == nil {
			return fmt.Errorf("%s of %s is not set", where, base)
		}
		return nil
	}
}

func all(checks ...func(cisNode) error) func(cisNode) error {
	return func(n cisNode) error {
		for _, c := range checks {
			if err := c(n); err != nil {
				return err
			}
		}
		return nil
	}
}

// closed tells that what a component's files and directories are called have no more than these modes.
func closed(comp string, mode fs.FileMode, names ...string) func(cisNode) error {
	return func(n cisNode) error {
		c := n.component(comp)
		for _, name := range names {
			found := false
			for _, f := range c.Spec.Files {
				if path.Base(f.Path) == name {
					found = true
					if f.Mode&^mode != 0 {
						return fmt.Errorf("%s has mode %o", f.Path, f.Mode)
					}
				}
			}
			for _, d := range c.Spec.Dirs {
				if path.Base(d.Path) == name {
					found = true
					if d.Mode&^mode != 0 {
						return fmt.Errorf("%s has mode %o", d.Path, d.Mode)
					}
				}
			}
			if !found {
				return fmt.Errorf("there is no %s", name)
			}
		}
		return nil
	}
}

const (
	api, manager, scheduler, kubelet, proxy = "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"
	modes                                   = "system test: "
)

// goCiphers: Go has no weak suites by default, and both programs take at least TLS 1.2.
const goCiphers = "Go's own suites: without RSA key exchange, 3DES and RC4; TLS 1.2 at least"

func cisItems() []cisItem {
	noPodSpecs := "no such thing: the control plane are no pods; what is rendered for it is 0600 in a directory of 0700, of root"
	audit := func(check func(cisNode) error) cisItem {
		return cisItem{nodes: []string{"audited"}, check: check, how: "with `spec.audit.enabled: true`, which is not the default: it costs memory and disk"}
	}
	item := func(id, what string, i cisItem) cisItem { i.id, i.what = id, what; return i }
	simple := func(id, what string, check func(cisNode) error, how string) cisItem {
		return cisItem{id: id, what: what, check: check, how: how}
	}
	on := func(i cisItem, nodes ...string) cisItem { i.nodes = nodes; return i }
	kube := func(where string, want any) func(cisNode) error { return field(kubelet, "kubelet.yaml", where, want) }
	return []cisItem{
		simple("1.1.1 to 1.1.8", "files of pod specifications: 600, root:root", nil, noPodSpecs),
		simple("1.1.9, 1.1.10", "CNI files: 600, root:root", nil, modes+"0600 in a directory that is open to read"),
		on(simple("1.1.11", "etcd's data directory: 700", closed("etcd", 0o700, "etcd"), "0700; SQLite's too"), "etcd"),
		simple("1.1.12", "etcd's data directory: etcd:etcd", nil, "yours: `spec.users.separate: true` with `spec.isolation: component` gives it a user of its own; by itself etcd runs as root"),
		simple("1.1.13 to 1.1.18", "kubeconfigs of the administrator, scheduler, controller manager: 600, root:root", nil, modes+"0600, root; `spec.kubeconfig.group` opens a copy of the administrator's if you want that"),
		simple("1.1.19 to 1.1.21", "certificates and keys: root:root, 644 and 600", nil, modes+"`pki/`"),

		simple("1.2.1", "anonymous requests", field(api, "authentication.yaml", "anonymous.conditions", []any{map[string]any{"path": "/livez"}, map[string]any{"path": "/readyz"}, map[string]any{"path": "/healthz"}, map[string]any{"path": "/version"}}),
			"health and version only, by the authentication configuration; with OIDC flags of yours by authorization alone"),
		simple("1.2.2", "no token file", unset(api, "token-auth-file"), "not set"),
		simple("1.2.3", "DenyServiceExternalIPs", nil, "yours: `spec.components.kube-apiserver.args`: `enable-admission-plugins: DenyServiceExternalIPs` is added to ours. Not the default, because services may use the field"),
		simple("1.2.4", "certificate for kubelets", set(api, "kubelet-client-certificate", "kubelet-client-key"), "its own, for nothing else"),
		simple("1.2.5", "CA of kubelets", set(api, "kubelet-certificate-authority"), "the cluster's CA; every kubelet's certificate is issued by it"),
		simple("1.2.6", "authorization is not AlwaysAllow", lists(api, "authorization-mode", "!AlwaysAllow"), "Node and RBAC"),
		simple("1.2.7", "authorization: Node", lists(api, "authorization-mode", "Node"), "set"),
		simple("1.2.8", "authorization: RBAC", lists(api, "authorization-mode", "RBAC"), "set"),
		simple("1.2.9", "EventRateLimit", nil, "yours: it takes limits that fit the cluster; `spec.components.kube-apiserver.args`"),
		simple("1.2.10", "no AlwaysAdmit", lists(api, "enable-admission-plugins", "!AlwaysAdmit"), "not set"),
		simple("1.2.11", "AlwaysPullImages", nil, "yours: on a node without a registry no pod would start; `spec.components.kube-apiserver.args`"),
		simple("1.2.12", "ServiceAccount admission", unset(api, "disable-admission-plugins"), "upstream's default"),
		simple("1.2.13", "NamespaceLifecycle admission", unset(api, "disable-admission-plugins"), "upstream's default"),
		simple("1.2.14", "NodeRestriction admission", lists(api, "enable-admission-plugins", "NodeRestriction"), "set; plugins of yours are added to it"),
		simple("1.2.15", "no profiling", is(api, "profiling", "false"), "off"),
		item("1.2.16", "audit log", audit(set(api, "audit-log-path", "audit-policy-file"))),
		item("1.2.17", "audit log for 30 days", audit(atLeast(api, "audit-log-maxage", 30))),
		item("1.2.18", "ten old audit logs", audit(atLeast(api, "audit-log-maxbackup", 10))),
		item("1.2.19", "audit logs of 100 MB", audit(atLeast(api, "audit-log-maxsize", 100))),
		simple("1.2.20", "request timeout", unset(api, "request-timeout"), "upstream's minute"),
		simple("1.2.21", "tokens of deleted service accounts", unset(api, "service-account-lookup"), "are refused: upstream's default"),
		simple("1.2.22", "key of service accounts", set(api, "service-account-key-file"), "set"),
		on(simple("1.2.23", "certificate for etcd", set(api, "etcd-certfile", "etcd-keyfile"), "set; SQLite is behind a socket of root"), "etcd"),
		simple("1.2.24", "serving certificate", set(api, "tls-cert-file", "tls-private-key-file"), "set"),
		simple("1.2.25", "CA of clients", set(api, "client-ca-file"), "set"),
		on(simple("1.2.26", "CA of etcd", set(api, "etcd-cafile"), "set, an authority of its own"), "etcd"),
		simple("1.2.27", "encryption configuration", set(api, "encryption-provider-config"), "set, always"),
		simple("1.2.28", "providers of encryption", nil, "yours: `k1s encryption enable` or `spec.secrets.encryption: secretbox`, while everything runs; see [secrets-encryption.md](secrets-encryption.md)"),
		simple("1.2.29", "strong ciphers", is(api, "tls-min-version", tlsMinVersion), goCiphers),
		simple("1.2.30", "tokens of pods are not extended", nil, "yours: `service-account-extend-token-expiration: \"false\"` in `spec.components.kube-apiserver.args`. Not the default, because clients older than 2021 do not read their token again"),

		simple("1.3.1", "terminated pods are collected", unset(manager, "terminated-pod-gc-threshold"), "upstream's 12,500"),
		simple("1.3.2", "no profiling", is(manager, "profiling", "false"), "off"),
		simple("1.3.3", "controllers with service accounts of their own", is(manager, "use-service-account-credentials", "true"), "set"),
		simple("1.3.4", "key of service accounts", set(manager, "service-account-private-key-file"), "set"),
		simple("1.3.5", "CA for pods", set(manager, "root-ca-file"), "set; replaced with the cluster's, see [replace-the-ca.md](replace-the-ca.md)"),
		simple("1.3.6", "RotateKubeletServerCertificate", unset(manager, "feature-gates"), "upstream's default; k1s issues these certificates"),
		simple("1.3.7", "bound to loopback", is(manager, "bind-address", loopback), "127.0.0.1"),
		simple("1.4.1", "scheduler: no profiling", is(scheduler, "profiling", "false"), "off"),
		simple("1.4.2", "scheduler: bound to loopback", is(scheduler, "bind-address", loopback), "127.0.0.1"),

		on(simple("2.1", "etcd: certificate", all(given("etcd", "etcd.yaml", "client-transport-security.cert-file"), given("etcd", "etcd.yaml", "client-transport-security.key-file")), "set"), "etcd"),
		on(simple("2.2", "etcd: clients need one", field("etcd", "etcd.yaml", "client-transport-security.client-cert-auth", true), "set"), "etcd"),
		on(simple("2.3", "etcd: none of its own making", field("etcd", "etcd.yaml", "client-transport-security.auto-tls", nil), "not set"), "etcd"),
		on(simple("2.4", "etcd: certificate for members", all(given("etcd", "etcd.yaml", "peer-transport-security.cert-file"), given("etcd", "etcd.yaml", "peer-transport-security.key-file")), "set"), "etcd"),
		on(simple("2.5", "etcd: members need one", field("etcd", "etcd.yaml", "peer-transport-security.client-cert-auth", true), "set"), "etcd"),
		on(simple("2.6", "etcd: none of its own making for members", field("etcd", "etcd.yaml", "peer-transport-security.auto-tls", nil), "not set"), "etcd"),
		on(simple("2.7", "etcd: an authority of its own", func(n cisNode) error {
			v, _, err := n.file("etcd", "etcd.yaml")
			if err != nil {
				return err
			}
			theirs := v["client-transport-security"].(map[string]any)["trusted-ca-file"]
			if ours, _ := n.flag(api, "client-ca-file"); theirs == ours || theirs == nil {
				return fmt.Errorf("etcd trusts %v", theirs)
			}
			return nil
		}, "`pki/etcd/ca.crt`"), "etcd"),

		simple("3.1.1 to 3.1.3", "people do not use client certificates, tokens of service accounts, bootstrap tokens", nil, "yours: OpenID Connect by `oidc-…` in `spec.components.kube-apiserver.args`. There are no bootstrap tokens: machines join with tokens of k1s, which give no access to the API"),
		item("3.2.1, 3.2.2", "an audit policy that covers what matters", audit(func(n cisNode) error {
			v, _, err := n.file(api, "audit-policy.yaml")
			if err != nil {
				return err
			}
			rules := v["rules"].([]any)
			if last := rules[len(rules)-1].(map[string]any); last["level"] != "Metadata" || len(last) != 1 {
				return fmt.Errorf("what no other rule is about is recorded as %v", last)
			}
			return nil
		})),

		simple("4.1.1, 4.1.2", "file of the kubelet's service: 600, root:root", nil, "no such thing: the kubelet is started by k1s; the unit of k1s is yours, and has no secret in it"),
		simple("4.1.3 to 4.1.6", "kubeconfigs of kube-proxy and kubelet: 600, root:root", nil, modes+"`kubeconfig/`"),
		simple("4.1.7, 4.1.8", "CA of clients: 644, root:root", nil, modes+"`pki/ca.crt`"),
		simple("4.1.9, 4.1.10", "configuration of the kubelet: 600, root:root", closed(kubelet, 0o600, "kubelet.yaml"), "0600"),
		simple("4.2.1", "kubelet: no anonymous requests", kube("authentication.anonymous.enabled", false), "off"),
		simple("4.2.2", "kubelet: authorization is not AlwaysAllow", kube("authorization.mode", "Webhook"), "the API server is asked"),
		simple("4.2.3", "kubelet: CA of clients", given(kubelet, "kubelet.yaml", "authentication.x509.clientCAFile"), "set"),
		simple("4.2.4", "kubelet: no read-only port", kube("readOnlyPort", nil), "off: upstream's default in its file"),
		simple("4.2.5", "kubelet: idle streams end", kube("streamingConnectionIdleTimeout", nil), "upstream's four hours"),
		simple("4.2.6", "kubelet: iptables chains", kube("makeIPTablesUtilChains", nil), "upstream's default; nothing here uses iptables"),
		simple("4.2.7", "kubelet: no other name than the host's", nil, "not met: the name comes from k1s. It is bound to the machine's key, and is what its certificates are for ([ADR 22](../adr/0022-joining.md))"),
		simple("4.2.8", "kubelet: events", kube("eventRecordQPS", 50), "50 a second"),
		simple("4.2.9", "kubelet: serving certificate", all(given(kubelet, "kubelet.yaml", "tlsCertFile"), given(kubelet, "kubelet.yaml", "tlsPrivateKeyFile")), "set, of the cluster's CA"),
		simple("4.2.10", "kubelet: certificates are renewed", kube("rotateCertificates", false), "by k1s, live, when a third of their time is left; the kubelet's own way would do it twice"),
		simple("4.2.11", "RotateKubeletServerCertificate", kube("featureGates", nil), "upstream's default; k1s renews it"),
		simple("4.2.12", "kubelet: strong ciphers", kube("tlsMinVersion", tlsMinVersion), goCiphers),
		simple("4.2.13", "kubelet: limit of processes in a pod", nil, "yours: `spec.kubelet.podPidsLimit: 4096`. Not the default, because some databases and JVMs need more"),
		simple("4.2.14", "kubelet: seccomp by default", nil, "yours: `spec.kubelet.seccompDefault: true`. Not the default, because it changes what pods may do that ran elsewhere; the packaged add-ons ask for it themselves"),
		simple("4.2.15", "kubelet: IPAddressDeny", nil, "no such thing: it is a setting of systemd units"),
		simple("4.3.1", "kube-proxy: metrics on loopback", func(n cisNode) error {
			v, _, err := n.file(proxy, "kube-proxy.yaml")
			if err == nil && !strings.HasPrefix(fmt.Sprint(v["metricsBindAddress"]), loopback+":") {
				err = fmt.Errorf("metricsBindAddress is %v", v["metricsBindAddress"])
			}
			return err
		}, "127.0.0.1"),

		simple("5.1.1, 5.1.3, 5.1.8 to 5.1.13", "cluster-admin, wildcards, bind, impersonate, escalate, nodes/proxy, approval, webhooks, tokens", nil, "test of the add-ons: none has any of them; local-path makes volumes, which is what it is for"),
		simple("5.1.2", "access to Secrets", nil, "test of the add-ons: none reads any"),
		simple("5.1.4", "creating pods", nil, "test of the add-ons: none but local-path, in its own namespace, for the pods that make and remove directories"),
		simple("5.1.5, 5.1.6", "default service accounts, mounted tokens", nil, "test of the add-ons: each has an account of its own"),
		simple("5.1.7", "system:masters", nil, "not met: the administrator's certificate, the daemon's and the add-on manager's are of this group, because they work before any role exists and when roles are broken. Give people accounts of their own"),
		simple("5.2.1 to 5.2.12", "Pod Security", nil, "yours: the admission plugin is on, and every namespace says what it allows: label it `pod-security.kubernetes.io/enforce: restricted`. No default of ours, because it would refuse what runs on upstream"),
		simple("5.3.1", "the network enforces NetworkPolicies", func(n cisNode) error {
			if n.component("network-policy") == nil {
				return fmt.Errorf("there is no component for it")
			}
			return nil
		}, "on every node, see [network-policy.md](network-policy.md)"),
		simple("5.3.2", "every namespace has NetworkPolicies", nil, "yours: a default policy that denies, for each namespace"),
		simple("5.4 to 5.6", "use of secrets, image policy, namespaces, security contexts", nil, "yours: they are about what you run"),
	}
}

// cisNodes are the nodes that items are checked on.
func cisNodes(t *testing.T) map[string]cisNode {
	t.Helper()
	out := map[string]cisNode{}
	for name, change := range map[string]func(*config.Config){
		"server":  func(*config.Config) {},
		"agent":   func(c *config.Config) { c.Spec.Role = config.Agent },
		"etcd":    func(c *config.Config) { c.Spec.Datastore.Endpoint = "etcd" },
		"audited": func(c *config.Config) { c.Spec.Audit.Enabled = true },
	} {
		c := config.Default()
		change(&c)
		in := input(c)
		units, err := Plan(in)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = cisNode{name, units}
	}
	return out
}

// about is the component an item is about, by where it stands in the benchmark.
func (i cisItem) about() string {
	for prefix, comp := range map[string]string{"1.2": api, "1.3": manager, "1.4": scheduler, "3.2": api, "4.2": kubelet, "4.1": kubelet, "4.3": proxy, "5.3": kubelet} {
		if strings.HasPrefix(i.id, prefix) {
			return comp
		}
	}
	return "etcd"
}

func TestTheCISBenchmarkIsMet(t *testing.T) {
	nodes := cisNodes(t)
	seen := map[string]bool{}
	for _, i := range cisItems() {
		t.Run(i.id, func(t *testing.T) {
			if seen[i.id] {
				t.Error("it is there twice")
			}
			seen[i.id] = true
			if i.check == nil {
				if !slices.ContainsFunc(outside, func(w string) bool { return strings.HasPrefix(i.how, w) && len(i.how) > len(w) }) {
					t.Errorf("nothing checks it, and %q does not say why", i.how)
				}
				return
			}
			names := i.nodes
			if names == nil {
				names = []string{"server", "agent"}
			}
			checked := 0
			for _, name := range names {
				n := nodes[name]
				if n.component(i.about()) == nil {
					continue
				}
				checked++
				if err := i.check(n); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			if checked == 0 {
				t.Errorf("none of %v has a %s", names, i.about())
			}
		})
	}
}

// A check that cannot fail checks nothing: each is made on a node whose rendered settings are gone or turned round.
func TestEveryCheckOfTheBenchmarkCanFail(t *testing.T) {
	nodes := cisNodes(t)
	for _, i := range cisItems() {
		if i.check == nil {
			continue
		}
		name := "server"
		if i.nodes != nil {
			name = i.nodes[0]
		}
		if err := i.check(spoiled(nodes[name])); err == nil {
			t.Errorf("%s (%s) finds nothing wrong with a node on which everything is", i.id, i.what)
		}
	}
}

// spoiled turns round what every component is told.
func spoiled(n cisNode) cisNode {
	out := cisNode{name: n.name}
	for _, u := range n.units {
		v := component.Unit{Name: u.Name}
		for _, c := range u.Components {
			if c.Name == "network-policy" {
				continue
			}
			c.Spec.Args = []string{"--token-auth-file=x", "--disable-admission-plugins=x", "--authorization-mode=AlwaysAllow", "--enable-admission-plugins=AlwaysAdmit", "--profiling=true",
				"--request-timeout=0", "--service-account-lookup=false", "--terminated-pod-gc-threshold=0", "--feature-gates=x", "--bind-address=0.0.0.0"}
			files := slices.Clone(c.Spec.Files)
			for i := range files {
				files[i].Mode = 0o666
				files[i].Content = "anonymous: {}\nauthentication: {anonymous: {enabled: true}}\nauthorization: {mode: AlwaysAllow}\nreadOnlyPort: 10255\nstreamingConnectionIdleTimeout: 0s\nmakeIPTablesUtilChains: false\n" +
					"eventRecordQPS: 0\nrotateCertificates: true\nfeatureGates: {}\ntlsMinVersion: VersionTLS10\nmetricsBindAddress: 0.0.0.0:10249\nrules: [{level: None}]\n" +
					"client-transport-security: {client-cert-auth: false, auto-tls: true}\npeer-transport-security: {client-cert-auth: false, auto-tls: true}\n"
			}
			dirs := slices.Clone(c.Spec.Dirs)
			for i := range dirs {
				dirs[i].Mode = 0o777
			}
			c.Spec.Files, c.Spec.Dirs = files, dirs
			v.Components = append(v.Components, c)
		}
		out.units = append(out.units, v)
	}
	return out
}

const (
	hardening            = "../../docs/how-to/hardening.md"
	tableBegin, tableEnd = "<!-- items: written by go test ./internal/components -update -->\n", "<!-- end of items -->\n"
)

func TestThePageOfHardeningIsUpToDate(t *testing.T) {
	b, err := os.ReadFile(hardening)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(b), tableBegin)
	_, tail, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", hardening)
	}
	var table strings.Builder
	table.WriteString("| item | about | how it is met | shown by |\n|---|---|---|---|\n")
	for _, i := range cisItems() {
		how, by := i.how, "rendered configuration"
		if i.check == nil {
			by = ""
			for _, w := range outside {
				if rest, ok := strings.CutPrefix(i.how, w); ok {
					how, by = rest, strings.TrimSuffix(w, ": ")
				}
			}
		} else if i.nodes != nil && i.nodes[0] == "etcd" {
			by += ", with etcd"
		}
		if by == "not met" || by == "yours" {
			how, by = "**"+by+"**: "+how, ""
		}
		if by == "no such thing" || by == "otherwise" {
			how, by = by+": "+how, ""
		}
		fmt.Fprintf(&table, "| %s | %s | %s | %s |\n", i.id, i.what, how, by)
	}
	want := head + tableBegin + table.String() + tableEnd + tail
	if *update {
		if err := os.WriteFile(hardening, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(b) != want {
		t.Errorf("%s is not as the table says; run: go test ./internal/components -update", hardening)
	}
}
