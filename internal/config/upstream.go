package config

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// ownedKubelet are the fields of KubeletConfiguration that are not the user's to set, and why or where
// else. A field covers everything below it.
var ownedKubelet = map[string]string{
	"apiVersion":               "k1s writes the header itself",
	"kind":                     "k1s writes the header itself",
	"enableServer":             "the API server reaches logs, exec and metrics through it",
	"address":                  "the API server and k1s reach the kubelet there",
	"port":                     "the API server reaches the kubelet there",
	"healthzPort":              "k1s watches the kubelet there",
	"healthzBindAddress":       "k1s watches the kubelet there",
	"authentication":           "every caller is identified by certificate or token",
	"authorization":            "every call is decided by the API server",
	"tlsCertFile":              "k1s issues and renews the certificate; additional names go to spec.api.sans",
	"tlsPrivateKeyFile":        "k1s issues and renews the certificate",
	"rotateCertificates":       "k1s issues and renews the certificates",
	"serverTLSBootstrap":       "k1s issues and renews the certificates",
	"clusterDNS":               "set spec.network.clusterDNS",
	"clusterDomain":            "set spec.cluster.domain",
	"podCIDR":                  "set spec.network.podCIDR",
	"containerRuntimeEndpoint": "set spec.runtime.socket",
	"imageServiceEndpoint":     "set spec.runtime.socket",
	"cgroupDriver":             "k1s chooses it by the machine, the same for kubelet and runtime",
	"cgroupRoot":               "pods live below the cgroup of this node",
	"failCgroupV1":             "both versions of cgroups are supported",
	"featureGates":             "set spec.featureGates",
	"registerNode":             "a kubelet that does not register is no node",
	"registerWithTaints":       "set spec.node.taints",
	"runOnce":                  "the kubelet has to keep running",
}

// ownedKubeProxy are the same of KubeProxyConfiguration.
var ownedKubeProxy = map[string]string{
	"apiVersion":          "k1s writes the header itself",
	"kind":                "k1s writes the header itself",
	"clientConnection":    "k1s writes its kubeconfig",
	"clusterCIDR":         "set spec.network.podCIDR",
	"featureGates":        "set spec.featureGates",
	"healthzBindAddress":  "k1s watches kube-proxy there",
	"hostnameOverride":    "set spec.node.name",
	"mode":                "services are nftables rules",
	"iptables":            "services are nftables rules",
	"ipvs":                "services are nftables rules",
	"winkernel":           "services are nftables rules",
	"windowsRunAsService": "k1s runs it",
}

// upstream is a configuration of Kubernetes' own of which single fields may be set in ours.
type upstream struct {
	program string
	kind    string            // and where it is described
	fields  map[string]string // by path: what they hold, see upstream_fields.go
	owned   map[string]string
}

var upstreams = map[string]upstream{
	"spec.kubelet": {"the kubelet", "KubeletConfiguration, https://kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1/", kubeletFields, ownedKubelet},
	"spec.kubeProxy": {"kube-proxy", "KubeProxyConfiguration, https://kubernetes.io/docs/reference/config-api/kube-proxy-config.v1alpha1/",
		kubeProxyFields, ownedKubeProxy},
}

// upstream checks overrides below at against the fields this version of the program has.
func (c *checker) upstream(at string, m map[string]any) {
	c.upstreamFields(upstreams[at], at, "", m)
}

func (c *checker) upstreamFields(u upstream, at, prefix string, m map[string]any) {
	var siblings []string
	for name := range u.fields {
		if rest, ok := strings.CutPrefix(name, prefix); ok && !strings.Contains(rest, ".") {
			siblings = append(siblings, rest)
		}
	}
	slices.Sort(siblings)
	for _, key := range slices.Sorted(maps.Keys(m)) {
		where := keyPath(at, key)
		if why := u.owned[prefix+key]; why != "" {
			c.bad(where, "", "cannot be changed here: %s", why)
			continue
		}
		kind, ok := u.fields[prefix+key]
		if !ok {
			hint := "see " + u.kind
			if near := nearest(key, siblings); near != "" {
				hint = "did you mean " + near + "?"
			}
			c.bad(where, hint, "%s has no field %q", u.program, shorten(key))
			continue
		}
		if want := upstreamWants(kind, m[key]); want != "" {
			c.bad(where, "", "must be %s", want)
			continue
		}
		if section, ok := m[key].(map[string]any); ok && kind == "section" {
			c.upstreamFields(u, where, prefix+key+".", section)
		}
	}
}

// upstreamWants is what a field of this kind must hold, "" if v is that.
func upstreamWants(kind string, v any) string {
	ok, want := true, ""
	switch kind {
	case "bool":
		_, ok = v.(bool)
		want = "true or false"
	case "string":
		_, ok = v.(string)
		want = "a string"
	case "integer":
		want = "a whole number"
		switch v := v.(type) {
		case int, int64, uint64:
		case float64: // how numbers come out of JSON
			ok = v == float64(int64(v))
		default:
			ok = false
		}
	case "number":
		want = "a number"
		switch v.(type) {
		case int, int64, uint64, float64:
		default:
			ok = false
		}
	case "duration":
		want = `a duration such as "30s" or "5m"`
		s, isString := v.(string)
		_, err := time.ParseDuration(s)
		ok = isString && err == nil
	case "list":
		_, ok = v.([]any)
		want = "a list"
	case "map", "section":
		_, ok = v.(map[string]any)
		want = "a map"
	}
	if ok {
		return ""
	}
	return want
}
