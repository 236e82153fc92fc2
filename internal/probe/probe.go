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
