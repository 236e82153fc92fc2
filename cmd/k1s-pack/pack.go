package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/payload"
)

type packOptions struct {
	dir, cache, out string
	level           int // of the zstd program; above 19 means --ultra
	frame           int // bytes a frame may have before compression, and a chunk in it
	filter          bool
}

func runPack(ctx context.Context, args []string) error {
	o := packOptions{}
	fs := flag.NewFlagSet("pack", flag.ContinueOnError)
	fs.StringVar(&o.dir, "dir", "", "directory with the payload's files")
	fs.StringVar(&o.cache, "cache", "", "directory that keeps compressed chunks between builds")
	fs.StringVar(&o.out, "o", "", "payload file to write")
	fs.IntVar(&o.level, "level", 19, "zstd level, 1 to 22")
	fs.BoolVar(&o.filter, "filter", true, "filter programs before compression")
	frame := fs.Int("frame", 144, "size of frames before compression, MiB; a whole one of these is in memory on each core that unpacks")
	if err := fs.Parse(args); err != nil {
		return err
	}
	o.frame = *frame << 20
	if o.dir == "" || o.cache == "" || o.out == "" || fs.NArg() > 0 || o.level < 1 || o.level > 22 || o.frame < 1 || o.frame > payload.MaxFrame {
		return errors.New("pack needs -dir, -cache and -o, a level from 1 to 22, and frames of at most 160 MiB")
	}
	return pack(ctx, o)
}

// pack compresses every file of o.dir. Compressed frames are kept in the cache under the hash of
// their content and settings, so packing again costs only what changed. A payload that would be the same
// stays the file it is.
func pack(ctx context.Context, o packOptions) error {
	if err := os.MkdirAll(o.cache, 0o755); err != nil {
		return err
	}
	index, pieces, err := survey(o)
	if err != nil {
		return err
	}
	frames := group(pieces, int64(o.frame))
	if err := compressAll(ctx, o, frames); err != nil {
		return err
	}

	temp := o.out + ".new"
	out, err := os.Create(temp)
	if err != nil {
		return err
	}
	defer out.Close()
	w := payload.NewWriter(out)
	used := map[string]bool{}
	for _, f := range frames {
		used[f.key] = true
		b, err := os.ReadFile(filepath.Join(o.cache, f.key))
		if err != nil {
			return err
		}
		offset, err := w.Frame(b)
		if err != nil {
			return err
		}
		var at int64
		for _, p := range f.pieces {
			c := &index.Files[p.file].Chunks[p.chunk]
			c.Offset, c.Packed, c.At, c.Length = offset, int64(len(b)), at, p.length
			at += p.length
		}
	}
	id, err := w.Close(index)
	if err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	if err := replaceIfOther(o.out, temp); err != nil {
		return err
	}
	if err := dropUnused(o.cache, used); err != nil {
		return err
	}
	return report(os.Stdout, index, id)
}

// replaceIfOther puts a new file in the place of name, unless it is the same, byte for byte; then it is removed.
func replaceIfOther(name, with string) error {
	same, err := equal(name, with)
	if err != nil {
		return err
	}
	if same {
		return os.Remove(with)
	}
	return os.Rename(with, name)
}

// equal tells that both files are there and have the same content.
func equal(a, b string) (bool, error) {
	var readers [2]io.Reader
	var sizes [2]int64
	for i, name := range []string{a, b} {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return false, err
		}
		readers[i], sizes[i] = f, st.Size()
	}
	if sizes[0] != sizes[1] {
		return false, nil
	}
	var parts [2][1 << 16]byte
	for left := sizes[0]; left > 0; {
		n := min(left, int64(len(parts[0])))
		for i := range readers {
			if _, err := io.ReadFull(readers[i], parts[i][:n]); err != nil {
				return false, err
			}
		}
		if !bytes.Equal(parts[0][:n], parts[1][:n]) {
			return false, nil
		}
		left -= n
	}
	return true, nil
}

// piece is one chunk on its way.
type piece struct {
	file, chunk int // where in the index
	path        string
	payload.Region
	length int64 // filtered
}

// frame is what is compressed together.
type frame struct {
	pieces []*piece
	key    string // cache entry
}

// survey lists o.dir, hashes everything and plans the chunks.
func survey(o packOptions) (payload.Index, []piece, error) {
	var index payload.Index
	var pieces []piece
	err := filepath.WalkDir(o.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(o.dir, name)
		if err != nil {
			return err
		}
		f := payload.File{Name: filepath.ToSlash(rel)}
		if d.Type()&fs.ModeSymlink != 0 {
			if f.Link, err = os.Readlink(name); err != nil {
				return err
			}
		} else if !d.Type().IsRegular() {
			return fmt.Errorf("%s is neither file nor link", name)
		}
		index.Files = append(index.Files, f)
		return nil
	})
	if err != nil {
		return index, nil, err
	}
	sort.Slice(index.Files, func(i, j int) bool { return index.Files[i].Name < index.Files[j].Name })

	for i := range index.Files {
		f := &index.Files[i]
		if f.Link != "" {
			continue
		}
		name := filepath.Join(o.dir, filepath.FromSlash(f.Name))
		b, err := os.ReadFile(name)
		if err != nil {
			return index, nil, err
		}
		st, err := os.Stat(name)
		if err != nil {
			return index, nil, err
		}
		f.Mode = 0o444
		if st.Mode()&0o111 != 0 {
			f.Mode = 0o555
		}
		f.Size, f.SHA256 = int64(len(b)), sum(b)
		if !strings.Contains(f.Name, ".d/") && isDynamic(b) { // NAME.d holds what the launcher starts, see build/launch.c
			return index, nil, fmt.Errorf("%s is not linked statically and would not run on every distribution", name)
		}
		var regions []payload.Region
		if o.filter {
			regions = payload.Regions(b)
		}
		for _, c := range cut(regions, f.Size, int64(o.frame)) {
			raw := b[c.From:c.To]
			chunk := payload.Chunk{Size: int64(len(raw)), SHA256: sum(raw), Filter: c.Filter}
			pieces = append(pieces, piece{file: i, chunk: len(f.Chunks), path: name, Region: c})
			f.Chunks = append(f.Chunks, chunk)
		}
	}
	return index, pieces, nil
}

// group makes frames: pieces of a kind stand together as long as they fit, in the order of the files. Files
// that are no programs have no kind, and a frame each: they can be read without unpacking the rest.
func group(pieces []piece, limit int64) []*frame {
	var all []*frame
	open := map[string]*frame{} // by kind, the one that is being filled
	sizes := map[*frame]int64{}
	for i := range pieces {
		p := &pieces[i]
		f := open[p.Kind]
		if p.Kind == "" || f == nil || sizes[f]+p.To-p.From > limit {
			f = &frame{}
			all = append(all, f)
			open[p.Kind] = f
		}
		f.pieces = append(f.pieces, p)
		sizes[f] += p.To - p.From
	}
	return all
}

// compressAll fills the cache, one zstd process per CPU, the largest frames first.
func compressAll(ctx context.Context, o packOptions, frames []*frame) error {
	version, err := exec.CommandContext(ctx, "zstd", "-q", "--version").Output()
	if err != nil {
		return fmt.Errorf("running zstd: %w", err)
	}
	size := func(f *frame) (n int64) {
		for _, p := range f.pieces {
			n += p.To - p.From
		}
		return n
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan *frame)
	var wg sync.WaitGroup
	for range runtime.NumCPU() {
		wg.Go(func() {
			for f := range queue {
				if err := compress(ctx, o, f, version); err != nil {
					cancel(err)
				}
			}
		})
	}
feed:
	for _, f := range slices.SortedStableFunc(slices.Values(frames), func(a, b *frame) int { return -cmp.Compare(size(a), size(b)) }) {
		select {
		case queue <- f:
		case <-ctx.Done():
			break feed
		}
	}
	close(queue)
	wg.Wait()
	return context.Cause(ctx)
}

// compress makes the cache have the frame. The entry's name is the hash of what is compressed and how.
func compress(ctx context.Context, o packOptions, f *frame, version []byte) error {
	var content []byte
	for _, p := range f.pieces {
		b, err := p.read()
		if err != nil {
			return fmt.Errorf("reading %s: %w", p.path, err)
		}
		p.length = int64(len(b))
		content = append(content, b...)
	}
	if len(content) > payload.MaxFrame {
		return fmt.Errorf("packing %s and what is like it: %d bytes are too many for a frame", f.pieces[0].path, len(content))
	}
	args := zstdArgs(o.level, len(content))
	f.key = sum(fmt.Appendf(nil, "%s %q %s", sum(content), args, version))
	entry := filepath.Join(o.cache, f.key)
	if _, err := os.Stat(entry); err == nil {
		return nil
	}
	cmd := exec.CommandContext(ctx, "zstd", args...)
	var out, msg bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(content), &out, &msg
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("compressing %s with zstd: %w: %s", f.pieces[0].path, err, msg.Bytes())
	}
	temp := fmt.Sprintf("%s.%d.%d", entry, f.pieces[0].file, f.pieces[0].chunk) // equal frames have one entry
	if err := os.WriteFile(temp, out.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(temp, entry)
}

// read returns the piece, filtered.
func (p *piece) read() ([]byte, error) {
	f, err := os.Open(p.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw := make([]byte, p.To-p.From)
	if _, err := f.ReadAt(raw, p.From); err != nil {
		return nil, err
	}
	return filtered(p.Filter, raw)
}

func zstdArgs(level, size int) []string {
	args := []string{"-q", "-c", "-T1", "--no-progress", "--stream-size=" + strconv.Itoa(size)}
	if level > 19 {
		args = append(args, "--ultra")
	}
	if level > 9 { // a window as large as the frame; slower levels profit, fast ones do not look that far
		args = append(args, "--long=28")
	}
	return append(args, "-"+strconv.Itoa(level))
}

func dropUnused(cache string, used map[string]bool) error {
	entries, err := os.ReadDir(cache)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !used[e.Name()] {
			if err := os.Remove(filepath.Join(cache, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// filtered applies a filter and makes sure that it can be undone. A filter that knows what it filters
// may find that it does not know this: such an error is the packer's, not the payload's.
func filtered(filter string, raw []byte) ([]byte, error) {
	b, err := payload.DoFilter(filter, slices.Clone(raw))
	if err != nil {
		return nil, fmt.Errorf("filter %s: %w", filter, err)
	}
	back, err := payload.UndoFilter(filter, slices.Clone(b), int64(len(raw)))
	if err != nil {
		return nil, fmt.Errorf("undoing filter %s: %w", filter, err)
	}
	if !bytes.Equal(back, raw) {
		return nil, fmt.Errorf("filter %s does not restore what it was given", filter)
	}
	return b, nil
}

// cut divides a file of the given size into chunks: its regions, or all of it if it has none. A large one becomes
// several of about the same size, so that the cores that unpack have equal shares; but a table stays whole.
func cut(regions []payload.Region, size, limit int64) []payload.Region {
	if len(regions) == 0 {
		regions = []payload.Region{{To: size}}
	}
	var all []payload.Region
	for _, r := range regions {
		length := r.To - r.From
		n := (length + limit - 1) / limit
		if r.Filter == payload.FilterGoFuncs || r.Filter == payload.FilterGoLines {
			n = 1
		}
		for i := range n {
			part := r
			part.From, part.To = r.From+length*i/n, r.From+length*(i+1)/n
			all = append(all, part)
		}
	}
	return all
}

// isDynamic reports whether a program needs a dynamic loader.
func isDynamic(b []byte) bool {
	f, err := elf.NewFile(bytes.NewReader(b))
	return err == nil && slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// report prints each file's size and what it is packed: of a frame that files share, each has its share.
func report(w io.Writer, x payload.Index, id string) error {
	frames := map[int64]int64{} // by offset: bytes before compression
	for _, f := range x.Files {
		for _, c := range f.Chunks {
			frames[c.Offset] += c.Length
		}
	}
	var raw int64
	var packed float64
	for _, f := range x.Files {
		if f.Link != "" {
			continue
		}
		n := 0.0
		for _, c := range f.Chunks {
			n += float64(c.Packed) * float64(c.Length) / float64(frames[c.Offset])
		}
		raw, packed = raw+f.Size, packed+n
		if _, err := fmt.Fprintf(w, "%-34s %10d %10.0f\n", f.Name, f.Size, n); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%-34s %10d %10.0f  payload %s\n", "total", raw, packed, id)
	return err
}

// runList prints what a file carries.
func runList(_ context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("list needs one file")
	}
	p, err := payload.Open(args[0])
	if err != nil {
		return err
	}
	return report(os.Stdout, p.Index, p.ID)
}

// runUnpack does what the daemon does at its first start, for trying and timing it.
func runUnpack(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("unpack needs a file and a directory")
	}
	begin := time.Now()
	p, err := payload.Open(args[0])
	if err != nil {
		return err
	}
	r, err := payload.Unpack(ctx, p, args[1], 0)
	if err != nil {
		return err
	}
	fmt.Printf("%s unpacked=%v repaired=%v in %v\n", r.Dir, r.Unpacked, r.Repaired, time.Since(begin).Round(time.Millisecond))
	return nil
}
