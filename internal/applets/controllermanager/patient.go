package controllermanager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"k1s.io/k1s/internal/wait"
)

// patient lets upstream wait for an API server that is not healthy. By itself it asks /healthz for 10 s, when it begins to work,
// and ends the whole process then, and with it the API server that runs in it. That page waits for aggregated APIs too, for
// 5 s and more when the pods behind them are gone, as after every restart of a node; those are left out of it, as they are of
// our own readiness.
type patient struct {
	ctx  context.Context // ends all waiting
	next http.RoundTripper
	log  *slog.Logger
}

// withoutAggregated is a query of health pages.
const withoutAggregated = "exclude=poststarthook/apiservice-discovery-controller"

func (p patient) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path != "/healthz" {
		return p.next.RoundTrip(r)
	}
	r = r.Clone(r.Context())
	r.URL.RawQuery = withoutAggregated
	var healthy *http.Response
	said := ""
	waits := func(err error, reason string) error {
		if reason != said { // whoever waits for the controllers finds out why
			said = reason
			p.log.Warn("the controllers wait: the API server is not healthy", "reason", reason)
		}
		return err
	}
	err := wait.Until(p.ctx, 200*time.Millisecond, "the API server to be healthy", func(context.Context) error {
		resp, err := p.next.RoundTrip(r)
		if err != nil {
			return waits(err, withoutAddresses(err))
		}
		if resp.StatusCode == http.StatusOK {
			healthy = resp
			return nil
		}
		defer resp.Body.Close()
		page, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return waits(fmt.Errorf("%s: %s", resp.Status, page), failing(resp.Status, string(page)))
	})
	return healthy, err
}

// failing is what of a health page is not well.
func failing(status, page string) string {
	out := []string{status}
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, "[-]") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return strings.Join(out, "; ")
}

// withoutAddresses tells of a connection why it failed, and not from which port: that is another one each time.
func withoutAddresses(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Op + ": " + op.Err.Error()
	}
	return err.Error()
}

// WrappedRoundTripper lets client-go find the connections below, to close them.
func (p patient) WrappedRoundTripper() http.RoundTripper { return p.next }
