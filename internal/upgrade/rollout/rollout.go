// Package rollout is how a cluster goes over to another k1s, node by node: what is signed, the record that all servers agree about, and what
// follows from it and from what is seen of the nodes. It touches nothing: a leader does what Advance wants done, and keeps the Record it
// answers; how one node goes over is package upgrade. docs/adr/0039-upgrading-a-cluster.md says why it is so.
package rollout

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/record"
	"k1s.io/k1s/internal/upgrade"
)

// Plan is what a person has asked for at a server. It is signed there and does not change.
type Plan struct {
	// ID is of this upgrade alone, By the server that was asked.
	ID string          `json:"id"`
	By string          `json:"by"`
	To upgrade.Program `json:"to"`
	// AllowOlder lets it be an older program, within what the state of a cluster bears.
	AllowOlder bool `json:"allowOlder,omitempty"`
	// Timeout is how long the program may take on a node until that is well, and Drain how long pods may take to leave it; 0 leaves them where
	// they are. Both are in nanoseconds.
	Timeout time.Duration `json:"timeout"`
	Drain   time.Duration `json:"drain,omitempty"`
	// Parallel is how many agents may go over at a time; servers go one by one.
	Parallel int       `json:"parallel"`
	Began    time.Time `json:"began"`
}

// Signed is a Plan with the signature of a server's identity key, so that who may write the Record cannot choose the program.
type Signed struct {
	Plan []byte `json:"plan"`
	// Key is the public half: SubjectPublicKeyInfo, DER. Signature is ASN.1 ECDSA over SHA-256.
	Key       []byte `json:"key"`
	Signature []byte `json:"signature"`
}

// planDigest is of this use only, so that a signature given for something else is none here.
func planDigest(plan []byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte("k1s upgrade of a cluster v1\x00"), plan...))
}

// Sign makes a Plan one that others believe.
func Sign(identity crypto.Signer, p Plan) (Signed, error) {
	s := Signed{Plan: record.Compact(p)}
	var err error
	if s.Key, err = x509.MarshalPKIXPublicKey(identity.Public()); err == nil {
		sum := planDigest(s.Plan)
		s.Signature, err = identity.Sign(rand.Reader, sum[:], crypto.SHA256)
	}
	if err != nil {
		return s, fmt.Errorf("signing what the cluster is to be upgraded to: %w", err)
	}
	return s, nil
}

// Open is the Plan, and the fingerprint of the key that has signed it, as join.Binding has it: whoever opens it looks whether that is a server's.
func (s Signed) Open() (Plan, string, error) {
	bad := func(why string) (Plan, string, error) {
		return Plan{}, "", errs.New(errs.Denied, "what the cluster is to be upgraded to is not signed by a server: %s", why)
	}
	pub, err := x509.ParsePKIXPublicKey(s.Key)
	if err != nil {
		return bad("there is no key that can be read")
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return bad(fmt.Sprintf("the key is a %T", pub))
	}
	if sum := planDigest(s.Plan); !ecdsa.VerifyASN1(key, sum[:], s.Signature) {
		return bad("the signature is wrong")
	}
	p, err := record.Read[Plan](s.Plan)
	if err != nil {
		return Plan{}, "", fmt.Errorf("reading what the cluster is to be upgraded to: %w", err)
	}
	sum := sha256.Sum256(s.Key)
	return p, base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

// Stage of the upgrade of a cluster.
type Stage string

// The stages.
const (
	Going    Stage = "going"
	Halted   Stage = "halted"   // at the first node that failed; a person says how it goes on
	Aborting Stage = "aborting" // no node is begun with any more; one that is under way comes to its end
	Aborted  Stage = "aborted"
	Complete Stage = "complete"
)

// Step of one node.
type Step string

// The steps, in the order a node goes through them. A node that runs the program already is Upgraded when it says so.
const (
	Waiting   Step = "waiting"
	Asking    Step = "asking"    // whether it answers, and what it runs
	Draining  Step = "draining"  // it gets no new pods, and those there are leave it
	Upgrading Step = "upgrading" // it fetches the program, and tries it as it does alone
	Upgraded  Step = "upgraded"
	Failed    Step = "failed" // it runs what it ran before, or is not well
	Gone      Step = "gone"   // it was removed from the cluster meanwhile
)

// turn tells that a node is being worked on.
func (s Step) turn() bool { return s == Asking || s == Draining || s == Upgrading }

// Node is how far one is.
type Node struct {
	Name   string    `json:"name"`
	Server bool      `json:"server,omitempty"`
	Step   Step      `json:"step"`
	Since  time.Time `json:"since,omitzero"`
	// Attempt counts how often it was told to go over.
	Attempt int    `json:"attempt,omitempty"`
	Error   string `json:"error,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// Record is what the servers agree about. It is kept in the datastore, where one change of it is made by one server and seen by all.
type Record struct {
	// Serial grows with every Record that takes another one's place.
	Serial int64  `json:"serial"`
	Stage  Stage  `json:"stage"`
	Signed Signed `json:"signed"`
	// Leader is the server that decides how it goes on.
	Leader string `json:"leader"`
	// Nodes are in the order in which they go.
	Nodes []Node    `json:"nodes"`
	Ended time.Time `json:"ended,omitzero"`

	// Plan is what is signed, once somebody has looked who has signed it.
	Plan Plan `json:"-"`
	// Version is the store's, of what was read; "" for none.
	Version string `json:"-"`
}

// Marshal is a Record as it is kept.
func (r Record) Marshal() []byte { return record.Compact(r) }

// Unmarshal reads what Marshal wrote. Its Plan is still closed.
func Unmarshal(b []byte) (Record, error) {
	var r Record
	err := json.Unmarshal(b, &r)
	if err == nil && (r.Serial < 1 || !slices.Contains([]Stage{Going, Halted, Aborting, Aborted, Complete}, r.Stage)) {
		err = fmt.Errorf("its serial is %d and its stage %q", r.Serial, r.Stage)
	}
	if err != nil {
		return Record{}, fmt.Errorf("reading how far the upgrade of the cluster is: %w", err)
	}
	return r, nil
}

// Active tells that it has not ended: it goes on, or a person may let it.
func (r Record) Active() bool { return r.Stage == Going || r.Stage == Halted || r.Stage == Aborting }

// Moving tells that a node is being worked on, or will be by itself.
func (r Record) Moving() bool {
	return r.Stage == Going || r.Active() && slices.ContainsFunc(r.Nodes, func(n Node) bool { return n.Step.turn() })
}

// Failed is the first node that failed; nil for none.
func (r Record) Failed() *Node {
	if i := slices.IndexFunc(r.Nodes, func(n Node) bool { return n.Step == Failed }); i >= 0 {
		return &r.Nodes[i]
	}
	return nil
}

func (r Record) then() Record {
	r.Serial++
	r.Nodes = slices.Clone(r.Nodes)
	return r
}

// Leads tells whether a server decides how it goes on: the one in the Record, and when that is no server any more, the first by name of those
// that are.
func Leads(self string, r Record, servers []string) bool {
	if r.Leader == self {
		return true
	}
	return !slices.Contains(servers, r.Leader) && len(servers) > 0 && slices.Min(servers) == self
}

// Begin is the Record of an upgrade that begins, in the place of r, nil for none. machines are the nodes of the cluster by name, true for servers.
func Begin(self string, r *Record, s Signed, p Plan, machines map[string]bool) (Record, error) {
	next := Record{Serial: 1, Stage: Going, Signed: s, Plan: p, Leader: self}
	if r != nil {
		if r.Active() {
			return next, errs.Hint(errs.New(errs.Exists, "an upgrade of the cluster is not at its end: it is %s", r.Stage), "see: k1s upgrade status; then: k1s upgrade resume, or k1s upgrade abort")
		}
		next.Serial, next.Version = r.Serial+1, r.Version
	}
	next.Nodes = added(nil, self, machines)
	return next, nil
}

// added are nodes, and behind them those machines that are not among them: servers before agents, and first of them the one that leads, where the
// person is who watches.
func added(nodes []Node, leader string, machines map[string]bool) []Node {
	var more []Node
	for name, server := range machines {
		if !slices.ContainsFunc(nodes, func(n Node) bool { return n.Name == name }) {
			more = append(more, Node{Name: name, Server: server, Step: Waiting})
		}
	}
	rank := func(n Node) string {
		switch {
		case n.Name == leader:
			return "0"
		case n.Server:
			return "1" + n.Name
		}
		return "2" + n.Name
	}
	slices.SortFunc(more, func(a, b Node) int { return strings.Compare(rank(a), rank(b)) })
	return append(slices.Clone(nodes), more...)
}

// Resume is the Record in which it goes on after a halt; the nodes that failed are told once more. self leads from then on.
func (r Record) Resume(self string) (Record, error) {
	switch r.Stage {
	case Halted:
	case Going:
		return r, errs.Hint(errs.New(errs.Exists, "the upgrade of the cluster goes on"), "see: k1s upgrade status")
	default:
		return r, errs.Hint(errs.New(errs.NotFound, "there is no upgrade of the cluster that has halted"), "begin with one: k1s upgrade --cluster --file NEW")
	}
	next := r.then()
	next.Stage, next.Leader = Going, self
	for i, n := range next.Nodes {
		if n.Step == Failed {
			next.Nodes[i] = Node{Name: n.Name, Server: n.Server, Step: Waiting, Attempt: n.Attempt}
		}
	}
	return next, nil
}

// Abort is the Record in which no node is begun with any more. Those that went over stay as they are. self leads from then on.
func (r Record) Abort(self string) (Record, error) {
	switch r.Stage {
	case Going, Halted:
	case Aborting:
		return r, nil
	default:
		return r, errs.New(errs.NotFound, "there is no upgrade of the cluster that could be called off")
	}
	next := r.then()
	next.Stage, next.Leader = Aborting, self
	return next, nil
}

// Order is what one node is told to do.
type Order struct {
	// Key is of this node and this attempt alone: it is done once.
	Key        string          `json:"key"`
	Program    upgrade.Program `json:"program"`
	AllowOlder bool            `json:"allowOlder,omitempty"`
	Timeout    time.Duration   `json:"timeout"`
}

func (r Record) key(n Node) string { return fmt.Sprintf("%s/%s/%d", r.Plan.ID, n.Name, n.Attempt) }

// Order is what a node is to do; nil for nothing.
func (r Record) Order(node string) *Order {
	if !r.Active() || r.Plan.ID == "" {
		return nil
	}
	for _, n := range r.Nodes {
		if n.Name == node && n.Step == Upgrading {
			return &Order{Key: r.key(n), Program: r.Plan.To, AllowOlder: r.Plan.AllowOlder, Timeout: r.Plan.Timeout}
		}
	}
	return nil
}

// ErrNoPlan is of a Record whose Plan nobody has opened.
var ErrNoPlan = errors.New("what the cluster is to be upgraded to was not looked at")
