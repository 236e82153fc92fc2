package main

import (
	"bytes"
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
	chunk           int // bytes
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
	chunk := fs.Int("chunk", 32, "chunk size, MiB")
	if err := fs.Parse(args); err != nil {
		return err
	}
	o.chunk = *chunk << 20
	if o.dir == "" || o.cache == "" || o.out == "" || fs.NArg() > 0 || o.level < 1 || o.level > 22 || o.chunk < 1 || o.chunk > payload.MaxChunk {
		return errors.New("pack needs -dir, -cache and -o, a level from 1 to 22, and chunks of at most 64 MiB")
	}
	return pack(ctx, o)
}

// pack compresses every file of o.dir. Compressed chunks are kept in the cache under the hash of
// their content and settings, so packing again costs only what changed.
func pack(ctx context.Context, o packOptions) error {
	if err := os.MkdirAll(o.cache, 0o755); err != nil {
		return err
	}
	index, pieces, err := survey(o)
	if err != nil {
		return err
	}
	if err := compressAll(ctx, o, pieces); err != nil {
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
	for _, p := range pieces {
		used[p.key] = true
		b, err := os.ReadFile(filepath.Join(o.cache, p.key))
		if err != nil {
			return err
		}
		c := &index.Files[p.file].Chunks[p.chunk]
		c.Packed = int64(len(b))
		if c.Offset, err = w.Chunk(b); err != nil {
			return err
		}
	}
	id, err := w.Close(index)
	if err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	if err := os.Rename(temp, o.out); err != nil {
		return err
	}
	if err := dropUnused(o.cache, used); err != nil {
		return err
	}
	return report(os.Stdout, index, id)
}

// piece is one chunk on its way.
type piece struct {
	file, chunk int // where in the index
	path        string
	payload.Region
	key string // cache entry
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
		for _, c := range cut(regions, f.Size, int64(o.chunk)) {
			raw := b[c.From:c.To]
			chunk := payload.Chunk{Size: int64(len(raw)), SHA256: sum(raw), Filter: c.Filter}
			pieces = append(pieces, piece{file: i, chunk: len(f.Chunks), path: name, Region: c})
			f.Chunks = append(f.Chunks, chunk)
		}
	}
	return index, pieces, nil
}

// compressAll fills the cache and notes each piece's entry in it, one zstd process per CPU.
func compressAll(ctx context.Context, o packOptions, pieces []piece) error {
	version, err := exec.CommandContext(ctx, "zstd", "-q", "--version").Output()
	if err != nil {
		return fmt.Errorf("running zstd: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan *piece)
	var wg sync.WaitGroup
	for range runtime.NumCPU() {
		wg.Go(func() {
			for p := range queue {
				if err := compress(ctx, o, p, version); err != nil {
					cancel(fmt.Errorf("compressing %s: %w", p.path, err))
				}
			}
		})
	}
feed:
	for i := range pieces {
		select {
		case queue <- &pieces[i]:
		case <-ctx.Done():
			break feed
		}
	}
	close(queue)
	wg.Wait()
	return context.Cause(ctx)
}

// compress makes the cache have the piece. The entry's name is the hash of what is compressed and how.
func compress(ctx context.Context, o packOptions, p *piece, version []byte) error {
	f, err := os.Open(p.path)
	if err != nil {
		return err
	}
	defer f.Close()
	raw := make([]byte, p.To-p.From)
	if _, err := f.ReadAt(raw, p.From); err != nil {
		return err
	}
	b, err := filtered(p.Filter, raw)
	if err != nil {
		return err
	}
	args := zstdArgs(o.level, len(b))
	p.key = sum(fmt.Appendf(nil, "%s %q %s", sum(b), args, version))
	entry := filepath.Join(o.cache, p.key)
	if _, err := os.Stat(entry); err == nil {
		return nil
	}
	cmd := exec.CommandContext(ctx, "zstd", args...)
	var out, msg bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(b), &out, &msg
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("running zstd: %w: %s", err, msg.Bytes())
	}
	temp := fmt.Sprintf("%s.%d.%d", entry, p.file, p.chunk) // equal pieces have one entry
	if err := os.WriteFile(temp, out.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(temp, entry)
}

func zstdArgs(level, size int) []string {
	args := []string{"-q", "-c", "-T1", "--no-progress", "--stream-size=" + strconv.Itoa(size)}
	if level > 19 {
		args = append(args, "--ultra")
	}
	if level > 9 { // a window as large as the chunk; slower levels profit, fast ones do not look that far
		args = append(args, "--long=26")
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
	if !bytes.Equal(back, raw) || len(b) > payload.MaxChunk {
		return nil, fmt.Errorf("filter %s does not restore what it was given", filter)
	}
	return b, nil
}

// cut divides a file of the given size into chunks: the regions, and what is between them. A large
// stretch becomes several chunks of about the same size, so that the cores that unpack have equal shares;
// but a table of Go's stays in one.
func cut(regions []payload.Region, size, chunk int64) []payload.Region {
	var all []payload.Region
	add := func(from, to int64, filter string) {
		n := (to - from + chunk - 1) / chunk
		if filter == payload.FilterGoFuncs || filter == payload.FilterGoLines {
			n = 1
		}
		for i := range n {
			all = append(all, payload.Region{From: from + (to-from)*i/n, To: from + (to-from)*(i+1)/n, Filter: filter})
		}
	}
	at := int64(0)
	for _, r := range regions {
		if r.Filter != payload.FilterX86 && r.To-r.From > payload.MaxChunk/2 {
			continue // nobody's tables are that large
		}
		add(at, r.From, "")
		add(r.From, r.To, r.Filter)
		at = r.To
	}
	add(at, size, "")
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

func report(w io.Writer, x payload.Index, id string) error {
	var raw, packed int64
	for _, f := range x.Files {
		if f.Link != "" {
			continue
		}
		var n int64
		for _, c := range f.Chunks {
			n += c.Packed
		}
		raw, packed = raw+f.Size, packed+n
		if _, err := fmt.Fprintf(w, "%-34s %10d %10d\n", f.Name, f.Size, n); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%-34s %10d %10d  payload %s\n", "total", raw, packed, id)
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
	r, err := payload.Unpack(ctx, p, args[1])
	if err != nil {
		return err
	}
	fmt.Printf("%s unpacked=%v repaired=%v in %v\n", r.Dir, r.Unpacked, r.Repaired, time.Since(begin).Round(time.Millisecond))
	return nil
}
