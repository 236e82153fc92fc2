package pki

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"k1s.io/k1s/internal/errs"
	"k1s.io/k1s/internal/paths"
)

// ReadKept reads the keys of this server's cluster as far as it has any: etcd's authority is made only for a cluster that has
// one. What is there belongs together. An error of kind errs.Unsupported says that one is kept elsewhere.
func ReadKept(p paths.Paths) (Bundle, error) {
	b := Bundle{}
	for _, name := range bundled {
		key, public := bundleFiles(name)
		for _, f := range []string{key, public} {
			raw, err := os.ReadFile(p.PKI(f))
			if errors.Is(err, fs.ErrNotExist) && name == EtcdCA {
				continue
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil, errs.New(errs.Unsupported, "%s is not on this server", p.PKI(f))
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
	return b, b.Check()
}

// Check finds out whether what is in a bundle belongs together, before any of it is written. Etcd's authority may be missing.
func (b Bundle) Check() error {
	whole := Bundle{}
	for name, content := range b {
		whole[name] = content
	}
	key, public := bundleFiles(EtcdCA)
	if _, hasKey := b[key]; !hasKey && b[public] == nil {
		otherKey, other := bundleFiles(FrontProxyCA) // stands in for it
		whole[key], whole[public] = b[otherKey], b[other]
	}
	return whole.check()
}

// CA is the cluster's certificate authority.
func (b Bundle) CA() (*x509.Certificate, error) { return parseCert(b[CA+".crt"]) }
