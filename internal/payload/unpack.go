package payload

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"

	"k1s.io/k1s/internal/errs"
)

// Names beside and inside unpacked payloads. All begin with a dot, which no payload file may, except
// for the link, which no payload directory can be called.
const (
	indexName = ".index.json" // the index as packed
	stampName = ".stamp.json" // what the files looked like when they were last found intact
	lockName  = ".lock"       // in the root, held while anything changes
	tempMark  = ".unpack-"    // prefix of directories being filled
	current   = "current"
)

// Result tells what Unpack did.
type Result struct {
	Dir      string   // the unpacked payload: root/<id>, absolute
	Unpacked bool     // it was not there (or only half) and has been unpacked
	Repaired []string // files that had been altered or removed and were restored, with the reason: a health problem

	release func() // nil: it is not held
}

// Release lets Prune, in whatever process, remove the payload again once nothing runs from it. Until then, or until this process
// has ended, it stays: between Unpack and the first program that is started from it there is nothing else to tell that it is needed,
// and nodes of other versions may share root.
func (r Result) Release() {
	if r.release != nil {
		r.release()
	}
}

// Dir names the directory of an already unpacked payload and checks no content; it takes well under
// a millisecond. The error is of kind NotFound when the payload is not unpacked under root.
func Dir(p *Payload, root string) (string, error) {
	if p.dir {
		return p.source, nil
	}
	dir := filepath.Join(root, p.ID)
	if _, err := os.Stat(filepath.Join(dir, stampName)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", errs.New(errs.NotFound, "payload %s is not unpacked under %s", p.ID, root)
		}
		return "", fmt.Errorf("looking for the unpacked payload: %w", err)
	}
	return dir, nil
}

// Unpack makes sure that root/<id> holds the payload's files intact and that root/current points to
// it. What is there already is checked by metadata and only read where that differs from the record; an
// altered or missing file is restored by an atomic replacement, so that running programs keep what
// they have. Any number of processes may call it at once. A cancelled ctx leaves nothing half done.
// For a payload that is an unpacked directory (see EnvSource) it returns that directory as it is.
// memory is how many bytes may be used, 0 where that is not known; with little it takes longer.
// The payload is held for the caller until Result.Release.
func Unpack(ctx context.Context, p *Payload, root string, memory uint64) (Result, error) {
	if p.dir {
		return Result{Dir: p.source}, nil
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return Result{}, fmt.Errorf("unpacking to %q: %w", root, err)
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return Result{}, p.explain(root, err)
	}
	unlock, err := lock(ctx, filepath.Join(root, lockName))
	if err != nil {
		return Result{}, p.explain(root, err)
	}
	defer unlock()

	res := Result{Dir: filepath.Join(root, p.ID)}
	_, err = os.Lstat(res.Dir)
	switch {
	case err == nil:
		res.Repaired, err = p.verify(ctx, res.Dir, memory)
	case errors.Is(err, fs.ErrNotExist):
		res.Unpacked = true
		err = p.unpackNew(ctx, root, res.Dir, memory)
	}
	if err != nil {
		return Result{}, p.explain(root, err)
	}
	if err := p.setCurrent(root); err != nil {
		return Result{}, p.explain(root, err)
	}
	// Before the lock is given up: nobody prunes in between.
	if res.release, err = hold(res.Dir); err != nil {
		return Result{}, p.explain(root, err)
	}
	return res, nil
}

// Extract writes the files whose names are wanted below dir, which must be there and not have them yet, and
// returns dir. They are verified as Unpack's are, but nothing is recorded and nothing restored later. For a
// payload that is an unpacked directory it returns that directory as it is.
func Extract(ctx context.Context, p *Payload, dir string, memory uint64, wanted func(name string) bool) (string, error) {
	if p.dir {
		return p.source, nil
	}
	var files []File
	for _, f := range p.Index.Files {
		if wanted(f.Name) {
			files = append(files, f)
		}
	}
	if err := p.write(ctx, dir, files, memory); err != nil {
		return "", p.explain(dir, err)
	}
	return dir, nil
}

// explain turns what the operating system says into what the user can do about it.
func (p *Payload) explain(root string, err error) error {
	err = fmt.Errorf("unpacking the carried programs to %s: %w", root, err)
	switch {
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return errs.Hint(err, "free some space: they need %d MB there", (p.Size()+1<<20-1)>>20)
	case errors.Is(err, syscall.EROFS):
		return errs.Hint(err, "the file system is read-only: remount it, or choose another data directory")
	case errors.Is(err, fs.ErrPermission):
		return errs.Hint(err, "run as root, or choose a data directory that you may write to")
	}
	return err
}

// unpackNew fills a temporary directory on the same file system and renames it: the directory under
// its final name is always complete. The caller holds the lock, so temporary directories found here
// are left from a crash.
func (p *Payload) unpackNew(ctx context.Context, root, dir string, memory uint64) (err error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempMark) {
			if err := os.RemoveAll(filepath.Join(root, e.Name())); err != nil {
				return fmt.Errorf("removing what an interrupted run left: %w", err)
			}
		}
	}
	temp, err := os.MkdirTemp(root, tempMark)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temp))
		}
	}()
	if err := os.Chmod(temp, 0o755); err != nil {
		return err
	}
	if err := p.write(ctx, temp, p.Index.Files, memory); err != nil {
		return err
	}
	if err := writeSynced(filepath.Join(temp, indexName), p.raw, 0o444); err != nil {
		return err
	}
	if err := p.stamp(temp); err != nil {
		return err
	}
	if err := os.Rename(temp, dir); err != nil {
		return err
	}
	return syncDir(root)
}

// write creates the given files of the payload under dir, which must not have them yet. Frames are
// decompressed in parallel, or where memory is scarce one after the other, and their chunks written in place; all
// bytes are verified before they are written.
func (p *Payload) write(ctx context.Context, dir string, files []File, memory uint64) error {
	src, err := os.Open(p.source)
	if err != nil {
		return err
	}
	defer src.Close()
	root, err := os.OpenRoot(dir) // refuses to leave dir, whatever the index and the directory say
	if err != nil {
		return err
	}
	defer root.Close()

	// A job is a frame and what it has of the files.
	type part struct {
		file  *output
		chunk Chunk
		at    int64
	}
	jobs := map[int64][]part{} // by the frame's offset
	var outs []*output
	defer func() {
		for _, o := range outs {
			o.f.Close()
		}
	}()
	dirs := map[string]bool{}
	for _, f := range files {
		if d := path.Dir(f.Name); d != "." {
			dirs[d] = true
			if err := root.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		if f.Link != "" {
			if err := root.Symlink(f.Link, f.Name); err != nil {
				return err
			}
			continue
		}
		w, err := root.OpenFile(f.Name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		o := &output{f: w, left: len(f.Chunks), mode: f.Mode}
		outs = append(outs, o)
		if o.left == 0 {
			if err := o.finish(); err != nil {
				return err
			}
		}
		var at int64
		for _, c := range f.Chunks {
			jobs[c.Offset] = append(jobs[c.Offset], part{o, c, at})
			at += c.Size
		}
	}

	// The buffers are as large as the largest frames; a daemon that lives for months has no more use for them.
	defer debug.FreeOSMemory()
	// The largest frames first: the small ones fill the gaps at the end.
	frames := slices.SortedFunc(maps.Keys(jobs), func(a, b int64) int {
		return cmp.Or(-cmp.Compare(jobs[a][0].chunk.Packed, jobs[b][0].chunk.Packed), cmp.Compare(a, b))
	})
	sizes := make([]int64, 0, len(jobs))
	for _, parts := range jobs {
		size := int64(0)
		for _, part := range parts {
			size = max(size, part.chunk.At+part.chunk.Length)
		}
		sizes = append(sizes, size)
	}
	way := choose(runtime.GOMAXPROCS(0), memory, sizes)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan []part)
	var wg sync.WaitGroup
	for range way.workers {
		wg.Go(func() {
			r := room{onDisk: way.onDisk, dir: dir}
			defer r.leave()
			for parts := range queue {
				frame, err := p.frame(src, parts[0].chunk, r.enter)
				for _, part := range parts {
					var b []byte
					if err == nil {
						b, err = part.chunk.restore(frame)
					}
					if err == nil {
						err = part.file.writeAt(b, part.at)
					}
					if err != nil {
						cancel(fmt.Errorf("%s: %w", part.file.f.Name(), err))
						break
					}
				}
				if way.onDisk { // what decoder and filters have used would add up
					r.leave()
					debug.FreeOSMemory()
				}
			}
		})
	}
feed:
	for _, at := range frames {
		select {
		case queue <- jobs[at]:
		case <-ctx.Done():
			break feed
		}
	}
	close(queue)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	for d := range dirs {
		if err := syncDir(filepath.Join(dir, filepath.FromSlash(d))); err != nil {
			return err
		}
	}
	return nil
}

// output is a file being written by several workers; whoever writes the last chunk finishes it.
type output struct {
	f    *os.File
	mode fs.FileMode

	mu   sync.Mutex
	left int // chunks still missing, guarded by mu
}

func (o *output) writeAt(b []byte, at int64) error {
	if _, err := o.f.WriteAt(b, at); err != nil {
		return err
	}
	startWriteback(o.f, at, int64(len(b)))
	o.mu.Lock()
	o.left--
	last := o.left == 0
	o.mu.Unlock()
	if last {
		return o.finish()
	}
	return nil
}

// finish gives the file its mode and makes it durable. The handle stays open for the caller to close.
func (o *output) finish() error {
	if err := o.f.Chmod(o.mode); err != nil {
		return err
	}
	return o.f.Sync()
}

// stampEntry is what tells cheaply that a file was not touched. The change time cannot be set by
// ordinary means, so replacing, editing or chmodding a file always shows.
type stampEntry struct {
	Name  string      `json:"name"`
	Size  int64       `json:"size"`
	Mode  fs.FileMode `json:"mode"`
	MTime int64       `json:"mtime"` // ns
	CTime int64       `json:"ctime"` // ns
	Inode uint64      `json:"inode"`
}

func look(dir string, f File) (stampEntry, error) {
	st, err := os.Lstat(filepath.Join(dir, filepath.FromSlash(f.Name)))
	if err != nil {
		return stampEntry{}, err
	}
	e := stampEntry{Name: f.Name, Size: st.Size(), Mode: st.Mode(), MTime: st.ModTime().UnixNano()}
	e.CTime, e.Inode = changeTime(st)
	return e, nil
}

// stamp records the files as they are now.
func (p *Payload) stamp(dir string) error {
	entries := make([]stampEntry, 0, len(p.Index.Files))
	for _, f := range p.Index.Files {
		e, err := look(dir, f)
		if err != nil {
			return err
		}
		entries = append(entries, e)
	}
	b, err := json.Marshal(entries)
	if err != nil {
		return err
	}
	temp := filepath.Join(dir, stampName+".new")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := writeSynced(temp, b, 0o444); err != nil {
		return err
	}
	if err := os.Rename(temp, filepath.Join(dir, stampName)); err != nil {
		return err
	}
	return syncDir(dir)
}

// verify compares dir with its record, reads what differs, and restores what is really wrong. The
// caller holds the lock. It returns a line for every file it had to restore.
func (p *Payload) verify(ctx context.Context, dir string, memory uint64) ([]string, error) {
	known := map[string]stampEntry{}
	if b, err := os.ReadFile(filepath.Join(dir, stampName)); err == nil {
		var entries []stampEntry
		if json.Unmarshal(b, &entries) == nil {
			for _, e := range entries {
				known[e.Name] = e
			}
		}
	} // without a usable record every file is read
	var bad []File
	var report []string
	touched := false
	for _, f := range p.Index.Files {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		e, err := look(dir, f)
		if err == nil && e == known[f.Name] {
			continue
		}
		touched = true
		reason := ""
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
			reason = "was missing"
		case err != nil:
			return nil, err
		case f.Link != "":
			target, err := os.Readlink(filepath.Join(dir, filepath.FromSlash(f.Name)))
			if err != nil || target != f.Link {
				reason = "was not the link it should be"
			}
		case !e.Mode.IsRegular():
			reason = "was not a regular file"
		case e.Size != f.Size:
			reason = fmt.Sprintf("had %d bytes instead of %d", e.Size, f.Size)
		case e.Mode.Perm() != f.Mode || e.Mode&^(fs.ModePerm) != 0:
			reason = fmt.Sprintf("had the mode %v instead of %v", e.Mode, f.Mode)
		default:
			ok, err := intact(filepath.Join(dir, filepath.FromSlash(f.Name)), f)
			if err != nil {
				return nil, err
			}
			if !ok {
				reason = "had other content"
			}
		}
		if reason != "" {
			bad = append(bad, f)
			report = append(report, f.Name+" "+reason)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, indexName)); err != nil || string(b) != string(p.raw) {
		touched = true
		if err := replaceFile(filepath.Join(dir, indexName), p.raw); err != nil {
			return nil, err
		}
	}
	if len(bad) > 0 {
		if err := p.restore(ctx, dir, bad, memory); err != nil {
			return nil, fmt.Errorf("restoring %s: %w", strings.Join(report, ", "), err)
		}
	}
	if touched {
		if err := p.stamp(dir); err != nil {
			return nil, err
		}
	}
	return report, nil
}

// restore unpacks the given files beside dir and moves each over the damaged one: a running
// program keeps the file it was started from, and no moment sees half a file.
func (p *Payload) restore(ctx context.Context, dir string, files []File, memory uint64) (err error) {
	temp, err := os.MkdirTemp(filepath.Dir(dir), tempMark)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	if err := p.write(ctx, temp, files, memory); err != nil {
		return err
	}
	for _, f := range files {
		to := filepath.Join(dir, filepath.FromSlash(f.Name))
		if err := ensureDirs(dir, path.Dir(f.Name)); err != nil {
			return err
		}
		if st, err := os.Lstat(to); err == nil && st.IsDir() {
			if err := os.RemoveAll(to); err != nil {
				return err
			}
		}
		if err := os.Rename(filepath.Join(temp, filepath.FromSlash(f.Name)), to); err != nil {
			return err
		}
		if err := syncDir(filepath.Dir(to)); err != nil {
			return err
		}
	}
	return nil
}

// ensureDirs makes every element of rel below dir a real directory: what somebody put in its place, a
// link to elsewhere above all, is removed.
func ensureDirs(dir, rel string) error {
	if rel == "." {
		return nil
	}
	for _, elem := range strings.Split(rel, "/") {
		dir = filepath.Join(dir, elem)
		st, err := os.Lstat(dir)
		if err == nil && !st.IsDir() {
			if err := os.Remove(dir); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// intact compares a file's bytes with the index. The file has the right size already.
func intact(name string, f File) (bool, error) {
	r, err := os.Open(name)
	if err != nil {
		return false, err
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return false, err
	}
	return hex.EncodeToString(h.Sum(nil)) == f.SHA256, nil
}

// setCurrent points root/current to the payload, atomically. The caller holds the lock.
func (p *Payload) setCurrent(root string) error {
	link := filepath.Join(root, current)
	if t, err := os.Readlink(link); err == nil && t == p.ID {
		return nil
	}
	temp := filepath.Join(root, tempMark+current)
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	if err := os.Symlink(p.ID, temp); err != nil {
		return err
	}
	if err := os.Rename(temp, link); err != nil {
		return err
	}
	return syncDir(root)
}

func writeSynced(name string, b []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func replaceFile(name string, b []byte) error {
	temp := name + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := writeSynced(temp, b, 0o444); err != nil {
		return err
	}
	return os.Rename(temp, name)
}
