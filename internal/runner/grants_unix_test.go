//go:build unix

package runner

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/testenv"
)

// owned shows a file as Grant.String does.
func owned(t *testing.T, name string) string {
	t.Helper()
	st, err := os.Lstat(name)
	if err != nil {
		t.Fatal(err)
	}
	mode := uint32(st.Mode().Perm())
	if st.Mode()&fs.ModeSetgid != 0 {
		mode |= 0o2000
	}
	sys := st.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%04o %d:%d", mode, sys.Uid, sys.Gid)
}

func TestFilesAreGivenAndTakenBack(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, mode := range map[string]os.FileMode{"key": 0o600, "outside": 0o600, "db/state.db": 0o644, "manifests/mine.yaml": 0o600, "manifests/app/a.yaml": 0o600} {
		if err := os.MkdirAll(filepath.Dir(at(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at(name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../outside", at("db/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(at("manifests/mine.yaml"), 1234, 1234); err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		grants []component.Grant
		want   map[string]string
	}{
		{[]component.Grant{
			{Path: at("key"), UID: 0, GID: 70, Mode: 0o640},
			{Path: at("not-there"), UID: 70, GID: 70, Mode: 0o600},
			{Path: at("db"), UID: 71, GID: 72, Mode: fs.ModeSetgid | 0o750, Tree: true},
			{Path: at("manifests"), UID: component.KeepOwner, GID: 73, Mode: fs.ModeSetgid | 0o770, Tree: true},
		}, map[string]string{
			"key": "0640 0:70", "outside": "0600 0:0",
			"db": "2750 71:72", "db/state.db": "0644 71:72",
			"manifests": "2770 0:73", "manifests/mine.yaml": "0640 1234:73", "manifests/app": "0750 0:73", "manifests/app/a.yaml": "0640 0:73",
		}},
		{[]component.Grant{
			{Path: at("key"), Mode: 0o600},
			{Path: at("db"), Mode: 0o700, Tree: true},
			{Path: at("manifests"), UID: component.KeepOwner, Mode: 0o700, Tree: true, Former: []int{73}},
		}, map[string]string{
			"key": "0600 0:0", "outside": "0600 0:0",
			"db": "0700 0:0", "db/state.db": "0644 0:0",
			"manifests": "0700 0:0", "manifests/mine.yaml": "0640 1234:0", "manifests/app": "0750 0:0", "manifests/app/a.yaml": "0640 0:0", "manifests/mark": "0644 0:0",
		}},
	} {
		if err := Give(step.grants); err != nil {
			t.Fatal(err)
		}
		if i == 0 { // as the component does
			if err := os.WriteFile(at("manifests/mark"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(at("manifests/mark"), 73, 73); err != nil {
				t.Fatal(err)
			}
		}
		for name, want := range step.want {
			if got := owned(t, at(name)); got != want {
				t.Errorf("%s is %s, want %s", name, got, want)
			}
		}
	}
}

// Who owns a directory could otherwise make us give it any file of the same disk.
func TestWhatHasAnotherPlaceIsNotGivenAway(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	secret, db := filepath.Join(dir, "secret"), filepath.Join(dir, "db")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(db, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(secret, filepath.Join(db, "state.db")); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link.key")
	if err := os.Symlink(secret, link); err != nil {
		t.Fatal(err)
	}
	for _, g := range []component.Grant{{Path: db, UID: 70, GID: 70, Mode: 0o700, Tree: true}, {Path: link, UID: 70, GID: 70, Mode: 0o600}} {
		if err := Give([]component.Grant{g}); err == nil || !strings.Contains(err.Error(), "link") {
			t.Errorf("%s: error is %v", g.Path, err)
		}
	}
	if got := owned(t, secret); got != "0600 0:0" {
		t.Errorf("the file is %s", got)
	}
}
