package apiserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	ownership "k1s.io/k1s/internal/claim"
	"k1s.io/k1s/internal/migration"
)

func TestThatADatabaseIsForeignIsToldToEveryDaemon(t *testing.T) {
	file := filepath.Join(t.TempDir(), "claim.json")
	told := func() bool {
		b, err := os.ReadFile(file)
		return err == nil && string(b) == "report"
	}
	synctest.Test(t, func(t *testing.T) {
		if err := tell(t.Context(), file, []byte("report"), true); err != nil || !told() {
			t.Fatalf("ours: told %v, %v", told(), err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		ended, reason := make(chan error, 1), errors.New("the node ends")
		go func() { ended <- tell(ctx, file, []byte("report"), false) }()
		for range 3 {
			// The daemon that was told is killed, and the next one does not believe it.
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * claimEvery)
			synctest.Wait()
			if !told() {
				t.Fatal("the next daemon is told nothing")
			}
		}
		cancel(reason)
		if err := <-ended; !errors.Is(err, reason) {
			t.Errorf("ended with %v", err)
		}
	})
}

// keys is a database: what is in it, and how often somebody wants to write.
type keys struct {
	clientv3.KV
	has    map[string]string
	writes int
}

func (k *keys) Get(_ context.Context, key string, _ ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	r := &clientv3.GetResponse{}
	if value, there := k.has[key]; there {
		r.Kvs = append(r.Kvs, &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), ModRevision: 1})
	}
	return r, nil
}

func (k *keys) Txn(context.Context) clientv3.Txn {
	k.writes++
	return done{}
}

// done is a transaction that succeeds.
type done struct{}

func (d done) If(...clientv3.Cmp) clientv3.Txn  { return d }
func (d done) Then(...clientv3.Op) clientv3.Txn { return d }
func (d done) Else(...clientv3.Op) clientv3.Txn { return d }
func (done) Commit() (*clientv3.TxnResponse, error) {
	return &clientv3.TxnResponse{Succeeded: true}, nil
}

// The restore has claimed the database, in the name of the cluster that starts with it when it is killed.
func TestHalfOfABackupIsNotServed(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := ownership.Of(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil, "node", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	mark := migration.MarkKey("/registry")
	for name, db := range map[string]map[string]string{
		"claimed": {mark: migration.RestoreID("a", "node"), ownership.Key("/registry"): string(ours.Claim.Marshal())},
		"free":    {mark: migration.RestoreID("b", "other")},
	} {
		k := &keys{has: db}
		if report, err := claimIn(t.Context(), k, "/registry", ours); err == nil || !strings.Contains(err.Error(), mark) || report != (ownership.Report{Half: mark}) || k.writes != 0 {
			t.Errorf("%s: it is %+v, after %d writes, %v", name, report, k.writes, err)
		}
	}
	// That of a move stays in the database it has made.
	for _, has := range []map[string]string{{}, {mark: "0badcafe"}} {
		k := &keys{has: has}
		if report, err := claimIn(t.Context(), k, "/registry", ours); err != nil || !report.Ours || k.writes != 1 {
			t.Errorf("%v: it is %+v, after %d writes, %v", has, report, k.writes, err)
		}
	}
}

func TestADatabaseThatWasLeftIsNotServed(t *testing.T) {
	key := migration.FenceKey("/registry")
	for value, want := range map[string]string{
		string(migration.Fence{Attempt: "a", To: "postgres://db:5432"}.Marshal()): "postgres://db:5432",
		"nonsense": "another datastore",
	} {
		k := &keys{has: map[string]string{key: value}}
		if report, err := claimIn(t.Context(), k, "/registry", ownership.Ours{}); err == nil || !strings.Contains(err.Error(), want) || report != (ownership.Report{Left: want}) || k.writes != 0 {
			t.Errorf("%s: it is %+v, after %d writes, %v", value, report, k.writes, err)
		}
	}
	// Another cluster left it: this one has nothing to look for where that has gone.
	theirs := ownership.Claim{Pins: []string{"theirs"}, Server: "server-0", Since: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	k := &keys{has: map[string]string{key: string(migration.Fence{Attempt: "a", To: "etcd"}.Marshal()), ownership.Key("/registry"): string(theirs.Marshal())}}
	if report, err := claimIn(t.Context(), k, "/registry", ownership.Ours{}); err != nil || !reflect.DeepEqual(report, ownership.Report{Foreign: &theirs}) || k.writes != 0 {
		t.Errorf("another cluster's: it is %+v, after %d writes, %v", report, k.writes, err)
	}
}

func TestThatHalfOfABackupIsThereIsToldToEveryDaemon(t *testing.T) {
	file := filepath.Join(t.TempDir(), "claim.json")
	half := ownership.Report{Of: "db", Half: migration.MarkKey("/registry")}
	// The claim of before is not true any more; and a daemon that starts does not believe what the one before was told.
	for name, before := range map[string]string{"nothing": "", "ours": `{"ours":true,"of":"db"}`, "the same": `{"ours":false,"of":"db","half":"` + half.Half + `"}`} {
		err := os.Remove(file)
		if before != "" {
			err = os.WriteFile(file, []byte(before), 0o600)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if err := tellWaiting(file, half); err != nil {
			t.Fatal(err)
		}
		var told ownership.Report
		if b, err := os.ReadFile(file); err != nil || json.Unmarshal(b, &told) != nil || told != half {
			t.Errorf("after %s: told %+v, %v", name, told, err)
		}
	}
}
