//go:build system

package system

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k1s.io/k1s/internal/health"
)

func TestACorruptDatabaseIsReportedAndLeftAsItIs(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	stop := b.server(t)
	b.runs(t)
	stop()
	db := b.data() + "/db/state.db"
	junk := bytes.Repeat([]byte("this was a database once. "), 4096)
	for _, f := range []string{db + "-wal", db + "-shm"} {
		if err := os.RemoveAll(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(db, junk, 0o600); err != nil {
		t.Fatal(err)
	}
	stop = b.server(t)
	eventually(t, limit, "the damage to be reported", func(ctx context.Context) error {
		st, err := b.status(ctx)
		for _, p := range st.Problems {
			if (p.Code == health.DatabaseCorrupt || strings.Contains(p.Text, "corrupt")) && p.Remedy != "" {
				return nil
			}
		}
		if err == nil {
			err = fmt.Errorf("problems: %+v; %s", st.Problems, notReady(st))
		}
		return err
	})
	stop()
	if got, err := os.ReadFile(db); err != nil || !bytes.Equal(got, junk) {
		t.Errorf("the file was changed: %d bytes, %v", len(got), err)
	}
}

// What a wrong clock looks like: the certificate authority is from the future, or long ended.
func TestACertificateAuthorityThatIsNotValidNowIsReportedAndKept(t *testing.T) {
	t.Parallel()
	for name, shift := range map[string]time.Duration{"future": 48 * time.Hour, "past": -30 * 365 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			b := newBare(t)
			stop := b.server(t)
			b.runs(t)
			stop()
			cas, err := filepath.Glob(b.data() + "/pki/ca.crt")
			if err != nil || len(cas) != 1 {
				t.Fatalf("certificate authority: %q %v", cas, err)
			}
			shifted := reissued(t, cas[0], shift)
			if err := os.WriteFile(cas[0], shifted, 0o644); err != nil {
				t.Fatal(err)
			}
			before := b.files(t)
			b.fails(t).wants(t, 1, "error: ", "clock", "hint:  ")
			if got, err := os.ReadFile(cas[0]); err != nil || !bytes.Equal(got, shifted) {
				t.Errorf("the certificate was changed: %v", err)
			}
			if after := b.files(t); after != before {
				t.Errorf("files before:\n%s\nand after:\n%s", before, after)
			}
		})
	}
}

// reissued is a certificate authority's certificate with another time.
func reissued(t *testing.T, file string, shift time.Duration) []byte {
	t.Helper()
	cert := readCertificate(t, file)
	cert.NotBefore, cert.NotAfter = cert.NotBefore.Add(shift), cert.NotAfter.Add(shift)
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, cert.PublicKey, readKey(t, strings.TrimSuffix(file, ".crt")+".key"))
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestAComponentThatEndsAtStartIsShownWithItsLastWords(t *testing.T) {
	t.Parallel()
	for _, isolation := range []string{"grouped", "component"} {
		t.Run(isolation, func(t *testing.T) {
			b := newBare(t)
			b.configured(t, "isolation: "+isolation+"\ncomponents:\n  kube-scheduler:\n    args: {nonsense: x}")
			stop := b.server(t)
			eventually(t, limit, "the crash loop to be reported", func(ctx context.Context) error {
				st, err := b.status(ctx)
				if err != nil {
					return err
				}
				c, err := componentOf(st, "kube-scheduler")
				if err != nil {
					return err
				}
				if c.State != "backoff" && c.State != "starting" || c.Restarts < 2 || c.LastExit == "" {
					return fmt.Errorf("kube-scheduler is %s, restarts %d, last exit %q: %s", c.State, c.Restarts, c.LastExit, c.Note)
				}
				for _, p := range st.Problems {
					if p.Code == health.ComponentCrashloop && p.Remedy != "" && strings.Contains(p.Text, "unknown flag: --nonsense") {
						return nil
					}
				}
				return fmt.Errorf("problems: %+v", st.Problems)
			})
			if isolation == "component" {
				// Between its pauses it is starting.
				eventually(t, limit, "k1s status to show the pause and the last words", func(ctx context.Context) error {
					if r := b.k1s(ctx, "status"); !strings.Contains(r.out, "unknown flag: --nonsense") || !strings.Contains(r.out, "backoff") {
						return fmt.Errorf("it says: %v", r)
					}
					return nil
				})
				st, err := b.status(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if api, err := componentOf(st, "kube-apiserver"); err != nil || api.State != "ready" || api.Restarts > 0 {
					t.Errorf("the others suffer: %+v %v", api, err)
				}
			}
			stop()
		})
	}
}
