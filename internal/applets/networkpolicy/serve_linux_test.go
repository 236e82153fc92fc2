package networkpolicy

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"testing"

	"k1s.io/k1s/internal/applets/networkpolicy/gate"
)

func TestTheGateAnswersPlugins(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithCancel(t.Context())
	requests := make(chan asking)
	ended := make(chan error, 1)
	ask := make(chan error, 1)
	go func() { ask <- gate.Ask(t.Context(), socket, added("a", "10.42.0.2"), true) }() // before anybody listens
	go func() { ended <- listen(ctx, socket, requests, slog.New(slog.DiscardHandler)) }()
	r := <-requests
	if !reflect.DeepEqual(r.Request, added("a", "10.42.0.2")) {
		t.Errorf("heard %+v", r.Request)
	}
	r.answer <- fmt.Errorf("not today")
	if err := <-ask; err == nil || err.Error() != "not today" {
		t.Errorf("the answer is %v", err)
	}
	go func() { ask <- gate.Ask(t.Context(), socket, added("b", "10.42.0.3"), false) }()
	(<-requests).answer <- nil
	if err := <-ask; err != nil {
		t.Errorf("the answer is %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("listening ended with %v", err)
	}
	if err := gate.Ask(t.Context(), socket, added("b", "10.42.0.3"), false); err == nil {
		t.Error("somebody answers who is not there")
	}
}
