// Package unitlog keeps the log files of units: it opens them, bounds their size and reads them back.
//
// A unit's process writes straight to its log through a descriptor opened with O_APPEND, with no pipe
// and no copying goroutine in between, so nothing is lost and nobody blocks when the daemon dies. The
// price is that nobody can tell the process to reopen its log, so the file keeps its name and inode for
// ever and rotation works around the writer: Rotate copies the head of the file to "<name>.1" and then
// cuts that head off. Where the file system can do that in one step (ext4, xfs) no byte is lost or
// doubled whatever is written meanwhile; elsewhere the file is emptied right after the copy has caught
// up, and what is written in the microseconds between is lost. Numbered files and the file itself, read
// in order, are one uninterrupted stream.
//
// Used by package runner (opening, rotating), supervise (the last lines of a crash) and the daemon
// (`k1s logs`). It is not a logging library: the lines are whatever the process wrote.
package unitlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Policy bounds a log. The zero value keeps three rotated files of 10 MiB.
type Policy struct {
	MaxBytes int64 // rotate when the file is larger; 0 is 10 MiB
	Keep     int   // rotated files to keep; 0 is 3
}

func (p Policy) withDefaults() Policy {
	if p.MaxBytes <= 0 {
		p.MaxBytes = 10 << 20
	}
	if p.Keep <= 0 {
		p.Keep = 3
	}
	return p
}

// checkEvery is the pause between two looks at a log's size: a stat, so it costs nothing, and at the
// rate at which even a debug log grows the bound is kept well enough.
const checkEvery = 10 * time.Second

// followEvery is the pause between two looks at a followed log: quick enough for a person.
const followEvery = 150 * time.Millisecond

// Open opens the log for appending and makes its directory. The result is meant to be handed to a
// process as its standard output and error.
func Open(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("making the log directory: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	return f, nil
}

// startLine opens what one run of a unit writes to its log.
const startLine = "--- k1s starts "

// Begin marks in the log that another run of the unit begins. A log that cannot be written to is no reason
// not to run, so there is no error.
func Begin(f *os.File, unit string, at time.Time) {
	fmt.Fprintf(f, "%s%s %s\n", startLine, unit, at.UTC().Format(time.RFC3339))
}

// LastRun returns those of the lines that the newest run has written.
func LastRun(lines []string) []string {
	for i := len(lines) - 1; i >= 0; i-- {
		if strings.HasPrefix(lines[i], startLine) {
			return lines[i+1:]
		}
	}
	return lines
}

func rotated(path string, i int) string { return path + "." + strconv.Itoa(i) }

// Keep rotates the log whenever it has grown too large, until ctx ends. Errors of single rotations are
// handed to report (which may be nil), and the next look tries again.
func Keep(ctx context.Context, path string, p Policy, report func(error)) {
	t := time.NewTicker(checkEvery)
	defer t.Stop()
	for {
		if _, err := Rotate(path, p); err != nil && report != nil {
			report(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// Rotate moves the content of a log that is larger than p.MaxBytes to "<path>.1" (and that to ".2", and
// so on) and tells whether it did. The writer is not disturbed. A log that is not there is not too large.
func Rotate(path string, p Policy) (bool, error) {
	p = p.withDefaults()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("rotating a log: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() <= p.MaxBytes {
		return false, err
	}
	if err := rotate(f, path, st, p.Keep); err != nil {
		return false, fmt.Errorf("rotating %s: %w", path, err)
	}
	return true, nil
}

func rotate(f *os.File, path string, st fs.FileInfo, keep int) error {
	tmp, err := os.OpenFile(path+".rotating", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, st.Mode().Perm())
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // nothing there when all went well
	defer tmp.Close()
	cut := cuttable(f, st.Size())
	n, err := io.Copy(tmp, io.NewSectionReader(f, 0, cut))
	if err != nil {
		return err
	}
	catchUp := func() error {
		m, err := io.Copy(tmp, io.NewSectionReader(f, n, 1<<62))
		n += m
		return err
	}

	// Readers must not look between the appearance of the copy and the disappearance of the original.
	unlock, err := lock(f, true)
	if err != nil {
		return err
	}
	defer unlock()
	for i := keep - 1; i >= 1; i-- {
		if err := os.Rename(rotated(path, i), rotated(path, i+1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(tmp.Name(), rotated(path, 1)); err != nil {
		return err
	}
	if cut < st.Size() {
		if err := cutHead(f, cut); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	if err := catchUp(); err != nil {
		return err
	}
	return f.Truncate(0)
}

// maxTail bounds what Tail reads, whatever the lines look like.
const maxTail = 4 << 20

// Tail returns the last n lines of the log, oldest first, reaching into rotated files. A log that is not
// there has none.
func Tail(path string, n int) ([]string, error) {
	b, _, err := tail(path, n)
	if err != nil || len(b) == 0 {
		return nil, err
	}
	return splitLines(b), nil
}

func splitLines(b []byte) []string {
	var lines []string
	start := 0
	for i, c := range b {
		if c == '\n' {
			lines = append(lines, string(b[start:i]))
			start = i + 1
		}
	}
	if start < len(b) {
		lines = append(lines, string(b[start:]))
	}
	return lines
}

// tail returns the last n lines as they are, and the position in the stream just after them.
func tail(path string, n int) ([]byte, position, error) {
	var pos position
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, pos, nil
	}
	if err != nil {
		return nil, pos, err
	}
	defer f.Close()
	unlock, err := lock(f, false)
	if err != nil {
		return nil, pos, err
	}
	defer unlock()
	st, err := f.Stat()
	if err != nil {
		return nil, pos, err
	}
	pos = position{file: st, offset: st.Size()}
	pos.newest, _ = os.Stat(rotated(path, 1))

	var out []byte
	if n <= 0 {
		return nil, pos, nil
	}
	newlines := 0
	size := st.Size()
	for i := 1; ; i++ {
		done := false
		out, newlines, done, err = tailFile(f, size, out, newlines, n)
		if err != nil || done {
			return out, pos, err
		}
		g, err := os.Open(rotated(path, i))
		if err != nil { // none older, or unreadable: what we have is the tail
			return out, pos, nil
		}
		defer g.Close()
		gst, err := g.Stat()
		if err != nil {
			return out, pos, err
		}
		f, size = g, gst.Size()
	}
}

// tailFile puts the end of f before out until n lines are complete.
func tailFile(f *os.File, size int64, out []byte, newlines, n int) ([]byte, int, bool, error) {
	const chunk = 64 << 10
	for size > 0 {
		c := min(size, chunk)
		buf := make([]byte, c, int(c)+len(out))
		if _, err := f.ReadAt(buf, size-c); err != nil && !errors.Is(err, io.EOF) {
			return out, newlines, true, err
		}
		size -= c
		for i := len(buf) - 1; i >= 0; i-- {
			if buf[i] != '\n' || (i == len(buf)-1 && len(out) == 0) { // the last line's own end is no separator
				continue
			}
			if newlines++; newlines == n {
				return append(buf[i+1:], out...), newlines, true, nil
			}
		}
		out = append(buf, out...)
		if len(out) >= maxTail {
			return out, newlines, true, nil
		}
	}
	return out, newlines, false, nil
}

// position is a place in the stream of a log: offset bytes into file, at a time when newest was the
// youngest rotated file.
type position struct {
	file   fs.FileInfo // nil: the log was not there
	newest fs.FileInfo // nil: nothing had been rotated
	offset int64
}

// Follow writes the last n lines of the log to w and then everything that is added to it, in order and
// across rotations, until ctx ends; then it returns nil. A log that is not there yet is waited for.
func Follow(ctx context.Context, path string, n int, w io.Writer) error {
	b, pos, err := tail(path, n)
	if err != nil {
		return fmt.Errorf("reading the log: %w", err)
	}
	if _, err := w.Write(b); err != nil {
		return err
	}
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if err := step(path, &pos, w); err != nil {
			return fmt.Errorf("following the log: %w", err)
		}
		t.Reset(followEvery)
	}
}

// step writes what was added since pos and moves pos.
func step(path string, pos *position, w io.Writer) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	parts, err := news(f, path, pos)
	defer func() {
		for _, p := range parts {
			p.file.Close()
		}
	}()
	if err != nil {
		return err
	}
	// Rotated files never change, so a slow reader of ours holds up nobody while these are copied.
	for _, p := range parts {
		if _, err := io.Copy(w, io.NewSectionReader(p.file, p.from, p.to-p.from)); err != nil {
			return err
		}
	}
	for {
		b, err := nextBytes(f, path, pos)
		if err != nil || len(b) == 0 {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
}

type part struct {
	file     *os.File
	from, to int64
}

// news finds what of the stream after pos has moved to rotated files, and moves pos to the start of what
// is left in f.
func news(f *os.File, path string, pos *position) ([]part, error) {
	unlock, err := lock(f, false)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return newsLocked(f, path, pos)
}

func newsLocked(f *os.File, path string, pos *position) (parts []part, err error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if pos.file != nil && !os.SameFile(pos.file, st) { // somebody removed it, and a new one was made
		pos.offset, pos.newest = 0, nil
		pos.newest, _ = os.Stat(rotated(path, 1))
	}
	pos.file = st
	var fresh []string // youngest first
	var youngest fs.FileInfo
	known := pos.newest == nil
	for i := 1; ; i++ {
		rst, err := os.Stat(rotated(path, i))
		if err != nil {
			break
		}
		if i == 1 {
			youngest = rst
		}
		if pos.newest != nil && os.SameFile(rst, pos.newest) {
			known = true
			break
		}
		fresh = append(fresh, rotated(path, i))
	}
	pos.newest = youngest
	if !known { // rotated away while we were not looking: go on with the oldest there is
		pos.offset = 0
	}
	for i := len(fresh) - 1; i >= 0; i-- {
		g, err := os.Open(fresh[i])
		if err != nil {
			return parts, err
		}
		gst, err := g.Stat()
		if err != nil {
			g.Close()
			return parts, err
		}
		if pos.offset < gst.Size() {
			parts = append(parts, part{g, pos.offset, gst.Size()})
			pos.offset = 0
			continue
		}
		g.Close()
		pos.offset -= gst.Size()
	}
	if pos.offset > st.Size() { // emptied by hand
		pos.offset = 0
	}
	return parts, nil
}

// nextBytes reads on in f, unless it has been rotated since: the next step sorts that out.
func nextBytes(f *os.File, path string, pos *position) ([]byte, error) {
	unlock, err := lock(f, false)
	if err != nil {
		return nil, err
	}
	defer unlock()
	newest, _ := os.Stat(rotated(path, 1))
	if (newest == nil) != (pos.newest == nil) || newest != nil && !os.SameFile(newest, pos.newest) {
		return nil, nil
	}
	buf := make([]byte, 256<<10)
	n, err := f.ReadAt(buf, pos.offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	pos.offset += int64(n)
	return buf[:n], nil
}
