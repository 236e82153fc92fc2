//go:build system

package system

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/wait"
)

func decoded(t *testing.T, file string) []byte {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		t.Fatalf("%s is not PEM", file)
	}
	return block.Bytes
}

func readCertificate(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(decoded(t, file))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func readKey(t *testing.T, file string) any {
	t.Helper()
	der := decoded(t, file)
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		if key, err := x509.ParseECPrivateKey(der); err == nil {
			return key
		}
		t.Fatal(err)
	}
	return key
}

// pki is the node's directory of certificates.
func (c *Cluster) pki(name string) string { return c.disk("var/lib/k1s/pki/" + name) }

// plant is plantIn for the only node of a cluster; without names it is about all certificates that are no authorities.
func (c *Cluster) plant(t *testing.T, notBefore, notAfter time.Time, names ...string) map[string]*x509.Certificate {
	t.Helper()
	if len(names) == 0 {
		files, err := filepath.Glob(c.pki("*.crt"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if !readCertificate(t, f).IsCA {
				names = append(names, strings.TrimSuffix(filepath.Base(f), ".crt"))
			}
		}
	}
	return plantIn(t, c.pki, []string{"ca", "front-proxy-ca"}, notBefore, notAfter, names...)
}

// plantIn gives certificates of a node, which are of one of the authorities, another lifetime, as if the time were another. pki is where the
// node's files of certificates are. It returns what was planted, by name.
func plantIn(t *testing.T, pki func(string) string, authorities []string, notBefore, notAfter time.Time, names ...string) map[string]*x509.Certificate {
	t.Helper()
	planted := map[string]*x509.Certificate{}
	for _, name := range names {
		cert := readCertificate(t, pki(name+".crt"))
		for _, ca := range authorities {
			by := readCertificate(t, pki(ca+".crt"))
			if !bytes.Equal(by.RawSubject, cert.RawIssuer) {
				continue
			}
			by.NotBefore = notBefore // or it would not be planted
			cert.SerialNumber, cert.NotBefore, cert.NotAfter = nil, notBefore, notAfter
			der, err := x509.CreateCertificate(rand.Reader, cert, by, cert.PublicKey, readKey(t, pki(ca+".key")))
			if err == nil {
				planted[name], err = x509.ParseCertificate(der)
			}
			if err == nil {
				err = os.WriteFile(pki(name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(planted) != len(names) {
		t.Fatalf("planted %d of %q", len(planted), names)
	}
	return planted
}

// servers are what a node serves with TLS, and with which certificate.
var servers = map[string]string{
	"apiserver": "127.0.0.1:6443", "kubelet-serving": "127.0.0.1:10250",
	"controller-manager-serving": "127.0.0.1:10257", "scheduler-serving": "127.0.0.1:10259",
}

// presents waits until each server presents the certificate that is on disk, and speaks no TLS older than 1.2.
func (c *Cluster) presents(t *testing.T) {
	t.Helper()
	in := c.network(t)
	for name, address := range servers {
		presented(t, in, address, c.pki(name+".crt"))
		eventually(t, limit, address+" to refuse TLS 1.1", func(ctx context.Context) error {
			conn, err := in.dial(ctx, "tcp", address)
			if err != nil {
				return err
			}
			defer conn.Close()
			client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
			if err := client.HandshakeContext(ctx); err == nil || !strings.Contains(err.Error(), "protocol version not supported") {
				return fmt.Errorf("it says: %v", err)
			}
			return nil
		})
	}
}

// presented waits until the server at an address in a network presents the certificate in a file. Whether it wants one of its clients does
// not matter.
func presented(t *testing.T, in network, address, file string) {
	t.Helper()
	eventually(t, limit, address+" to present the certificate in "+file, func(ctx context.Context) error {
		want := readCertificate(t, file)
		conn, err := in.dial(ctx, "tcp", address)
		if err != nil {
			return err
		}
		defer conn.Close()
		var got *x509.Certificate
		client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
			got = s.PeerCertificates[0]
			return nil
		}})
		if err := client.HandshakeContext(ctx); got == nil {
			return err
		}
		if !got.Equal(want) {
			return fmt.Errorf("it ends %s, want %s", got.NotAfter, want.NotAfter)
		}
		return nil
	})
}

// renewsThoseOfEtcd lets a server of several renew the certificates of its etcd, and that with which its API server comes to it, while they run.
func renewsThoseOfEtcd(t *testing.T, m member, peers string) {
	pki := func(name string) string { return m.disk("var/lib/k1s/pki/" + name) }
	was := processesOf(m.untilState(t, control.Running))
	planted := plantIn(t, pki, []string{"etcd/ca"}, time.Now().AddDate(0, -11, 0), time.Now().AddDate(0, 0, 1), "etcd/server", "etcd/peer", "apiserver-etcd-client")
	m.in(within(t, limit), "k1s", "certs", "renew").wants(t, 0, "3 certificates are renewed")
	for name, old := range planted {
		now := readCertificate(t, pki(name+".crt"))
		if now.Equal(old) || time.Until(now.NotAfter) < 300*24*time.Hour {
			t.Errorf("%s has not been renewed: it ends %s", name, now.NotAfter)
		}
	}
	in := m.network(t)
	presented(t, in, "127.0.0.1:2379", pki("etcd/server.crt"))
	presented(t, in, peers, pki("etcd/peer.crt"))
	if now := processesOf(m.untilState(t, control.Running)); !maps.Equal(was, now) {
		t.Errorf("something was restarted on %s: %v, now %v", m.node, was, now)
	}
}

// stopped stops the cluster; what is done then is as if it was done between two boots.
func (c *Cluster) stopped(t *testing.T) {
	t.Helper()
	if err := c.k1s(within(t, limit), "cluster", "stop", c.name).error(); err != nil {
		t.Fatal(err)
	}
}

func TestCertificatesAreRenewedBeforeAnythingFails(t *testing.T) {
	t.Parallel()
	c := created(t, "certs", withImages(t)...)
	s := c.namespace(t, "certs")
	s.client(t)
	started := 0
	// works needs every part: the API server and all of its clients, and the kubelet as its server.
	works := func(t *testing.T) {
		t.Helper()
		c.running(t)
		started++
		name := fmt.Sprintf("web-%d", started)
		s.kubectl(t, "create", "deployment", name, "--image=k1s.io/test/app:1")
		s.rolledOut(t, "deployment/"+name)
		s.kubectl(t, "expose", "deployment", name, "--port=80", "--target-port=8080")
		s.untilOutput(t, limit, "the service to answer", contains(name), "exec", "client", "--", "wget", "-q", "-T", "5", "-O", "-", "http://"+name+"/")
		if out := s.sh(t, "client", "echo here"); out != "here\n" {
			t.Errorf("kubectl exec says %q", out)
		}
		if r := c.in(within(t, limit), "k1s", "kubectl", "get", "nodes"); !strings.Contains(r.out, " Ready ") {
			t.Errorf("the node: %v", r)
		}
	}
	fresh := func(t *testing.T, planted map[string]*x509.Certificate) {
		t.Helper()
		for name, old := range planted {
			now := readCertificate(t, c.pki(name+".crt"))
			if now.Equal(old) || time.Until(now.NotAfter) < 300*24*time.Hour {
				t.Errorf("%s has not been renewed: it ends %s", name, now.NotAfter)
			}
		}
	}

	inTurn(t, "those that have ended are renewed at start", func(t *testing.T) {
		c.stopped(t)
		planted := c.plant(t, time.Now().AddDate(-1, 0, 0), time.Now().AddDate(0, 0, -1))
		c.starts(t)
		fresh(t, planted)
		c.presents(t)
		works(t)
	})
	inTurn(t, "those that are due are renewed while the node runs", func(t *testing.T) {
		was := c.running(t)
		names := []string{"apiserver", "kubelet-serving", "kubelet-client", "front-proxy-client"}
		planted := c.plant(t, time.Now().AddDate(0, -11, 0), time.Now().AddDate(0, 0, 1), names...)
		if r := c.in(within(t, limit), "k1s", "certs"); !strings.Contains(r.out, "23h") || !strings.Contains(r.out, "kubernetes-admin") {
			t.Errorf("k1s certs: %v", r)
		}
		r := c.in(within(t, limit), "k1s", "certs", "renew")
		r.wants(t, 0, "4 certificates are renewed")
		for _, name := range names {
			if !strings.Contains(r.out, name+": expires "+planted[name].NotAfter.Format(time.DateOnly)+"\n") {
				t.Errorf("k1s certs renew says nothing of %s: %s", name, r.out)
			}
		}
		c.in(within(t, limit), "k1s", "certs", "renew").wants(t, 0, "no certificate is due")
		fresh(t, planted)
		c.presents(t)
		works(t)
		if now := c.running(t); !maps.Equal(pids(was), pids(now)) {
			t.Errorf("something was restarted: %v, now %v", pids(was), pids(now))
		}
	})
	// Everything starts with certificates that end soon, and still works when they have ended.
	inTurn(t, "nothing goes on with those that were renewed", func(t *testing.T) {
		c.stopped(t)
		ends := time.Now().Add(5 * time.Minute)
		planted := c.plant(t, time.Now(), ends)
		c.starts(t)
		was := c.running(t)
		r := c.in(within(t, limit), "k1s", "certs", "renew", "--all")
		r.wants(t, 0, fmt.Sprintf("%d certificates are renewed", len(planted)))
		for _, name := range slices.Sorted(maps.Keys(planted)) {
			if !strings.Contains(r.out, name+": ") {
				t.Errorf("k1s certs renew --all says nothing of %s: %s", name, r.out)
			}
		}
		fresh(t, planted)
		c.presents(t)
		err := wait.Until(within(t, 10*time.Minute), time.Second, "the old certificates to end", func(context.Context) error {
			if time.Now().Before(ends.Add(2 * time.Second)) {
				return errors.New("they have not yet")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		works(t)
		if now := c.running(t); !maps.Equal(pids(was), pids(now)) {
			t.Errorf("something was restarted: %v, now %v", pids(was), pids(now))
		}
	})
	inTurn(t, "an authority that ends soon is told, and is an event of the node", func(t *testing.T) {
		was := c.running(t)
		ends := time.Now().AddDate(0, 0, 100)
		plantIn(t, c.pki, []string{"ca"}, time.Now().AddDate(-9, 0, 0), ends, "ca") // it has its key, so nobody has to learn it
		kill(t, was.PID)
		c.otherDaemon(t, was)
		c.says(t, health.CertExpiring)
		c.untilOutput(t, limit, "an event of it", contains("the cluster's CA expires on "+ends.UTC().Format(time.DateOnly)),
			"get", "events", "-n", "default", "--field-selector", "reason=CertificateExpiring,involvedObject.kind=Node,type=Warning", "-o", `jsonpath={range .items[*]}{.involvedObject.name}: {.message}{"\n"}{end}`)
		for _, path := range []string{"/metrics", "/api/v1/nodes/server-0/proxy/metrics"} { // of the API server and of the kubelet
			c.untilOutput(t, limit, "metrics of certificates at "+path, func(out string) bool {
				for line := range strings.Lines(out) {
					if rest, ok := strings.CutPrefix(line, `k1s_certificate_expiration_timestamp_seconds{authority="true",name="ca"} `); ok {
						at, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
						return err == nil && int64(at) == ends.Unix()
					}
				}
				return false
			}, "get", "--raw", path)
		}
	})
}
