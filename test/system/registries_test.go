//go:build system

package system

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// restarts stops the daemon and starts another, as after a change of the configuration. Pods run on.
func (c *Cluster) restarts(t *testing.T) {
	t.Helper()
	c.in(within(t, limit), "k1s", "stop").wants(t, 0, "stopped")
	c.starts(t)
}

// registriesFile uses one registry in every way there is: as a mirror of the usual registry, of one that does
// not exist, with its names below "vault", of any other, and by its own address.
func registriesFile(address, password string) string {
	return fmt.Sprintf(`mirrors:
  docker.io:
    endpoint: ["https://127.0.0.1:5000"]
  registry.example:
    endpoint: ["https://127.0.0.1:5000"]
    rewrite: {"^(.*)$": "vault/$1"}
  "*":
    endpoint: ["https://127.0.0.1:5000"]
configs:
  127.0.0.1:5000:
    auth: {username: %[2]s, password: %[3]s}
    tls: {ca_file: /etc/k1s/registry-ca.crt}
  %[1]s:5000:
    auth: {username: %[2]s, password: %[3]s}
    tls: {ca_file: /etc/k1s/registry-ca.crt}
`, address, registryUser, password)
}

func TestImagesComeFromRegistriesAsTheirFileSays(t *testing.T) {
	t.Parallel()
	c := created(t, "registries")
	address := c.where().Addr.String()
	r := startRegistry(t, c.network(t), address)
	images := map[string]string{ // pod to the image it is of
		"hub":     "docker.io/library/onlyhere:1",
		"private": "registry.example/team/tool:1",
		"other":   "elsewhere.example/some/thing:1",
		"direct":  address + ":5000/by/address:1",
	}
	for _, repository := range []string{"library/onlyhere", "vault/team/tool", "some/thing", "by/address"} {
		r.push(t, repository)
	}
	c.put(t, r.ca, "/etc/k1s/registry-ca.crt")

	const wrong = "wrong-horse-battery"
	c.put(t, []byte(registriesFile(address, wrong)), "/etc/k1s/registries.yaml")
	c.restarts(t)
	s := c.namespace(t, "registries")
	for pod, image := range images {
		s.kubectl(t, "run", pod, "--image="+image, "--image-pull-policy=Always", "--restart=Never", "--", "echo", "it works")
	}
	for pod, image := range images {
		s.untilOutput(t, limit, "the pull of pod "+pod+" to be given up for now", is("ImagePullBackOff"),
			"get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].state.waiting.reason}")
		s.untilOutput(t, limit, "an event that names the image and why", func(out string) bool {
			return strings.Contains(out, image) && strings.Contains(out, "401 Unauthorized")
		}, "get", "events", "--field-selector=reason=Failed,involvedObject.name="+pod, "-o", "jsonpath={.items[*].message}")
	}

	// The same pods run as soon as the file is right: it is read at every start.
	c.put(t, []byte(registriesFile(address, registryPassword)), "/etc/k1s/registries.yaml")
	before := pids(c.running(t))
	c.restarts(t)
	if after := pids(c.running(t)); after["containerd"] == before["containerd"] {
		t.Error("containerd has not been started again with other credentials")
	}
	for pod := range images {
		s.kubectl(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/"+pod, "--timeout=4m")
		if out := s.kubectl(t, "logs", pod); out != "it works\n" {
			t.Errorf("%s says %q", pod, out)
		}
	}
	for _, secret := range []string{wrong, registryPassword} {
		c.tellsNobody(t, secret)
	}
}

// tellsNobody checks that a secret is in no file of the node that others could read, and in no log.
func (c *Cluster) tellsNobody(t *testing.T, secret string) {
	t.Helper()
	err := filepath.WalkDir(c.disk("var/lib/k1s"), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile
		}
		if err == nil && d.IsDir() && (d.Name() == "db" || strings.HasPrefix(d.Name(), "io.containerd.")) {
			return filepath.SkipDir // the objects of the cluster, and images
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		st, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if bytes.Contains(b, []byte(secret)) && (st.Mode().Perm()&0o077 != 0 || strings.Contains(path, "/log/")) {
			t.Errorf("%s (%s) tells %q", path, st.Mode(), secret)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestARegistriesFileThatCannotBeUsedIsToldWithItsLine(t *testing.T) {
	t.Parallel()
	b := newBare(t)
	file := b.dir + "/etc/registries.yaml"
	for content, want := range map[string]string{
		"mirrors:\n  docker.io:\n    endpoints: [a]\n":                                   file + `:3: unknown key "endpoints"`,
		"configs:\n  a.example:\n    auth: {password: do-not-tell}\n":                    file + ":3: configs.a.example.auth: a password needs a username",
		"mirrors:\n  docker.io:\n    endpoint: [a.example]\n    rewrite: {'^x$': 'y'}\n": file + ":4: mirrors.docker.io.rewrite: containerd 2.3 can only put a prefix",
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		r := b.fails(t)
		r.wants(t, 2, "error: ", want, "hint:  ")
		if strings.Contains(r.err, "do-not-tell") {
			t.Errorf("the password is told:\n%s", r.err)
		}
	}
}
