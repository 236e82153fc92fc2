//go:build system

package system

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"k1s.io/k1s/internal/control"
)

// The same node in its other shapes: each boots to Ready, answers DNS and runs a pod.
func TestTheNodeComesInOtherShapes(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		name  string
		args  []string
		check func(*testing.T, *Cluster, control.Status)
	}{
		{"fused", []string{"--set", "spec.isolation=none", "--", "--disable=metrics-server"}, func(t *testing.T, c *Cluster, st control.Status) {
			if units := distinct(st, func(c control.Component) string { return c.Unit }); len(units) != 2 || !slices.Contains(units, "containerd") {
				t.Errorf("processes %q, want containerd and one more", units)
			}
			c.lacks(t, "metrics-server", "coredns", "local-path")
		}},
		{"etcd", []string{"--set", "spec.datastore.endpoint=etcd"}, func(t *testing.T, c *Cluster, st control.Status) {
			if _, err := componentOf(st, "etcd"); err != nil {
				t.Error(err)
			}
			if _, err := componentOf(st, "kine"); err == nil {
				t.Error("kine runs too")
			}
			if err := c.in(within(t, limit), "test", "-d", "/var/lib/k1s/etcd/member").error(); err != nil {
				t.Error(err)
			}
			// A node that has run as root so far.
			c.runsAs(t, nil)
			c.separates(t, true, "grouped")
			c.runsAs(t, map[string]int{"kube-apiserver": groupedUser, "kube-controller-manager": groupedUser, "kube-scheduler": groupedUser, "etcd": groupedUser, "addon-manager": groupedUser})
			t.Run("timers", func(t *testing.T) { c.gathersTimers(t, "kube-apiserver") })
		}},
		{"vxlan", []string{"--set", "spec.network.backend=vxlan", "--agents", "1"}, func(t *testing.T, c *Cluster, _ control.Status) {
			app := everywhere{c.namespace(t, "everywhere")}
			app.apply(t, "everywhere.yaml")
			app.reach(t, 2)
			// The way to the pods of the other node is through flannel's link, and nowhere else.
			for _, node := range []string{"server-0", "agent-0"} {
				r := member{c, node}.in(within(t, limit), "ip", "route")
				if r.code != 0 || !strings.Contains(r.out, " dev flannel.") || strings.Contains(r.out, " via 10.88.0.3") || strings.Contains(r.out, " via 10.88.0.10 ") {
					t.Errorf("routes of %s:\n%v", node, r)
				}
			}
		}},
	} {
		t.Run(v.name, func(t *testing.T) {
			c := created(t, v.name, withImages(t, v.args...)...)
			v.check(t, c, c.running(t))
			s := c.namespace(t, "shape")
			s.apply(t, "web.yaml")
			s.client(t)
			s.rolledOut(t, "deployment/web")
			s.untilOutput(t, limit, "the service to answer", contains("web-"), "exec", "client", "--", "/bin/wget", "-q", "-T", "5", "-O", "-", "http://web.shape/")
		})
	}
}

// lacks checks that one of the packaged add-ons was left out, and that others are ready.
func (c *Cluster) lacks(t *testing.T, disabled string, others ...string) {
	t.Helper()
	eventually(t, limit, fmt.Sprintf("the add-ons %q to be ready", others), func(ctx context.Context) error {
		st, err := c.status(ctx)
		if err != nil {
			return err
		}
		for _, name := range others {
			i := slices.IndexFunc(st.Addons, func(a control.Addon) bool { return a.Name == name })
			if i < 0 || st.Addons[i].State != "ready" {
				return fmt.Errorf("%s is not: %+v", name, st.Addons)
			}
		}
		if slices.ContainsFunc(st.Addons, func(a control.Addon) bool { return a.Name == disabled }) {
			t.Errorf("%s is among the add-ons: %+v", disabled, st.Addons)
		}
		return nil
	})
	if out := c.kubectl(t, "get", "deployments,services,apiservices", "-A", "-o", "name"); strings.Contains(out, "/"+disabled) || strings.Contains(out, "metrics.k8s.io") {
		t.Errorf("%s is there:\n%s", disabled, out)
	}
}

func TestAServerThatIsNoWorkerServesTheAPIAndRunsNothing(t *testing.T) {
	t.Parallel()
	c := created(t, "noworker", "--set", "spec.noWorker=true")
	st := c.running(t)
	for _, name := range []string{"kubelet", "containerd", "kube-proxy", "flannel", "network-policy"} {
		if _, err := componentOf(st, name); err == nil {
			t.Errorf("%s runs", name)
		}
	}
	if out := c.kubectl(t, "get", "nodes", "-o", "name"); out != "" {
		t.Errorf("nodes: %q", out)
	}
	c.kubectl(t, "create", "configmap", "kept", "--from-literal=a=b")
	c.untilOutput(t, limit, "/readyz to be ok", is("ok"), "get", "--raw", "/readyz")
}
