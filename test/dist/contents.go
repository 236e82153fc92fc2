package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// platform is what a program of an architecture says about itself.
type platform struct {
	machine elf.Machine
	class   elf.Class
	qemu    string // emulates it
}

var platforms = map[string]platform{
	"amd64": {elf.EM_X86_64, elf.ELFCLASS64, "qemu-x86_64"},
	"arm64": {elf.EM_AARCH64, elf.ELFCLASS64, "qemu-aarch64"},
	"arm":   {elf.EM_ARM, elf.ELFCLASS32, "qemu-arm"},
}

// size compares the file with its budget in MB.
func size(file string, budget float64) (string, error) {
	st, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	mb := float64(st.Size()) / 1e6
	out := fmt.Sprintf("%d bytes, %.1f MB of %.0f", st.Size(), mb, budget)
	if mb > budget {
		return out, errors.New("it is larger than it may be")
	}
	return out, nil
}

// program is what an ELF file says about itself.
type program struct {
	machine elf.Machine
	class   elf.Class
	loader  string   // it wants to be started by; "" for a static one
	needs   []string // libraries
}

// inspect reads an ELF file; ok is false for a file of another kind.
func inspect(file string) (p program, ok bool, err error) {
	b, err := os.ReadFile(file)
	if err != nil || !bytes.HasPrefix(b, []byte(elf.ELFMAG)) {
		return p, false, err
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return p, true, fmt.Errorf("reading %s: %w", file, err)
	}
	p.machine, p.class = f.Machine, f.Class
	for _, s := range f.Progs {
		if s.Type == elf.PT_INTERP {
			loader := make([]byte, s.Filesz)
			if _, err := s.ReadAt(loader, 0); err != nil {
				return p, true, fmt.Errorf("reading the loader of %s: %w", file, err)
			}
			p.loader = string(bytes.TrimRight(loader, "\x00"))
		}
	}
	if p.needs, err = f.ImportedLibraries(); err != nil {
		return p, true, fmt.Errorf("reading the libraries of %s: %w", file, err)
	}
	return p, true, nil
}

// fits tells why a program does not run on every distribution on that architecture. libraries are the names of
// those it may need, because they lie beside it.
func (p program) fits(arch string, libraries []string) error {
	want := platforms[arch]
	if p.machine != want.machine || p.class != want.class {
		return fmt.Errorf("it is for %v, %v", p.machine, p.class)
	}
	if libraries == nil && p.loader != "" {
		return fmt.Errorf("it is not static: it wants %s", p.loader)
	}
	for _, l := range p.needs {
		if !slices.Contains(libraries, l) {
			return fmt.Errorf("it needs %s, which is not carried", l)
		}
	}
	return nil
}

// static makes sure of a program that needs no other file.
func static(file, arch string) (string, error) {
	p, ok, err := inspect(file)
	if err != nil {
		return "", err
	}
	if !ok {
		return "", errors.New("it is no program")
	}
	return fmt.Sprint(p.machine, ", ", p.class), p.fits(arch, nil)
}

// loader is what build/nft.sh calls the dynamic loader of the architecture, whatever name libraries know it by.
const loader = "ld.so"

// programs inspects every program and library below dir. Those in a directory NAME.d are started by the
// loader that lies there, with the libraries that lie there; see build/launch.c.
func programs(dir, arch string) (string, error) {
	var out strings.Builder
	var failed []error
	found := 0
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type()&fs.ModeSymlink != 0 {
			if _, err := os.Stat(file); err != nil {
				failed = append(failed, fmt.Errorf("a link to nothing: %w", err))
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		p, ok, err := inspect(file)
		if err != nil || !ok {
			return err
		}
		found++
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		var beside []string
		kind := "static"
		if in := filepath.Dir(file); strings.HasSuffix(in, ".d") {
			kind = "with libraries beside it"
			if beside, err = libraries(in); err != nil {
				return err
			}
		}
		if err := p.fits(arch, beside); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", name, err))
		}
		fmt.Fprintf(&out, "%s: %v, %v, %s\n", name, p.machine, p.class, kind)
		return nil
	})
	if err == nil && found == 0 {
		err = fmt.Errorf("there is no program in %s", dir)
	}
	return out.String(), errors.Join(append(failed, err)...)
}

// libraries are the names under which libraries in dir can be asked for; the loader's own is the one in its file.
func libraries(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
		if e.Name() != loader {
			continue
		}
		f, err := elf.Open(filepath.Join(dir, loader))
		if err != nil {
			return nil, err
		}
		own, err := f.DynString(elf.DT_SONAME)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		names = append(names, own...)
	}
	return names, nil
}
