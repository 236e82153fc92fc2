//go:build system

package system

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A database of somebody else: a real server in a node's network, with a directory of its own, run by nobody
// where it may be. It asks for TLS, a client certificate and, but for etcd, a password.
type database struct {
	in   network
	addr string // where it listens
	dir  string
	argv []string
	root bool
	quit os.Signal // ends the server without waiting for its clients
	cmd  *exec.Cmd
	out  bytes.Buffer

	// dsn is its URL with a password, nothing for etcd, which has none.
	dsn func(password string) string
	// guest is the URL of a user who may come in and do nothing; "" where there is none.
	guest string
}

// What clients are to know. The password is long enough to be looked for.
const (
	databaseUser     = "k1s"
	databasePassword = "tops3cretword"
	nobody           = 65534
)

// newDatabase makes the directory with certificates; it goes with the test.
func newDatabase(t *testing.T, in network) *database {
	t.Helper()
	return newDatabaseAt(t, in, "127.0.0.1")
}

func newDatabaseAt(t *testing.T, in network, addr string) *database {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "k1s-db-") // not below the bench, which only root may enter
	if err != nil {
		t.Fatal(err)
	}
	d := &database{in: in, addr: addr, dir: dir, quit: unix.SIGTERM}
	t.Cleanup(func() {
		d.stop(t)
		if t.Failed() {
			t.Logf("the database said:\n%s", lastLines(d.out.String(), 20))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	d.certificates(t)
	d.own(t)
	return d
}

// own gives everything in the directory to nobody.
func (d *database) own(t *testing.T) {
	t.Helper()
	err := filepath.Walk(d.dir, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, nobody, nobody)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (d *database) path(name string) string { return filepath.Join(d.dir, name) }

func (d *database) write(t *testing.T, name, content string) string {
	t.Helper()
	if err := os.WriteFile(d.path(name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(d.path(name), nobody, nobody); err != nil {
		t.Fatal(err)
	}
	return d.path(name)
}

func (d *database) command(argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = d.dir, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.dir, "LC_ALL=C", "TMPDIR=" + d.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if !d.root {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	return cmd
}

// prepare runs a program of the database to its end.
func (d *database) prepare(t *testing.T, stdin string, argv ...string) {
	t.Helper()
	cmd := d.command(argv...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

// start starts the server and waits until its port answers.
func (d *database) start(t *testing.T, port string) {
	t.Helper()
	d.cmd = d.command(d.argv...)
	d.cmd.Stdout, d.cmd.Stderr = &d.out, &d.out
	if err := d.in.start(d.cmd); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		conn, err := d.in.dial(t.Context(), "tcp", net.JoinHostPort(d.addr, port))
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(end) || !processOf(d.cmd.Process.Pid).alive() {
			t.Fatalf("the database does not answer: %v\n%s", err, lastLines(d.out.String(), 20))
		}
	}
}

// stop ends the server as an administrator would in a hurry.
func (d *database) stop(t *testing.T) {
	t.Helper()
	if d.cmd == nil {
		return
	}
	if err := d.cmd.Process.Signal(d.quit); err != nil {
		t.Error(err)
	}
	late := time.AfterFunc(limit, func() { _ = d.cmd.Process.Kill() })
	defer late.Stop()
	_ = d.cmd.Wait() // how it ends by a signal is up to it
	d.cmd = nil
}

// processes are the server's, with those it has started.
func (d *database) processes(t *testing.T) []int {
	t.Helper()
	pid := d.cmd.Process.Pid
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	all := []int{pid}
	for f := range strings.FieldsSeq(string(raw)) {
		child, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, child)
	}
	return all
}

// signal sends one to processes; one of them may have ended meanwhile.
func (d *database) signal(t *testing.T, all []int, s unix.Signal) {
	t.Helper()
	for _, pid := range all {
		if err := unix.Kill(pid, s); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Error(err)
		}
	}
}

// certificates makes an authority, and certificates for the server and for a client.
func (d *database) certificates(t *testing.T) {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	caKey := key()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "database authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	issue := func(name string, template *x509.Certificate, k *ecdsa.PrivateKey) {
		der, err := x509.CreateCertificate(rand.Reader, template, ca, &k.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		d.write(t, name+".crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
		d.write(t, name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})))
	}
	issue("ca", ca, caKey)
	for i, name := range []string{"server", "client"} {
		issue(name, &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 2)), Subject: pkix.Name{CommonName: map[string]string{"server": "database", "client": databaseUser}[name]},
			NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, IPAddresses: []net.IP{net.ParseIP(d.addr)}, KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}, key())
	}
}

// program finds one of a database, which may not be in the path.
func program(t *testing.T, name, debian string, globs ...string) string {
	t.Helper()
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	for _, g := range append(globs, "/usr/sbin/"+name) {
		if found, err := filepath.Glob(g); err == nil && len(found) > 0 {
			return found[len(found)-1]
		}
	}
	t.Fatalf("%s is missing; run: make test-deps, or: apt-get install %s", name, debian)
	return ""
}

func postgres(t *testing.T, in network) *database { t.Helper(); return postgresAt(t, in, "127.0.0.1") }

// postgresAt is one at an address of the network, with two databases of its user, k1s and another.
func postgresAt(t *testing.T, in network, addr string) *database {
	t.Helper()
	const bin = "/usr/lib/postgresql/*/bin/"
	d := newDatabaseAt(t, in, addr)
	d.quit = unix.SIGINT
	data := d.path("data")
	d.prepare(t, "", program(t, "initdb", "postgresql", bin+"initdb"), "-D", data, "-U", "postgres", "-A", "reject", "-E", "UTF8", "--no-sync")
	server := program(t, "postgres", "postgresql", bin+"postgres")
	d.prepare(t, "CREATE ROLE k1s LOGIN PASSWORD '"+databasePassword+"'\nCREATE ROLE guest LOGIN PASSWORD '"+databasePassword+"'\nCREATE DATABASE k1s OWNER k1s\nCREATE DATABASE another OWNER k1s\n",
		server, "--single", "-D", data, "postgres")
	d.write(t, "data/pg_hba.conf", "hostssl all all all scram-sha-256 clientcert=verify-ca\n")
	d.argv = []string{
		server, "-D", data, "-k", "", "-h", addr, "-c", "ssl=on", "-c", "ssl_cert_file=" + d.path("server.crt"),
		"-c", "ssl_key_file=" + d.path("server.key"), "-c", "ssl_ca_file=" + d.path("ca.crt"),
	}
	d.dsn = func(password string) string {
		return "postgres://" + databaseUser + ":" + password + "@" + addr + ":5432/k1s"
	}
	d.guest = "postgres://guest:" + databasePassword + "@" + addr + ":5432/k1s"
	return d
}

func mariadb(t *testing.T, in network) *database {
	t.Helper()
	d := newDatabase(t, in)
	data := "--datadir=" + d.path("data")
	d.prepare(t, "", program(t, "mariadb-install-db", "mariadb-server-core"), "--no-defaults", data, "--auth-root-authentication-method=normal", "--skip-test-db")
	init := d.write(t, "init.sql", "CREATE USER IF NOT EXISTS k1s@'%' IDENTIFIED BY '"+databasePassword+"' REQUIRE X509;\n"+
		"CREATE USER IF NOT EXISTS guest@'%' IDENTIFIED BY '"+databasePassword+"' REQUIRE X509;\nCREATE DATABASE IF NOT EXISTS k1s;\nGRANT ALL ON k1s.* TO k1s@'%';\nGRANT SELECT ON k1s.* TO guest@'%';\n")
	d.argv = []string{
		program(t, "mariadbd", "mariadb-server-core"), "--no-defaults", data, "--init-file=" + init, "--bind-address=127.0.0.1", "--port=3306", "--skip-name-resolve",
		"--socket=" + d.path("sock"), "--pid-file=" + d.path("pid"), "--ssl-cert=" + d.path("server.crt"), "--ssl-key=" + d.path("server.key"), "--ssl-ca=" + d.path("ca.crt"),
	}
	d.dsn = func(password string) string {
		return "mysql://" + databaseUser + ":" + password + "@tcp(127.0.0.1:3306)/k1s"
	}
	d.guest = "mysql://guest:" + databasePassword + "@tcp(127.0.0.1:3306)/k1s"
	return d
}

func natsServer(t *testing.T, in network) *database {
	t.Helper()
	d := newDatabase(t, in)
	file := d.write(t, "nats.conf", fmt.Sprintf(`listen: "127.0.0.1:4222"
jetstream { store_dir: %q }
authorization { users: [ {user: %q, password: %q} ] }
tls { cert_file: %q, key_file: %q, ca_file: %q, verify: true }
`, d.path("data"), databaseUser, databasePassword, d.path("server.crt"), d.path("server.key"), d.path("ca.crt")))
	d.argv = []string{program(t, "nats-server", "nats-server"), "-c", file}
	d.dsn = func(password string) string { return "nats://" + databaseUser + ":" + password + "@127.0.0.1:4222" }
	return d
}

// etcdServer is the etcd we carry, run as somebody else's.
func etcdServer(t *testing.T, in network) *database {
	t.Helper()
	d := newDatabase(t, in)
	d.root = true
	file := d.write(t, "etcd.yaml", fmt.Sprintf(`name: theirs
data-dir: %[1]s/data
listen-client-urls: https://127.0.0.1:12379
advertise-client-urls: https://127.0.0.1:12379
listen-peer-urls: http://127.0.0.1:12380
initial-advertise-peer-urls: http://127.0.0.1:12380
initial-cluster: theirs=http://127.0.0.1:12380
client-transport-security: {cert-file: %[1]s/server.crt, key-file: %[1]s/server.key, trusted-ca-file: %[1]s/ca.crt, client-cert-auth: true}
log-level: warn
logger: zap
`, d.dir))
	d.argv = []string{kube(t), "etcd", "--config-file=" + file}
	d.dsn = func(string) string { return "https://127.0.0.1:12379" }
	return d
}

// kube is the unpacked program of all components.
func kube(t *testing.T) string {
	t.Helper()
	// Its own, because that of the clusters goes with the last of them.
	dir := filepath.Join(the.dir, "programs")
	r := command(within(t, limit), append(the.environ(), "K1S_DATA_DIR="+dir, "K1S_CLUSTERS_DIR="+dir), "", the.program, "kubectl", "version", "--client") // unpacks
	if err := r.error(); err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(dir + "/payload/*/k1s-kube")
	if err != nil || len(found) == 0 {
		t.Fatalf("the programs are not unpacked: %v", err)
	}
	return found[0]
}
