package pki

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"k1s.io/k1s/internal/durable"
	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
)

// Bundle are the keys that all servers of a cluster have: its authorities and the key that signs tokens of service
// accounts, and where the CA was replaced what leads from earlier ones to it. PEM, by the name of the file below the directory
// of certificates.
type Bundle map[string][]byte

// bundled are the names of what is in a bundle.
var bundled = []string{CA, FrontProxyCA, EtcdCA, ServiceAccount}

// files of one of them, the key first: it has to be safe before anything shows its public half.
func bundleFiles(name string) (key, public string) {
	if name == ServiceAccount {
		return name + ".key", name + ".pub"
	}
	return name + ".key", name + ".crt"
}

// ReadBundle reads the keys of this server. An error of kind errs.Unsupported says that one is kept elsewhere.
func ReadBundle(p paths.Paths) (Bundle, error) {
	b := Bundle{}
	for _, name := range bundled {
		key, public := bundleFiles(name)
		for _, f := range []string{key, public} {
			raw, err := os.ReadFile(p.PKI(f))
			if errors.Is(err, fs.ErrNotExist) && f == key {
				return nil, errs.Hint(errs.New(errs.Unsupported, "this server cannot let another one in: the key %s is not on it", p.PKI(f)), "join at a server that has it")
			}
			if err != nil {
				return nil, fmt.Errorf("reading the cluster's keys: %w", err)
			}
			b[f] = raw
		}
	}
	if cross := readFile(CrossFile(p)); cross.err == nil {
		b[path.Base(CrossFile(p))] = cross.data
	}
	return b, b.check()
}

// check finds out whether everything is there and belongs together.
func (b Bundle) check() error {
	for _, name := range bundled {
		keyFile, public := bundleFiles(name)
		key, err := parseKey(b[keyFile])
		if err != nil {
			return fmt.Errorf("the cluster's keys: %s: %w", keyFile, err)
		}
		if name == ServiceAccount {
			if ours, err := encodePublic(key.Public()); err != nil || !bytes.Contains(b[public], ours) {
				return fmt.Errorf("the cluster's keys: %s does not have the public half of %s in it", public, keyFile)
			}
			continue
		}
		cert, err := parseCert(b[public])
		if err != nil {
			return fmt.Errorf("the cluster's keys: %s: %w", public, err)
		}
		if !cert.IsCA || !samePublic(cert.PublicKey, key.Public()) {
			return fmt.Errorf("the cluster's keys: %s is not the certificate of an authority with the key %s", public, keyFile)
		}
	}
	return nil
}

// Install writes the keys of the cluster this machine is to be a server of. Nothing is written unless all of it is there,
// and belongs together.
func (b Bundle) Install(ctx context.Context, p paths.Paths) error {
	if err := b.check(); err != nil {
		return err
	}
	if err := os.MkdirAll(path.Dir(p.PKI(EtcdCA)), 0o755); err != nil {
		return fmt.Errorf("writing the cluster's keys: %w", err)
	}
	unlock, err := durable.Lock(ctx, p.PKI(".lock"))
	if err != nil {
		return fmt.Errorf("writing the cluster's keys: %w", err)
	}
	defer unlock()
	if cross := b[path.Base(CrossFile(p))]; cross != nil { // machines that know an earlier CA may come to this server too
		if err := durable.WriteFile(CrossFile(p), cross, 0o644); err != nil {
			return err
		}
	}
	// What a machine has that was a server once leads to authorities that are none any more.
	for _, name := range bundled {
		if err := os.Remove(chainFile(p, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	// The CA itself last: with it the machine counts as a server.
	for i := range bundled {
		key, public := bundleFiles(bundled[len(bundled)-1-i])
		for _, f := range []string{key, public} {
			mode := fs.FileMode(0o600)
			if f == public {
				mode = 0o644
			}
			if err := durable.WriteFile(p.PKI(f), b[f], mode); err != nil {
				return err
			}
		}
	}
	return errors.Join(durable.SyncDir(path.Dir(p.PKI(EtcdCA))), durable.SyncDir(p.PKI()))
}
