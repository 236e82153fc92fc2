package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/kubeapi"
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

func TestTheWallClockTellsWhenToLookAtCertificates(t *testing.T) {
	noon := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name      string
		last, now time.Time
		want      bool
	}{
		{"an agent that has just begun", time.Time{}, noon, true},
		{"a minute later", noon, noon.Add(time.Minute), false},
		{"an hour later", noon, noon.Add(time.Hour), true},
		{"after a suspend of a month", noon, noon.AddDate(0, 1, 0), true},
		{"when the clock was set back", noon, noon.Add(-time.Second), true},
	} {
		if got := lookDue(c.last, c.now); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	// The monotonic clock of a machine that slept for a day says that no time has passed.
	last := time.Now()
	if !lookDue(last, last.Round(0).Add(24*time.Hour)) || lookDue(last, last) {
		t.Error("it is not the wall clock that counts")
	}
}

func TestCertificatesThatCannotBeRenewedAreTold(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	r := pki.Report{
		CAExpires: now.AddDate(5, 0, 0), Expires: now.AddDate(0, 2, 0), ExpiresFirst: "apiserver",
		Postponed: []pki.Change{{Name: "apiserver", Reason: "expires on 2027-01-22"}, {Name: "daemon-client", Reason: pki.AskedFor}},
	}
	got := certificateProblems(r, now)
	if len(got) != 1 || got[0].Code != health.CertExpiring || !strings.Contains(got[0].Text, "not on this machine: apiserver; the first to end is apiserver, on 2027-01-22") || !strings.Contains(got[0].Remedy, "k1s certs renew") {
		t.Errorf("%+v", got)
	}
	r.Postponed = r.Postponed[1:]
	if got := certificateProblems(r, now); len(got) != 0 {
		t.Errorf("of one that was asked for: %+v", got)
	}
	r.CAExpires = now.AddDate(0, 5, 0)
	if got := certificateProblems(r, now); len(got) != 1 || !strings.Contains(got[0].Text, "CA expires on 2027-04-22") {
		t.Errorf("of a CA that ends: %+v", got)
	}
}

func TestCertificatesThatEndAreAnEventForAsLongAsTheyDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &Daemon{log: slog.New(slog.DiscardHandler), board: health.NewBoard(time.Now)}
		d.in.Facts.NodeName = "n"
		var told []kubeapi.NodeEvent
		away := false
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			d.tellOfCertificates(ctx, func(_ context.Context, e kubeapi.NodeEvent) error {
				if away {
					return errors.New("nobody answers")
				}
				told = append(told, e)
				return nil
			})
		}()
		for _, c := range []struct {
			name    string
			problem []health.Problem
			away    bool
			want    int // events in two hours and a half
		}{
			{"nothing is the matter", nil, false, 0},
			{"something else is", []health.Problem{health.New(health.DiskLow, "little is free")}, false, 0},
			{"the CA ends", []health.Problem{health.New(health.CertExpiring, "the cluster's CA expires on 2027-04-22")}, false, 3},
			{"the API is away", []health.Problem{health.New(health.CertExpiring, "certificates are due")}, true, 0},
			{"and is back", []health.Problem{health.New(health.CertExpiring, "certificates are due")}, false, 3},
			{"it is over", nil, false, 0},
		} {
			told, away = nil, c.away
			d.board.Report("certificates", c.problem)
			time.Sleep(150*time.Minute + time.Second)
			synctest.Wait()
			if len(told) != c.want {
				t.Errorf("%s: %d events, want %d: %+v", c.name, len(told), c.want, told)
			}
			for _, e := range told {
				if e.Node != "n" || e.Reason != "CertificateExpiring" || !strings.HasPrefix(e.Message, c.problem[0].Text+" (") || !strings.Contains(e.Message, "k1s certs") {
					t.Errorf("%s: %+v", c.name, e)
				}
			}
		}
		stop()
		<-done
	})
}
