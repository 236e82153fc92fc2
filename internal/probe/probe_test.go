package probe

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
		{Kind: "odd"}:                         `unknown probe kind "odd"`,
	} {
		if err := Check(t.Context(), p); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", p, err, want)
		}
	}
}
