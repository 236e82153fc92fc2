package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/paths"
)

var today = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// node is one server's pki directory and its clock.
type node struct {
	t   *testing.T
	req Request
	now time.Time
}

func newNode(t *testing.T) *node {
	n := &node{t: t, now: today}
	n.req = Request{
		Paths: paths.Paths{Data: t.TempDir()}, NodeName: "node1", NodeIP: netip.MustParseAddr("192.0.2.7"),
		ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), SANs: []string{"Api.Example.org", "198.51.100.1"},
		Etcd: true, Now: func() time.Time { return n.now },
	}
	return n
}

func (n *node) ensure() Report {
	n.t.Helper()
	rep, err := Ensure(n.t.Context(), n.req)
	if err != nil {
		n.t.Fatal(err)
	}
	return rep
}

func issued(rep Report) map[string]string {
	out := map[string]string{}
	for _, c := range rep.Issued {
		out[c.Name] = c.Reason
	}
	return out
}

func (n *node) wantIssued(want map[string]string) {
	n.t.Helper()
	if got := issued(n.ensure()); !maps.Equal(got, want) {
		n.t.Fatalf("issued %v, want %v", got, want)
	}
	if got := issued(n.ensure()); len(got) != 0 {
		n.t.Fatalf("issued again: %v", got)
	}
	n.verifyAll()
}

func (n *node) cert(name string) *x509.Certificate {
	n.t.Helper()
	b, err := os.ReadFile(CertFile(n.req.Paths, name))
	if err != nil {
		n.t.Fatal(err)
	}
	c, err := parseCert(b)
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

// verifyAll loads every leaf as a TLS program does and verifies it against its authority.
func (n *node) verifyAll() {
	n.t.Helper()
	for _, l := range n.req.leaves() {
		if _, err := tls.LoadX509KeyPair(CertFile(n.req.Paths, l.Name), KeyFile(n.req.Paths, l.Name)); err != nil {
			n.t.Errorf("%s: %v", l.Name, err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(n.cert(l.CA))
		var uses []x509.ExtKeyUsage
		if l.Server {
			uses = append(uses, x509.ExtKeyUsageServerAuth)
		}
		if l.Client {
			uses = append(uses, x509.ExtKeyUsageClientAuth)
		}
		for _, use := range uses {
			_, err := n.cert(l.Name).Verify(x509.VerifyOptions{Roots: roots, CurrentTime: n.now, KeyUsages: []x509.ExtKeyUsage{use}})
			if err != nil {
				n.t.Errorf("%s: %v", l.Name, err)
			}
		}
	}
}

func (n *node) read(file string) string {
	n.t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(b)
}

func (n *node) write(file, content string) {
	n.t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) remove(file string) {
	n.t.Helper()
	if err := os.Remove(file); err != nil {
		n.t.Fatal(err)
	}
}

// snapshot is the content of every file of the directory but the lock.
func (n *node) snapshot() map[string]string {
	n.t.Helper()
	out := map[string]string{}
	root := n.req.Paths.PKI()
	err := filepath.Walk(root, func(name string, st os.FileInfo, err error) error {
		if err != nil || st.IsDir() || st.Name() == ".lock" {
			return err
		}
		b, err := os.ReadFile(name)
		out[strings.TrimPrefix(name, root)] = string(b)
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

func TestAFirstRunMakesEverythingAndASecondNothing(t *testing.T) {
	n := newNode(t)
	if got, want := len(n.ensure().Issued), len(n.req.leaves()); got != want {
		t.Fatalf("issued %d of %d", got, want)
	}
	n.verifyAll()
	before := n.snapshot()
	rep := n.ensure()
	if len(rep.Issued) != 0 || !maps.Equal(before, n.snapshot()) {
		t.Fatalf("changed something: %+v", rep)
	}
	want := Report{
		Expires: today.Add(leafLifetime), ExpiresFirst: AddonManagerClient, CAExpires: today.Add(caLifetime),
		RenewAt: renewAt(n.cert(AddonManagerClient)),
	}
	if !reflect.DeepEqual(rep, want) {
		t.Errorf("got %+v, want %+v", rep, want)
	}
	for name, content := range before {
		st, err := os.Stat(n.req.Paths.PKI(name))
		if err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o644)
		if strings.HasSuffix(name, ".key") {
			mode = 0o600
		}
		if st.Mode().Perm() != mode || content == "" {
			t.Errorf("%s has mode %v and %d bytes", name, st.Mode(), len(content))
		}
	}
}

func TestCertificatesSayWhoTheyAreFor(t *testing.T) {
	n := newNode(t)
	n.ensure()
	got := leafOf(n.cert(APIServer))
	want := Leaf{
		CommonName: "kube-apiserver", Server: true,
		DNSNames: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost", "node1", "api.example.org"},
		IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(), netip.MustParseAddr("192.0.2.7"),
			netip.MustParseAddr("10.43.0.1"), netip.MustParseAddr("198.51.100.1")},
	}.normal()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	subjects := map[string]string{}
	for _, name := range []string{KubeletClient, SchedulerClient, AdminClient} {
		subjects[name] = n.cert(name).Subject.String()
	}
	wantSubjects := map[string]string{
		KubeletClient:   "CN=system:node:node1,O=system:nodes",
		SchedulerClient: "CN=system:kube-scheduler",
		AdminClient:     "CN=kubernetes-admin,O=system:masters",
	}
	if !maps.Equal(subjects, wantSubjects) {
		t.Errorf("got %v, want %v", subjects, wantSubjects)
	}
}

func TestANewNameReissuesOnlyTheCertificateThatShowsIt(t *testing.T) {
	n := newNode(t)
	n.ensure()
	n.req.SANs = []string{"api.example.org", "other.example.org"}
	n.wantIssued(map[string]string{APIServer: "names differ: +other.example.org -198.51.100.1"})
}

func TestOnlyWhatIsWrongIsIssuedAgain(t *testing.T) {
	crt := func(n *node, name string) string { return CertFile(n.req.Paths, name) }
	key := func(n *node, name string) string { return KeyFile(n.req.Paths, name) }
	for name, c := range map[string]struct {
		spoil func(n *node)
		want  map[string]string
	}{
		"a crash between key and certificate": {
			func(n *node) { n.write(key(n, AdminClient), n.read(key(n, DaemonClient))) },
			map[string]string{AdminClient: "key and certificate do not belong together"},
		},
		"no certificate": {func(n *node) { n.remove(crt(n, AdminClient)) }, map[string]string{AdminClient: "missing"}},
		"no key":         {func(n *node) { n.remove(key(n, EtcdPeer)) }, map[string]string{EtcdPeer: "missing"}},
		"a half-written certificate": {
			func(n *node) { b := n.read(crt(n, KubeletServing)); n.write(crt(n, KubeletServing), b[:len(b)/2]) },
			map[string]string{KubeletServing: "damaged"},
		},
		"an empty key": {func(n *node) { n.write(key(n, KubeletServing), "") }, map[string]string{KubeletServing: "key damaged"}},
		"a certificate of another authority": {
			func(n *node) {
				n.write(crt(n, SchedulerClient), n.read(crt(n, FrontProxyClient)))
				n.write(key(n, SchedulerClient), n.read(key(n, FrontProxyClient)))
			},
			map[string]string{SchedulerClient: "signed by another authority"},
		},
		"a certificate of somebody else": {
			func(n *node) {
				n.write(crt(n, SchedulerClient), n.read(crt(n, KubeProxyClient)))
				n.write(key(n, SchedulerClient), n.read(key(n, KubeProxyClient)))
			},
			map[string]string{SchedulerClient: "subject differs: system:kube-proxy[], want system:kube-scheduler[]"},
		},
		"another node address": {
			func(n *node) { n.req.NodeIP = netip.MustParseAddr("192.0.2.8") },
			map[string]string{
				APIServer: "names differ: +192.0.2.8 -192.0.2.7", KubeletServing: "names differ: +192.0.2.8 -192.0.2.7",
				EtcdServer: "names differ: +192.0.2.8 -192.0.2.7", EtcdPeer: "names differ: +192.0.2.8 -192.0.2.7",
			},
		},
		"one more wanted": {
			func(n *node) {
				n.req.Extra = []Leaf{{Name: "metrics-server", CA: CA, CommonName: "metrics-server", DNSNames: []string{"metrics-server.kube-system.svc"}, Server: true}}
			},
			map[string]string{"metrics-server": "missing"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.ensure()
			c.spoil(n)
			n.wantIssued(c.want)
		})
	}
}

func TestCertificatesAreRenewedWhenAThirdIsLeft(t *testing.T) {
	n := newNode(t)
	at := n.ensure().RenewAt
	n.now = at
	if rep := n.ensure(); len(rep.Issued) != 0 {
		t.Fatalf("renewed too early: %v", rep.Issued)
	}
	n.now = at.Add(time.Second)
	if rep := n.ensure(); len(rep.Issued) != len(n.req.leaves()) || rep.Issued[0].Reason != "expires 2027-11-21" || !rep.RenewAt.After(n.now) {
		t.Fatalf("got %+v", rep)
	}
	n.now = n.now.Add(2 * leafLifetime) // switched off for two years
	if rep := n.ensure(); len(rep.Issued) != len(n.req.leaves()) || !strings.HasPrefix(rep.Issued[0].Reason, "expired ") {
		t.Fatalf("got %+v", rep)
	}
	n.verifyAll()
}

func TestNoCertificateOutlivesItsAuthority(t *testing.T) {
	n := newNode(t)
	n.ensure()
	n.now = today.Add(caLifetime - 24*time.Hour)
	rep := n.ensure()
	if !rep.Expires.Equal(rep.CAExpires) || !rep.RenewAt.IsZero() {
		t.Fatalf("got %+v", rep)
	}
	n.now = today.Add(caLifetime - time.Hour)
	n.wantIssued(map[string]string{})
}

func TestAnAuthorityIsNeverReplaced(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(n *node)
		want  string
	}{
		"damaged certificate":    {func(n *node) { n.write(n.req.Paths.PKI("ca.crt"), "rubbish") }, "ca.crt is not a certificate"},
		"empty key":              {func(n *node) { n.write(n.req.Paths.PKI("ca.key"), "") }, "ca.key is not a private key"},
		"key of another":         {func(n *node) { n.write(n.req.Paths.PKI("ca.key"), n.read(n.req.Paths.PKI("front-proxy-ca.key"))) }, "does not belong to"},
		"no authority":           {func(n *node) { n.write(n.req.Paths.PKI("ca.crt"), n.read(n.req.Paths.PKI("admin-client.crt"))) }, "not the certificate of an authority"},
		"a directory in its way": {func(n *node) { n.remove(n.req.Paths.PKI("ca.key")); _ = os.Mkdir(n.req.Paths.PKI("ca.key"), 0o755) }, "cannot be read"},
		"both gone": {func(n *node) { n.remove(n.req.Paths.PKI("etcd/ca.key")); n.remove(n.req.Paths.PKI("etcd/ca.crt")) },
			"etcd/ca.crt is gone"},
		"service account key damaged": {func(n *node) { n.write(n.req.Paths.PKI("sa.key"), "x") }, "sa.key is not a private key"},
		"service account key gone":    {func(n *node) { n.remove(n.req.Paths.PKI("sa.key")) }, "sa.key is gone"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.ensure()
			c.spoil(n)
			n.remove(n.req.Paths.PKI("admin-client.key")) // something to do
			_, err := Ensure(t.Context(), n.req)
			var ca *CAError
			if !errors.As(err, &ca) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if hint, _ := errs.HintOf(err); !strings.Contains(hint, "backup") {
				t.Errorf("hint %q", hint)
			}
			if _, err := os.Stat(n.req.Paths.PKI("admin-client.key")); err == nil {
				t.Error("wrote something all the same")
			}
		})
	}
}

func TestAnAuthorityOnlyHalfMadeIsFinished(t *testing.T) {
	n := newNode(t)
	n.ensure()
	old := n.cert(CA)
	n.remove(n.req.Paths.PKI("ca.crt"))
	n.ensure()
	n.verifyAll()
	again := n.cert(CA)
	if old.Subject.String() != again.Subject.String() || !samePublic(old.PublicKey, again.PublicKey) {
		t.Fatal("the new certificate does not stand for the old one")
	}
	// Who only knows the old certificate still trusts what is signed now.
	roots := x509.NewCertPool()
	roots.AddCert(old)
	if _, err := n.cert(APIServer).Verify(x509.VerifyOptions{Roots: roots, CurrentTime: n.now}); err != nil {
		t.Fatal(err)
	}
}

func TestAnAuthorityWithoutItsKeyServesUntilSomethingHasToBeIssued(t *testing.T) {
	n := newNode(t)
	at := n.ensure().RenewAt
	n.remove(n.req.Paths.PKI("ca.key"))
	if rep := n.ensure(); len(rep.Issued) != 0 {
		t.Fatalf("got %+v", rep)
	}
	n.now = at.Add(time.Hour)
	rep := n.ensure()
	var postponed []string
	for _, c := range rep.Postponed {
		postponed = append(postponed, c.Name)
	}
	if !slices.Contains(postponed, APIServer) || slices.Contains(postponed, FrontProxyClient) {
		t.Fatalf("postponed %v", postponed)
	}
	n.req.SANs = []string{"new.example.org"}
	_, err := Ensure(t.Context(), n.req)
	var ca *CAError
	if !errors.As(err, &ca) || ca.File != n.req.Paths.PKI("ca.key") {
		t.Fatalf("got %v", err)
	}
}

func TestAClockThatIsWrongIsNamed(t *testing.T) {
	for name, c := range map[string]struct {
		now   time.Time
		fresh bool
		want  string
	}{
		"before the authority was made":     {today.AddDate(0, -1, 0), false, "which is before the certificate authority"},
		"after the authority ended":         {today.AddDate(11, 0, 0), false, "which is after the certificate authority"},
		"no battery, nothing was made yet":  {time.Unix(0, 0), true, "1970-01-01T00:00:00Z, which is before this program was made"},
		"no battery, authorities are there": {time.Unix(0, 0), false, "1970-01-01T00:00:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			if !c.fresh {
				n.ensure()
			}
			before := n.snapshot
			var had map[string]string
			if !c.fresh {
				had = before()
			}
			n.now = c.now
			_, err := Ensure(t.Context(), n.req)
			var clock *ClockError
			if !errors.As(err, &clock) || clock.HealthCode() != "clock" || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v", err)
			}
			if hint, _ := errs.HintOf(err); !strings.Contains(hint, "set the clock") {
				t.Errorf("hint %q", hint)
			}
			if got := before(); len(got) != len(had) {
				t.Errorf("wrote %v", slices.Collect(maps.Keys(got)))
			}
		})
	}
}

func TestADayOfAnotherClockIsGotOver(t *testing.T) {
	n := newNode(t)
	n.ensure()
	ca := n.cert(CA)
	n.now = today.Add(24 * time.Hour)
	n.wantIssued(map[string]string{})
	n.req.SANs = append(n.req.SANs, "other.example.org")
	if got := issued(n.ensure()); len(got) != 1 || got[APIServer] == "" {
		t.Fatalf("with the clock a day ahead issued %v", got)
	}
	// What was issued then is of tomorrow for everybody else, and is issued again when the clock is right; nothing else is.
	n.now = today
	n.wantIssued(map[string]string{APIServer: "not valid before 2026-11-22"})
	n.now = today.Add(-24 * time.Hour)
	var clock *ClockError
	if _, err := Ensure(t.Context(), n.req); !errors.As(err, &clock) {
		t.Errorf("with the clock a day behind: %v", err)
	}
	n.now = today
	n.wantIssued(map[string]string{})
	if !n.cert(CA).Equal(ca) {
		t.Error("the authority is another one")
	}
}

func TestAClockThatIsALittleBehindDoesNotMatter(t *testing.T) {
	n := newNode(t)
	n.ensure()
	n.now = today.Add(-50 * time.Minute)
	n.wantIssued(map[string]string{})
}

func TestServiceAccountPublicKeysOfEarlierTimesStay(t *testing.T) {
	n := newNode(t)
	n.ensure()
	pub := n.req.Paths.PKI("sa.pub")
	ours := n.read(pub)
	other := newNode(t)
	other.ensure()
	old := n.read(other.req.Paths.PKI("sa.pub"))

	n.write(pub, ours+old)
	n.ensure()
	if got := n.read(pub); got != ours+old {
		t.Fatalf("rewritten: %q", got)
	}
	n.write(pub, old)
	n.ensure()
	if got := n.read(pub); got != ours+old {
		t.Fatalf("got %q", got)
	}
	n.remove(pub)
	n.ensure()
	if got := n.read(pub); got != ours {
		t.Fatalf("got %q", got)
	}
}

func TestKeysThatOthersCouldReadAreClosed(t *testing.T) {
	n := newNode(t)
	n.ensure()
	if err := os.Chmod(n.req.Paths.PKI("ca.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.ensure()
	if st, _ := os.Stat(n.req.Paths.PKI("ca.key")); st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v", st.Mode())
	}
}

func TestErrorsHaveRegisteredHealthCodes(t *testing.T) {
	for _, e := range []interface{ HealthCode() string }{&CAError{}, &ClockError{}} {
		if _, ok := health.Lookup(health.Code(e.HealthCode())); !ok {
			t.Errorf("%T: %q is not registered", e, e.HealthCode())
		}
	}
}

func TestParallelCallsAgree(t *testing.T) {
	n := newNode(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for range 6 {
		wg.Go(func() {
			rep, err := Ensure(t.Context(), n.req)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			total += len(rep.Issued)
			mu.Unlock()
		})
	}
	wg.Wait()
	if want := len(n.req.leaves()); total != want {
		t.Errorf("%d certificates issued, want %d", total, want)
	}
	n.verifyAll()
}

func TestWhatACrashLeftIsCleanedUp(t *testing.T) {
	n := newNode(t)
	n.ensure()
	left := n.req.Paths.PKI(".ca.key.tmp-123")
	n.write(left, "half a key")
	n.ensure()
	if _, err := os.Stat(left); err == nil {
		t.Fatal("still there")
	}
}

func TestAServerWithoutWorkerHasNoKubeletCertificates(t *testing.T) {
	n := newNode(t)
	n.req.NoWorker, n.req.Etcd = true, false
	n.ensure()
	n.verifyAll()
	for _, name := range []string{KubeletClient, KubeletServing, EtcdServer} {
		if _, err := os.Stat(CertFile(n.req.Paths, name)); err == nil {
			t.Errorf("%s was made", name)
		}
	}
}

func TestEverythingIsRenewedWhenAskedFor(t *testing.T) {
	n := newNode(t)
	n.ensure()
	before := n.snapshot()
	n.req.All = true
	want := map[string]string{}
	for _, l := range n.req.leaves() {
		want[l.Name] = "asked for"
	}
	if got := issued(n.ensure()); !maps.Equal(got, want) {
		t.Errorf("issued %v, want %v", got, want)
	}
	n.verifyAll()
	after := n.snapshot()
	for file, content := range before {
		name, isCert := strings.CutSuffix(strings.TrimPrefix(file, "/"), ".crt")
		if _, leaf := want[name]; isCert && leaf != (after[file] != content) {
			t.Errorf("%s: changed %t", file, !leaf)
		}
	}
	// Without the key of the authority everything stays as it is.
	n.remove(KeyFile(n.req.Paths, CA))
	n.remove(KeyFile(n.req.Paths, FrontProxyCA))
	n.remove(KeyFile(n.req.Paths, EtcdCA))
	if rep := n.ensure(); len(rep.Issued) != 0 || len(rep.Postponed) != len(want) {
		t.Errorf("without keys of authorities: %+v", rep)
	}
}

func TestCertificatesAreListedWithWhatIsWrongWithThem(t *testing.T) {
	n := newNode(t)
	if all, err := List(n.req.Paths); err != nil || len(all) != 0 {
		t.Errorf("before anything was made: %v %v", all, err)
	}
	n.ensure()
	n.write(CertFile(n.req.Paths, SchedulerClient), "junk")
	all, err := List(n.req.Paths)
	if err != nil || len(all) != len(n.req.leaves())+len(n.req.authorities()) {
		t.Fatalf("%d certificates, %v", len(all), err)
	}
	for _, c := range all {
		want := n.req.Now().Add(leafLifetime)
		if c.Authority {
			want = n.req.Now().Add(caLifetime)
		}
		switch {
		case c.Name == SchedulerClient:
			if c.Problem == "" || !c.NotAfter.IsZero() {
				t.Errorf("junk is listed as %+v", c)
			}
		case !c.NotAfter.Equal(want) || c.Problem != "" || c.Subject == "" || c.Authority != slices.Contains(n.req.authorities(), c.Name):
			t.Errorf("listed is %+v, want it to end %s", c, want)
		}
	}
}

func TestWhatAnEtcdThatWasLeftWasShownByIsForgottenAndItsAuthorityIsNot(t *testing.T) {
	n := newNode(t)
	n.ensure()
	authority := n.read(CertFile(n.req.Paths, EtcdCA))
	for range 2 { // also where nothing is there any more
		if err := ForgetEtcd(n.req.Paths); err != nil {
			t.Fatal(err)
		}
	}
	all, err := List(n.req.Paths)
	if err != nil {
		t.Fatal(err)
	}
	var of []string
	for _, i := range all {
		if strings.Contains(i.Name, "etcd") {
			of = append(of, i.Name)
		}
	}
	keys, err := filepath.Glob(n.req.Paths.PKI("*etcd*", "*.key"))
	if err != nil || !slices.Equal(of, []string{EtcdCA}) || len(keys) != 1 {
		t.Errorf("left are %q and the keys %q, %v", of, keys, err)
	}
	n.wantIssued(map[string]string{EtcdServer: "missing", EtcdPeer: "missing", APIServerEtcdClient: "missing"})
	if n.read(CertFile(n.req.Paths, EtcdCA)) != authority {
		t.Error("etcd has another authority now")
	}
}
