package platform

import (
	"os"
	"path/filepath"
	"testing"

	"k1s.io/k1s/internal/ledger"
)

func TestSysctlsAreRaisedRememberedAndPutBack(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "fs", "inotify", "max")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	value := func() string {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	set := func(v string) {
		if err := os.WriteFile(file, []byte(v), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l := ledger.Open(filepath.Join(t.TempDir(), "ledger.json"))
	want := []Sysctl{{Name: "fs.inotify.max", Value: "1024", AtLeast: true}, {Name: "no.such.setting", Value: "1"}}

	set("128\n")
	for range 2 { // the second time nothing may be forgotten
		if err := setSysctls(t.Context(), root, l, want); err != nil {
			t.Fatal(err)
		}
	}
	if value() != "1024" {
		t.Errorf("value is %q", value())
	}
	if err := restoreSysctls(t.Context(), root, l); err != nil || value() != "128" {
		t.Errorf("put back %q, %v", value(), err)
	}
	if left, err := l.List(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("still remembered: %v, %v", left, err)
	}
	set("4096\n")
	if err := setSysctls(t.Context(), root, l, want); err != nil || value() != "4096\n" {
		t.Errorf("a larger value became %q, %v", value(), err)
	}
}
