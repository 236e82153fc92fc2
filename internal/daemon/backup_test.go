package daemon

import (
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
	"io/fs"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/backup"
	"k1s.io/k1s/internal/backup/dump"
	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/restore"
	"k1s.io/k1s/internal/rotation"
	"k1s.io/k1s/internal/step"
	"k1s.io/k1s/internal/token"
	"k1s.io/k1s/internal/version"
)

// copies is an applet that has a dump to give, and turns one into a database.
const copies = `read job
file=$(echo "$job" | sed 's/.*"file":"\([^"]*\)".*/\1/')
case "$job" in
*'"mode":"dump"'*) cp "$(dirname "$0")/dump" "$file"; echo '{"dumped":{"keys":1,"bytes":13,"revision":77}}';;
*'"mode":"load"'*) echo "$job" > "$(dirname "$0")/job"
	etcd=$(echo "$job" | sed -n 's/.*"etcd":"\([^"]*\)".*/\1/p'); [ -z "$etcd" ] || cp "$etcd" "$(dirname "$0")/etcd.yaml"
	[ ! -d "$(dirname "$file")/db" ] || cp "$file" "$(dirname "$file")/db/state.db"
	echo '{"warning":"as a test"}'; echo '{"result":{"rows":null,"targetRevision":100077}}';;
esac
`

// saved is a server, with everything a backup takes, and an archive of it.
func saved(t *testing.T, l backup.Lock) (in component.Input, file string) {
	t.Helper()
	in = careful(t, copies)
	in.Config.Spec.Datastore.Endpoint = "sqlite"
	in.Config.Spec.Cluster.Domain = "example.local"
	p := in.Paths
	if _, err := pki.Ensure(t.Context(), pki.Request{Paths: p, NodeName: "node", Domain: "cluster.local", NodeIP: in.Facts.NodeIP, Etcd: true, NoWorker: true}); err != nil {
		t.Logf("leaves are not issued: %v", err) // authorities are
	}
	for name, content := range map[string]string{
		"etc/config.yaml":     "apiVersion: k1s.io/v1alpha1\nkind: Config\nspec: {node: {ip: 192.0.2.1}, cluster: {domain: example.local}, datastore: {endpoint: sqlite}}\n",
		"etc/config.d/a.yaml": "apiVersion: k1s.io/v1alpha1\nkind: Config\nspec: {api: {port: 7443}}\n", "etc/admin.kubeconfig": "not in it", "etc/large": strings.Repeat("x", backup.MaxSmall+1),
		"manifests/app/a.yaml": "kind: A", "db/state.db": "the database", "elsewhere": "linked", "stacks/b/b.yaml": "kind: B", "stacks/b/more/c.yaml": "not read by anybody",
	} {
		if err := os.MkdirAll(filepath.Join(p.Data, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(p.Data, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(os.Symlink(p.Data+"/elsewhere", p.Manifests()+"/linked.yaml"), os.Symlink(p.Data+"/stacks/b", p.Manifests()+"/b"),
		os.Symlink("/nowhere", p.Config+"/lost.yaml"), os.Symlink("somebody@here", p.Manifests()+"/.#a.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := dump.NewWriter(&b)
	if err := w.Add(dump.Record{Key: "/registry/a", Value: []byte("12")}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(77); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in.Payload+"/dump", b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := collect(t.Context(), in, "", migration.Job{}, []string{"other"}, []string{"192.0.2.9:6443"})
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "a.tar.zst")
	write(t, file, c, l)
	if err := os.RemoveAll(c.Dir); err != nil {
		t.Fatal(err)
	}
	return in, file
}

func write(t *testing.T, file string, c control.Collected, l backup.Lock) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	err = backup.Write(f, c.Manifest, func(p backup.Part) (io.ReadCloser, error) { return os.Open(filepath.Join(c.Dir, p.Name)) }, l)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestABackupHasEverythingAndNamesWhatItHasNot(t *testing.T) {
	in, file := saved(t, backup.Lock{})
	m, err := VerifyBackup(file, backup.Key{})
	if err != nil {
		t.Fatal(err)
	}
	if m.CA != caPin(in.Paths) || m.Node != "node" || m.Store.Keys != 1 || m.Store.Revision != 77 || m.Store.Engine != "sqlite" || m.Servers[0] != "other" || string(m.Settings["spec.cluster.domain"]) != `"example.local"` {
		t.Errorf("%+v", m)
	}
	for _, name := range []string{"pki/ca.key", "pki/etcd/ca.key", "pki/sa.key", "config/config.yaml", "config/config.d/a.yaml", "manifests/app/a.yaml", "manifests/linked.yaml", "manifests/b/b.yaml"} {
		if !m.Has(name) {
			t.Errorf("it has no %s", name)
		}
	}
	for _, name := range []string{"config/admin.kubeconfig", "config/large", "config/lost.yaml", "manifests/b/more/c.yaml", "pki/apiserver.key"} {
		if m.Has(name) {
			t.Errorf("it has %s", name)
		}
	}
	if left := strings.Join(m.Left, "\n"); !strings.Contains(left, "large: it has 4096 KiB") || !strings.Contains(left, "lost.yaml: it leads nowhere") || !strings.Contains(left, "volumes") {
		t.Errorf("left: %s", left)
	}
	if dirs, _ := filepath.Glob(in.Paths.BackupStaging("*")); len(dirs) > 0 {
		t.Errorf("%q is left", dirs)
	}
}

// Who applies manifests, and who reads the configuration, follows these links.
func TestDirectoriesThatAreLinksAreBackedUp(t *testing.T) {
	in, _ := saved(t, backup.Lock{})
	p := in.Paths
	for _, dir := range []string{p.ConfigDropIns(), p.Config, p.Manifests()} {
		moved := filepath.Join(t.TempDir(), "moved")
		if err := errors.Join(os.Rename(dir, moved), os.Symlink(moved, dir)); err != nil {
			t.Fatal(err)
		}
	}
	c, err := collect(t.Context(), in, "", migration.Job{}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"config/config.yaml", "config/config.d/a.yaml", "manifests/app/a.yaml", "manifests/b/b.yaml", "manifests/linked.yaml"} {
		if !c.Manifest.Has(name) {
			t.Errorf("it has no %s", name)
		}
	}
	if c.Manifest.Has("config/admin.kubeconfig") {
		t.Error("it has the administrator's access")
	}
	// A stack that is away now would be removed from the restored cluster.
	for _, lost := range []string{p.Manifests() + "/c", p.Manifests() + "/app/c.yaml"} {
		if err := os.Symlink("/nowhere", lost); err != nil {
			t.Fatal(err)
		}
		if _, err := collect(t.Context(), in, "", migration.Job{}, nil, nil); err == nil || !strings.Contains(err.Error(), lost+" leads nowhere") {
			t.Errorf("%v", err)
		}
		if err := os.Remove(lost); err != nil {
			t.Fatal(err)
		}
	}
	if dirs, err := filepath.Glob(p.BackupStaging("*")); err != nil || len(dirs) != 1 {
		t.Errorf("%q are left, %v", dirs, err)
	}
}

func TestABackupWhoseKeysChangeMeanwhileIsNone(t *testing.T) {
	in, _ := saved(t, backup.Lock{})
	if err := os.MkdirAll(path.Dir(in.Paths.EncryptionKeys()), 0o700); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\necho '{}' > " + in.Paths.EncryptionKeys() + "\n" + copies
	if err := os.WriteFile(in.Payload+"/k1s-kube", []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := collect(t.Context(), in, "", migration.Job{}, nil, nil); err == nil || !strings.Contains(err.Error(), "changed while") {
		t.Errorf("%v", err)
	}
	if dirs, _ := filepath.Glob(in.Paths.BackupStaging("*")); len(dirs) > 0 {
		t.Errorf("%q is left", dirs)
	}
}

func TestAnArchiveOfAnotherAuthorityThanItSaysIsFound(t *testing.T) {
	in, _ := saved(t, backup.Lock{})
	c, err := collect(t.Context(), in, "x", migration.Job{}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "x.tar.zst")
	c.Manifest.CA = "c0ffee"
	write(t, file, c, backup.Lock{})
	if _, err := VerifyBackup(file, backup.Key{}); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "authority") {
		t.Errorf("%v", err)
	}
	if _, err := VerifyBackup(file+"x", backup.Key{}); !errs.Is(err, errs.NotFound) {
		t.Errorf("%v", err)
	}
}

// request is to restore an archive, with configurations as k1s server reads them.
func request(file string) RestoreRequest {
	return RestoreRequest{File: file, Config: ConfigAuto, Warn: func(string) {}, Load: func(file, dropIns string) (config.Config, error) {
		l, err := config.Effective(config.Sources{File: file, DropIns: dropIns}, config.Known{})
		return l.Config, err
	}}
}

// machine is an empty one.
func machine(t *testing.T) paths.Paths {
	t.Helper()
	dir := t.TempDir()
	return paths.Paths{Data: dir + "/data", Run: dir + "/run", Config: dir + "/etc"}
}

// decided is a plan for a machine.
func decided(t *testing.T, p paths.Paths, r RestoreRequest) (*unpackPlan, error) {
	t.Helper()
	k, err := peek(r.File, r.Key, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return decide(t.Context(), Options{Paths: p, Log: slog.New(slog.DiscardHandler)}, r, k)
}

// tree is everything below a directory.
func tree(t *testing.T, dirs ...string) string {
	t.Helper()
	var out strings.Builder
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(file string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() && !strings.HasSuffix(file, "/restore.json") && !strings.Contains(file, "/log/") {
				b, rerr := os.ReadFile(file)
				fmt.Fprintf(&out, "%s %q\n", strings.TrimPrefix(file, dir), b)
				err = rerr
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return out.String()
}

func TestAClusterComesBackOnAnEmptyMachine(t *testing.T) {
	from, file := saved(t, backup.Lock{})
	p := machine(t)
	u, err := decided(t, p, request(file))
	if err != nil {
		t.Fatal(err)
	}
	if u.Unfit != nil || u.Foreign || u.Archive != "" || u.Config != ConfigBackup || strings.Join(u.Written, " ") != "config.d/a.yaml config.yaml" || u.Datastore.Engine != "sqlite" || u.in.Config.Spec.API.Port != 7443 {
		t.Errorf("%+v", u.RestorePlan)
	}
	if exists(p.Data) || exists(p.Config) {
		t.Error("deciding changed something")
	}
	if err := allowedToUnpack(u, RestoreRequest{}); err != nil {
		t.Error(err)
	}
	s := unpack(t, p, u, from.Payload)
	if s.Phase != restore.Done || s.Revision != 100077 {
		t.Errorf("%+v", s)
	}
	if caPin(p) != caPin(from.Paths) {
		t.Error("it is another cluster")
	}
	if got := tree(t, p.Manifests(), p.Config); !strings.Contains(got, `/app/a.yaml "kind: A"`) || !strings.Contains(got, `/linked.yaml "linked"`) || !strings.Contains(got, `/b/b.yaml "kind: B"`) || !strings.Contains(got, "7443") {
		t.Errorf("it has:\n%s", got)
	}
	for file, want := range map[string]fs.FileMode{p.PKI("ca.key"): 0o600, p.PKI("ca.crt"): 0o644, p.Manifests() + "/app/a.yaml": 0o600} {
		if st, err := os.Stat(file); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", file, st, err)
		}
	}
	if left, _ := filepath.Glob(p.Data + "/*"); strings.Contains(strings.Join(left, " "), "restoring-") {
		t.Errorf("%q is left", left)
	}
	if _, err := os.Stat(p.Data + "/" + dumpFile); err == nil {
		t.Error("the dump is left")
	}
}

// unpack carries out a plan.
func unpack(t *testing.T, p paths.Paths, u *unpackPlan, payload string) restore.State[backup.Origin] {
	t.Helper()
	if err := os.MkdirAll(p.Data, 0o755); err != nil {
		t.Fatal(err)
	}
	u.in.Payload = payload
	s := begun(t, p, u)
	s, err := restore.Run(t.Context(), &unpacking{p: p, state: s, plan: u, warn: func(string) {}}, s)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func begun(t *testing.T, p paths.Paths, u *unpackPlan) restore.State[backup.Origin] {
	t.Helper()
	s, err := (restore.State[backup.Origin]{}).Begin(restore.State[backup.Origin]{ID: "1", From: u.Manifest.Origin(u.File), Archive: u.Archive, Old: u.aside, Staged: p.RestoreStaged("1")})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// used is a machine with a server of the cluster, and a configuration of its own.
func used(t *testing.T, from component.Input) paths.Paths {
	t.Helper()
	p := machine(t)
	for name, content := range map[string]string{
		"db/state.db": "of before", "etcd/member/x": "left by a migration", "datastore/migration.json": "{}", "server.json": "{}", "manifests/mine.yaml": "mine", "encryption/keys.json": "mine", "storage/volume": "stays", "pki/node.key": "the machine's",
	} {
		if err := errors.Join(os.MkdirAll(path.Join(p.Data, path.Dir(name)), 0o755), os.WriteFile(path.Join(p.Data, name), []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"ca.crt", "ca.key"} {
		b, err := os.ReadFile(from.Paths.PKI(f))
		if err = errors.Join(err, os.WriteFile(p.PKI(f), b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	text := "apiVersion: k1s.io/v1alpha1\nkind: Config\nspec: {node: {ip: 192.0.2.1}, datastore: {endpoint: sqlite}}\n"
	if err := errors.Join(os.MkdirAll(p.Config, 0o755), os.WriteFile(p.ConfigFile(), []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	return p
}

// A member of the cluster of before that still runs has the old cluster's IDs, and must not be let in.
func TestARestoredEtcdIsAnotherClusterThanBefore(t *testing.T) {
	from, file := saved(t, backup.Lock{})
	tokens := map[string]bool{}
	for range 2 {
		p, r := machine(t), request(file)
		r.To = &config.Datastore{Endpoint: "etcd"}
		u, err := decided(t, p, r)
		if err != nil {
			t.Fatal(err)
		}
		unpack(t, p, u, from.Payload)
		b, err := os.ReadFile(from.Payload + "/etcd.yaml")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "initial-cluster-token: restore-") {
				tokens[line] = true
			}
		}
	}
	if len(tokens) != 2 {
		t.Errorf("the tokens of two restores: %v", tokens)
	}
}

// loaded is the job by which the copier was told what to load.
func loaded(t *testing.T, payload string) migration.Job {
	t.Helper()
	b, err := os.ReadFile(payload + "/job")
	var j migration.Job
	if err = errors.Join(err, json.Unmarshal(b, &j)); err != nil {
		t.Fatal(err)
	}
	return j
}

// It may have been taken before the CA was replaced, or after that, whichever of the two the backup has.
func TestADatabaseOfOthersIsTheClustersByAnyCAItHad(t *testing.T) {
	from, _ := saved(t, backup.Lock{})
	before, newer := newAuthority(t), newAuthority(t)
	ca, err := os.ReadFile(from.Paths.PKI("ca.crt"))
	if err = errors.Join(err, os.WriteFile(pki.CrossFile(from.Paths), before.pem, 0o644)); err != nil {
		t.Fatal(err)
	}
	c, err := collect(t.Context(), from, "chained", migration.Job{}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := request(filepath.Join(t.TempDir(), "chained.tar.zst"))
	write(t, r.File, c, backup.Lock{})
	r.To = &config.Datastore{Endpoint: "https://192.0.2.7:2379"}
	for _, foreign := range []bool{false, true} {
		p := used(t, from)
		if err := errors.Join(os.WriteFile(p.PKI("ca.crt"), newer.pem, 0o600), os.WriteFile(pki.CrossFile(p), ca, 0o644)); err != nil {
			t.Fatal(err)
		}
		u, err := decided(t, p, r)
		if err != nil || u.Foreign {
			t.Fatalf("%v, %+v", err, u)
		}
		u.Foreign = foreign
		unpack(t, p, u, from.Payload)
		j := loaded(t, from.Payload)
		want := []string{token.Pin(before.cert), caPin(from.Paths), token.Pin(newer.cert)}
		for i, pin := range want {
			if got := slices.Contains(pki.PinsOf(j.Had), pin); got == (foreign && i == 2) {
				t.Errorf("foreign %t: CA %d is there: %t", foreign, i, got)
			}
		}
		if string(j.CA) != string(ca) || j.Node == "" || j.ID != migration.RestoreID(c.Manifest.ID(), j.Node) || !migration.HalfRestored(j.ID) {
			t.Errorf("%+v", j)
		}
	}
}

func TestWhatIsHereIsPutAside(t *testing.T) {
	from, file := saved(t, backup.Lock{})
	p := used(t, from)
	before := tree(t, p.Data)
	u, err := decided(t, p, request(file))
	if err != nil {
		t.Fatal(err)
	}
	if u.Foreign || u.Unfit != nil || u.Config != ConfigMachine || u.Archive == "" || strings.Join(u.Present, " ") != "pki encryption db etcd datastore server.json manifests" || strings.Join(u.Written, " ") != "config.d/zz-k1s-restored.yaml" {
		t.Errorf("%+v", u.RestorePlan)
	}
	if u.in.Config.Spec.Cluster.Domain != "example.local" { // the cluster's, of which this configuration says nothing
		t.Errorf("the domain is %q", u.in.Config.Spec.Cluster.Domain)
	}
	unpack(t, p, u, from.Payload)
	after := tree(t, u.Archive)
	for line := range strings.Lines(before) {
		if !strings.Contains(line, "/storage/") && !strings.Contains(after, line) {
			t.Errorf("it is gone: %s", line)
		}
	}
	if got := tree(t, p.Data+"/db", p.Data+"/etcd", p.Data+"/server.json", p.Data+"/encryption", p.Data+"/datastore", p.Data+"/storage", p.PKI("node.key")); !strings.Contains(got, "/volume \"stays\"") || !strings.Contains(got, "the machine's") || strings.Contains(got, "of before") || strings.Contains(got, "migration") {
		t.Errorf("it has:\n%s", got)
	}
	job, err := os.ReadFile(from.Payload + "/job")
	if err != nil || !strings.Contains(string(job), `"oldSQLite":"`+p.DB()+`/state.db"`) {
		t.Errorf("the copier was not told of the present datastore: %s, %v", job, err)
	}
	// And again, with what was restored.
	c, err := config.Effective(config.Sources{File: p.ConfigFile(), DropIns: p.ConfigDropIns()}, config.Known{})
	if err != nil || c.Config.Spec.Cluster.Domain != "example.local" {
		t.Errorf("%+v, %v", c.Config.Spec.Cluster, err)
	}
}

func TestASecondRestoreKeepsWhatTheFirstHasFoundMissing(t *testing.T) {
	from, file := saved(t, backup.Lock{})
	p := used(t, from)
	restored := func(file string) config.Config {
		t.Helper()
		u, err := decided(t, p, request(file))
		if err != nil || u.Unfit != nil {
			t.Fatalf("%v, %+v", err, u)
		}
		u.Archive += path.Base(file) // two in one second
		unpack(t, p, u, from.Payload)
		c, _, err := effective(p)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := restored(file); c.Spec.Cluster.Domain != "example.local" {
		t.Fatalf("%+v", c.Spec.Cluster)
	}
	for i, want := range []config.Config{{}, {}, {}} {
		want.Spec.Cluster.Domain, want.Spec.Cluster.Name = []string{"example.local", "other.local", "cluster.local"}[i], []string{"edge", "edge", "k1s"}[i]
		from.Config.Spec.Cluster.Domain, from.Config.Spec.Cluster.Name = want.Spec.Cluster.Domain, want.Spec.Cluster.Name
		c, err := collect(t.Context(), from, fmt.Sprint(i), migration.Job{}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		next := filepath.Join(t.TempDir(), fmt.Sprint(i))
		write(t, next, c, backup.Lock{})
		if got := restored(next); got.Spec.Cluster.Domain != want.Spec.Cluster.Domain || got.Spec.Cluster.Name != want.Spec.Cluster.Name {
			t.Errorf("%d: %+v, want %+v", i, got.Spec.Cluster, want.Spec.Cluster)
		}
	}
}

func TestWhatDoesNotFitHereIsNamedAndRefused(t *testing.T) {
	from, file := saved(t, backup.Lock{})
	p := used(t, from)
	other, _ := saved(t, backup.Lock{})
	for _, f := range []string{"ca.crt", "ca.key"} {
		b, err := os.ReadFile(other.Paths.PKI(f))
		if err = errors.Join(err, os.WriteFile(p.PKI(f), b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	u, err := decided(t, p, request(file))
	if err != nil || !u.Foreign || u.old.OldSQLite != "" {
		t.Fatalf("%v, %+v", err, u)
	}
	if err := allowedToUnpack(u, RestoreRequest{}); !errs.Is(err, errs.Exists) {
		t.Errorf("another cluster: %v", err)
	}
	if err := allowedToUnpack(u, RestoreRequest{Foreign: true}); err != nil {
		t.Errorf("%v", err)
	}
	u.FreeBytes, u.NeededBytes = 1<<20, 1<<30
	if err := allowedToUnpack(u, RestoreRequest{Foreign: true}); err == nil || !strings.Contains(err.Error(), "are free") {
		t.Errorf("a small disk: %v", err)
	}
	// Another domain on purpose.
	text := "apiVersion: k1s.io/v1alpha1\nkind: Config\nspec: {node: {ip: 192.0.2.1}, cluster: {domain: mine.local}}\n"
	if err := os.WriteFile(p.ConfigFile(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if u, err = decided(t, p, request(file)); err != nil || len(u.Unfit) != 1 || !strings.HasPrefix(u.Unfit[0], "spec.cluster.domain: ") {
		t.Errorf("%v, %+v", err, u)
	}
	if err := allowedToUnpack(u, RestoreRequest{Foreign: true}); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "spec.cluster.domain") {
		t.Errorf("%v", err)
	}
	r := request(file)
	r.Config = ConfigBackup
	if u, err = decided(t, p, r); err != nil || u.Unfit != nil || len(u.Written) != 2 {
		t.Errorf("with the backup's configuration: %v, %+v", err, u)
	}
	// What would count beside it, as a move of the datastore has left it.
	dropIn := p.DatastoreDropIn()
	if err := errors.Join(os.MkdirAll(path.Dir(dropIn), 0o755), os.WriteFile(dropIn, []byte("apiVersion: k1s.io/v1alpha1\nkind: Config\nspec: {datastore: {endpoint: etcd}}\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := decided(t, p, r); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "beside it: "+dropIn) || strings.Contains(err.Error(), p.ConfigFile()) {
		t.Errorf("with the backup's configuration: %v", err)
	}
	r.To = &config.Datastore{Endpoint: "sqlite"} // writes that file
	if _, err := decided(t, p, r); err != nil {
		t.Errorf("with the backup's configuration: %v", err)
	}
	r.To = nil
	if err := os.Remove(dropIn); err != nil {
		t.Fatal(err)
	}
	was := version.Kubernetes
	defer func() { version.Kubernetes = was }()
	k, err := peek(file, backup.Key{}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	k.manifest.Kubernetes, version.Kubernetes = "v1.37.0", "v1.36.3"
	if u, err = decide(t.Context(), Options{Paths: p, Log: slog.New(slog.DiscardHandler)}, r, k); err != nil || len(u.Unfit) != 1 || !strings.HasPrefix(u.Unfit[0], "kubernetes: ") {
		t.Errorf("an older k1s: %v, %+v", err, u)
	}
	p = machine(t)
	if err := errors.Join(os.MkdirAll(p.Data, 0o755), os.WriteFile(p.Agent(), []byte("{}"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := RestoreBackup(t.Context(), Options{Paths: p}, request(file), nil); !errs.Is(err, errs.Invalid) {
		t.Errorf("an agent: %v", err)
	}
}

func TestAMountOfItsOwnIsFoundWhateverIsInIt(t *testing.T) {
	const mounts = `22 1 8:1 / / rw - ext4 /dev/sda1 rw
40 22 8:2 / /var/lib/k1s rw - ext4 /dev/sdb1 rw
41 40 8:3 / /var/lib/k1s/etcd rw - ext4 /dev/sdc1 rw
42 22 8:4 / /var/lib/k1s-2/db rw - ext4 /dev/sdd1 rw
43 40 8:5 / /var/lib/k1s/storage rw - ext4 /dev/sde1 rw
`
	for dir, want := range map[string]string{"/var/lib/k1s": "etcd", "/var/lib/k1s-2": "db", "/var/lib": "", "/elsewhere": ""} {
		if got := mountedItem(mounts, dir, replaced); got != want {
			t.Errorf("%s: %q", dir, got)
		}
	}
	if got := mountedItem(mounts, "/var/lib/k1s", []string{"db"}); got != "" {
		t.Errorf("%q is not put aside", got)
	}
}

func TestAConfigurationThatCannotBeWrittenIsFoundInTime(t *testing.T) {
	from, file := saved(t, backup.Lock{})
	for _, to := range []config.DSN{"sqlite", "https://192.0.2.7:2379"} {
		t.Run(string(to), func(t *testing.T) {
			p, r := machine(t), request(file)
			r.To = &config.Datastore{Endpoint: to}
			if err := errors.Join(os.WriteFile(p.Config, nil, 0o600), os.MkdirAll(p.Data, 0o755), os.RemoveAll(path.Join(from.Payload, "job"))); err != nil {
				t.Fatal(err)
			}
			u, err := decided(t, p, r)
			if err != nil {
				t.Fatal(err)
			}
			u.in.Payload = from.Payload
			s := begun(t, p, u)
			s, err = restore.Run(t.Context(), &unpacking{p: p, state: s, plan: u, warn: func(string) {}}, s)
			if err == nil || s.Phase != restore.Failed || !strings.Contains(s.Error, "configuration") || exists(p.PKI("ca.crt")) {
				t.Errorf("%+v, %v", s, err)
			}
			// A database of others would not be empty any more.
			if exists(path.Join(from.Payload, "job")) {
				t.Error("the datastore was filled before")
			}
			if err := os.Remove(p.Config); err != nil {
				t.Fatal(err)
			}
			if u, err = decided(t, p, r); err != nil {
				t.Fatal(err)
			}
			unpack(t, p, u, from.Payload)
			if !exists(path.Join(from.Payload, "job")) || !exists(p.PKI("ca.crt")) || !exists(p.ConfigFile()) {
				t.Error("the same restore does not succeed with a configuration that can be written")
			}
		})
	}
	// One by one.
	dir := t.TempDir()
	now, next := path.Join(dir, "now"), path.Join(dir, "next")
	if err := errors.Join(os.WriteFile(now, []byte("a"), 0o600), os.WriteFile(next, []byte("b"), 0o600), os.Mkdir(path.Join(dir, "is"), 0o700)); err != nil {
		t.Fatal(err)
	}
	mounts := "41 40 8:3 /x " + now + " rw - ext4 /dev/sdc1 rw\n"
	for _, c := range []struct {
		mounts, file, want string
	}{{"", now, ""}, {"", path.Join(dir, "new/file"), ""}, {mounts, now, "mount of its own"}, {mounts, path.Join(dir, "other"), ""}, {"", path.Join(dir, "is"), "is a directory"}} {
		if err := mayReplace(c.mounts, c.file, next); (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.file, err)
		}
	}
	if err := os.WriteFile(next, []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := mayReplace(mounts, now, next); err != nil {
		t.Errorf("what is written already: %v", err)
	}
	if left, err := filepath.Glob(path.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("%q are left, %v", left, err)
	}
}

func TestAFileThatIsNoArchiveLeavesNothing(t *testing.T) {
	p, file := machine(t), filepath.Join(t.TempDir(), "a.tar.zst")
	if err := os.WriteFile(file, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := RestoreBackup(t.Context(), Options{Paths: p, Log: slog.New(slog.DiscardHandler)}, request(file), nil); !errs.Is(err, errs.Invalid) {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(path.Dir(p.Data)); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

func TestWhatAKilledRestoreLookedAtGoes(t *testing.T) {
	for name, clean := range map[string]func(p paths.Paths, file string) error{
		"the next restore": func(p paths.Paths, file string) error {
			if _, _, err := RestoreBackup(t.Context(), Options{Paths: p, Log: slog.New(slog.DiscardHandler)}, request(file), nil); !errs.Is(err, errs.Invalid) {
				return fmt.Errorf("it goes on: %w", err)
			}
			return nil
		},
		"a reset": func(p paths.Paths, _ string) error {
			all := ResetSteps(Options{Paths: p, Log: slog.New(slog.DiscardHandler)}, true)
			i := slices.IndexFunc(all, func(s step.Step) bool { return strings.Contains(s.Name, "looked at of backups") })
			if i < 0 {
				return errors.New("it has no such step")
			}
			return all[i].Do(t.Context())
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, file := machine(t), filepath.Join(t.TempDir(), "a.tar.zst")
			beside := path.Dir(p.Run)
			held, release, err := peekDir(t.Context(), p)
			err = errors.Join(err, os.MkdirAll(p.Run, 0o755), os.WriteFile(file, []byte("no archive"), 0o600))
			// With the lock of who was killed, and before it had one; a restore that runs, and what is not of a restore, stay.
			for _, dir := range []string{beside + "/k1s-backup-restore-1/config", p.Run + "/k1s-backup-restore-2", p.Run + "/elsewhere"} {
				err = errors.Join(err, os.MkdirAll(dir, 0o700), os.WriteFile(dir+"/lock", nil, 0o600), os.WriteFile(dir+"/config.yaml", []byte("a password"), 0o600))
			}
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := clean(p, file); err != nil {
					t.Fatal(err)
				}
				if exists(beside+"/k1s-backup-restore-1") || exists(p.Run+"/k1s-backup-restore-2") || !exists(held+"/lock") || !exists(p.Run+"/elsewhere/config.yaml") {
					t.Errorf("what is there:\n%s", tree(t, beside))
				}
			}
			if err := release(); err != nil || exists(held) {
				t.Errorf("it is left, %v", err)
			}
			if left, err := os.ReadDir(beside); err != nil || len(left) != 1 {
				t.Errorf("%v is left, %v", left, err)
			}
		})
	}
}

func TestASnapshotThatIsHalfInItsPlaceIsSaid(t *testing.T) {
	from, file := saved(t, backup.Lock{})
	p := used(t, from)
	for phase, refused := range map[restore.Phase]bool{restore.Staging: false, restore.Finishing: false, restore.Switching: true, restore.Reverting: true, restore.Starting: false, restore.Done: false, restore.Failed: false} {
		if err := os.WriteFile(p.EtcdRestore(), etcdcare.Restore{ID: "1", Phase: phase}.Marshal(), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := snapshotInPlace(p); errs.Is(err, errs.Exists) != refused || (err != nil) != refused {
			t.Errorf("%s: %v", phase, err)
		}
		if !refused {
			continue
		}
		for _, dry := range []bool{true, false} {
			r := request(file)
			r.DryRun = dry
			if _, _, err := RestoreBackup(t.Context(), Options{Paths: p, Log: slog.New(slog.DiscardHandler)}, r, nil); !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), "a snapshot of etcd") {
				t.Errorf("%s: %v", phase, err)
			}
		}
	}
}

func TestTheDatastoreToRestoreToIsAsked(t *testing.T) {
	_, file := saved(t, backup.Lock{})
	p, r := machine(t), request(file)
	r.To = &config.Datastore{Endpoint: "etcd"}
	u, err := decided(t, p, r)
	if err != nil || u.Datastore.Engine != "etcd" || strings.Join(u.Written, " ") != "config.d/a.yaml config.d/zz-k1s-datastore.yaml config.yaml" {
		t.Fatalf("%v, %+v", err, u)
	}
	load := r.Load
	r.Load = func(file, dropIns string) (config.Config, error) {
		c, err := load(file, dropIns)
		c.Spec.Datastore.Endpoint = "sqlite" // as by the environment
		return c, err
	}
	if _, err := decided(t, p, r); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "stronger") {
		t.Errorf("%v", err)
	}
	if b := settingsDropIn(map[string]json.RawMessage{"spec.cluster.domain": json.RawMessage(`"x"`), "spec.cluster.name": json.RawMessage(`"y"`), "spec.network.mtu": json.RawMessage(`3`)}); !strings.Contains(string(b), `"domain": "x"`) || !strings.Contains(string(b), `"mtu": 3`) {
		t.Errorf("%s", b)
	}
}

var errCut = errors.New("killed")

// TestARestoreKilledAnywhereIsTheOldStateOrTheNewOne ends the process before every deed of putting the new state in its place, and the start
// after it before every deed of what that does.
func TestARestoreKilledAnywhereIsTheOldStateOrTheNewOne(t *testing.T) {
	from, file := saved(t, backup.Lock{})
	for name, model := range map[string]func() paths.Paths{
		"a machine that has everything": func() paths.Paths { return used(t, from) },
		"an empty machine":              func() paths.Paths { return machine(t) },
		// What the backup has and the machine had not must never be taken for the old state.
		"a machine that lacks what the backup has": func() paths.Paths {
			p := used(t, from)
			if err := errors.Join(os.RemoveAll(p.DB()), os.RemoveAll(p.Manifests())); err != nil {
				t.Fatal(err)
			}
			return p
		},
		"a machine with an empty directory": func() paths.Paths {
			p := machine(t)
			if err := os.MkdirAll(p.Manifests(), 0o755); err != nil {
				t.Fatal(err)
			}
			return p
		},
	} {
		t.Run(name, func(t *testing.T) { killedAnywhere(t, from, file, model()) })
	}
	// Before that it is as if nothing had been.
	for _, phase := range []restore.Phase{restore.Staging, restore.Pausing, restore.Finishing} {
		p := used(t, from)
		was := tree(t, p.Data, p.Config)
		u, err := decided(t, p, request(file))
		if err != nil {
			t.Fatal(err)
		}
		s := begun(t, p, u)
		s.Phase = phase
		w := &unpacking{p: p, state: s, plan: u}
		if err := errors.Join(os.MkdirAll(s.Staged+"/pki", 0o700), os.WriteFile(s.Staged+"/pki/ca.crt", nil, 0o600), os.MkdirAll(s.Archive+"/config", 0o700), w.Keep(s)); err != nil {
			t.Fatal(err)
		}
		if ended, err := FinishRestore(t.Context(), p, slog.New(slog.DiscardHandler)); err != nil || !ended {
			t.Fatal(ended, err)
		}
		if err := os.Remove(p.Lock()); err != nil { // what is left of the start
			t.Fatal(err)
		}
		if got := tree(t, p.Data, p.Config); got != was {
			t.Errorf("%s: it has:\n%s\nwant:\n%s", phase, got, was)
		}
		if exists(s.Staged) || exists(s.Archive) {
			t.Errorf("%s: something is left", phase)
		}
		if kept, err := readUnpacking(p); err != nil || kept.Phase != restore.Failed {
			t.Errorf("%s: %+v, %v", phase, kept, err)
		}
	}
}

// brokenOff is a machine on which a restore has the point of no return behind it, and changes the configuration.
func brokenOff(t *testing.T) paths.Paths {
	t.Helper()
	from, file := saved(t, backup.Lock{})
	p, r := used(t, from), request(file)
	r.Config = ConfigBackup
	u, err := decided(t, p, r)
	if err != nil {
		t.Fatal(err)
	}
	u.in.Payload = from.Payload
	s := begun(t, p, u)
	if s, err = restore.Run(t.Context(), &unpacking{p: p, state: s, plan: u, warn: func(string) {}, before: func() error { return errCut }}, s); !errors.Is(err, errCut) || !s.Committed() {
		t.Fatalf("%+v, %v", s, err)
	}
	return p
}

// effective is the configuration of a machine as its next start reads it.
func effective(p paths.Paths) (config.Config, config.Origins, error) {
	l, err := config.Effective(config.Sources{File: p.ConfigFile(), DropIns: p.ConfigDropIns()}, config.Known{})
	return l.Config, l.Origins, err
}

func TestNothingRunsWithTheConfigurationOfBeforeARestore(t *testing.T) {
	p := brokenOff(t)
	before, _, err := effective(p)
	if err != nil || before.Spec.API.Port == 7443 {
		t.Fatalf("%+v, %v", before.Spec.API, err)
	}
	o := Options{Config: before, Paths: p, Log: slog.New(slog.DiscardHandler)}
	if err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "after the configuration had been read") {
		t.Errorf("%v", err)
	}
	if kept, err := readUnpacking(p); err != nil || kept.Phase != restore.Done {
		t.Errorf("%+v, %v", kept, err)
	}
	if after, _, err := effective(p); err != nil || after.Spec.API.Port != 7443 {
		t.Errorf("%+v, %v", after.Spec.API, err)
	}
	// What works while nothing runs reads it again.
	p = brokenOff(t)
	o = Options{Config: before, Paths: p, Log: o.Log, Reload: func() (config.Config, config.Origins, error) { return effective(p) }}
	unlock, _, err := quiet(t.Context(), &o)
	if err == nil {
		unlock()
	}
	if o.Config.Spec.API.Port != 7443 {
		t.Errorf("%+v, %v", o.Config.Spec.API, err)
	}
}

// Whatever works while nothing runs brings it to its end first.
func TestARestoreThatBrokeOffEndsBeforeAnythingElse(t *testing.T) {
	options := func(p paths.Paths) Options {
		return Options{Paths: p, Log: slog.New(slog.DiscardHandler), Reload: func() (config.Config, config.Origins, error) { return effective(p) }}
	}
	p := brokenOff(t)
	if _, err := RestoreOffline(t.Context(), options(p), control.RestoreRequest{Snapshot: "a", DryRun: true}, nil); !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), "has broken off") {
		t.Errorf("only looking: %v", err)
	}
	if kept, err := readUnpacking(p); err != nil || kept.Phase != restore.Switching {
		t.Errorf("only looking: %+v, %v", kept, err)
	}
	// There is no program to go on with in this test.
	if _, err := RestoreOffline(t.Context(), options(p), control.RestoreRequest{Snapshot: "a"}, nil); err == nil {
		t.Error("it has restored something")
	}
	if kept, err := readUnpacking(p); err != nil || kept.Phase != restore.Done {
		t.Errorf("%+v, %v", kept, err)
	}
	// Killed when the keys of before have been put aside.
	p = brokenOff(t)
	s, err := readUnpacking(p)
	if err = errors.Join(err, os.Rename(p.PKI(""), path.Join(s.Archive, "pki"))); err != nil {
		t.Fatal(err)
	}
	if _, err := CollectOffline(t.Context(), options(p), control.BackupRequest{}); err == nil || errs.Is(err, errs.NotRunning) {
		t.Errorf("%v", err)
	}
	if kept, err := readUnpacking(p); err != nil || kept.Phase != restore.Done || !exists(p.PKI("ca.key")) {
		t.Errorf("%+v, %v", kept, err)
	}
	if _, err := CollectOffline(t.Context(), options(machine(t)), control.BackupRequest{}); !errs.Is(err, errs.NotRunning) {
		t.Errorf("an empty machine: %v", err)
	}
}

func TestWhoCannotTakeTheDataDirectoryLetsItGo(t *testing.T) {
	p := machine(t)
	if err := errors.Join(os.MkdirAll(p.Data, 0o755), os.WriteFile(p.Restore(), []byte("damaged"), 0o600)); err != nil {
		t.Fatal(err)
	}
	o := Options{Paths: p, Log: slog.New(slog.DiscardHandler)}
	if _, _, err := quiet(t.Context(), &o); err == nil || !strings.Contains(err.Error(), "how far the last restore of a backup came") {
		t.Errorf("%v", err)
	}
	unlock, err := lock(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// killedAnywhere restores to a machine again and again.
func killedAnywhere(t *testing.T, from component.Input, file string, model paths.Paths) {
	cut := func(n int) func() error {
		return func() error {
			if n--; n == 0 {
				return errCut
			}
			return nil
		}
	}
	// What there is when the new state is about to take its place, and when it has.
	was := tree(t, model.Data)
	u, err := decided(t, model, request(file))
	if err != nil {
		t.Fatal(err)
	}
	u.in.Payload = from.Payload
	s := begun(t, model, u)
	if err := os.MkdirAll(model.Data, 0o755); err != nil {
		t.Fatal(err)
	}
	if s, err = restore.Run(t.Context(), &unpacking{p: model, state: s, plan: u, warn: func(string) {}, before: cut(1)}, s); !errors.Is(err, errCut) || !s.Committed() {
		t.Fatalf("%+v, %v", s, err)
	}
	fresh := func() (paths.Paths, restore.State[backup.Origin]) {
		t.Helper()
		p, s := machine(t), s
		if err := errors.Join(os.CopyFS(p.Data, os.DirFS(model.Data)), os.CopyFS(p.Config, os.DirFS(model.Config))); err != nil {
			t.Fatal(err)
		}
		if s.Staged = p.Data + strings.TrimPrefix(s.Staged, model.Data); s.Archive != "" {
			s.Archive = p.Data + strings.TrimPrefix(s.Archive, model.Data)
		}
		return p, s
	}
	state := func(p paths.Paths) string {
		return tree(t, p.Data+"/pki", p.Data+"/db", p.Data+"/etcd", p.Data+"/server.json", p.Manifests(), p.Config)
	}
	done, end := fresh()
	if _, err := restore.Run(t.Context(), &unpacking{p: done, state: end}, end); err != nil {
		t.Fatal(err)
	}
	whole := state(done)
	for at := 1; ; at++ {
		over := false
		for again := 1 + at%3; ; again += 3 { // all of them take long on a slow disk; over all deeds every pair of neighbours comes
			p, s := fresh()
			if _, err = restore.Run(t.Context(), &unpacking{p: p, state: s, before: cut(at)}, s); err == nil {
				over = true
				break
			}
			kept, rerr := readUnpacking(p)
			if !errors.Is(err, errCut) || rerr != nil || !kept.Committed() {
				t.Fatalf("%v, %+v, %v", err, kept, rerr)
			}
			_, err = restore.Recover(&unpacking{p: p, state: kept, before: cut(again)}, kept)
			killed := errors.Is(err, errCut)
			if err != nil && !killed {
				t.Fatal(err)
			}
			if _, err := endRestore(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			if got := state(p); got != whole {
				t.Errorf("killed before deed %d and %d it has:\n%s\nwant:\n%s", at, again, got, whole)
			}
			aside := tree(t, s.Archive)
			for line := range strings.Lines(was) {
				if !strings.Contains(line, "/storage/") && !strings.Contains(aside, line) {
					t.Errorf("killed before deed %d and %d it is gone: %s", at, again, line)
				}
			}
			if exists(s.Staged) || exists(s.Staged+switchedEnd) {
				t.Errorf("killed before deed %d and %d something is left", at, again)
			}
			if !killed {
				break
			}
		}
		if over {
			if at < 8 {
				t.Errorf("there are only %d deeds", at)
			}
			break
		}
	}
}

func TestARestoreThatCannotLoadLeavesWhatWas(t *testing.T) {
	from, file := saved(t, backup.Lock{})
	p := used(t, from)
	was := tree(t, p.Data+"/pki", p.Data+"/db", p.Manifests(), p.Config)
	u, err := decided(t, p, request(file))
	if err != nil {
		t.Fatal(err)
	}
	bad := careful(t, `read job; echo "error: datastore-copy: no space left on device" >&2; exit 1`)
	u.in.Payload = bad.Payload
	s := begun(t, p, u)
	if s, err = restore.Run(t.Context(), &unpacking{p: p, state: s, plan: u, warn: func(string) {}}, s); err == nil || s.Phase != restore.Failed || !strings.Contains(s.Error, "no space left") {
		t.Errorf("%+v, %v", s, err)
	}
	if got := tree(t, p.Data+"/pki", p.Data+"/db", p.Manifests(), p.Config); got != was || exists(s.Staged) || exists(s.Archive) {
		t.Errorf("it has:\n%s\nwant:\n%s", got, was)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	u.in.Payload = from.Payload
	if s, err = restore.Run(ctx, &unpacking{p: p, state: begun(t, p, u), plan: u, warn: func(string) {}}, begun(t, p, u)); err == nil || s.Phase != restore.Failed {
		t.Errorf("%+v, %v", s, err)
	}
	// Another file than the one that was looked at.
	_, other := saved(t, backup.Lock{})
	u.File = other
	if s, err = restore.Run(t.Context(), &unpacking{p: p, state: begun(t, p, u), plan: u, warn: func(string) {}}, begun(t, p, u)); err == nil || !strings.Contains(err.Error(), "changed while") {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestNothingIsBackedUpWhileAuthoritiesAreReplaced(t *testing.T) {
	in, _ := saved(t, backup.Lock{})
	if err := keepRotation(in.Paths, rotation.State{Number: 1, Stage: rotation.Overlapping, Authorities: []rotation.Authority{{Name: pki.CA, Old: "a", New: "b"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := collect(t.Context(), in, "", migration.Job{}, nil, nil); !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), "being replaced") {
		t.Errorf("%v", err)
	}
	if dirs, _ := filepath.Glob(in.Paths.BackupStaging("*")); len(dirs) > 0 {
		t.Errorf("%q is left", dirs)
	}
	if err := keepRotation(in.Paths, rotation.State{Number: 1, Ended: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if c, err := collect(t.Context(), in, "", migration.Job{}, nil, nil); err != nil || !exists(c.Dir) {
		t.Errorf("after it: %v", err)
	}
}

// issuer is an authority of its own, and what it signs.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func sign(t *testing.T, c *x509.Certificate, by *issuer) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber, c.NotAfter = big.NewInt(1), time.Now().Add(time.Hour)
	parent, signer := c, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &issuer{c, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func newAuthority(t *testing.T) *issuer {
	t.Helper()
	return sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
}

func TestAClusterWhoseAuthorityWasReplacedIsTheSame(t *testing.T) {
	from, file := saved(t, backup.Lock{})
	p := used(t, from)
	newer := newAuthority(t)
	old, err := os.ReadFile(p.PKI("ca.crt"))
	if err = errors.Join(err, os.WriteFile(p.PKI("ca.crt"), newer.pem, 0o600)); err != nil {
		t.Fatal(err)
	}
	if u, err := decided(t, p, request(file)); err != nil || !u.Foreign || u.Replaced {
		t.Errorf("nothing leads from one to the other: %v, %+v", err, u)
	}
	if err := os.WriteFile(pki.CrossFile(p), old, 0o644); err != nil {
		t.Fatal(err)
	}
	u, err := decided(t, p, request(file))
	if err != nil || u.Foreign || !u.Replaced || u.old.OldSQLite == "" {
		t.Fatalf("%v, %+v", err, u)
	}
	// Pods that run on have tokens of the present key.
	key, err := os.ReadFile(from.Paths.PKI("sa.pub"))
	if err != nil {
		t.Fatal(err)
	}
	present := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte("the present key")})
	if err := os.WriteFile(p.PKI("sa.pub"), slices.Concat(present, key), 0o644); err != nil {
		t.Fatal(err)
	}
	unpack(t, p, u, from.Payload)
	if got, err := os.ReadFile(p.PKI("sa.pub")); err != nil || string(got) != string(slices.Concat(key, present)) {
		t.Errorf("%v, it has:\n%s", err, got)
	}
	// The other way round: the backup is the newer one.
	c, err := collect(t.Context(), from, "newer", migration.Job{}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(c.Manifest.Parts, func(p backup.Part) bool { return p.Name == "pki/ca-cross.pem" }) {
		t.Error("it has a chain")
	}
	if err := os.WriteFile(pki.CrossFile(from.Paths), newer.pem, 0o644); err != nil { // the other authority was before this one
		t.Fatal(err)
	}
	if c, err = collect(t.Context(), from, "newer", migration.Job{}, nil, nil); err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(t.TempDir(), "b.tar.zst")
	write(t, again, c, backup.Lock{})
	p = used(t, from)
	if err := os.WriteFile(p.PKI("ca.crt"), newer.pem, 0o600); err != nil {
		t.Fatal(err)
	}
	if u, err := decided(t, p, request(again)); err != nil || u.Foreign || !u.Replaced {
		t.Errorf("%v, %+v", err, u)
	}
}

func TestServersThatRunOnAreFound(t *testing.T) {
	ours, other := newAuthority(t), newAuthority(t)
	serve := func(by *issuer, name string) string {
		t.Helper()
		leaf := sign(t, &x509.Certificate{DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, by)
		s := httptest.NewUnstartedServer(http.NotFoundHandler())
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.cert.Raw}, PrivateKey: leaf.key}}}
		s.StartTLS()
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	runs := serve(ours, "kubernetes.default.svc")
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	cas := x509.NewCertPool()
	cas.AppendCertsFromPEM(ours.pem)
	addrs := []string{serve(other, "kubernetes.default.svc"), runs, serve(ours, "etcd"), gone.Listener.Addr().String()}
	if got := answering(t.Context(), cas, addrs); len(got) != 1 || got[0] != runs {
		t.Errorf("%q run, and it is %q", got, runs)
	}
	here := []net.Addr{&net.IPNet{IP: net.ParseIP("192.0.2.1"), Mask: net.CIDRMask(24, 32)}}
	if got := elsewhere([]string{"192.0.2.1:6443", "192.0.2.2:6443", "no address", "192.0.2.2:6443"}, here); len(got) != 1 || got[0] != "192.0.2.2:6443" {
		t.Errorf("%q", got)
	}
	from, file := saved(t, backup.Lock{})
	if m, err := VerifyBackup(file, backup.Key{}); err != nil || !slices.Contains(m.Addresses, "192.0.2.9:6443") {
		t.Errorf("%v, %q", err, m.Addresses)
	}
	p := used(t, from)
	if err := os.WriteFile(p.EncryptionServers(), []byte("192.0.2.3:6443\n192.0.2.2:6443\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.Server(), []byte(`{"joined": {"servers": ["192.0.2.2:6443"]}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(knownServers(p), " "); got != "192.0.2.2:6443 192.0.2.3:6443" {
		t.Errorf("known: %s", got)
	}
	u, err := decided(t, p, request(file))
	if err != nil {
		t.Fatal(err)
	}
	u.Running = []string{"192.0.2.2:6443"}
	if err := allowedToUnpack(u, RestoreRequest{}); !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), "192.0.2.2:6443") {
		t.Errorf("%v", err)
	}
	if err := allowedToUnpack(u, RestoreRequest{Alone: true}); err != nil {
		t.Error(err)
	}
}
