package kine

import (
	"context"
	"errors"

	"github.com/k3s-io/kine/pkg/server"
)

// honest is a backend that tells of changes the database did not take. Kine takes every error of a change or a deletion for
// somebody else's being faster, as it is when keys collide, and answers that the revision is another one (Update and Delete of
// its pkg/logstructured). The API server then tries again and again, on a full disk until the request's time is over.
type honest struct {
	server.Backend
}

var errRefused = errors.New("the database did not take the change; k1s status may know why, as when its disk is full")

// notChanged tells that the answer "another revision" is not true: it is the one that was asked for.
func notChanged(done bool, now *server.KeyValue, revision int64, err error) bool {
	return err == nil && !done && now != nil && revision != 0 && now.ModRevision == revision
}

// Update answers as the backend does, but for that.
func (h honest) Update(ctx context.Context, key string, value []byte, revision, lease int64) (int64, *server.KeyValue, bool, error) {
	at, now, done, err := h.Backend.Update(ctx, key, value, revision, lease)
	if notChanged(done, now, revision, err) {
		return 0, nil, false, errRefused
	}
	return at, now, done, err
}

// Delete answers as the backend does, but for that.
func (h honest) Delete(ctx context.Context, key string, revision int64) (int64, *server.KeyValue, bool, error) {
	at, now, done, err := h.Backend.Delete(ctx, key, revision)
	if notChanged(done, now, revision, err) {
		return 0, nil, false, errRefused
	}
	return at, now, done, err
}
