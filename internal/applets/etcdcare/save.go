package etcdcare

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/etcdcare"
	"k1s.io/k1s/internal/platform"
)

// answerTime is how long etcd may take to begin its answer.
const answerTime = 10 * time.Second

// room is what stays free on the disk when a snapshot is written.
const room = 64 << 20

func save(ctx context.Context, j etcdcare.Job) (etcdcare.Answer, error) {
	s := j.Snapshot
	if err := etcdcare.CheckName(s.Name); err != nil {
		return etcdcare.Answer{}, err
	}
	base := filepath.Join(j.Dir, s.Name)
	if _, err := os.Stat(base + etcdcare.FileEnd); !errors.Is(err, fs.ErrNotExist) {
		return etcdcare.Answer{}, errs.New(errs.Exists, "there is a snapshot %q already, in %s", s.Name, j.Dir)
	}
	if err := os.MkdirAll(j.Dir, 0o700); err != nil {
		return etcdcare.Answer{}, fmt.Errorf("making the directory of snapshots: %w", err)
	}
	part := base + etcdcare.FileEnd + etcdcare.PartEnd
	s, err := fetch(ctx, j.Etcd, part, s)
	if err != nil {
		return etcdcare.Answer{}, errors.Join(fmt.Errorf("taking a snapshot of etcd: %w", err), discard(part))
	}
	meta, err := etcdcare.MarshalSnapshot(s)
	if err == nil {
		err = durable.WriteFile(base+etcdcare.MetaEnd, meta, 0o600)
	}
	if err == nil {
		err = os.Rename(part, base+etcdcare.FileEnd)
	}
	if err == nil {
		err = durable.SyncDir(j.Dir)
	}
	if err != nil {
		return etcdcare.Answer{}, errors.Join(fmt.Errorf("finishing the snapshot: %w", err), discard(part))
	}
	out := etcdcare.Answer{Entries: []etcdcare.Entry{{Snapshot: s, Where: base + etcdcare.FileEnd, State: etcdcare.Complete}}}
	if j.S3.Bucket == "" {
		return out, nil
	}
	far, err := openBucket(j.S3)
	if err == nil {
		var e etcdcare.Entry
		if e, err = far.upload(ctx, s, base+etcdcare.FileEnd, meta); err == nil {
			out.Entries = append(out.Entries, e)
		}
	}
	if err != nil {
		return out, fmt.Errorf("the snapshot is in %s, and not in S3: %w", j.Dir, err)
	}
	if j.S3Only {
		out.Entries = out.Entries[1:]
		return out, removeFiles(base + etcdcare.FileEnd)
	}
	return out, nil
}

func discard(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// fetch writes the database of a member to a file, on the disk and checked, and tells what it is.
func fetch(ctx context.Context, e etcdcare.Etcd, file string, s etcdcare.Snapshot) (etcdcare.Snapshot, error) {
	info := transport.TLSInfo{TrustedCAFile: e.CAFile, CertFile: e.CertFile, KeyFile: e.KeyFile}
	config := clientv3.Config{Endpoints: []string{e.Endpoint}, Logger: zap.NewNop()}
	if e.CAFile != "" {
		var err error
		if config.TLS, err = info.ClientConfig(); err != nil {
			return s, err
		}
	}
	c, err := clientv3.New(config)
	if err != nil {
		return s, err
	}
	defer c.Close()
	asked, cancel := context.WithTimeoutCause(ctx, answerTime, fmt.Errorf("etcd does not answer within %s", answerTime))
	defer cancel()
	status, err := c.Status(asked, e.Endpoint)
	if err != nil {
		if cause := context.Cause(asked); cause != nil {
			err = cause
		}
		return s, errs.Hint(err, "see: k1s status")
	}
	s.Etcd, s.ClusterID = status.Version, fmt.Sprintf("%x", status.Header.ClusterId)
	if free, err := platform.FreeBytes(filepath.Dir(file)); err == nil && free < uint64(status.DbSize)+room {
		return s, errs.Hint(errs.New(errs.Failure, "%d MiB are free in %s, and %d are needed", free>>20, filepath.Dir(file), (status.DbSize+room)>>20), "make room, or name another directory in spec.etcd.snapshots.dir")
	}
	s.At = time.Now().UTC().Truncate(time.Second)
	stream, err := c.SnapshotWithVersion(ctx)
	if err != nil {
		return s, err
	}
	defer stream.Snapshot.Close()
	if err := write(file, stream.Snapshot); err != nil {
		return s, err
	}
	if s.Bytes, s.SHA256, err = checkFile(file); err != nil {
		return s, fmt.Errorf("the snapshot is not whole: %w", err)
	}
	return inspect(file, s)
}

func write(file string, from io.Reader) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// inspect opens a snapshot that is whole, and reads all of it.
func inspect(file string, s etcdcare.Snapshot) (etcdcare.Snapshot, error) {
	st, err := snapshot.NewV3(zap.NewNop()).Status(file)
	if err != nil {
		return s, fmt.Errorf("the snapshot cannot be opened: %w", err)
	}
	s.Revision, s.Keys = st.Revision, st.TotalKey
	return s, nil
}

// sector is what the size of a database is a multiple of; etcd adds the hash of what is before it (client/v3/snapshot).
const sector = 512

// checkFile reads a snapshot and compares it with the hash at its end. It returns its size and the hash of the whole file.
func checkFile(file string) (size int64, sum string, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, "", err
	}
	size = st.Size()
	if size <= sha256.Size || size%sector != sha256.Size {
		return size, "", errs.New(errs.Invalid, "it was cut off: its %d bytes do not end with a hash", size)
	}
	whole, inner := sha256.New(), sha256.New()
	if _, err := io.CopyN(io.MultiWriter(whole, inner), f, size-sha256.Size); err != nil {
		return size, "", err
	}
	end, err := io.ReadAll(io.TeeReader(f, whole))
	if err != nil {
		return size, "", err
	}
	if !bytes.Equal(end, inner.Sum(nil)) {
		return size, "", errs.New(errs.Invalid, "its contents have changed: they do not have the hash at their end")
	}
	return size, hexSum(whole), nil
}

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// cutEnds is the name of a snapshot, with its directory, of any of its files.
func cutEnds(file string) string {
	file = strings.TrimSuffix(file, etcdcare.PartEnd)
	return strings.TrimSuffix(strings.TrimSuffix(file, etcdcare.FileEnd), etcdcare.MetaEnd)
}
