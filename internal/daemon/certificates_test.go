package daemon

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/pki"
)

// left tells how long the certificates that are no authorities last, the shortest first.
func left(t *testing.T, p paths.Paths) time.Duration {
	t.Helper()
	all, err := pki.List(p)
	if err != nil || len(all) < 10 {
		t.Fatalf("%d certificates, %v", len(all), err)
	}
	least := time.Duration(1<<63 - 1)
	for _, c := range all {
		if c.Problem != "" {
			t.Fatalf("%s: %s", c.Name, c.Problem)
		}
		if !c.Authority {
			least = min(least, time.Until(c.NotAfter))
		}
	}
	return least
}

func TestCertificatesAreRenewedWhileTheNodeRunsWhenAThirdOfTheirTimeIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const day = 24 * time.Hour
		time.Sleep(27 * 365 * day) // the clock of a bubble starts before any that can be right
		dir := t.TempDir()
		p := paths.Paths{Data: dir, Run: dir + "/run", Config: dir + "/etc"}
		in := component.Input{Config: config.Default(), Paths: p, Facts: component.Facts{NodeName: "n", NodeIP: netip.MustParseAddr("192.0.2.1")}}
		d := &Daemon{log: slog.New(slog.DiscardHandler), board: health.NewBoard(time.Now), in: in}
		if _, err := certificates(t.Context(), d.log, in, false); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			after, atLeast, atMost time.Duration
		}{
			{240 * day, 124 * day, 126 * day}, // too early
			{5 * day, 364 * day, 366 * day},
		} {
			time.Sleep(c.after)
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { d.renewCertificates(ctx); close(done) }()
			time.Sleep(renewEvery + time.Second)
			stop()
			<-done
			if l := left(t, p); l < c.atLeast || l > c.atMost {
				t.Errorf("%s later %s are left", c.after, l)
			}
		}
		if ps := d.board.List(); len(ps) > 0 {
			t.Errorf("problems: %v", ps)
		}
	})
}
