package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"k1s.io/k1s/internal/config"
	"k1s.io/k1s/internal/paths"
	"k1s.io/k1s/internal/testenv"
)

func TestWhatWasPutAsideIsRootsAgainToo(t *testing.T) {
	testenv.Root(t)
	p := paths.Paths{Data: t.TempDir()}
	files := []string{p.Etcd() + "-removed-20260102T030405Z/member/db", p.EtcdArchive("20260102T030405Z") + "/member/db", p.RestoreArchive("20260102T030405Z/db/state.db"), p.RestoreArchive("20260102T030405Z/pki/ca.key")}
	others := p.RestoreArchive("20260102T030405Z/manifests/mine.yaml")
	owner := func(file string) int {
		st, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		return int(st.Sys().(*syscall.Stat_t).Uid)
	}
	for _, f := range append(files, others) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(f), 0o700), os.WriteFile(f, nil, 0o600), os.Chown(filepath.Dir(f), 61106, 61106), os.Chown(f, 61106, 61106)); err != nil {
			t.Fatal(err)
		}
	}
	if err := takeArchivesBack(p); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if owner(f) != 0 || owner(filepath.Dir(f)) != 0 {
			t.Errorf("%s is of %d, its directory of %d", f, owner(f), owner(filepath.Dir(f)))
		}
	}
	if owner(others) != 61106 {
		t.Errorf("a manifest that somebody has put there is of %d", owner(others))
	}
}

// A datastore whose certificates are closed to kine is not moved to, instead of being gone back from after the copy.
func TestADatastoreIsNotMovedToWhereItsFilesAreClosed(t *testing.T) {
	testenv.Root(t)
	_, in := founder(t, postgresURL)
	key := filepath.Join(t.TempDir(), "client.key")
	if err := errors.Join(os.WriteFile(key, nil, 0o600), os.Chmod(filepath.Dir(key), 0o711), os.Chmod(filepath.Dir(filepath.Dir(key)), 0o711)); err != nil {
		t.Fatal(err)
	}
	in.Config = config.Default()
	in.Config.Spec.Datastore = config.Datastore{Endpoint: postgresURL, KeyFile: key}
	if err := mayRead(in); err != nil {
		t.Errorf("root may not read it: %v", err)
	}
	in.Config.Spec.Users.Separate = true
	if err := mayRead(in); err == nil {
		t.Error("a closed file is no error")
	}
	if err := errors.Join(os.Chown(key, 0, in.Config.Spec.Users.First+1), os.Chmod(key, 0o640)); err != nil {
		t.Fatal(err)
	}
	if err := mayRead(in); err != nil {
		t.Errorf("an open file: %v", err)
	}
}
