package etcdcare

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"k1s.io/k1s/internal/applets/etcdcare/s3test"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdcare"
)

// farServer is an S3 server with TLS and a certificate of its own, in memory.
type farServer struct {
	*s3test.Server
	caFile string
	// cutAfter is after how many bytes of a database's upload the connection ends; 0 for never.
	cutAfter atomic.Int64
	cutPart  atomic.Bool // the second part of one that goes in parts
}

func s3Serves(t *testing.T) *farServer {
	t.Helper()
	s := &farServer{}
	s.Server = s3test.Start(t, nil, func(_ http.ResponseWriter, r *http.Request) bool {
		if n := s.cutAfter.Load(); n > 0 && r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, etcdcare.FileEnd) {
			_, _ = io.CopyN(io.Discard, r.Body, n)
			panic(http.ErrAbortHandler)
		}
		if s.cutPart.Load() && r.URL.Query().Get("partNumber") == "2" {
			_, _ = io.CopyN(io.Discard, r.Body, 1000)
			panic(http.ErrAbortHandler)
		}
		return false
	})
	s.caFile = filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(s.caFile, s.CA(), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *farServer) s3() etcdcare.S3 {
	return etcdcare.S3{Endpoint: s.URL, Bucket: s3test.Bucket, Folder: "clusters/edge", Region: s3test.Region, CAFile: s.caFile, PathStyle: true, AccessKey: s3test.AccessKey, SecretKey: s3test.SecretKey}
}

func TestASnapshotGoesToS3AndComesBack(t *testing.T) {
	s, m, dir := s3Serves(t), starts(t, t.TempDir(), quota), t.TempDir()
	m.put(t, "/registry/a", "before")
	j := saving(m, dir, "one")
	j.S3 = s.s3()
	a, err := asks(t, j)
	if err != nil || len(a.Entries) != 2 {
		t.Fatalf("%+v, %v", a, err)
	}
	far := a.Entries[1]
	if far.Where != "s3://snapshots/clusters/edge/node/one.db" || !far.S3() {
		t.Errorf("it is at %s", far.Where)
	}
	j.S3Only, j.Snapshot.Name = true, "two"
	if a, err = asks(t, j); err != nil || len(a.Entries) != 1 || !a.Entries[0].S3() || exists(filepath.Join(dir, "two.db")) || exists(filepath.Join(dir, "two.json")) {
		t.Errorf("one that is for S3 only: %+v, %v", a, err)
	}
	m.put(t, "/registry/a", "after")
	m.stop()

	listed, err := asks(t, etcdcare.Job{Do: etcdcare.List, Dir: dir, S3: s.s3()})
	if err != nil || len(listed.Entries) != 3 || len(listed.Warnings) > 0 {
		t.Fatalf("%+v, %v", listed, err)
	}
	for _, e := range listed.Entries {
		if e.State != etcdcare.Complete || e.CA != "pin" {
			t.Errorf("%+v", e)
		}
	}
	restored, _ := restores(t, far.Where, m.dir, etcdcare.Job{Dir: dir, S3: s.s3()})
	if exists(restored + ".download") {
		t.Error("what was downloaded stays")
	}
	n := starts(t, restored, quota)
	if v := n.get(t, "/registry/a"); v != "before" {
		t.Errorf("it has %q", v)
	}
	if _, err := asks(t, etcdcare.Job{Do: etcdcare.Remove, S3: s.s3(), Where: []string{far.Where}}); err != nil {
		t.Fatal(err)
	}
	for name, e := range lists(t, etcdcare.Job{S3: s.s3()}) {
		if name != "two" {
			t.Errorf("%+v is still there", e)
		}
	}
	if _, err := asks(t, etcdcare.Job{Do: etcdcare.Look, S3: s.s3(), Where: []string{far.Where}}); !errs.Is(err, errs.NotFound) {
		t.Errorf("one that is gone: %v", err)
	}
}

func TestWhatIsWrongWithS3IsTold(t *testing.T) {
	s, m := s3Serves(t), starts(t, t.TempDir(), quota)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	file := func(text string, mode os.FileMode) string {
		f := filepath.Join(t.TempDir(), "credentials")
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(f, mode); err != nil {
			t.Fatal(err)
		}
		return f
	}
	fine := "[default]\naws_access_key_id = " + s3test.AccessKey + "\naws_secret_access_key = " + s3test.SecretKey + "\n"
	for _, c := range []struct {
		name   string
		change func(*etcdcare.S3)
		says   string // "" for nothing
		hint   string
	}{
		{"all is well", func(*etcdcare.S3) {}, "", ""},
		{"a file", func(s *etcdcare.S3) { s.AccessKey, s.CredentialsFile = "", file(fine, 0o600) }, "", ""},
		{"a file for everybody", func(s *etcdcare.S3) { s.AccessKey, s.CredentialsFile = "", file(fine, 0o644) }, "can be read by everybody", "chmod 600"},
		{"a file of something else", func(s *etcdcare.S3) { s.AccessKey, s.CredentialsFile = "", file("tops3cret", 0o600) }, "cannot be read", "aws_access_key_id"},
		{"no file", func(s *etcdcare.S3) { s.AccessKey, s.CredentialsFile = "", "/nowhere" }, "/nowhere", ""},
		{"no credentials", func(s *etcdcare.S3) { s.AccessKey = "" }, "no credentials", "AWS_ACCESS_KEY_ID"},
		{"wrong credentials", func(s *etcdcare.S3) { s.AccessKey = "AKIAOTHER" }, "does not accept the credentials", "credentials"},
		{"a wrong secret", func(s *etcdcare.S3) { s.SecretKey = "an0therword" }, "does not accept the credentials for the bucket \"snapshots\": SignatureDoesNotMatch", "credentials"},
		{"no bucket of that name", func(s *etcdcare.S3) { s.Bucket = "elsewhere" }, `there is no bucket "elsewhere"`, "bucket"},
		{"another authority", func(s *etcdcare.S3) { s.CAFile = "" }, "is not trusted", "caFile"},
		{"no authority", func(s *etcdcare.S3) { s.CAFile = "/nowhere" }, "/nowhere", ""},
		{"TLS where there is none", func(e *etcdcare.S3) { e.Endpoint = strings.Replace(e.Endpoint, "https://", "http://", 1) }, "", "-"},
		{"nobody answers", func(s *etcdcare.S3) { s.Endpoint = "127.0.0.1:1" }, "does not answer", "endpoint"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, far := t.TempDir(), s.s3()
			c.change(&far)
			j := saving(m, dir, "one")
			j.S3 = far
			a, err := asks(t, j)
			if (err == nil) != (c.says == "" && c.hint == "") {
				t.Fatalf("%+v, %v", a, err)
			}
			// What is here is not lost.
			if here := lists(t, etcdcare.Job{Dir: dir}); here["one"].State != etcdcare.Complete {
				t.Errorf("the one here is %+v", here["one"])
			}
			if err == nil {
				return
			}
			hint, _ := errs.HintOf(err)
			t.Logf("%v (%s)", err, hint)
			if !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "not in S3") || !strings.Contains(hint+"-", c.hint) || strings.Contains(err.Error()+hint, s3test.SecretKey) {
				t.Errorf("%v (%s)", err, hint)
			}
			if l, err := asks(t, etcdcare.Job{Do: etcdcare.List, Dir: dir, S3: far}); err != nil || len(l.Entries) != 1 || len(l.Warnings) != 1 {
				t.Errorf("the list: %+v, %v", l, err)
			}
		})
	}
}

func TestAnUploadThatIsCutOffIsNoSnapshot(t *testing.T) {
	s, m, dir := s3Serves(t), starts(t, t.TempDir(), quota), t.TempDir()
	m.put(t, "/registry/a", strings.Repeat("x", 1<<20))
	s.cutAfter.Store(100_000)
	j := saving(m, dir, "one")
	j.S3 = s.s3()
	a, err := asks(t, j)
	if err == nil || len(a.Entries) != 1 || a.Entries[0].S3() {
		t.Fatalf("%+v, %v", a, err)
	}
	t.Log(err)
	s.cutAfter.Store(0)
	listed, err := asks(t, etcdcare.Job{Do: etcdcare.List, S3: s.s3()})
	if err != nil || len(listed.Entries) != 1 || listed.Entries[0].State != etcdcare.Unfinished {
		t.Fatalf("%+v, %v", listed, err)
	}
	half := listed.Entries[0]
	if _, err := asks(t, etcdcare.Job{Do: etcdcare.Stage, S3: s.s3(), Where: []string{half.Where}, Staged: filepath.Join(t.TempDir(), "etcd"), Member: "node", Peer: "http://127.0.0.1:2380"}); err == nil {
		t.Error("it is restored")
	}
	if _, err := asks(t, etcdcare.Job{Do: etcdcare.Remove, S3: s.s3(), Where: []string{half.Where}}); err != nil {
		t.Fatal(err)
	}
	if l := lists(t, etcdcare.Job{S3: s.s3()}); len(l) != 0 {
		t.Errorf("%+v", l)
	}
}

func TestALargeSnapshotGoesInParts(t *testing.T) {
	s, m, dir := s3Serves(t), starts(t, t.TempDir(), quota), t.TempDir()
	for i := range 24 {
		m.put(t, fmt.Sprintf("/registry/%d", i), strings.Repeat("x", 1<<20))
	}
	// The second part is cut off: nothing of the first may be left for a snapshot.
	s.cutPart.Store(true)
	j := saving(m, dir, "one")
	j.S3 = s.s3()
	a, err := asks(t, j)
	if err == nil || len(a.Entries) != 1 {
		t.Fatalf("%+v, %v", a, err)
	}
	if l := lists(t, etcdcare.Job{S3: s.s3()}); l["one"].State != etcdcare.Unfinished {
		t.Errorf("%+v", l)
	}
	s.cutPart.Store(false)
	j.Snapshot.Name = "two"
	if a, err = asks(t, j); err != nil || len(a.Entries) != 2 || a.Entries[1].Bytes < 20<<20 {
		t.Fatalf("%+v, %v", a, err)
	}
	m.stop()
	restored, _ := restores(t, a.Entries[1].Where, m.dir, etcdcare.Job{S3: s.s3()})
	n := starts(t, restored, quota)
	if v := n.get(t, "/registry/23"); len(v) != 1<<20 {
		t.Errorf("it has %d bytes", len(v))
	}
}

func TestAnObjectThatHasChangedIsNotRestored(t *testing.T) {
	s, m, dir := s3Serves(t), starts(t, t.TempDir(), quota), t.TempDir()
	m.put(t, "/registry/a", "1")
	j := saving(m, dir, "one")
	j.S3 = s.s3()
	a, err := asks(t, j)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "one.db"))
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	put(t, s, "clusters/edge/node/one.db", raw)
	stage := etcdcare.Job{Do: etcdcare.Stage, S3: s.s3(), Where: []string{a.Entries[1].Where}, Staged: filepath.Join(t.TempDir(), "etcd"), Member: "node", Peer: "http://127.0.0.1:2380"}
	if _, err := asks(t, stage); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "corrupt") || exists(stage.Staged) || exists(stage.Staged+".download") {
		t.Errorf("one of the same size: %v", err)
	}
	put(t, s, "clusters/edge/node/one.db", raw[:1000])
	if l := lists(t, etcdcare.Job{S3: s.s3()}); l["one"].State != etcdcare.Corrupt {
		t.Errorf("a shorter one: %+v", l["one"])
	}
	// An object of somebody else is no snapshot.
	for _, key := range []string{"clusters/edge/node/readme.txt", "clusters/edge/config.json", "clusters/edge/node/deeper/x.db", "clusters/other/node/x.db", "x.db"} {
		put(t, s, key, []byte("hello"))
	}
	if l := lists(t, etcdcare.Job{S3: s.s3()}); len(l) != 1 {
		t.Errorf("%+v", l)
	}
}

// put writes an object as somebody else would.
func put(t *testing.T, s *farServer, key string, content []byte) {
	t.Helper()
	b, err := openBucket(s.s3())
	if err != nil {
		t.Fatal(err)
	}
	f := filepath.Join(t.TempDir(), "object")
	if err := os.WriteFile(f, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.put(context.Background(), key, f); err != nil {
		t.Fatal(err)
	}
}
