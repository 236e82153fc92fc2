// Package token is what lets a machine join a cluster: a token as text, which only its owner has, and the
// record of it that the cluster keeps, from which the token cannot be made. Pure: no clock, no files. Used by
// the daemon of a server, by joining nodes and by `k1s token`.
package token

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"k1s.io/k1s/internal/errs"
)

// Role is what a token lets a machine become.
type Role string

// The roles.
const (
	Server Role = "server"
	Agent  Role = "agent"
)

// ParseRole reads a role.
func ParseRole(s string) (Role, error) {
	switch r := Role(s); r {
	case Server, Agent:
		return r, nil
	}
	return "", errs.New(errs.Usage, "%q is no role of a token: server or agent", s)
}

// Token is what a joining machine is given. Its text is
//
//	k1s1.ROLE.ID.SECRET.PIN
//
// ID names the record (10 hexadecimal digits), SECRET are 24 random bytes, and PIN is the SHA-256 of the public
// key of the cluster's CA (its SubjectPublicKeyInfo, as in RFC 7469), both in base64url: with it the machine
// knows, before it tells the secret, that it talks to the right cluster.
type Token struct {
	Role   Role
	ID     string
	Secret string
	Pin    string
}

const (
	prefix      = "k1s1"
	idBytes     = 5
	secretBytes = 24
)

// The lengths of the parts as text, by which a token that was cut off is recognised.
const (
	idLength     = 2 * idBytes
	secretLength = secretBytes * 4 / 3
	pinLength    = 43
)

// New makes a token for the cluster of a CA.
func New(role Role, ca *x509.Certificate) (Token, error) {
	raw := make([]byte, idBytes+secretBytes)
	if _, err := rand.Read(raw); err != nil {
		return Token{}, fmt.Errorf("making a token: %w", err)
	}
	return Token{
		Role: role, ID: hex.EncodeToString(raw[:idBytes]), Secret: base64.RawURLEncoding.EncodeToString(raw[idBytes:]), Pin: Pin(ca),
	}, nil
}

// Pin identifies a CA by its key.
func Pin(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Text is the token as it is handed out. It is a secret.
func (t Token) Text() string {
	return strings.Join([]string{prefix, string(t.Role), t.ID, t.Secret, t.Pin}, ".")
}

// String names the token without its secret, for messages and logs.
func (t Token) String() string { return t.ID }

// LogValue is String, so that the parts are not logged either.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.ID) }

// Parse reads a token. The error is of kind errs.Invalid and never repeats it.
func Parse(text string) (Token, error) {
	text = strings.TrimSpace(text)
	bad := func(format string, a ...any) (Token, error) {
		return Token{}, errs.Hint(errs.New(errs.Invalid, "the token cannot be used: "+format, a...), "get one on a server with: k1s token create")
	}
	parts := strings.Split(text, ".")
	switch {
	case text == "":
		return bad("it is empty")
	case parts[0] != prefix:
		return bad("it is no token of k1s, which begins with %q", prefix+".")
	case len(parts) != 5:
		return bad("it has %d parts instead of 5; was it cut off?", len(parts))
	}
	t := Token{Role: Role(parts[1]), ID: parts[2], Secret: parts[3], Pin: parts[4]}
	if t.Role != Server && t.Role != Agent {
		return bad("%q is no role", parts[1])
	}
	for _, p := range []struct {
		name, text string
		length     int
	}{{"identifier", t.ID, idLength}, {"secret", t.Secret, secretLength}, {"pin of the cluster's CA", t.Pin, pinLength}} {
		if len(p.text) != p.length {
			return bad("its %s has %d characters instead of %d; was it cut off?", p.name, len(p.text), p.length)
		}
	}
	if _, err := hex.DecodeString(t.ID); err != nil {
		return bad("its identifier is damaged")
	}
	for _, s := range []string{t.Secret, t.Pin} {
		if _, err := base64.RawURLEncoding.DecodeString(s); err != nil {
			return bad("it is damaged")
		}
	}
	return t, nil
}

// hash is what the cluster keeps of the secret. It has 192 bits of its own, so that nothing is gained by a
// slow function or a salt.
func (t Token) hash() string {
	sum := sha256.Sum256([]byte("k1s join token\x00" + string(t.Role) + "\x00" + t.ID + "\x00" + t.Secret))
	return hex.EncodeToString(sum[:])
}

// Record is what the cluster keeps of a token.
type Record struct {
	ID          string    `json:"id"`
	Role        Role      `json:"role"`
	Hash        string    `json:"-"`
	Description string    `json:"description,omitempty"`
	Created     time.Time `json:"created"`
	// Expires is zero for a token that does not.
	Expires time.Time `json:"expires,omitzero"`
}

// Record is what to keep of a token.
func (t Token) Record(description string, created, expires time.Time) Record {
	return Record{ID: t.ID, Role: t.Role, Hash: t.hash(), Description: description, Created: created.UTC().Truncate(time.Second), Expires: expires.UTC().Truncate(time.Second)}
}

// Expired tells that it can no longer be used.
func (r Record) Expired(now time.Time) bool { return !r.Expires.IsZero() && !now.Before(r.Expires) }

// Allows tells whether a token lets a machine join in a role now. Errors are of kind errs.Denied.
func (r Record) Allows(t Token, role Role, now time.Time) error {
	switch {
	// The hash is over the role too, so that nobody can raise it.
	case r.ID != t.ID || subtle.ConstantTimeCompare([]byte(r.Hash), []byte(t.hash())) != 1:
		return errs.Hint(errs.New(errs.Denied, "the token %s is wrong: its secret is not the one that was given out", t.ID), "copy it again, or get one on a server with: k1s token create")
	case r.Expired(now):
		return errs.Hint(errs.New(errs.Denied, "the token %s expired on %s", t.ID, r.Expires.Format(time.RFC3339)), "get one on a server with: k1s token create")
	case r.Role != role:
		return errs.Hint(errs.New(errs.Denied, "the token %s is for joining as %s, not as %s", t.ID, r.Role, role), "get one on a server with: k1s token create --role %s", role)
	}
	return nil
}

// The fields of a record as they are kept in the cluster.
const (
	fieldRole, fieldHash, fieldDescription = "role", "hash", "description"
	fieldCreated, fieldExpires             = "created", "expires"
)

// Data is the record as the fields of a Secret, without its ID, which names it.
func (r Record) Data() map[string][]byte {
	d := map[string][]byte{
		fieldRole: []byte(r.Role), fieldHash: []byte(r.Hash), fieldDescription: []byte(r.Description), fieldCreated: []byte(r.Created.Format(time.RFC3339)),
	}
	if !r.Expires.IsZero() {
		d[fieldExpires] = []byte(r.Expires.Format(time.RFC3339))
	}
	return d
}

// FromData reads what Data wrote. A record that somebody has damaged is an error: its expiry may be what is gone.
func FromData(id string, d map[string][]byte) (Record, error) {
	bad := func(err error) (Record, error) {
		return Record{}, errs.Hint(errs.New(errs.Invalid, "the record of token %s is damaged: %w", id, err), "revoke it: k1s token revoke %s", id)
	}
	r := Record{ID: id, Hash: string(d[fieldHash]), Description: string(d[fieldDescription])}
	var err error
	if r.Role, err = ParseRole(string(d[fieldRole])); err != nil {
		return bad(err)
	}
	if raw, err := hex.DecodeString(r.Hash); err != nil || len(raw) != sha256.Size {
		return bad(fmt.Errorf("its hash is not one"))
	}
	if r.Created, err = time.Parse(time.RFC3339, string(d[fieldCreated])); err != nil {
		return bad(err)
	}
	if e, ok := d[fieldExpires]; ok {
		if r.Expires, err = time.Parse(time.RFC3339, string(e)); err != nil {
			return bad(err)
		}
	}
	return r, nil
}
