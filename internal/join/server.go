package join

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"k1s.io/k1s/internal/config"
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
	Pin() string
	Sign(l pki.Leaf, csr []byte, now time.Time) ([]byte, error)
}

// Members are the servers as members of the cluster's datastore. Errors of kind errs.NotRunning say that something has to
// happen first that has been begun, and that asking again helps.
type Members interface {
	// Join makes a server a member, first one without a vote, and tells how it starts.
	Join(ctx context.Context, m Member) (Membership, error)
	// Promote gives it a vote.
	Promote(ctx context.Context, m Member) error
}

// Server is a server's end of joining.
type Server struct {
	Store   Store
	Members Members
	// Bootstrap are the keys that go to servers.
	Bootstrap func(context.Context) (Bootstrap, error)
	// Secrets are the keys of Secrets, as they are kept.
	Secrets func() ([]byte, error)
	// Moves answers servers that move together to another datastore.
	Moves Moves
	// Authorities is how far this server is with the replacement of the cluster's authorities, NewAuthorities are the keys of the
	// new ones, for other servers; an error of kind errs.NotFound says that this one has none.
	Authorities    func() (Authorities, error)
	NewAuthorities func() (pki.Bundle, error)
	// Upgrades answers nodes while the cluster is upgraded.
	Upgrades Upgrades
	// Authority signs, with the CA's key; CA is what anybody may see, see pki.Published.
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

	// Admitting is held from a decision until it is kept, so that two machines cannot both be let in, and by whoever has to
	// know that nobody is.
	Admitting sync.Locker
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
	mux.HandleFunc("POST "+pathMember, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			s.refuse(w, errs.New(errs.Invalid, "reading the request to be a member: %w", err))
			return
		}
		m, err := s.member(r.Context(), body, r.Header.Get(signatureHeader))
		if err != nil {
			level := slog.LevelWarn
			if errs.Is(err, errs.NotRunning) {
				level = slog.LevelDebug // it asks again, several times a second
			}
			s.Log.Log(r.Context(), level, "a server is not a member", "from", r.Header.Get("X-Forwarded-For"), "err", err)
			s.refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(m)
	})
	mux.HandleFunc("POST "+pathKeys, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			s.refuse(w, errs.New(errs.Invalid, "reading the request for the keys of Secrets: %w", err))
			return
		}
		k, err := s.keys(r.Context(), body, r.Header.Get(signatureHeader))
		if err != nil {
			s.Log.Warn("the keys of secrets are not given", "from", r.Header.Get("X-Forwarded-For"), "err", err)
			s.refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(k)
	})
	mux.HandleFunc("POST "+pathMove, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			s.refuse(w, errs.New(errs.Invalid, "reading the request about a move of the datastore: %w", err))
			return
		}
		a, err := s.move(r.Context(), body, r.Header.Get(signatureHeader))
		if err != nil {
			s.Log.Warn("another server is not answered about a move of the datastore", "from", r.Header.Get("X-Forwarded-For"), "err", err)
			s.refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a)
	})
	mux.HandleFunc("POST "+pathAuthorities, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			s.refuse(w, errs.New(errs.Invalid, "reading the request about the cluster's authorities: %w", err))
			return
		}
		a, err := s.authorities(r.Context(), body, r.Header.Get(signatureHeader))
		if err != nil {
			s.Log.Warn("nothing is told of the cluster's authorities", "from", r.Header.Get("X-Forwarded-For"), "err", err)
			s.refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a)
	})
	s.serveUpgrades(mux)
	return mux
}

func (s *Server) refuse(w http.ResponseWriter, err error) {
	code := http.StatusServiceUnavailable // something here: worth another try
	switch errs.KindOf(err) {
	case errs.Invalid, errs.Usage:
		code = http.StatusBadRequest
	case errs.Denied:
		code = http.StatusForbidden
	case errs.NotFound:
		code = http.StatusNotFound
	case errs.Unsupported:
		code = http.StatusNotImplemented
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	var noServer *NoServer
	_ = json.NewEncoder(w).Encode(refusal{errs.ToWire(err), errors.As(err, &noServer)})
}

// node lets a machine be a node, or be it for longer.
func (s *Server) node(ctx context.Context, body []byte, signature, authorization string) (Welcome, error) {
	var r Request
	if err := json.Unmarshal(body, &r); err != nil {
		return Welcome{}, errs.New(errs.Invalid, "the request to join cannot be read: %w", err)
	}
	if err := signedBy(r.Identity, pathNode, body, signature); err != nil {
		return Welcome{}, err
	}
	switch {
	case r.Role != token.Agent && r.Role != token.Server:
		return Welcome{}, errs.New(errs.Invalid, "%q is no role of a node", shorten(string(r.Role)))
	case r.Role == token.Agent && r.Seal != nil:
		return Welcome{}, errs.New(errs.Invalid, "only a server asks for the cluster's keys")
	case r.Role == token.Server && len(r.CSRs) > 0:
		return Welcome{}, errs.New(errs.Invalid, "a server issues its certificates itself")
	}
	reserved, err := s.Reserved()
	if err != nil {
		return Welcome{}, err
	}
	if err := r.check(reserved, s.Private, s.Domain); err != nil {
		return Welcome{}, err
	}
	skew := Skew
	if r.Role == token.Server {
		skew = sameMinor
	}
	if err := skew(r.Kubernetes, s.Kubernetes); err != nil {
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
	s.Admitting.Lock()
	defer s.Admitting.Unlock()
	bind, shown, err := s.admit(ctx, r, authorization)
	if err != nil {
		return Welcome{}, err
	}
	if r.Role == token.Server {
		if err := config.Agree(r.Settings, s.Settings); err != nil {
			return Welcome{}, err
		}
	}
	a, err := s.Authority() // the CA's key is read for machines that are let in only
	if err != nil {
		return Welcome{}, err
	}
	w := Welcome{CA: a.PEM(), Certificates: map[string][]byte{}, Settings: s.Settings}
	if r.Seal != nil {
		b, err := s.Bootstrap(ctx)
		if err != nil {
			return Welcome{}, err
		}
		e, err := seal(b, shown, r.Node, r.Seal)
		if err != nil {
			return Welcome{}, err
		}
		w.Envelope = &e
		bind.Until = endless // it has the keys with which certificates are issued
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
	// More is not kept: the CAs of now come first.
	pins := r.Trusts[:min(len(r.Trusts), mostPins)]
	if err := checkPins(pins); err != nil {
		return Welcome{}, err
	}
	trusts, news := strings.Join(pins, " "), false
	if trusts != "" && trusts != bind.Trusts {
		bind.Trusts, news = trusts, true
	}
	// What it has, not what it is given now: the answer may not reach it, or it may be killed before it has written it.
	if r.Issuer != "" && r.Issuer != bind.Issuer {
		if err := checkPins([]string{r.Issuer}); err != nil {
			return Welcome{}, err
		}
		bind.Issuer, news = r.Issuer, true
	}
	if len(r.CSRs) == 0 && r.Seal == nil && bind.Version != "" && !news {
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
	switch {
	case r.Seal != nil:
		what = "the cluster's keys given to a server"
	case bind.Version == "":
		what = "a node joined"
	case len(r.CSRs) == 0:
		what = "a node trusts other CAs, or has certificates of another one"
	}
	s.Log.Info(what, "node", r.Node, "role", r.Role, "ip", r.IP, "k1s", shorten(r.K1s), "token", bind.Token, "identity", bind.Identity, "certificates", slices.Sorted(maps.Keys(r.CSRs)), "until", bind.Until)
	return w, nil
}

// mostPins keeps what is kept of a node small.
const mostPins = 8

// checkPins keeps what is kept of a node what it is.
func checkPins(pins []string) error {
	for _, p := range pins {
		if raw, err := base64.RawURLEncoding.DecodeString(p); err != nil || len(raw) != sha256.Size {
			return errs.New(errs.Invalid, "the request says in a way that cannot be read which CAs the machine trusts")
		}
	}
	return nil
}

// endless is the end of what a server can do in the name of nodes: it does not come by itself.
var endless = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)

// member makes a server that joined part of the datastore.
func (s *Server) member(ctx context.Context, body []byte, signature string) (Membership, error) {
	var r MemberRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return Membership{}, errs.New(errs.Invalid, "the request to be a member cannot be read: %w", err)
	}
	if err := signedBy(r.Identity, pathMember, body, signature); err != nil {
		return Membership{}, err
	}
	b, err := s.known(ctx, r.Node, r.Identity)
	if err != nil {
		return Membership{}, err
	}
	// It is a member under its own name and at its own address, whatever it says.
	u, err := url.Parse(r.Member.PeerURL)
	if err != nil || u.Scheme != "https" || u.Hostname() != b.IP.String() || u.Path != "" || u.Port() == "" || !strings.HasPrefix(r.Member.Name, r.Node+"-") || len(r.Member.Name) > len(r.Node)+17 {
		return Membership{}, errs.New(errs.Invalid, "%s at %s cannot be the member of server %s, which is at %s", shorten(r.Member.Name), shorten(r.Member.PeerURL), r.Node, b.IP)
	}
	if r.Promote {
		return Membership{}, s.Members.Promote(ctx, r.Member)
	}
	return s.Members.Join(ctx, r.Member)
}

// known is the binding of a server that asks, which has to be its own; the error is a *NoServer where it has none.
func (s *Server) known(ctx context.Context, node string, identity []byte) (*Binding, error) {
	all, err := s.Store.Bindings(ctx)
	if err != nil {
		return nil, fmt.Errorf("finding out who asks: %w", err)
	}
	b := claims{bindings: all}.binding(node)
	if b == nil || b.Identity != fingerprint(identity) || b.Role != token.Server {
		return nil, &NoServer{errs.Hint(errs.New(errs.Denied, "%s is no server of this cluster", shorten(node)), "join again with a token: k1s server --server https://HOST:6443 --token-file FILE")}
	}
	return b, b.stays()
}

// keys gives a server the keys of Secrets. It has had the keys of the cluster, so no token is asked for; a server that was
// removed is none any more.
func (s *Server) keys(ctx context.Context, body []byte, signature string) (Keys, error) {
	var r KeysRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return Keys{}, errs.New(errs.Invalid, "the request for the keys of Secrets cannot be read: %w", err)
	}
	if err := signedBy(r.Identity, pathKeys, body, signature); err != nil {
		return Keys{}, err
	}
	if _, err := s.known(ctx, r.Node, r.Identity); err != nil {
		return Keys{}, err
	}
	plain, err := s.Secrets()
	if err != nil {
		return Keys{}, err
	}
	e, err := sealed(plain, keysInfo, token.Token{}, r.Node, r.Seal)
	if err != nil {
		return Keys{}, err
	}
	s.Log.Info("the keys of secrets given to a server", "node", r.Node)
	return Keys{Envelope: e}, nil
}

// authorities tells a server how far this one is with the replacement of the cluster's authorities, and gives it the keys of the new ones. As
// with the keys of Secrets: it has those of the cluster, and one that was removed is none any more.
func (s *Server) authorities(ctx context.Context, body []byte, signature string) (Authorities, error) {
	var r AuthoritiesRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return Authorities{}, errs.New(errs.Invalid, "the request about the cluster's authorities cannot be read: %w", err)
	}
	if err := signedBy(r.Identity, pathAuthorities, body, signature); err != nil {
		return Authorities{}, err
	}
	if _, err := s.known(ctx, r.Node, r.Identity); err != nil {
		return Authorities{}, err
	}
	a, err := s.Authorities()
	if err != nil || r.Seal == nil {
		return a, err
	}
	keys, err := s.NewAuthorities()
	if err != nil {
		return Authorities{}, err
	}
	plain, err := json.Marshal(keys)
	if err != nil {
		return Authorities{}, fmt.Errorf("sealing the keys of the new authorities: %w", err)
	}
	e, err := sealed(plain, authoritiesInfo, token.Token{}, r.Node, r.Seal)
	if err != nil {
		return Authorities{}, err
	}
	s.Log.Info("the keys of the new authorities given to a server", "node", r.Node)
	a.Envelope = &e
	return a, nil
}

// admit finds out whether the machine is the node already, or has a token with which it may become it. The answer is the
// binding to keep, and the token, if it took one.
func (s *Server) admit(ctx context.Context, r Request, authorization string) (Binding, token.Token, error) {
	now, id := s.Now(), fingerprint(r.Identity)
	fail := func(err error) (Binding, token.Token, error) { return Binding{}, token.Token{}, err }
	unknown := func(err error) (Binding, token.Token, error) {
		return fail(fmt.Errorf("finding out whose name %s is: %w", r.Node, err))
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
	bind := Binding{Node: r.Node, Role: r.Role, Identity: id, Since: now.UTC().Truncate(time.Second)}
	var shown token.Token
	known, nameErr := c.name(r.Node, id, r.Role, now)
	if known {
		bind = *c.binding(r.Node)
	}
	if !known || r.Seal != nil {
		// Only who has a token is told anything about names, and who wants the cluster's keys shows one each time.
		if shown, err = s.allowed(ctx, r.Role, authorization, now); err != nil {
			return fail(err)
		}
		bind.Token = shown.ID
	}
	if old := c.binding(r.Node); old != nil {
		if err := old.stays(); err != nil { // first: a machine in its place waits until the name is free
			return fail(err)
		}
		bind.Version = old.Version
	}
	if nameErr != nil {
		return fail(nameErr)
	}
	if err := c.address(r.Node, r.IP, now); err != nil {
		return fail(err)
	}
	bind.IP = r.IP
	return bind, shown, nil
}

// allowed reads the token with which a machine may join.
func (s *Server) allowed(ctx context.Context, role token.Role, authorization string, now time.Time) (token.Token, error) {
	text, ok := strings.CutPrefix(authorization, "Bearer ")
	if !ok {
		return token.Token{}, errs.Hint(errs.New(errs.Denied, "this machine is not a node of the cluster and has no token"), "get one on a server with: k1s token create")
	}
	t, err := token.Parse(text)
	if err != nil {
		return token.Token{}, errs.As(errs.Denied, err)
	}
	rec, err := s.Store.Token(ctx, t.ID)
	if errs.Is(err, errs.NotFound) {
		return token.Token{}, errs.Hint(errs.New(errs.Denied, "the token %s is not known: it was revoked, or has expired", t.ID), "get one on a server with: k1s token create")
	}
	if err != nil {
		return token.Token{}, fmt.Errorf("looking for token %s: %w", t.ID, err)
	}
	return t, rec.Allows(t, role, now)
}
