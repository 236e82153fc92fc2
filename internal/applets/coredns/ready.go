package coredns

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	// readyAddr is where the packaged manifest has the kubelet ask.
	readyAddr = ":8182"
	// upstreamReady is the endpoint of the plugin "ready", which the packaged Corefile has at its usual place.
	upstreamReady = "http://127.0.0.1:8181/ready"
	// holdFor is how long a question is held at most, less than the probe's timeout of 5 s.
	holdFor = 4 * time.Second
	// askEvery is the pause between two looks meanwhile.
	askEvery = 20 * time.Millisecond
	// holdAtOnce bounds how many questions are held: the kubelet has one, strangers may have others.
	holdAtOnce = 8
)

// serveReady answers GET /ready when CoreDNS is ready, not whether it is: a question that comes before is held. The kubelet
// asks once when the container has started, and then again only after a whole second, which is as long as CoreDNS takes
// several times over: without this a cluster would have no DNS for most of that second.
func serveReady(addr string, ready func(context.Context) error) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listening for the kubelet's readiness probe: %w", err)
	}
	srv := &http.Server{Handler: held(holdFor, ready), ReadHeaderTimeout: 5 * time.Second}
	go srv.Serve(l) //nolint:errcheck // it ends with the process, which upstream owns
	return nil
}

// held asks ready again and again until it says nil, for so long at most, and answers 200, or 503 with the last reason.
func held(limit time.Duration, ready func(context.Context) error) http.Handler {
	places := make(chan struct{}, holdAtOnce)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, r *http.Request) {
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		default:
			http.Error(w, "too many ask at once", http.StatusServiceUnavailable)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		pause := time.NewTicker(askEvery)
		defer pause.Stop()
		for {
			err := ready(ctx)
			if err == nil {
				fmt.Fprintln(w, "ready")
				return
			}
			select {
			case <-ctx.Done():
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			case <-pause.C:
			}
		}
	})
	return mux
}

// asksPlugin asks the plugin "ready".
func asksPlugin(url string) func(context.Context) error {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("CoreDNS is not ready: %s %s", resp.Status, body) // it names the plugins
		}
		return err
	}
}
