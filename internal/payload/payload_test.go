package payload

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"k1s.io/k1s/internal/errs"
)

func hexSum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// sealUnchecked is what Writer.Close appends, without its check of the index.
func sealUnchecked(t *testing.T, x Index, before int64) []byte {
	t.Helper()
	raw, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	tr := trailer{format: Format, length: before + int64(len(raw)) + trailerSize, indexOffset: before, indexSize: int64(len(raw)), sum: sha256.Sum256(raw)}
	return append(raw, tr.bytes()...)
}

// content is what the test payload holds: a large file of several chunks, small ones, a link.
var content = map[string]string{
	"big":       strings.Repeat("all work and no play ", 40_000) + "the end",
	"cni/small": "#!/bin/sh\nexit 0\n",
	"empty":     "",
	"nft.d/lib": "library",
}

const chunkSize = 100_000

// makePayload writes a payload behind some bytes that stand for the light program. edit may spoil
// the index before it is written; then the writer's own check is left out.
func makePayload(t *testing.T, edit func(*Index)) string {
	t.Helper()
	var b bytes.Buffer
	b.WriteString("\x7fELF the light program")
	start := b.Len()
	w := NewWriter(&b)
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var x Index
	for _, name := range []string{"big", "cni/small", "empty", "nft.d/lib"} {
		body := []byte(content[name])
		f := File{Name: name, Mode: 0o555, Size: int64(len(body)), SHA256: hexSum(body)}
		for at := 0; at < len(body); at += chunkSize {
			raw := bytes.Clone(body[at:min(at+chunkSize, len(body))])
			c := Chunk{Size: int64(len(raw)), SHA256: hexSum(raw), Filter: FilterX86}
			if raw, err = DoFilter(FilterX86, raw); err != nil {
				t.Fatal(err)
			}
			c.Length = int64(len(raw))
			packed := enc.EncodeAll(raw, nil)
			c.Packed = int64(len(packed))
			if c.Offset, err = w.Frame(packed); err != nil {
				t.Fatal(err)
			}
			f.Chunks = append(f.Chunks, c)
		}
		x.Files = append(x.Files, f)
		if name == "cni/small" {
			x.Files = append(x.Files, File{Name: "cni/zlink", Link: "../big"})
		}
	}
	if edit == nil {
		if _, err := w.Close(x); err != nil {
			t.Fatal(err)
		}
	} else {
		edit(&x)
		b.Write(sealUnchecked(t, x, int64(b.Len()-start)))
	}
	name := filepath.Join(t.TempDir(), "k1s")
	if err := os.WriteFile(name, b.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func open(t *testing.T, name string) *Payload {
	t.Helper()
	p, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func unpack(t *testing.T, p *Payload, root string) Result {
	t.Helper()
	r, err := Unpack(t.Context(), p, root, 0)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// checkDir compares an unpacked directory with content, and the root with what may be in it.
func checkDir(t *testing.T, root, dir string) {
	t.Helper()
	for name, want := range content {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		} else if string(b) != want {
			t.Errorf("%s has %d bytes, want %d, or other ones", name, len(b), len(want))
		}
		if st, err := os.Lstat(filepath.Join(dir, name)); err == nil && st.Mode() != 0o555 {
			t.Errorf("%s has mode %v", name, st.Mode())
		}
	}
	if target, err := os.Readlink(filepath.Join(dir, "cni/zlink")); err != nil || target != "../big" {
		t.Errorf("link: %q, %v", target, err)
	}
	if target, err := filepath.EvalSymlinks(filepath.Join(root, "current")); err != nil || target != dir {
		t.Errorf("current: %q, %v", target, err)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempMark) {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}

// leftIn lists what is under root besides the lock.
func leftIn(t *testing.T, root string) []string {
	t.Helper()
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		if e.Name() != lockName {
			left = append(left, e.Name())
		}
	}
	return left
}

func TestUnpackGivesBackWhatWasPacked(t *testing.T) {
	p, root := open(t, makePayload(t, nil)), t.TempDir()
	if _, err := Dir(p, root); !errs.Is(err, errs.NotFound) {
		t.Errorf("before unpacking: %v", err)
	}
	r := unpack(t, p, root)
	if !r.Unpacked || len(r.Repaired) != 0 {
		t.Errorf("first run: %+v", r)
	}
	checkDir(t, root, r.Dir)
	if dir, err := Dir(p, root); err != nil || dir != r.Dir {
		t.Errorf("after unpacking: %q, %v", dir, err)
	}
	if again := unpack(t, p, root); again.Unpacked || len(again.Repaired) != 0 || again.Dir != r.Dir {
		t.Errorf("second run: %+v", again)
	}
}

func TestReadFileNeedsNoUnpacking(t *testing.T) {
	p := open(t, makePayload(t, nil))
	for name, want := range content {
		if b, err := ReadFile(p, name); err != nil || string(b) != want {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	for _, name := range []string{"absent", "cni/zlink", "cni"} {
		if _, err := ReadFile(p, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestExtractWritesOnlyWhatIsWanted(t *testing.T) {
	p := open(t, makePayload(t, nil))
	dir := t.TempDir()
	lib := func(name string) bool { return strings.HasPrefix(name, "nft.d/") }
	if at, err := Extract(t.Context(), p, dir, 0, lib); err != nil || at != dir {
		t.Fatalf("%q, %v", at, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "nft.d/lib")); err != nil || string(b) != content["nft.d/lib"] {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 1 {
		t.Errorf("extracted: %q, %v", left, err)
	}

	unpacked := unpack(t, p, t.TempDir()).Dir
	t.Setenv(EnvSource, unpacked)
	exe := filepath.Join(t.TempDir(), "k1s")
	if err := os.WriteFile(exe, []byte("light"), 0o755); err != nil {
		t.Fatal(err)
	}
	if at, err := Extract(t.Context(), open(t, exe), dir, 0, lib); err != nil || at != unpacked {
		t.Errorf("a payload that is unpacked already: %q, %v", at, err)
	}
}

func TestOpenTellsWhenThereIsNoPayload(t *testing.T) {
	t.Setenv(EnvSource, "")
	exe := filepath.Join(t.TempDir(), "k1s")
	for _, size := range []int{0, 10, trailerSize, 5000} {
		if err := os.WriteFile(exe, make([]byte, size), 0o755); err != nil {
			t.Fatal(err)
		}
		_, err := Open(exe)
		if hint, _ := errs.HintOf(err); !errors.Is(err, ErrNone) || !errs.Is(err, errs.NotFound) || hint == "" {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestDevelopmentBuildTakesThePayloadFromTheEnvironment(t *testing.T) {
	exe := filepath.Join(t.TempDir(), "k1s")
	if err := os.WriteFile(exe, []byte("light"), 0o755); err != nil {
		t.Fatal(err)
	}
	carrier, root := makePayload(t, nil), t.TempDir()
	t.Setenv(EnvSource, carrier)
	p := open(t, exe)
	unpacked := unpack(t, p, root).Dir

	t.Setenv(EnvSource, unpacked)
	q := open(t, exe)
	if q.ID != p.ID {
		t.Errorf("ID %s from the directory, %s from the file", q.ID, p.ID)
	}
	if r := unpack(t, q, t.TempDir()); r.Dir != unpacked {
		t.Errorf("the directory is used as it is: %s", r.Dir)
	}
	if b, err := ReadFile(q, "big"); err != nil || string(b) != content["big"] {
		t.Errorf("reading from the directory: %v", err)
	}
	t.Setenv(EnvSource, filepath.Join(root, "absent"))
	if _, err := Open(exe); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), EnvSource) {
		t.Errorf("a wrong value: %v", err)
	}
}

func TestAFlippedByteNeverGivesWrongFiles(t *testing.T) {
	t.Setenv(EnvSource, "")
	name := makePayload(t, nil)
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	start := bytes.Index(good, []byte("program")) + len("program")
	try := func(at int) {
		b := bytes.Clone(good)
		b[at] ^= 0x10
		if err := os.WriteFile(name, b, 0o755); err != nil {
			t.Fatal(err)
		}
		root := t.TempDir()
		p, err := Open(name)
		if err == nil {
			_, err = Unpack(t.Context(), p, root, 0)
		}
		if err == nil { // a few bits of a compressed chunk mean nothing; then the files are right
			checkDir(t, root, filepath.Join(root, p.ID))
			return
		}
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNone) {
			t.Fatalf("byte %d of %d: %v", at, len(b), err)
		}
		if left := leftIn(t, root); len(left) > 0 {
			t.Fatalf("byte %d: left %v", at, left)
		}
	}
	reserved := len(good) - trailerSize + 4 // four bytes kept for later, not checked
	for at := start; at < len(good); at += 7 {
		if at < reserved || at >= reserved+4 {
			try(at)
		}
	}
	for at := len(good) - trailerSize; at < len(good); at++ {
		if at < reserved || at >= reserved+4 {
			try(at)
		}
	}
}

func TestATruncatedFileIsRefused(t *testing.T) {
	t.Setenv(EnvSource, "")
	name := makePayload(t, nil)
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, keep := range []int{len(good) - 1, len(good) - trailerSize, len(good) / 2, 30} {
		if err := os.WriteFile(name, good[:keep], 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(name); !errors.Is(err, ErrNone) {
			t.Errorf("%d of %d bytes: %v", keep, len(good), err)
		}
	}
	// The front is missing: the trailer is intact but speaks of more than there is.
	if err := os.WriteFile(name, good[100:], 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(name); !errors.Is(err, ErrDamaged) {
		t.Errorf("without its front: %v", err)
	}
}

func TestAHostileIndexIsRefused(t *testing.T) {
	for name, edit := range map[string]func(*Index){
		"climbing name":           func(x *Index) { x.Files[0].Name = "../big" },
		"climbing inside":         func(x *Index) { x.Files[0].Name = "a/../../big" },
		"absolute name":           func(x *Index) { x.Files[0].Name = "/big" },
		"backslashes":             func(x *Index) { x.Files[0].Name = `..\big` },
		"drive":                   func(x *Index) { x.Files[0].Name = `C:big` },
		"zero byte":               func(x *Index) { x.Files[0].Name = "b\x00g" },
		"empty name":              func(x *Index) { x.Files[0].Name = "" },
		"directory itself":        func(x *Index) { x.Files[0].Name = "." },
		"our own record":          func(x *Index) { x.Files[0].Name = stampName },
		"duplicate":               func(x *Index) { x.Files[1].Name = x.Files[0].Name },
		"not sorted":              func(x *Index) { x.Files[0], x.Files[1] = x.Files[1], x.Files[0] },
		"absolute link":           func(x *Index) { x.Files[2].Link = "/etc/passwd" },
		"climbing link":           func(x *Index) { x.Files[2].Link = "../../etc/passwd" },
		"link out and in again":   func(x *Index) { x.Files[2].Link = "../../x/../cni/small" },
		"file through a link":     func(x *Index) { x.Files[0] = File{Name: "cni", Link: "nft.d"} },
		"file through a file":     func(x *Index) { x.Files[0].Name = "cni" },
		"set-uid":                 func(x *Index) { x.Files[0].Mode = 0o555 | fs.ModeSetuid },
		"writable by others":      func(x *Index) { x.Files[0].Mode = 0o777 },
		"wrong size":              func(x *Index) { x.Files[0].Size++ },
		"huge chunk":              func(x *Index) { x.Files[0].Chunks[0].Size = 1 << 40 },
		"negative chunk":          func(x *Index) { x.Files[0].Chunks[0].Size = -1 },
		"negative offset":         func(x *Index) { x.Files[0].Chunks[0].Offset = -1 },
		"offset behind the end":   func(x *Index) { x.Files[0].Chunks[0].Offset = 1 << 40 },
		"chunk before its frame":  func(x *Index) { x.Files[0].Chunks[0].At = -1 },
		"chunk far behind":        func(x *Index) { x.Files[0].Chunks[0].At = 1<<63 - 1 },
		"chunk without bytes":     func(x *Index) { x.Files[0].Chunks[0].Length = 0 },
		"offset that wraps":       func(x *Index) { x.Files[0].Chunks[0].Offset = 1<<63 - 1 },
		"unknown filter":          func(x *Index) { x.Files[0].Chunks[0].Filter = "riscv" },
		"no checksum":             func(x *Index) { x.Files[0].Chunks[0].SHA256 = "" },
		"no files":                func(x *Index) { x.Files = nil },
		"link with content":       func(x *Index) { x.Files[0].Link = "empty" },
		"more than a disk (size)": func(x *Index) { x.Files[0].Size = 1 << 50 },
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Open(makePayload(t, edit)); !errors.Is(err, ErrDamaged) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAChunkThatExpandsToMoreThanItSaysIsRefused(t *testing.T) {
	p := open(t, makePayload(t, func(x *Index) {
		f := &x.Files[0]
		f.Chunks, f.Size = f.Chunks[:1], 10
		f.Chunks[0].Size, f.Chunks[0].Length = 10, chunkSize
	}))
	if _, err := Unpack(t.Context(), p, t.TempDir(), 0); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
}

func TestAlteredFilesAreRestoredAndReported(t *testing.T) {
	for name, c := range map[string]struct {
		alter func(dir string) error
		want  string // in the report, "" for nothing to repair
	}{
		"other content of the same size and time": {func(dir string) error {
			file := filepath.Join(dir, "big")
			st, err := os.Stat(file)
			if err != nil {
				return err
			}
			b := []byte(content["big"])
			b[1000]++
			if err := os.Chmod(file, 0o755); err != nil {
				return err
			}
			return errors.Join(os.WriteFile(file, b, 0), os.Chmod(file, 0o555), os.Chtimes(file, st.ModTime(), st.ModTime()))
		}, "big had other content"},
		"truncated": {func(dir string) error { return os.Truncate(filepath.Join(dir, "big"), 5) }, "big had 5 bytes instead of 840007"},
		"removed":   {func(dir string) error { return os.Remove(filepath.Join(dir, "cni/small")) }, "cni/small was missing"},
		"mode":      {func(dir string) error { return os.Chmod(filepath.Join(dir, "nft.d/lib"), 0o4755) }, "nft.d/lib had the mode"},
		"another link": {func(dir string) error {
			l := filepath.Join(dir, "cni/zlink")
			return errors.Join(os.Remove(l), os.Symlink("/etc", l))
		}, "cni/zlink was not the link"},
		"directory in place of a file": {func(dir string) error {
			f := filepath.Join(dir, "big")
			return errors.Join(os.Remove(f), os.MkdirAll(filepath.Join(f, "x"), 0o755))
		}, "big was not a regular file"},
		"directory replaced by a link": {func(dir string) error {
			d := filepath.Join(dir, "cni")
			return errors.Join(os.RemoveAll(d), os.Symlink("/nonexistent", d))
		}, "cni/small was missing"},
		"record removed": {func(dir string) error { return os.Remove(filepath.Join(dir, stampName)) }, ""},
		"record spoiled": {func(dir string) error { return os.WriteFile(filepath.Join(dir, stampName+"x"), nil, 0o600) }, ""},
		"only touched":   {func(dir string) error { return os.Chtimes(filepath.Join(dir, "big"), time.Now(), time.Now()) }, ""},
		"index overwritten": {func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, indexName)), os.WriteFile(filepath.Join(dir, indexName), []byte("{}"), 0o444))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p, root := open(t, makePayload(t, nil)), t.TempDir()
			dir := unpack(t, p, root).Dir
			if err := c.alter(dir); err != nil {
				t.Fatal(err)
			}
			r := unpack(t, p, root)
			if got := strings.Join(r.Repaired, "; "); !strings.Contains(got, c.want) || (c.want == "") != (got == "") {
				t.Errorf("reported %q, want %q", got, c.want)
			}
			checkDir(t, root, dir)
			if again := unpack(t, p, root); len(again.Repaired) > 0 {
				t.Errorf("reported again: %v", again.Repaired)
			}
		})
	}
}

func TestAProgramThatRunsKeepsItsFileWhenItIsRestored(t *testing.T) {
	p, root := open(t, makePayload(t, nil)), t.TempDir()
	file := filepath.Join(unpack(t, p, root).Dir, "nft.d/lib")
	if err := os.Chmod(file, 0o755); err != nil {
		t.Fatal(err)
	}
	running, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	if err := os.WriteFile(file, []byte("LIBRARY"), 0); err != nil {
		t.Fatal(err)
	}
	unpack(t, p, root)
	b := make([]byte, 7)
	if _, err := running.ReadAt(b, 0); err != nil || string(b) != "LIBRARY" {
		t.Errorf("the open file changed under its user: %q, %v", b, err)
	}
}

func TestWhatACrashLeftIsRemovedAndDoneAgain(t *testing.T) {
	p, root := open(t, makePayload(t, nil)), t.TempDir()
	half := filepath.Join(root, tempMark+"123")
	if err := os.MkdirAll(half, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(half, "big"), []byte("all wo"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := unpack(t, p, root)
	checkDir(t, root, r.Dir)
}

func TestCancellingLeavesNothing(t *testing.T) {
	p, root := open(t, makePayload(t, nil)), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ctx, p, root, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left := leftIn(t, root); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// TestMain lets the test binary be the second process of the concurrency test.
func TestMain(m *testing.M) {
	if os.Getenv("UNPACK_WAIT") != "" { // or a running program of an old payload, until its input ends
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	if carrier := os.Getenv("UNPACK_CARRIER"); carrier != "" {
		p, err := Open(carrier)
		if err == nil {
			_, err = Unpack(context.Background(), p, os.Getenv("UNPACK_ROOT"), 0)
		}
		if err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestManyProcessesMayUnpackAtOnce(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there is no payload for Windows")
	}
	carrier, root := makePayload(t, nil), t.TempDir()
	var cmds []*exec.Cmd
	for range 6 {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), "UNPACK_CARRIER="+carrier, "UNPACK_ROOT="+root)
		c.Stderr = new(bytes.Buffer)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, c)
	}
	for _, c := range cmds {
		if err := c.Wait(); err != nil {
			t.Errorf("%v: %s", err, c.Stderr)
		}
	}
	p := open(t, carrier)
	checkDir(t, root, filepath.Join(root, p.ID))
}

func TestTheX86FilterIsLosslessOnAnything(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	opcodes := []byte{0xe8, 0x8d, 0x8b, 0x80, 0x83, 0x0f, 0x05, 0x0d, 0x3d, 0x10, 0xb6, 0x00, 0xff, 0x10, 0xf0, 0x0f}
	for n := range 3000 {
		b := make([]byte, n)
		for i := range b {
			if r.IntN(3) > 0 {
				b[i] = opcodes[r.IntN(len(opcodes))]
			} else {
				b[i] = byte(r.Uint32())
			}
		}
		want := bytes.Clone(b)
		x86(b, true)
		x86(b, false)
		if !bytes.Equal(b, want) {
			t.Fatalf("%d bytes: not restored", n)
		}
	}
}

func TestTheX86FilterMakesCallsOfOneFunctionEqual(t *testing.T) {
	b := make([]byte, 4096)
	for _, at := range []int{100, 2000, 3000} {
		b[at] = 0xe8
		binary.LittleEndian.PutUint32(b[at+1:], uint32(500-(at+5)))
	}
	x86(b, true)
	if !bytes.Equal(b[100:105], b[2000:2005]) || !bytes.Equal(b[100:105], b[3000:3005]) {
		t.Errorf("% x, % x, % x", b[100:105], b[2000:2005], b[3000:3005])
	}
}

func TestErrorsOfTheSystemComeWithWhatToDo(t *testing.T) {
	p := open(t, makePayload(t, nil))
	for cause, want := range map[error]string{
		syscall.ENOSPC: "1 MB",
		syscall.EROFS:  "read-only",
		syscall.EACCES: "root",
	} {
		err := p.explain("/data", &fs.PathError{Op: "write", Path: "/data/x", Err: cause})
		if hint, _ := errs.HintOf(err); !strings.Contains(hint, want) || !errors.Is(err, cause) {
			t.Errorf("%v: hint %q, error %v", cause, hint, err)
		}
	}
}
