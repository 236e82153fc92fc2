package kubeapi

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// asks serves h and returns a client of it.
func asks(t *testing.T, h http.Handler) *Client {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := New(s.URL, ca, "none.crt", "none.key")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// server answers like an API server with one node; what it was asked is told to seen.
func server(t *testing.T, seen func(*http.Request)) *Client {
	t.Helper()
	return asks(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen(r)
		switch {
		case r.URL.Path == "/api/v1/nodes/n1":
			_, _ = w.Write([]byte(`{"metadata":{"labels":{"a":"b"}},"spec":{"podCIDR":"10.42.0.0/24"},"status":{"conditions":[{"type":"Ready","status":"False","message":"no CNI","lastHeartbeatTime":"2026-11-21T03:00:00Z"}]}}`))
		case r.URL.Path == "/api/v1/pods":
			_, _ = w.Write([]byte(`{"items":[{"metadata":{"name":"p"},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}},
				{"metadata":{"name":"job"},"status":{"phase":"Succeeded"}},{"metadata":{"name":"new"},"status":{"phase":"Pending"}}]}`))
		default:
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"kind":"Status","message":"nodes \"x\" not found"}`))
		}
	}))
}

func TestANodeTellsWhyItIsNotReady(t *testing.T) {
	c := server(t, func(*http.Request) {})
	n, err := c.Node(t.Context(), "n1")
	if err != nil || n.Spec.PodCIDR != "10.42.0.0/24" || n.Metadata.Labels["a"] != "b" {
		t.Fatalf("%+v, %v", n, err)
	}
	reported := time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)
	if err := n.Ready(reported.Add(900 * time.Millisecond)); err == nil || err.Error() != "no CNI" {
		t.Errorf("Ready: %v", err)
	}
	n.Status.Conditions[0].Status = "True"
	if err := n.Ready(reported); err != nil {
		t.Errorf("Ready: %v", err)
	}
	if err := n.Ready(reported.Add(time.Second)); err == nil || !strings.Contains(err.Error(), "since it was started") {
		t.Errorf("what an earlier kubelet said counts: %v", err)
	}
	if err := (Node{}).Ready(reported); err == nil {
		t.Error("a node without conditions is ready")
	}
}

func TestOnlyPodsOfTheNodeAreAskedForAndEndedOnesAreReady(t *testing.T) {
	query := ""
	c := server(t, func(r *http.Request) { query = r.URL.Query().Get("fieldSelector") })
	pods, err := c.Pods(t.Context(), "n1")
	if err != nil || query != "spec.nodeName=n1" {
		t.Fatalf("asked for %q, %v", query, err)
	}
	var ready []string
	for _, p := range pods {
		if p.Ready() {
			ready = append(ready, p.Metadata.Name)
		}
	}
	if strings.Join(ready, " ") != "p job" {
		t.Errorf("ready: %q", ready)
	}
}

func TestTheVersionOfTheServerIsAskedFor(t *testing.T) {
	c := asks(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/version" {
			t.Errorf("%s was asked for", r.URL.Path)
		}
		fmt.Fprint(w, `{"major": "1", "minor": "36", "gitVersion": "v1.36.3"}`)
	}))
	if v, err := c.Version(t.Context()); err != nil || v != "v1.36.3" {
		t.Errorf("%q, %v", v, err)
	}
}

func TestWhatTheServerSaysIsTheError(t *testing.T) {
	c := server(t, func(*http.Request) {})
	_, err := c.Node(t.Context(), "x")
	if err == nil || err.Error() != `the API server answers 404: nodes "x" not found` {
		t.Errorf("error %v", err)
	}
}

func TestALabelIsMergedIntoTheNode(t *testing.T) {
	var method, kind string
	c := server(t, func(r *http.Request) { method, kind = r.Method, r.Header.Get("Content-Type") })
	if err := c.LabelNode(t.Context(), "n1", "k", ""); err != nil {
		t.Fatal(err)
	}
	if method != http.MethodPatch || kind != "application/merge-patch+json" {
		t.Errorf("%s of %s", method, kind)
	}
}

func TestAFileWithoutACertificateIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(file, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New("https://127.0.0.1:1", file, "", ""); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("error %v", err)
	}
}
