package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

func payload() fstest.MapFS {
	return fstest.MapFS{"pause": {Data: []byte("\x7fELF pause"), Mode: 0o755}}
}

// The digests are the contract: a node that is upgraded must not find another image under the same name.
func TestBaseImageHasAFixedDigest(t *testing.T) {
	for arch, want := range map[string]string{
		"amd64": "sha256:164a320e2f073773bb1cfc592b9b52bd9dcae85816946603bc821f2fb6f6c6c7",
		"arm":   "sha256:cd9b2083e769aab361ae02a40424afe58cab003effa3af3b94ae58394474e07f",
	} {
		var a, b bytes.Buffer
		got, err := Write(&a, OCI, Base(payload(), "pause", arch))
		if err != nil {
			t.Fatal(err)
		}
		if got[0].Digest != want {
			t.Errorf("%s: digest is %s, want %s", arch, got[0].Digest, want)
		}
		if _, err := Write(&b, OCI, Base(payload(), "pause", arch)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a.Bytes(), b.Bytes()) {
			t.Errorf("%s: writing twice gives different bytes", arch)
		}
	}
}

func TestBaseImageHoldsWhatProgramsExpect(t *testing.T) {
	var b bytes.Buffer
	if _, err := Write(&b, OCI, Base(payload(), "pause", "amd64")); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, h := range layerOf(t, b.Bytes()) {
		got[h.Name] = h.Mode
		if h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s is owned by %d:%d", h.Name, h.Uid, h.Gid)
		}
	}
	want := map[string]int64{
		"pause": 0o755, "etc/": 0o755, "etc/passwd": 0o644, "etc/group": 0o644,
		"etc/nsswitch.conf": 0o644, "tmp/": 0o1777, "k1s-pods": 0o755,
	}
	if len(got) != len(want) {
		t.Errorf("layer holds %v, want %v", got, want)
	}
	for name, mode := range want {
		if got[name] != mode {
			t.Errorf("%s has mode %o, want %o", name, got[name], mode)
		}
	}
}

func TestEntriesAreWrittenParentsFirstWhateverTheirOrder(t *testing.T) {
	files := []File{Text("/a/b/c", "x"), Symlink("/a/b.link", "b/c"), Dir("/a/b", 0o700)}
	got, err := complete(files)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range got {
		names = append(names, f.Path)
	}
	if s := strings.Join(names, " "); s != "/a /a/b /a/b.link /a/b/c" {
		t.Errorf("order is %s", s)
	}
	if got[1].Mode != fs.ModeDir|0o700 {
		t.Errorf("the listed directory lost its mode: %v", got[1].Mode)
	}
}

func TestBadSpecsAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		spec Spec
		want string
	}{
		"relative path":     {Spec{Names: []string{"a:1"}, Arch: "amd64", Files: []File{Text("a", "")}}, "must be absolute"},
		"escaping path":     {Spec{Names: []string{"a:1"}, Arch: "amd64", Files: []File{Text("/../a", "")}}, "must be absolute and clean"},
		"twice":             {Spec{Names: []string{"a:1"}, Arch: "amd64", Files: []File{Text("/a", ""), Text("/a", "")}}, "listed twice"},
		"below a file":      {Spec{Names: []string{"a:1"}, Arch: "amd64", Files: []File{Text("/a", ""), Text("/a/b", "")}}, "not a directory"},
		"no name":           {Spec{Arch: "amd64"}, "needs a name"},
		"no architecture":   {Spec{Names: []string{"a:1"}}, "needs a name and an architecture"},
		"missing program":   {Base(fstest.MapFS{}, "pause", "amd64"), "adding /pause"},
		"program is a tree": {Base(fstest.MapFS{"pause/x": {}}, "pause", "amd64"), "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Write(io.Discard, OCI, tc.spec)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want one with %q", err, tc.want)
			}
		})
	}
	if _, err := Write(io.Discard, "zip", Spec{}); err == nil {
		t.Error("an unknown format is accepted")
	}
}

func TestAFileThatChangesWhileWrittenIsNoticed(t *testing.T) {
	n := 0
	f := File{Path: "/a", Mode: 0o644, Open: func() (io.ReadCloser, error) {
		n++
		return io.NopCloser(strings.NewReader(strings.Repeat("x", 8)[:7] + string(rune('0'+n)))), nil
	}}
	_, err := Write(io.Discard, OCI, Spec{Names: []string{"a:1"}, Arch: "amd64", Files: []File{f}})
	if err == nil || !strings.Contains(err.Error(), "changed while") {
		t.Errorf("error is %v", err)
	}
}

func TestDockerArchiveListsTagsAndSharesLayers(t *testing.T) {
	var b bytes.Buffer
	one := Spec{Names: []string{"docker.io/library/one:1"}, Arch: "amd64", Files: []File{Text("/a", "a")}}
	two := one
	two.Names = []string{"docker.io/library/two:1", "docker.io/library/two:2"}
	if _, err := Write(&b, Docker, one, two); err != nil {
		t.Fatal(err)
	}
	var (
		names    []string
		manifest []struct{ RepoTags, Layers []string }
	)
	each(t, b.Bytes(), func(h *tar.Header, r io.Reader) {
		names = append(names, h.Name)
		if h.Name == "manifest.json" {
			if err := json.NewDecoder(r).Decode(&manifest); err != nil {
				t.Fatal(err)
			}
		}
	})
	if len(names) != 3 { // layer, configuration, manifest
		t.Errorf("archive holds %v", names)
	}
	if len(manifest) != 2 || len(manifest[1].RepoTags) != 2 || manifest[0].Layers[0] != manifest[1].Layers[0] {
		t.Errorf("manifest is %v", manifest)
	}
}

func TestFilesFromDiskAreStreamed(t *testing.T) {
	name := t.TempDir() + "/program"
	if err := os.WriteFile(name, bytes.Repeat([]byte("k1s"), 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	spec := Spec{Names: []string{"a:1"}, Arch: "amd64", Files: []File{FromDisk("/p", 0o755, name)}}
	if _, err := Write(&b, OCI, spec); err != nil {
		t.Fatal(err)
	}
	if h := layerOf(t, b.Bytes())[0]; h.Size != 3<<16 || h.Mode != 0o755 {
		t.Errorf("entry is %d bytes, mode %o", h.Size, h.Mode)
	}
}

func each(t *testing.T, archive []byte, f func(*tar.Header, io.Reader)) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		f(h, r)
	}
}

// layerOf returns the entries of the first blob, which is the layer.
func layerOf(t *testing.T, archive []byte) []*tar.Header {
	t.Helper()
	var out []*tar.Header
	each(t, archive, func(h *tar.Header, r io.Reader) {
		if out != nil || !strings.HasPrefix(h.Name, "blobs/") {
			return
		}
		layer, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		each(t, layer, func(h *tar.Header, _ io.Reader) { out = append(out, h) })
	})
	return out
}
