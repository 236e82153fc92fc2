package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"
)

// Format is how images are laid out in an archive.
type Format string

// The formats.
const (
	OCI    Format = "oci"    // OCI image layout in a tar
	Docker Format = "docker" // what `docker save` writes
)

// Media types and annotations of the formats.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"

	annotationName    = "io.containerd.image.name"
	annotationRefName = "org.opencontainers.image.ref.name"
)

// Written is an image as it was written.
type Written struct {
	Names []string
	// Digest of the manifest ("sha256:…"): what the image is known by once imported. Only for OCI; a docker
	// archive has no manifest of its own.
	Digest string
	// Config is the digest of the configuration, which CRI calls the image's id.
	Config string
}

// Write writes one archive with all images. Equal Specs give equal bytes.
func Write(w io.Writer, format Format, specs ...Spec) ([]Written, error) {
	a := &archive{w: tar.NewWriter(w), have: map[string]bool{}}
	var (
		out []Written
		err error
	)
	switch format {
	case OCI:
		out, err = a.oci(specs)
	case Docker:
		out, err = a.docker(specs)
	default:
		return nil, fmt.Errorf("unknown image archive format %q", format)
	}
	if err != nil {
		return nil, err
	}
	return out, a.w.Close()
}

type archive struct {
	w    *tar.Writer
	have map[string]bool // names written: images may share layers
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
}

// platformOf follows what containerd calls the machines k1s is built for.
func platformOf(arch string) platform {
	p := platform{Architecture: arch, OS: "linux"}
	if arch == "arm" {
		p.Variant = "v7"
	}
	return p
}

func (a *archive) oci(specs []Spec) ([]Written, error) {
	if err := a.bytes("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return nil, err
	}
	var (
		index struct {
			SchemaVersion int          `json:"schemaVersion"`
			MediaType     string       `json:"mediaType"`
			Manifests     []descriptor `json:"manifests"`
		}
		out []Written
	)
	index.SchemaVersion, index.MediaType = 2, typeIndex
	for _, s := range specs {
		l, err := measure(s)
		if err != nil {
			return nil, err
		}
		config := marshal(l.config)
		manifest := marshal(struct {
			SchemaVersion int          `json:"schemaVersion"`
			MediaType     string       `json:"mediaType"`
			Config        descriptor   `json:"config"`
			Layers        []descriptor `json:"layers"`
		}{2, typeManifest, describe(typeConfig, config), []descriptor{{MediaType: typeLayer, Digest: l.digest, Size: l.size}}})
		if err := errors.Join(
			a.layer(blobName(l.digest), l),
			a.bytes(blobName(digest(config)), config),
			a.bytes(blobName(digest(manifest)), manifest),
		); err != nil {
			return nil, err
		}
		for _, name := range s.Names {
			d := describe(typeManifest, manifest)
			p := platformOf(s.Arch)
			d.Platform = &p
			d.Annotations = map[string]string{annotationName: name, annotationRefName: tagOf(name)}
			index.Manifests = append(index.Manifests, d)
		}
		out = append(out, Written{Names: s.Names, Digest: digest(manifest), Config: digest(config)})
	}
	return out, a.bytes("index.json", marshal(index))
}

func (a *archive) docker(specs []Spec) ([]Written, error) {
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var (
		entries []entry
		out     []Written
	)
	for _, s := range specs {
		l, err := measure(s)
		if err != nil {
			return nil, err
		}
		config := marshal(l.config)
		e := entry{
			Config:   strings.TrimPrefix(digest(config), "sha256:") + ".json",
			RepoTags: s.Names,
			Layers:   []string{strings.TrimPrefix(l.digest, "sha256:") + "/layer.tar"},
		}
		if err := errors.Join(a.layer(e.Layers[0], l), a.bytes(e.Config, config)); err != nil {
			return nil, err
		}
		entries = append(entries, e)
		out = append(out, Written{Names: s.Names, Config: digest(config)})
	}
	return out, a.bytes("manifest.json", marshal(entries))
}

// measured is a Spec with what has to be known before its archive can be written.
type measured struct {
	files  []File
	size   int64
	digest string
	config any
}

func measure(s Spec) (measured, error) {
	if len(s.Names) == 0 || s.Arch == "" {
		return measured{}, fmt.Errorf("image %q needs a name and an architecture", s.Names)
	}
	files, err := complete(s.Files)
	if err != nil {
		return measured{}, err
	}
	h := sha256.New()
	n := &counter{w: h}
	if err := writeLayer(n, files); err != nil {
		return measured{}, fmt.Errorf("image %s: %w", s.Names[0], err)
	}
	m := measured{files: files, size: n.n, digest: "sha256:" + hex.EncodeToString(h.Sum(nil))}
	type rootfs struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
	m.config = struct {
		platform
		Config Config `json:"config"`
		RootFS rootfs `json:"rootfs"`
	}{platformOf(s.Arch), s.Config, rootfs{"layers", []string{m.digest}}}
	return m, nil
}

func writeLayer(w io.Writer, files []File) error {
	tw := tar.NewWriter(w)
	for _, f := range files {
		if err := writeFile(tw, f); err != nil {
			return fmt.Errorf("adding %s: %w", f.Path, err)
		}
	}
	return tw.Close()
}

func writeFile(tw *tar.Writer, f File) error {
	hdr := header(strings.TrimPrefix(f.Path, "/"), f.Mode)
	switch {
	case f.Link != "":
		hdr.Typeflag, hdr.Linkname, hdr.Mode = tar.TypeSymlink, f.Link, 0o777
		return tw.WriteHeader(hdr)
	case f.Mode.IsDir():
		hdr.Typeflag = tar.TypeDir
		hdr.Name += "/"
		return tw.WriteHeader(hdr)
	case f.Open == nil:
		return tw.WriteHeader(hdr)
	}
	r, err := f.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	size, known, err := sizeOf(r)
	if err != nil {
		return err
	}
	if !known {
		content, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		r, size = io.NopCloser(bytes.NewReader(content)), int64(len(content))
	}
	hdr.Size = size
	if err := tw.WriteHeader(hdr); err != nil {
		return err
	}
	_, err = io.Copy(tw, r)
	return err
}

// sizeOf asks the open file, so that programs of many megabytes need not be held in memory.
func sizeOf(r io.Reader) (size int64, known bool, err error) {
	f, ok := r.(fs.File)
	if !ok {
		return 0, false, nil
	}
	st, err := f.Stat()
	if err != nil {
		return 0, false, err
	}
	if !st.Mode().IsRegular() {
		return 0, false, fmt.Errorf("not a regular file but %s", st.Mode().Type())
	}
	return st.Size(), true, nil
}

func header(name string, mode fs.FileMode) *tar.Header {
	h := &tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: int64(mode.Perm()),
		// A fixed time: the digest must not depend on when the image is made.
		ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
	}
	for bit, m := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if mode&bit != 0 {
			h.Mode |= m
		}
	}
	return h
}

func (a *archive) layer(name string, m measured) error {
	if a.have[name] {
		return nil
	}
	a.have[name] = true
	h := header(name, 0o644)
	h.Size = m.size
	if err := a.w.WriteHeader(h); err != nil {
		return err
	}
	sum := sha256.New()
	if err := writeLayer(io.MultiWriter(a.w, sum), m.files); err != nil {
		return err
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != m.digest {
		return errors.New("a file of the image changed while it was written")
	}
	return nil
}

func (a *archive) bytes(name string, b []byte) error {
	if a.have[name] {
		return nil
	}
	a.have[name] = true
	h := header(name, 0o644)
	h.Size = int64(len(b))
	if err := a.w.WriteHeader(h); err != nil {
		return err
	}
	_, err := a.w.Write(b)
	return err
}

func describe(mediaType string, b []byte) descriptor {
	return descriptor{MediaType: mediaType, Digest: digest(b), Size: int64(len(b))}
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func blobName(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }

func tagOf(name string) string {
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[i+1:]
	}
	return "latest"
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil { // only strings, numbers and maps of them
		panic(err)
	}
	return b
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
