// Command app is the workload of tests and examples: a small HTTP server that shows who it is, can be
// told to misbehave, and ends gracefully.
//
//	GET  /            host name and $VERSION (default "1")
//	GET  /healthz     200, or 503 after POST /healthz?ok=false
//	GET  /cpu?ms=100  burns CPU for that long
//	GET  /mem?mb=10   allocates, touches and keeps that much
//	GET  /file?path=  a file; POST writes the body to it
//	GET  /env?name=   an environment variable
//	GET  /sleep?ms=   answers after a while, for requests that are under way at shutdown
//	POST /admit       an admission webhook that refuses objects with the annotation refuse=yes
//
// $PORT (default 8080) is where it listens, with TLS where $TLS_CERT and $TLS_KEY are given (PEM), $START_DELAY how long it takes until it does, $DRAIN how long
// it goes on serving after SIGTERM (default 0s) so that load balancers notice first.
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

type app struct {
	host, version string
	failing       atomic.Bool

	mu   sync.Mutex // guards kept
	kept [][]byte
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	drain, err := time.ParseDuration(cmp.Or(os.Getenv("DRAIN"), "0s"))
	if err != nil {
		return fmt.Errorf("reading $DRAIN: %w", err)
	}
	delay, err := time.ParseDuration(cmp.Or(os.Getenv("START_DELAY"), "0s"))
	if err != nil {
		return fmt.Errorf("reading $START_DELAY: %w", err)
	}
	if !pause(ctx, delay) {
		return nil
	}
	a := &app{host: host, version: cmp.Or(os.Getenv("VERSION"), "1")}
	srv := &http.Server{Addr: ":" + cmp.Or(os.Getenv("PORT"), "8080"), Handler: a.handler(), ReadHeaderTimeout: 10 * time.Second}
	serve := srv.ListenAndServe
	if pem := os.Getenv("TLS_CERT"); pem != "" {
		cert, err := tls.X509KeyPair([]byte(pem), []byte(os.Getenv("TLS_KEY")))
		if err != nil {
			return fmt.Errorf("reading $TLS_CERT and $TLS_KEY: %w", err)
		}
		srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
		serve = func() error { return srv.ListenAndServeTLS("", "") }
	}
	ended := make(chan error, 1)
	go func() { ended <- serve() }()
	log.Printf("%s version %s serves at %s", a.host, a.version, srv.Addr)
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	stop() // a second signal ends it at once
	log.Printf("asked to end, draining for %s", drain)
	a.failing.Store(true)
	pause(context.Background(), drain)
	down, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := srv.Shutdown(down); err != nil {
		return err
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	log.Print("ended")
	return nil
}

// pause waits and tells whether it was not interrupted.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (a *app) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "%s %s\n", a.host, a.version) })
	mux.HandleFunc("GET /healthz", a.health)
	mux.HandleFunc("POST /healthz", func(_ http.ResponseWriter, r *http.Request) { a.failing.Store(r.FormValue("ok") == "false") })
	mux.HandleFunc("GET /cpu", func(w http.ResponseWriter, r *http.Request) {
		end := time.Now().Add(number(r, "ms", 100, time.Millisecond))
		n := 0
		for ; time.Now().Before(end) && r.Context().Err() == nil; n++ {
		}
		fmt.Fprintln(w, n)
	})
	mux.HandleFunc("GET /mem", a.mem)
	mux.HandleFunc("GET /file", func(w http.ResponseWriter, r *http.Request) {
		b, err := os.ReadFile(r.FormValue("path"))
		answer(w, b, err)
	})
	mux.HandleFunc("POST /file", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err == nil {
			err = os.WriteFile(r.URL.Query().Get("path"), b, 0o644)
		}
		answer(w, nil, err)
	})
	mux.HandleFunc("GET /env", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, os.Getenv(r.FormValue("name"))) })
	mux.HandleFunc("GET /sleep", func(w http.ResponseWriter, r *http.Request) {
		pause(r.Context(), number(r, "ms", 1000, time.Millisecond))
		fmt.Fprintln(w, "slept")
	})
	mux.HandleFunc("POST /admit", admit)
	return mux
}

// review is an AdmissionReview of admission.k8s.io/v1, as far as it matters here.
type review struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Request    *struct {
		UID    string `json:"uid"`
		Object struct {
			Metadata struct {
				Annotations map[string]string `json:"annotations"`
			} `json:"metadata"`
		} `json:"object"`
	} `json:"request,omitempty"`
	Response *verdict `json:"response,omitempty"`
}

type verdict struct {
	UID     string            `json:"uid"`
	Allowed bool              `json:"allowed"`
	Status  map[string]string `json:"status,omitempty"`
}

func admit(w http.ResponseWriter, r *http.Request) {
	var in review
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Request == nil {
		http.Error(w, fmt.Sprint("this is no review: ", err), http.StatusBadRequest)
		return
	}
	v := verdict{UID: in.Request.UID, Allowed: in.Request.Object.Metadata.Annotations["refuse"] != "yes"}
	if !v.Allowed {
		v.Status = map[string]string{"message": "it asks for it"}
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(review{APIVersion: in.APIVersion, Kind: in.Kind, Response: &v}) //nolint:errcheck // the client went away
}

func (a *app) health(w http.ResponseWriter, _ *http.Request) {
	if a.failing.Load() {
		http.Error(w, "failing", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

func (a *app) mem(w http.ResponseWriter, r *http.Request) {
	b := make([]byte, int(number(r, "mb", 1, 1))<<20)
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 1
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.kept = append(a.kept, b)
	fmt.Fprintln(w, len(a.kept))
}

func answer(w http.ResponseWriter, b []byte, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Write(b) //nolint:errcheck // the client went away
}

// number reads a parameter; what is not a number counts as the default.
func number(r *http.Request, name string, or int, unit time.Duration) time.Duration {
	n, err := strconv.Atoi(r.FormValue(name))
	if err != nil || n < 0 {
		n = or
	}
	return time.Duration(n) * unit
}
