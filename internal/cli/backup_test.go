package cli

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k1s.io/k1s/internal/backup"
	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/iostreams"
	"k1s.io/k1s/internal/paths"
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

// running is a node that gathers its state in a directory.
type running struct {
	control.Backend
	dir string
}

func (r running) CollectBackup(context.Context, control.BackupRequest) (control.Collected, error) {
	return control.Collected{Dir: r.dir}, os.MkdirAll(r.dir, 0o700)
}

// K1S_DATA_DIR leads to a state that was put aside, and the socket to who runs on the present one.
func TestAnotherStateThanWasAskedForIsNoBackup(t *testing.T) {
	dir := t.TempDir()
	p := paths.Paths{Data: filepath.Join(dir, "data", "before"), Run: dir, Config: filepath.Join(dir, "etc")}
	node := running{dir: filepath.Join(dir, "data", "backup-making-1")}
	if err := os.MkdirAll(p.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", p.ControlSocket())
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(control.Handler(slog.New(slog.DiscardHandler), node))
	s.Listener.Close()
	s.Listener = l
	s.Start()
	defer s.Close()
	deps := Deps{Paths: func() paths.Paths { return p }, Environ: func() []string { return nil }, Streams: iostreams.Streams{Out: io.Discard, ErrOut: io.Discard}}
	err = runBackupCreate(t.Context(), backupCreateOptions{deps: deps, format: printer.Table})
	if !errs.Is(err, errs.Exists) || !strings.Contains(err.Error(), "another data directory") {
		t.Errorf("%v", err)
	}
	if fileExists(node.dir) || fileExists(p.Backups()) {
		t.Error("something is left")
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Dir(p.Data), link); err != nil {
		t.Fatal(err)
	}
	for _, same := range []string{filepath.Dir(p.Data), link, link + "/"} {
		if err := gatheredIn(same, control.Collected{Dir: node.dir}); err != nil {
			t.Errorf("%s: %v", same, err)
		}
	}
}
