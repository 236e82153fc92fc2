package kine

import (
	"context"
	"errors"
	"testing"

	"github.com/k3s-io/kine/pkg/server"
)

// wornBackend answers every change as kine's own does when its database took none, or when somebody was faster.
type wornBackend struct {
	server.Backend
	now int64
}

func (b wornBackend) Update(context.Context, string, []byte, int64, int64) (int64, *server.KeyValue, bool, error) {
	return b.now, &server.KeyValue{ModRevision: b.now}, false, nil
}

func (b wornBackend) Delete(context.Context, string, int64) (int64, *server.KeyValue, bool, error) {
	return b.now, &server.KeyValue{ModRevision: b.now}, false, nil
}

func TestAChangeTheDatabaseDidNotTakeIsAnErrorAndNoConflict(t *testing.T) {
	for name, tc := range map[string]struct {
		now, asked int64
		want       error
	}{
		"not taken":           {7, 7, errRefused},
		"somebody was faster": {8, 7, nil},
		"whatever is there":   {7, 0, nil},
	} {
		b := honest{wornBackend{now: tc.now}}
		_, kv, done, err := b.Update(t.Context(), "/a", nil, tc.asked, 0)
		if !errors.Is(err, tc.want) || done || (err == nil) != (kv != nil) {
			t.Errorf("%s: update: %v %v %v", name, kv, done, err)
		}
		_, kv, done, err = b.Delete(t.Context(), "/a", tc.asked)
		if !errors.Is(err, tc.want) || done || (err == nil) != (kv != nil) {
			t.Errorf("%s: delete: %v %v %v", name, kv, done, err)
		}
	}
}
