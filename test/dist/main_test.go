package main

import (
	"debug/elf"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestAProgramFitsItsArchitectureAndNeedsOnlyWhatLiesBesideIt(t *testing.T) {
	arm := program{machine: elf.EM_ARM, class: elf.ELFCLASS32}
	dynamic := program{machine: elf.EM_ARM, class: elf.ELFCLASS32, loader: "/lib/ld-linux-armhf.so.3", needs: []string{"libc.so.6"}}
	for name, c := range map[string]struct {
		program   program
		arch      string
		libraries []string
		want      string
	}{
		"static":             {arm, "arm", nil, ""},
		"another processor":  {arm, "arm64", nil, "it is for EM_ARM, ELFCLASS32"},
		"dynamic":            {dynamic, "arm", nil, "it is not static: it wants /lib/ld-linux-armhf.so.3"},
		"library beside it":  {dynamic, "arm", []string{"libc.so.6"}, ""},
		"library is missing": {dynamic, "arm", []string{"libm.so.6"}, "it needs libc.so.6, which is not carried"},
	} {
		got := ""
		if err := c.program.fits(c.arch, c.libraries); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestOneProgramOfAnotherKindIsFound(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("test binaries are no ELF files here")
	}
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "NOTICE"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := programs(dir, "arm"); err == nil {
		t.Error("a directory without programs is no error")
	}
	if err := os.WriteFile(filepath.Join(dir, "other"), self, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	_, err = programs(dir, "arm")
	if err == nil || !strings.Contains(err.Error(), "other: it is for ") || !strings.Contains(err.Error(), "a link to nothing") {
		t.Errorf("%v", err)
	}
}

// The lines Debian's qemu-user-static registers have these magics and masks.
func TestRegistrations(t *testing.T) {
	for arch, want := range map[string]string{
		"arm64": `:k1s-dist-arm64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/bin/q:P`,
		"arm":   `:k1s-dist-arm:M::\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x28\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/bin/q:P`,
	} {
		if got := registration(arch, "/bin/q"); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", arch, got, want)
		}
	}
}
