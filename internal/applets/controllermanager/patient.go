package controllermanager

import (
	"context"
	"fmt"
	"io"
	"net/http"
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
	err := wait.Until(p.ctx, 200*time.Millisecond, "the API server to be healthy", func(context.Context) error {
		resp, err := p.next.RoundTrip(r)
		if err != nil {
			return err
		}
		if resp.StatusCode == http.StatusOK {
			healthy = resp
			return nil
		}
		defer resp.Body.Close()
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return fmt.Errorf("%s: %s", resp.Status, said)
	})
	return healthy, err
}

// WrappedRoundTripper lets client-go find the connections below, to close them.
func (p patient) WrappedRoundTripper() http.RoundTripper { return p.next }
