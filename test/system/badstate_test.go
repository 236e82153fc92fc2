//go:build system

package system

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"k1s.io/k1s/internal/control"
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

// smallDisk is a file system in memory for the data directory, as large as it is told to be.
type smallDisk struct{ dir string }

func (b *bare) smallDisk(t *testing.T) smallDisk {
	t.Helper()
	d := smallDisk{b.data()}
	if err := unix.Mount("tmpfs", d.dir, "tmpfs", 0, "size=1g,mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmount(d.dir); err != nil {
			t.Error(err)
		}
	})
	return d
}

// fill leaves no room. The file system is made small first, so that little memory is needed.
func (d smallDisk) fill(t *testing.T) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		t.Fatal(err)
	}
	d.resize(t, (st.Blocks-st.Bfree)*uint64(st.Bsize)+16<<20)
	f, err := os.OpenFile(d.dir+"/filler", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 1<<20); ; {
		if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// free makes room again.
func (d smallDisk) free(t *testing.T) {
	t.Helper()
	d.resize(t, 1<<30)
	if err := os.Remove(d.dir + "/filler"); err != nil {
		t.Fatal(err)
	}
}

func (d smallDisk) resize(t *testing.T, bytes uint64) {
	t.Helper()
	if err := unix.Mount("tmpfs", d.dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d", bytes)); err != nil {
		t.Fatalf("making the file system %d bytes large: %v", bytes, err)
	}
}

func TestADiskThatFillsUpStopsWritesUntilThereIsRoomAndLosesNothing(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	disk := b.smallDisk(t)
	stop := b.server(t)
	b.runs(t)
	a := b.api(t)
	const maps = "/api/v1/namespaces/kube-system/configmaps"
	content := strings.Repeat("0123456789abcdef", 1<<14) // 256 KiB
	var acknowledged []string
	tried := 0
	write := func(ctx context.Context) (code int, err error) {
		name := fmt.Sprintf("kept-%d", tried)
		tried++
		_, code, err = a.do(ctx, http.MethodPost, maps, configMap(name, name+content))
		if err == nil {
			acknowledged = append(acknowledged, name)
		}
		return code, err
	}
	writes := func(what string) {
		t.Helper()
		eventually(t, limit, what, func(ctx context.Context) error { _, err := write(ctx); return err })
	}
	kept := func() {
		t.Helper()
		for _, name := range acknowledged {
			eventually(t, limit, name+" to be read", func(ctx context.Context) error {
				o, _, err := a.do(ctx, http.MethodGet, maps+"/"+name, nil)
				if err == nil && o.Data["n"] != name+content {
					t.Errorf("%s has %d bytes that were not written: %.40q", name, len(o.Data["n"]), o.Data["n"])
				}
				return err
			})
		}
	}

	writes("a write on a disk with room")
	// What an API server makes at its very first start it has to make, or it ends: upstream's hooks after the start are fatal.
	eventually(t, limit, "the first start to be over", func(ctx context.Context) error {
		_, code, err := a.do(ctx, http.MethodGet, "/readyz", nil)
		if code == http.StatusOK { // the answer is no object
			err = nil
		}
		return err
	})
	disk.fill(t)
	// The database goes on for a while, in the pages its files have.
	ctx := within(t, limit)
	for refused := false; !refused; {
		code, err := write(ctx)
		refused = err != nil && code >= http.StatusInternalServerError && strings.Contains(err.Error(), "disk")
		if refused {
			t.Logf("after %d writes: %v", len(acknowledged), err)
		} else if tried > 400 || ctx.Err() != nil {
			t.Fatalf("of %d writes none was refused for the disk, the last: %d %v", tried, code, err)
		}
	}
	eventually(t, limit, "k1s status to name the disk and what to do", func(ctx context.Context) error {
		if r := b.k1s(ctx, "status"); !strings.Contains(r.out, "MB are free at "+b.data()) || !strings.Contains(r.out, string(health.DiskLow)) || !strings.Contains(r.out, "free some space") {
			return fmt.Errorf("it says: %v", r)
		}
		st, err := b.status(ctx)
		if err == nil && !diskIsFull(st) {
			err = fmt.Errorf("problems: %+v", st.Problems)
		}
		return err
	})

	disk.free(t)
	writes("a write when there is room again")
	kept()
	eventually(t, limit, "the problem to be gone", func(ctx context.Context) error {
		st, err := b.status(ctx)
		if err == nil && diskIsFull(st) {
			err = fmt.Errorf("problems: %+v", st.Problems)
		}
		return err
	})
	stop()

	// A start on a full disk says so, and is possible when there is room.
	disk.fill(t)
	b.fails(t).wants(t, 1, "error: ", b.data(), "hint:  ", "free some space")
	disk.free(t)
	stop = b.server(t)
	b.runs(t)
	a = b.api(t)
	kept()
	writes("a write after the start")
	stop()
}

// diskIsFull tells that this is a problem of the node, with a remedy.
func diskIsFull(st control.Status) bool {
	return slices.ContainsFunc(st.Problems, func(p health.Problem) bool {
		return p.Code == health.DiskLow && p.Severity == health.Error && p.Remedy != ""
	})
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
