package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/payload"
)

// Before its first start a node has no programs yet, and the checks are most wanted then.
func TestChecksBeforeTheFirstStartHaveNFT(t *testing.T) {
	t.Setenv(payload.EnvSource, "")
	o := Options{Paths: paths.Paths{Data: filepath.Join(t.TempDir(), "data")}, Executable: carrying(t, "nft", "nft.d/lib", "runc")}
	dir, remove, err := checkPrograms(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"nft": true, "nft.d/lib": true, "runc": false} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	remove()
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s is left", dir)
	}
	if _, err := os.Stat(o.Paths.Data); err == nil {
		t.Error("checking has made the data directory")
	}

	current := o.Paths.CurrentPayload()
	if err := os.MkdirAll(current, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(current, "nft"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, remove, err = checkPrograms(t.Context(), o)
	remove()
	if _, serr := os.Stat(dir); err != nil || serr != nil || dir != current {
		t.Errorf("with a payload: %q, %v, %v", dir, err, serr)
	}
}

func TestAProgramWithoutAPayloadChecksWithoutNFT(t *testing.T) {
	t.Setenv(payload.EnvSource, "")
	light := filepath.Join(t.TempDir(), "k1s")
	if err := os.WriteFile(light, []byte("light"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir, remove, err := checkPrograms(t.Context(), Options{Paths: paths.Paths{Data: t.TempDir()}, Executable: light})
	remove()
	if dir != "" || err != nil {
		t.Errorf("%q, %v", dir, err)
	}
}

// carrying makes a program with a payload of small files.
func carrying(t *testing.T, names ...string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("light")
	w := payload.NewWriter(&b)
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var x payload.Index
	for _, name := range names {
		c := payload.Chunk{Length: int64(len(name)), Size: int64(len(name)), SHA256: sum(name)}
		packed := enc.EncodeAll([]byte(name), nil)
		c.Packed = int64(len(packed))
		if c.Offset, err = w.Frame(packed); err != nil {
			t.Fatal(err)
		}
		x.Files = append(x.Files, payload.File{Name: name, Mode: 0o555, Size: c.Size, SHA256: c.SHA256, Chunks: []payload.Chunk{c}})
	}
	if _, err := w.Close(x); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "k1s")
	if err := os.WriteFile(file, []byte(b.String()), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}
