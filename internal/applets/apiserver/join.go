package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	genericapiserver "k8s.io/apiserver/pkg/server"

	"k1s.io/k1s/internal/components"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/join"
)

// maxJoining bounds how many machines are talked to at a time: they come before authentication, and so before upstream's
// own limits. maxFrom of them may have one address, so that nobody takes all places.
const (
	maxJoining = 32
	maxFrom    = 8
)

// A request is read before it takes one of the places, so that who sends slowly takes none.
const (
	maxRequest  = 64 << 10
	readLimit   = 3 * time.Second
	answerLimit = 20 * time.Second
)

// serveJoining lets machines that join talk to the daemon at the API's port. They have no credentials yet that the API
// server knows, so their requests go past its handlers.
func serveJoining(c *genericapiserver.Config) {
	socket := os.Getenv(components.EnvJoin)
	if socket == "" {
		return
	}
	build := c.BuildHandlerChainFunc
	c.BuildHandlerChainFunc = func(apis http.Handler, c *genericapiserver.Config) http.Handler {
		return joining(build(apis, c), socket)
	}
}

// joining hands requests below join.Prefix to a unix socket, and all others to next.
func joining(next http.Handler, socket string) http.Handler {
	var d net.Dialer
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "k1s"})
			r.SetXForwarded() // replaces what the client says of itself
		},
		Transport: &http.Transport{
			DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) },
			DisableKeepAlives:     true, // machines join seldom
			ResponseHeaderTimeout: answerLimit,
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			slog.Warn("a machine that joins cannot be answered", "from", r.RemoteAddr, "err", err)
			away(w, "the server's k1s does not answer; its pods and its API run without it")
		},
	}
	talking := places{from: map[netip.Prefix]int{}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, join.Prefix) {
			next.ServeHTTP(w, r)
			return
		}
		// An error says that it cannot be limited, as in tests without a connection.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(readLimit))
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
		if err != nil {
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		from := sourceOf(r.RemoteAddr)
		if !talking.take(from) {
			away(w, "too many machines are joining in this moment")
			return
		}
		defer talking.give(from)
		proxy.ServeHTTP(w, r)
	})
}

// places are how many machines are talked to, and from where.
type places struct {
	mu   sync.Mutex // guards what follows
	all  int
	from map[netip.Prefix]int // without those of which there is none
}

func (p *places) take(from netip.Prefix) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all >= maxJoining || p.from[from] >= maxFrom {
		return false
	}
	p.all++
	p.from[from]++
	return true
}

func (p *places) give(from netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	if p.from[from]--; p.from[from] == 0 {
		delete(p.from, from)
	}
}

// sourceOf is from where a request comes: one address, or with IPv6 the network of 64 bits of which a machine has all addresses. All of which
// that is not known count as one.
func sourceOf(remote string) netip.Prefix {
	a, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	bits := 64
	ip := a.Addr().Unmap().WithZone("")
	if ip.Is4() {
		bits = 32
	}
	return netip.PrefixFrom(ip, bits).Masked()
}

// away answers that it may go better later.
func away(w http.ResponseWriter, why string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusServiceUnavailable)
	_ = json.NewEncoder(w).Encode(errs.ToWire(errs.New(errs.NotRunning, "%s", why)))
}
