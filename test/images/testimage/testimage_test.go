package testimage

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/image"
)

func TestAppImageIsTheSameWheneverItIsBuilt(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("cross-building here needs a Go toolchain for linux")
	}
	var archives [2][]byte
	for i := range archives {
		file := filepath.Join(t.TempDir(), "app.tar")
		if err := WriteApp(t.Context(), file, Arch()); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		archives[i] = b
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two builds differ")
	}
	var manifest []struct{ RepoTags []string }
	r := tar.NewReader(bytes.NewReader(archives[0]))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "manifest.json" {
			if err := json.NewDecoder(r).Decode(&manifest); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(manifest) != 1 || !slices.Equal(manifest[0].RepoTags, []string{App}) {
		t.Errorf("manifest is %v", manifest)
	}
}

func TestBusyboxImageHasALinkForEachApplet(t *testing.T) {
	if _, err := os.Stat(DefaultBusybox); err != nil {
		t.Skip("there is no static busybox here: install the package busybox-static")
	}
	spec, err := BusyboxSpec(t.Context(), DefaultBusybox, Arch())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"/bin/sh", "/bin/wget", "/bin/nslookup"} {
		if !slices.ContainsFunc(spec.Files, func(f image.File) bool { return f.Path == want && f.Link == "busybox" }) {
			t.Errorf("%s is not a link", want)
		}
	}
	if _, err := image.Write(io.Discard, image.OCI, spec); err != nil {
		t.Error(err)
	}
}

func TestADynamicProgramIsRefused(t *testing.T) {
	program, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("there is no shell here")
	}
	if static(program) == nil {
		t.Skip("this machine's shell is static")
	}
	if _, err := AppSpec(program, Arch()); err == nil || !strings.Contains(err.Error(), "not static") {
		t.Errorf("error is %v", err)
	}
}

func TestAnArchiveThatFailsIsNotLeftBehind(t *testing.T) {
	dir := t.TempDir()
	spec := image.Spec{Names: []string{"a:1"}, Arch: Arch(), Files: []image.File{image.FromDisk("/a", 0o755, filepath.Join(dir, "absent"))}}
	if err := WriteFile(filepath.Join(dir, "a.tar"), image.OCI, spec); err == nil {
		t.Fatal("a missing file is no error")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v %v", entries, err)
	}
}
