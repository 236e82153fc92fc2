//go:build system

package system

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/wait"
)

// cutOff keeps the server from opening connections to an agent and its pods, until the returned function is called. What
// the agent opens goes on.
func cutOff(t *testing.T, c *Cluster, agent member) (heal func()) {
	t.Helper()
	nft := func(ctx context.Context, rules string) result {
		return c.in(ctx, "sh", "-c", "echo '"+rules+"' | /var/lib/k1s/payload/current/nft -f -")
	}
	ip := strings.TrimSpace(c.kubectl(t, "get", "node", agent.node, "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`))
	pods := strings.TrimSpace(c.kubectl(t, "get", "node", agent.node, "-o", "jsonpath={.spec.podCIDR}"))
	rule := fmt.Sprintf("ip daddr { %s, %s } ct state new drop", ip, pods)
	agent.must(t, nft(within(t, limit), fmt.Sprintf("table ip k1s_test { chain out { type filter hook output priority 0; %s; }; chain through { type filter hook forward priority 0; %s; }; }", rule, rule)))
	heal = func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := nft(ctx, "delete table ip k1s_test").error(); err != nil {
			t.Error(err)
		}
	}
	return heal
}

// judge is an admission webhook on a node, and the namespace whose objects with the annotation refuse=yes it refuses.
func judge(t *testing.T, s space, node string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"judge." + s.ns + ".svc"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	quoted := func(b []byte) string {
		text, err := json.Marshal(string(b))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	manifest := fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: judge, namespace: %[1]s, labels: {app: judge}}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 0
  containers:
    - name: app
      image: k1s.io/test/app:1
      env: [{name: TLS_CERT, value: %[3]s}, {name: TLS_KEY, value: %[4]s}]
      ports: [{containerPort: 8080}]
      readinessProbe: {httpGet: {path: /healthz, port: 8080, scheme: HTTPS}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: judge, namespace: %[1]s}
spec: {selector: {app: judge}, ports: [{port: 443, targetPort: 8080}]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: %[1]s}
webhooks:
  - name: judge.%[1]s.example
    clientConfig: {caBundle: %[5]s, service: {namespace: %[1]s, name: judge, path: /admit}}
    rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %[1]s}}
    sideEffects: None
    admissionReviewVersions: [v1]
`, s.ns, node, quoted(cert), quoted(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})), base64.StdEncoding.EncodeToString(cert))
	r := s.k1sWith(within(t, limit), manifest, "cluster", "kubectl", s.name, "--", "apply", "-f", "-")
	if err := r.error(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		// Left behind it would refuse what later tests make.
		err := wait.Until(ctx, askKubectl, "the webhook to be gone", func(ctx context.Context) error {
			return s.try(ctx, "delete", "validatingwebhookconfiguration", s.ns, "--ignore-not-found").error()
		})
		if err != nil {
			t.Error(err)
		}
	})
	s.ready(t, "judge")
}

// serversNeedNoRoute shows that a server reaches an agent and its pods that it cannot connect to.
func serversNeedNoRoute(t *testing.T, c *Cluster, agent member) {
	s := c.namespace(t, "tunnel")
	here := fmt.Sprintf(`{"apiVersion":"v1","spec":{"nodeName":%q,"terminationGracePeriodSeconds":0}}`, agent.node)
	s.kubectl(t, "run", "clock", "--image=k1s.io/test/busybox:1", "--restart=Never", "--port=8080", "--overrides="+here, "--",
		"sh", "-c", "echo started; mkdir /www && echo web > /www/index.html && exec httpd -f -p 8080 -h /www")
	judge(t, s, agent.node)
	s.ready(t, "clock")
	podIP := s.kubectl(t, "get", "pod", "clock", "-o", "jsonpath={.status.podIP}")
	// Its pod is to be on the agent: what asks kubelets for metrics there is the pod, not the server.
	c.kubectl(t, "-n", "kube-system", "patch", "deployment", "metrics-server", "-p", fmt.Sprintf(`{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":%q}}}}}`, agent.node))

	heal := cutOff(t, c, agent)
	defer heal()
	if r := c.in(within(t, limit), "timeout", "2", "wget", "-q", "-O", "-", "http://"+podIP+":8080/"); r.code == 0 {
		t.Fatal("the server reaches the pod directly: nothing is shown by what follows")
	}
	works := func(t *testing.T) {
		t.Helper()
		s.untilOutput(t, limit, "logs", is("started"), "logs", "clock")
		s.untilOutput(t, limit, "exec", is("hello"), "exec", "clock", "--", "echo", "hello")
		s.untilOutput(t, limit, "the webhook", contains("created"), "create", "configmap", "fine-"+strconv.FormatInt(time.Now().UnixNano(), 36))
	}
	works(t)
	inTurn(t, "attach", func(t *testing.T) {
		s.kubectl(t, "run", "echo", "--image=k1s.io/test/busybox:1", "--restart=Never", "-i", "--overrides="+here, "--attach=false", "--", "sh", "-c", "while read line; do echo you said $line; done")
		s.ready(t, "echo")
		in, out := converse(t, s, "attach", "-i", "echo")
		if _, err := io.WriteString(in, "hello\n"); err != nil {
			t.Fatal(err)
		}
		for out.Scan() {
			if out.Text() == "you said hello" {
				return
			}
		}
		t.Errorf("the answer did not come: %v", out.Err())
	})
	inTurn(t, "port-forward", func(t *testing.T) {
		_, out := converse(t, s, "port-forward", "--address=127.0.0.1", "pod/clock", ":8080")
		port := 0
		for port == 0 && out.Scan() {
			_, _ = fmt.Sscanf(out.Text(), "Forwarding from 127.0.0.1:%d", &port)
		}
		if port == 0 {
			t.Fatalf("kubectl ended: %v", out.Err())
		}
		eventually(t, limit, "an answer", func(ctx context.Context) error {
			code, body, err := get(ctx, fmt.Sprintf("http://127.0.0.1:%d/", port))
			if err == nil && (code != http.StatusOK || body != "web") {
				err = fmt.Errorf("answer %d %q", code, body)
			}
			return err
		})
	})
	inTurn(t, "what the API passes on", func(t *testing.T) {
		s.untilOutput(t, limit, "a pod", is("web"), "get", "--raw", "/api/v1/namespaces/tunnel/pods/clock:8080/proxy/")
		c.untilOutput(t, limit, "a kubelet's metrics", contains("node_memory_working_set_bytes"), "get", "--raw", "/api/v1/nodes/"+agent.node+"/proxy/metrics/resource")
	})
	inTurn(t, "a webhook refuses", func(t *testing.T) {
		eventually(t, limit, "the refusal", func(ctx context.Context) error {
			r := s.k1sWith(ctx, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"bad","namespace":"tunnel","annotations":{"refuse":"yes"}}}`,
				"cluster", "kubectl", c.name, "--", "create", "-f", "-")
			if r.code == 0 {
				t.Error("it is let in")
			} else if !strings.Contains(r.err, "denied the request: it asks for it") {
				return r.error() // the webhook could not be asked
			}
			return nil
		})
	})
	inTurn(t, "only nodes open tunnels", func(t *testing.T) { onlyNodesOpenTunnels(t, c, agent) })
	inTurn(t, "a node connects to its own only", func(t *testing.T) {
		// A pod that says its address is the agent's own, in the network of the agent's pods.
		own := podIP[:strings.LastIndex(podIP, ".")] + ".1"
		s.kubectl(t, "run", "liar", "--image=k1s.io/test/busybox:1", "--restart=Never", `--overrides={"apiVersion":"v1","spec":{"schedulerName":"nobody"}}`)
		s.kubectl(t, "patch", "pod", "liar", "--subresource=status", "-p", fmt.Sprintf(`{"status":{"phase":"Running","podIP":%q,"podIPs":[{"ip":%q}]}}`, own, own))
		eventually(t, limit, "the agent's log to tell of it", func(ctx context.Context) error {
			if r := s.try(ctx, "get", "--raw", "/api/v1/namespaces/tunnel/pods/liar:6443/proxy/", "--request-timeout=20s"); r.code == 0 {
				t.Errorf("it is reached: %v", r)
			}
			log, err := os.ReadFile(agent.disk("var/lib/k1s/log/node.log"))
			if want := "target=" + own + ":6443"; err == nil && !strings.Contains(string(log), want) {
				err = fmt.Errorf("no %s in\n%s", want, lastLines(string(log), 10))
			}
			return err
		})
	})
	inTurn(t, "an aggregated API", func(t *testing.T) {
		c.untilOutput(t, limit, "the agent's metrics", contains(agent.node), "top", "nodes")
	})
	inTurn(t, "it comes back by itself", func(t *testing.T) {
		var as control.Status
		eventually(t, limit, "the agent to tell of its tunnel", func(ctx context.Context) (err error) {
			if as, err = agent.status(ctx); err == nil && (as.Tunnels == nil || len(as.Tunnels.Servers) != 1 || !as.Tunnels.Servers[0].Connected) {
				err = fmt.Errorf("it tells %+v", as.Tunnels)
			}
			return err
		})
		kubelet, err := componentOf(as, "kubelet")
		if err != nil {
			t.Fatal(err)
		}
		kill(t, kubelet.PID)
		works(t)
		ss := c.running(t)
		api, err := componentOf(ss, "kube-apiserver")
		if err != nil {
			t.Fatal(err)
		}
		kill(t, api.PID)
		works(t)
		eventually(t, limit, "the server to tell of its tunnels", func(ctx context.Context) error {
			s, err := c.status(ctx)
			if err == nil && (s.Tunnels == nil || len(s.Tunnels.Nodes) != 2 || len(s.Tunnels.Unreachable) != 0) {
				err = fmt.Errorf("it tells %+v", s.Tunnels)
			}
			return err
		})
	})
}

// onlyNodesOpenTunnels asks for one with certificates of the agent, in the server's network.
func onlyNodesOpenTunnels(t *testing.T, c *Cluster, agent member) {
	ca := x509.NewCertPool()
	pemCA, err := os.ReadFile(agent.disk("var/lib/k1s/pki/ca.crt"))
	if err != nil || !ca.AppendCertsFromPEM(pemCA) {
		t.Fatal("reading the CA:", err)
	}
	for name, want := range map[string]int{"": http.StatusUnauthorized, "kube-proxy-client": http.StatusForbidden, "kubelet-serving": http.StatusUnauthorized, "kubelet-client": http.StatusSwitchingProtocols} {
		conf := &tls.Config{RootCAs: ca, ServerName: "kubernetes", MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}}
		if name != "" {
			cert, err := tls.LoadX509KeyPair(agent.disk("var/lib/k1s/pki/"+name+".crt"), agent.disk("var/lib/k1s/pki/"+name+".key"))
			if err != nil {
				t.Fatal(err)
			}
			conf.Certificates = []tls.Certificate{cert}
		}
		code, err := askForTunnel(c.network(t), conf)
		if err != nil || code != want {
			t.Errorf("with the certificate %q: %d, %v, want %d", name, code, err, want)
		}
	}
}

func askForTunnel(n network, conf *tls.Config) (code int, err error) {
	var raw net.Conn
	if raw, err = n.dial(context.Background(), "tcp", "127.0.0.1:6443"); err != nil {
		return 0, err
	}
	conn := tls.Client(raw, conf)
	defer func() { err = errors.Join(err, raw.Close()) }()
	if err := raw.SetDeadline(time.Now().Add(limit)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(conn, "GET /k1s/v1/tunnel HTTP/1.1\r\nHost: kubernetes\r\nConnection: Upgrade\r\nUpgrade: k1s-tunnel/1\r\n\r\n"); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, nil
}
