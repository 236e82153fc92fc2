package images

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// A bundle may expand to this much: real images compress two- to fivefold, and what is far beyond that
// is meant to fill the disk.
const (
	expandFactor = 200
	expandBase   = 1 << 30
)

// expandLimit is the number of bytes an archive of size bytes may expand to.
func expandLimit(size int64) int64 { return expandBase + expandFactor*size }

// expand returns the tar stream inside r, whatever compresses it; what that is is seen from the content.
// Reading more than limit bytes from it fails.
func expand(r io.Reader, limit int64) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 1<<16)
	head, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var out io.ReadCloser
	switch {
	case len(head) == 0:
		return nil, errors.New("the file is empty")
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		if out, err = gzip.NewReader(br); err != nil {
			return nil, fmt.Errorf("reading gzip: %w", err)
		}
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		// The window is what `zstd --long` uses; more would be memory anybody's file could ask for.
		d, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("reading zstd: %w", err)
		}
		out = d.IOReadCloser()
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}), bytes.HasPrefix(head, []byte("BZh")):
		return nil, errors.New("the file is compressed with xz or bzip2; only gzip and zstd are understood")
	default:
		out = io.NopCloser(br)
	}
	return &limited{ReadCloser: out, left: limit, limit: limit}, nil
}

type limited struct {
	io.ReadCloser
	left, limit int64
}

// errExpands is returned for an archive that is much bigger inside than outside.
var errExpands = errors.New("the archive expands too far")

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		// One byte more tells an archive of exactly the limit from a longer one.
		if n, err := l.ReadCloser.Read(make([]byte, 1)); n == 0 {
			return 0, err
		}
		return 0, fmt.Errorf("%w: to more than %d bytes", errExpands, l.limit)
	}
	if int64(len(p)) > l.left {
		p = p[:l.left]
	}
	n, err := l.ReadCloser.Read(p)
	l.left -= int64(n)
	return n, err
}
