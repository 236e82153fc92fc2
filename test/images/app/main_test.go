package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAppDoesWhatItIsTold(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte("v1"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("COLOUR", "blue")
	srv := httptest.NewServer((&app{host: "pod-1", version: "2"}).handler())
	defer srv.Close()
	for _, step := range []struct {
		method, path, body string
		code               int
		want               string
	}{
		{"GET", "/", "", 200, "pod-1 2"},
		{"GET", "/nowhere", "", 404, ""},
		{"GET", "/healthz", "", 200, "ok"},
		{"POST", "/healthz?ok=false", "", 200, ""},
		{"GET", "/healthz", "", 503, "failing"},
		{"POST", "/healthz?ok=true", "", 200, ""},
		{"GET", "/healthz", "", 200, "ok"},
		{"GET", "/env?name=COLOUR", "", 200, "blue"},
		{"GET", "/file?path=" + dir + "/config", "", 200, "v1"},
		{"GET", "/file?path=" + dir + "/absent", "", 500, "no such file"},
		{"POST", "/file?path=" + dir + "/new", "kept", 200, ""},
		{"GET", "/file?path=" + dir + "/new", "", 200, "kept"},
		{"GET", "/mem?mb=1", "", 200, "1"},
		{"GET", "/mem?mb=1", "", 200, "2"},
		{"GET", "/cpu?ms=1", "", 200, ""},
		{"GET", "/sleep?ms=0", "", 200, "slept"},
		{"POST", "/admit", `{"apiVersion":"v1","kind":"AdmissionReview","request":{"uid":"1","object":{"metadata":{"annotations":{"refuse":"yes"}}}}}`, 200, `"uid":"1","allowed":false`},
		{"POST", "/admit", `{"request":{"uid":"2","object":{"metadata":{}}}}`, 200, `"allowed":true`},
		{"POST", "/admit", "{}", 400, "no review"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), step.method, srv.URL+step.path, strings.NewReader(step.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != step.code || !strings.Contains(string(b), step.want) {
			t.Errorf("%s %s: %d %q, want %d with %q", step.method, step.path, resp.StatusCode, b, step.code, step.want)
		}
	}
}
