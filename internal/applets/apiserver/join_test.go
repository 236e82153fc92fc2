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
	"net/netip"
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
	return askFrom(t, "127.0.0.1", url, path, header)
}

// askFrom asks from an address of this machine.
func askFrom(t *testing.T, ip, url, path string, header http.Header) (int, string) {
	t.Helper()
	from := &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}).DialContext}
	defer from.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+path, strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	resp, err := (&http.Client{Transport: from}).Do(req)
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
	wait := func(ip string) {
		arrived.Add(maxFrom)
		for range maxFrom {
			answered.Go(func() {
				if code, body := askFrom(t, ip, srv.URL, join.Prefix+"wait", nil); code != http.StatusOK {
					t.Errorf("one of %d: %d %q", maxFrom, code, body)
				}
			})
		}
		arrived.Wait()
	}
	wait("127.0.0.1")
	if code, _ := ask(t, srv.URL, join.Prefix+"node", nil); code != http.StatusServiceUnavailable {
		t.Errorf("one more from there: %d", code)
	}
	if code, _ := askFrom(t, "127.0.0.2", srv.URL, join.Prefix+"node", nil); code != http.StatusOK {
		t.Errorf("one from elsewhere: %d", code)
	}
	for i := 1; i < maxJoining/maxFrom; i++ {
		wait(fmt.Sprintf("127.0.1.%d", i))
	}
	if code, _ := askFrom(t, "127.0.0.2", srv.URL, join.Prefix+"node", nil); code != http.StatusServiceUnavailable {
		t.Errorf("one more than there may be: %d", code)
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

func TestPlacesAreCountedBySourceAndForgotten(t *testing.T) {
	for remote, want := range map[string]string{
		"10.0.0.7:4711": "10.0.0.7/32", "[::ffff:10.0.0.7]:4711": "10.0.0.7/32", "[2001:db8:1:2:3:4:5:6]:4711": "2001:db8:1:2::/64", "[fe80::1%eth0]:4711": "fe80::/64", "@": "invalid Prefix",
	} {
		if got := sourceOf(remote).String(); got != want {
			t.Errorf("%s is of %s, want %s", remote, got, want)
		}
	}
	p := places{from: map[netip.Prefix]int{}}
	a, b := sourceOf("10.0.0.7:1"), sourceOf("10.0.0.8:1")
	for range maxFrom {
		if !p.take(a) {
			t.Error("a place is refused that there is")
		}
	}
	if p.take(a) || !p.take(b) {
		t.Errorf("%d places are taken, %v", p.all, p.from)
	}
	for range maxFrom {
		p.give(a)
	}
	p.give(b)
	if p.all != 0 || len(p.from) != 0 {
		t.Errorf("%d places are left over, %v", p.all, p.from)
	}
}
