package config

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"k1s.io/k1s/internal/errs"
)

func TestValidateTellsWhatIsWrong(t *testing.T) {
	known := Known{
		Disable: []string{"coredns", "metrics-server", "local-path"}, Components: []string{"kube-apiserver", "kubelet"},
		NodeIP: netip.MustParseAddr("192.168.7.11"),
	}
	for spec, want := range map[string]string{ // "" is valid; else the only problem with its hint
		"{}":                                "",
		"{cluster: {name: A_b}}":            `spec.cluster.name: "A_b" is no DNS name: lower-case letters, digits and hyphens, with a letter or digit at both ends [did you mean "a-b"?]`,
		"{cluster: {name: ''}}":             `spec.cluster.name: is empty, and must be a name`,
		"{cluster: {domain: k8s.example.}}": `spec.cluster.domain: "k8s.example." is no DNS name: lower-case letters, digits and hyphens between dots, with a letter or digit at both ends [did you mean "k8s.example"?]`,
		"{cluster: {domain: " + strings.Repeat("a.", 130) + "a}}": `spec.cluster.domain: "` + strings.Repeat("a.", 40) + `…" is longer than 253 characters`,
		"{node: {name: Edge-1}}":                                  `spec.node.name: "Edge-1" is no DNS name: lower-case letters, digits and hyphens between dots, with a letter or digit at both ends [did you mean "edge-1"?]`,
		"{node: {name: edge-1.example.com}}":                      "",
		"{node: {ip: 127.0.0.1}}":                                 `spec.node.ip: 127.0.0.1 is no address other nodes can reach this one at [leave it out to have it detected]`,
		"{node: {ip: 'fd00::1'}}":                                 `spec.node.ip: fd00::1 is IPv6, which is not supported in this version [use an IPv4 address]`,
		"{node: {ip: 10.0.0.300}}":                                `spec.node.ip: "10.0.0.300" is no IP address`,
		"{node: {ip: 10.42.0.9}}":                                 `spec.network.podCIDR: 10.42.0.0/16 contains 10.42.0.9, spec.node.ip [choose a range that your network does not use]`,
		"{node: {labels: {example.com/rack: r1, node.kubernetes.io/pool: x, topology.kubernetes.io/zone: z, my.node.kubernetes.io/x: ''}}}": "",
		"{node: {labels: {node-role.kubernetes.io/edge: ''}}}":                                                                              `spec.node.labels["node-role.kubernetes.io/edge"]: a node may not give itself the label node-role.kubernetes.io/edge (NodeRestriction) [set it afterwards as administrator: k1s kubectl label node NAME node-role.kubernetes.io/edge=…]`,
		"{node: {labels: {node-restriction.kubernetes.io/a: b}}}":                                                                           `spec.node.labels["node-restriction.kubernetes.io/a"]: a node may not give itself the label node-restriction.kubernetes.io/a (NodeRestriction) [set it afterwards as administrator: k1s kubectl label node NAME node-restriction.kubernetes.io/a=…]`,
		"{node: {labels: {a/b/c: x}}}":                                                                                                      `spec.node.labels["a/b/c"]: the key "a/b/c" is not valid: letters, digits, “-”, “_” and “.”, with a letter or digit at both ends`,
		"{node: {labels: {a: 'b c'}}}":                                                                                                      `spec.node.labels.a: the value "b c" is not valid: letters, digits, “-”, “_” and “.”, with a letter or digit at both ends`,
		"{node: {taints: ['a=b:NoSchedule', 'a:NoExecute', 'example.com/x=:PreferNoSchedule']}}":                                            "",
		"{node: {taints: [gpu]}}":                                                                                                           `spec.node.taints[0]: "gpu" is no taint: write key=value:Effect or key:Effect [for example gpu=true:NoSchedule]`,
		"{node: {taints: ['a:NoSchedul']}}":                                                                                                 `spec.node.taints[0]: the effect is "NoSchedul", and must be NoSchedule, PreferNoSchedule or NoExecute [did you mean "NoSchedule"?]`,
		"{node: {taints: ['a=1:NoSchedule', 'a=2:NoSchedule']}}":                                                                            `spec.node.taints[1]: repeats key and effect of spec.node.taints[0]`,
		"{api: {port: 65536}}":                                                                                                              `spec.api.port: is 65536, and must be from 1 to 65535`,
		"{api: {port: 10250}}":                                                                                                              `spec.api.port: 10250 is the port of the kubelet [6443 is usual]`,
		"{api: {port: 30001}}":                                                                                                              `spec.api.port: 30001 is inside spec.network.nodePorts 30000-32767, where a service could take it`,
		"{api: {bind: localhost}}":                                                                                                          `spec.api.bind: "localhost" is no IP address`,
		"{api: {sans: [a.example, '*.b.example', 10.0.0.1, 'fd00::1']}}":                                                                    "",
		"{api: {sans: ['https://a.example:6443/x']}}":                                                                                       `spec.api.sans[0]: "https://a.example:6443/x" is more than a name or an address [did you mean "a.example"?]`,
		"{api: {sans: ['10.0.0.1:6443']}}":                                                                                                  `spec.api.sans[0]: "10.0.0.1:6443" is more than a name or an address [did you mean "10.0.0.1"?]`,
		"{network: {podCIDR: 10.42.1.0/16}}":                                                                                                `spec.network.podCIDR: 10.42.1.0/16 has bits set behind the mask [did you mean 10.42.0.0/16?]`,
		"{network: {podCIDR: 10.44.0.0/25}}":                                                                                                `spec.network.podCIDR: 10.44.0.0/25 has 128 addresses; the length must be from /8 to /24: each node takes a /24 of it`,
		"{network: {podCIDR: 10.44.0.0}}":                                                                                                   `spec.network.podCIDR: 10.44.0.0 is an address, and must be a range of addresses [for example 10.44.0.0/16]`,
		"{network: {podCIDR: 'fd00::/48'}}":                                                                                                 `spec.network.podCIDR: fd00::/48 is IPv6, which is not supported in this version [use an IPv4 range]`,
		"{network: {podCIDR: '10.44.0.0/16,fd00::/48'}}":                                                                                    `spec.network.podCIDR: "10.44.0.0/16,fd00::/48" names several ranges; dual stack is not supported in this version [give one IPv4 range]`,
		"{network: {podCIDR: 127.0.0.0/16}}":                                                                                                `spec.network.podCIDR: 127.0.0.0/16 overlaps 127.0.0.0/8, the loopback addresses [use a private range: 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16]`,
		"{network: {podCIDR: 192.168.0.0/16}}":                                                                                              `spec.network.podCIDR: 192.168.0.0/16 contains 192.168.7.11, the address of this node [choose a range that your network does not use]`,
		"{network: {serviceCIDR: 10.42.128.0/20}}":                                                                                          `spec.network.serviceCIDR: 10.42.128.0/20 overlaps spec.network.podCIDR 10.42.0.0/16`,
		"{network: {serviceCIDR: 10.43.0.0/29}}":                                                                                            `spec.network.serviceCIDR: 10.43.0.0/29 has 8 addresses; the length must be from /12 to /28: it must hold the API, DNS and your services`,
		"{network: {serviceCIDR: 10.43.0.0/28}}":                                                                                            "",
		"{network: {clusterDNS: 10.43.0.53}}":                                                                                               "",
		"{network: {clusterDNS: 10.44.0.10}}":                                                                                               `spec.network.clusterDNS: 10.44.0.10 is outside of spec.network.serviceCIDR 10.43.0.0/16 [leave it out for the tenth address of the range]`,
		"{network: {clusterDNS: 10.43.0.1}}":                                                                                                `spec.network.clusterDNS: 10.43.0.1 is the address of the Kubernetes API service [leave it out for the tenth address of the range]`,
		"{network: {clusterDNS: 10.43.255.255}}":                                                                                            `spec.network.clusterDNS: 10.43.255.255 is the first or last address of 10.43.0.0/16, which no service can have [leave it out for the tenth address of the range]`,
		"{network: {nodePorts: 32767-30000}}":                                                                                               `spec.network.nodePorts: 32767-30000 ends before it starts [did you mean 30000-32767?]`,
		"{network: {nodePorts: '30000'}}":                                                                                                   `spec.network.nodePorts: "30000" is no range of ports [for example 30000-32767]`,
		"{network: {nodePorts: 60000-70000}}":                                                                                               `spec.network.nodePorts: 60000-70000 leaves the ports 1-65535`,
		"{network: {nodePorts: 10000-11000}}":                                                                                               `spec.network.nodePorts: 10000-11000 contains 10248, the port of the kubelet's health [for example 30000-32767]`,
		"{network: {mtu: 100}}":                                                                                                             `spec.network.mtu: is 100, and must be from 576 to 65520 [leave it out to take it from the node's link]`,
		"{datastore: {endpoint: etcd}}":                                                                                                     "",
		"{datastore: {endpoint: 'postgres://u:p@h/db?sslmode=disable'}}":                                                                    "",
		"{datastore: {endpoint: 'mysql://u:p/@:?@tcp(h:3306)/db?tls=true', caFile: /ca, certFile: /c, keyFile: /k}}": "",
		"{datastore: {endpoint: 'nats://u:p@a:4222,nats://b:4222?bucket=k'}}":                                        "",
		"{datastore: {endpoint: 'https://a:2379,https://b:2379', caFile: /ca}}":                                      "",
		"{datastore: {endpointFile: /etc/k1s/datastore, caFile: /ca}}":                                               "",
		"{datastore: {endpoint: sqlit}}":                                                                             `spec.datastore.endpoint: is "sqlit", and must be sqlite, etcd, https://…, postgres://…, mysql://… or nats://… [did you mean "sqlite"?]`,
		"{datastore: {endpoint: 'postgre://u:hunter2@h/db'}}":                                                        `spec.datastore.endpoint: postgre:// is no datastore [did you mean postgres://?]`,
		"{datastore: {endpoint: 'mariadb://u:hunter2@h/db'}}":                                                        `spec.datastore.endpoint: mariadb:// is no datastore [did you mean mysql://?]`,
		"{datastore: {endpoint: 'redis://u:hunter2@h'}}":                                                             `spec.datastore.endpoint: redis:// is no datastore [write sqlite, etcd, https://…, postgres://…, mysql://… or nats://…]`,
		"{datastore: {endpoint: 'u:hunter2@tcp(h)/db'}}":                                                             `spec.datastore.endpoint: is no datastore [write sqlite, etcd, https://…, postgres://…, mysql://… or nats://…]`,
		"{datastore: {endpoint: 'mysql://u:hunter2@h:3306/db'}}":                                                     `spec.datastore.endpoint: has no address of MySQL: that is tcp(HOST:PORT) or unix(/SOCKET) [for example mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE]`,
		"{datastore: {endpoint: 'mysql://u:hunter2@tcp(h:3306)'}}":                                                   `spec.datastore.endpoint: names no database of MySQL [for example mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE]`,
		"{datastore: {endpoint: 'postgres://u:hunter/2@h/db'}}":                                                      `spec.datastore.endpoint: is no valid URL [in user and password write %40 for @, %2F for /, %3A for :, %23 for #, %3F for ? and %25 for %]`,
		"{datastore: {endpoint: 'https://a:2379,b:2379'}}":                                                           `spec.datastore.endpoint: names several servers, and one of them is not of the same kind [every one of them needs its scheme: https://A:2379,https://B:2379]`,
		"{datastore: {endpoint: 'https://a'}}":                                                                       `spec.datastore.endpoint: has no port [etcd's is 2379]`,
		"{datastore: {endpoint: 'https://u:hunter2@a:2379'}}":                                                        `spec.datastore.endpoint: has a user, and etcd is told by a certificate who asks [set spec.datastore.certFile and spec.datastore.keyFile]`,
		"{datastore: {endpoint: 'https://a:2379/mine'}}":                                                             `spec.datastore.endpoint: has something behind the server of etcd [the prefix of keys is set with spec.components.kube-apiserver.args.etcd-prefix]`,
		"{datastore: {endpoint: 'http://a:2379', caFile: /ca}}":                                                      `spec.datastore.endpoint: does not use TLS, and certificates are set for it [write https://]`,
		"{datastore: {endpoint: 'https://a:2379', endpointFile: /f}}":                                                `spec.datastore.endpointFile: is set beside spec.datastore.endpoint [leave one of them out]`,
		"{datastore: {endpoint: 'https://a:2379', certFile: /c}}":                                                    `spec.datastore.certFile: has no key [set spec.datastore.keyFile too]`,
		"{datastore: {endpoint: 'https://a:2379', keyFile: /k}}":                                                     `spec.datastore.keyFile: has no certificate [set spec.datastore.certFile too]`,
		"{datastore: {endpoint: 'nats://a:4222', caFile: ca.crt}}":                                                   `spec.datastore.caFile: "ca.crt" is not an absolute path [write the whole path]`,
		"{runtime: {socket: 'unix:///run/crio/crio.sock'}}":                                                          "",
		"{runtime: {socket: 'npipe:////./pipe/containerd-containerd'}}":                                              "",
		"{runtime: {socket: /run/crio.sock}}":                                                                        `spec.runtime.socket: "/run/crio.sock" has no scheme [did you mean unix:///run/crio.sock?]`,
		"{runtime: {socket: 'unix://run/crio.sock'}}":                                                                `spec.runtime.socket: "run/crio.sock" is not an absolute path [there are three slashes: unix:///run/crio/crio.sock]`,
		"{runtime: {socket: 'tcp://x'}}":                                                                             `spec.runtime.socket: "tcp://x" is no socket [for example unix:///run/crio/crio.sock]`,
		"{runtime: {socket: 'unix:///" + strings.Repeat("x", 107) + "'}}":                                            `spec.runtime.socket: the path is longer than 107 bytes, the most a socket can have`,
		"{audit: {policyFile: policy.yaml}}":                                                                         `spec.audit.policyFile: "policy.yaml" is not an absolute path [write the whole path]`,
		"{kubeconfig: {output: ~/.kube/config}}":                                                                     `spec.kubeconfig.output: "~/.kube/config": “~” is not expanded here [write the home directory out]`,
		"{kubeconfig: {group: 'a:b'}}":                                                                               `spec.kubeconfig.group: "a:b" is no group name or number`,
		"{users: {separate: true}, isolation: none}":                                                                 `spec.users.separate: cannot be had with spec.isolation none: the kubelet is in the same process, and needs root [set spec.isolation to grouped or component]`,
		"{users: {first: 0}}":                                                                                        `spec.users.first: 0 is no number that users of their own can begin with: 1000 to 2147483632 [the default is 61100]`,
		"{disable: [core-dns]}":                                                                                      `spec.disable[0]: "core-dns" is no packaged component [did you mean "coredns"?]`,
		"{disable: [traefik]}":                                                                                       `spec.disable[0]: "traefik" is no packaged component [it can be coredns, metrics-server or local-path]`,
		"{featureGates: {allAlpha: true}}":                                                                           `spec.featureGates.allAlpha: "allAlpha" is no feature gate: names are letters and digits and start with a capital [the names are listed at https://kubernetes.io/docs/reference/command-line-tools-reference/feature-gates/]`,
		"{components: {kube-apiserver: {args: {v: 4}}}}":                                                             "",
		"{components: {apiserver: {}}}":                                                                              `spec.components.apiserver: "apiserver" is no component [did you mean "kube-apiserver"?]`,
		"{components: {kubelet: {args: {--v: 4}}}}":                                                                  `spec.components.kubelet.args.--v: "--v" is no flag name: it stands here without dashes and without its value [did you mean "v"?]`,
		`{components: {kubelet: {args: {v: "\0"}}}}`:                                                                 `spec.components.kubelet.args.v: contains a zero byte`,
		"{kubelet: {maxPods: 250, memorySwap: {swapBehavior: NoSwap}, syncFrequency: 30s, evictionHard: {memory.available: 1Mi}, logging: {verbosity: 3}}}": "",
		"{kubelet: {maxPod: 250}}":                                  `spec.kubelet.maxPod: the kubelet has no field "maxPod" [did you mean maxPods?]`,
		"{kubelet: {memorySwap: {swapBehaviour: x}}}":               `spec.kubelet.memorySwap.swapBehaviour: the kubelet has no field "swapBehaviour" [did you mean swapBehavior?]`,
		"{kubelet: {maxPods: many}}":                                `spec.kubelet.maxPods: must be a whole number`,
		"{kubelet: {syncFrequency: 30}}":                            `spec.kubelet.syncFrequency: must be a duration such as "30s" or "5m"`,
		"{kubelet: {authentication: {anonymous: {enabled: true}}}}": `spec.kubelet.authentication: cannot be changed here: every caller is identified by certificate or token`,
		"{kubelet: {clusterDNS: [10.43.0.10]}}":                     `spec.kubelet.clusterDNS: cannot be changed here: set spec.network.clusterDNS`,
	} {
		t.Run(spec, func(t *testing.T) {
			cfg, origins, problems := decodeText(head + "spec: " + spec + "\n")
			if problems != nil {
				t.Fatal(problems)
			}
			known := known
			known.Origins = origins
			var got []string
			for _, p := range Validate(cfg, known) {
				if p.Origin.Kind != FromFile && p.Path != "spec.network.podCIDR" { // which is the default in one case
					t.Errorf("no origin: %+v", p)
				}
				p.Origin = Origin{}
				line := p.String()
				if p.Hint != "" {
					line += " [" + p.Hint + "]"
				}
				got = append(got, line)
			}
			if strings.Join(got, "\n") != want {
				t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), want)
			}
		})
	}
}

func TestValidateFindsWhatTheDecoderWouldHaveRefused(t *testing.T) {
	cfg := Default()
	cfg.Kind, cfg.Spec.Log.Format, cfg.Spec.Network.Backend = "Pod", "xml", "vlan"
	var got []string
	for _, p := range Validate(cfg, Known{}) {
		got = append(got, p.Path)
	}
	if want := []string{"kind", "spec.network.backend", "spec.log.format"}; !reflect.DeepEqual(got, want) {
		t.Errorf("problems with %q, want %q", got, want)
	}
}

func TestOwnedFieldsOfUpstreamExist(t *testing.T) {
	for at, u := range upstreams {
		for name := range u.owned {
			if u.fields[name] == "" && name != "apiVersion" && name != "kind" {
				t.Errorf("%s: %s has no field %s", at, u.program, name)
			}
		}
	}
}

func TestSettingsOfKubeProxyAreCheckedAsThoseOfTheKubelet(t *testing.T) {
	cfg := Default()
	cfg.Spec.KubeProxy = map[string]any{
		"nodePortAddresses": []any{"198.51.100.0/24"},
		"nftables":          map[string]any{"syncPeriod": "soon", "masqueradeBits": 3},
		"mode":              "iptables",
	}
	cfg.Spec.Components = map[string]ComponentArgs{"kube-proxy": {Args: map[string]string{"v": "4", "logging-format": "json", "nodeport-addresses": "198.51.100.0/24"}}}
	var got []string
	for _, p := range Validate(cfg, Known{}) {
		got = append(got, p.Path+": "+p.Message+" ("+p.Hint+")")
	}
	want := []string{
		"spec.kubeProxy.mode: cannot be changed here: services are nftables rules ()",
		`spec.kubeProxy.nftables.masqueradeBits: kube-proxy has no field "masqueradeBits" (did you mean masqueradeBit?)`,
		`spec.kubeProxy.nftables.syncPeriod: must be a duration such as "30s" or "5m" ()`,
		"spec.components.kube-proxy.args.nodeport-addresses: kube-proxy would ignore it: it takes its settings from a file, and flags about logging only " +
			"(set a field of KubeProxyConfiguration in spec.kubeProxy)",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestOneProblemCarriesItsHint(t *testing.T) {
	err := Invalid([]Problem{{Path: "a", Message: "is wrong", Hint: "mend it"}})
	if hint, _ := errs.HintOf(err); hint != "mend it" || err.Error() != "a: is wrong" || errs.KindOf(err) != errs.Invalid {
		t.Errorf("%v, hint %q", err, hint)
	}
	if Invalid(nil) != nil {
		t.Error("no problems must be no error")
	}
}

func TestSecretShowsItselfToNobody(t *testing.T) {
	s := struct {
		Token Secret `json:"token" yaml:"token"`
	}{"hunter2"}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+"\n", s)
		fmt.Fprintf(&out, verb+"\n", s.Token)
	}
	asJSON, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	asYAML, err := yaml.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "token", s.Token, "all", s)
	out.Write(asJSON)
	out.Write(asYAML)
	for _, leak := range []string{"hunter2", "68756e74657232"} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("%q is in:\n%s", leak, out.String())
		}
	}
	if string(asJSON) != `{"token":"[redacted]"}` || string(asYAML) != "token: '[redacted]'\n" || s.Token.Reveal() != "hunter2" || Secret("").String() != "" {
		t.Errorf("%s %s", asJSON, asYAML)
	}
}
