package join

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/upgrade/rollout"
)

// UpgradeRequest is what a node says of itself while the cluster is upgraded. It is signed with the identity key of a node that is known.
type UpgradeRequest struct {
	Node     string         `json:"node"`
	Identity []byte         `json:"identity"`
	Report   rollout.Report `json:"report"`
}

// UpgradeAnswer is what the node is to do.
type UpgradeAnswer struct {
	// Leader is where the server is that leads, as host:port: only that one hears reports and gives orders. It is "" from that one itself, and
	// where there is no upgrade.
	Leader string         `json:"leader,omitempty"`
	Order  *rollout.Order `json:"order,omitempty"`
}

// ProgramRequest asks for the program that the cluster is upgraded to. It is signed with the identity key of a node that is known.
type ProgramRequest struct {
	Node     string `json:"node"`
	Identity []byte `json:"identity"`
	// Digest is its SHA-256 in hexadecimal digits.
	Digest string `json:"digest"`
}

// Program is one on its way.
type Program struct {
	io.ReadCloser
	Bytes int64
}

// Upgrades are this server's part in upgrades of the cluster.
type Upgrades interface {
	// Report hears a node, whose name was checked.
	Report(ctx context.Context, r rollout.Report) (UpgradeAnswer, error)
	// Program is the one that the cluster is upgraded to now; an error of kind errs.NotFound says that it is another one, or not here.
	Program(digest string) (Program, error)
}

const (
	// maxPrograms is how many nodes get it at a time from one server, each once; others ask again.
	maxPrograms = 4
	// programChunk is what has to go within programStall: who is gone takes no place.
	programChunk = 256 << 10
	programStall = 30 * time.Second
	// fetchLimit bounds the whole of it.
	fetchLimit = 10 * time.Minute
)

// upgrade hears a node.
func (s *Server) upgrade(ctx context.Context, body []byte, signature string) (UpgradeAnswer, error) {
	var r UpgradeRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return UpgradeAnswer{}, errs.New(errs.Invalid, "the report about an upgrade cannot be read: %w", err)
	}
	if err := signedBy(r.Identity, pathUpgrade, body, signature); err != nil {
		return UpgradeAnswer{}, err
	}
	if err := s.isNode(ctx, r.Node, r.Identity); err != nil {
		return UpgradeAnswer{}, err
	}
	r.Report.Node = r.Node
	return s.Upgrades.Report(ctx, r.Report)
}

// isNode is an error unless the one who asks is a node of the cluster, a server or an agent.
func (s *Server) isNode(ctx context.Context, node string, identity []byte) error {
	all, err := s.Store.Bindings(ctx)
	if err != nil {
		return fmt.Errorf("finding out who asks: %w", err)
	}
	b := claims{bindings: all}.binding(node)
	if b == nil || b.Identity != fingerprint(identity) {
		return errs.Hint(errs.New(errs.Denied, "%s is no node of this cluster", shorten(node)), "join again with a token")
	}
	return b.stays()
}

// wantsProgram is who asks for a program, and for which.
func (s *Server) wantsProgram(ctx context.Context, body []byte, signature string) (ProgramRequest, error) {
	var r ProgramRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return r, errs.New(errs.Invalid, "the request for a program cannot be read: %w", err)
	}
	if err := signedBy(r.Identity, pathProgram, body, signature); err != nil {
		return r, err
	}
	return r, s.isNode(ctx, r.Node, r.Identity)
}

// serveUpgrades adds what nodes ask for while the cluster is upgraded.
func (s *Server) serveUpgrades(mux *http.ServeMux) {
	mux.HandleFunc("POST "+pathUpgrade, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			s.refuse(w, errs.New(errs.Invalid, "reading the report about an upgrade: %w", err))
			return
		}
		a, err := s.upgrade(r.Context(), body, r.Header.Get(signatureHeader))
		if err != nil {
			level := slog.LevelWarn
			if errs.Is(err, errs.NotRunning) {
				level = slog.LevelDebug // it asks again
			}
			s.Log.Log(r.Context(), level, "a node was not heard about an upgrade", "from", r.Header.Get("X-Forwarded-For"), "err", err)
			s.refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a) // a client that went away
	})
	places := programPlaces{}
	mux.HandleFunc("POST "+pathProgram, func(w http.ResponseWriter, r *http.Request) {
		no := func(err error) {
			s.Log.Warn("a program was not given", "from", r.Header.Get("X-Forwarded-For"), "err", err)
			s.refuse(w, err)
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			no(errs.New(errs.Invalid, "reading the request for a program: %w", err))
			return
		}
		want, err := s.wantsProgram(r.Context(), body, r.Header.Get(signatureHeader))
		if err != nil {
			no(err)
			return
		}
		if err := places.take(want.Node); err != nil { // once it is known who asks
			s.refuse(w, err)
			return
		}
		defer places.give(want.Node)
		p, err := s.Upgrades.Program(want.Digest)
		if err != nil {
			no(err)
			return
		}
		defer p.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.FormatInt(p.Bytes, 10))
		if err := sendProgram(w, p); err != nil {
			s.Log.Info("a program did not get to a node", "node", want.Node, "err", err) // which asks again
			return
		}
		s.Log.Info("the new program was given to a node", "node", want.Node, "bytes", p.Bytes)
	})
}

// programPlaces are the nodes that get the program in this moment. Each has one place: who reads slowly does not keep others from it.
type programPlaces struct {
	mu  sync.Mutex // guards what follows
	all []string
}

func (p *programPlaces) take(node string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case slices.Contains(p.all, node):
		return errs.New(errs.NotRunning, "%s gets the program in this moment", node)
	case len(p.all) >= maxPrograms:
		return errs.New(errs.NotRunning, "%d nodes get the program in this moment", maxPrograms)
	}
	p.all = append(p.all, node)
	return nil
}

func (p *programPlaces) give(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = slices.DeleteFunc(p.all, func(n string) bool { return n == node })
}

// sendProgram sends it in pieces, each of which has its time.
func sendProgram(w http.ResponseWriter, p Program) error {
	c := http.NewResponseController(w)
	for left := p.Bytes; left > 0; {
		// An error says that it cannot be limited, as in tests without a connection.
		_ = c.SetWriteDeadline(time.Now().Add(programStall))
		n, err := io.CopyN(w, p, min(left, programChunk))
		if err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// Upgrade tells a server how far this node is with the upgrade of the cluster. Errors are as those of Ask.
func (c Client) Upgrade(ctx context.Context, identity crypto.Signer, r UpgradeRequest) (UpgradeAnswer, error) {
	var a UpgradeAnswer
	var err error
	if r.Identity, err = x509.MarshalPKIXPublicKey(identity.Public()); err != nil {
		return a, fmt.Errorf("telling how far the upgrade is: %w", err)
	}
	return a, c.post(ctx, pathUpgrade, identity, r, nil, &a)
}

// Program fetches the program that the cluster is upgraded to into w, of no more than so many bytes. Errors are as those of Ask, and those of w.
// Whether it has the digest is for who called it to look at.
func (c Client) Program(ctx context.Context, identity crypto.Signer, node, digest string, most int64, w io.Writer) error {
	pub, err := x509.MarshalPKIXPublicKey(identity.Public())
	if err != nil {
		return fmt.Errorf("fetching the program: %w", err)
	}
	body, err := json.Marshal(ProgramRequest{Node: node, Identity: pub, Digest: digest})
	if err != nil {
		return fmt.Errorf("fetching the program: %w", err)
	}
	sig, err := sign(identity, pathProgram, body)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, fetchLimit, fmt.Errorf("not within %s", fetchLimit))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.Server+pathProgram, bytes.NewReader(body))
	if err != nil {
		return errs.As(errs.Invalid, err)
	}
	req.Header = http.Header{"Content-Type": {"application/json"}, signatureHeader: {sig}}
	t := &http.Transport{TLSClientConfig: conf(c.CAs), DisableKeepAlives: true, DisableCompression: true, ResponseHeaderTimeout: askLimit, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}
	defer t.CloseIdleConnections()
	resp, err := (&http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return &Unreachable{c.Server, err}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var e refusal
		answer, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
		if err == nil && json.Unmarshal(answer, &e) == nil && e.Err() != nil {
			if resp.StatusCode == http.StatusServiceUnavailable {
				return &Unreachable{c.Server, e.Err()}
			}
			return e.Err()
		}
		return &Unreachable{c.Server, fmt.Errorf("it answers %s to %s; is it a server of k1s?", resp.Status, pathProgram)}
	}
	// A server that falls silent is noticed, as well as one that never ends.
	silent := time.AfterFunc(programStall, cancel)
	defer silent.Stop()
	to := &sink{w: w}
	for left := most + 1; left > 0; {
		n, err := io.CopyN(to, resp.Body, min(left, programChunk))
		left -= n
		if errors.Is(err, io.EOF) {
			return nil
		}
		if to.err != nil { // for which no server is to blame
			return to.err
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
				if errors.Is(cause, context.Canceled) {
					err = fmt.Errorf("nothing came for %s", programStall)
				}
			}
			return &Unreachable{c.Server, err}
		}
		silent.Reset(programStall)
	}
	return errs.New(errs.Denied, "%s sends more than the %d bytes the program has", c.Server, most)
}

// sink keeps why it could not be written to, which a copy does not tell from why there was nothing to read.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.err = err
	return n, err
}
