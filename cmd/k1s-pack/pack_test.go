package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/payload"
)

// build is a build directory as the Makefile has it.
type build struct {
	t                                 *testing.T
	stage, cache, payload, light, k1s string
}

func newBuild(t *testing.T) build {
	t.Helper()
	if _, err := exec.LookPath("zstd"); err != nil {
		t.Skip("zstd is not installed; make build installs it")
	}
	dir := t.TempDir()
	b := build{t, filepath.Join(dir, "stage"), filepath.Join(dir, "chunks"), filepath.Join(dir, "payload.bin"),
		filepath.Join(dir, "light"), filepath.Join(dir, "k1s")}
	b.write("stage/program", program(t))
	b.write("stage/big", random(300<<10))
	b.write("stage/sub/text", []byte(strings.Repeat("text ", 1000)))
	b.write("stage/empty", nil)
	b.write("light", []byte("#!/bin/sh\n"))
	if err := os.Symlink("../program", filepath.Join(b.stage, "sub/link")); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b build) write(name string, content []byte) {
	b.t.Helper()
	name = filepath.Join(filepath.Dir(b.stage), name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(name, content, 0o755); err != nil {
		b.t.Fatal(err)
	}
}

func (b build) pack() error {
	return pack(b.t.Context(), packOptions{dir: b.stage, cache: b.cache, out: b.payload, level: 3, frame: 64 << 10, filter: true})
}

func (b build) join() error {
	return runJoin(b.t.Context(), []string{"-program", b.light, "-payload", b.payload, "-o", b.k1s})
}

// entries are the cache's, with the time each was written.
func (b build) entries() map[string]int64 {
	b.t.Helper()
	all, err := os.ReadDir(b.cache)
	if err != nil {
		b.t.Fatal(err)
	}
	times := map[string]int64{}
	for _, e := range all {
		st, err := e.Info()
		if err != nil {
			b.t.Fatal(err)
		}
		times[e.Name()] = st.ModTime().UnixNano()
	}
	return times
}

func random(n int) []byte {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// program is a real Go program, linked statically.
func program(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module p\ngo 1.24\n", "main.go": "package main\n\nfunc main() { println() }\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "build", "-o", "p", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0", "GOFLAGS=-trimpath", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building a program: %v\n%s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "p"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// dynamic is the least that makes a file one that needs a dynamic loader.
func dynamic(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	err := errors.Join(binary.Write(&b, binary.LittleEndian, h), binary.Write(&b, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_INTERP)}))
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestWhatIsPackedAndJoinedUnpacksToTheSame(t *testing.T) {
	b := newBuild(t)
	if err := errors.Join(b.pack(), b.join()); err != nil {
		t.Fatal(err)
	}
	p, err := payload.Open(b.k1s)
	if err != nil {
		t.Fatal(err)
	}
	got, err := payload.Unpack(t.Context(), p, t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	err = filepath.WalkDir(b.stage, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		rel, err := filepath.Rel(b.stage, name)
		if err != nil {
			return err
		}
		want, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if have, err := os.ReadFile(filepath.Join(got.Dir, rel)); err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s: %d bytes, %v, want %d bytes", rel, len(have), err, len(want))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files != len(p.Index.Files) {
		t.Errorf("%d files packed, there are %d", len(p.Index.Files), files)
	}
	program, _ := p.File("program")
	var filters []string
	for _, c := range program.Chunks {
		if c.Filter != "" && !slices.Contains(filters, c.Filter) {
			filters = append(filters, c.Filter)
		}
	}
	if want := []string{payload.FilterX86, payload.FilterGoLines, payload.FilterGoFuncs}; !slices.Equal(filters, want) {
		t.Errorf("the program was packed with the filters %v, want %v", filters, want)
	}
}

func TestEqualInputGivesEqualPayloads(t *testing.T) {
	var results [2][]byte
	for i := range results {
		b := newBuild(t)
		if err := b.pack(); err != nil {
			t.Fatal(err)
		}
		var err error
		if results[i], err = os.ReadFile(b.payload); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(results[0], results[1]) {
		t.Error("two payloads of the same files differ")
	}
}

func TestOnlyWhatChangedIsCompressedAgain(t *testing.T) {
	b := newBuild(t)
	if err := b.pack(); err != nil {
		t.Fatal(err)
	}
	before := b.entries()
	big := random(300 << 10)
	big[len(big)-1]++ // the last of its chunks
	b.write("stage/big", big)
	if err := b.pack(); err != nil {
		t.Fatal(err)
	}
	after := b.entries()
	fresh, gone := 0, 0
	for name, written := range after {
		if before[name] != written {
			fresh++
		}
	}
	for name := range before {
		if _, ok := after[name]; !ok {
			gone++
		}
	}
	if fresh != 1 || gone != 1 {
		t.Errorf("%d chunks were compressed and %d dropped, want one each of %d", fresh, gone, len(before))
	}
}

func TestAPayloadThatDoesNotChangeStaysTheFileItIs(t *testing.T) {
	b := newBuild(t)
	packed := func() fs.FileInfo {
		t.Helper()
		if err := b.pack(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(b.payload + ".new"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the new one was left: %v", err)
		}
		st, err := os.Stat(b.payload)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	first := packed()
	b.write("stage/sub/text", []byte(strings.Repeat("text ", 1000))) // written again, as linkers do
	if again := packed(); !os.SameFile(first, again) || !again.ModTime().Equal(first.ModTime()) {
		t.Errorf("nothing changed, and it is another file: %v, %v", first.ModTime(), again.ModTime())
	}
	b.write("stage/sub/text", []byte(strings.Repeat("tent ", 1000)))
	if changed := packed(); os.SameFile(first, changed) {
		t.Error("something changed, and it is the same file")
	}
	before := packed()
	if err := os.WriteFile(b.payload, make([]byte, before.Size()), 0o644); err != nil {
		t.Fatal(err)
	}
	packed()
	if _, err := payload.Open(b.payload); err != nil {
		t.Errorf("a damaged payload of the same size was left: %v", err)
	}
}

func TestADynamicProgramIsRefused(t *testing.T) {
	b := newBuild(t)
	b.write("stage/tool.d/tool", dynamic(t)) // comes with its loader
	if err := b.pack(); err != nil {
		t.Errorf("beside its loader: %v", err)
	}
	b.write("light", dynamic(t))
	if err := b.join(); err == nil || !strings.Contains(err.Error(), "not linked statically") {
		t.Errorf("as the light program: %v", err)
	}
	b.write("stage/tool", dynamic(t))
	if err := b.pack(); err == nil || !strings.Contains(err.Error(), "tool is not linked statically") {
		t.Errorf("in the payload: %v", err)
	}
}

func TestAFailedJoinKeepsWhatWasThere(t *testing.T) {
	b := newBuild(t)
	if err := errors.Join(b.pack(), b.join()); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(b.k1s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(b.payload, 1000); err != nil {
		t.Fatal(err)
	}
	if err := b.join(); !errors.Is(err, payload.ErrNone) {
		t.Errorf("joining half a payload: %v", err)
	}
	if got, err := os.ReadFile(b.k1s); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the old file changed: %v", err)
	}
}

func TestCutCoversTheFileAndKeepsTablesWhole(t *testing.T) {
	const code, lines = payload.FilterX86, payload.FilterGoLines
	got := cut([]payload.Region{{From: 0, To: 100, Filter: "", Kind: "rest"}, {From: 100, To: 400, Filter: code, Kind: code}, {From: 400, To: 900, Filter: lines, Kind: lines}}, 900, 150)
	want := []payload.Region{{From: 0, To: 100, Filter: "", Kind: "rest"}, {From: 100, To: 250, Filter: code, Kind: code}, {From: 250, To: 400, Filter: code, Kind: code}, {From: 400, To: 900, Filter: lines, Kind: lines}}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if got, want := cut(nil, 200, 150), []payload.Region{{From: 0, To: 100}, {From: 100, To: 200}}; !slices.Equal(got, want) {
		t.Errorf("what is no program: got %v, want %v", got, want)
	}
	if got := cut(nil, 0, 150); len(got) != 0 {
		t.Errorf("an empty file has the chunks %v", got)
	}
}

func TestWhatIsAlikeIsCompressedTogether(t *testing.T) {
	pieces := []piece{
		{file: 0, Region: payload.Region{To: 60, Kind: "a"}}, {file: 0, Region: payload.Region{To: 10, Kind: "b"}},
		{file: 1, Region: payload.Region{To: 5}}, {file: 2, Region: payload.Region{To: 30, Kind: "a"}},
		{file: 3, Region: payload.Region{To: 20, Kind: "a"}}, {file: 4, Region: payload.Region{To: 5}},
	}
	var got [][]int
	for _, f := range group(pieces, 100) {
		var files []int
		for _, p := range f.pieces {
			files = append(files, p.file)
		}
		got = append(got, files)
	}
	if want := [][]int{{0, 2}, {0}, {1}, {3}, {4}}; !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestUpstreamProgramsBecomePackages(t *testing.T) {
	got, err := rename("main.go", []byte("// Licence.\n\n// Command x.\npackage main\n\nfunc main() { run() }\n\nfunc (main t) main() {}\n"), "x")
	if err != nil {
		t.Fatal(err)
	}
	want := "// Code generated by k1s-pack upstream. DO NOT EDIT.\n\n// Licence.\n\n// Command x.\npackage x\n\nfunc Main() { run() }\n\nfunc (main t) main() {}\n"
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestTheNoticeNamesWhatIsLinkedAndWhatWasCopied(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const linked, copied, foreign = "github.com/klauspost/compress", "github.com/spf13/cobra", "github.com/spf13/pflag"
	got, err := modules(t.Context(), []string{self}, []string{copied}, map[string][]string{filepath.Base(self): {copied}, "other": {foreign}})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]component{}
	for _, c := range got {
		found[c.Name] = c
	}
	for _, name := range []string{"go", linked, copied} {
		c := found[name]
		if c.Version == "" || len(c.texts) == 0 || c.License == "NOASSERTION" || c.Main != (name == copied) {
			t.Errorf("%s: got %+v", name, c)
		}
	}
	if c, ok := found[foreign]; ok {
		t.Errorf("what another program has is in this one's list: %+v", c)
	}
}

func TestLicencesAreRecognised(t *testing.T) {
	for body, want := range map[string]string{
		"Apache License\n Version 2.0, January 2004":                                      "Apache-2.0",
		"Permission is hereby granted,\n   free of charge, to any person":                 "MIT",
		"Redistribution and use in source and binary forms, with or":                      "BSD-2-Clause",
		"Redistribution and use in source and binary forms … endorse or promote products": "BSD-3-Clause",
		"do as you please": "NOASSERTION",
	} {
		if got := classify([]text{{"LICENSE", body}}); got != want {
			t.Errorf("%q is %s, want %s", body, got, want)
		}
	}
	if got := classify([]text{{"LICENSE", "Mozilla Public License Version 2.0"}, {"third_party/x/LICENSE", "Permission is hereby granted, free of charge"}}); got != "MPL-2.0" {
		t.Errorf("the licence of a part counts for the whole: %s", got)
	}
}
