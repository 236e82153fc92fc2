package platform

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/testenv"
)

// passable is a directory that everybody may pass through.
func passable(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAProcessRunsAsAUserWithTheRightsItWasGivenAndNoOthers(t *testing.T) {
	testenv.Root(t)
	for _, c := range []struct {
		user component.User
		want map[string]string
	}{
		{component.User{UID: 61104, GID: 61104}, map[string]string{"Uid": "61104 61104 61104 61104", "Groups": "", "CapEff": "0000000000000000", "CapPrm": "0000000000000000"}},
		{component.User{UID: 61102, GID: 61102, Groups: []int{61100}, BindLowPorts: true},
			map[string]string{"Uid": "61102 61102 61102 61102", "Groups": "61100", "CapEff": "0000000000000400", "CapPrm": "0000000000000400"}},
	} {
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		p, err := NewProcesses().Start(Command{Argv: []string{"/bin/cat", "/proc/self/status"}, Output: out, User: &c.user})
		if err != nil {
			t.Fatal(err)
		}
		if e, err := p.Wait(t.Context()); err != nil || e.Code != 0 {
			t.Fatalf("it %v, %v", e, err)
		}
		raw, err := os.ReadFile(out.Name())
		if err := errors.Join(err, p.Close(), out.Close()); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			name, value, _ := strings.Cut(line, ":")
			if want, ok := c.want[name]; ok && strings.Join(strings.Fields(value), " ") != want {
				t.Errorf("%s: %s is %q, want %q", c.user, name, strings.TrimSpace(value), want)
			}
		}
	}
}

func TestAUserReadsWhatItMay(t *testing.T) {
	testenv.Root(t)
	dir := passable(t)
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	u := component.User{UID: 61104, GID: 61104, Groups: []int{61100}}
	for _, group := range []int{0, 61104, 61100} { // the first is one of ours, and not of the user
		if err := os.Chown(file, 0, group); err != nil {
			t.Fatal(err)
		}
		if err := ReadableBy(u, file); errors.Is(err, fs.ErrPermission) != (group == 0) || err != nil && group != 0 {
			t.Errorf("of group %d: %v", group, err)
		}
	}
	if err := TryUser(u, dir, "/bin/true"); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := TryUser(u, dir, "/bin/true"); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("behind a closed directory: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestChecksTellWhichFilesAreClosedToAUser(t *testing.T) {
	testenv.Root(t)
	dir := passable(t)
	file := filepath.Join(dir, "oidc-ca.crt")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	in := CheckInput{Config: config.Default(), Paths: paths.Paths{Data: filepath.Join(dir, "not", "there")}, Users: []CheckUser{{
		User:  component.User{UID: 61102, GID: 61102},
		Files: map[string][]string{"kube-apiserver": {file, filepath.Join(dir, "no-such-file")}},
	}}}
	got := checkUsers(t.Context(), in)
	if len(got) != 1 || got[0].Code != health.FileClosed || got[0].Severity != health.Error || !strings.Contains(got[0].Remedy, "chgrp 61102 "+file) {
		t.Errorf("problems: %+v", got)
	}
	if err := os.Chown(file, 0, 61102); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if got := checkUsers(t.Context(), in); len(got) != 0 {
		t.Errorf("problems: %+v", got)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if got := checkUsers(t.Context(), in); len(got) != 1 || got[0].Code != health.NoUsers {
		t.Errorf("problems: %+v", got)
	}
}
