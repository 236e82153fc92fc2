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

func TestSettingsOthersChangeArePutBack(t *testing.T) {
	root := t.TempDir()
	files := map[string]string{"vm.overcommit": "0", "net.netfilter.max": "65536"}
	write := func(name, v string) {
		t.Helper()
		file := sysctlFile(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(v+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, v := range files {
		write(name, v)
	}
	l := ledger.Open(filepath.Join(t.TempDir(), "ledger.json"))
	for range 2 { // the second start finds what the first one's components have set
		if err := rememberSysctls(t.Context(), root, l, []string{"vm.overcommit", "net.netfilter.max", "no.such.setting"}); err != nil {
			t.Fatal(err)
		}
		write("vm.overcommit", "1")
	}
	// The module of the other one is gone.
	if err := os.Remove(sysctlFile(root, "net.netfilter.max")); err != nil {
		t.Fatal(err)
	}
	if err := restoreSysctls(t.Context(), root, l); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(sysctlFile(root, "vm.overcommit")); err != nil || string(b) != "0" {
		t.Errorf("put back %q, %v", b, err)
	}
	if _, err := os.Stat(sysctlFile(root, "net.netfilter.max")); err == nil {
		t.Error("a setting was made that the kernel does not have")
	}
	if left, err := l.List(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("still remembered: %v, %v", left, err)
	}
}
