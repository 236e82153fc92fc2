package localpath

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func args(action, dir string) []string {
	return []string{"-p", dir, "-s", "1048576", "-m", "Filesystem", "-a", action}
}

func TestHelperMakesDirectoryOpenToAllWhateverTheUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	dir := filepath.Join(t.TempDir(), "nested", "pvc-1_default_data")
	for range 2 { // may be repeated
		if err := Helper(args("create", dir)); err != nil {
			t.Fatal(err)
		}
	}
	st, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode() != fs.ModeDir|0o777 {
		t.Errorf("mode %v, want drwxrwxrwx", st.Mode())
	}
}

func TestHelperRemovesTheDirectoryButNotWhatLinksInItPointTo(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "volume")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Helper(args("delete", dir)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("volume directory is still there: %v", err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("followed a link out of the volume: %v", err)
	}
}

func TestHelperRefuses(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/", link); err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string][]string{
		"the root":            args("delete", "/"),
		"a top directory":     args("delete", "/opt"),
		"a relative path":     args("delete", "opt/x"),
		"a climbing path":     args("delete", dir+"/x/../.."),
		"no path":             {"-a", "delete"},
		"an unknown action":   args("shrink", dir+"/x"),
		"no action":           {"-p", dir + "/x"},
		"a block volume":      {"-p", dir + "/x", "-m", "Block", "-a", "create"},
		"a link as directory": args("create", link),
		"an unknown flag":     {"-z", "-p", dir + "/x", "-a", "create"},
		"extra arguments":     append(args("create", dir+"/x"), "y"),
	} {
		t.Run(name, func(t *testing.T) {
			if err := Helper(a); err == nil {
				t.Errorf("accepted %q", a)
			}
			if _, err := os.Lstat(dir + "/x"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("did something before refusing")
			}
		})
	}
}
