package daemon

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheKubeletStartsAgainWhenTheClockGoesBack(t *testing.T) {
	const day = 24 * time.Hour
	for name, tc := range map[string]struct {
		sets []time.Duration // one every lookAtJumps
		want int             // starts again
	}{
		"nobody sets it":                  {sets: []time.Duration{0, 0, 0}},
		"it is slewed":                    {sets: []time.Duration{-time.Second, time.Second, -jump + time.Second}},
		"forward, or a suspended machine": {sets: []time.Duration{day, 0, time.Hour}},
		"back":                            {sets: []time.Duration{0, -day, 0, 0}, want: 1},
		"a minute back":                   {sets: []time.Duration{-jump}, want: 1},
		"forward and back":                {sets: []time.Duration{day, 0, -day, 0}, want: 1},
		"back twice":                      {sets: []time.Duration{-day, -time.Hour}, want: 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				start, off, did := time.Now(), time.Duration(0), 0
				d := &Daemon{log: slog.New(slog.DiscardHandler)}
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					d.watchClock(ctx, func() (time.Time, time.Duration) { return time.Now().Add(off), time.Since(start) }, func(component string) error {
						if component != "kubelet" {
							t.Errorf("%s is started again", component)
						}
						did++
						return nil
					})
				}()
				synctest.Wait()
				for _, by := range tc.sets {
					off += by
					time.Sleep(lookAtJumps)
					synctest.Wait()
				}
				stop()
				<-ended
				if did != tc.want {
					t.Errorf("started again %d times, want %d", did, tc.want)
				}
			})
		})
	}
}
