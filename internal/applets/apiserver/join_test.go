package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/join"
)

// joinDaemon answers on a unix socket with what it was asked; asking for "wait" waits for proceed.
func joinDaemon(t *testing.T) (socket string, proceed chan struct{}, arrived *sync.WaitGroup) {
	t.Helper()
	dir, err := os.MkdirTemp("", "k1s-join-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket, proceed, arrived = filepath.Join(dir, "s"), make(chan struct{}), &sync.WaitGroup{}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/wait") {
			arrived.Done()
			<-proceed
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s from %s: %s", r.Method, r.URL.Path, strings.Join(r.Header.Values("X-Forwarded-For"), "+"), body)
	})}
	done := make(chan struct{})
	go func() { _ = srv.Serve(l); close(done) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return socket, proceed, arrived
}

func ask(t *testing.T, url, path string, header http.Header) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+path, strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp.StatusCode, string(b)
}

func TestMachinesThatJoinReachTheDaemonAndOthersTheAPI(t *testing.T) {
	socket, _, _ := joinDaemon(t)
	apis := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusTeapot) })
	srv := httptest.NewServer(joining(apis, socket))
	defer srv.Close()
	// What a client says of where it comes from is replaced by where it does.
	code, body := ask(t, srv.URL, join.Prefix+"node", http.Header{"X-Forwarded-For": {"10.0.0.1"}})
	if code != http.StatusOK || body != "POST /k1s/v1/node from 127.0.0.1: hello" {
		t.Errorf("%d %q", code, body)
	}
	for _, path := range []string{"/", "/api/v1/nodes", "/k1s", "/k1s/", "/k1s/v10/node", "/api/k1s/v1/node"} {
		if code, body := ask(t, srv.URL, path, nil); code != http.StatusTeapot {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
}

func TestARequestThatIsTooLargeOrNeverEndsIsNotPassedOn(t *testing.T) {
	socket, _, _ := joinDaemon(t)
	srv := httptest.NewServer(joining(http.NotFoundHandler(), socket))
	defer srv.Close()
	for name, body := range map[string]io.Reader{"too large": bytes.NewReader(make([]byte, maxRequest+1)), "without end": endless{t.Context()}} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+join.Prefix+"node", body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			continue // closed on: as good
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: %d", name, resp.StatusCode)
		}
	}
}

// endless is a body that has begun and goes on never.
type endless struct{ ctx context.Context }

func (e endless) Read([]byte) (int, error) {
	<-e.ctx.Done()
	return 0, e.ctx.Err()
}

func TestADaemonThatIsAwayIsToldSoThatMachinesAskAgain(t *testing.T) {
	srv := httptest.NewServer(joining(http.NotFoundHandler(), "/nowhere/join.sock"))
	defer srv.Close()
	code, body := ask(t, srv.URL, join.Prefix+"node", nil)
	var w errs.Wire
	if err := json.Unmarshal([]byte(body), &w); err != nil || code != http.StatusServiceUnavailable || !errs.Is(w.Err(), errs.NotRunning) {
		t.Errorf("%d %q, %v", code, body, err)
	}
}

func TestMachinesThatJoinCannotTakeTheServersConnectionsAway(t *testing.T) {
	socket, proceed, arrived := joinDaemon(t)
	srv := httptest.NewServer(joining(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }), socket))
	defer srv.Close()
	var answered sync.WaitGroup
	arrived.Add(maxJoining)
	for range maxJoining {
		answered.Go(func() {
			if code, body := ask(t, srv.URL, join.Prefix+"wait", nil); code != http.StatusOK {
				t.Errorf("one of %d: %d %q", maxJoining, code, body)
			}
		})
	}
	arrived.Wait()
	if code, _ := ask(t, srv.URL, join.Prefix+"node", nil); code != http.StatusServiceUnavailable {
		t.Errorf("one more: %d", code)
	}
	if code, _ := ask(t, srv.URL, "/api", nil); code != http.StatusTeapot {
		t.Errorf("the API: %d", code)
	}
	close(proceed)
	answered.Wait()
	if code, _ := ask(t, srv.URL, join.Prefix+"node", nil); code != http.StatusOK {
		t.Errorf("later: %d", code)
	}
}
