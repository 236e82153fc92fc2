// Package probe asks whether a component answers. A probe is data, so that it can be shown, compared
// in golden files and handed to another process; Check does it. Used by the daemon, which watches
// components from outside, and by the payload's group runner, which starts members in order.
package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// Kind of probe.
type Kind string

// The kinds.
const (
	None  Kind = ""      // always fine
	TCP   Kind = "tcp"   // something accepts at Addr ("host:port")
	Unix  Kind = "unix"  // something accepts at the socket Addr
	HTTP  Kind = "http"  // GET http://Addr/Path answers 200
	HTTPS Kind = "https" // the same over TLS; the certificate is not verified: it is our own loopback address
	File  Kind = "file"  // Addr exists
	CRI   Kind = "cri"   // the container runtime at the socket Addr says which version it is
)

// Probe is one question to one component.
type Probe struct {
	Kind Kind   `json:"kind,omitempty"`
	Addr string `json:"addr,omitempty"`
	Path string `json:"path,omitempty"`
	// CertFile and KeyFile are a client certificate for HTTPS, where the endpoint asks for one.
	CertFile string `json:"certFile,omitempty"`
	KeyFile  string `json:"keyFile,omitempty"`
}

// String names the question as the user reads it: "https 127.0.0.1:6443/readyz".
func (p Probe) String() string {
	if p.Kind == None {
		return "none"
	}
	return string(p.Kind) + " " + p.Addr + p.Path
}

// perTry bounds one question; a component that is slower than this to say it is ready is not.
const perTry = 5 * time.Second

// Check asks once. The error is short and fit for a status table: it names what was asked and the answer.
func Check(ctx context.Context, p Probe) error {
	ctx, cancel := context.WithTimeoutCause(ctx, perTry, errors.New("no answer within 5s"))
	defer cancel()
	switch p.Kind {
	case None:
		return nil
	case TCP, Unix:
		var d net.Dialer
		c, err := d.DialContext(ctx, string(p.Kind), p.Addr)
		if err != nil {
			return dialReason(p, err)
		}
		return c.Close()
	case File:
		if _, err := os.Stat(p.Addr); err != nil {
			return fmt.Errorf("%s is not there yet", p.Addr)
		}
		return nil
	case HTTP, HTTPS:
		return checkHTTP(ctx, p)
	case CRI:
		return checkCRI(ctx, p)
	default:
		return fmt.Errorf("unknown probe kind %q", p.Kind)
	}
}

func checkHTTP(ctx context.Context, p Probe) error {
	tr := &http.Transport{DisableKeepAlives: true, Proxy: nil}
	if p.Kind == HTTPS {
		tr.TLSClientConfig = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12} //nolint:gosec // see HTTPS
		if p.CertFile != "" {
			cert, err := tls.LoadX509KeyPair(p.CertFile, p.KeyFile)
			if err != nil {
				return fmt.Errorf("loading the probe's client certificate: %w", err)
			}
			tr.TLSClientConfig.Certificates = []tls.Certificate{cert}
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, string(p.Kind)+"://"+p.Addr+p.Path, nil)
	if err != nil {
		return err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return dialReason(p, err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	return fmt.Errorf("%s answers %d%s", p.Addr+p.Path, resp.StatusCode, failedChecks(string(body)))
}

// checkCRI calls the first method a kubelet calls, Version of k8s.io/cri-api's RuntimeService; containerd refuses it, as it does all
// others, from when it listens until it knows its pods. A gRPC call is a POST over HTTP/2 with a length before each message
// (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md), and this one asks nothing: gRPC's own client would be the
// larger part of the light program.
func checkCRI(ctx context.Context, p Probe) error {
	only := new(http.Protocols)
	only.SetUnencryptedHTTP2(true)
	tr := &http.Transport{
		DisableKeepAlives: true, DisableCompression: true, Protocols: only,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", p.Addr)
		},
	}
	const nothing = "\x00\x00\x00\x00\x00" // not compressed, of no bytes
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost/runtime.v1.RuntimeService/Version", strings.NewReader(nothing))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return dialReason(p, err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 4096)); err != nil {
		return fmt.Errorf("%s: %w", p.Addr, err)
	}
	const code, text = "Grpc-Status", "Grpc-Message"
	said := resp.Trailer
	if said.Get(code) == "" {
		said = resp.Header // where there is no answer but that
	}
	switch said.Get(code) {
	case "0":
		return nil
	case "":
		return fmt.Errorf("%s answers %d, which is no answer of a container runtime", p.Addr, resp.StatusCode)
	}
	why, err := url.PathUnescape(said.Get(text))
	if err != nil {
		why = said.Get(text)
	}
	return fmt.Errorf("%s answers: %s", p.Addr, why)
}

// failedChecks picks the failing lines out of a Kubernetes health page ("[-]etcd failed: …").
func failedChecks(body string) string {
	var bad []string
	for line := range strings.SplitSeq(body, "\n") {
		if name, ok := strings.CutPrefix(line, "[-]"); ok {
			name, _, _ = strings.Cut(name, " ")
			bad = append(bad, name)
		}
	}
	if len(bad) == 0 {
		return ""
	}
	return ": " + strings.Join(bad, ", ")
}

func dialReason(p Probe, err error) error {
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		return fmt.Errorf("dial %s: %w", p.Addr, sys.Err)
	}
	return err
}
