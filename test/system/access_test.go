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
	kc, err := kubeconfig.Load(c.where().Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	server := strings.TrimSpace(c.kubectl(t, "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"))
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(kc.CA) {
		t.Fatal("the kubeconfig has no certificate authority")
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots}}}
	code, body, err := answerOf(client.Do(req))
	if err != nil {
		t.Fatal(err)
	}
	return code, body
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
