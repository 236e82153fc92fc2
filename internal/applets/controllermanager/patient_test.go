package controllermanager

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"k1s.io/k1s/internal/errs"
)

func TestTheAPIServerMayTakeItsTimeToBeHealthy(t *testing.T) {
	var asked []string
	var sick atomic.Int32
	sick.Store(2)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.String())
		if r.URL.Path == "/healthz" && sick.Add(-1) >= 0 {
			http.Error(w, "[-]etcd failed", http.StatusInternalServerError)
			return
		}
		_, _ = io.WriteString(w, "ok")
	}))
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := http.Client{Transport: patient{ctx: ctx, next: http.DefaultTransport}}
	for _, path := range []string{"/healthz", "/api?limit=1"} {
		resp, err := c.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || string(body) != "ok" {
			t.Errorf("%s: %s %q, %v", path, resp.Status, body, err)
		}
	}
	health := "/healthz?" + withoutAggregated
	if want := []string{health, health, health, "/api?limit=1"}; !slices.Equal(asked, want) {
		t.Errorf("it asked %q, want %q", asked, want)
	}

	sick.Store(1 << 20)
	cancel()
	if _, err := c.Get(s.URL + "/healthz"); !errs.Is(err, errs.Interrupted) || !strings.Contains(err.Error(), "the API server to be healthy") {
		t.Errorf("when it is asked to stop: %v", err)
	}
}
