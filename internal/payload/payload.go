// Package payload reads the archive of programs that the released k1s file carries behind its own
// code, and unpacks it into a directory. The light k1s (daemon and CLI) uses it at run time; the
// packer, cmd/k1s-pack, uses Write to make one. It knows nothing about what the programs are.
//
// The archive is appended to the executable instead of embedded in it, so that relinking the light
// program never touches the payload:
//
//	[executable][frame][frame]…[index][trailer]
//
// The trailer has a fixed size and tells where the rest is, counted from the start of the payload.
// Files are cut into chunks, which are filtered (see filter.go and gotables.go). Chunks that have much in
// common, such as the same table of several programs, are compressed together as one frame; frames are
// independent, so that unpacking uses all cores. The index is JSON; its SHA-256 names the payload.
package payload

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"

	"k1s.io/k1s/internal/errs"
)

// Format is the version of the archive's layout; a reader refuses any other.
const Format = 2

// EnvSource names the environment variable by which a development build finds its payload: a
// directory of an unpacked payload, or a file that carries one.
const EnvSource = "K1S_PAYLOAD"

// ErrNone is in the chain of the error from Open when the file carries no payload at all, as a light
// program fresh from "go build" does.
var ErrNone = errors.New("carries no payload")

// ErrDamaged is in the chain of every error caused by content that is not what was packed.
var ErrDamaged = errors.New("payload is damaged")

// Limits on what an index may ask for. They are far above any real payload and keep a hostile one
// from exhausting memory or disk.
const (
	MaxFrame = 160 << 20 // when decompressed
	maxIndex = 16 << 20
	maxFiles = 10_000
	maxTotal = 4 << 30
)

const (
	magic       = "\x7fk1spay\n"
	trailerSize = 8 + 4 + 4 + 8 + 8 + 8 + sha256.Size
	idBytes     = 16
)

// Index describes everything in a payload.
type Index struct {
	Files []File `json:"files"` // sorted by name
}

// File is a regular file, or a symbolic link when Link is set.
type File struct {
	Name   string      `json:"name"`             // relative, slash-separated, clean
	Mode   fs.FileMode `json:"mode,omitempty"`   // permission bits
	Size   int64       `json:"size,omitempty"`   // bytes when unpacked
	SHA256 string      `json:"sha256,omitempty"` // of the whole file, for people and for the software bill of materials
	Link   string      `json:"link,omitempty"`   // target, relative to the link's directory
	Chunks []Chunk     `json:"chunks,omitempty"` // in order; together they are the file
}

// Chunk is one piece of a file. Several chunks, of any files, may be in one frame.
type Chunk struct {
	Offset int64  `json:"offset"` // of the frame, from the start of the payload
	Packed int64  `json:"packed"` // compressed bytes of the frame
	At     int64  `json:"at"`     // where the chunk is in the decompressed frame
	Length int64  `json:"length"` // bytes it has there, that is before the filter is undone
	Size   int64  `json:"size"`   // bytes in the file
	SHA256 string `json:"sha256"` // of the bytes in the file
	Filter string `json:"filter,omitempty"`
}

// Payload is an opened payload. It holds no file open and may be used concurrently.
type Payload struct {
	ID    string // the first half of the SHA-256 of the index, in hex: names the directory
	Index Index

	source string // file that carries it, or the unpacked directory
	start  int64  // where the payload begins in source
	dir    bool   // source is an unpacked directory
	raw    []byte // the index as packed
}

// Open reads trailer and index of the payload that the file carries; cost is independent of the
// payload's size. When the file carries none, the environment variable EnvSource may name another
// source. The error is of kind NotFound and wraps ErrNone when there is no payload at all, and
// wraps ErrDamaged when there is one that cannot be trusted.
func Open(executable string) (*Payload, error) {
	p, err := openFile(executable)
	if !errors.Is(err, ErrNone) {
		return p, err
	}
	source := os.Getenv(EnvSource)
	if source == "" {
		return nil, err
	}
	st, err := os.Stat(source)
	if err != nil {
		return nil, fmt.Errorf("opening the payload named by %s: %w", EnvSource, err)
	}
	if st.IsDir() {
		return openDir(source)
	}
	return openFile(source)
}

// OpenSelf is Open for the running executable.
func OpenSelf() (*Payload, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding the running executable: %w", err)
	}
	return Open(exe)
}

func openFile(name string) (*Payload, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("opening payload: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("opening payload: %w", err)
	}
	size := st.Size()

	none := func() error {
		return errs.Hint(errs.As(errs.NotFound, fmt.Errorf("%s %w", name, ErrNone)),
			"this is a development build: run make build, or set %s to an unpacked payload", EnvSource)
	}
	damaged := func(format string, args ...any) error {
		return damagedError("payload of %s: %s", name, fmt.Sprintf(format, args...))
	}
	if size < trailerSize {
		return nil, none()
	}
	var tr [trailerSize]byte
	if _, err := f.ReadAt(tr[:], size-trailerSize); err != nil {
		return nil, fmt.Errorf("reading payload trailer of %q: %w", name, err)
	}
	t, ok := parseTrailer(tr[:])
	if !ok {
		return nil, none()
	}
	switch {
	case t.format != Format:
		return nil, damaged("format %d, this program reads %d", t.format, Format)
	case t.length < trailerSize || t.length > size:
		return nil, damaged("it says to be %d bytes, the file has %d", t.length, size)
	case t.indexSize <= 0 || t.indexSize > maxIndex || t.indexOffset < 0 || t.indexOffset > t.length-trailerSize-t.indexSize:
		return nil, damaged("the index is said to be at %d, %d bytes long", t.indexOffset, t.indexSize)
	}
	p := &Payload{source: name, start: size - t.length, raw: make([]byte, t.indexSize)}
	if _, err := f.ReadAt(p.raw, p.start+t.indexOffset); err != nil {
		return nil, fmt.Errorf("reading payload index of %q: %w", name, err)
	}
	if sha256.Sum256(p.raw) != t.sum {
		return nil, damaged("the index has the wrong checksum")
	}
	if err := p.parse(t.indexOffset); err != nil {
		return nil, fmt.Errorf("payload of %s: %w", name, err)
	}
	return p, nil
}

func openDir(dir string) (*Payload, error) {
	raw, err := os.ReadFile(filepath.Join(dir, indexName))
	if err != nil {
		return nil, fmt.Errorf("reading unpacked payload %q: %w", dir, err)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("reading unpacked payload %q: %w", dir, err)
	}
	p := &Payload{source: abs, dir: true, raw: raw}
	if err := p.parse(maxTotal); err != nil {
		return nil, fmt.Errorf("unpacked payload %s: %w", dir, err)
	}
	return p, nil
}

// parse fills ID and Index from raw. Chunks must lie before limit.
func (p *Payload) parse(limit int64) error {
	dec := json.NewDecoder(bytes.NewReader(p.raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p.Index); err != nil {
		return damagedError("the index cannot be read: %v", err)
	}
	sum := sha256.Sum256(p.raw)
	p.ID = hex.EncodeToString(sum[:idBytes])
	return p.Index.check(limit)
}

// check refuses an index that would make us write outside the target directory or use unreasonable
// amounts of anything. limit is where chunks have to end.
func (x *Index) check(limit int64) error {
	if len(x.Files) == 0 || len(x.Files) > maxFiles {
		return damagedError("the index lists %d files", len(x.Files))
	}
	kinds := map[string]string{} // every name and every directory above one: "file", "link" or "dir"
	var total int64
	for i, f := range x.Files {
		if !validName(f.Name) {
			return damagedError("the index has the unsafe file name %q", f.Name)
		}
		if i > 0 && x.Files[i-1].Name >= f.Name {
			return damagedError("the index is not sorted at %q", f.Name)
		}
		if k := kinds[f.Name]; k != "" {
			return damagedError("the index has %q twice", f.Name)
		}
		kinds[f.Name] = "file"
		if f.Link != "" {
			kinds[f.Name] = "link"
		}
		for d := path.Dir(f.Name); d != "."; d = path.Dir(d) {
			if k := kinds[d]; k != "" && k != "dir" {
				return damagedError("the index has %q inside %q, which is a %s", f.Name, d, k)
			}
			kinds[d] = "dir"
		}
		if f.Link != "" {
			// Resolved against the link's directory the target must stay inside, and no part of it may
			// climb above the top on the way.
			target := path.Join(path.Dir(f.Name), f.Link)
			if len(f.Chunks) > 0 || path.IsAbs(f.Link) || strings.Contains(f.Link, `\`) || !validName(target) ||
				strings.Count(f.Link, "..") > strings.Count(f.Name, "/") {
				return damagedError("the index has the unsafe link %q to %q", f.Name, f.Link)
			}
			continue
		}
		if f.Mode&^0o755 != 0 || f.Mode&0o400 == 0 {
			return damagedError("the index gives %q the mode %o", f.Name, f.Mode)
		}
		var size int64
		for _, c := range f.Chunks {
			if c.Offset < 0 || c.Packed <= 0 || c.Packed > 2*MaxFrame || c.Offset > limit-c.Packed || c.Size <= 0 || c.Size > MaxFrame ||
				c.At < 0 || c.At > MaxFrame || c.Length <= 0 || c.Length > MaxFrame || len(c.SHA256) != 2*sha256.Size || !knownFilter(c.Filter) {
				return damagedError("the index has a chunk of %q that cannot be", f.Name)
			}
			size += c.Size
		}
		total += size
		if size != f.Size || total > maxTotal {
			return damagedError("the index gives %q %d bytes in chunks of %d", f.Name, f.Size, size)
		}
	}
	return nil
}

// validName reports whether name is a clean relative slash-separated path that is local on every
// operating system and does not collide with the files we keep beside the payload's.
func validName(name string) bool {
	return name != "" && name == path.Clean(name) && filepath.IsLocal(filepath.FromSlash(name)) && !path.IsAbs(name) &&
		!strings.ContainsAny(name, "\\:\x00") && name != "." && !strings.HasPrefix(name, ".")
}

// Size is the number of bytes the payload needs on disk when unpacked.
func (p *Payload) Size() int64 {
	var n int64
	for _, f := range p.Index.Files {
		n += f.Size
	}
	return n
}

// Source is the file or unpacked directory the payload is read from.
func (p *Payload) Source() string { return p.source }

// File finds a file of the payload by name.
func (p *Payload) File(name string) (File, bool) {
	for _, f := range p.Index.Files {
		if f.Name == name {
			return f, true
		}
	}
	return File{}, false
}

// ReadFile returns the content of one file of the payload without unpacking the rest. The error
// wraps fs.ErrNotExist when the payload has no such regular file.
func ReadFile(p *Payload, name string) ([]byte, error) {
	f, ok := p.File(name)
	if !ok || f.Link != "" {
		return nil, &fs.PathError{Op: "read from payload", Path: name, Err: fs.ErrNotExist}
	}
	if p.dir {
		return os.ReadFile(filepath.Join(p.source, filepath.FromSlash(name)))
	}
	src, err := os.Open(p.source)
	if err != nil {
		return nil, fmt.Errorf("opening payload: %w", err)
	}
	defer src.Close()
	out := make([]byte, 0, f.Size)
	for i, c := range f.Chunks {
		frame, err := p.frame(src, c, inMemory)
		if err == nil {
			var b []byte
			b, err = c.restore(frame)
			out = append(out, b...)
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s from payload, piece %d: %w", name, i, err)
		}
	}
	return out, nil
}

// frame reads and decompresses the frame that the chunk is in, into what room gives for its size.
func (p *Payload) frame(src io.ReaderAt, c Chunk, room func(size int64) ([]byte, error)) ([]byte, error) {
	packed := make([]byte, c.Packed)
	if _, err := src.ReadAt(packed, p.start+c.Offset); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, damagedError("it ends too early")
		}
		return nil, err
	}
	// What is wrong with the head is told by the decoder. A frame that does not say how large it is, is small.
	var head zstd.Header
	var buf []byte
	if err := head.Decode(packed); err == nil && head.HasFCS && head.FrameContentSize <= MaxFrame {
		if buf, err = room(int64(head.FrameContentSize) + overrun); err != nil {
			return nil, err
		}
	}
	// One for each of the few frames: a decoder that is kept keeps what it has decoded, over a hundred megabytes.
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxFrame), zstd.WithDecoderMaxWindow(MaxFrame))
	if err != nil {
		return nil, fmt.Errorf("starting decompression: %w", err)
	}
	defer dec.Close()
	out, err := dec.DecodeAll(packed, buf[:0])
	if err != nil {
		return nil, damagedError("it cannot be decompressed: %v", err)
	}
	return out, nil
}

// overrun is how much room behind its result the decoder wants, and more: without it, it makes a new buffer.
const overrun = 64 << 10

// inMemory is room for a frame that the garbage collector gives back.
func inMemory(size int64) ([]byte, error) { return make([]byte, size), nil }

// restore takes the chunk out of its frame, undoes its filter and verifies it. It may use the chunk's part of
// the frame for the result.
func (c Chunk) restore(frame []byte) ([]byte, error) {
	if c.At > int64(len(frame))-c.Length {
		return nil, damagedError("%d bytes where there should be %d", len(frame), c.At+c.Length)
	}
	out, err := UndoFilter(c.Filter, frame[c.At:c.At+c.Length:c.At+c.Length], c.Size)
	if err != nil {
		return nil, damagedError("the filter %s cannot be undone: %v", c.Filter, err)
	}
	if int64(len(out)) != c.Size {
		return nil, damagedError("%d bytes instead of %d", len(out), c.Size)
	}
	if !sumIs(out, c.SHA256) {
		return nil, damagedError("wrong checksum")
	}
	return out, nil
}

func sumIs(b []byte, want string) bool {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]) == want
}

// damagedError tells what is wrong, wraps ErrDamaged and carries the remedy.
func damagedError(format string, args ...any) error {
	return errs.Hint(fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...)),
		"the k1s file is incomplete or altered: fetch or build it again")
}

type trailer struct {
	format      uint32
	length      int64 // of the whole payload, trailer included
	indexOffset int64
	indexSize   int64
	sum         [sha256.Size]byte
}

func parseTrailer(b []byte) (trailer, bool) {
	if string(b[trailerSize-8:]) != magic {
		return trailer{}, false
	}
	t := trailer{
		format:      binary.LittleEndian.Uint32(b[0:]),
		length:      int64(binary.LittleEndian.Uint64(b[8:])),
		indexOffset: int64(binary.LittleEndian.Uint64(b[16:])),
		indexSize:   int64(binary.LittleEndian.Uint64(b[24:])),
	}
	copy(t.sum[:], b[32:])
	return t, true
}

func (t trailer) bytes() []byte {
	b := make([]byte, trailerSize)
	binary.LittleEndian.PutUint32(b[0:], t.format)
	binary.LittleEndian.PutUint64(b[8:], uint64(t.length))
	binary.LittleEndian.PutUint64(b[16:], uint64(t.indexOffset))
	binary.LittleEndian.PutUint64(b[24:], uint64(t.indexSize))
	copy(b[32:], t.sum[:])
	copy(b[trailerSize-8:], magic)
	return b
}
