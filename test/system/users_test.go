//go:build system

package system

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"k1s.io/k1s/internal/timers"
)

// The users of the control plane, spec.users.first being what it is by itself.
const groupedUser = 61101

var separateUsers = map[string]int{
	"kube-apiserver": 61102, "kube-controller-manager": 61103, "kube-scheduler": 61104, "kine": 61105, "addon-manager": 61107,
}

// separates changes as whom the control plane runs, as a user does.
func (c *Cluster) separates(t *testing.T, separate bool, isolation string) {
	t.Helper()
	c.put(t, fmt.Appendf(nil, "apiVersion: k1s.io/v1alpha1\nkind: Config\nspec:\n  isolation: %s\n  users: {separate: %t}\n", isolation, separate), "/etc/k1s/config.d/90-users.yaml")
	c.restarts(t)
}

// runsAs checks as whom the components run, those that are not named as root, and that nobody else has a capability.
func (c *Cluster) runsAs(t *testing.T, users map[string]int) {
	t.Helper()
	eventually(t, limit, "the components to run as their users", func(ctx context.Context) error {
		st, err := c.status(ctx)
		if err != nil {
			return err
		}
		seen, failed := 0, []error{}
		for _, comp := range st.Components {
			raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", comp.PID))
			if err != nil {
				failed = append(failed, fmt.Errorf("%s: %w", comp.Name, err))
				continue
			}
			is := map[string][]string{}
			for line := range strings.Lines(string(raw)) {
				name, value, _ := strings.Cut(line, ":")
				is[name] = strings.Fields(value)
			}
			want, separate := users[comp.Name]
			id := strconv.Itoa(want)
			for _, what := range []string{"Uid", "Gid"} {
				if got := strings.Join(is[what], " "); got != strings.Join([]string{id, id, id, id}, " ") {
					failed = append(failed, fmt.Errorf("%s (process %d) has %s %s, want %s", comp.Name, comp.PID, what, got, id))
				}
			}
			if comp.UID != want {
				failed = append(failed, fmt.Errorf("k1s status says that %s runs as %d, want %d", comp.Name, comp.UID, want))
			}
			if !separate {
				continue
			}
			seen++
			for _, what := range []string{"CapEff", "CapPrm", "CapInh", "CapAmb"} {
				if got := strings.Trim(strings.Join(is[what], ""), "0"); got != "" {
					failed = append(failed, fmt.Errorf("%s has the capabilities %s %s", comp.Name, what, got))
				}
			}
		}
		if seen != len(users) {
			failed = append(failed, fmt.Errorf("%d components of %v are there", seen, users))
		}
		return errors.Join(failed...)
	})
}

// gathersTimers waits until the daemon has given the threads of a component's process, which may not do that itself, their timer slack.
func (c *Cluster) gathersTimers(t *testing.T, name string) {
	t.Helper()
	eventually(t, limit, "the timers of "+name+" to be gathered", func(ctx context.Context) error {
		st, err := c.status(ctx)
		if err != nil {
			return err
		}
		comp, err := componentOf(st, name)
		if err != nil {
			return err
		}
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", comp.PID))
		if err != nil {
			return err
		}
		given := 0
		for _, thread := range threads {
			raw, err := os.ReadFile(filepath.Join("/proc", filepath.Base(thread), "timerslack_ns"))
			if errors.Is(err, fs.ErrPermission) {
				t.Skipf("this needs CAP_SYS_NICE: %v", err)
			}
			if err == nil && strings.TrimSpace(string(raw)) == strconv.FormatInt(timers.Default.Slack.Nanoseconds(), 10) {
				given++
			}
		}
		if given == 0 {
			return fmt.Errorf("none of %d threads of process %d has it", len(threads), comp.PID)
		}
		return nil
	})
}

// readers are the users of the control plane that can open each of these files of the node, tried by processes of theirs; "nobody" is
// among them where a file is not there.
func (c *Cluster) readers(t *testing.T, files []string) map[string][]string {
	t.Helper()
	var script strings.Builder
	for name, uid := range separateUsers {
		for _, file := range files {
			fmt.Fprintf(&script, "test -e %[3]s || echo nobody %[3]s; setpriv --reuid %[1]d --regid %[1]d --clear-groups -- head -c 0 %[3]s 2>/dev/null && echo %[2]s %[3]s\n", uid, name, file)
		}
	}
	r := c.in(within(t, limit), "sh", "-ec", "command -v setpriv >/dev/null\n"+strings.ReplaceAll(script.String(), "\n", " || true\n"))
	if err := r.error(); err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for line := range strings.Lines(r.out) {
		name, file, _ := strings.Cut(strings.TrimSpace(line), " ")
		out[file] = append(out[file], name)
	}
	return out
}

// keepsUsersApart looks at the files of a node whose components have users each, renews certificates, and switches it off.
func (c *Cluster) keepsUsersApart(t *testing.T, s survivor) {
	t.Helper()
	c.runsAs(t, separateUsers) // all of them have been killed and started again
	want := map[string]string{
		"/var/lib/k1s/pki/ca.key":                                    "kube-controller-manager",
		"/var/lib/k1s/pki/apiserver.key":                             "kube-apiserver",
		"/var/lib/k1s/pki/apiserver-kubelet-client.key":              "kube-apiserver",
		"/var/lib/k1s/pki/scheduler-client.key":                      "kube-scheduler",
		"/var/lib/k1s/pki/admin-client.key":                          "",
		"/var/lib/k1s/kubeconfig/kube-scheduler.kubeconfig":          "kube-scheduler",
		"/var/lib/k1s/kubeconfig/kube-controller-manager.kubeconfig": "kube-controller-manager",
		"/var/lib/k1s/kubeconfig/addon-manager.kubeconfig":           "addon-manager",
		"/var/lib/k1s/kubeconfig/kube-proxy.kubeconfig":              "",
		"/var/lib/k1s/encryption/config.json":                        "kube-apiserver",
		"/var/lib/k1s/encryption/keys.json":                          "",
		"/var/lib/k1s/db/state.db":                                   "kine",
		"/var/lib/k1s/log/audit/audit.log":                           "kube-apiserver",
		"/etc/k1s/admin.kubeconfig":                                  "",
	}
	apart := func() {
		t.Helper()
		got := c.readers(t, slices.Collect(maps.Keys(want)))
		for file, reader := range want {
			if by := strings.Join(got[file], " "); by != reader {
				t.Errorf("%s can be opened by %q, want %q", file, by, reader)
			}
		}
	}
	apart()
	for pattern, most := range map[string]fs.FileMode{
		"var/lib/k1s/pki/*.key": 0o640, "var/lib/k1s/kubeconfig": 0o711, "var/lib/k1s/kubeconfig/*": 0o600, "var/lib/k1s/rendered/*": 0o600,
		"var/lib/k1s/encryption": 0o711, "var/lib/k1s/encryption/*": 0o600, "var/lib/k1s/db": 0o700, "var/lib/k1s/log/audit": 0o700,
	} {
		files, err := filepath.Glob(c.disk(pattern))
		if err != nil || len(files) == 0 {
			t.Errorf("there is no %s, %v", pattern, err)
		}
		for _, f := range files {
			if st, err := os.Stat(f); err != nil || st.Mode().Perm()&^most != 0 {
				t.Errorf("%s has mode %v, at most %o is wanted, %v", f, st.Mode(), most, err)
			}
		}
	}

	// Everything is written anew, and read again by who runs.
	c.in(within(t, limit), "k1s", "certs", "renew", "--all").wants(t, 0)
	apart()
	c.in(within(t, limit), "sh", "-c", "umask 022; printf 'apiVersion: v1\\nkind: ConfigMap\\nmetadata: {name: dropped, namespace: default}\\n' > /var/lib/k1s/manifests/dropped.yaml").wants(t, 0)
	c.untilOutput(t, limit, "the manifest to be applied", contains("dropped"), "-n", "default", "get", "configmaps", "-o", "name")

	c.separates(t, false, "component")
	c.runsAs(t, nil)
	s.works(t)
	eventually(t, limit, "everything to be root's again", func(ctx context.Context) error {
		r := c.in(ctx, "find", "/var/lib/k1s", "/run/k1s", "(", "-path", "/var/lib/k1s/containerd", "-o", "-path", "/run/k1s/containerd", ")", "-prune",
			"-o", "(", "-uid", "+61099", "-uid", "-61108", "-o", "-gid", "+61099", "-gid", "-61108", ")", "-print")
		if err := r.error(); err != nil {
			return err
		}
		if r.out != "" {
			return fmt.Errorf("these are not:\n%s", r.out)
		}
		return c.in(ctx, "sh", "-c", "! test -e /var/lib/k1s/users.json").error()
	})
	c.opensNothing(t)
}

// opensNothing checks that what was opened on the way to files of others is closed again.
func (c *Cluster) opensNothing(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"kubeconfig", "encryption", "rendered"} {
		st, err := os.Stat(c.disk("var/lib/k1s/" + dir))
		if err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, st, err)
		}
	}
}
