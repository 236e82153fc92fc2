//go:build system

package system

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/image"
	"k1s.io/k1s/test/images/testimage"
)

// Who may use the registries of the tests.
const (
	registryUser     = "reader"
	registryPassword = "correct-horse-battery"
	registryPort     = "5000"
)

var registryProgram struct {
	once sync.Once
	file string
	err  error
}

// registry is a real one, of test/registry, in a network namespace.
type registry struct {
	ca     []byte // who signed its certificate, PEM
	client http.Client
}

// startRegistry starts one at the registry port of every address of a network; hosts are the names and
// addresses in its certificate, of which 127.0.0.1 is always one. It ends with the test.
func startRegistry(t *testing.T, in network, hosts ...string) *registry {
	t.Helper()
	registryProgram.once.Do(func() {
		registryProgram.file = filepath.Join(the.dir, "registry")
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", registryProgram.file, ".")
		cmd.Dir = "../registry"
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			registryProgram.err = fmt.Errorf("building the registry in test/registry: %w\n%s", err, out)
		}
	})
	if registryProgram.err != nil {
		t.Fatal(registryProgram.err)
	}
	dir := t.TempDir()
	ca := newAuthority(t)
	cert, key := ca.issue(t, append(hosts, "127.0.0.1")...)
	for name, content := range map[string][]byte{"cert": cert, "key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	cmd := exec.Command(registryProgram.file, "-listen", "0.0.0.0:"+registryPort, "-cert", dir+"/cert", "-key", dir+"/key",
		"-user", registryUser, "-password", registryPassword)
	cmd.Env = []string{"TMPDIR=" + dir, "OTEL_TRACES_EXPORTER=none"}
	cmd.Stdout, cmd.Stderr = &log, &log
	stdin, err := cmd.StdinPipe() // it ends with us, whatever happens to us
	if err != nil {
		t.Fatal(err)
	}
	if err := in.start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := errors.Join(stdin.Close(), cmd.Wait())
		if err != nil || t.Failed() {
			t.Logf("the registry ended (%v); it says:\n%s", err, lastLines(log.String(), 40))
		}
	})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.pem)
	r := &registry{ca: ca.pem, client: http.Client{Transport: &http.Transport{
		DialContext: in.dial, TLSClientConfig: &tls.Config{RootCAs: pool},
	}}}
	t.Cleanup(r.client.CloseIdleConnections)
	eventually(t, limit, "the registry to answer", func(ctx context.Context) error {
		return r.do(ctx, http.MethodGet, "/v2/", "", nil, http.StatusOK)
	})
	return r
}

// do asks it. path may be a whole URL, as it gives them itself.
func (r *registry) do(ctx context.Context, method, path, contentType string, body []byte, want int) error {
	_, err := r.ask(ctx, method, path, contentType, body, want)
	return err
}

func (r *registry) ask(ctx context.Context, method, path, contentType string, body []byte, want int) (http.Header, error) {
	if strings.HasPrefix(path, "/") {
		path = "https://127.0.0.1:" + registryPort + path
	}
	req, err := http.NewRequestWithContext(ctx, method, path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth(registryUser, registryPassword)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("%s %s answers %s: %s", method, path, resp.Status, answer)
	}
	return resp.Header, err
}

// archive is an image with busybox under another name, as the bytes of an archive.
func archive(t *testing.T, name string, format image.Format) []byte {
	t.Helper()
	spec, err := testimage.BusyboxSpec(t.Context(), testimage.DefaultBusybox, testimage.Arch())
	if err != nil {
		t.Fatal(err)
	}
	spec.Names = []string{name}
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := testimage.WriteFile(file, format, spec); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// push puts busybox into a repository, with the tag 1.
func (r *registry) push(t *testing.T, repository string) {
	t.Helper()
	files := map[string][]byte{}
	archived := tar.NewReader(bytes.NewReader(archive(t, "pushed:1", image.OCI)))
	for {
		h, err := archived.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			files[h.Name], err = io.ReadAll(archived)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	type descriptor struct{ MediaType, Digest string }
	var index struct{ Manifests []descriptor }
	var manifest struct {
		MediaType string
		Config    descriptor
		Layers    []descriptor
	}
	blob := func(d descriptor) []byte { return files["blobs/"+strings.Replace(d.Digest, ":", "/", 1)] }
	if err := json.Unmarshal(files["index.json"], &index); err != nil || len(index.Manifests) != 1 {
		t.Fatalf("the archive's index: %v %s", err, files["index.json"])
	}
	top := index.Manifests[0]
	if err := json.Unmarshal(blob(top), &manifest); err != nil {
		t.Fatal(err)
	}
	ctx := within(t, limit)
	for _, d := range append(manifest.Layers, manifest.Config) {
		head, err := r.ask(ctx, http.MethodPost, "/v2/"+repository+"/blobs/uploads/", "", nil, http.StatusAccepted)
		if err == nil {
			err = r.do(ctx, http.MethodPut, head.Get("Location")+"&digest="+d.Digest, "application/octet-stream", blob(d), http.StatusCreated)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := r.do(ctx, http.MethodPut, "/v2/"+repository+"/manifests/1", top.MediaType, blob(top), http.StatusCreated); err != nil {
		t.Fatal(err)
	}
}

// authority signs certificates of servers of the tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority of a test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue makes a certificate and its key, both PEM, for names and addresses.
func (a authority) issue(t *testing.T, hosts ...string) (certificate, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: hosts[0]}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, k.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}
