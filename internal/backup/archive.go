package backup

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"k1s.io/k1s/internal/backup/dump"
	"k1s.io/k1s/internal/errs"
)

// Windows of zstd: what is written with, and the most that is read with, which is memory.
const (
	window    = 4 << 20
	maxWindow = 16 << 20
)

// Write writes an archive. open is asked for the parts in the manifest's order, and what it gives has to be what the manifest says.
func Write(w io.Writer, m Manifest, open func(Part) (io.ReadCloser, error), l Lock) (err error) {
	m.Format = Format
	if err := m.Check(); err != nil {
		return err
	}
	recipients, err := l.recipients()
	if err != nil {
		return err
	}
	var closers []io.Closer // the last one first
	defer func() {
		for _, c := range slices.Backward(closers) {
			if closing := c.Close(); err == nil {
				err = closing
			}
		}
	}()
	if len(recipients) > 0 {
		sealed, err := age.Encrypt(w, recipients...)
		if err != nil {
			return fmt.Errorf("encrypting the archive: %w", err)
		}
		closers, w = append(closers, sealed), sealed
	}
	packed, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window))
	if err != nil {
		return err
	}
	closers = append(closers, packed)
	t := tar.NewWriter(packed)
	closers = append(closers, t)
	head, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := begin(t, manifestName, int64(len(head)), m.At); err != nil {
		return err
	}
	if _, err := t.Write(head); err != nil {
		return err
	}
	for _, p := range m.Parts {
		if err := writePart(t, p, m.At, open); err != nil {
			return fmt.Errorf("writing %s to the archive: %w", p.Name, err)
		}
	}
	return nil
}

func begin(t *tar.Writer, name string, size int64, at time.Time) error {
	return t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: at.UTC().Truncate(time.Second)})
}

func writePart(t *tar.Writer, p Part, at time.Time, open func(Part) (io.ReadCloser, error)) error {
	r, err := open(p)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := begin(t, p.Name, p.Bytes, at); err != nil {
		return err
	}
	h := sha256.New()
	n, err := io.Copy(t, io.TeeReader(io.LimitReader(r, p.Bytes), h))
	if err != nil {
		return err
	}
	if more, _ := r.Read(make([]byte, 1)); n != p.Bytes || more > 0 || hexSum(h) != p.SHA256 {
		return errs.New(errs.Failure, "it changed while it was read")
	}
	return nil
}

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// Sum is what a manifest says of a part with that content.
func Sum(name string, r io.Reader) (Part, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return Part{Name: name, Bytes: n, SHA256: hexSum(h)}, err
}

// Reader reads an archive that may be anything. Errors about what it reads are of kind errs.Invalid, or errs.Denied where a key does not open
// it; others are those of where it is read from.
type Reader struct {
	Manifest  Manifest
	Encrypted bool

	from *watched
	zstd *zstd.Decoder
	tar  *tar.Reader
	next int // of Manifest.Parts
	part *partReader
}

// watched remembers errors of where the archive is read from, to tell them from those about its content.
type watched struct {
	r   io.Reader
	err error
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		w.err = err
	}
	return n, err
}

// Open reads an archive's manifest. The caller closes the Reader; r stays open.
func Open(r io.Reader, k Key) (_ *Reader, err error) {
	a := &Reader{from: &watched{r: r}}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	clear, encrypted, err := decrypt(bufio.NewReaderSize(a.from, 1<<16), k)
	if err != nil {
		if a.from.err != nil {
			err = a.damaged(err)
		}
		return nil, err
	}
	a.Encrypted = encrypted
	a.zstd, err = zstd.NewReader(clear, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
	if err != nil {
		return nil, a.damaged(err)
	}
	a.tar = tar.NewReader(a.zstd)
	h, err := a.tar.Next()
	if err != nil {
		return nil, a.damaged(err)
	}
	if err := plain(h, manifestName); err != nil {
		return nil, errs.Hint(err, "a backup of k1s begins with %s", manifestName)
	}
	if h.Size > maxManifest {
		return nil, errs.New(errs.Invalid, "the archive's manifest has %d bytes, and at most %d are possible", h.Size, maxManifest)
	}
	raw, err := io.ReadAll(a.tar)
	if err != nil {
		return nil, a.damaged(err)
	}
	// The format first: of another one the rest may not even be readable.
	var of struct {
		Format int    `json:"format"`
		K1s    string `json:"k1s"`
	}
	if err := json.Unmarshal(raw, &of); err != nil {
		return nil, errs.New(errs.Invalid, "the archive's manifest cannot be read: %w", err)
	}
	if of.Format > Format {
		return nil, Manifest{Format: of.Format, K1s: of.K1s}.Check()
	}
	if err := json.Unmarshal(raw, &a.Manifest); err != nil {
		return nil, errs.New(errs.Invalid, "the archive's manifest cannot be read: %w", err)
	}
	return a, a.Manifest.Check()
}

// Close frees what reading takes.
func (a *Reader) Close() {
	if a.zstd != nil {
		a.zstd.Close()
	}
}

// plain refuses whatever is no ordinary file of the name that is expected: links, devices, files with holes.
func plain(h *tar.Header, name string) error {
	if h.Typeflag != tar.TypeReg || h.Name != name || h.Linkname != "" {
		return errs.New(errs.Invalid, "the archive has %.100q (type %q) where the file %q has to be", h.Name, h.Typeflag, name)
	}
	for key := range h.PAXRecords {
		if key != "path" && key != "size" {
			return errs.New(errs.Invalid, "the archive's %q has the property %.100q, which no backup has", name, key)
		}
	}
	return nil
}

// damaged says what an error of reading means.
func (a *Reader) damaged(err error) error {
	switch {
	case a.from.err != nil:
		return fmt.Errorf("reading the archive: %w", a.from.err)
	case errs.Is(err, errs.Invalid), errs.Is(err, errs.Denied):
		return err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errs.New(errs.Invalid, "the archive was cut off")
	case errors.Is(err, zstd.ErrMagicMismatch) && a.tar == nil, errors.Is(err, zstd.ErrMagicMismatch) && a.Manifest.Format == 0 && !a.Encrypted:
		return errs.New(errs.Invalid, "it is no backup of k1s")
	}
	return errs.New(errs.Invalid, "the archive is damaged: %w", err)
}

// Next is the next part and its content, and io.EOF after the last one, when nothing was behind it. Reading the content to its end
// tells whether it is what the manifest says; what is not read of it is read by the next call.
func (a *Reader) Next() (Part, io.Reader, error) {
	if a.part != nil {
		if _, err := io.Copy(io.Discard, a.part); err != nil {
			return Part{}, nil, err
		}
		a.part = nil
	}
	h, err := a.tar.Next()
	if a.next == len(a.Manifest.Parts) {
		return Part{}, nil, a.end(err)
	}
	if err != nil {
		return Part{}, nil, a.damaged(err)
	}
	p := a.Manifest.Parts[a.next]
	if err := plain(h, p.Name); err != nil {
		return p, nil, err
	}
	if h.Size != p.Bytes {
		return p, nil, errs.New(errs.Invalid, "the archive's %q has %d bytes, and its manifest says %d", p.Name, h.Size, p.Bytes)
	}
	a.next++
	a.part = &partReader{of: a, Part: p, h: sha256.New()}
	return p, a.part, nil
}

// end is io.EOF when the archive ends where it has to.
func (a *Reader) end(err error) error {
	if err == nil {
		return errs.New(errs.Invalid, "the archive has more files than its manifest names")
	}
	if !errors.Is(err, io.EOF) {
		return a.damaged(err)
	}
	if n, err := a.zstd.Read(make([]byte, 1)); n > 0 {
		return errs.New(errs.Invalid, "the archive goes on behind its end")
	} else if err != nil && !errors.Is(err, io.EOF) {
		return a.damaged(err)
	}
	return io.EOF
}

// partReader compares what is read with the manifest.
type partReader struct {
	Part
	of   *Reader
	h    hash.Hash
	read int64
	err  error
}

func (p *partReader) Read(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	n, err := p.of.tar.Read(b)
	p.h.Write(b[:n])
	p.read += int64(n)
	switch {
	case errors.Is(err, io.EOF) && p.read == p.Bytes && hexSum(p.h) == p.SHA256:
		p.err = io.EOF
	case errors.Is(err, io.EOF) && p.read == p.Bytes:
		p.err = errs.New(errs.Invalid, "the archive is damaged: its %q is not the file that was written", p.Name)
	case err != nil:
		p.err = p.of.damaged(err)
	}
	return n, p.err
}

// Verify reads the rest of an archive, and returns its small parts by name: all but the datastore and the user's manifests.
func (a *Reader) Verify() (map[string][]byte, error) {
	small := map[string][]byte{}
	for {
		p, r, err := a.Next()
		if errors.Is(err, io.EOF) {
			return small, nil
		}
		if err != nil {
			return small, err
		}
		switch {
		case p.Name == Datastore:
			sum, err := dump.Check(r)
			if err != nil {
				return small, a.damaged(err)
			}
			if sum != a.Manifest.Store.Summary {
				return small, errs.New(errs.Invalid, "the archive's manifest tells of %d keys with %d bytes at revision %d, and its datastore has %d with %d at %d",
					a.Manifest.Store.Keys, a.Manifest.Store.Bytes, a.Manifest.Store.Revision, sum.Keys, sum.Bytes, sum.Revision)
			}
		case p.small():
			var b bytes.Buffer
			if _, err := b.ReadFrom(r); err != nil {
				return small, err
			}
			small[p.Name] = b.Bytes()
		}
	}
}
