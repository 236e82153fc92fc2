package wait

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"k1s.io/k1s/internal/errs"
)

func TestATimeoutCarriesWhatAndWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		tries := 0
		err := Until(ctx, time.Second, "kubelet to be ready", func(context.Context) error {
			tries++
			return errors.New("no such file")
		})
		if err == nil || err.Error() != "gave up waiting for kubelet to be ready: no such file" || !errs.Is(err, errs.Timeout) {
			t.Fatalf("error %v of kind %d", err, errs.KindOf(err))
		}
		if tries < 10 || tries > 11 {
			t.Errorf("%d tries in 10 s at 1 s", tries)
		}
	})
}

func TestTheFirstTryIsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if err := Until(t.Context(), time.Hour, "x", func(context.Context) error { return nil }); err != nil || time.Since(start) != 0 {
			t.Fatalf("%v after %s", err, time.Since(start))
		}
	})
}

func TestAPermanentReasonEndsTheWait(t *testing.T) {
	boom := errors.New("corrupt")
	err := Until(t.Context(), time.Hour, "the database", func(context.Context) error { return Permanent(boom) })
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
}

func TestAProbeCutOffByTheEndDoesNotHideTheRealReason(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	err := Until(ctx, time.Nanosecond, "x", func(ctx context.Context) error {
		if n++; n == 1 {
			return errors.New("port closed")
		}
		cancel()
		return ctx.Err()
	})
	if err == nil || err.Error() != "gave up waiting for x: port closed" || !errs.Is(err, errs.Interrupted) {
		t.Fatalf("error %v of kind %d", err, errs.KindOf(err))
	}
}
