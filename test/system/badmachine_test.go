//go:build system

package system

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each of these ends the server before anything is started, with an exit code, a sentence and a remedy.

func TestAPortInUseIsNamedWithItsOwner(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	b.prepare = "busybox httpd -p 6443 -h /"
	b.fails(t).wants(t, 1, "error: ", "6443", "busybox", "hint:  ")
}

func TestAnAddressRangeOfTheMachineIsNotTaken(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	b.fails(t, "--network-pod-cidr", "10.88.0.0/16").wants(t, 2, "error: ", "10.88.0.0/16", bareAddress, "hint:  ")
	b.fails(t, "--network-pod-cidr", "10.43.0.0/16").wants(t, 2, "error: ", "podCIDR", "serviceCIDR")
	b.fails(t, "--network-service-cidr", "10.43.0.0").wants(t, 2, "error: ", "serviceCIDR")
	// A network that only the machine knows of is in the way of a worker.
	b.prepare = "ip address add 10.42.7.1/24 dev eth0"
	r := b.k1s(within(t, limit), "check")
	r.wants(t, 4, "error: this machine cannot be a node as it is")
	if !strings.Contains(r.out, "10.42.7.0/24") || !strings.Contains(r.out, "cidr-overlap") || !strings.Contains(r.out, "spec.network.podCIDR") {
		t.Errorf("k1s check says:\n%s", r.out)
	}
}

func TestAReadOnlyDataDirectoryIsSaidSo(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	b.ownPayload = true
	b.prepare = "mount --bind $DIR/data $DIR/data; mount -o remount,ro,bind $DIR/data"
	b.fails(t).wants(t, 1, "error: ", b.data(), "hint:  ", "read-only", "k1s check")
}

func TestAFullDiskIsSaidSoAndNothingIsHalfUnpacked(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	b.ownPayload = true
	// The file system ends with the machine, so the machine itself tells what is on it.
	b.prepare = "mount -t tmpfs -o size=20m tmpfs $DIR/data"
	b.fails(t).wants(t, 1, "error: ", b.data(), "hint:  ", "free some space")
	b.program, b.prepare = "/bin/sh", b.prepare+"; "+the.program+" server --no-worker 2>/dev/null || true"
	r := b.k1s(t.Context(), "-c", "ls -A $DIR/data/payload")
	for entry := range strings.FieldsSeq(r.out) {
		if entry != ".lock" && entry != "current" {
			t.Errorf("left in the payload directory: %s", entry)
		}
	}
	b.program = the.program
}

func TestTooLittleSpaceIsSaidBeforeTheNodeStarts(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	b.ownPayload = true
	b.prepare = "mount -t tmpfs -o size=600m tmpfs $DIR/data"
	b.fails(t).wants(t, 1, "error: ", "MB are free at "+b.data(), "hint:  ")
}

func TestAnUnknownSettingIsNamedWithItsLine(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	b.configured(t, "api:\n  prot: 6444")
	b.fails(t).wants(t, 2, "error: ", "config.yaml:5:5: spec.api: unknown field \"prot\"", "did you mean \"port\"")
	if out := b.files(t); out != "" {
		t.Errorf("files were made:\n%s", out)
	}
}

// A cluster whose node cannot start tells why, and the reason is not a time-out.
func TestAClusterWithAWrongSettingIsToldAtOnce(t *testing.T) {
	root(t)
	t.Parallel()
	c := newCluster("wrong")
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("apiVersion: k1s.io/v1alpha1\nkind: Config\nspec:\n  api:\n    prot: 6444\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	r := c.create(t.Context(), "--config", file)
	if r.code != 2 && r.code != 1 || !strings.Contains(r.err, "unknown field") || !strings.Contains(r.err, "prot") {
		t.Errorf("%v", r)
	}
}
