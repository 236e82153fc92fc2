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
	fs.BoolVar(&o.filter, "filter", true, "filter x86 programs before compression")
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
	at, size    int64
	filter      string
	key         string // cache entry
}

// survey lists o.dir, hashes everything and plans the chunks.
func survey(o packOptions) (payload.Index, []piece, error) {
	var index payload.Index
	var pieces []piece
	version, err := exec.Command("zstd", "-q", "--version").Output()
	if err != nil {
		return index, nil, fmt.Errorf("running zstd: %w", err)
	}
	err = filepath.WalkDir(o.dir, func(name string, d fs.DirEntry, err error) error {
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
		code := span{}
		if o.filter {
			code = x86Code(b)
		}
		for at := int64(0); at < f.Size; {
			end, filter := code.next(at, f.Size)
			end = min(end, at+int64(o.chunk))
			raw := b[at:end]
			c := payload.Chunk{Size: int64(len(raw)), SHA256: sum(raw), Filter: filter}
			key := sum(fmt.Appendf(nil, "%s %s %d %s", c.SHA256, filter, o.level, version))
			pieces = append(pieces, piece{file: i, chunk: len(f.Chunks), path: name, at: at, size: c.Size, filter: filter, key: key})
			f.Chunks = append(f.Chunks, c)
			at = end
		}
	}
	return index, pieces, nil
}

// compressAll fills the cache, one zstd process per CPU.
func compressAll(ctx context.Context, o packOptions, pieces []piece) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan piece)
	var wg sync.WaitGroup
	for range runtime.NumCPU() {
		wg.Go(func() {
			for p := range queue {
				if err := compress(ctx, o, p); err != nil {
					cancel(fmt.Errorf("compressing %s: %w", p.path, err))
				}
			}
		})
	}
	planned := map[string]bool{}
	for _, p := range pieces {
		if planned[p.key] || ctx.Err() != nil {
			continue
		}
		planned[p.key] = true
		if _, err := os.Stat(filepath.Join(o.cache, p.key)); err == nil {
			continue
		}
		select {
		case queue <- p:
		case <-ctx.Done():
		}
	}
	close(queue)
	wg.Wait()
	return context.Cause(ctx)
}

func compress(ctx context.Context, o packOptions, p piece) error {
	f, err := os.Open(p.path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, p.size)
	if _, err := f.ReadAt(b, p.at); err != nil {
		return err
	}
	payload.DoFilter(p.filter, b)
	args := []string{"-q", "-c", "-T1", "--no-progress", "--stream-size=" + strconv.Itoa(len(b))}
	if o.level > 19 {
		args = append(args, "--ultra")
	}
	if o.level > 9 { // a window as large as the chunk; slower levels profit, fast ones do not look that far
		args = append(args, "--long=26")
	}
	args = append(args, "-"+strconv.Itoa(o.level))
	cmd := exec.CommandContext(ctx, "zstd", args...)
	var out, msg bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(b), &out, &msg
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("running zstd: %w: %s", err, msg.Bytes())
	}
	temp := filepath.Join(o.cache, p.key+".new")
	if err := os.WriteFile(temp, out.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(o.cache, p.key))
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

// span is the machine code of a program, as offsets in its file. Chunks end at its ends, so that the
// filter meets nothing but code: elsewhere it would only cost time.
type span struct{ from, to int64 }

// next is where the stretch that begins at at ends, and the filter for it.
func (s span) next(at, size int64) (end int64, filter string) {
	switch {
	case at < s.from:
		return s.from, ""
	case at < s.to:
		return s.to, payload.FilterX86
	}
	return size, ""
}

// x86Code finds the code of an x86-64 program; the zero span for everything else.
func x86Code(b []byte) span {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil || f.Machine != elf.EM_X86_64 {
		return span{}
	}
	text := f.Section(".text")
	if text == nil || text.Offset+text.FileSize > uint64(len(b)) {
		return span{}
	}
	return span{int64(text.Offset), int64(text.Offset + text.FileSize)}
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
