package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/component"
	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/paths"
)

// A daemon that was asked to stop and fails is started again by an init system.
func TestPodsThatDoNotEndAreToldAndDoNotKeepTheNodeFromStopping(t *testing.T) {
	p := paths.Paths{Run: t.TempDir()}
	d := &Daemon{log: slog.New(slog.DiscardHandler)}
	if err := PodsLeft(p); err != nil {
		t.Errorf("nobody has asked: %v", err)
	}
	if err := d.podsEnded(p, errors.New("the pods did not end")); err != nil {
		t.Errorf("the daemon fails: %v", err)
	}
	if err := PodsLeft(p); err == nil || err.Error() != "the pods did not end" {
		t.Errorf("told: %v", err)
	}
	if err := d.podsEnded(p, nil); err != nil {
		t.Error(err)
	}
	if err := PodsLeft(p); err != nil {
		t.Errorf("they have ended: %v", err)
	}
}

func TestAProgramOfThePayloadThatIsNotWaitedForIsToldWithTheReason(t *testing.T) {
	in := component.Input{Payload: t.TempDir()}
	program := filepath.Join(in.Payload, components.Program)
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho half way >&2\nexec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 500*time.Millisecond, errors.New("the pods did not end in time"))
	defer cancel()
	err := applet(ctx, in, "stop-pods")
	if err == nil || !strings.HasPrefix(err.Error(), "stop-pods: the pods did not end in time") {
		t.Errorf("got %v", err)
	}
}
