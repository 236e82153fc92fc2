package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"k1s.io/k1s/internal/kubeconfig"
)

// api asks a node's API server as its administrator, with plain HTTPS and JSON over connections that are
// kept open, so that what is measured is the server and not a client starting.
type api struct {
	base string
	http *http.Client
}

// newAPI reads the administrator's kubeconfig, as the node writes it: its server is an address in the node.
func newAPI(file string, in *inside) (*api, error) {
	c, err := kubeconfig.Load(file)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("reading the administrator's certificate: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(c.CA) {
		return nil, errors.New("reading the cluster's CA: no certificate in it")
	}
	return &api{base: c.Server, http: &http.Client{Transport: &http.Transport{
		DialContext: in.dial, MaxIdleConnsPerHost: 32, // as many as ever write at once
		TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
	}}}, nil
}

func (a *api) close() { a.http.CloseIdleConnections() }

// statusError is an answer that is no success.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("the API server answers %d: %s", e.code, e.text)
}

func answered(err error, code int) bool {
	var s *statusError
	return errors.As(err, &s) && s.code == code
}

// do sends one request; body and out may be nil.
func (a *api) do(ctx context.Context, method, path string, body, out any) error {
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return err
		}
	}
	resp, err := a.send(ctx, method, path, b)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("reading the answer to %s %s: %w", method, path, err)
	}
	if resp.StatusCode >= 300 {
		return &statusError{resp.StatusCode, string(raw[:min(len(raw), 300)])}
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(raw, out)
}

func (a *api) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	switch {
	case method == http.MethodPatch:
		req.Header.Set("Content-Type", "application/merge-patch+json")
	case len(body) > 0:
		req.Header.Set("Content-Type", "application/json")
	}
	return a.http.Do(req)
}

// retryPause is the resolution of everything that is polled.
const retryPause = 10 * time.Millisecond

// until tries again every retryPause until it works or ctx ends; a hung try ends after a second.
func until(ctx context.Context, try func(context.Context) error) error {
	t := time.NewTicker(retryPause)
	defer t.Stop()
	for {
		c, cancel := context.WithTimeout(ctx, time.Second)
		err := try(c)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-t.C:
		}
	}
}

// object is the little that is read of nodes and pods.
type object struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Status struct {
		Phase      string      `json:"phase"`
		PodIP      string      `json:"podIP"`
		Conditions []condition `json:"conditions"`
	} `json:"status"`
}

type condition struct {
	Type      string    `json:"type"`
	Status    string    `json:"status"`
	Heartbeat time.Time `json:"lastHeartbeatTime"` // of nodes only
}

// readySince tells that the condition Ready is true and was reported at t or later. A pod's is not dated.
func (o object) readySince(t time.Time) bool {
	for _, c := range o.Status.Conditions {
		if c.Type == "Ready" && c.Status == "True" {
			return t.IsZero() || !c.Heartbeat.Before(t.Truncate(time.Second))
		}
	}
	return false
}

// watch sees one object from now on until seen returns true. A watch costs the server nothing while nothing
// happens, which polling every few milliseconds would. It is opened again when it breaks.
func (a *api) watch(ctx context.Context, collection, name string, seen func(kind string, o object) bool) error {
	path := collection + "?watch=1&fieldSelector=metadata.name%3D" + name
	done := errors.New("done")
	for {
		err := a.watchOnce(ctx, path, func(kind string, o object) error {
			if seen(kind, o) {
				return done
			}
			return nil
		})
		if errors.Is(err, done) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("watching %s: %w: %w", name, context.Cause(ctx), err)
		case <-time.After(retryPause):
		}
	}
}

func (a *api) watchOnce(ctx context.Context, path string, each func(string, object) error) error {
	resp, err := a.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return &statusError{resp.StatusCode, "watch refused"}
	}
	dec := json.NewDecoder(resp.Body)
	for {
		var e struct {
			Type   string `json:"type"`
			Object object `json:"object"`
		}
		if err := dec.Decode(&e); err != nil {
			return err
		}
		if e.Type == "ERROR" {
			return errors.New("the watch was ended by the server")
		}
		if err := each(e.Type, e.Object); err != nil {
			return err
		}
	}
}

// podsPath is where pods of the default namespace are.
const podsPath = "/api/v1/namespaces/default/pods"

// pod runs /pause from the image that is made on every node.
func pod(name string) map[string]any {
	return map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": name},
		"spec": map[string]any{
			"terminationGracePeriodSeconds": 0,
			"containers": []any{map[string]any{
				"name": "main", "image": "k1s.io/base:1", "imagePullPolicy": "Never", "command": []string{"/pause"},
			}},
		},
	}
}
