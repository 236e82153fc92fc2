package etcdcare

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"k1s.io/k1s/internal/applets/etcd"
	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/platform"
)

// stage makes the data directory of a new cluster of one member from a snapshot, and leaves nothing when it cannot.
func stage(ctx context.Context, j etcdcare.Job) (out etcdcare.Answer, err error) {
	if len(j.Where) != 1 {
		return out, errs.New(errs.Usage, "one snapshot is restored, not %d", len(j.Where))
	}
	e, err := lookAt(ctx, j, j.Where[0])
	if err != nil {
		return out, err
	}
	if e.State != etcdcare.Complete && e.State != etcdcare.Bare {
		return out, errs.Hint(errs.New(errs.Invalid, "the snapshot %s is %s: %s", e.Where, e.State, e.Problem), "take another one; see: k1s etcd snapshot ls")
	}
	if free, ferr := platform.FreeBytes(filepath.Dir(j.Staged)); ferr == nil {
		needed := uint64(e.Bytes) + room
		if e.S3() {
			needed += uint64(e.Bytes)
		}
		if free < needed {
			return out, errs.Hint(errs.New(errs.Failure, "%d MiB are free in %s, and %d are needed to restore this", free>>20, filepath.Dir(j.Staged), needed>>20), "make room")
		}
	}
	file, raw := e.Where, e.Kind == etcdcare.Archived
	switch key, inS3 := cutS3(e.Where); {
	case inS3:
		file = j.Staged + ".download"
		defer func() { err = errors.Join(err, discard(file)) }()
		far, err := openBucket(j.S3)
		if err == nil {
			err = far.download(ctx, key, file)
		}
		if err != nil {
			return out, err
		}
		size, sum, err := checkFile(file)
		if err == nil && e.State != etcdcare.Bare && (size != e.Bytes || sum != e.SHA256) {
			err = errs.New(errs.Invalid, "it is not the file that was written")
		}
		if err != nil {
			return out, errs.Hint(errs.New(errs.Invalid, "the snapshot %s is corrupt: %w", e.Where, err), "take another one; see: k1s etcd snapshot ls")
		}
	case raw:
		file = database(e.Where)
	}
	seen, err := inspect(file, e.Snapshot)
	if err != nil {
		return out, err
	}
	e.Revision, e.Keys = seen.Revision, seen.Keys
	if err := build(j, file, raw); err != nil {
		return out, errors.Join(err, os.RemoveAll(j.Staged))
	}
	out.Entries, out.Revision = []etcdcare.Entry{e}, e.Revision
	return out, context.Cause(ctx)
}

// build makes the data directory.
func build(j etcdcare.Job, file string, raw bool) error {
	if err := os.RemoveAll(j.Staged); err != nil {
		return err
	}
	err := snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath: file, OutputDataDir: j.Staged, SkipHashCheck: raw,
		Name: j.Member, PeerURLs: []string{j.Peer}, InitialCluster: j.Member + "=" + j.Peer,
		// Another cluster than before: a member of that one, should it still run, is refused.
		InitialClusterToken: filepath.Base(j.Staged),
	})
	if err != nil {
		return fmt.Errorf("making etcd's data directory from the snapshot: %w", err)
	}
	return syncTree(j.Staged)
}

// syncTree puts everything below a directory on the disk, and its own name.
func syncTree(dir string) error {
	return errors.Join(durable.SyncTree(dir), durable.SyncDir(filepath.Dir(dir)))
}

// advance makes the staged data directory begin behind every revision of the old one. That of an old one that cannot be read
// is estimated.
func advance(j etcdcare.Job) (etcdcare.Answer, error) {
	var out etcdcare.Answer
	staged, err := etcd.Revision(j.Staged)
	if err != nil {
		return out, err
	}
	var old int64
	if j.Old != "" {
		if old, err = etcd.Revision(j.Old); err != nil {
			out.Warnings = append(out.Warnings, fmt.Sprintf("the data that is replaced cannot be read, so its last revision is estimated: %v", err))
		}
	}
	out.Revision = etcdcare.Target(staged, old, time.Since(j.Snapshot.At))
	if err := etcd.Advance(j.Staged, out.Revision); err != nil {
		return out, err
	}
	return out, syncTree(j.Staged)
}
