//go:build system

package system

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"k1s.io/k1s/internal/control"
	"k1s.io/k1s/internal/health"
	"k1s.io/k1s/internal/payload"
)

// copied is a copy of the k1s under test, to be damaged.
func copied(t *testing.T) *os.File {
	t.Helper()
	in, err := os.Open(the.program)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(filepath.Join(the.dir, short(t)), os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		out.Close() // most often closed already
		if err := os.Remove(out.Name()); err != nil {
			t.Error(err)
		}
	})
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestATamperedProgramIsRefused(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	b.ownPayload = true
	f := copied(t)
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	one := make([]byte, 1)
	if _, err := f.ReadAt(one, size/2); err != nil { // the payload is most of the file
		t.Fatal(err)
	}
	one[0] ^= 0xff
	if _, err := f.WriteAt(one, size/2); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	b.program = f.Name()
	b.fails(t).wants(t, 1, "error: ", "damaged", "hint:  ")
	if dirs, err := filepath.Glob(b.data() + "/payload/[0-9a-f]*"); err != nil || len(dirs) > 0 {
		t.Errorf("unpacked all the same: %q %v", dirs, err)
	}
	b.program = the.program
}

func TestATruncatedProgramIsRefused(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	b.ownPayload = true
	f := copied(t)
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size - 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	b.program = f.Name()
	b.fails(t).wants(t, 1, "error: ", "payload", "hint:  ")
	b.program = the.program
}

func TestAnAlteredOrHalfUnpackedPayloadIsMendedAndReported(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	b.ownPayload = true
	p, err := payload.Open(the.program)
	if err != nil {
		t.Fatal(err)
	}
	// What an interrupted run of another program left, and files that somebody has touched.
	if err := os.MkdirAll(b.data()+"/payload/.unpack-123/cni", 0o755); err != nil {
		t.Fatal(err)
	}
	stop := b.server(t)
	b.runs(t)
	stop()
	if _, err := os.Stat(b.data() + "/payload/.unpack-123"); err == nil {
		t.Error("what the interrupted run left is still there")
	}
	dir, err := payload.Dir(p, b.data()+"/payload")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/runc", []byte("#!/bin/sh\necho evil\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir + "/k1s-kube"); err != nil {
		t.Fatal(err)
	}
	stop = b.server(t)
	repaired := func(st control.Status) {
		t.Helper()
		if !slices.ContainsFunc(st.Problems, func(p health.Problem) bool { return p.Code == health.PayloadRepaired }) {
			t.Errorf("the repair is not reported: %+v", st.Problems)
		}
	}
	repaired(b.runs(t))
	if st, err := os.Stat(dir + "/runc"); err != nil || st.Size() < 1<<20 {
		t.Errorf("runc is not mended: %v %v", st, err)
	}
	// All of it, while the node runs: what ends afterwards is started again.
	was := pids(b.runs(t))["kube-apiserver"]
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	// Processes are counted anew on that machine.
	if err := command(within(t, limit), os.Environ(), "", "nsenter", "--target", fmt.Sprint(b.pid), "--pid", "--mount", "sh", "-c", fmt.Sprintf("kill -KILL %d", was)).error(); err != nil {
		t.Fatal(err)
	}
	eventually(t, limit, "another API server", func(ctx context.Context) error {
		if now := pids(b.runs(t))["kube-apiserver"]; now == 0 || now == was {
			return fmt.Errorf("it is process %d", now)
		}
		return nil
	})
	repaired(b.runs(t))
	stop()
}
