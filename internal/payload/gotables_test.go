package payload

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// goProgram builds a small Go program for Linux on the given architecture.
func goProgram(t *testing.T, arch string) []byte {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":  "module hello\ngo 1.24\n",
		"main.go": "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(\"hello\") }\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "build", "-o", "hello", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0", "GOFLAGS=-trimpath", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building a Go program: %v\n%s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "hello"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestProgramsSurviveTheirFilters(t *testing.T) {
	for arch, want := range map[string][]string{
		"amd64": {KindRest, FilterX86, KindRest, KindNames, FilterGoLines, FilterGoFuncs, KindRest},
		"arm64": {KindRest, KindNames, FilterGoLines, FilterGoFuncs, KindRest},
		"arm":   {KindRest, KindNames, FilterGoLines, FilterGoFuncs, KindRest},
	} {
		t.Run(arch, func(t *testing.T) {
			program := goProgram(t, arch)
			var kinds []string
			var at int64
			for _, r := range Regions(program) {
				kinds = append(kinds, r.Kind)
				if r.From != at || r.To <= r.From {
					t.Errorf("%s is from %d to %d, and what is before it ends at %d", r.Kind, r.From, r.To, at)
				}
				at = r.To
				raw := program[r.From:r.To]
				b, err := DoFilter(r.Filter, bytes.Clone(raw))
				if err != nil {
					t.Fatalf("%s: %v", r.Filter, err)
				}
				if bytes.Equal(b, raw) != (r.Filter == "") {
					t.Errorf("the filter %q of %s changed nothing, or is none and did", r.Filter, r.Kind)
				}
				back, err := UndoFilter(r.Filter, b, int64(len(raw)))
				if err != nil || !bytes.Equal(back, raw) {
					t.Errorf("%s is not undone: %v", r.Filter, err)
				}
			}
			if !slices.Equal(kinds, want) || at != int64(len(program)) {
				t.Errorf("found %v up to %d, want %v up to %d", kinds, at, want, len(program))
			}
		})
	}
}

func TestRegionsFindsLessInWhatItDoesNotKnow(t *testing.T) {
	program := goProgram(t, "amd64")
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	tables := int(f.Section(".gopclntab").Offset)
	edited := func(at int, with ...byte) []byte {
		b := bytes.Clone(program)
		copy(b[at:], with)
		return b
	}
	for name, c := range map[string]struct {
		program []byte
		want    int
	}{
		"nothing":                       {nil, 0},
		"a script":                      {[]byte("#!/bin/sh\nexit 0\n"), 0},
		"half a program":                {program[:len(program)/2], 0},
		"tables of another version":     {edited(tables, 0xf2), 3},
		"tables that end before":        {edited(tables+8+7*8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f), 3},
		"functions of another form":     {edited(tables+int(binary.LittleEndian.Uint64(program[tables+8+7*8:]))+4, 0xff, 0xff, 0xff), 6},
		"a program without its symbols": {program, 7},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Regions(c.program); len(got) != c.want {
				t.Errorf("found %v, want %d", got, c.want)
			}
		})
	}
}

// table builds a table of functions whose words are what word returns.
func table(n, align int, word func() uint32) []byte {
	first := roundUp(8*n+4, align)
	b := make([]byte, first)
	for i := range n {
		at := roundUp(len(b), align)
		b = append(b, make([]byte, at-len(b))...)
		nt, nd := word()%5, word()%6
		record := make([]byte, 4*(fixedWords+nt+nd))
		for k := 0; k < len(record); k += 4 {
			le.PutUint32(record[k:], word())
		}
		le.PutUint32(record[4*wordTables:], nt)
		record[4*wordData+3] = byte(nd)
		copy(b[8*i:], record[:4])
		le.PutUint32(b[8*i+4:], uint32(at))
		b = append(b, record...)
	}
	le.PutUint32(b[8*n:], word())
	return b
}

// words are random, with those at the limits of what the predictor distinguishes among them.
func words(r *rand.Rand) func() uint32 {
	var last uint32
	return func() uint32 {
		special := []uint32{0, 1, noData, noData - 1, escape, escape - 1, escape + 1, escape + nearby - 1, escape + nearby, escape - nearby,
			escape - nearby - 1, nearby, nearby + 1, last, last + 1, last + nearby, last + nearby + 1, last + escape, last - 1}
		switch r.IntN(4) {
		case 0:
			last = r.Uint32()
		case 1:
			last += r.Uint32N(200)
		default:
			last = special[r.IntN(len(special))]
		}
		return last
	}
}

func TestAnyTableOfFunctionsIsRestored(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 2000 {
		want := table(1+r.IntN(30), 4+4*r.IntN(2), words(r))
		if n, err := funcsLength(append(bytes.Clone(want), 1, 2, 3)); err != nil || n != len(want) {
			t.Fatalf("table %d: length %d, %v, want %d", i, n, err, len(want))
		}
		b, err := doFuncs(bytes.Clone(want))
		if err != nil {
			t.Fatalf("table %d: %v", i, err)
		}
		got, err := undoFuncs(b, len(want))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("table %d of %d bytes is not restored: %v", i, len(want), err)
		}
	}
}

func TestATableOfFunctionsThatSaysMoreThanItsRecordsIsRefused(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	good := table(10, 8, words(r))
	for name, at := range map[string]int{
		"address in the index": 8,
		"offset in the index":  12,
		"padding":              8*10 + 4,
	} {
		b := bytes.Clone(good)
		b[at]++
		if _, err := doFuncs(b); err == nil {
			t.Errorf("%s: accepted, and would be lost", name)
		}
	}
	if _, err := doFuncs(append(bytes.Clone(good), 0)); err == nil {
		t.Error("accepted a byte that belongs to nothing")
	}
	if _, err := doFuncs(good[:len(good)-1]); err == nil {
		t.Error("accepted a record that is cut off")
	}
}

func FuzzX86IsUndone(f *testing.F) {
	f.Add([]byte("\xe8\x00\x00\x00\x00\x48\x8d\x05\x00\x10\x00\x00\x0f\x10\x0d\xff\xff\xff\xff\xe8\xe8\xe8\xe8\xe8"))
	f.Fuzz(func(t *testing.T, want []byte) {
		b := bytes.Clone(want)
		x86(b, true)
		x86(b, false)
		if !bytes.Equal(b, want) {
			t.Errorf("% x became % x", want, b)
		}
	})
}

func FuzzGoLinesAreUndone(f *testing.F) {
	f.Add([]byte("\x00\x02\x05\x04\x80\x01\x00\x00\x10\x03\x00"))
	f.Add([]byte("\x00\x80"))
	f.Fuzz(func(t *testing.T, want []byte) {
		got, err := undoLines(doLines(want))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("% x became % x, %v", want, got, err)
		}
	})
}

// What a damaged payload contains must end in an error: checksums are compared afterwards only.
func FuzzUndoingAFilterNeverPanics(f *testing.F) {
	r := rand.New(rand.NewPCG(7, 8))
	good := table(3, 8, words(r))
	b, err := doFuncs(bytes.Clone(good))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, len(good))
	f.Add(b, len(good)+1)
	f.Add(b, 0)
	f.Add(doLines([]byte("\x00\x02\x05\x04\x80\x01\x00\x00\x10\x03\x00")), 11)
	f.Fuzz(func(_ *testing.T, b []byte, size int) {
		size &= 1<<16 - 1
		for _, filter := range []string{FilterX86, FilterGoFuncs, FilterGoLines} {
			_, _ = UndoFilter(filter, bytes.Clone(b), int64(size))
		}
	})
}
