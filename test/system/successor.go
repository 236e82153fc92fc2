//go:build system

package system

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"

	"k1s.io/k1s/internal/payload"
)

// otherMinor is a version of the next minor of Kubernetes that takes as many characters.
func otherMinor(t *testing.T, version string) string {
	t.Helper()
	var major, minor, patch int
	if _, err := fmt.Sscanf(version, "v%d.%d.%d", &major, &minor, &patch); err != nil {
		t.Fatalf("the version %q: %v", version, err)
	}
	next := fmt.Sprintf("v%d.%d.%d", major, minor+1, patch)
	if len(next) != len(version) {
		t.Fatalf("%s takes another number of characters than %s", next, version)
	}
	return next
}

// ofAnotherVersion writes the k1s under test, without its payload, to a file, as one that says it is of another version of
// Kubernetes. Both versions have to take as many characters, so that everything in the program stays where it is.
func ofAnotherVersion(t *testing.T, file, version, other string) {
	t.Helper()
	raw, err := os.ReadFile(the.program)
	if err != nil {
		t.Fatal(err)
	}
	// As in successor; a program that has its payload elsewhere is all there is.
	if p, err := payload.Open(the.program); err != nil || p.Source() == the.program {
		raw = raw[:int64(len(raw))-int64(binary.LittleEndian.Uint64(raw[len(raw)-64:]))]
	}
	changed := bytes.ReplaceAll(raw, []byte(version), []byte(other))
	if bytes.Equal(changed, raw) {
		t.Fatalf("%s is nowhere in %s", version, the.program)
	}
	if err := os.WriteFile(file, changed, 0o755); err != nil {
		t.Fatal(err)
	}
}

// addition is the file that the payload of a successor has more.
const addition = "addition.txt"

// successor writes the k1s of the next version to a file: the one under test, with a payload that has one file more, and
// so is another one. The frames stay as they are, nothing is compressed anew. It returns the ids of both payloads.
func successor(t *testing.T, file string) (id, next string) {
	t.Helper()
	content := []byte("what the next version has more\n")
	return successorWith(t, file, content, sha256.Sum256(content))
}

// brokenSuccessor writes one that says what it is like any other, and whose payload cannot be unpacked.
func brokenSuccessor(t *testing.T, file string) {
	t.Helper()
	successorWith(t, file, []byte("what somebody has altered\n"), sha256.Sum256(nil))
}

// successorWith writes one with a content of its addition, and what is said to be its checksum.
func successorWith(t *testing.T, file string, content []byte, sum [sha256.Size]byte) (id, next string) {
	t.Helper()
	p, err := payload.Open(the.program)
	if err != nil {
		t.Fatal(err)
	}
	if p.Source() != the.program {
		t.Skipf("the payload of %s is elsewhere: %s", the.program, p.Source())
	}
	in, err := os.Open(the.program)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		t.Fatal(err)
	}
	// The trailer of 72 bytes has the payload's length at its eighth, see payload.Format.
	trailer := make([]byte, 72)
	if _, err := in.ReadAt(trailer, st.Size()-int64(len(trailer))); err != nil {
		t.Fatal(err)
	}
	start := st.Size() - int64(binary.LittleEndian.Uint64(trailer[8:]))
	var end int64
	for _, f := range p.Index.Files {
		for _, c := range f.Chunks {
			end = max(end, c.Offset+c.Packed)
		}
	}
	frames := make([]byte, end)
	if _, err := in.ReadAt(frames, start); err != nil {
		t.Fatal(err)
	}

	out, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.CopyN(out, in, start); err != nil {
		t.Fatal(err)
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	packed := enc.EncodeAll(content, nil)
	w := payload.NewWriter(out)
	_, err1 := w.Frame(frames) // their offsets are what they were
	offset, err2 := w.Frame(packed)
	x := payload.Index{Files: append(slices.Clone(p.Index.Files), payload.File{
		Name: addition, Mode: 0o444, Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:]),
		Chunks: []payload.Chunk{{Offset: offset, Packed: int64(len(packed)), Length: int64(len(content)), Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}},
	})}
	slices.SortFunc(x.Files, func(a, b payload.File) int { return cmp.Compare(a.Name, b.Name) })
	next, err3 := w.Close(x)
	if err := errors.Join(err1, err2, err3, enc.Close(), out.Close()); err != nil {
		t.Fatal(err)
	}
	return p.ID, next
}
