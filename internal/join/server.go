package join

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/token"
)

// Store is what the cluster keeps of tokens and nodes. Errors of kind errs.NotFound say that something is not there; all
// others, that it cannot be known now. Nothing it says may be older than the question.
type Store interface {
	Token(ctx context.Context, id string) (token.Record, error)
	Bindings(ctx context.Context) ([]Binding, error)
	// Bind keeps a binding: in the place of what was read with its Version, or as the first where that is "". An error
	// of kind errs.Exists says that somebody else was faster.
	Bind(ctx context.Context, b Binding) error
	Nodes(ctx context.Context) ([]Node, error)
	// Servers are the cluster's API servers, as host:port.
	Servers(ctx context.Context) ([]string, error)
}

// Authority signs; it is a pki.Authority.
type Authority interface {
	PEM() []byte
	Sign(l pki.Leaf, csr []byte, now time.Time) ([]byte, error)
}

// Server is a server's end of joining.
type Server struct {
	Store Store
	// Authority signs, with the CA's key; CA is its certificate, which anybody may see.
	Authority func() (Authority, error)
	CA        func() ([]byte, error)
	// Settings are those all nodes have to agree about.
	Settings map[string]json.RawMessage
	// Reserved are names and addresses only servers may have; read anew each time, since they change.
	Reserved func() ([]string, error)
	// Private are the networks of pods and services.
	Private []netip.Prefix
	// Domain is the cluster's DNS domain.
	Domain string
	// Kubernetes is the version of this server's API.
	Kubernetes string
	Now        func() time.Time
	Log        *slog.Logger

	// admitting is held from a decision until it is kept, so that two machines cannot both be let in.
	admitting sync.Mutex
}

// Handler answers below Prefix.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathCA, func(w http.ResponseWriter, _ *http.Request) {
		ca, err := s.CA()
		if err != nil {
			s.refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/x-pem-file")
		_, _ = w.Write(ca) // a client that went away
	})
	mux.HandleFunc("POST "+pathNode, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			s.refuse(w, errs.New(errs.Invalid, "reading the request to join: %w", err))
			return
		}
		welcome, err := s.node(r.Context(), body, r.Header.Get(signatureHeader), r.Header.Get("Authorization"))
		if err != nil {
			s.Log.Warn("a node was refused", "from", r.Header.Get("X-Forwarded-For"), "err", err)
			s.refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(welcome)
	})
	return mux
}

func (s *Server) refuse(w http.ResponseWriter, err error) {
	code := http.StatusServiceUnavailable // something here: worth another try
	switch errs.KindOf(err) {
	case errs.Invalid, errs.Usage:
		code = http.StatusBadRequest
	case errs.Denied:
		code = http.StatusForbidden
	case errs.Unsupported:
		code = http.StatusNotImplemented
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(errs.ToWire(err))
}

// node lets a machine be a node, or be it for longer.
func (s *Server) node(ctx context.Context, body []byte, signature, authorization string) (Welcome, error) {
	var r Request
	if err := json.Unmarshal(body, &r); err != nil {
		return Welcome{}, errs.New(errs.Invalid, "the request to join cannot be read: %w", err)
	}
	if err := signedBy(r.Identity, body, signature); err != nil {
		return Welcome{}, err
	}
	if r.Role != token.Agent {
		return Welcome{}, errs.New(errs.Unsupported, "joining as %q is not possible yet: agents only", shorten(string(r.Role)))
	}
	reserved, err := s.Reserved()
	if err != nil {
		return Welcome{}, err
	}
	if err := r.check(reserved, s.Private, s.Domain); err != nil {
		return Welcome{}, err
	}
	if err := Skew(r.Kubernetes, s.Kubernetes); err != nil {
		return Welcome{}, err
	}
	leaves := map[string]pki.Leaf{}
	for _, l := range pki.JoinedLeaves(r.Node, r.IP) {
		leaves[l.Name] = l
	}
	for name := range r.CSRs {
		if _, ok := leaves[name]; !ok {
			return Welcome{}, errs.New(errs.Invalid, "nodes have no certificate %q", shorten(name))
		}
	}
	a, err := s.Authority()
	if err != nil {
		return Welcome{}, err
	}
	w := Welcome{CA: a.PEM(), Certificates: map[string][]byte{}, Settings: s.Settings}
	s.admitting.Lock()
	defer s.admitting.Unlock()
	bind, err := s.admit(ctx, r, authorization)
	if err != nil {
		return Welcome{}, err
	}
	for name, csr := range r.CSRs {
		if w.Certificates[name], err = a.Sign(leaves[name], csr, s.Now()); err != nil {
			return Welcome{}, err
		}
		bind.Until = s.Now().Add(leaves[name].Lifetime).UTC().Truncate(time.Second)
	}
	if w.Servers, err = s.Store.Servers(ctx); err != nil {
		return Welcome{}, fmt.Errorf("finding the cluster's servers: %w", err)
	}
	if len(r.CSRs) == 0 && bind.Version != "" {
		return w, nil // it only asks what has changed
	}
	// Kept before anything is handed out.
	err = s.Store.Bind(ctx, bind)
	if errs.Is(err, errs.Exists) {
		return Welcome{}, errs.New(errs.Denied, "another machine was joining under the name %s in the same moment", r.Node)
	}
	if err != nil {
		return Welcome{}, fmt.Errorf("keeping whose name %s is: %w", r.Node, err)
	}
	what := "certificates issued to a node"
	if bind.Version == "" {
		what = "a node joined"
	}
	s.Log.Info(what, "node", r.Node, "ip", r.IP, "k1s", shorten(r.K1s), "token", bind.Token, "identity", bind.Identity, "certificates", slices.Sorted(maps.Keys(r.CSRs)), "until", bind.Until)
	return w, nil
}

// admit finds out whether the machine is the node already, or has a token with which it may become it. The answer is the
// binding to keep.
func (s *Server) admit(ctx context.Context, r Request, authorization string) (Binding, error) {
	now, id := s.Now(), fingerprint(r.Identity)
	unknown := func(err error) (Binding, error) {
		return Binding{}, fmt.Errorf("finding out whose name %s is: %w", r.Node, err)
	}
	var (
		c   claims
		err error
	)
	if c.bindings, err = s.Store.Bindings(ctx); err != nil {
		return unknown(err)
	}
	if c.nodes, err = s.Store.Nodes(ctx); err != nil {
		return unknown(err)
	}
	bind := Binding{Node: r.Node, Identity: id, Since: now.UTC().Truncate(time.Second)}
	known, nameErr := c.name(r.Node, id, now)
	if known {
		bind = *c.binding(r.Node)
	} else {
		// Only who has a token is told anything about names.
		if bind.Token, err = s.allowed(ctx, r.Role, authorization, now); err != nil {
			return Binding{}, err
		}
		if nameErr != nil {
			return Binding{}, nameErr
		}
		if old := c.binding(r.Node); old != nil {
			bind.Version = old.Version
		}
	}
	if err := c.address(r.Node, r.IP, now); err != nil {
		return Binding{}, err
	}
	bind.IP = r.IP
	return bind, nil
}

// allowed tells with which token, by its ID, a machine may join.
func (s *Server) allowed(ctx context.Context, role token.Role, authorization string, now time.Time) (string, error) {
	text, ok := strings.CutPrefix(authorization, "Bearer ")
	if !ok {
		return "", errs.Hint(errs.New(errs.Denied, "this machine is not a node of the cluster and has no token"), "get one on a server with: k1s token create")
	}
	t, err := token.Parse(text)
	if err != nil {
		return "", errs.As(errs.Denied, err)
	}
	rec, err := s.Store.Token(ctx, t.ID)
	if errs.Is(err, errs.NotFound) {
		return "", errs.Hint(errs.New(errs.Denied, "the token %s is not known: it was revoked, or has expired", t.ID), "get one on a server with: k1s token create")
	}
	if err != nil {
		return "", fmt.Errorf("looking for token %s: %w", t.ID, err)
	}
	return t.ID, rec.Allows(t, role, now)
}
