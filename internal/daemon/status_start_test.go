package daemon

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/supervise"
	"k1s.io/k1s/internal/upgrade"
)

// starting is a daemon that has not come far.
func starting(t *testing.T) *Daemon {
	t.Helper()
	dir := t.TempDir()
	o := Options{Config: config.Default(), Paths: paths.Paths{Data: dir + "/data", Run: dir + "/run"}, Log: slog.New(slog.DiscardHandler)}
	outline, err := components.Outline(component.Input{Config: o.Config, Paths: o.Paths})
	if err != nil {
		t.Fatal(err)
	}
	return &Daemon{
		o: o, log: o.Log, started: time.Now(), outline: outline, board: health.NewBoard(time.Now),
		doing: "unpacking the payload", sup: supervise.New(o.Log, supervise.Options{}),
	}
}

// A node runs for months.
func TestAnUpgradeThatFailedIsToldForADayAndNotUntilTheNextStart(t *testing.T) {
	for ago, told := range map[time.Duration]bool{time.Hour: true, failedFor + time.Hour: false} {
		d := starting(t)
		d.upgrading = upgrade.State{}.Fail(errors.New("no"), time.Now().Add(-ago))
		d.board.Report("upgrade", upgradeProblems(d.upgrading, d.upgrading.Ended)) // as its start did
		if got := slices.ContainsFunc(d.Status(t.Context()).Problems, func(p health.Problem) bool { return p.Code == health.UpgradeFailed }); got != told {
			t.Errorf("%s later it is told: %t", ago, got)
		}
	}
}

func TestStatusShowsEveryComponentFromTheFirstMoment(t *testing.T) {
	s := starting(t).Status(context.Background())
	shown := map[string]string{}
	for _, c := range s.Components {
		shown[c.Name] = c.Unit + ": " + c.State + " " + c.Note
	}
	for name, unit := range map[string]string{"kube-apiserver": "control-plane", "kubelet": "node", "containerd": "containerd"} {
		if want := unit + ": waiting while k1s is unpacking the payload"; shown[name] != want {
			t.Errorf("%s is shown as %q, want %q", name, shown[name], want)
		}
	}
}
