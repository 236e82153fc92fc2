package addonmanager

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"k1s.io/k1s/internal/errs"
)

// origin tells whose manifests a directory holds.
type origin string

const (
	packaged origin = "packaged"
	user     origin = "manifests"
)

// stackID names a stack; packaged ones and the user's may have equal names.
type stackID struct {
	origin origin
	name   string
}

func (s stackID) String() string { return string(s.origin) + "/" + s.name }

// source is a stack as it is on disk.
type source struct {
	id    stackID
	files []file
	hash  string // of all names and contents
	// err tells why it could not be read; files and hash mean nothing then.
	err error
}

type file struct {
	name    string // as messages call it
	content []byte
}

// directory is one scanned directory.
type directory struct {
	sources []source // sorted by name
	// gone tells that the directory cannot be trusted to be complete, e.g. because its disk is not mounted:
	// nothing is to be pruned because of what is not in it.
	gone error
}

// Bounds of what is read, far above real manifests; etcd refuses objects of 1.5 MiB.
const maxFile = 16 << 20

// marker is a file that tells an empty directory from one that is not there: a mount point without its
// disk is empty, too.
const marker = ".k1s-manifests"

// scan reads a directory of stacks. skip names stacks that are treated as not there.
func scan(fsys fs.FS, o origin, skip []string) directory {
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return directory{gone: fmt.Errorf("reading the directory: %w", err)}
	}
	var d directory
	marked := false
	for _, e := range entries {
		name := e.Name()
		marked = marked || name == marker
		if hidden(name) {
			continue
		}
		st, err := fs.Stat(fsys, name) // follows links
		switch {
		case errors.Is(err, fs.ErrNotExist):
			// A dangling link, or removed just now. The first must not prune, the second comes again.
			if e.Type()&fs.ModeSymlink == 0 {
				continue
			}
			d.sources = append(d.sources, source{id: stackID{o, stackName(name)}, err: fmt.Errorf("%s: the link leads nowhere", name)})
		case err != nil:
			d.sources = append(d.sources, source{id: stackID{o, stackName(name)}, err: err})
		case st.IsDir():
			d.sources = append(d.sources, readStack(fsys, stackID{o, name}, name))
		case manifest(name) && st.Mode().IsRegular():
			d.sources = append(d.sources, newSource(stackID{o, stackName(name)}, []string{name}, fsys))
		}
	}
	d.sources = slices.DeleteFunc(d.sources, func(s source) bool { return slices.Contains(skip, s.id.name) })
	slices.SortStableFunc(d.sources, func(a, b source) int { return strings.Compare(a.id.name, b.id.name) })
	d.sources = distinct(d.sources)
	if len(d.sources) == 0 && len(skip) == 0 && !marked {
		d.gone = errors.New("the directory is empty")
	}
	return d
}

// distinct makes one failed source of several with equal names, e.g. a.yaml and a/.
func distinct(in []source) []source {
	var out []source
	for _, s := range in {
		if n := len(out); n > 0 && out[n-1].id == s.id {
			out[n-1] = source{id: s.id, err: errs.New(errs.Invalid,
				"several files or directories make a stack called %q: rename all but one", s.id.name)}
			continue
		}
		out = append(out, s)
	}
	return out
}

func readStack(fsys fs.FS, id stackID, dir string) source {
	entries, err := fs.ReadDir(fsys, dir)
	if err != nil {
		return source{id: id, err: fmt.Errorf("reading the directory: %w", err)}
	}
	var names []string
	for _, e := range entries {
		if name := e.Name(); !hidden(name) && manifest(name) && !e.IsDir() {
			names = append(names, path.Join(dir, name))
		}
	}
	return newSource(id, names, fsys)
}

func newSource(id stackID, names []string, fsys fs.FS) source {
	s := source{id: id}
	h := sha256.New()
	for _, name := range names {
		b, err := readFile(fsys, name)
		if err != nil {
			return source{id: id, err: err}
		}
		s.files = append(s.files, file{name, b})
		fmt.Fprintf(h, "%d %s %d\n", len(name), name, len(b))
		h.Write(b)
	}
	s.hash = hex.EncodeToString(h.Sum(nil)[:16])
	return s
}

func readFile(fsys fs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, fmt.Errorf("reading manifests: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading manifests: %w", err)
	}
	if len(b) > maxFile {
		return nil, errs.New(errs.Invalid, "%s is larger than %d MiB, so it holds no manifests", name, maxFile>>20)
	}
	return b, nil
}

// hidden are names editors and tools use for files on their way.
func hidden(name string) bool {
	return strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") || strings.HasSuffix(name, "~")
}

func manifest(name string) bool {
	switch path.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

func stackName(name string) string {
	if manifest(name) {
		return strings.TrimSuffix(name, path.Ext(name))
	}
	return name
}

// mark puts the marker into a directory that has stacks. A directory that cannot be written is fine: it
// is only trusted less when it is empty.
func mark(dir string) {
	name := path.Join(dir, marker)
	if _, err := os.Stat(name); err == nil {
		return
	}
	text := "k1s applies the manifests in this directory and removes what is removed from it.\n" +
		"As long as this file is here, an empty directory means that nothing is wanted.\n"
	_ = os.WriteFile(name, []byte(text), 0o644)
}
