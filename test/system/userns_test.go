//go:build system

package system

import (
	"os/exec"
	"strings"
	"testing"
)

// Root in such a pod is nobody on the machine.
func TestAPodMayHaveAUserNamespace(t *testing.T) {
	t.Parallel()
	root(t)
	argv := []string{"unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "true"}
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Skipf("this machine has no user namespaces: %v: %s", err, out)
	}
	c := created(t, "userns", withImages(t)...)
	s := c.namespace(t, "users")
	s.apply(t, "userns.yaml")
	s.ready(t, "mapped", "plain")
	if f := strings.Fields(s.sh(t, "plain", "cat /proc/self/uid_map")); len(f) != 3 || f[1] != "0" {
		t.Errorf("users of a plain pod: %q", f)
	}
	if f := strings.Fields(s.sh(t, "mapped", "cat /proc/self/uid_map")); len(f) != 3 || f[0] != "0" || f[1] == "0" {
		t.Errorf("users of a pod with hostUsers: false: %q", f)
	}
	if out := s.sh(t, "mapped", "id -u && echo x > /data/file && cat /data/file"); out != "0\nx\n" {
		t.Errorf("in the pod: %q", out)
	}
}
