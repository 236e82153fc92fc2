package probe

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestProbesAskRealEndpoints(t *testing.T) {
	sick := false
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if sick || r.URL.Path != "/readyz" {
			w.WriteHeader(500)
			_, _ = w.Write([]byte("[+]ping ok\n[-]etcd failed: reason withheld\n[-]poststarthook/rbac failed\n"))
		}
	})
	plain, tls := httptest.NewServer(h), httptest.NewTLSServer(h)
	defer plain.Close()
	defer tls.Close()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	addr := plain.Listener.Addr().String()
	ok := []Probe{
		{}, {Kind: TCP, Addr: addr}, {Kind: HTTP, Addr: addr, Path: "/readyz"},
		{Kind: HTTPS, Addr: tls.Listener.Addr().String(), Path: "/readyz"}, {Kind: Unix, Addr: socket}, {Kind: File, Addr: file},
	}
	for _, p := range ok {
		if err := Check(t.Context(), p); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
	sick = true
	err = Check(t.Context(), Probe{Kind: HTTP, Addr: addr, Path: "/readyz"})
	if err == nil || !strings.HasSuffix(err.Error(), "answers 500: etcd, poststarthook/rbac") {
		t.Errorf("a sick endpoint gives %v", err)
	}
}

// cri is a runtime that says which version it is once it is ready.
type cri struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	ready atomic.Bool
}

func (c *cri) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	if !c.ready.Load() {
		return nil, status.Error(codes.Unavailable, "server is not initialized yet")
	}
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "test", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

func TestARuntimeThatListensIsNotReadyYet(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	c, s := &cri{}, grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(s, c)
	go func() { _ = s.Serve(l) }() // until Stop
	t.Cleanup(s.Stop)
	p := Probe{Kind: CRI, Addr: socket}
	if err, want := Check(t.Context(), p), socket+" answers: server is not initialized yet"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	c.ready.Store(true)
	if err := Check(t.Context(), p); err != nil {
		t.Error(err)
	}
}

// Somebody else's service at the socket, or a containerd without CRI.
func TestWhatIsNoRuntimeIsNotReady(t *testing.T) {
	dir := t.TempDir()
	listen := func(name string) (string, net.Listener) {
		socket := filepath.Join(dir, name)
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		return socket, l
	}
	plain, l := listen("http")
	h := httptest.NewUnstartedServer(http.NotFoundHandler())
	h.Listener.Close()
	h.Listener, h.Config.Protocols = l, new(http.Protocols)
	h.Config.Protocols.SetUnencryptedHTTP2(true)
	h.Start()
	defer h.Close()
	without, l := listen("grpc")
	s := grpc.NewServer()
	go func() { _ = s.Serve(l) }() // until Stop
	defer s.Stop()
	for socket, want := range map[string]string{
		plain:   plain + " answers 404, which is no answer of a container runtime",
		without: without + " answers: unknown service runtime.v1.RuntimeService",
	} {
		if err := Check(t.Context(), Probe{Kind: CRI, Addr: socket}); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestReasonsAreShort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	for p, want := range map[Probe]string{
		{Kind: TCP, Addr: addr}:               "dial " + addr + ": connection refused",
		{Kind: Unix, Addr: "/nowhere/x.sock"}: "dial /nowhere/x.sock: no such file or directory",
		{Kind: File, Addr: "/nowhere/x"}:      "/nowhere/x is not there yet",
		{Kind: HTTP, Addr: addr, Path: "/x"}:  "dial " + addr + ": connection refused",
		{Kind: CRI, Addr: "/nowhere/x.sock"}:  "dial /nowhere/x.sock: no such file or directory",
		{Kind: "odd"}:                         `unknown probe kind "odd"`,
	} {
		if err := Check(t.Context(), p); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", p, err, want)
		}
	}
}
