// Package clustertest holds what every cluster.Provider must do (Run) and the simplest provider that does it
// (Fake), for tests of what is built on top. Used by tests only.
package clustertest

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"k1s.io/k1s/internal/cluster"
	"k1s.io/k1s/internal/errs"
)

// Run checks a provider. newProvider returns one that has no clusters; whatever Run makes it deletes again.
func Run(t *testing.T, newProvider func(t *testing.T) cluster.Provider) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, ctx context.Context, p cluster.Provider)
	}{
		{"what is not there can be stopped and deleted, not described", absent},
		{"prepare makes the choices and keeps them", prepareChooses},
		{"prepare refuses what is wrong", prepareRefuses},
		{"prepare refuses what somebody else creates", prepareIsOnes},
		{"create is idempotent", createTwice},
		{"a prepared cluster without nodes is broken, and can be deleted", halfCreated},
		{"a stopped cluster starts again as it was", stopStart},
		{"nodes come and go one by one", nodes},
		{"of links that are changed at once none is lost", linksAtOnce},
		{"clusters do not disturb each other", sideBySide},
		{"a cancelled call does nothing or can be continued", cancelled},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			t.Cleanup(cancel)
			p := newProvider(t)
			t.Cleanup(func() { cleanUp(t, p) })
			c.test(t, ctx, p)
		})
	}
}

func cleanUp(t *testing.T, p cluster.Provider) {
	ctx := context.Background()
	names, err := p.Clusters(ctx)
	if err != nil {
		t.Errorf("listing clusters to clean up: %v", err)
	}
	for _, n := range append(names, "one", "two") {
		if err := p.Delete(ctx, n, ""); err != nil {
			t.Errorf("deleting cluster %s: %v", n, err)
		}
		NothingLeft(t, p, n)
	}
}

// NothingLeft fails the test when there is any trace of a cluster.
func NothingLeft(t *testing.T, p cluster.Provider, name string) {
	t.Helper()
	left, err := p.Leftovers(context.Background(), name)
	if err != nil {
		t.Errorf("looking for leftovers of cluster %s: %v", name, err)
	}
	for _, l := range left {
		t.Errorf("left of cluster %s: %s", name, l)
	}
}

func absent(t *testing.T, ctx context.Context, p cluster.Provider) {
	if _, err := p.Describe(ctx, "one"); !errs.Is(err, errs.NotFound) {
		t.Errorf("Describe: got %v, want an error of kind NotFound", err)
	}
	if err := p.Stop(ctx, "one", ""); err != nil {
		t.Errorf("Stop: %v", err)
	}
	if err := p.Delete(ctx, "one", "server-0"); err != nil {
		t.Errorf("Delete of a node: %v", err)
	}
	if err := p.Delete(ctx, "one", ""); err != nil {
		t.Errorf("Delete: %v", err)
	}
	if got := clusters(t, ctx, p); len(got) != 0 {
		t.Errorf("Clusters: got %v, want none", got)
	}
	if _, err := p.Create(ctx, server("one")); err == nil {
		t.Error("Create in a cluster that was not prepared: got no error")
	}
}

func prepareChooses(t *testing.T, ctx context.Context, p cluster.Provider) {
	first, err := p.Prepare(ctx, cluster.Spec{Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	if first.APIPort == 0 || !first.Subnet.IsValid() || first.Created.IsZero() {
		t.Errorf("a choice is missing: %+v", first)
	}
	again, err := p.Prepare(ctx, cluster.Spec{Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	if again.APIPort != first.APIPort || again.Subnet != first.Subnet || !again.Created.Equal(first.Created) {
		t.Errorf("choices changed from %+v to %+v", first, again)
	}
}

func prepareRefuses(t *testing.T, ctx context.Context, p cluster.Provider) {
	for name, s := range map[string]cluster.Spec{
		"no name":        {},
		"bad name":       {Name: "../one"},
		"one port twice": {Name: "one", Publish: []cluster.Publish{{HostPort: 8080, NodePort: 1, Proto: "tcp"}, {HostPort: 8080, NodePort: 2, Proto: "tcp"}}},
	} {
		if _, err := p.Prepare(ctx, s); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
	if got := clusters(t, ctx, p); len(got) != 0 {
		t.Errorf("refused clusters left a trace: %v", got)
	}
}

func prepareIsOnes(t *testing.T, ctx context.Context, p cluster.Provider) {
	if _, err := p.Prepare(ctx, cluster.Spec{Name: "one", Creation: "mine"}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Prepare(ctx, cluster.Spec{Name: "one", Creation: "theirs"}); !errs.Is(err, errs.Exists) {
		t.Errorf("another creation: got %v, want an error of kind Exists", err)
	}
	for _, creation := range []string{"mine", ""} {
		s, err := p.Prepare(ctx, cluster.Spec{Name: "one", Creation: creation})
		if err != nil || s.Creation != "mine" {
			t.Errorf("going on as %q: got %+v, %v", creation, s, err)
		}
	}
}

func createTwice(t *testing.T, ctx context.Context, p cluster.Provider) {
	n := up(t, ctx, p, "one")
	again, err := p.Create(ctx, server("one"))
	if err != nil {
		t.Fatal(err)
	}
	if again.PID != n.PID || again.State != cluster.Running {
		t.Errorf("the second Create changed the node from %+v to %+v", n, again)
	}
	s := describe(t, ctx, p, "one")
	if len(s.Nodes) != 1 || s.State != cluster.Running {
		t.Errorf("got %d nodes, cluster %s (%s), want one, running", len(s.Nodes), s.State, s.Note)
	}
}

func halfCreated(t *testing.T, ctx context.Context, p cluster.Provider) {
	if _, err := p.Prepare(ctx, cluster.Spec{Name: "one"}); err != nil {
		t.Fatal(err)
	}
	if s := describe(t, ctx, p, "one"); s.State != cluster.Broken || s.Note == "" {
		t.Errorf("got state %s (%q), want broken with a note", s.State, s.Note)
	}
	if left, err := p.Leftovers(ctx, "one"); err != nil || len(left) == 0 {
		t.Errorf("Leftovers of a cluster that is there: got %v, %v, want some", left, err)
	}
	gone(t, ctx, p, "one")
}

func stopStart(t *testing.T, ctx context.Context, p cluster.Provider) {
	up(t, ctx, p, "one")
	before := describe(t, ctx, p, "one").Spec
	for range 2 { // the second time it is stopped already
		if err := p.Stop(ctx, "one", ""); err != nil {
			t.Fatal(err)
		}
	}
	s := describe(t, ctx, p, "one")
	if s.State != cluster.Stopped || len(s.Nodes) != 1 || s.Nodes[0].State != cluster.Stopped || s.Nodes[0].PID != 0 {
		t.Errorf("after Stop: %+v", s)
	}
	if s.Spec.APIPort != before.APIPort {
		t.Errorf("the API's port changed from %d to %d", before.APIPort, s.Spec.APIPort)
	}
	if _, err := p.Prepare(ctx, s.Spec); err != nil {
		t.Fatal(err)
	}
	n, err := p.Create(ctx, s.Spec.Nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	if n.State != cluster.Running {
		t.Errorf("after the start: %+v", n)
	}
}

func nodes(t *testing.T, ctx context.Context, p cluster.Provider) {
	up(t, ctx, p, "one")
	a, err := p.Create(ctx, cluster.NodeSpec{Cluster: "one", Role: cluster.Agent})
	if err != nil {
		t.Fatal(err)
	}
	if s := describe(t, ctx, p, "one"); len(s.Nodes) != 2 || s.Nodes[0].Addr == s.Nodes[1].Addr || s.State != cluster.Running {
		t.Errorf("want two running nodes with an address each, got %+v", s)
	}
	if err := p.Stop(ctx, "one", a.Name); err != nil {
		t.Fatal(err)
	}
	s := describe(t, ctx, p, "one")
	if s.Nodes[0].State != cluster.Running || s.Nodes[1].State != cluster.Stopped {
		t.Errorf("after stopping the agent: %+v", s.Nodes)
	}
	for range 2 {
		if err := p.Delete(ctx, "one", a.Name); err != nil {
			t.Fatal(err)
		}
	}
	if s := describe(t, ctx, p, "one"); len(s.Nodes) != 1 || s.State != cluster.Running {
		t.Errorf("after deleting the agent: %+v", s)
	}
	if _, err := p.Create(ctx, cluster.NodeSpec{Cluster: "one", Role: "king"}); !errs.Is(err, errs.Invalid) {
		t.Errorf("a node of no role: got %v, want an error of kind Invalid", err)
	}
}

func linksAtOnce(t *testing.T, ctx context.Context, p cluster.Provider) {
	if _, ok := p.(cluster.LinkSetter); !ok {
		t.Skip("it cuts no links")
	}
	up(t, ctx, p, "one")
	names := []string{"server-0"}
	for i := range 3 {
		n, err := p.Create(ctx, cluster.NodeSpec{Cluster: "one", Role: cluster.Agent, Index: i})
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, n.Name)
	}
	m := cluster.Manager{Provider: p}
	var all sync.WaitGroup
	begin, want := make(chan struct{}), 0
	for i, a := range names {
		for _, b := range append([]string{""}, names[:i]...) {
			want++
			all.Go(func() {
				<-begin
				if err := m.CutLink(ctx, "one", a, b); err != nil {
					t.Errorf("cutting %s and %q off from each other: %v", a, b, err)
				}
			})
		}
	}
	close(begin)
	all.Wait()
	if got := describe(t, ctx, p, "one").Spec.Cuts; len(got) != want {
		t.Errorf("%d cuts are left of %d: %v", len(got), want, got)
	}
}

func sideBySide(t *testing.T, ctx context.Context, p cluster.Provider) {
	one, two := up(t, ctx, p, "one"), up(t, ctx, p, "two")
	if got := clusters(t, ctx, p); !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("Clusters: got %v", got)
	}
	if one.ControlSocket == two.ControlSocket || one.Kubeconfig == two.Kubeconfig {
		t.Errorf("clusters share a file: %+v, %+v", one, two)
	}
	s1, s2 := describe(t, ctx, p, "one"), describe(t, ctx, p, "two")
	if s1.Spec.APIPort == s2.Spec.APIPort {
		t.Errorf("both clusters have API port %d", s1.Spec.APIPort)
	}
	gone(t, ctx, p, "one")
	if s := describe(t, ctx, p, "two"); s.State != cluster.Running || s.Nodes[0].PID != two.PID {
		t.Errorf("deleting the one changed the other: %+v", s)
	}
}

func cancelled(t *testing.T, ctx context.Context, p cluster.Provider) {
	over, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := p.Prepare(over, cluster.Spec{Name: "one"}); err == nil {
		t.Log("Prepare did not look at its context; what it made must be usable")
	}
	up(t, ctx, p, "one")
}

func server(name string) cluster.NodeSpec {
	return cluster.NodeSpec{Cluster: name, Role: cluster.Server}
}

func up(t *testing.T, ctx context.Context, p cluster.Provider, name string) cluster.Node {
	t.Helper()
	if _, err := p.Prepare(ctx, cluster.Spec{Name: name}); err != nil {
		t.Fatal(err)
	}
	n, err := p.Create(ctx, server(name))
	if err != nil {
		t.Fatal(err)
	}
	if n.State != cluster.Running || n.Name != "server-0" || n.Cluster != name || !n.Addr.IsValid() {
		t.Fatalf("Create returned %+v", n)
	}
	return n
}

func gone(t *testing.T, ctx context.Context, p cluster.Provider, name string) {
	t.Helper()
	if err := p.Delete(ctx, name, ""); err != nil {
		t.Fatal(err)
	}
	NothingLeft(t, p, name)
}

func describe(t *testing.T, ctx context.Context, p cluster.Provider, name string) cluster.Status {
	t.Helper()
	s, err := p.Describe(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func clusters(t *testing.T, ctx context.Context, p cluster.Provider) []string {
	t.Helper()
	names, err := p.Clusters(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return names
}
