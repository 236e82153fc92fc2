//go:build system

package system

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// closedFiles are what sections 1.1 and 4.1 of the CIS Kubernetes Benchmark are about, and what else has secrets in it: the most
// that may be allowed. Those of servers are not on an agent.
var closedFiles = []struct {
	pattern string
	most    fs.FileMode
	server  bool
}{
	{"var/lib/k1s/pki/*.key", 0o600, false},
	{"var/lib/k1s/pki/*.crt", 0o644, false},
	{"var/lib/k1s/pki/sa.pub", 0o644, true},
	{"var/lib/k1s/pki", 0o755, false},
	{"var/lib/k1s/kubeconfig", 0o700, false},
	{"var/lib/k1s/kubeconfig/*", 0o600, false},
	{"var/lib/k1s/rendered", 0o700, false},
	{"var/lib/k1s/rendered/*", 0o600, false},
	{"var/lib/k1s/cni/conf/*", 0o600, false},
	{"var/lib/k1s/db", 0o700, true},
	{"var/lib/k1s/packaged", 0o700, true},
	{"var/lib/k1s/encryption/*", 0o600, true},
	{"etc/admin.kubeconfig", 0o600, true}, // its /etc/k1s,
}

// filesAreClosed looks at the files of a node that runs.
func filesAreClosed(t *testing.T, m member, server bool) {
	t.Helper()
	for _, c := range closedFiles {
		files, err := filepath.Glob(m.disk(c.pattern))
		if err != nil {
			t.Fatal(err)
		}
		if c.server && !server {
			if len(files) > 0 {
				t.Errorf("%s is on an agent", c.pattern)
			}
			continue
		}
		if len(files) == 0 {
			t.Errorf("%s: there is no %s", m.node, c.pattern)
		}
		for _, f := range files {
			st, err := os.Lstat(f)
			if err != nil {
				t.Error(err)
				continue
			}
			if st.Mode().Perm()&^c.most != 0 {
				t.Errorf("%s: %s has mode %o, at most %o is wanted", m.node, f, st.Mode().Perm(), c.most)
			}
			if sys, ok := st.Sys().(*syscall.Stat_t); !ok || sys.Uid != 0 || sys.Gid != 0 {
				t.Errorf("%s: %s is not of root", m.node, f)
			}
		}
	}
}
