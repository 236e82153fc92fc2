package pki

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
)

// replacementFiles are what a replacement of one authority consists of, below rotationDir.
func replacementFiles(name string) []string {
	files := []string{"new/" + name + ".key", "new/" + publicName(name), "old/" + publicName(name)}
	if name != ServiceAccount {
		files = append(files, "cross/"+name+".crt")
	}
	return files
}

// ReadReplacement reads what PrepareReplacement has made, for another server that is to replace the same authorities. It is as secret as
// a Bundle of keys. An error of kind errs.NotFound says that it is not here.
func ReadReplacement(p paths.Paths, all []Replacement) (Bundle, error) {
	b := Bundle{}
	for _, r := range all {
		for _, f := range replacementFiles(r.Name) {
			raw, err := os.ReadFile(p.PKI(rotationDir, f))
			if errors.Is(err, fs.ErrNotExist) {
				return nil, errs.New(errs.NotFound, "the new authorities are not on this server: there is no %s", p.PKI(rotationDir, f))
			}
			if err != nil {
				return nil, fmt.Errorf("reading the new authorities: %w", err)
			}
			b[f] = raw
		}
	}
	return b, b.replaces(all)
}

// replaces finds out whether files are those of a replacement: whoever agreed about it has named the keys.
func (b Bundle) replaces(all []Replacement) error {
	bad := func(f, why string) error {
		return errs.New(errs.Invalid, "the new authorities are not those that the servers agree about: %s %s", f, why)
	}
	for _, r := range all {
		files := replacementFiles(r.Name)
		key, err := parseKey(b[files[0]])
		if err != nil {
			return bad(files[0], "cannot be read: "+err.Error())
		}
		if fingerprint(key.Public()) != r.New {
			return bad(files[0], "is another key")
		}
		if r.Name == ServiceAccount {
			if ours, err := encodePublic(key.Public()); err != nil || string(ours) != string(b[files[1]]) {
				return bad(files[1], "does not belong to the key")
			}
			block, _ := pem.Decode(b[files[2]])
			if block == nil {
				return bad(files[2], "cannot be read")
			}
			if old, err := x509.ParsePKIXPublicKey(block.Bytes); err != nil || fingerprint(old) != r.Old {
				return bad(files[2], "is not the key that is replaced")
			}
			continue
		}
		var certs [3]*x509.Certificate
		for i, f := range files[1:] {
			if certs[i], err = parseCert(b[f]); err != nil {
				return bad(f, "cannot be read: "+err.Error())
			}
		}
		fresh, old, cross := certs[0], certs[1], certs[2]
		switch {
		case !fresh.IsCA || !samePublic(fresh.PublicKey, key.Public()):
			return bad(files[1], "is not the certificate of an authority with that key")
		case fingerprint(old.PublicKey) != r.Old:
			return bad(files[2], "is not the authority that is replaced")
		case !samePublic(cross.PublicKey, key.Public()) || old.CheckSignature(cross.SignatureAlgorithm, cross.RawTBSCertificate, cross.Signature) != nil:
			return bad(files[3], "does not say that the old one vouches for the new one")
		}
	}
	return nil
}

// KeepReplacement writes what another server has read with ReadReplacement, as PrepareReplacement would have made it. Nothing is written
// unless it is what was agreed about, and replaces the authorities of this server. What an earlier call has left is removed.
func KeepReplacement(ctx context.Context, p paths.Paths, all []Replacement, b Bundle) error {
	if err := b.replaces(all); err != nil {
		return err
	}
	for _, r := range all {
		pin, err := keyPin(p, r.Name)
		if err != nil {
			return err
		}
		if pin != r.Old && pin != r.New {
			return errs.New(errs.Invalid, "the %s that is replaced is not the one of this server", r.Name)
		}
	}
	unlock, err := durable.Lock(ctx, p.PKI(".lock"))
	if err != nil {
		return fmt.Errorf("keeping the new authorities: %w", err)
	}
	defer unlock()
	if err := forget(p); err != nil {
		return err
	}
	for _, r := range all {
		for _, f := range replacementFiles(r.Name) {
			mode := fs.FileMode(0o644)
			if strings.HasSuffix(f, ".key") {
				mode = 0o600
			}
			if err := writeBelow(p, p.PKI(rotationDir, f), b[f], mode); err != nil {
				return fmt.Errorf("keeping the new authorities: %w", err)
			}
		}
	}
	return durable.SyncDir(p.PKI())
}

// writeBelow writes a file of a replacement, with the directories it is in.
func writeBelow(p paths.Paths, file string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(path.Dir(file), 0o700); err != nil {
		return err
	}
	if err := durable.WriteFile(file, data, mode); err != nil {
		return err
	}
	// The state that is kept next says that they are there, and nobody can go on without them.
	for dir := path.Dir(file); dir != p.PKI(); dir = path.Dir(dir) {
		if err := durable.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// KeyPins are the pins of the private keys this server signs with, by the name of the authority, as far as they are here.
func KeyPins(p paths.Paths) (map[string]string, error) {
	out := map[string]string{}
	for _, name := range bundled {
		pin, err := keyPin(p, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // etcd's is made when there is an etcd, and a user may keep keys elsewhere
		}
		if err != nil {
			return nil, err
		}
		out[name] = pin
	}
	return out, nil
}

func keyPin(p paths.Paths, name string) (string, error) {
	raw, err := os.ReadFile(KeyFile(p, name))
	if err != nil {
		return "", fmt.Errorf("reading the key of %s: %w", name, err)
	}
	key, err := parseKey(raw)
	if err != nil {
		return "", fmt.Errorf("reading the key of %s: %w", name, err)
	}
	return fingerprint(key.Public()), nil
}
