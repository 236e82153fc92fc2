// Package dump is the state of a datastore as one stream of bytes, whichever datastore it was in: keys and values in the order of
// the keys, as they all were at one revision, with the time that was left of those that go by themselves. It is a part of a backup
// (internal/backup), written and read by the program that copies datastores (internal/applets/migrate).
//
// The stream is the line Magic, then a record a key, then the end. A record has, each behind its length as an unsigned varint
// (encoding/binary), the key and the value, then as unsigned varints the number of the key's lease, 0 for none, and with a lease the
// seconds it had left. The end is the length 0 where a key would be, followed by the number of records and the revision.
package dump

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"k1s.io/k1s/internal/errs"
)

// Magic begins every dump. Its number changes when an older reader would misread a newer dump.
const Magic = "k1s datastore dump 1\n"

// Bounds of what one record may have. etcd takes requests of 1.5 MiB, kine's databases more.
const (
	MaxKey   = 64 << 10
	MaxValue = 64 << 20
)

// Record is one key.
type Record struct {
	Key   string
	Value []byte
	// Lease tells which keys share one; 0 is none. TTL is what was left of it, in seconds.
	Lease uint64
	TTL   uint64
}

// Summary is what a whole dump amounts to.
type Summary struct {
	Keys int64 `json:"keys"`
	// Bytes of keys and values.
	Bytes int64 `json:"bytes"`
	// Revision at which everything was as it is in here.
	Revision int64 `json:"revision"`
}

// Writer writes a dump. Its zero value is of no use, see NewWriter.
type Writer struct {
	w    *bufio.Writer
	last string
	sum  Summary
	err  error
}

// NewWriter begins a dump.
func NewWriter(w io.Writer) *Writer {
	d := &Writer{w: bufio.NewWriterSize(w, 1<<16)}
	_, d.err = d.w.WriteString(Magic)
	return d
}

func (d *Writer) number(n uint64) {
	if d.err == nil {
		var b [binary.MaxVarintLen64]byte
		_, d.err = d.w.Write(b[:binary.PutUvarint(b[:], n)])
	}
}

func (d *Writer) bytes(b []byte) {
	d.number(uint64(len(b)))
	if d.err == nil {
		_, d.err = d.w.Write(b)
	}
}

// Add writes one record. Keys have to come in their order, each once.
func (d *Writer) Add(r Record) error {
	switch {
	case d.err != nil:
		return d.err
	case r.Key == "" || len(r.Key) > MaxKey || len(r.Value) > MaxValue:
		return errs.New(errs.Failure, "the key %.100q with %d bytes, or its value with %d bytes, is larger than what a dump holds", r.Key, len(r.Key), len(r.Value))
	case r.Key <= d.last:
		return errs.New(errs.Failure, "the datastore gave the key %.100q after %.100q", r.Key, d.last)
	}
	d.bytes([]byte(r.Key))
	d.bytes(r.Value)
	d.number(r.Lease)
	if r.Lease != 0 {
		d.number(r.TTL)
	}
	d.last = r.Key
	d.sum.Keys++
	d.sum.Bytes += int64(len(r.Key) + len(r.Value))
	return d.err
}

// Close writes the end; w itself stays open.
func (d *Writer) Close(revision int64) (Summary, error) {
	d.sum.Revision = revision
	d.number(0)
	d.number(uint64(d.sum.Keys))
	d.number(uint64(revision))
	if d.err == nil {
		d.err = d.w.Flush()
	}
	return d.sum, d.err
}

// Reader reads a dump. Its zero value is of no use, see NewReader.
type Reader struct {
	r    *bufio.Reader
	last string
	sum  Summary
	done bool
}

// NewReader reads the beginning. An error of kind errs.Invalid says that it is no dump, or one of another version.
func NewReader(r io.Reader) (*Reader, error) {
	d := &Reader{r: bufio.NewReaderSize(r, 1<<16)}
	head := make([]byte, len(Magic))
	if _, err := io.ReadFull(d.r, head); err != nil {
		return nil, broken(err)
	}
	if string(head) != Magic {
		return nil, errs.New(errs.Invalid, "the dump of the datastore is in a form that this k1s does not know: it begins with %q", head)
	}
	return d, nil
}

// broken is what an error of reading means: what ends too early was cut off.
func broken(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errs.New(errs.Invalid, "the dump of the datastore was cut off")
	}
	return fmt.Errorf("reading the dump of the datastore: %w", err)
}

func (d *Reader) number() (uint64, error) {
	n, err := binary.ReadUvarint(d.r)
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return n, err
	}
	return n, errs.New(errs.Invalid, "a number in the dump of the datastore cannot be read: %w", err)
}

// chunk is how much is read at a time before more memory is taken: a length may be a lie.
const chunk = 1 << 20

func (d *Reader) bytes(size, most uint64, what string) ([]byte, error) {
	if size > most {
		return nil, errs.New(errs.Invalid, "the dump of the datastore is damaged: a %s in it has %d bytes, and at most %d are possible", what, size, most)
	}
	out := make([]byte, 0, min(size, chunk))
	for uint64(len(out)) < size {
		n := len(out)
		out = append(out, make([]byte, min(size-uint64(n), chunk))...)
		if _, err := io.ReadFull(d.r, out[n:]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Next is the next record, and io.EOF after the last one, when the end was as it has to be. Other errors are of kind errs.Invalid where
// the dump itself is what is wrong.
func (d *Reader) Next() (Record, error) {
	if d.done {
		return Record{}, io.EOF
	}
	r, err := d.next()
	if errors.Is(err, io.EOF) && d.done {
		return r, io.EOF
	}
	if err != nil && !errs.Is(err, errs.Invalid) {
		err = broken(err)
	}
	return r, err
}

func (d *Reader) next() (r Record, err error) {
	size, err := d.number()
	if err != nil {
		return r, err
	}
	if size == 0 {
		return r, d.end()
	}
	key, err := d.bytes(size, MaxKey, "key")
	if err != nil {
		return r, err
	}
	if r.Key = string(key); r.Key <= d.last {
		return r, errs.New(errs.Invalid, "the dump of the datastore is damaged: %.100q stands after %.100q", r.Key, d.last)
	}
	if size, err = d.number(); err != nil {
		return r, err
	}
	if r.Value, err = d.bytes(size, MaxValue, "value"); err != nil {
		return r, err
	}
	if r.Lease, err = d.number(); err == nil && r.Lease != 0 {
		r.TTL, err = d.number()
	}
	if err != nil {
		return r, err
	}
	d.last = r.Key
	d.sum.Keys++
	d.sum.Bytes += int64(len(r.Key) + len(r.Value))
	return r, nil
}

func (d *Reader) end() error {
	keys, err := d.number()
	if err != nil {
		return err
	}
	revision, err := d.number()
	if err != nil {
		return err
	}
	d.sum.Revision = int64(revision)
	if int64(keys) != d.sum.Keys || d.sum.Revision < 0 {
		return errs.New(errs.Invalid, "the dump of the datastore is damaged: it has %d keys and says %d", d.sum.Keys, keys)
	}
	if _, err := d.r.ReadByte(); !errors.Is(err, io.EOF) {
		if err != nil {
			return err
		}
		return errs.New(errs.Invalid, "the dump of the datastore is damaged: something stands behind its end")
	}
	d.done = true
	return io.EOF
}

// Summary is what has been read; of the whole when Next has told io.EOF.
func (d *Reader) Summary() Summary { return d.sum }

// Check reads a whole dump.
func Check(r io.Reader) (Summary, error) {
	d, err := NewReader(r)
	if err != nil {
		return Summary{}, err
	}
	for {
		if _, err := d.Next(); errors.Is(err, io.EOF) {
			return d.Summary(), nil
		} else if err != nil {
			return d.Summary(), err
		}
	}
}
