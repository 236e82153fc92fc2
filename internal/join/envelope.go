package join

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/pki"
	"k1s.io/k1s/internal/token"
)

// Bootstrap is what the servers of a cluster have in common and nobody else may have.
type Bootstrap struct {
	// Keys are the authorities and the key of service accounts.
	Keys pki.Bundle `json:"keys"`
	// Encryption are the keys that Secrets are encrypted with, as they are kept; nil where none were ever used.
	Encryption []byte `json:"encryption,omitempty"`
	// Datastore is where the state is kept once there are several servers.
	Datastore Datastore `json:"datastore"`
}

// Datastore is how a server reaches the cluster's database.
type Datastore struct {
	Engine config.Engine `json:"engine"`
	// Endpoint is the URL of a database of others, with its password.
	Endpoint string `json:"endpoint,omitempty"`
	// CA, Cert and Key are the contents of the files it is reached with, PEM.
	CA   []byte `json:"ca,omitempty"`
	Cert []byte `json:"cert,omitempty"`
	Key  []byte `json:"key,omitempty"`
}

// Envelope is a Bootstrap on its way. Who sees it needs both the token's secret and the key that the machine made for
// this one request to open it, so that neither a token that is found later opens what was recorded before, nor
// somebody who reads along inside of TLS learns anything. A server that has joined shows no token; for it the keys of
// Secrets, and those of new authorities, are sealed with the key of its request alone.
//
// The key is HKDF-SHA-256 (RFC 5869) of the X25519 shared secret (RFC 7748) followed by the token's secret; the cipher is
// AES-256-GCM with the nonce in front of the ciphertext.
type Envelope struct {
	Salt   []byte `json:"salt"`   // of HKDF, 32 random bytes
	Public []byte `json:"public"` // the server's half of X25519, made for this envelope
	Sealed []byte `json:"sealed"`
}

const (
	sealInfo = "k1s bootstrap v1"
	keysInfo = "k1s keys of secrets v1"
	// authoritiesInfo is of the keys of authorities that are to take the place of those in a Bootstrap.
	authoritiesInfo = "k1s new authorities v1"
	saltLength      = 32
	keyLength       = 32 // AES-256
)

// seal closes an envelope for the machine that has made the request: recipient is its half of X25519.
func seal(b Bootstrap, t token.Token, node string, recipient []byte) (Envelope, error) {
	plain, err := json.Marshal(b)
	if err != nil {
		return Envelope{}, fmt.Errorf("sealing the cluster's keys: %w", err)
	}
	return sealed(plain, sealInfo, t, node, recipient)
}

func sealed(plain []byte, info string, t token.Token, node string, recipient []byte) (Envelope, error) {
	pub, err := ecdh.X25519().NewPublicKey(recipient)
	if err != nil {
		return Envelope{}, errs.New(errs.Invalid, "the request has no key to seal for: %w", err)
	}
	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return Envelope{}, fmt.Errorf("sealing the cluster's keys: %w", err)
	}
	shared, err := own.ECDH(pub)
	if err != nil {
		return Envelope{}, errs.New(errs.Invalid, "the request has a key that nothing can be sealed for: %w", err)
	}
	e := Envelope{Salt: make([]byte, saltLength), Public: own.PublicKey().Bytes()}
	if _, err := rand.Read(e.Salt); err != nil {
		return Envelope{}, fmt.Errorf("sealing the cluster's keys: %w", err)
	}
	aead, err := e.cipher(shared, info, t)
	if err != nil {
		return Envelope{}, fmt.Errorf("sealing the cluster's keys: %w", err)
	}
	e.Sealed = aead.Seal(nil, nil, plain, e.bound(info, t, node, recipient))
	return e, nil
}

// open reads an envelope. The error is of kind errs.Denied: whoever sealed it did not know the token.
func (e Envelope) open(t token.Token, node string, own *ecdh.PrivateKey) (Bootstrap, error) {
	var b Bootstrap
	plain, err := e.unsealed(sealInfo, t, node, own)
	if err == nil {
		err = json.Unmarshal(plain, &b)
	}
	if err != nil {
		return Bootstrap{}, errs.New(errs.Denied, "the cluster's keys cannot be unsealed with this token: %w", err)
	}
	return b, nil
}

func (e Envelope) unsealed(info string, t token.Token, node string, own *ecdh.PrivateKey) ([]byte, error) {
	pub, err := ecdh.X25519().NewPublicKey(e.Public)
	if err != nil {
		return nil, err
	}
	shared, err := own.ECDH(pub)
	if err != nil {
		return nil, err
	}
	aead, err := e.cipher(shared, info, t)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, nil, e.Sealed, e.bound(info, t, node, own.PublicKey().Bytes()))
}

func (e Envelope) cipher(shared []byte, info string, t token.Token) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, append(shared[:len(shared):len(shared)], t.Secret...), e.Salt, info, keyLength)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// bound is what an envelope is for: it opens nowhere else.
func (e Envelope) bound(info string, t token.Token, node string, recipient []byte) []byte {
	return fmt.Appendf(nil, "%s\x00%s\x00%s\x00%x\x00%x", info, t.ID, node, recipient, e.Public)
}
