package cli

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/backup"
	"k1s.io/k1s/internal/backup/dump"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/iostreams"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/printer"
)

// Whoever may write to the directory of archives could have put something where one is going to be written.
func TestAnArchiveIsWrittenToAFileThatWasNotThere(t *testing.T) {
	dir := t.TempDir()
	file, victim := filepath.Join(dir, "a"+backup.FileEnd), filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("stays"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(dir, "."+filepath.Base(file)+backup.PartEnd)); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for range 2 {
		f, err := newPart(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st, err)
		}
		if ok, err := filepath.Match(".*"+backup.FileEnd+"*"+backup.PartEnd, filepath.Base(f.Name())); err != nil || !ok {
			t.Errorf("retention does not find %s", f.Name())
		}
		if e, ok := backup.ParseFile(f.Name(), st.ModTime()); ok {
			t.Errorf("it is taken for an archive: %+v", e)
		}
		names[f.Name()] = true
	}
	if b, err := os.ReadFile(victim); err != nil || string(b) != "stays" || len(names) != 2 {
		t.Errorf("%q, %v, %v", b, err, names)
	}
}

func TestOfTwoArchivesOfOneNameOneIsWritten(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a"+backup.FileEnd)
	for i, want := range []bool{true, false} {
		f, err := newPart(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString([]string{"first", "second"}[i]); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := giveName(f.Name(), file); (err == nil) != want || err != nil && !errs.Is(err, errs.Exists) {
			t.Errorf("%d: %v", i, err)
		}
		if fileExists(f.Name()) == want {
			t.Errorf("%d: the file on the way is there: %t", i, !want)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "first" {
		t.Errorf("%q, %v", b, err)
	}
}

// running is a node that gathers its state.
type running struct {
	control.Backend
	gather func() (control.Collected, error)
}

func (r running) CollectBackup(context.Context, control.BackupRequest) (control.Collected, error) {
	return r.gather()
}

// node runs one, of which the command knows these places.
func node(t *testing.T, p paths.Paths, gather func() (control.Collected, error)) Deps {
	t.Helper()
	l, err := net.Listen("unix", p.ControlSocket())
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(control.Handler(slog.New(slog.DiscardHandler), running{gather: gather}))
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return Deps{Paths: func() paths.Paths { return p }, Environ: func() []string { return nil }, Streams: iostreams.Streams{Out: io.Discard, ErrOut: io.Discard}}
}

// gathered is a state, whose cluster had the CAs in a PEM file.
func gathered(dir, ca string, before []byte, at time.Time) (control.Collected, error) {
	var b bytes.Buffer
	w := dump.NewWriter(&b)
	sum, err := w.Close(1)
	if err != nil {
		return control.Collected{}, err
	}
	c := control.Collected{Dir: dir, Manifest: backup.Manifest{
		Format: backup.Format, Name: backup.NewName("node", at), At: at, Node: "node", CA: ca, Kubernetes: "v1.36.3", Store: backup.Store{Summary: sum},
	}}
	for name, content := range map[string][]byte{
		backup.Datastore: b.Bytes(), "pki/ca.crt": nil, "pki/ca.key": nil, "pki/sa.key": nil, "pki/sa.pub": nil, "pki/ca-cross.pem": before,
	} {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, content, 0o600)); err != nil {
			return c, err
		}
		part, err := backup.Sum(name, bytes.NewReader(content))
		if err != nil {
			return c, err
		}
		c.Manifest.Parts = append(c.Manifest.Parts, part)
	}
	return c, nil
}

// The clock was ahead when the first was made, and the CA has been replaced since.
func TestWhatWasJustMadeTakesThePlaceOfWhatWasBefore(t *testing.T) {
	dir := t.TempDir()
	p := paths.Paths{Data: filepath.Join(dir, "data"), Run: dir, Config: filepath.Join(dir, "etc")}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	old := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	made := []struct {
		ca     string
		before []byte
		at     time.Time
	}{{pki.PinsOf(old)[0], nil, now.AddDate(1, 0, 0)}, {"another cluster's", nil, now.AddDate(2, 0, 0)}, {"the new one", old, now}}
	n := 0
	deps := node(t, p, func() (control.Collected, error) {
		m := made[n]
		return gathered(filepath.Join(p.Data, "backup-making-1"), m.ca, m.before, m.at)
	})
	for n = range made {
		if err := runBackupCreate(t.Context(), backupCreateOptions{deps: deps, format: printer.Table, keep: 1}); err != nil {
			t.Fatal(err)
		}
	}
	all, err := listBackups(p.Backups())
	if err != nil || len(all) != 2 || all[0].Manifest.CA != "another cluster's" || all[1].Manifest.CA != "the new one" {
		t.Errorf("%+v, %v", all, err)
	}
}

// K1S_DATA_DIR leads to a state that was put aside, and the socket to who runs on the present one.
func TestAnotherStateThanWasAskedForIsNoBackup(t *testing.T) {
	dir := t.TempDir()
	p := paths.Paths{Data: filepath.Join(dir, "data", "before"), Run: dir, Config: filepath.Join(dir, "etc")}
	making := filepath.Join(dir, "data", "backup-making-1")
	if err := os.MkdirAll(p.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	deps := node(t, p, func() (control.Collected, error) { return gathered(making, "ca", nil, time.Now()) })
	err := runBackupCreate(t.Context(), backupCreateOptions{deps: deps, format: printer.Table})
	if !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), "another data directory") {
		t.Errorf("%v", err)
	}
	if fileExists(making) || fileExists(p.Backups()) {
		t.Error("something is left")
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Dir(p.Data), link); err != nil {
		t.Fatal(err)
	}
	for _, same := range []string{filepath.Dir(p.Data), link, link + "/"} {
		if err := gatheredIn(same, control.Collected{Dir: making}); err != nil {
			t.Errorf("%s: %v", same, err)
		}
	}
}
