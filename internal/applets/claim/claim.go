// Package claim reads and writes whose a database is, over etcd's protocol. The API server does so before anything of it
// writes, and who copies a datastore before the first copied key.
package claim

import (
	"context"
	"errors"
	"log/slog"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"k1s.io/k1s/internal/claim"
)

// tries bounds how often somebody else may be faster.
const tries = 10

// Make makes the database ours, unless it is: then it keeps the claim up to date. The error is a *claim.Foreign where it is
// somebody else's.
func Make(ctx context.Context, kv clientv3.KV, root string, ours claim.Ours) (claim.Claim, error) {
	key := claim.Key(root)
	for range tries {
		// The forms kine understands: get one key, create it, replace it as it was read.
		found, published, rev, err := read(ctx, kv, root)
		if err != nil {
			return claim.Claim{}, err
		}
		deed, is, err := claim.Decide(found, published, ours)
		if err != nil {
			return is, err
		}
		if claim.Unsure(found, published, ours) {
			slog.Warn("the database has the state of a cluster in it, and which one cannot be read there; it is taken for this one's", "key", claim.PublishedKey(root))
		}
		value := string(is.Marshal())
		done := true
		switch deed {
		case claim.Create:
			var r *clientv3.TxnResponse
			if r, err = kv.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, value)).Commit(); err == nil {
				done = r.Succeeded
			}
		case claim.Update:
			var r *clientv3.TxnResponse
			if r, err = kv.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", rev)).Then(clientv3.OpPut(key, value)).Else(clientv3.OpGet(key)).Commit(); err == nil {
				done = r.Succeeded
			}
		}
		if err != nil {
			return is, err
		}
		if done {
			return is, nil
		}
	}
	return claim.Claim{}, errors.New("whose the database is changes all the time")
}

// Refused tells that the database does not let us have a key there, as an etcd whose user may write below /registry only.
func Refused(err error) bool {
	var e rpctypes.EtcdError
	return errors.As(err, &e) && e.Code() == codes.PermissionDenied
}

// Look only looks; the error is that of Make.
func Look(ctx context.Context, kv clientv3.KV, root string, ours claim.Ours) error {
	found, published, _, err := read(ctx, kv, root)
	if err == nil {
		_, _, err = claim.Decide(found, published, ours)
	}
	return err
}

func read(ctx context.Context, kv clientv3.KV, root string) (found, published []byte, rev int64, err error) {
	r, err := kv.Get(ctx, claim.Key(root))
	if err != nil {
		return nil, nil, 0, err
	}
	if len(r.Kvs) > 0 {
		return r.Kvs[0].Value, nil, r.Kvs[0].ModRevision, nil
	}
	if r, err = kv.Get(ctx, claim.PublishedKey(root)); err != nil {
		return nil, nil, 0, err
	}
	if len(r.Kvs) > 0 {
		published = r.Kvs[0].Value
	}
	return nil, published, 0, nil
}
