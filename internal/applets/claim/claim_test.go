package claim

import (
	"context"
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
	"net/url"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"k1s.io/k1s/internal/applets/kine"
	"k1s.io/k1s/internal/claim"
)

const root = "/registry"

// database is a kine in front of SQLite, and a client of it.
func database(t *testing.T) *clientv3.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "k1s") // short: the name of a socket has room for a hundred letters
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	socket := "unix://" + dir + "/kine.sock"
	go func() {
		ended <- kine.Run(ctx, []string{"--listen=" + socket, "--endpoint=sqlite://" + dir + "/state.db?_journal_mode=WAL&_busy_timeout=30000&_txlock=immediate"})
	}()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{socket}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		cancel()
		<-ended
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return c
}

func ca(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestOfManyWhoFoundAtOnceOneHasTheDatabase(t *testing.T) {
	db := database(t)
	const founders = 8
	var won, lost []string
	var mu sync.Mutex // guards won and lost
	var all sync.WaitGroup
	by := make([]claim.Claim, founders)
	cas := make([][]byte, founders)
	for i := range founders {
		cas[i] = ca(t)
		name := fmt.Sprintf("server-%d", i)
		ours, err := claim.Of(cas[i], nil, name, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			is, err := Make(t.Context(), db, root, ours)
			mu.Lock()
			defer mu.Unlock()
			var foreign *claim.Foreign
			switch {
			case err == nil:
				won, by[i] = append(won, name), is
			case errors.As(err, &foreign):
				lost, by[i] = append(lost, name), foreign.By
			default:
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	all.Wait()
	if len(won) != 1 || len(lost) != founders-1 {
		t.Fatalf("won: %v, lost: %v", won, lost)
	}
	for i, c := range by {
		if c.Server != won[0] {
			t.Errorf("server-%d takes %q for the founder, which is %s", i, c.Server, won[0])
		}
	}
	// The next start finds it, and so does another server of the same cluster.
	i := slices.IndexFunc(by, func(c claim.Claim) bool { return c.Server == won[0] })
	for n := range founders {
		if fmt.Sprintf("server-%d", n) == won[0] {
			i = n
		}
	}
	joined, err := claim.Of(cas[i], nil, "server-9", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if is, err := Make(t.Context(), db, root, joined); err != nil || is.Server != won[0] {
		t.Errorf("a server that has joined: %+v, %v", is, err)
	}
	// While the CA is replaced the claim knows both, and afterwards the new one is enough.
	next := ca(t)
	both, err := claim.Of(slices.Concat(next, cas[i]), nil, won[0], time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if is, err := Make(t.Context(), db, root, both); err != nil || len(is.Pins) != 2 || is.Server != won[0] {
		t.Errorf("with two CAs: %+v, %v", is, err)
	}
	alone, err := claim.Of(next, nil, won[0], time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := Look(t.Context(), db, root, alone); err != nil {
		t.Errorf("with the new one: %v", err)
	}
	// The database is put back to the time before that, when both were not in it.
	key := claim.Key(root)
	if _, err := db.Put(t.Context(), key, string(by[i].Marshal())); err != nil {
		t.Fatal(err)
	}
	var foreign *claim.Foreign
	if err := Look(t.Context(), db, root, alone); !errors.As(err, &foreign) {
		t.Errorf("by one that knows nothing of the old one: %v", err)
	}
	after, err := claim.Of(next, cas[i], won[0], time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if is, err := Make(t.Context(), db, root, after); err != nil || is.Pins[0] != after.Pins[0] || len(is.Pins) != 2 {
		t.Errorf("after it was put back: %+v, %v", is, err)
	}
	if err := Look(t.Context(), db, root, alone); err != nil {
		t.Errorf("the present one is not in it: %v", err)
	}
}

func TestARightThatIsMissingIsTold(t *testing.T) {
	if !Refused(fmt.Errorf("asking: %w", rpctypes.ErrPermissionDenied)) || Refused(rpctypes.ErrNoSpace) || Refused(errors.New("no")) {
		t.Error("the wrong errors say that a right is missing")
	}
}

func TestAnEtcdThatKeepsTheKeyFromItsUserSaysSo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	clients, peers := url.URL{Scheme: "http", Host: l.Addr().String()}, url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	conf := embed.NewConfig()
	conf.Dir, conf.ZapLoggerBuilder = t.TempDir(), embed.NewZapLoggerBuilder(zap.NewNop())
	conf.ListenClientUrls, conf.AdvertiseClientUrls = []url.URL{clients}, []url.URL{clients}
	conf.ListenPeerUrls, conf.AdvertisePeerUrls = []url.URL{peers}, []url.URL{peers}
	conf.InitialCluster = conf.InitialClusterFromName(conf.Name)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	e, err := embed.StartEtcd(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		t.Fatal(err)
	}
	as := func(user string) *clientv3.Client {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{clients.String()}, Username: user, Password: user, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	admin, ctx := as(""), t.Context()
	for _, user := range []string{"root", "k1s"} {
		_, err1 := admin.UserAdd(ctx, user, user)
		_, err2 := admin.RoleAdd(ctx, user)
		_, err3 := admin.UserGrantRole(ctx, user, user)
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := admin.RoleGrantPermission(ctx, "k1s", root+"/", clientv3.GetPrefixRangeEnd(root+"/"), clientv3.PermissionType(clientv3.PermReadWrite)); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.AuthEnable(ctx); err != nil {
		t.Fatal(err)
	}
	ours, err := claim.Of(ca(t), nil, "server-0", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	user := as("k1s")
	if _, err := user.Put(ctx, root+"/a", "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := Make(ctx, user, root, ours); !Refused(err) {
		t.Errorf("taking it: %v", err)
	}
	if err := Look(ctx, user, root, ours); !Refused(err) {
		t.Errorf("looking: %v", err)
	}
}

func TestLookingTakesNothing(t *testing.T) {
	db := database(t)
	file := ca(t)
	ours, err := claim.Of(file, nil, "server-0", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := Look(t.Context(), db, root, ours); err != nil {
		t.Fatal(err)
	}
	if r, err := db.Get(t.Context(), claim.Key(root)); err != nil || len(r.Kvs) != 0 {
		t.Errorf("there is %v, %v", r.Kvs, err)
	}
	// A cluster that is older than its claim.
	key := claim.PublishedKey(root)
	if _, err := db.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, "k8s"+string(ca(t)))).Commit(); err != nil {
		t.Fatal(err)
	}
	var foreign *claim.Foreign
	if _, err := Make(t.Context(), db, root, ours); !errors.As(err, &foreign) {
		t.Errorf("an older cluster's database: %v", err)
	}
}
