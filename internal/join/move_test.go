package join

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/migration"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/token"
)

// orders are the Moves of one that leads.
type orders struct{ asked []MoveRequest }

func (o *orders) Answer(_ context.Context, r MoveRequest) (MoveAnswer, *Order, error) {
	o.asked = append(o.asked, r)
	switch {
	case r.Ask == AskOrder && r.Attempt == "one":
		return MoveAnswer{Known: true}, &Order{ID: "1", Kind: migration.Migrate, To: Datastore{Engine: "PostgreSQL", Endpoint: "postgres://k1s:tops3cret@db/k1s", Key: []byte("the key")}}, nil
	case r.Ask == AskLearn:
		return MoveAnswer{Known: true, Decided: migration.Forward}, nil, nil
	}
	return MoveAnswer{}, nil, nil
}

func TestServersTellEachOtherWhereTheDatastoreGoes(t *testing.T) {
	c, _ := ofServers(t)
	o := &orders{}
	c.server.Moves = o
	m := newServer(t, "server-1")
	if _, _, err := m.joinAsServer(t, c, c.token(t, token.Server, time.Hour)); err != nil {
		t.Fatal(err)
	}
	agent := newMachine(t, "agent-0")
	if _, err := agent.join(t, c, c.token(t, token.Agent, time.Hour)); err != nil {
		t.Fatal(err)
	}
	cas, err := pki.ReadTrusted(c.paths)
	if err != nil {
		t.Fatal(err)
	}
	client := Client{Server: c.addr, CAs: cas}
	ask := MoveRequest{Node: "server-1", To: "server-0", Attempt: "one"}
	got, err := client.Order(t.Context(), m.identity, ask)
	if err != nil || got.To.Endpoint != "postgres://k1s:tops3cret@db/k1s" || string(got.To.Key) != "the key" || got.Kind != migration.Migrate {
		t.Errorf("%+v, %v", got, err)
	}
	learn := ask
	learn.Ask = AskLearn
	if a, err := client.Move(t.Context(), m.identity, learn); err != nil || a.Decided != migration.Forward || a.Envelope != nil {
		t.Errorf("%+v, %v", a, err)
	}
	if len(o.asked) != 2 || o.asked[1].Node != "server-1" || o.asked[1].To != "server-0" || len(o.asked[0].Seal) == 0 {
		t.Errorf("asked %+v", o.asked)
	}
	another := ask
	another.Attempt = "two"
	if _, err := client.Order(t.Context(), m.identity, another); !errs.Is(err, errs.NotFound) {
		t.Errorf("of another attempt: %v", err)
	}
	// Nobody else is told anything.
	before := len(o.asked)
	for name, try := range map[string]func() (Order, error){
		"an agent": func() (Order, error) {
			return client.Order(t.Context(), agent.identity, MoveRequest{Node: "agent-0", To: "server-0", Attempt: "one"})
		},
		"an agent as a server": func() (Order, error) { return client.Order(t.Context(), agent.identity, ask) },
		"a server that was removed": func() (Order, error) {
			delete(c.bindings, "server-1")
			return client.Order(t.Context(), m.identity, ask)
		},
	} {
		var removed *NoServer
		if got, err := try(); !errors.As(err, &removed) || got.To.Endpoint != "" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if len(o.asked) != before {
		t.Errorf("they came through: %+v", o.asked[before:])
	}
}

// Who reads along inside of TLS learns neither the password nor the key.
func TestAnOrderIsSealed(t *testing.T) {
	c, _ := ofServers(t)
	c.server.Moves = &orders{}
	m := newServer(t, "server-1")
	if _, _, err := m.joinAsServer(t, c, c.token(t, token.Server, time.Hour)); err != nil {
		t.Fatal(err)
	}
	cas, err := pki.ReadTrusted(c.paths)
	if err != nil {
		t.Fatal(err)
	}
	own := make([]byte, 32)
	own[0] = 9 // the base point: a public key like any other
	a, err := Client{Server: c.addr, CAs: cas}.Move(t.Context(), m.identity, MoveRequest{Node: "server-1", To: "server-0", Attempt: "one", Ask: AskOrder, Seal: own})
	if err != nil || a.Envelope == nil || strings.Contains(string(a.Envelope.Sealed), "tops3cret") || strings.Contains(string(a.Envelope.Sealed), "the key") {
		t.Errorf("%+v, %v", a, err)
	}
	// Without a key that anything can be sealed for there is no order.
	if a, err := (Client{Server: c.addr, CAs: cas}).Move(t.Context(), m.identity, MoveRequest{Node: "server-1", To: "server-0", Attempt: "one", Ask: AskOrder}); !errs.Is(err, errs.Invalid) || a.Envelope != nil {
		t.Errorf("%+v, %v", a, err)
	}
	// A request that nobody has signed is none.
	if a, err := c.server.move(t.Context(), []byte(`{"node":"server-1","ask":"order","attempt":"one"}`), ""); !errs.Is(err, errs.Invalid) || a.Envelope != nil {
		t.Errorf("%+v, %v", a, err)
	}
}
