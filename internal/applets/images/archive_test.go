package images

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstded(t *testing.T, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

func TestCompressionIsSeenFromTheContent(t *testing.T) {
	want := bytes.Repeat([]byte("tar"), 1000)
	for name, in := range map[string][]byte{"plain": want, "gzip": gzipped(t, want), "zstd": zstded(t, want)} {
		r, err := expand(bytes.NewReader(in), int64(len(want)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, err %v", name, len(got), err)
		}
		if err := r.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnArchiveThatExpandsTooFarIsStopped(t *testing.T) {
	big := make([]byte, 1<<20)
	for name, in := range map[string][]byte{"gzip": gzipped(t, big), "zstd": zstded(t, big)} {
		r, err := expand(bytes.NewReader(in), 1<<20-1)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		n, err := io.Copy(io.Discard, r)
		if !errors.Is(err, errExpands) || n != 1<<20-1 {
			t.Errorf("%s: read %d bytes, err %v", name, n, err)
		}
	}
}

func TestWhatIsNoArchiveIsToldApart(t *testing.T) {
	for want, in := range map[string]string{
		"empty":       "",
		"xz or bzip2": "\xfd7zXZ\x00....",
		"gzip":        "\x1f\x8b....",
	} {
		_, err := expand(strings.NewReader(in), 100)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q gives %v, want an error with %q", in, err, want)
		}
	}
}

func TestAFileSomebodyWritesToIsNotComplete(t *testing.T) {
	name := filepath.Join(t.TempDir(), "bundle.tar")
	w, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(name, long, long); err != nil {
		t.Fatal(err)
	}
	busy, err := openForWriting(name, long)
	if err != nil {
		t.Fatal(err)
	}
	if !busy {
		t.Skip("this file system has no leases")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if busy, err = openForWriting(name, time.Now()); err != nil || busy {
		t.Errorf("still being written after its writer closed it: %t, %v", busy, err)
	}
}
