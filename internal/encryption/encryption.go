// Package encryption is how the keys of Secrets at rest change on a cluster whose API servers run: a state
// machine, the file that keeps it, the EncryptionConfiguration that follows from it, and how several servers agree
// about it (agreement.go). It encrypts nothing, which upstream's API server does, and touches nothing: what a stage
// needs done is asked of a World, which the daemon is. A stage ends only when every API server has done its part.
package encryption

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/record"
)

// Provider is one of upstream's ways to write an object.
type Provider string

// The providers. Identity writes what it gets.
const (
	Identity  Provider = "identity"
	Secretbox Provider = "secretbox"
	AESCBC    Provider = "aescbc"
)

// Resources are what is encrypted.
func Resources() []string { return []string{"secrets"} }

// keySize is that of both providers with keys, in bytes.
const keySize = 32

// Key is what objects are written with. The zero Key is identity: they are written as they are.
type Key struct {
	Provider Provider
	Name     string // stands before each object in the database
	Secret   config.Secret
}

// None tells that nothing is encrypted with it.
func (k Key) None() bool { return k.Name == "" }

// Kind is the provider, also of the zero Key.
func (k Key) Kind() Provider {
	if k.None() {
		return Identity
	}
	return k.Provider
}

// NewKey makes a key. Its name tells the day and says nothing of the key.
func NewKey(p Provider, now time.Time, random io.Reader) (Key, error) {
	if p != Secretbox && p != AESCBC {
		return Key{}, errs.New(errs.Usage, "there is no provider %q: it is %s or %s", p, Secretbox, AESCBC)
	}
	b := make([]byte, keySize+3)
	if _, err := io.ReadFull(random, b); err != nil {
		return Key{}, fmt.Errorf("making a key: %w", err)
	}
	return Key{
		Provider: p, Name: now.UTC().Format(time.DateOnly) + "-" + hex.EncodeToString(b[keySize:]),
		Secret: config.Secret(base64.StdEncoding.EncodeToString(b[:keySize])),
	}, nil
}

// Action is what a user asks for.
type Action string

// The actions.
const (
	Enable  Action = "enable"
	Rotate  Action = "rotate"
	Disable Action = "disable"
)

// Stage of a change, in the order it goes through them.
type Stage string

// The stages. Each is safe to be in for any time, and to be begun again.
const (
	Adding    Stage = "adding"    // every API server learns to read what the new key writes
	Switching Stage = "switching" // every API server learns to write with it
	Rewriting Stage = "rewriting" // every object is written again
	Removing  Stage = "removing"  // every API server forgets the old key
)

// Change is one on its way.
type Change struct {
	Action Action
	Stage  Stage
	To     Key
	Since  time.Time
}

// Check is what was found when every object had been written again.
type Check struct {
	At        time.Time `json:"at"`
	Objects   int       `json:"objects"`   // in the last pass, each written with the key
	Rewritten int       `json:"rewritten"` // of all passes, those that were not before
	Key       string    `json:"key"`       // "" is identity
}

// State is all there is to know. The zero State is a cluster that never encrypted anything.
type State struct {
	Key     Key // everything is written with it, but for a change
	Change  *Change
	Checked *Check
	// Serial is that of the Record this state follows from; 0 for none.
	Serial int64
}

// String tells of keys only their names. Without it %s shows what is behind the pointer, methods or not.
func (s State) String() string {
	out := string(s.Key.Kind()) + " " + s.Key.Name
	if c := s.Change; c != nil {
		out += fmt.Sprintf(", %s to %s %s is %s", c.Action, c.To.Kind(), c.To.Name, c.Stage)
	}
	return out
}

// Providers are those of the EncryptionConfiguration in their order: the first writes, all read. Identity is always
// there, so that what was written before, and a database from a backup of then, can be read.
func (s State) Providers() []Key {
	order := []Key{s.Key}
	if c := s.Change; c != nil {
		switch c.Stage {
		case Adding:
			order = []Key{s.Key, c.To}
		case Switching, Rewriting:
			order = []Key{c.To, s.Key}
		case Removing:
			order = []Key{c.To}
		}
	}
	if !slices.ContainsFunc(order, Key.None) {
		order = append(order, Key{})
	}
	return order
}

// Begin is the state in which an action has begun; newKey is called where it needs one. What is on its way already
// goes on, and what is already so stays: then the state is the same.
func (s State) Begin(a Action, now time.Time, newKey func() (Key, error)) (State, error) {
	if c := s.Change; c != nil {
		if c.Action == a {
			return s, nil
		}
		return s, errs.Hint(errs.New(errs.Exists, "cannot %s the encryption of Secrets: %s is not finished, its stage is %q", a, c.Action, c.Stage),
			"it goes on by itself; watch it with: k1s encryption %s", c.Action)
	}
	var to Key
	switch {
	case a == Enable && !s.Key.None(), a == Disable && s.Key.None():
		return s, nil
	case a == Rotate && s.Key.None():
		return s, errs.Hint(errs.New(errs.Failure, "cannot rotate the key of Secrets: they are not encrypted"), "run: k1s encryption enable")
	case a == Enable, a == Rotate:
		k, err := newKey()
		if err != nil {
			return s, err
		}
		to = k
	case a != Disable:
		return s, errs.New(errs.Usage, "there is no action %q: it is enable, rotate or disable", a)
	}
	s.Change = &Change{Action: a, Stage: Adding, To: to, Since: now}
	return s, nil
}

// Advance is the state after its stage's deed is done; of rewriting that is a Check.
func (s State) Advance(found Check) State {
	if s.Change == nil {
		return s
	}
	c := *s.Change
	switch c.Stage {
	case Adding:
		c.Stage = Switching
	case Switching:
		c.Stage = Rewriting
	case Rewriting:
		c.Stage = Removing
		found.Key = c.To.Name
		s.Checked = &found
	default:
		s.Key, s.Change = c.To, nil
		return s
	}
	s.Change = &c
	return s
}

// File is the EncryptionConfiguration of a state. JSON is YAML too.
func (s State) File() []byte {
	type key struct {
		Name   string `json:"name"`
		Secret string `json:"secret"`
	}
	type keys struct {
		Keys []key `json:"keys"`
	}
	var providers []map[string]any
	for _, k := range s.Providers() {
		if k.None() {
			providers = append(providers, map[string]any{string(Identity): struct{}{}})
			continue
		}
		providers = append(providers, map[string]any{string(k.Provider): keys{[]key{{k.Name, k.Secret.Reveal()}}}})
	}
	return record.Indented(map[string]any{
		"apiVersion": "apiserver.config.k8s.io/v1",
		"kind":       "EncryptionConfiguration",
		"resources":  []map[string]any{{"resources": Resources(), "providers": providers}},
	})
}

// Hash is how an API server's metric names an EncryptionConfiguration it has loaded.
func Hash(file []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(file)) }

// The file of a state, with its keys.
type (
	wireKey struct {
		Provider Provider `json:"provider"`
		Name     string   `json:"name,omitempty"`
		Secret   string   `json:"secret,omitempty"`
	}
	wireChange struct {
		Action Action    `json:"action"`
		Stage  Stage     `json:"stage"`
		To     wireKey   `json:"to"`
		Since  time.Time `json:"since"`
	}
	wireState struct {
		Version int         `json:"version"`
		Key     wireKey     `json:"key"`
		Change  *wireChange `json:"change,omitempty"`
		Checked *Check      `json:"checked,omitempty"`
		Serial  int64       `json:"serial,omitempty"`
	}
	sealed struct {
		// Checksum is that of State: a key of which a letter is wrong is a key too.
		Checksum string          `json:"checksum"`
		State    json.RawMessage `json:"state"`
	}
)

// version of the state's file.
const version = 1

// Marshal is the state as its file keeps it, keys included.
func (s State) Marshal() []byte {
	b := record.Compact(s.wire())
	return record.Indented(sealed{Hash(b), b})
}

func (s State) wire() wireState {
	w := wireState{Version: version, Key: toWire(s.Key), Checked: s.Checked, Serial: s.Serial}
	if c := s.Change; c != nil {
		w.Change = &wireChange{Action: c.Action, Stage: c.Stage, To: toWire(c.To), Since: c.Since}
	}
	return w
}

// Unmarshal reads what Marshal wrote, and refuses what could not be used as it is.
func Unmarshal(file []byte) (State, error) {
	var outer sealed
	if err := json.Unmarshal(file, &outer); err != nil {
		return State{}, fmt.Errorf("it is not complete JSON (%d bytes)", len(file)) // the error may quote a key
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, outer.State); err != nil || Hash(compact.Bytes()) != outer.Checksum {
		return State{}, fmt.Errorf("it is not what was written: its checksum is wrong")
	}
	var w wireState
	if err := json.Unmarshal(outer.State, &w); err != nil {
		return State{}, fmt.Errorf("it does not hold a state of keys")
	}
	return w.state(fromWire)
}

// state reads one, whose keys are read by key.
func (w wireState) state(key func(wireKey) (Key, error)) (State, error) {
	if w.Version != version {
		return State{}, fmt.Errorf("it has version %d, and this k1s knows %d", w.Version, version)
	}
	s := State{Checked: w.Checked, Serial: w.Serial}
	var err error
	if s.Key, err = key(w.Key); err != nil {
		return State{}, err
	}
	if c := w.Change; c != nil {
		to, err := key(c.To)
		if err != nil {
			return State{}, err
		}
		if !slices.Contains([]Stage{Adding, Switching, Rewriting, Removing}, c.Stage) {
			return State{}, fmt.Errorf("it has a stage %q, which this k1s does not know", c.Stage)
		}
		s.Change = &Change{Action: c.Action, Stage: c.Stage, To: to, Since: c.Since}
	}
	return s, nil
}

func toWire(k Key) wireKey {
	return wireKey{Provider: k.Kind(), Name: k.Name, Secret: k.Secret.Reveal()}
}

func fromWire(w wireKey) (Key, error) {
	if w.Provider == Identity && w.Name == "" && w.Secret == "" {
		return Key{}, nil
	}
	raw, err := base64.StdEncoding.DecodeString(w.Secret)
	if w.Provider != Secretbox && w.Provider != AESCBC || w.Name == "" || err != nil || len(raw) != keySize {
		return Key{}, fmt.Errorf("the key %q (%s) in it cannot be used", w.Name, w.Provider)
	}
	return Key{Provider: w.Provider, Name: w.Name, Secret: config.Secret(w.Secret)}, nil
}
