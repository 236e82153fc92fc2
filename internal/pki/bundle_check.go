package pki

import "crypto/x509"

// Check finds out whether all keys of a cluster are there and belong together, before any of them is written.
func (b Bundle) Check() error { return b.check() }

// CA is the cluster's certificate authority.
func (b Bundle) CA() (*x509.Certificate, error) { return parseCert(b[CA+".crt"]) }
