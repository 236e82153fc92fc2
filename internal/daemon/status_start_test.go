package daemon

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/supervise"
)

func TestStatusShowsEveryComponentFromTheFirstMoment(t *testing.T) {
	dir := t.TempDir()
	o := Options{Config: config.Default(), Paths: paths.Paths{Data: dir + "/data", Run: dir + "/run"}, Log: slog.New(slog.DiscardHandler)}
	outline, err := components.Outline(component.Input{Config: o.Config, Paths: o.Paths})
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{
		o: o, log: o.Log, started: time.Now(), outline: outline, board: health.NewBoard(time.Now),
		doing: "unpacking the payload", sup: supervise.New(o.Log, supervise.Options{}),
	}
	s := d.Status(context.Background())
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
