package payload

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
)

// Writer makes a payload: Frame for every frame, then Close with the finished index. The result
// depends on nothing but what it was given, so equal inputs give equal bytes.
type Writer struct {
	w   io.Writer
	pos int64
}

// NewWriter writes to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Frame appends a compressed frame and returns its offset.
func (w *Writer) Frame(packed []byte) (offset int64, err error) {
	offset = w.pos
	if err := w.write(packed); err != nil {
		return 0, err
	}
	return offset, nil
}

// Close appends index and trailer and returns the payload's ID. It refuses what Open would refuse.
func (w *Writer) Close(x Index) (string, error) {
	raw, err := json.Marshal(x)
	if err != nil {
		return "", fmt.Errorf("writing payload index: %w", err)
	}
	p := Payload{raw: raw}
	if err := p.parse(w.pos); err != nil {
		return "", err
	}
	t := trailer{
		format: Format, length: w.pos + int64(len(raw)) + trailerSize,
		indexOffset: w.pos, indexSize: int64(len(raw)), sum: sha256.Sum256(raw),
	}
	if err := w.write(raw); err != nil {
		return "", err
	}
	return p.ID, w.write(t.bytes())
}

func (w *Writer) write(b []byte) error {
	n, err := w.w.Write(b)
	w.pos += int64(n)
	if err != nil {
		return fmt.Errorf("writing payload: %w", err)
	}
	return nil
}
