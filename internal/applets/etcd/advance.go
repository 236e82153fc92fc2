package etcd

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
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

// Revision is the last in the database of a member that does not run. What the member had in its log only is not in it.
func Revision(dataDir string) (rev int64, err error) {
	file := filepath.Join(dataDir, "member", "snap", "db")
	// It may be damaged, which is why somebody wants another one; bbolt then panics, or reads behind its end.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("reading etcd's %s: it is damaged: %v", file, r)
		}
	}()
	db, err := bolt.Open(file, 0o400, &bolt.Options{ReadOnly: true, Timeout: lockTime})
	if err != nil {
		return 0, fmt.Errorf("opening etcd's %s: %w", file, err)
	}
	var last mvcc.Revision
	err = db.View(func(tx *bolt.Tx) error {
		keys := tx.Bucket(schema.Key.Name())
		if keys == nil {
			return errors.New("it has no revisions")
		}
		if k, _ := keys.Cursor().Last(); k != nil {
			last = mvcc.BytesToRev(k)
		}
		return nil
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return 0, fmt.Errorf("reading etcd's %s: %w", file, err)
	}
	return last.Main, nil
}

// lockTime is how long a member that is just ending may hold its database.
const lockTime = 2 * time.Second
