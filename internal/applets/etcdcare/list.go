package etcdcare

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdcare"
)

func list(ctx context.Context, j etcdcare.Job) (etcdcare.Answer, error) {
	var out etcdcare.Answer
	var err error
	if out.Entries, err = listDir(j.Dir); err != nil {
		return out, fmt.Errorf("looking for snapshots: %w", err)
	}
	for _, dir := range j.Archives {
		out.Entries = append(out.Entries, lookArchive(dir))
	}
	if j.S3.Bucket != "" {
		far, err := openBucket(j.S3)
		var there []etcdcare.Entry
		if err == nil {
			there, err = far.list(ctx)
		}
		if err != nil { // what is here can be used all the same
			out.Warnings = append(out.Warnings, fmt.Sprintf("snapshots in S3 are not shown: %v", err))
		}
		out.Entries = append(out.Entries, there...)
	}
	etcdcare.Sort(out.Entries)
	return out, nil
}

// listDir lists the snapshots of a directory, and reads all of each.
func listDir(dir string) ([]etcdcare.Entry, error) {
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	var out []etcdcare.Entry
	for _, f := range files {
		file := filepath.Join(dir, f.Name())
		base := cutEnds(file)
		if base == file || f.IsDir() || strings.HasPrefix(f.Name(), ".") || seen[base] {
			continue
		}
		seen[base] = true
		e := lookFile(base + etcdcare.FileEnd)
		if e.State == etcdcare.Unfinished && filepath.Ext(e.Where) == etcdcare.MetaEnd {
			if meta, err := readMeta(e.Where); err != nil || meta.Name != e.Name {
				continue // it is somebody else's
			}
		}
		out = append(out, e)
	}
	return out, nil
}

// lookFile is what there is to be known of a snapshot of this machine.
func lookFile(file string) etcdcare.Entry {
	base := cutEnds(file)
	e := etcdcare.Entry{Where: file, State: etcdcare.Complete}
	bad := func(s etcdcare.State, format string, args ...any) etcdcare.Entry {
		e.State, e.Problem = s, fmt.Sprintf(format, args...)
		return e
	}
	meta, metaErr := readMeta(base + etcdcare.MetaEnd)
	e.Snapshot = meta
	e.Name = filepath.Base(base)
	st, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		e.Where = base + etcdcare.MetaEnd
		if part, err := os.Stat(file + etcdcare.PartEnd); err == nil {
			e.Where, e.Bytes, e.At = file+etcdcare.PartEnd, part.Size(), part.ModTime().UTC()
		}
		return bad(etcdcare.Unfinished, "it is being written, or its writing broke off")
	}
	if err != nil {
		return bad(etcdcare.Corrupt, "%v", err)
	}
	if metaErr != nil {
		e.Kind, e.At = etcdcare.Manual, st.ModTime().UTC()
	}
	e.Bytes = st.Size()
	size, sum, err := checkFile(file)
	switch {
	case err != nil:
		return bad(etcdcare.Corrupt, "%v", err)
	case errs.Is(metaErr, errs.NotFound):
		return bad(etcdcare.Bare, "there is no %s beside it, so nothing is known of its cluster", filepath.Base(base+etcdcare.MetaEnd))
	case metaErr != nil:
		return bad(etcdcare.Corrupt, "%v", metaErr)
	case size != meta.Bytes:
		return bad(etcdcare.Corrupt, "it has %d bytes and should have %d", size, meta.Bytes)
	case sum != meta.SHA256:
		return bad(etcdcare.Corrupt, "it is not the file that was written: its SHA-256 is another one")
	}
	return e
}

func database(dataDir string) string { return filepath.Join(dataDir, "member", "snap", "db") }

func lookArchive(dir string) etcdcare.Entry {
	e := etcdcare.Entry{Where: dir, State: etcdcare.Complete}
	st, err := os.Stat(database(dir))
	meta, metaErr := readMeta(filepath.Join(dir, etcdcare.ArchiveMeta))
	e.Snapshot = meta
	e.Name, e.Kind = filepath.Base(dir), etcdcare.Archived
	switch {
	case err != nil:
		e.State, e.Problem = etcdcare.Corrupt, fmt.Sprintf("it has no database: %v", err)
		return e
	case metaErr != nil:
		e.State, e.Problem, e.At = etcdcare.Bare, fmt.Sprintf("nothing is known of its cluster: %v", metaErr), st.ModTime().UTC()
	}
	e.Bytes = st.Size()
	return e
}

// lookAt is what there is to be known of one that is named by its place.
func lookAt(ctx context.Context, j etcdcare.Job, where string) (etcdcare.Entry, error) {
	if key, inS3 := cutS3(where); inS3 {
		far, err := openBucket(j.S3)
		if err != nil {
			return etcdcare.Entry{}, err
		}
		return far.look(ctx, key)
	}
	st, err := os.Stat(where)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return etcdcare.Entry{}, errs.Hint(errs.New(errs.NotFound, "there is no %s", where), "see: k1s etcd snapshot ls")
	case err != nil:
		return etcdcare.Entry{}, err
	case st.IsDir():
		return lookArchive(where), nil
	case !strings.HasSuffix(where, etcdcare.FileEnd): // of another program
		e := etcdcare.Entry{Where: where, State: etcdcare.Bare, Problem: "nothing is known of its cluster"}
		e.Name, e.Kind, e.At = filepath.Base(where), etcdcare.Manual, st.ModTime().UTC()
		if e.Bytes, e.SHA256, err = checkFile(where); err != nil {
			e.State, e.Problem = etcdcare.Corrupt, err.Error()
		}
		return e, nil
	}
	return lookFile(where), nil
}

func look(ctx context.Context, j etcdcare.Job) (etcdcare.Answer, error) {
	var out etcdcare.Answer
	for _, where := range j.Where {
		e, err := lookAt(ctx, j, where)
		if err != nil {
			return out, err
		}
		out.Entries = append(out.Entries, e)
	}
	return out, nil
}
