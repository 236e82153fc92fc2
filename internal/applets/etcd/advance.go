package etcd

import (
	"fmt"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
)

// Advance makes the next write of a single member have a revision greater than the given one. The member must not
// run, and have run once. Revisions that are passed over count as compacted, so that whoever watched another datastore
// up to one of them is told to read everything again. It does what etcdutl does with snapshot restore --bump-revision
// --mark-compacted, without a restore: the log of a single member has nobody else to agree with.
func Advance(dataDir string, revision int64) error {
	file := filepath.Join(dataDir, "member", "snap", "db")
	be := backend.NewDefaultBackend(zap.NewNop(), file)
	tx := be.BatchTx()
	tx.LockOutsideApply()
	var latest mvcc.Revision
	err := tx.UnsafeForEach(schema.Key, func(k, _ []byte) error {
		if r := mvcc.BytesToRev(k); r.GreaterThan(latest) {
			latest = r
		}
		return nil
	})
	if err == nil && latest.Main < revision {
		tx.UnsafePut(schema.Key, mvcc.RevToBytes(mvcc.Revision{Main: revision}, mvcc.NewRevBytes()), []byte{})
		mvcc.UnsafeSetScheduledCompact(tx, revision)
	}
	tx.Unlock()
	be.ForceCommit()
	if closing := be.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return fmt.Errorf("advancing etcd's %s to revision %d: %w", file, revision, err)
	}
	return nil
}
