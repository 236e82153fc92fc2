package join

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/token"
)

// MoveAsk is what a server wants of another one about a move of the datastore.
type MoveAsk string

// What is asked. The one that leads asks the others whether they could go with it (AskReady), to find out whether they reach the new
// datastore (AskCheck), and to stop serving (AskFence); they ask it what is to be done (AskOrder) and, when they have stopped, what was
// decided (AskLearn).
const (
	AskReady MoveAsk = "ready"
	AskCheck MoveAsk = "check"
	AskFence MoveAsk = "fence"
	AskOrder MoveAsk = "order"
	AskLearn MoveAsk = "learn"
)

// MoveRequest is signed with the identity key of a server that is known.
type MoveRequest struct {
	Node     string  `json:"node"`
	Identity []byte  `json:"identity"`
	Ask      MoveAsk `json:"ask"`
	// To is the server that is meant: what was signed for one of them is nothing to another.
	To      string `json:"to"`
	Attempt string `json:"attempt,omitempty"`
	// Engine is what the datastore is that is to be left, where AskReady asks.
	Engine config.Engine `json:"engine,omitempty"`
	// Seal is the X25519 key, made for this request, that an Order is sealed for.
	Seal []byte `json:"seal,omitempty"`
}

// MoveAnswer is how far the server that was asked is.
type MoveAnswer struct {
	// Done tells that what was asked for is done, as far as it is done while the server can answer; Error why it cannot be done.
	Done  bool       `json:"done,omitempty"`
	Error *errs.Wire `json:"error,omitempty"`
	// Known tells that a server that leads knows of the attempt, and Decided what was decided; "" for nothing yet.
	Known   bool               `json:"known,omitempty"`
	Decided migration.Decision `json:"decided,omitempty"`
	// Envelope is the Order for who asked.
	Envelope *Envelope `json:"envelope,omitempty"`
}

// Order is what a server is told to do. It has the new datastore's password in it.
type Order struct {
	ID   string          `json:"id"` // of the move
	Kind migration.Kind  `json:"kind"`
	From migration.Place `json:"from"` // as the one that leads has it
	To   Datastore       `json:"to"`
	// Replace tells that what a server has of a datastore like the new one on its own disk is given up. To is then, or may be, an etcd that
	// the servers run: its CA is the authority that they all have for it.
	Replace bool `json:"replace,omitempty"`
}

const moveInfo = "k1s move of the datastore v1"

// Moves are this server's part in moves of several.
type Moves interface {
	// Answer answers another server, whose name was checked. The Order is for who asks for one.
	Answer(ctx context.Context, r MoveRequest) (MoveAnswer, *Order, error)
}

// move answers another server about a move of the datastore.
func (s *Server) move(ctx context.Context, body []byte, signature string) (MoveAnswer, error) {
	var r MoveRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return MoveAnswer{}, errs.New(errs.Invalid, "the request about a move of the datastore cannot be read: %w", err)
	}
	if err := signedBy(r.Identity, pathMove, body, signature); err != nil {
		return MoveAnswer{}, err
	}
	if _, err := s.known(ctx, r.Node, r.Identity); err != nil {
		return MoveAnswer{}, err
	}
	a, order, err := s.Moves.Answer(ctx, r)
	if err != nil || order == nil {
		return a, err
	}
	plain, err := json.Marshal(order)
	if err != nil {
		return a, fmt.Errorf("sealing how the new datastore is reached: %w", err)
	}
	e, err := sealed(plain, moveInfo, token.Token{}, r.Node, r.Seal)
	if err != nil {
		return a, err
	}
	a.Envelope = &e
	s.Log.Info("how the new datastore is reached given to a server", "node", r.Node)
	return a, nil
}

// Move asks another server about a move of the datastore. Errors are as those of Ask; a *NoServer where that server knows this one as
// none.
func (c Client) Move(ctx context.Context, identity crypto.Signer, r MoveRequest) (MoveAnswer, error) {
	var a MoveAnswer
	var err error
	if r.Identity, err = x509.MarshalPKIXPublicKey(identity.Public()); err != nil {
		return a, fmt.Errorf("asking about a move of the datastore: %w", err)
	}
	err = c.post(ctx, pathMove, identity, r, nil, &a)
	return a, err
}

// Order asks the server that leads a move what is to be done.
func (c Client) Order(ctx context.Context, identity crypto.Signer, r MoveRequest) (Order, error) {
	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return Order{}, fmt.Errorf("asking about a move of the datastore: %w", err)
	}
	r.Ask, r.Seal = AskOrder, own.PublicKey().Bytes()
	a, err := c.Move(ctx, identity, r)
	if err != nil {
		return Order{}, err
	}
	if a.Envelope == nil {
		return Order{}, errs.New(errs.NotFound, "%s does not move the datastore any more", c.Server)
	}
	plain, err := a.Envelope.unsealed(moveInfo, token.Token{}, r.Node, own)
	var o Order
	if err == nil {
		err = json.Unmarshal(plain, &o)
	}
	if err != nil {
		return Order{}, errs.New(errs.Denied, "how the new datastore is reached cannot be unsealed: %w", err)
	}
	return o, nil
}
