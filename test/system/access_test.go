//go:build system

package system

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"k1s.io/k1s/internal/kubeconfig"
)

func TestAServiceAccountMayDoWhatItsRoleSaysAndNothingElse(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "access")
	s.apply(t, "reader.yaml")
	token := strings.TrimSpace(s.kubectl(t, "create", "token", "reader", "--duration=10m"))
	for _, c := range []struct {
		what, token, path string
		code              int
	}{
		{"pods of its namespace", token, "/api/v1/namespaces/access/pods", 200},
		{"secrets of its namespace", token, "/api/v1/namespaces/access/secrets", 403},
		{"pods of another namespace", token, "/api/v1/namespaces/kube-system/pods", 403},
		{"nodes", token, "/api/v1/nodes", 403},
		{"a token that was tampered with", token[:len(token)-8] + "AAAAAAAA", "/api/v1/namespaces/access/pods", 401},
		{"nobody", "", "/api/v1/namespaces/access/pods", 401},
		{"nobody, is it alive", "", "/livez", 200},
	} {
		if c.code == http.StatusOK { // the API server learns of roles by watching, as of everything
			eventually(t, limit, c.what, func(context.Context) error {
				if code, body := s.ask(t, c.token, c.path); code != c.code {
					return fmt.Errorf("%s answers %d: %s", c.path, code, body)
				}
				return nil
			})
		} else if code, body := s.ask(t, c.token, c.path); code != c.code {
			// A cluster may let anonymous requests in as such and deny them then.
			if c.token == "" && c.code == 401 && code == 403 {
				continue
			}
			t.Errorf("%s: %s answers %d, want %d: %s", c.what, c.path, code, c.code, body)
		}
	}
	if r := s.try(within(t, limit), "auth", "can-i", "delete", "pods", "--as=system:serviceaccount:access:reader"); strings.TrimSpace(r.out) != "no" {
		t.Errorf("kubectl auth can-i: %v", r)
	}
	// The token of a deleted account is worth nothing.
	s.kubectl(t, "delete", "serviceaccount", "reader")
	eventually(t, limit, "the token to be refused", func(context.Context) error {
		if code, body := s.ask(t, token, "/api/v1/namespaces/access/pods"); code != 401 {
			return fmt.Errorf("answer %d: %s", code, body)
		}
		return nil
	})
}

// ask asks the API with nothing but a token.
func (c *Cluster) ask(t *testing.T, token, path string) (int, string) {
	t.Helper()
	server := strings.TrimSpace(c.kubectl(t, "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"))
	code, body, err := askWith(within(t, limit), &http.Transport{DisableKeepAlives: true, TLSClientConfig: c.trust(t)}, token, server+path)
	if err != nil {
		t.Fatal(err)
	}
	return code, body
}

// trust believes what the cluster's authority has signed.
func (c *Cluster) trust(t *testing.T) *tls.Config {
	t.Helper()
	kc, err := kubeconfig.Load(c.where().Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(kc.CA) {
		t.Fatal("the kubeconfig has no certificate authority")
	}
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

// The kubelet knows neither tokens nor roles: it asks the API server who somebody is, and what that one may do.
func TestTheKubeletLetsInWhomTheAPIServerKnowsAndAllows(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "scraping")
	s.apply(t, "scraper.yaml")
	t.Cleanup(func() {
		if err := s.Cluster.try(context.Background(), "delete", "clusterrole/test-scraper", "clusterrolebinding/test-scraper").error(); err != nil {
			t.Error(err)
		}
	})
	token := func(account string) string {
		return strings.TrimSpace(s.kubectl(t, "create", "token", account, "--duration=10m"))
	}
	scraper, stranger := token("scraper"), token("stranger")
	// The kubelet remembers for half a minute whom it has sent away.
	s.untilOutput(t, limit, "the role to count", is("yes"), "auth", "can-i", "get", "nodes", "--subresource=metrics", "--as=system:serviceaccount:scraping:scraper")
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: s.trust(t), DialContext: s.network(t).dial}
	for _, c := range []struct {
		who, token, path string
		code             int
		body             string
	}{
		{"nobody", "", "/metrics", 401, ""},
		{"one with a token that was tampered with", scraper[:len(scraper)-8] + "AAAAAAAA", "/metrics", 401, ""},
		{"an account without a role", stranger, "/metrics", 403, "system:serviceaccount:scraping:stranger"},
		{"an account that may read metrics", scraper, "/metrics", 200, "kubelet_node_name"},
		{"an account that may read metrics, and asks for pods", scraper, "/pods", 403, "system:serviceaccount:scraping:scraper"},
	} {
		// A kubelet that does not reach the API server in time lets nobody in.
		eventually(t, limit, fmt.Sprintf("%s to be answered %d at %s", c.who, c.code, c.path), func(ctx context.Context) error {
			code, body, err := askWith(ctx, transport, c.token, "https://127.0.0.1:10250"+c.path)
			if err == nil && code == 200 && c.code != 200 {
				t.Fatalf("%s is let in at %s", c.who, c.path)
			}
			if err == nil && (code != c.code || !strings.Contains(body, c.body)) {
				err = fmt.Errorf("answer %d: %.300s", code, body)
			}
			return err
		})
	}
}

// A node's own identity: whoever takes over a node must not get further than its pods.
func TestANodeMayOnlyTouchWhatIsItsOwn(t *testing.T) {
	t.Parallel()
	s := shared(t).namespace(t, "noderestriction")
	s.kubectl(t, "create", "secret", "generic", "unused", "--from-literal=a=b")
	s.kubectl(t, "create", "-f", "manifests/othernode.yaml")
	t.Cleanup(func() {
		if err := s.Cluster.try(context.Background(), "delete", "node", "other").error(); err != nil {
			t.Error(err)
		}
	})
	node := func(args ...string) result {
		return s.in(within(t, limit), append([]string{"k1s", "kubectl", "--kubeconfig", "/var/lib/k1s/kubeconfig/kubelet.kubeconfig"}, args...)...)
	}
	if r := node("get", "node", "server-0"); r.failure != nil {
		t.Fatalf("the kubelet's identity does not work at all: %v", r.error())
	}
	for what, args := range map[string][]string{
		"another node":               {"label", "node", "other", "a=b"},
		"a label that isolates":      {"label", "node", "server-0", "node-restriction.kubernetes.io/a=b"},
		"a secret no pod of it uses": {"-n", s.ns, "get", "secret", "unused"},
		"all secrets":                {"get", "secrets", "-A"},
		"a role binding":             {"create", "clusterrolebinding", "x", "--clusterrole=cluster-admin", "--user=system:node:server-0"},
	} {
		if r := node(args...); r.failure == nil || !strings.Contains(strings.ToLower(r.err), "forbidden") && !strings.Contains(r.err, "not allowed") {
			t.Errorf("%s: kubectl %q as the node: %v", what, args, r)
		}
	}
}
