package controllermanager

import (
	"context"
	"io"
	"log/slog"
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
			http.Error(w, "[+]ping ok\n[-]etcd failed: reason withheld\nhealthz check failed", http.StatusInternalServerError)
			return
		}
		_, _ = io.WriteString(w, "ok")
	}))
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var log strings.Builder
	c := http.Client{Transport: patient{ctx: ctx, next: http.DefaultTransport, log: slog.New(slog.NewTextHandler(&log, nil))}}
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

	// Why it waits is said once.
	if n := strings.Count(log.String(), "[-]etcd failed"); n != 1 || strings.Contains(log.String(), "[+]ping") {
		t.Errorf("%d times in the log:\n%s", n, log.String())
	}

	sick.Store(1 << 20)
	cancel()
	if _, err := c.Get(s.URL + "/healthz"); !errs.Is(err, errs.Interrupted) || !strings.Contains(err.Error(), "the API server to be healthy") {
		t.Errorf("when it is asked to stop: %v", err)
	}
}
