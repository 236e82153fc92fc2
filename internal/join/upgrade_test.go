package join

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/token"
	"k1s.io/k1s/internal/upgrade"
	"k1s.io/k1s/internal/upgrade/rollout"
)

// upgrading is an Upgrades that has one program, and remembers.
type upgrading struct {
	content []byte
	said    int64 // how long it says that the program is
	heard   []rollout.Report
	open    int
	held    chan struct{} // nil, or closed when programs may go
	begun   chan struct{}
}

func (u *upgrading) Report(_ context.Context, r rollout.Report) (UpgradeAnswer, error) {
	u.heard = append(u.heard, r)
	return UpgradeAnswer{Leader: "10.0.0.1:6443", Order: &rollout.Order{Key: "id/" + r.Node + "/1", Program: upgrade.Program{Digest: "d"}, Timeout: time.Minute}}, nil
}

// reader counts how often it was closed, and may wait before it gives anything.
type reader struct {
	io.Reader
	u *upgrading
}

func (r reader) Read(p []byte) (int, error) {
	if r.u.held != nil {
		r.u.begun <- struct{}{}
		<-r.u.held
		r.u.held = nil
	}
	return r.Reader.Read(p)
}

func (r reader) Close() error { r.u.open--; return nil }

func (u *upgrading) Program(digest string) (Program, error) {
	if digest != "d" {
		return Program{}, errs.New(errs.NotFound, "there is no such program here")
	}
	u.open++
	return Program{reader{bytes.NewReader(u.content), u}, u.said}, nil
}

// served lets a server of a new cluster answer with u, and returns an agent of it and a client of the server.
func (u *upgrading) served(t *testing.T) (*machine, Client) {
	t.Helper()
	c := newCluster(t)
	c.server.Upgrades = u
	agent := newMachine(t, "agent-0")
	if _, err := agent.join(t, c, c.token(t, token.Agent, time.Hour)); err != nil {
		t.Fatal(err)
	}
	cas, err := pki.ReadTrusted(c.paths)
	if err != nil {
		t.Fatal(err)
	}
	return agent, Client{Server: c.addr, CAs: cas}
}

func TestNodesAreToldToGoOverAndGetTheProgram(t *testing.T) {
	u := &upgrading{content: bytes.Repeat([]byte("k1s"), 200_000)}
	u.said = int64(len(u.content))
	agent, client := u.served(t)
	// Who it is does not come from what it says of itself.
	report := rollout.Report{Node: "server-0", Digest: "o", Well: true}
	a, err := client.Upgrade(t.Context(), agent.identity, UpgradeRequest{Node: "agent-0", Report: report})
	if err != nil || a.Leader != "10.0.0.1:6443" || a.Order == nil || a.Order.Key != "id/agent-0/1" || a.Order.Timeout != time.Minute {
		t.Fatalf("%+v, %v", a, err)
	}
	if len(u.heard) != 1 || u.heard[0].Node != "agent-0" || u.heard[0].Digest != "o" || !u.heard[0].Well {
		t.Errorf("heard %+v", u.heard)
	}
	var got bytes.Buffer
	if err := client.Program(t.Context(), agent.identity, "agent-0", "d", u.said, &got); err != nil || !bytes.Equal(got.Bytes(), u.content) {
		t.Errorf("%d bytes of %d, %v", got.Len(), u.said, err)
	}
	if err := client.Program(t.Context(), agent.identity, "agent-0", "e", u.said, io.Discard); !errs.Is(err, errs.NotFound) {
		t.Errorf("another one: %v", err)
	}
	if err := client.Program(t.Context(), agent.identity, "agent-0", "d", u.said-1, io.Discard); !errs.Is(err, errs.Denied) {
		t.Errorf("one that is too large: %v", err)
	}

	stranger := newMachine(t, "agent-0")
	for name, try := range map[string]func() error{
		"a stranger reports": func() error {
			_, err := client.Upgrade(t.Context(), stranger.identity, UpgradeRequest{Node: "agent-0"})
			return err
		},
		"a stranger wants it": func() error {
			return client.Program(t.Context(), stranger.identity, "agent-0", "d", u.said, io.Discard)
		},
		"nobody wants it": func() error {
			return client.Program(t.Context(), agent.identity, "agent-7", "d", u.said, io.Discard)
		},
		"what is signed for another path": func() error {
			return client.post(t.Context(), pathUpgrade+"?", agent.identity, UpgradeRequest{Node: "agent-0"}, nil, &UpgradeAnswer{})
		},
	} {
		if err := try(); !errs.Is(err, errs.Denied) && !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(u.heard) != 1 || u.open != 0 {
		t.Errorf("heard %d, open %d", len(u.heard), u.open)
	}
}

func TestAProgramThatBreaksOffIsAskedForAgain(t *testing.T) {
	u := &upgrading{content: []byte("half of it"), said: 1000}
	agent, client := u.served(t)
	err := client.Program(t.Context(), agent.identity, "agent-0", "d", 1000, io.Discard)
	var away *Unreachable
	if !errors.As(err, &away) {
		t.Errorf("%v", err)
	}
}

func TestOnlySoManyNodesGetTheProgramAtATime(t *testing.T) {
	c := newCluster(t)
	held := make(chan struct{})
	all := &upgrading{begun: make(chan struct{}, maxPrograms)}
	c.server.Upgrades = perCall{all, held}
	var agents []*machine
	var err error
	for i := range maxPrograms + 1 {
		m := newMachine(t, fmt.Sprintf("agent-%d", i))
		m.req.IP = netip.AddrFrom4([4]byte{10, 0, 0, byte(40 + i)})
		if m.requests, err = pki.NewRequests(pki.JoinedLeaves(m.req.Node, m.req.IP)); err != nil {
			t.Fatal(err)
		}
		m.req.CSRs = m.requests.CSRs
		if _, err := m.join(t, c, c.token(t, token.Agent, time.Hour)); err != nil {
			t.Fatal(err)
		}
		agents = append(agents, m)
	}
	cas, err := pki.ReadTrusted(c.paths)
	if err != nil {
		t.Fatal(err)
	}
	client := Client{Server: c.addr, CAs: cas}
	get := func(i int) error {
		return client.Program(t.Context(), agents[i].identity, fmt.Sprintf("agent-%d", i), "d", 3, io.Discard)
	}
	refused := func(i int, why string) {
		t.Helper()
		var away *Unreachable
		if err := get(i); !errors.As(err, &away) || !strings.Contains(err.Error(), why) {
			t.Errorf("agent-%d: %v", i, err)
		}
	}
	done := make(chan error, maxPrograms)
	for i := range maxPrograms {
		go func() { done <- get(i) }()
		<-all.begun
		if i == 0 { // who reads slowly, or not at all, does not take the places of others
			refused(0, "agent-0 gets the program in this moment")
		}
	}
	refused(maxPrograms, "4 nodes get the program")
	close(held)
	for range maxPrograms {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// full is a file system without room.
type full struct{}

func (full) Write([]byte) (int, error) {
	return 0, &fs.PathError{Op: "write", Path: "coming", Err: syscall.ENOSPC}
}

func TestANodeWithoutRoomDoesNotTakeTheServerForAway(t *testing.T) {
	u := &upgrading{content: []byte("k1s"), said: 3}
	agent, client := u.served(t)
	err := client.Program(t.Context(), agent.identity, "agent-0", "d", 3, full{})
	if errors.As(err, new(*Unreachable)) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%v", err)
	}
}

// perCall gives each a program of its own that waits.
type perCall struct {
	*upgrading
	held chan struct{}
}

func (p perCall) Program(string) (Program, error) {
	u := &upgrading{content: []byte("k1s"), held: p.held, begun: p.begun}
	return Program{reader{bytes.NewReader(u.content), u}, 3}, nil
}
