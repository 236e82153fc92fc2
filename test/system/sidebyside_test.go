//go:build system

package system

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"k1s.io/k1s/internal/cluster"
)

// Two clusters with the same addresses on one machine.
func TestClustersSideBySideDoNotSeeEachOther(t *testing.T) {
	t.Parallel()
	args := withImages(t)
	port := freePort(t)
	left := created(t, "left", args...)
	right := created(t, "right", append(args, "--publish", fmt.Sprintf("%d:%d", port, frontNodePort))...)
	right.ports = map[int]int{frontNodePort: port}
	app := survives(t, right)
	s := left.namespace(t, "side")
	s.client(t)

	for what, query := range map[string][]string{
		"range of pods":             {"get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDR}"},
		"address of the node":       {"get", "nodes", "-o", "jsonpath={.items[*].status.addresses[0].address}"},
		"address of the API inside": {"get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"},
	} {
		if l, r := left.kubectl(t, query...), right.kubectl(t, query...); l != r || l == "" {
			t.Errorf("%s: %q and %q", what, l, r)
		}
	}
	if out := left.kubectl(t, "get", "namespaces", "-o", "name"); strings.Contains(out, app.ns) {
		t.Errorf("the left cluster has a namespace of the right one: %s", out)
	}
	service := app.kubectl(t, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	for _, url := range []string{"http://" + app.storeIP(t) + ":8080/", "http://" + service + "/", "http://web." + app.ns + "/"} {
		if r := s.try(within(t, limit), "exec", "client", "--", "wget", "-q", "-T", "5", "-O", "-", url); r.failure == nil {
			t.Errorf("%s of the right cluster answers a pod of the left one: %v", url, r)
		}
	}
	// Nor is there a file of the other, or of this machine's user.
	right.put(t, []byte("of the right one"), "/var/lib/only-here")
	left.in(within(t, limit), "sh", "-c", "test ! -e /var/lib/only-here && test ! -e "+right.clusters()).wants(t, 0)
	// Nor does one know the other's administrator.
	server := strings.TrimSpace(right.kubectl(t, "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"))
	if r := left.try(within(t, limit), "--server", server, "--insecure-skip-tls-verify", "get", "nodes"); r.failure == nil || !strings.Contains(r.err, "Unauthorized") && !strings.Contains(r.err, "logged in") {
		t.Errorf("the left administrator at the right cluster: %v", r)
	}
	context := func(c *Cluster) result {
		return k1s(within(t, limit), "kubectl", "--context", cluster.Context(c.name), "get", "namespaces", "-o", "name")
	}
	for c, has := range map[*Cluster]string{left: s.ns, right: app.ns} {
		if r := context(c); !strings.Contains(r.out, "namespace/"+has+"\n") {
			t.Errorf("the context of %s: %v", c.name, r)
		}
	}

	was, containers := right.running(t), right.containers(t)
	left.setGone()
	if err := left.remove(within(t, limit)); err != nil {
		t.Fatal(err)
	}
	if r := context(left); r.failure == nil || !strings.Contains(r.err, "context was not found") {
		t.Errorf("the context of the deleted cluster: %v", r)
	}
	if r := context(right); r.failure != nil {
		t.Errorf("the context of the other: %v", r)
	}
	if r := k1s(within(t, limit), "cluster", "ls"); strings.Contains(r.out, left.name) || !strings.Contains(r.out, right.name) {
		t.Errorf("k1s cluster ls says:\n%s", r.out)
	}
	app.works(t)
	right.sameContainers(t, containers)
	if now := right.running(t); now.PID != was.PID || !maps.Equal(pids(was), pids(now)) {
		t.Errorf("the other cluster was disturbed: %v, now %v", pids(was), pids(now))
	}
}
