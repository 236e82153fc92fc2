// Package apiservertest gives tests a real API server: the kine and kube-apiserver of a k1s-kube program, on an
// empty database.
package apiservertest

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/probe"
	"k1s.io/k1s/internal/testenv"
	"k1s.io/k1s/internal/wait"
)

// KubeVar names the k1s-kube program the server is taken from. These tests belong into a network namespace
// without routes, because an API server asks for aggregated APIs at service addresses:
//
//	unshare --net sh -c 'ip link set lo up; K1S_TEST_KUBE=… go test ./internal/applets/addonmanager'
const KubeVar = "K1S_TEST_KUBE"

// Start starts a server that ends with the test, which is skipped when KubeVar is not set, and returns a client
// configuration for its administrator. One server runs at a time: the port is always the same. Env is
// added to its environment.
func Start(t *testing.T, env ...string) *rest.Config {
	t.Helper()
	kube := os.Getenv(KubeVar)
	if kube == "" {
		t.Skipf("needs a k1s-kube program; name it in %s", KubeVar)
	}
	if routes, err := os.ReadFile("/proc/net/route"); err != nil || strings.Count(string(routes), "\n") > 1 {
		t.Fatalf("%s is set, but this network namespace has routes (%v): service addresses would leave the machine", KubeVar, err)
	}
	p := paths.Paths{Data: t.TempDir(), Run: t.TempDir()}
	_, err := pki.Ensure(t.Context(), pki.Request{
		Paths: p, NodeName: "test", NodeIP: netip.MustParseAddr("127.0.0.1"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), NoWorker: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	process(t, env, kube, "kine", "--listen=unix://"+p.KineSocket(), "--endpoint=sqlite://"+filepath.Join(p.Data, "state.db")+"?_journal_mode=WAL&_busy_timeout=5000")
	Until(t, "kine", func(ctx context.Context) error {
		return probe.Check(ctx, probe.Probe{Kind: probe.Unix, Addr: p.KineSocket()})
	})
	process(t, env, kube, "kube-apiserver", "--etcd-servers=unix://"+p.KineSocket(), "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port=16443",
		"--service-cluster-ip-range=10.43.0.0/16", "--authorization-mode=Node,RBAC", "--client-ca-file="+p.PKI("ca.crt"),
		"--tls-cert-file="+p.PKI("apiserver.crt"), "--tls-private-key-file="+p.PKI("apiserver.key"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+p.PKI("sa.pub"), "--service-account-signing-key-file="+p.PKI("sa.key"),
		"--requestheader-client-ca-file="+p.PKI("front-proxy-ca.crt"), "--proxy-client-cert-file="+p.PKI("front-proxy-client.crt"), "--proxy-client-key-file="+p.PKI("front-proxy-client.key"))
	Until(t, "kube-apiserver", func(ctx context.Context) error {
		return probe.Check(ctx, probe.Probe{Kind: probe.HTTPS, Addr: "127.0.0.1:16443", Path: "/readyz"})
	})
	return &rest.Config{Host: "https://127.0.0.1:16443", QPS: -1, TLSClientConfig: rest.TLSClientConfig{
		CAFile: p.PKI("ca.crt"), CertFile: p.PKI("admin-client.crt"), KeyFile: p.PKI("admin-client.key"),
	}}
}

func process(t *testing.T, env []string, name string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended, err := testenv.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = ended()
		if b, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("%s said\n%s", args[0], b[max(0, len(b)-3000):])
		}
		_ = log.Close()
	})
}

// Until polls for up to a minute.
func Until(t *testing.T, what string, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := wait.Until(ctx, 20*time.Millisecond, what, f); err != nil {
		t.Fatal(err)
	}
}
