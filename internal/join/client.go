package join

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/token"
)

// Client is a node's end of joining.
type Client struct {
	// Server is host:port.
	Server string
	// CAs are what this machine trusts as the cluster's CA; none before the first time, then the token tells which is right.
	// If the cluster has another one by now, it is trusted when one of these has vouched for it.
	CAs []*x509.Certificate
}

// askLimit bounds one question. A server that is just starting refuses, it does not keep us waiting.
const askLimit = 15 * time.Second

// Unreachable says that no server answered, or none that could decide: asking again may help.
type Unreachable struct {
	Server string
	Err    error
}

func (e *Unreachable) Error() string {
	return fmt.Sprintf("server %s: %v", e.Server, e.Err)
}
func (e *Unreachable) Unwrap() error { return e.Err }

// NoServer says that a server of the cluster, whose certificate was checked, knows this machine as no server: it was removed,
// or never was one. Nothing else says so: who answers with another certificate is somebody else.
type NoServer struct{ Err error }

func (e *NoServer) Error() string { return e.Err.Error() }
func (e *NoServer) Unwrap() error { return e.Err }

// refusal is an error as a server tells it.
type refusal struct {
	errs.Wire
	// NoServer tells that it is a *NoServer.
	NoServer bool `json:"noServer,omitempty"`
}

// Ask sends a request, signed with the node's identity, and with the token if there is one. Errors are *Unreachable where
// it may go better later; all others are final.
func (c Client) Ask(ctx context.Context, identity crypto.Signer, r Request, t *token.Token) (Welcome, error) {
	var w Welcome
	var err error
	if r.Identity, err = x509.MarshalPKIXPublicKey(identity.Public()); err != nil {
		return w, fmt.Errorf("joining: %w", err)
	}
	err = c.post(ctx, pathNode, identity, r, t, &w)
	return w, err
}

// AskKeys is Ask for a machine that is to be a server: with the answer come the cluster's keys.
func (c Client) AskKeys(ctx context.Context, identity crypto.Signer, r Request, t token.Token) (Welcome, Bootstrap, error) {
	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return Welcome{}, Bootstrap{}, fmt.Errorf("joining: %w", err)
	}
	r.Seal = own.PublicKey().Bytes()
	w, err := c.Ask(ctx, identity, r, &t)
	if err != nil {
		return w, Bootstrap{}, err
	}
	if w.Envelope == nil {
		return w, Bootstrap{}, &Unreachable{c.Server, errors.New("there are no keys in its answer")}
	}
	b, err := w.Envelope.open(t, r.Node, own)
	return w, b, err
}

// Member asks for a server's part in the datastore. Errors are as those of Ask.
func (c Client) Member(ctx context.Context, identity crypto.Signer, r MemberRequest) (Membership, error) {
	var m Membership
	var err error
	if r.Identity, err = x509.MarshalPKIXPublicKey(identity.Public()); err != nil {
		return m, fmt.Errorf("becoming a member: %w", err)
	}
	err = c.post(ctx, pathMember, identity, r, nil, &m)
	return m, err
}

// Keys asks another server for the keys of Secrets. Errors are as those of Ask; a *NoServer where that server gives none to
// this machine any more.
func (c Client) Keys(ctx context.Context, identity crypto.Signer, node string) ([]byte, error) {
	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("asking for the keys of Secrets: %w", err)
	}
	r := KeysRequest{Node: node, Seal: own.PublicKey().Bytes()}
	if r.Identity, err = x509.MarshalPKIXPublicKey(identity.Public()); err != nil {
		return nil, fmt.Errorf("asking for the keys of Secrets: %w", err)
	}
	var k Keys
	if err := c.post(ctx, pathKeys, identity, r, nil, &k); err != nil {
		return nil, err
	}
	plain, err := k.Envelope.unsealed(keysInfo, token.Token{}, node, own)
	if err != nil {
		return nil, errs.New(errs.Denied, "the keys of Secrets cannot be unsealed: %w", err)
	}
	return plain, nil
}

// Authorities asks another server how far it is with the replacement of the cluster's authorities. Errors are as those of Ask.
func (c Client) Authorities(ctx context.Context, identity crypto.Signer, node string) (Authorities, error) {
	return c.authorities(ctx, identity, AuthoritiesRequest{Node: node})
}

// AuthorityKeys asks another server for the keys of the new authorities, as pki.ReadReplacement reads them. Errors are as those
// of Ask; of kind errs.NotFound where it has none.
func (c Client) AuthorityKeys(ctx context.Context, identity crypto.Signer, node string) (pki.Bundle, error) {
	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("asking for the keys of the new authorities: %w", err)
	}
	a, err := c.authorities(ctx, identity, AuthoritiesRequest{Node: node, Seal: own.PublicKey().Bytes()})
	if err != nil {
		return nil, err
	}
	if a.Envelope == nil {
		return nil, &Unreachable{c.Server, errors.New("there are no keys in its answer")}
	}
	plain, err := a.Envelope.unsealed(authoritiesInfo, token.Token{}, node, own)
	var b pki.Bundle
	if err == nil {
		err = json.Unmarshal(plain, &b)
	}
	if err != nil {
		return nil, errs.New(errs.Denied, "the keys of the new authorities cannot be unsealed: %w", err)
	}
	return b, nil
}

func (c Client) authorities(ctx context.Context, identity crypto.Signer, r AuthoritiesRequest) (Authorities, error) {
	var a Authorities
	var err error
	if r.Identity, err = x509.MarshalPKIXPublicKey(identity.Public()); err != nil {
		return a, fmt.Errorf("asking about the cluster's authorities: %w", err)
	}
	return a, c.post(ctx, pathAuthorities, identity, r, nil, &a)
}

// post sends what is to be signed and reads the answer.
func (c Client) post(ctx context.Context, path string, identity crypto.Signer, what any, t *token.Token, into any) error {
	roots := c.CAs
	if len(roots) == 0 {
		if t == nil {
			return errs.Hint(errs.New(errs.Invalid, "cannot join: there is neither a token nor the CA of the cluster"), "give a token: --token-file FILE")
		}
		var err error
		if roots, err = c.pinned(ctx, t.Pin); err != nil {
			return err
		}
	}
	body, err := json.Marshal(what)
	if err != nil {
		return fmt.Errorf("joining: %w", err)
	}
	header := http.Header{"Content-Type": {"application/json"}}
	sig, err := sign(identity, path, body)
	if err != nil {
		return err
	}
	header.Set(signatureHeader, sig)
	if t != nil {
		header.Set("Authorization", "Bearer "+t.Text())
	}
	answer, err := c.do(ctx, conf(roots), http.MethodPost, path, header, body)
	var stranger *Stranger
	if errors.As(err, &stranger) && len(c.CAs) > 0 {
		// The cluster may have replaced its CA while this machine was away.
		vouched, verr := c.successors(ctx, c.CAs, func(cert *x509.Certificate) bool { return slices.ContainsFunc(c.CAs, cert.Equal) })
		if verr != nil {
			return verr
		}
		if len(vouched) > len(c.CAs) {
			answer, err = c.do(ctx, conf(vouched), http.MethodPost, path, header, body)
		}
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return &Unreachable{c.Server, fmt.Errorf("its answer cannot be read: %w", err)}
	}
	return nil
}

func conf(roots []*x509.Certificate) *tls.Config {
	pool := x509.NewCertPool()
	for _, r := range roots {
		pool.AddCert(r)
	}
	return &tls.Config{RootCAs: pool, ServerName: ServerName, MinVersion: tls.VersionTLS13}
}

// pinned gets the CA whose key the token names, and those it has vouched for.
func (c Client) pinned(ctx context.Context, pin string) ([]*x509.Certificate, error) {
	found, err := c.successors(ctx, nil, func(cert *x509.Certificate) bool { return token.Pin(cert) == pin })
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errs.Hint(errs.New(errs.Denied, "%s is not a server of the cluster that the token is for: its CA is another one", c.Server),
			"check the address and the token; if they are right, somebody else answers in the server's place")
	}
	return found, nil
}

// successors asks for the cluster's CAs and takes those that known says yes to, and those that follow from them. The
// connection is not trusted, and nothing is told on it.
func (c Client) successors(ctx context.Context, more []*x509.Certificate, known func(*x509.Certificate) bool) ([]*x509.Certificate, error) {
	// #nosec G402: what is fetched is public, and checked by what is known.
	answer, err := c.do(ctx, &tls.Config{InsecureSkipVerify: true, ServerName: ServerName, MinVersion: tls.VersionTLS13}, http.MethodGet, pathCA, nil, nil)
	if err != nil {
		return nil, err
	}
	all := slices.Clone(more)
	for rest := answer; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err == nil && !slices.ContainsFunc(all, cert.Equal) {
			all = append(all, cert)
		}
	}
	return pki.Successors(all, known), nil
}

// Stranger says that a server's certificate is of none of the CAs that are trusted: who answers at that address is somebody else.
type Stranger struct{ Err error }

func (e *Stranger) Error() string { return e.Err.Error() }
func (e *Stranger) Unwrap() error { return e.Err }

// Published is what the server tells anybody about the cluster's CAs, read over a connection that is trusted.
func (c Client) Published(ctx context.Context) ([]byte, error) {
	return c.do(ctx, conf(c.CAs), http.MethodGet, pathCA, nil, nil)
}

func (c Client) do(ctx context.Context, conf *tls.Config, method, path string, header http.Header, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askLimit, fmt.Errorf("no answer within %s", askLimit))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "https://"+c.Server+path, bytes.NewReader(body))
	if err != nil {
		return nil, errs.As(errs.Invalid, err)
	}
	req.Header = header.Clone()
	// No proxy: tokens go to servers only.
	t := &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}
	defer t.CloseIdleConnections()
	resp, err := (&http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
	if err != nil {
		var unknown x509.UnknownAuthorityError
		if errors.As(err, &unknown) {
			return nil, &Stranger{errs.Hint(errs.New(errs.Denied, "%s is not a server of this cluster: its certificate is signed by another CA", c.Server),
				"check the address; a machine that is to join another cluster is reset first: k1s reset")}
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, &Unreachable{c.Server, err}
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return nil, &Unreachable{c.Server, err}
	}
	if resp.StatusCode == http.StatusOK {
		return answer, nil
	}
	var e refusal
	told := error(nil)
	// What is said on a connection that nobody has vouched for is not repeated.
	if !conf.InsecureSkipVerify && json.Unmarshal(answer, &e) == nil {
		told = e.Err()
	}
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusNotImplemented:
		if told != nil && e.NoServer {
			told = &NoServer{told}
		}
		if told != nil && e.Kind != 0 {
			return nil, told
		}
	}
	if told == nil {
		told = fmt.Errorf("it answers %s to %s; is it a server of k1s?", resp.Status, path)
	}
	return nil, &Unreachable{c.Server, told}
}
