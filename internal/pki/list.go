package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k1s.io/k1s/internal/paths"
)

// Info is what a certificate file says about its certificate.
type Info struct {
	Name    string `json:"name"`
	Subject string `json:"subject"`
	// Issuer is the authority that has signed it.
	Issuer string `json:"issuer,omitempty"`
	// Also counts the further certificates in the file of an authority, which sign nothing and are trusted too: while an
	// authority is replaced there is one.
	Also      int       `json:"also,omitempty"`
	Authority bool      `json:"authority,omitempty"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	// Problem is why the file cannot be read as a certificate; nothing else is known then.
	Problem string `json:"problem,omitempty"`
}

// List reads every certificate in the pki directory, in the order of names. Without the directory there are none.
func List(p paths.Paths) ([]Info, error) {
	var all []Info
	err := filepath.WalkDir(p.PKI(), func(file string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case d.IsDir() && d.Name() == rotationDir:
			return filepath.SkipDir // in use is what was made from them
		case d.IsDir() || filepath.Ext(file) != ".crt":
			return nil
		}
		rel, err := filepath.Rel(p.PKI(), file)
		if err != nil {
			return err
		}
		info := Info{Name: strings.TrimSuffix(filepath.ToSlash(rel), ".crt")}
		raw, err := os.ReadFile(file)
		if err == nil {
			certs, perr := parseCerts(raw)
			if err = perr; err == nil {
				if !certs[0].IsCA {
					certs = certs[:1] // what follows is for who has to verify it
				}
				for i, cert := range certs {
					info.Subject, info.Issuer, info.Authority, info.Also = cert.Subject.String(), cert.Issuer.String(), cert.IsCA, i
					info.NotBefore, info.NotAfter = cert.NotBefore, cert.NotAfter
					all = append(all, info)
				}
				return nil
			}
		}
		if err != nil {
			info.Problem = err.Error()
		}
		all = append(all, info)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing certificates: %w", err)
	}
	return all, nil
}
