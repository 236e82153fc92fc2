// Package image describes container images as data and writes them as archives: what is in the layer,
// how it is started, what it is called. The same description always gives the same bytes, so an image
// has the same digest on every node. It is not a client of anything: importing and running images is
// the business of package applets/images. Used by that applet for the base image, and by the tests,
// which have no registry to pull from.
package image

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// Spec is one image of one layer.
type Spec struct {
	// Names are full references, e.g. "docker.io/library/busybox:latest".
	Names []string
	// Arch is a GOARCH value. The operating system is always linux.
	Arch   string
	Config Config
	// Files are the layer. Parent directories that are not listed are made with mode 0755. Order does not
	// matter.
	Files []File
}

// Config is how a container of the image is started. The JSON names are those of the OCI image
// specification.
type Config struct {
	User         string              `json:"User,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	Volumes      map[string]struct{} `json:"Volumes,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	Labels       map[string]string   `json:"Labels,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
}

// File is one entry of the layer, owned by root.
type File struct {
	// Path is absolute, e.g. "/bin/sh".
	Path string
	// Mode holds the permissions and, for a directory, fs.ModeDir; fs.ModeSticky, fs.ModeSetuid and
	// fs.ModeSetgid are kept.
	Mode fs.FileMode
	// Link makes it a symbolic link to this target; Mode and Open are not used then.
	Link string
	// Open returns the content of a regular file; nil is an empty file. It is called twice and must give
	// the same content each time.
	Open func() (io.ReadCloser, error)
}

// Text is a regular file with this content.
func Text(name, content string) File {
	return File{Path: name, Mode: 0o644, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(content)), nil
	}}
}

// Dir is a directory.
func Dir(name string, mode fs.FileMode) File { return File{Path: name, Mode: mode | fs.ModeDir} }

// Symlink is a symbolic link at name that points to target.
func Symlink(name, target string) File { return File{Path: name, Link: target} }

// FromFS is a regular file whose content is the file called source in fsys.
func FromFS(name string, mode fs.FileMode, fsys fs.FS, source string) File {
	return File{Path: name, Mode: mode, Open: func() (io.ReadCloser, error) { return fsys.Open(source) }}
}

// FromDisk is a regular file whose content is the file called source on this machine.
func FromDisk(name string, mode fs.FileMode, source string) File {
	return File{Path: name, Mode: mode, Open: func() (io.ReadCloser, error) { return os.Open(source) }}
}

// FromBytes is a regular file with this content.
func FromBytes(name string, mode fs.FileMode, content []byte) File {
	return File{Path: name, Mode: mode, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	}}
}

// complete returns the entries in the order they are written: parents first, then by name, with the
// parents nobody listed.
func complete(files []File) ([]File, error) {
	byPath := make(map[string]File, len(files))
	for _, f := range files {
		if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" {
			return nil, fmt.Errorf("file %q of an image: the path must be absolute and clean", f.Path)
		}
		if _, ok := byPath[f.Path]; ok {
			return nil, fmt.Errorf("file %q of an image is listed twice", f.Path)
		}
		byPath[f.Path] = f
	}
	for _, f := range files {
		for dir := path.Dir(f.Path); dir != "/"; dir = path.Dir(dir) {
			parent, ok := byPath[dir]
			if !ok {
				byPath[dir] = Dir(dir, 0o755)
				continue
			}
			if !parent.Mode.IsDir() && parent.Link == "" {
				return nil, fmt.Errorf("file %q of an image is below %q, which is not a directory", f.Path, dir)
			}
		}
	}
	out := make([]File, 0, len(byPath))
	for _, f := range byPath {
		out = append(out, f)
	}
	// A parent's path is a prefix of its children's, so it sorts before them.
	slices.SortFunc(out, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}
